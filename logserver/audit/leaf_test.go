package audit

// The parser against the entry package's vectors, and against that package on
// whatever a fuzzer finds: two readings of FORMAT.md that must be one.

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/entry"
)

const vectors = "../../entry/testdata/vectors"

type leafVector struct {
	name, slot, fault string
	leaf              []byte
}

func readLeafVectors(t testing.TB, dir string) (out []leafVector) {
	files, err := filepath.Glob(filepath.Join(vectors, dir, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors in %s: %v", dir, err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		v := leafVector{name: filepath.Base(f)}
		for line := range strings.Lines(string(raw)) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
			value = strings.TrimPrefix(value, " ")
			switch key {
			case "leaf":
				v.leaf = []byte(value)
			case "leaf-hex":
				if v.leaf, err = hex.DecodeString(value); err != nil {
					t.Fatal(err)
				}
			case "slot":
				v.slot = value
			case "error":
				v.fault = value
			}
		}
		out = append(out, v)
	}
	return out
}

// fault words an error as the vectors do.
func fault(err error) string {
	var e *leafError
	switch {
	case err == nil:
		return ""
	case !errors.As(err, &e):
		return err.Error()
	case e.other:
		return fmt.Sprintf("version %d", e.version)
	case e.field != "":
		return "field " + e.field
	}
	return fmt.Sprintf("syntax %d", e.at)
}

func TestVectors(t *testing.T) {
	n := 0
	for _, dir := range []string{"valid", "invalid"} {
		for _, v := range readLeafVectors(t, dir) {
			n++
			var l leaf
			if got := fault(l.parse(v.leaf)); got != v.fault {
				t.Errorf("%s/%s: got %q, want %q", dir, v.name, got, v.fault)
			}
			if dir == "valid" && v.slot != "none" {
				claim := l.text(fClaim)
				if l.has(fSlotClaim) {
					claim = l.text(fSlotClaim)
				}
				if got := fmt.Sprintf("%x", l.slot(claim)); got != v.slot {
					t.Errorf("%s: slot %s, want %s", v.name, got, v.slot)
				}
			}
		}
	}
	t.Logf("%d vectors", n)
	if n < 500 {
		t.Errorf("only %d vectors", n)
	}
}

// entryFault words an error of the entry package as the vectors do.
func entryFault(err error) string {
	var syntax *entry.SyntaxError
	var field *entry.FieldError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &syntax):
		return fmt.Sprintf("syntax %d", syntax.Offset)
	case errors.As(err, &field):
		return "field " + field.Field
	case errors.Is(err, entry.ErrVersion):
		return "version"
	}
	return err.Error()
}

func FuzzLeaf(f *testing.F) {
	for _, dir := range []string{"valid", "invalid"} {
		for _, v := range readLeafVectors(f, dir) {
			f.Add(v.leaf)
		}
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var l leaf
		got := fault(l.parse(line))
		if strings.HasPrefix(got, "version ") {
			got = "version"
		}
		e, err := entry.Parse(line)
		if want := entryFault(err); got != want {
			t.Fatalf("%q: audit says %q, entry says %q", line, got, want)
		}
		if err != nil || e.File == "" {
			return
		}
		if s, ok := e.Slot(); ok {
			claim := l.text(fClaim)
			if l.has(fSlotClaim) {
				claim = l.text(fSlotClaim)
			}
			if l.slot(claim) != s.Key() {
				t.Fatalf("%q: another slot", line)
			}
		}
	})
}
