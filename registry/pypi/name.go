package pypi

// File names of distributions: wheels (PEP 427 and the binary distribution
// format), source distributions (PEP 625 and what came before), eggs and the
// other legacy kinds.

import (
	"fmt"
	"strings"

	"github.com/portbook/portbook/entry"
)

// A NameError says why a file name is not that of a distribution.
type NameError struct{ File, Reason string }

func (e *NameError) Error() string {
	return fmt.Sprintf("file name %q: %s", e.File, e.Reason)
}

// NormalProject returns the normal form of a project's name (PEP 503).
func NormalProject(name string) (string, error) { return entry.NormalProject(entry.PyPI, name) }

// sdistSuffixes are those PyPI ever took, longest first where one ends in
// another.
var sdistSuffixes = []string{".tar.gz", ".tar.bz2", ".tar.xz", ".tar.lzma", ".tar.Z", ".tar", ".tgz", ".tbz", ".zip"}

// legacySuffixes end kinds that installers no longer read but indexes keep.
var legacySuffixes = []string{".egg", ".exe", ".rpm", ".deb", ".msi", ".dmg"}

// ParseFileName returns the normal form of the project and the version that a
// distribution's file name says. The version is as written. The name of a
// legacy source distribution can be read in more than one way
// ("a-b-1-c.tar.gz"); here the version starts at the first hyphen that a digit
// follows. Who knows the project asks [VersionOf]. The error is a *[NameError].
func ParseFileName(file string) (project, version string, err error) {
	fail := func(reason string) (string, string, error) {
		return "", "", &NameError{file, reason}
	}
	if err := entry.CheckFile(entry.PyPI, file); err != nil {
		return fail(reasonOf(err))
	}
	stem, kind := splitSuffix(file)
	var name string
	switch {
	case kind == ".whl":
		parts := strings.Split(stem, "-")
		if n := len(parts); n != 5 && n != 6 {
			return fail(fmt.Sprintf("a wheel's name has 5 or 6 parts between hyphens, this has %d (PEP 427)", n))
		}
		if len(parts) == 6 && (parts[2] == "" || parts[2][0] < '0' || parts[2][0] > '9') {
			return fail("a wheel's build tag starts with a digit (PEP 427)")
		}
		name, version = parts[0], parts[1]
	case kind == "":
		return fail("ends like no distribution: .whl, .tar.gz, .zip or another of those that an index takes")
	default:
		i := versionStart(stem)
		if i < 0 {
			return fail("has no hyphen between project and version (PEP 625)")
		}
		name, version = stem[:i], stem[i+1:]
		if contains(legacySuffixes, kind) { // egg and wininst names go on: -py2.7, .win32
			version, _, _ = strings.Cut(version, "-")
			for _, s := range []string{".win32", ".win-amd64", ".linux-x86_64", ".linux-i686", ".noarch", ".src"} {
				version = strings.TrimSuffix(version, s)
			}
		}
	}
	if version == "" {
		return fail("has no version")
	}
	if project, err = NormalProject(name); err != nil {
		return fail(reasonOf(err))
	}
	return project, version, nil
}

// VersionOf returns the version that the file name of a distribution of
// project says. It resolves what ParseFileName must guess. The error is a
// *[NameError], also when the file is of another project.
func VersionOf(project, file string) (string, error) {
	normal, err := NormalProject(project)
	if err != nil {
		return "", err
	}
	guess, version, err := ParseFileName(file)
	if err == nil && guess == normal {
		return version, nil
	}
	if err != nil {
		if stem, kind := splitSuffix(file); kind == "" || kind == ".whl" || !strings.Contains(stem, "-") {
			return "", err
		}
	}
	stem, kind := splitSuffix(file)
	if contains(sdistSuffixes, kind) {
		for i := range stem {
			if stem[i] != '-' || i+1 == len(stem) {
				continue
			}
			if n, err := NormalProject(stem[:i]); err == nil && n == normal {
				return stem[i+1:], nil
			}
		}
	}
	return "", &NameError{file, fmt.Sprintf("is not a file of project %s", normal)}
}

// IsDistribution tells whether the file name ends like something that
// installers download: a wheel, a source distribution or an egg.
func IsDistribution(file string) bool {
	_, kind := splitSuffix(file)
	return kind == ".whl" || kind == ".egg" || contains(sdistSuffixes, kind)
}

func splitSuffix(file string) (stem, suffix string) {
	for _, list := range [][]string{{".whl"}, sdistSuffixes, legacySuffixes} {
		for _, s := range list {
			if len(file) > len(s) && strings.EqualFold(file[len(file)-len(s):], s) {
				return file[:len(file)-len(s)], s
			}
		}
	}
	return file, ""
}

// versionStart returns the index of the hyphen before the version, -1 if none:
// the first one that a digit (or v and a digit) follows, else the last.
func versionStart(stem string) int {
	for i := 1; i+1 < len(stem); i++ {
		if stem[i] != '-' {
			continue
		}
		rest := strings.TrimPrefix(strings.TrimPrefix(stem[i+1:], "v"), "V")
		if rest != "" && rest[0] >= '0' && rest[0] <= '9' {
			return i
		}
	}
	return strings.LastIndexByte(stem, '-')
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func reasonOf(err error) string {
	if f, ok := err.(*entry.FieldError); ok {
		return f.Reason
	}
	return err.Error()
}
