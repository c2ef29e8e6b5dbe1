package main

import (
	"bytes"
	"encoding/json"
	"testing"
)

var hostileNames = []string{
	"\x1b[2J", "\u202egnp.exe", "a\r\nb", "a\x00b", "\xff\xfe", "é", "\u009b31m", "😀", "\x7f", "a\u2028b",
}

func onlyASCII(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' && c != '\n' || c > '~' {
			return false
		}
	}
	return true
}

func TestHostileNamesArePrintedEscaped(t *testing.T) {
	for _, s := range hostileNames {
		for what, got := range map[string]string{
			"show": show(s), "ascii": ascii(s), "oneLine": oneLine("\n" + s),
		} {
			if !onlyASCII(got) || got == "" {
				t.Errorf("%s(%q) = %q", what, s, got)
			}
		}
		if got := show(s); bytes.ContainsRune([]byte(got), '\n') {
			t.Errorf("show(%q) = %q", s, got)
		}
		if got := oneLine("\n" + s); bytes.ContainsRune([]byte(got), '\n') {
			t.Errorf("oneLine(%q) = %q", s, got)
		}
		var b bytes.Buffer
		if err := writeJSON(&b, []string{s}); err != nil {
			t.Fatal(err)
		}
		var back []string
		if err := json.Unmarshal(b.Bytes(), &back); err != nil || !onlyASCII(b.String()) {
			t.Errorf("%q became %q: %v", s, b.String(), err)
		} else if want := string([]rune(s)); back[0] != want {
			t.Errorf("%q came back as %q", s, back[0])
		}
	}
	for s, want := range map[string]string{"six-1.17.0.tar.gz": "six-1.17.0.tar.gz", "": `""`, "x: verified": `"x: verified"`} {
		if got := show(s); got != want {
			t.Errorf("show(%q) = %s", s, got)
		}
	}
}
