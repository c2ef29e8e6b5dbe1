package entry

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

// TestPythonAgrees runs testdata/vectors/entry.py, an implementation made from
// FORMAT.md: first on all vectors, then on thousands of damaged leaves, where
// both must accept the same and stop at the same byte.
func TestPythonAgrees(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("needs python3")
	}
	if out, err := exec.Command(python, "testdata/vectors/entry.py", "testdata/vectors").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	var leaves [][]byte
	rnd := rand.New(rand.NewPCG(1, 2))
	valid, invalid := readVectors(t, "valid"), readVectors(t, "invalid")
	for range 6000 {
		v := valid[rnd.IntN(len(valid))].leaf
		if rnd.IntN(4) == 0 {
			v = invalid[rnd.IntN(len(invalid))].leaf
		}
		leaves = append(leaves, damage(rnd, v, valid[rnd.IntN(len(valid))].leaf))
	}
	var in strings.Builder
	for _, l := range leaves {
		fmt.Fprintf(&in, "%x\n", l)
	}
	cmd := exec.Command(python, "testdata/vectors/entry.py", "-")
	cmd.Stdin = strings.NewReader(in.String())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	answers := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(answers) != len(leaves) {
		t.Fatalf("%d answers to %d leaves", len(answers), len(leaves))
	}
	accepted := 0
	for i, leaf := range leaves {
		var got string
		if e, err := Parse(leaf); err != nil {
			got = "error " + fault(err)
		} else {
			accepted++
			h := LeafHash(leaf)
			got = "ok " + hex.EncodeToString(h[:]) + " none"
			if s, ok := e.Slot(); ok {
				k := s.Key()
				got = "ok " + hex.EncodeToString(h[:]) + " " + hex.EncodeToString(k[:])
			}
		}
		if got != answers[i] {
			_, err := Parse(leaf)
			t.Errorf("%q\n    Go %s (%v)\nPython %s", leaf, got, err, answers[i])
		}
	}
	if accepted < 100 || accepted > 5000 {
		t.Errorf("%d of %d leaves accepted: the damage is not what it should be", accepted, len(leaves))
	}
}

// damage changes a leaf the way a careless or hostile writer would.
func damage(rnd *rand.Rand, leaf, other []byte) []byte {
	b := bytes.Clone(leaf)
	for range 1 + rnd.IntN(2) {
		if len(b) == 0 {
			return b
		}
		i := rnd.IntN(len(b))
		switch rnd.IntN(8) {
		case 0:
			b[i] = byte(rnd.IntN(256))
		case 1:
			b = append(b[:i], b[i+1:]...)
		case 2:
			b = append(b[:i], append([]byte{b[i]}, b[i:]...)...)
		case 3:
			b = b[:i]
		case 4: // a likely character
			const likely = `{}[]",:.-_@/ 0129aAzZ\` + "\n"
			b[i] = likely[rnd.IntN(len(likely))]
		case 5, 6: // another value for a key that both have
			parts := bytes.SplitAfter(b, []byte(`":`))
			k := rnd.IntN(len(parts))
			j := bytes.Index(other, parts[k])
			if end := bytes.IndexByte(parts[k], ','); end < 0 || j < 0 {
				continue
			}
			b = bytes.Join(append(append([][]byte{}, parts[:k]...), other[j:]), nil)
		case 7: // a member dropped
			parts := bytes.Split(b, []byte(","))
			k := rnd.IntN(len(parts))
			b = bytes.Join(append(parts[:k:k], parts[k+1:]...), []byte(","))
		}
	}
	return b
}
