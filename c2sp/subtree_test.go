package c2sp

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// mth and subproof are the draft's definitions by the letter (RFC 6962 section
// 2.1 and draft-ietf-plants-merkle-tree-certs-03 section 4.4), over the leaves
// "0", "1", ...
func mth(lo, hi uint64) [32]byte {
	if hi-lo == 1 {
		return sha256.Sum256(fmt.Appendf([]byte{0}, "%d", lo))
	}
	k := below(hi - lo)
	l, r := mth(lo, lo+k), mth(lo+k, hi)
	return sha256.Sum256(slices.Concat([]byte{1}, l[:], r[:]))
}

func below(n uint64) uint64 {
	k := uint64(1)
	for k*2 < n {
		k *= 2
	}
	return k
}

func subproof(start, end, lo, n uint64, b bool) [][32]byte {
	if start == 0 && end == n {
		if b {
			return nil
		}
		return [][32]byte{mth(lo, lo+n)}
	}
	k := below(n)
	switch {
	case end <= k:
		return append(subproof(start, end, lo, k, b), mth(lo+k, lo+n))
	case k <= start:
		return append(subproof(start-k, end-k, lo+k, n-k, b), mth(lo, lo+k))
	default:
		return append(subproof(0, end-k, lo+k, n-k, false), mth(lo, lo+k))
	}
}

// TestSubtreeProofs: every subtree of every tree up to 70 leaves verifies, with
// its own proof and no other.
func TestSubtreeProofs(t *testing.T) {
	proofs := 0
	for n := uint64(1); n <= 70; n++ {
		root := mth(0, n)
		for start := range n {
			for end := start + 1; end <= n; end++ {
				s := Subtree{Start: start, End: end}
				// Section 4.1 by the letter: start is a multiple of BIT_CEIL(end - start).
				ceil := uint64(1)
				for ceil < end-start {
					ceil *= 2
				}
				if s.Valid() != (start%ceil == 0) {
					t.Fatalf("[%d, %d): valid is %v", start, end, s.Valid())
				}
				if !s.Valid() {
					continue
				}
				s.Hash = mth(start, end)
				p := subproof(start, end, 0, n, true)
				if err := VerifySubtree(s, n, p, root); err != nil {
					t.Fatal(err)
				}
				proofs++
				bad := s
				bad.Hash[7] ^= 1
				wrong := root
				wrong[9] ^= 1
				refused := map[string]error{
					"another hash": VerifySubtree(bad, n, p, root),
					"another root": VerifySubtree(s, n, p, wrong),
					"one more":     VerifySubtree(s, n, append(slices.Clone(p), root), root),
				}
				for i := range p {
					q := slices.Clone(p)
					q[i][3] ^= 1
					refused[fmt.Sprint("changed ", i)] = VerifySubtree(s, n, q, root)
				}
				if len(p) > 0 {
					refused["one less"] = VerifySubtree(s, n, p[1:], root)
					refused["one less at the top"] = VerifySubtree(s, n, p[:len(p)-1], root)
				}
				for name, err := range refused {
					if err == nil {
						t.Fatalf("[%d, %d) of %d: accepted with %s", start, end, n, name)
					}
				}
			}
		}
	}
	if proofs < 1000 {
		t.Errorf("%d proofs", proofs)
	}
	for _, s := range []Subtree{{}, {Start: 5, End: 5}, {Start: 6, End: 5}, {Start: 2, End: 5}, {End: 1 << 63}, {Start: 1, End: 1<<63 - 1}} {
		if s.Valid() || VerifySubtree(s, 1<<62, nil, [32]byte{}) == nil {
			t.Errorf("[%d, %d) passes as a subtree", s.Start, s.End)
		}
	}
	if err := VerifySubtree(Subtree{End: 8, Hash: mth(0, 8)}, 7, nil, mth(0, 7)); err == nil {
		t.Error("a subtree that ends beyond the tree is accepted")
	}
}

// TestSubtreeOfTheSpecification: the example request of c2sp.org/tlog-witness
// has the grammar and the number of hashes that ours has for the same ranges.
// (Its hashes are made up: no order of them gives its root.)
func TestSubtreeOfTheSpecification(t *testing.T) {
	const example = "subtree 8 13\nmbsQCg+dEIMGlpqeGgk94JutQwKKS2Lo5IuDhKmDjiU=\nCD82D2LDm0phY0+xKbHyZfq3Hw21lVkuV7Zis5EFg0k=\n" +
		"h/ghL5nyaXTIBAklqDnisM+SFdbA3izoGZ5oRYMZzc0=\n8qtnAAU9sTKQx/zt3E4v8Jt2a9IMQUf0QUawvePF9y0=\nKuO5BNOmginG34Lm5G3e2GuiWliGo3K0ebzGpvI0fEg=\n\n" +
		"example.com/behind-the-sofa\n14\n/CcKVZM9n65aH7jLaIZuUB4/MSlEFQ4+ldwUC21rDHM=\n\n\u2014 witness.example/w1 LijDAFSpKvDUjw==\n"
	s, err := ParseSignSubtree([]byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if s.Start != 8 || s.End != 13 || len(s.Proof) != len(subproof(8, 13, 0, 14, true)) || string(s.Bytes()) != example {
		t.Errorf("%+v", s)
	}
}

func TestCosignSubtree(t *testing.T) {
	signer, err := GenerateSigner("witness.example/w", AlgMLDSA44)
	if err != nil {
		t.Fatal(err)
	}
	s := Subtree{8, 13, mth(8, 13)}
	sig, err := signer.CosignSubtree("log.example", s)
	if err != nil {
		t.Fatal(err)
	}
	k := signer.Key()
	if err := k.VerifySubtree("log.example", s, sig); err != nil {
		t.Error(err)
	}
	whole := Checkpoint{Origin: "log.example", Size: 13, Root: mth(0, 13)}
	timed, err := signer.Cosign(whole, time.Unix(1_700_000_000, 0))
	if err != nil {
		t.Fatal(err)
	}
	other, _ := GenerateSigner("witness.example/w", AlgMLDSA44)
	changed := sig
	changed.Sig = slices.Clone(sig.Sig)
	changed.Sig[50] ^= 1
	for name, err := range map[string]error{
		"another log":       k.VerifySubtree("other.example", s, sig),
		"another start":     k.VerifySubtree("log.example", Subtree{0, 13, s.Hash}, sig),
		"another end":       k.VerifySubtree("log.example", Subtree{8, 12, s.Hash}, sig),
		"another hash":      k.VerifySubtree("log.example", Subtree{8, 13, mth(0, 8)}, sig),
		"no subtree":        k.VerifySubtree("log.example", Subtree{9, 13, s.Hash}, sig),
		"a timed signature": k.VerifySubtree("log.example", Subtree{0, 13, whole.Root}, timed),
		"another key":       other.Key().VerifySubtree("log.example", s, sig),
		"changed":           k.VerifySubtree("log.example", s, changed),
	} {
		if !errors.Is(err, ErrBadSignature) {
			t.Errorf("%s: %v, want %v", name, err, ErrBadSignature)
		}
	}
	// Without a time it says nothing about the newest tree: no policy credits it.
	zero, err := signer.CosignSubtree("log.example", Subtree{0, 13, whole.Root})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.VerifyNote(whole.Text(), zero); !errors.Is(err, ErrBadSignature) {
		t.Errorf("a subtree's signature passes as a cosignature: %v", err)
	}
	if _, err := signer.CosignSubtree("log.example", Subtree{9, 13, s.Hash}); err == nil {
		t.Error("signed what is no subtree")
	}
	for _, alg := range []Alg{AlgEd25519, AlgEd25519Cosig} {
		ed, _ := GenerateSigner("witness.example/w", alg)
		if _, err := ed.CosignSubtree("log.example", s); err == nil {
			t.Errorf("%s signed a subtree", alg)
		}
		if err := ed.Key().VerifySubtree("log.example", s, sig); !errors.Is(err, ErrBadSignature) {
			t.Errorf("%s verified a subtree: %v", alg, err)
		}
	}
}

func FuzzSignSubtree(f *testing.F) {
	signer, err := GenerateSigner("log.example", AlgEd25519)
	if err != nil {
		f.Fatal(err)
	}
	cp := Checkpoint{Origin: "log.example", Size: 14, Root: mth(0, 14)}
	sig, err := signer.Sign(cp.Text())
	if err != nil {
		f.Fatal(err)
	}
	note := (&Note{Text: cp.Text(), Sigs: []Signature{sig}}).Bytes()
	f.Add((&SignSubtree{Subtree{8, 13, mth(8, 13)}, subproof(8, 13, 0, 14, true), note}).Bytes())
	f.Add((&SignSubtree{Subtree{0, 14, mth(0, 14)}, nil, note}).Bytes())
	f.Add([]byte("subtree 0 0\n"))
	f.Add([]byte("subtree 00 1\nAAAA\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSignSubtree(b)
		if err != nil {
			return
		}
		if !bytes.Equal(s.Bytes(), b) {
			t.Errorf("%q is written back as %q", b, s.Bytes())
		}
		if !s.Valid() || len(s.Proof) > 63 {
			t.Errorf("[%d, %d), %d hashes", s.Start, s.End, len(s.Proof))
		}
	})
}
