package entry

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
)

// fataler is testing.TB or *rapid.T.
type fataler interface{ Fatalf(string, ...any) }

// checkLeaf holds for any bytes: Parse does not panic, what it accepts encodes
// to the same bytes, and what it calls another version is JSON with another v.
func checkLeaf(t fataler, leaf []byte) {
	e, err := Parse(leaf)
	var syn *SyntaxError
	var fld *FieldError
	switch {
	case err == nil:
		b, err := e.Marshal()
		if err != nil || !bytes.Equal(b, leaf) {
			t.Fatalf("accepted %q, encodes to %q, %v", leaf, b, err)
		}
		if !json.Valid(leaf) || len(leaf) > MaxSize {
			t.Fatalf("accepted %q", leaf)
		}
	case e != nil:
		t.Fatalf("%q: an entry and %v", leaf, err)
	case errors.Is(err, ErrVersion):
		var o map[string]json.RawMessage
		if json.Unmarshal(leaf, &o) != nil || len(o["v"]) == 0 || string(o["v"]) == "1" {
			t.Fatalf("%q: %v", leaf, err)
		}
		var v uint64
		if json.Unmarshal(o["v"], &v) != nil || len(leaf) > MaxSize {
			t.Fatalf("%q: %v", leaf, err)
		}
	case errors.As(err, &syn):
		if syn.Offset < 0 || syn.Offset > len(leaf) {
			t.Fatalf("%q: %v", leaf, err)
		}
	case !errors.As(err, &fld) || fld.Field == "" || fld.Reason == "":
		t.Fatalf("%q: %T %v", leaf, err, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, dir := range []string{"valid", "invalid"} {
		for _, v := range readVectors(f, dir) {
			f.Add(v.leaf)
		}
	}
	f.Fuzz(func(t *testing.T, leaf []byte) { checkLeaf(t, leaf) })
}

// FuzzNames: a normal name is normal, a name from a URL is a name, and neither
// can leave a directory or a line.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"Django", "@babel/core", "a/../b", "https://PyPI.org:443/a/", "http://[::1]:80/", "x-1.0.tgz", "noarch/x-1-0.conda"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, eco := range Ecosystems() {
			if n, err := NormalProject(eco, s); err == nil {
				again, err := NormalProject(eco, n)
				if err != nil || again != n || CheckProject(eco, n) != nil {
					t.Errorf("%s %q: normal form %q, again %q, %v", eco, s, n, again, err)
				}
				safeName(t, n)
			}
			if CheckProject(eco, s) == nil {
				if n, err := NormalProject(eco, s); err != nil || n != s {
					t.Errorf("%s %q: valid, but normal form %q, %v", eco, s, n, err)
				}
			}
			if CheckFile(eco, s) == nil {
				safeName(t, s)
			}
			if CheckVersion(eco, s) == nil && bytes.ContainsAny([]byte(s), "\"\\\n\r\x00\x1b\x7f") {
				t.Errorf("version %q", s)
			}
		}
		if n, err := RegistryFromURL(s); err == nil {
			if err := CheckRegistry(n); err != nil {
				t.Errorf("%q: %q: %v", s, n, err)
			}
			safeName(t, n)
			for _, u := range []string{"https://" + n, "http://" + n + "/"} {
				if again, err := RegistryFromURL(u); err != nil || again != n {
					t.Errorf("%q: %q, %v", u, again, err)
				}
			}
		}
		if CheckRegistry(s) == nil {
			if n, err := RegistryFromURL("https://" + s); err != nil || n != s {
				t.Errorf("registry %q: from its URL %q, %v", s, n, err)
			}
		}
	})
}

func safeName(t *testing.T, s string) {
	if s == "" || len(s) > maxFile || s[0] == '/' || s[len(s)-1] == '/' {
		t.Errorf("name %q", s)
	}
	for part := range bytes.SplitSeq([]byte(s), []byte("/")) {
		if p := string(part); p == "" || p == "." || p == ".." {
			t.Errorf("name %q has a part %q", s, p)
		}
	}
	for _, b := range []byte(s) {
		if b <= ' ' || b > '~' || b == '"' || b == '\\' || b == '<' || b == '>' || b == '&' || b == '%' {
			t.Errorf("name %q has %q", s, b)
		}
	}
}
