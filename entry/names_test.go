package entry

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestNameVectors runs testdata/vectors/names.jsonl.
func TestNameVectors(t *testing.T) {
	b, err := os.ReadFile("testdata/vectors/names.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var row struct {
			Op, Ecosystem, In string
			Out               *string
		}
		if err := json.Unmarshal(line, &row); err != nil {
			t.Fatal(err)
		}
		var got string
		var err error
		switch row.Op {
		case "normal-project":
			got, err = NormalProject(row.Ecosystem, row.In)
		case "registry-from-url":
			got, err = RegistryFromURL(row.In)
		default:
			t.Fatalf("unknown op %q", row.Op)
		}
		var fe *FieldError
		switch {
		case row.Out == nil && err == nil:
			t.Errorf("%s %s %q: accepted as %q", row.Op, row.Ecosystem, row.In, got)
		case row.Out == nil && (!errors.As(err, &fe) || got != ""):
			t.Errorf("%s %s %q: %q, %T", row.Op, row.Ecosystem, row.In, got, err)
		case row.Out != nil && (err != nil || got != *row.Out):
			t.Errorf("%s %s %q = %q, %v; want %q", row.Op, row.Ecosystem, row.In, got, err, *row.Out)
		}
	}
}

// The Check functions name their field, and an unknown ecosystem as that.
func TestCheckNamesItsField(t *testing.T) {
	for want, err := range map[string]error{
		"registry":  CheckRegistry("PyPI.org"),
		"project":   CheckProject(PyPI, "Django"),
		"file":      CheckFile(PyPI, "../x"),
		"version":   CheckVersion(PyPI, " 1"),
		"ecosystem": CheckVersion("cargo", "1"),
	} {
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != want {
			t.Errorf("%v, want field %s", err, want)
		}
	}
	for _, err := range []error{
		CheckRegistry("pypi.org"), CheckProject(PyPI, "django"), CheckFile(Conda, "noarch/x-1-0.conda"), CheckVersion(Generic, "1 2"),
		CheckFile(PyPI, "x-1.tar.gz"), CheckProject(NPM, "@a/b"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	for _, eco := range []string{"", "cargo"} {
		var fe *FieldError
		if err := CheckFile(eco, "a"); !errors.As(err, &fe) || fe.Field != "ecosystem" {
			t.Errorf("CheckFile(%q): %v", eco, err)
		}
		if err := CheckProject(eco, "a"); !errors.As(err, &fe) || fe.Field != "ecosystem" {
			t.Errorf("CheckProject(%q): %v", eco, err)
		}
	}
}

// What is refused may be hostile; the error must be safe to print on a
// terminal, in one line, and short.
func TestErrorsAreSafeToPrint(t *testing.T) {
	for _, s := range []string{"\x1b[31m", "a\nb", "\u202e", "\xff", strings.Repeat("\x00", 5000)} {
		for _, err := range []error{
			CheckRegistry(s), CheckRegistry("h/" + s), CheckRegistry("h:" + s), CheckVersion(PyPI, s),
			CheckProject(PyPI, s), CheckProject(NPM, s), CheckProject(Conda, s), CheckProject(Generic, s),
			CheckFile(PyPI, s), CheckFile(NPM, s), CheckFile(Conda, s), CheckFile(Generic, s), CheckFile(s, s),
			(&Entry{Kind: Kind(s)}).Validate(),
			(&Entry{Kind: KindCanary, Claim: Claim(s)}).Validate(),
			(&Entry{Kind: KindCanary, Claim: ClaimLog, Time: s, ID: s}).Validate(),
			func() error { _, err := NormalProject(PyPI, s); return err }(),
			func() error { _, err := RegistryFromURL(s); return err }(),
			func() error { _, err := RegistryFromURL("https://h/" + s); return err }(),
			func() error { _, err := Parse([]byte(s)); return err }(),
			func() error { _, err := Parse([]byte(`{"` + s)); return err }(),
			(&Publisher{Kind: s}).validate(),
			(&Publisher{Kind: "github", Repository: s, Workflow: s}).validate(),
		} {
			if err == nil {
				t.Errorf("%q: accepted", s)
				continue
			}
			msg := err.Error()
			if len(msg) > 1000 {
				t.Errorf("%d bytes: %.200s", len(msg), msg)
			}
			for _, r := range msg {
				if r < 0x20 || r == 0x7f || r == '\u202e' || r == '\uFFFD' {
					t.Errorf("%q in %q", r, msg)
				}
			}
		}
	}
}
