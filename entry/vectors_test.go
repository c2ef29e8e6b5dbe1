package entry

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A vector is one file of testdata/vectors; its README.md has the format.
type vector struct {
	name              string
	leaf              []byte
	hash, slot, fault string
}

func readVectors(t testing.TB, dir string) []vector {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata/vectors", dir, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors in %s: %v", dir, err)
	}
	var vs []vector
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		v := vector{name: strings.TrimSuffix(filepath.Base(f), ".txt")}
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSuffix(line, "\n")
			if strings.HasPrefix(line, "#") {
				continue
			}
			key, value, _ := strings.Cut(line, ":")
			value = strings.TrimPrefix(value, " ")
			switch key {
			case "leaf":
				v.leaf = []byte(value)
			case "leaf-hex":
				if v.leaf, err = hex.DecodeString(value); err != nil {
					t.Fatalf("%s: %v", f, err)
				}
			case "hash":
				v.hash = value
			case "slot":
				v.slot = value
			case "error":
				v.fault = value
			default:
				t.Fatalf("%s: unknown line %q", f, line)
			}
		}
		vs = append(vs, v)
	}
	return vs
}

func TestValidVectors(t *testing.T) {
	seen := map[Kind]bool{}
	for _, v := range readVectors(t, "valid") {
		t.Run(v.name, func(t *testing.T) {
			e, err := Parse(v.leaf)
			if err != nil {
				t.Fatal(err)
			}
			seen[e.Kind] = true
			b, err := e.Marshal()
			if err != nil || !bytes.Equal(b, v.leaf) {
				t.Fatalf("Marshal: %v\n got %s\nwant %s", err, b, v.leaf)
			}
			if h := LeafHash(v.leaf); hex.EncodeToString(h[:]) != v.hash {
				t.Errorf("LeafHash = %x, want %s", h, v.hash)
			}
			slot := "none"
			if s, ok := e.Slot(); ok {
				k := s.Key()
				slot = hex.EncodeToString(k[:])
			}
			if slot != v.slot {
				t.Errorf("slot = %s, want %s", slot, v.slot)
			}
		})
	}
	for _, k := range Kinds() {
		if !seen[k] {
			t.Errorf("no valid vector of kind %s", k)
		}
	}
}

func TestInvalidVectors(t *testing.T) {
	vs := readVectors(t, "invalid")
	if len(vs) < 150 {
		t.Errorf("%d invalid vectors, want at least 150", len(vs))
	}
	for _, v := range vs {
		t.Run(v.name, func(t *testing.T) {
			e, err := Parse(v.leaf)
			if e != nil || err == nil {
				t.Fatalf("accepted: %+v", e)
			}
			if got := fault(err); got != v.fault {
				t.Errorf("%v\n got %s\nwant %s", err, got, v.fault)
			}
		})
	}
}

// fault words an error of Parse as the vectors do.
func fault(err error) string {
	var syn *SyntaxError
	var fld *FieldError
	var ver uint64
	switch {
	case errors.As(err, &syn):
		return fmt.Sprintf("syntax %d", syn.Offset)
	case errors.As(err, &fld):
		return "field " + fld.Field
	case errors.Is(err, ErrVersion):
		if _, e := fmt.Sscanf(err.Error(), ErrVersion.Error()+": v is %d", &ver); e != nil {
			return e.Error()
		}
		return fmt.Sprintf("version %d", ver)
	}
	return err.Error()
}
