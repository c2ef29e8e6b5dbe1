package c2sp

// Runs the files in testdata/vectors; testdata/README.md describes their form.

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A testVector is one vector as read from a file.
type testVector struct {
	name   string
	bytes  map[string][]byte   // input, policy, text, vkey
	inputs [][]byte            // the pieces of input
	plain  map[string][]string // everything else
}

func (v *testVector) valid() bool { return v.plain["valid"][0] == "yes" }

func (v *testVector) get(key string) string {
	if len(v.plain[key]) != 1 {
		return ""
	}
	return v.plain[key][0]
}

func readVectors(t testing.TB, kind string) []testVector {
	b, err := os.ReadFile(filepath.Join("testdata", "vectors", kind+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	var out []testVector
	names := map[string]bool{}
	for block := range strings.SplitSeq(string(b), "\n\n") {
		v := testVector{bytes: map[string][]byte{}, plain: map[string][]string{}}
		for line := range strings.Lines(block) {
			line = strings.TrimSuffix(line, "\n")
			if strings.HasPrefix(line, "#") {
				continue
			}
			key, value, _ := strings.Cut(line, ":")
			value = strings.TrimPrefix(value, " ")
			key, times, _ := strings.Cut(key, "*")
			switch key {
			case "name":
				v.name = value
			case "input", "policy", "text", "vkey":
				s, err := strconv.Unquote(value)
				if err != nil {
					t.Fatalf("%s: %s: %v", kind, v.name, err)
				}
				n := 1
				if times != "" {
					if n, err = strconv.Atoi(times); err != nil {
						t.Fatal(err)
					}
				}
				for range n {
					v.bytes[key] = append(v.bytes[key], s...)
					if key == "input" {
						v.inputs = append(v.inputs, []byte(s))
					}
				}
			default:
				v.plain[key] = append(v.plain[key], value)
			}
		}
		if v.name == "" {
			continue
		}
		if names[v.name] {
			t.Errorf("%s: two vectors with the name %q", kind, v.name)
		}
		names[v.name] = true
		out = append(out, v)
	}
	return out
}

// runVectors calls accept for each vector; accept returns the error of the
// parser, and otherwise has compared what it yields.
func runVectors(t *testing.T, kind string, accept func(t *testing.T, v *testVector) error) {
	for _, v := range readVectors(t, kind) {
		t.Run(v.name, func(t *testing.T) {
			err := accept(t, &v)
			if v.valid() && err != nil {
				t.Errorf("refused: %v", err)
			}
			if !v.valid() && err == nil {
				t.Error("accepted")
			}
		})
	}
}

func yields(t *testing.T, v *testVector, key string, have any) {
	t.Helper()
	if h := fmt.Sprint(have); v.get(key) != h {
		t.Errorf("%s is %q, want %q", key, h, v.get(key))
	}
}

func sameBytes(t *testing.T, v *testVector, again []byte) {
	t.Helper()
	if !bytes.Equal(again, v.bytes["input"]) {
		t.Errorf("does not write back what it read:\n%q\n%q", again, v.bytes["input"])
	}
}

func wantMalformed(t *testing.T, err error) error {
	t.Helper()
	var m *MalformedError
	if err != nil && !errors.As(err, &m) {
		t.Errorf("%T is not a *MalformedError: %v", err, err)
	}
	return err
}

func TestVectorsCheckpoint(t *testing.T) {
	runVectors(t, "checkpoint", func(t *testing.T, v *testVector) error {
		c, err := ParseCheckpoint(string(v.bytes["input"]))
		if err != nil {
			return wantMalformed(t, err)
		}
		sameBytes(t, v, []byte(c.Text()))
		yields(t, v, "size", c.Size)
		yields(t, v, "root", hex.EncodeToString(c.Root[:]))
		yields(t, v, "extensions", len(c.Extensions))
		return nil
	})
}

func TestVectorsNote(t *testing.T) {
	runVectors(t, "note", func(t *testing.T, v *testVector) error {
		n, err := ParseNote(v.bytes["input"])
		if err != nil {
			return wantMalformed(t, err)
		}
		sameBytes(t, v, n.Bytes())
		yields(t, v, "signatures", len(n.Sigs))
		yields(t, v, "textbytes", len(n.Text))
		return nil
	})
}

func TestVectorsSignatureLines(t *testing.T) {
	runVectors(t, "siglines", func(t *testing.T, v *testVector) error {
		sigs, err := ParseSignatureLines(v.bytes["input"])
		if err != nil {
			return wantMalformed(t, err)
		}
		var again []byte
		for _, s := range sigs {
			again = append(again, s.Line()...)
		}
		sameBytes(t, v, again)
		yields(t, v, "signatures", len(sigs))
		return nil
	})
}

func TestVectorsVKey(t *testing.T) {
	runVectors(t, "vkey", func(t *testing.T, v *testVector) error {
		k, err := ParseVKey(string(v.bytes["input"]))
		if err != nil {
			return wantMalformed(t, err)
		}
		sameBytes(t, v, []byte(k.String()))
		yields(t, v, "id", fmt.Sprintf("%08x", k.ID()))
		yields(t, v, "alg", fmt.Sprintf("%02x", byte(k.Alg())))
		return nil
	})
}

func TestVectorsCosignature(t *testing.T) {
	runVectors(t, "cosignature", func(t *testing.T, v *testVector) error {
		k := must(ParseVKey(string(v.bytes["vkey"])))
		sigs := must(ParseSignatureLines(v.bytes["input"]))
		at, err := k.VerifyNote(string(v.bytes["text"]), sigs[0])
		if err != nil {
			var m *MalformedError
			if !errors.Is(err, ErrBadSignature) && !errors.As(err, &m) {
				t.Errorf("%v is neither ErrBadSignature nor a *MalformedError", err)
			}
			return err
		}
		yields(t, v, "time", unix(at))
		return nil
	})
}

func TestVectorsProof(t *testing.T) {
	runVectors(t, "proof", func(t *testing.T, v *testVector) error {
		p, err := ParseProof(v.bytes["input"])
		if err != nil {
			return wantMalformed(t, err)
		}
		sameBytes(t, v, p.Bytes())
		yields(t, v, "index", p.Index)
		yields(t, v, "hashes", len(p.Hashes))
		yields(t, v, "extra", hex.EncodeToString(p.Extra))
		return nil
	})
}

func TestVectorsAddCheckpoint(t *testing.T) {
	runVectors(t, "addcheckpoint", func(t *testing.T, v *testVector) error {
		a, err := ParseAddCheckpoint(v.bytes["input"])
		if err != nil {
			return wantMalformed(t, err)
		}
		sameBytes(t, v, a.Bytes())
		yields(t, v, "old", a.Old)
		yields(t, v, "hashes", len(a.Proof))
		return nil
	})
}

func TestVectorsTilePath(t *testing.T) {
	runVectors(t, "tilepath", func(t *testing.T, v *testVector) error {
		tile, err := ParseTilePath(string(v.bytes["input"]))
		if err != nil {
			return wantMalformed(t, err)
		}
		sameBytes(t, v, []byte(tile.Path()))
		yields(t, v, "level", tile.Level)
		yields(t, v, "index", tile.Index)
		yields(t, v, "width", tile.Width)
		return nil
	})
}

func TestVectorsBundle(t *testing.T) {
	runVectors(t, "bundle", func(t *testing.T, v *testVector) error {
		width := must(strconv.Atoi(v.get("width")))
		entries, err := ParseBundle(v.bytes["input"], width)
		if err != nil {
			return wantMalformed(t, err)
		}
		if len(entries) != width {
			t.Errorf("%d entries, want %d", len(entries), width)
		}
		return nil
	})
}

func TestVectorsMerkle(t *testing.T) {
	hash := func(s string) [32]byte { return [32]byte(must(hex.DecodeString(s))) }
	runVectors(t, "merkle", func(t *testing.T, v *testVector) error {
		var proof [][32]byte
		for _, h := range v.inputs {
			if len(h) > 0 {
				proof = append(proof, [32]byte(h))
			}
		}
		var a, b uint64
		if s := v.get("inclusion"); s != "" {
			fmt.Sscan(s, &a, &b)
			return VerifyInclusion(a, b, hash(v.get("leaf")), proof, hash(v.get("root")))
		}
		fmt.Sscan(v.get("consistency"), &a, &b)
		return VerifyConsistency(a, b, proof, hash(v.get("oldroot")), hash(v.get("root")))
	})
}

func TestVectorsPolicy(t *testing.T) {
	runVectors(t, "policy", func(t *testing.T, v *testVector) error {
		p, err := ParsePolicy(v.bytes["input"])
		if err != nil {
			var pe *PolicyError
			if !errors.As(err, &pe) {
				t.Fatalf("%T is not a *PolicyError", err)
			}
			if !v.valid() {
				yields(t, v, "line", pe.Line)
			}
			return err
		}
		names := func(s string) map[string]bool {
			m := map[string]bool{}
			for _, n := range strings.Fields(s) {
				n = must(strconv.Unquote(`"` + n + `"`))
				m[n] = true
			}
			return m
		}
		for _, s := range v.plain["satisfied"] {
			if !p.Satisfied(names(s)) {
				t.Errorf("not satisfied by %q", s)
			}
		}
		for _, s := range v.plain["unsatisfied"] {
			if p.Satisfied(names(s)) {
				t.Errorf("satisfied by %q", s)
			}
		}
		again, err := ParsePolicy(p.Bytes())
		if err != nil {
			t.Fatalf("cannot read what it wrote: %v\n%s", err, p.Bytes())
		}
		if !bytes.Equal(again.Bytes(), p.Bytes()) {
			t.Error("a policy changes when it is written and read")
		}
		return nil
	})
}

// errorClass names the outcomes of Policy.Verify as the vectors do.
func errorClass(err error) string {
	var m *MalformedError
	var q *QuorumError
	switch {
	case errors.As(err, &m):
		return "malformed"
	case errors.Is(err, ErrUnknownLog):
		return "unknown-log"
	case errors.Is(err, ErrNoLogSignature):
		return "no-log-signature"
	case errors.Is(err, ErrBadSignature):
		return "bad-signature"
	case errors.As(err, &q):
		return "quorum"
	}
	return fmt.Sprint(err)
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func TestVectorsVerify(t *testing.T) {
	runVectors(t, "verify", func(t *testing.T, v *testVector) error {
		p := must(ParsePolicy(v.bytes["policy"]))
		got, err := p.Verify(v.bytes["input"])
		if err != nil {
			if !v.valid() {
				yields(t, v, "error", errorClass(err))
			}
			return err
		}
		var credited []string
		for _, c := range got.Cosignatures {
			credited = append(credited, c.Witness)
		}
		slices.Sort(credited)
		yields(t, v, "credited", strings.Join(credited, " "))
		yields(t, v, "quorumtime", unix(got.QuorumTime))
		yields(t, v, "freshtime", unix(got.FreshTime))
		if got.LogKey == nil || got.LogKey.Name() != got.Origin {
			t.Error("LogKey is not a key of the log")
		}
		return nil
	})
}
