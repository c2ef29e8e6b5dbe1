package c2sp

// What every parser must do with every input: not crash, write back what it
// accepts, and agree with its neighbours except where differential_test.go
// says so.

import (
	"bytes"
	"testing"
)

// seed adds the inputs of a vector file that are not huge.
func seed(f *testing.F, kinds ...string) {
	for _, kind := range kinds {
		for _, v := range readVectors(f, kind) {
			if len(v.bytes["input"]) < 8<<10 {
				f.Add(v.bytes["input"])
			}
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	seed(f, "checkpoint")
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCheckpoint(string(b))
		if err == nil && c.Text() != string(b) {
			t.Errorf("%q is written back as %q", b, c.Text())
		}
		if err == nil && c.Size >= 1<<63 {
			t.Errorf("size %d", c.Size)
		}
		diffCheckpoint(t, b, c, err)
	})
}

func FuzzNote(f *testing.F) {
	seed(f, "note", "verify")
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := ParseNote(b)
		if err == nil {
			if !bytes.Equal(n.Bytes(), b) {
				t.Errorf("%q is written back as %q", b, n.Bytes())
			}
			if len(n.Sigs) < 1 || len(n.Sigs) > MaxSignatures {
				t.Errorf("%d signatures", len(n.Sigs))
			}
		}
		diffNote(t, b, n, err)
	})
}

func FuzzSignatureLines(f *testing.F) {
	seed(f, "siglines")
	f.Fuzz(func(t *testing.T, b []byte) {
		sigs, err := ParseSignatureLines(b)
		if err != nil {
			return
		}
		var again []byte
		for _, s := range sigs {
			again = append(again, s.Line()...)
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%q is written back as %q", b, again)
		}
	})
}

func FuzzVKey(f *testing.F) {
	seed(f, "vkey")
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseVKey(string(b))
		if err == nil && k.String() != string(b) {
			t.Errorf("%q is written back as %q", b, k.String())
		}
		diffVKey(t, string(b), err)
	})
}

func FuzzCosignature(f *testing.F) {
	for _, v := range readVectors(f, "cosignature") {
		f.Add(v.bytes["vkey"], v.bytes["text"], v.bytes["input"])
	}
	f.Fuzz(func(t *testing.T, vkey, text, line []byte) {
		k, err := ParseVKey(string(vkey))
		if err != nil {
			return
		}
		sigs, err := ParseSignatureLines(line)
		if err != nil {
			return
		}
		at, err := k.VerifyNote(string(text), sigs[0])
		if err == nil && k.IsCosigner() == at.IsZero() {
			t.Errorf("type %s verified with time %v", k.Alg(), at)
		}
		diffCosignature(t, k, string(text), sigs[0], err)
	})
}

func FuzzProof(f *testing.F) {
	seed(f, "proof")
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProof(b)
		if err == nil && !bytes.Equal(p.Bytes(), b) {
			t.Errorf("%q is written back as %q", b, p.Bytes())
		}
		diffProof(t, b, p, err)
	})
}

func FuzzPolicy(f *testing.F) {
	seed(f, "policy")
	for _, v := range readVectors(f, "verify") {
		f.Add(v.bytes["policy"])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePolicy(b)
		if err != nil {
			return
		}
		again, err := ParsePolicy(p.Bytes())
		if err != nil {
			t.Fatalf("%q is written as %q, which is refused: %v", b, p.Bytes(), err)
		}
		if !bytes.Equal(again.Bytes(), p.Bytes()) {
			t.Errorf("%q changes when it is written and read", b)
		}
		all := map[string]bool{}
		for _, w := range p.Witnesses {
			all[w.Name] = true
		}
		if !p.Satisfied(all) {
			t.Errorf("all witnesses together do not satisfy %q", b)
		}
		if p.Satisfied(nil) != (p.Quorum == QuorumNone) {
			t.Errorf("nobody satisfies %q", b)
		}
		if len(p.Explain()) == 0 {
			t.Error("no explanation")
		}
		diffPolicy(t, b, p)
	})
}

func FuzzVerify(f *testing.F) {
	for _, v := range readVectors(f, "verify") {
		f.Add(v.bytes["input"])
	}
	p := must(ParsePolicy([]byte("log " + testLog.Key().String() + "\nwitness w1 " + testW1.Key().String() + "\nwitness w2 " + testW2.Key().String() + "\ngroup g all w1 w2\nquorum g\n")))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := p.Verify(b)
		if err != nil {
			if c := errorClass(err); c == err.Error() {
				t.Errorf("an error of no known class: %v", err)
			}
			return
		}
		if len(v.Cosignatures) != 2 || v.QuorumTime.Before(v.FreshTime) || v.LogKey == nil {
			t.Errorf("accepted %q as %+v", b, v)
		}
	})
}

func FuzzAddCheckpoint(f *testing.F) {
	seed(f, "addcheckpoint")
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAddCheckpoint(b)
		if err == nil && !bytes.Equal(a.Bytes(), b) {
			t.Errorf("%q is written back as %q", b, a.Bytes())
		}
	})
}

func FuzzTilePath(f *testing.F) {
	seed(f, "tilepath")
	f.Fuzz(func(t *testing.T, b []byte) {
		tile, err := ParseTilePath(string(b))
		if err == nil && (tile.Path() != string(b) || tile.Width < 1 || tile.Width > 256 || tile.Level < -1 || tile.Level > 63 || tile.Index >= maxTileIndex) {
			t.Errorf("%q is read as %+v, written as %q", b, tile, tile.Path())
		}
		diffTilePath(t, string(b), tile, err)
	})
}

func FuzzBundle(f *testing.F) {
	for _, v := range readVectors(f, "bundle") {
		if len(v.bytes["input"]) < 8<<10 {
			f.Add(v.bytes["input"], uint16(len(v.bytes["input"])))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, width uint16) {
		entries, err := ParseBundle(b, int(width))
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			again = append(again, byte(len(e)>>8), byte(len(e)))
			again = append(again, e...)
		}
		if len(entries) != int(width) || !bytes.Equal(again, b) {
			t.Errorf("%q is read as %d entries", b, len(entries))
		}
	})
}

func FuzzSKey(f *testing.F) {
	for _, s := range []*Signer{testLog, testW1, testWPQ} {
		f.Add(s.SKey())
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseSKey(s)
		if err == nil && k.SKey() != s {
			t.Error("not written back as it was read")
		}
	})
}
