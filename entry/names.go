// Names inside a registry: projects, files and versions, by ecosystem. FORMAT.md
// section 7. One name has one spelling, and none can leave a directory, a line
// or a terminal cell.

package entry

import (
	"fmt"
	"strings"
)

// maxProject is the length of the longest project name: npm's limit, for all.
const maxProject = 214

// maxFile is the length of the longest file path and registry name.
const maxFile = 255

// NormalProject returns the one spelling of a project's name that entries
// use: for PyPI the normal form of PEP 503, for conda lower case, for npm and
// generic the name itself. The error is a *FieldError.
func NormalProject(ecosystem, name string) (string, error) {
	switch ecosystem {
	case PyPI:
		if !validPyPI(name) {
			return "", &FieldError{"project", fmt.Sprintf("%s is not a Python project name: letters, digits, . _ - with a letter or digit at both ends", quote(name))}
		}
		name = normalPyPI(name)
	case Conda:
		name = asciiLower(name)
	}
	if err := CheckProject(ecosystem, name); err != nil {
		return "", err
	}
	return name, nil
}

// CheckProject reports whether s is a project name in normal form. The error
// is a *FieldError, also for an unknown ecosystem.
func CheckProject(ecosystem, s string) error {
	return fieldError(ecosystem, "project", refuseProject(ecosystem, s))
}

// CheckFile reports whether s is the path of a file inside a project. The
// error is a *FieldError.
func CheckFile(ecosystem, s string) error {
	return fieldError(ecosystem, "file", refuseFile(ecosystem, s))
}

// CheckVersion reports whether s can be a version: 1 to 128 printable ASCII
// characters without " and \, no space at either end. Versions are as the
// index has them; no ecosystem's syntax is imposed. The error is a
// *FieldError.
func CheckVersion(ecosystem, s string) error {
	return fieldError(ecosystem, "version", refuseLabel(s))
}

func fieldError(ecosystem, field, reason string) error {
	switch ecosystem {
	case PyPI, NPM, Conda, Generic:
	default:
		return &FieldError{"ecosystem", fmt.Sprintf("%s is none of %s", quote(ecosystem), strings.Join(Ecosystems(), ", "))}
	}
	if reason == "" {
		return nil
	}
	return &FieldError{field, reason}
}

func refuseProject(ecosystem, s string) string {
	if s == "" || len(s) > maxProject {
		return fmt.Sprintf("%s: length is not 1 to %d", quote(s), maxProject)
	}
	switch ecosystem {
	case PyPI:
		if !validPyPI(s) || normalPyPI(s) != s {
			return fmt.Sprintf("%s is not a normal form of PEP 503: a-z, 0-9, single - between them", quote(s))
		}
	case NPM:
		name := s
		if s[0] == '@' {
			scope, rest, _ := strings.Cut(s[1:], "/")
			if reason := refuseNPM(s, scope); reason != "" {
				return reason
			}
			name = rest
		}
		return refuseNPM(s, name)
	case Conda:
		if i := allowed(s, classConda); i >= 0 {
			return badByte(s, i)
		}
		if s[0] == '.' {
			return fmt.Sprintf("%s starts with a dot", quote(s))
		}
	case Generic:
		_, reason := refuseSegments(s, classPath)
		return reason
	}
	return ""
}

// refuseNPM checks one segment, the scope or the name, of the npm name s.
func refuseNPM(s, segment string) string {
	switch i := allowed(segment, classNPM); {
	case segment == "":
		return fmt.Sprintf("%s is neither name nor @scope/name", quote(s))
	case i >= 0:
		return badByte(segment, i)
	case segment[0] == '.':
		return fmt.Sprintf("%s: a part starts with a dot", quote(s))
	}
	return ""
}

func refuseFile(ecosystem, s string) string {
	if s == "" || len(s) > maxFile {
		return fmt.Sprintf("%s: length is not 1 to %d", quote(s), maxFile)
	}
	var c uint16 = classFile
	if ecosystem == NPM {
		c |= classNPM // a tarball is named after its package
	}
	n, reason := refuseSegments(s, c)
	if reason != "" {
		return reason
	}
	switch ecosystem {
	case PyPI:
		if n != 1 {
			return fmt.Sprintf("%s: a PyPI file has no directory", quote(s))
		}
	case NPM:
		if n != 1 || !hasStem(s, ".tgz") {
			return fmt.Sprintf("%s is not NAME.tgz", quote(s))
		}
	case Conda:
		if _, name, _ := strings.Cut(s, "/"); n != 2 || !hasStem(name, ".conda") && !hasStem(name, ".tar.bz2") {
			return fmt.Sprintf("%s is not SUBDIR/NAME.conda or SUBDIR/NAME.tar.bz2", quote(s))
		}
	}
	return ""
}

func hasStem(s, suffix string) bool { return len(s) > len(suffix) && strings.HasSuffix(s, suffix) }

// refuseSegments checks a path of segments of class c, none empty, "." or
// "..", and counts them.
func refuseSegments(s string, c uint16) (n int, reason string) {
	start := 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '/' {
			if class[s[i]]&c == 0 {
				return n, badByte(s, i)
			}
			continue
		}
		switch s[start:i] {
		case "":
			return n, fmt.Sprintf("%s has an empty part", quote(s))
		case ".", "..":
			return n, fmt.Sprintf("%s has a part . or ..", quote(s))
		}
		start = i + 1
		n++
	}
	return n, ""
}

// validPyPI is the name grammar of PEP 508:
// ^([A-Z0-9]|[A-Z0-9][A-Z0-9._-]*[A-Z0-9])$ without regard to case.
func validPyPI(s string) bool {
	if s == "" || allowed(s, classRepo) >= 0 {
		return false
	}
	return !separator(s[0]) && !separator(s[len(s)-1])
}

func separator(b byte) bool { return b == '-' || b == '_' || b == '.' }

// normalPyPI is re.sub(r"[-_.]+", "-", name).lower() of PEP 503, for a valid
// name.
func normalPyPI(s string) string {
	if allowed(s, classLDH) < 0 && !strings.Contains(s, "--") {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := range len(s) {
		switch b := s[i]; {
		case separator(b):
			if i == 0 || !separator(s[i-1]) {
				out = append(out, '-')
			}
		case 'A' <= b && b <= 'Z':
			out = append(out, b+'a'-'A')
		default:
			out = append(out, b)
		}
	}
	return string(out)
}

// asciiLower lowers A to Z only: strings.ToLower would turn the Kelvin sign
// into a k.
func asciiLower(s string) string {
	out := []byte(s)
	for i, b := range out {
		if 'A' <= b && b <= 'Z' {
			out[i] = b + 'a' - 'A'
		}
	}
	return string(out)
}
