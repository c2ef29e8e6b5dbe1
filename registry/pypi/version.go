package pypi

// Version numbers of PEP 440, as far as two spellings of one version must be
// recognised as one.

import (
	"regexp"
	"strings"
)

// versionRE is PEP 440's appendix B.
var versionRE = regexp.MustCompile(`^(?i)\s*v?(?:(?:([0-9]+)!)?([0-9]+(?:\.[0-9]+)*)` +
	`(?:[-_.]?(alpha|beta|preview|pre|a|b|c|rc)[-_.]?([0-9]+)?)?` +
	`(?:(?:-([0-9]+))|(?:[-_.]?(post|rev|r)[-_.]?([0-9]+)?))?` +
	`(?:[-_.]?(dev)[-_.]?([0-9]+)?)?)` +
	`(?:\+([a-z0-9]+(?:[-_.][a-z0-9]+)*))?\s*$`)

// CanonicalVersion returns the canonical spelling of a version (trailing zeros
// of the release dropped, so that 1.0 and 1.0.0 agree). ok is false when v is
// no version by PEP 440.
func CanonicalVersion(v string) (canonical string, ok bool) {
	if len(v) > 256 {
		return "", false
	}
	m := versionRE.FindStringSubmatch(v)
	if m == nil {
		return "", false
	}
	var b strings.Builder
	if e := number(m[1]); e != "0" {
		b.WriteString(e + "!")
	}
	release := strings.Split(m[2], ".")
	for i := range release {
		release[i] = number(release[i])
	}
	for len(release) > 1 && release[len(release)-1] == "0" {
		release = release[:len(release)-1]
	}
	b.WriteString(strings.Join(release, "."))
	if pre := strings.ToLower(m[3]); pre != "" {
		switch pre {
		case "alpha":
			pre = "a"
		case "beta":
			pre = "b"
		case "c", "pre", "preview":
			pre = "rc"
		}
		b.WriteString(pre + number(m[4]))
	}
	if m[5] != "" {
		b.WriteString(".post" + number(m[5]))
	} else if m[6] != "" {
		b.WriteString(".post" + number(m[7]))
	}
	if m[8] != "" {
		b.WriteString(".dev" + number(m[9]))
	}
	if m[10] != "" {
		parts := strings.FieldsFunc(strings.ToLower(m[10]), func(r rune) bool { return r == '-' || r == '_' || r == '.' })
		for i, p := range parts {
			if strings.Trim(p, "0123456789") == "" {
				parts[i] = number(p)
			}
		}
		b.WriteString("+" + strings.Join(parts, "."))
	}
	return b.String(), true
}

// SameVersion tells whether a and b are spellings of one version. Strings that
// PEP 440 does not know are the same only byte for byte, with - and _ alike as
// in file names.
func SameVersion(a, b string) bool {
	ca, okA := CanonicalVersion(a)
	cb, okB := CanonicalVersion(b)
	if okA && okB {
		return ca == cb
	}
	return okA == okB && strings.ReplaceAll(a, "-", "_") == strings.ReplaceAll(b, "-", "_")
}

// number drops leading zeros; "" is 0.
func number(s string) string {
	if s = strings.TrimLeft(s, "0"); s == "" {
		return "0"
	}
	return s
}
