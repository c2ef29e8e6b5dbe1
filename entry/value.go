// Values that are no names: digests, times, codes, keys and addresses. A check
// returns the reason to refuse a string, or "".

package entry

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// Reasons lists the codes of the field reason; FORMAT.md section 6 explains
// each.
func Reasons() []string {
	return []string{
		"broken", "compromised", "legal", "license", "malware", "mistake",
		"name-dispute", "other", "owner-request", "policy", "refused-by-index",
		"security", "spam", "stolen-credential", "superseded", "typosquat",
		"unmaintained", "upload-failed",
	}
}

// Classes of bytes, for allowed.
const (
	classHex   = 1 << iota // 0-9 a-f
	classLDH               // a-z 0-9 -
	classText              // printable ASCII without " and \
	classURL               // registry paths: A-Z a-z 0-9 . _ ~ -
	classNPM               // npm names: A-Z a-z 0-9 . _ ~ ! * ' ( ) -
	classConda             // a-z 0-9 . _ -
	classPath              // generic names: A-Z a-z 0-9 . _ + @ ~ -
	classFile              // files: A-Z a-z 0-9 . _ + ! ~ @ = -
	classRepo              // repositories: A-Z a-z 0-9 . _ -
	classDigit             // 0-9
)

var class = func() (t [256]uint16) {
	const lower, upper, digit = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
	set := func(c uint16, chars string) {
		for i := range len(chars) {
			t[chars[i]] |= c
		}
	}
	set(classHex, digit+"abcdef")
	set(classLDH, lower+digit+"-")
	set(classURL, lower+upper+digit+"._~-")
	set(classNPM, lower+upper+digit+"._~!*'()-")
	set(classConda, lower+digit+"._-")
	set(classPath, lower+upper+digit+"._+@~-")
	set(classFile, lower+upper+digit+"._+!~@=-")
	set(classRepo, lower+upper+digit+"._-")
	set(classDigit, digit)
	for b := 0x20; b <= 0x7e; b++ {
		if b != '"' && b != '\\' {
			t[b] |= classText
		}
	}
	return t
}()

// allowed returns the position of the first byte of s outside class c, or -1.
func allowed(s string, c uint16) int {
	for i := range len(s) {
		if class[s[i]]&c == 0 {
			return i
		}
	}
	return -1
}

// quote shows a value in an error: escaped, and not longer than a line.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%+q... (%d bytes)", s[:most], len(s))
	}
	return fmt.Sprintf("%+q", s)
}

// badByte words the refusal of s for its byte i.
func badByte(s string, i int) string {
	return fmt.Sprintf("%s: character %+q is not allowed here", quote(s), s[i:i+1])
}

func accept(*Entry, string) string { return "" }

func oneOf(values ...string) func(*Entry, string) string {
	return func(_ *Entry, s string) string {
		for _, v := range values {
			if v == s {
				return ""
			}
		}
		return fmt.Sprintf("%s is none of %s", quote(s), strings.Join(values, ", "))
	}
}

func hex32(_ *Entry, s string) string  { return refuseHex(s, 32) }
func hex64(_ *Entry, s string) string  { return refuseHex(s, 64) }
func hex128(_ *Entry, s string) string { return refuseHex(s, 128) }

func refuseHex(s string, n int) string {
	if len(s) != n || allowed(s, classHex) >= 0 {
		return fmt.Sprintf("%s is not %d lower-case hex digits", quote(s), n)
	}
	return ""
}

// refuseTime wants TimeFormat and a date of the calendar from 1970 on. It is
// written out because time.Parse accepts fractions of a second.
func refuseTime(_ *Entry, s string) string {
	const layout = "0000-00-00T00:00:00Z"
	ok := len(s) == len(layout)
	for i := 0; ok && i < len(s); i++ {
		if layout[i] == '0' {
			ok = s[i] >= '0' && s[i] <= '9'
		} else {
			ok = s[i] == layout[i]
		}
	}
	if !ok {
		return fmt.Sprintf("%s is not a time as 2026-01-31T23:59:59Z", quote(s))
	}
	two := func(i int) int { return int(s[i]-'0')*10 + int(s[i+1]-'0') }
	year, month, day := two(0)*100+two(2), two(5), two(8)
	days := 31
	switch month {
	case 4, 6, 9, 11:
		days = 30
	case 2:
		days = 28
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			days = 29
		}
	}
	switch {
	case year < 1970:
		return fmt.Sprintf("%s is before 1970", quote(s))
	case month < 1 || month > 12 || day < 1 || day > days:
		return fmt.Sprintf("%s: no such date", quote(s))
	case two(11) > 23 || two(14) > 59 || two(17) > 59:
		return fmt.Sprintf("%s: no such time of day", quote(s))
	}
	return ""
}

// refuseLabel is the rule of versions and tags.
func refuseLabel(s string) string {
	switch {
	case s == "" || len(s) > 128:
		return fmt.Sprintf("%s: length is not 1 to 128", quote(s))
	case s[0] == ' ' || s[len(s)-1] == ' ':
		return fmt.Sprintf("%s: space at the start or end", quote(s))
	}
	if i := allowed(s, classText); i >= 0 {
		return badByte(s, i)
	}
	return ""
}

// refuseOrigin is the rule of key names of c2sp.org/signed-note, in ASCII: no
// space and no plus.
func refuseOrigin(_ *Entry, s string) string {
	if s == "" || len(s) > 255 {
		return fmt.Sprintf("%s: length is not 1 to 255", quote(s))
	}
	for i := range len(s) {
		if class[s[i]]&classText == 0 || s[i] == ' ' || s[i] == '+' {
			return badByte(s, i)
		}
	}
	return ""
}

// refuseURL wants http:// or https://, then a registry name, then at most one
// slash.
func refuseURL(_ *Entry, s string) string {
	rest, ok := strings.CutPrefix(s, "https://")
	if !ok {
		rest, ok = strings.CutPrefix(s, "http://")
	}
	switch {
	case !ok:
		return fmt.Sprintf("%s does not start with https:// or http://", quote(s))
	case len(s) > 255:
		return fmt.Sprintf("%s: longer than 255", quote(s))
	}
	if reason := refuseRegistry(strings.TrimSuffix(rest, "/")); reason != "" {
		return fmt.Sprintf("%s: after the scheme: %s", quote(s), reason)
	}
	return ""
}

// refuseVKey wants the shape of a verifier key of c2sp.org/signed-note:
// name, "+", key ID in 8 hex digits, "+", base64 of the algorithm byte and the
// key. Whether the ID fits the key is for the reader who knows the algorithm.
func refuseVKey(_ *Entry, s string) string {
	if len(s) > 2048 {
		return fmt.Sprintf("%s: longer than 2048", quote(s))
	}
	name, rest, _ := strings.Cut(s, "+")
	id, key, ok := strings.Cut(rest, "+")
	if !ok {
		return fmt.Sprintf("%s is not name+id+key", quote(s))
	}
	if reason := refuseOrigin(nil, name); reason != "" {
		return "key name: " + reason
	}
	if reason := refuseHex(id, 8); reason != "" {
		return "key ID: " + reason
	}
	if i := allowed(key, classText); i >= 0 { // the decoder below skips line ends
		return "key: " + badByte(key, i)
	}
	if raw, err := base64.StdEncoding.Strict().DecodeString(key); err != nil || len(raw) < 2 {
		return fmt.Sprintf("key: %s is not padded base64 of an algorithm and a key", quote(key))
	}
	return ""
}
