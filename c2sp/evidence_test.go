package c2sp

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

// forkMTH is MTH(D[lo:hi]) of RFC 6962 for leaves "i"; from fork on they are others.
func forkMTH(fork, lo, hi int) [32]byte {
	switch hi - lo {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return sha256.Sum256(fmt.Appendf([]byte{0}, "%d %v", lo, lo >= fork))
	}
	k := 1
	for k<<1 < hi-lo {
		k <<= 1
	}
	l, r := forkMTH(fork, lo, lo+k), forkMTH(fork, lo+k, hi)
	return sha256.Sum256(append(append([]byte{1}, l[:]...), r[:]...))
}

// consistency is PROOF(m, D[n]) of RFC 6962.
func consistency(fork, m, n int) [][32]byte {
	var sub func(m, lo, hi int, b bool) [][32]byte
	sub = func(m, lo, hi int, b bool) [][32]byte {
		if m == hi-lo {
			if b {
				return nil
			}
			return [][32]byte{forkMTH(fork, lo, hi)}
		}
		k := 1
		for k<<1 < hi-lo {
			k <<= 1
		}
		if m <= k {
			return append(sub(m, lo, lo+k, b), forkMTH(fork, lo+k, hi))
		}
		return append(sub(m-k, lo+k, hi, false), forkMTH(fork, lo, lo+k))
	}
	if m == 0 {
		return nil
	}
	return sub(m, 0, n, true)
}

// TestRootAt: for all pairs of sizes, a consistency proof tells with which root
// the larger tree began, unless the smaller size is a power of two; what is no
// proof tells nothing.
func TestRootAt(t *testing.T) {
	const never = 1 << 20
	for n := 1; n <= 40; n++ {
		for m := 1; m <= n; m++ {
			proof, root := consistency(never, m, n), forkMTH(never, 0, n)
			got, ok := RootAt(uint64(m), uint64(n), proof, root)
			if want := m < n && m&(m-1) != 0; ok != want || ok && got != forkMTH(never, 0, m) {
				t.Fatalf("from %d to %d: %x, %v", m, n, got, ok)
			}
			for i := range proof {
				bad := append([][32]byte{}, proof...)
				bad[i][3] ^= 1
				if _, ok := RootAt(uint64(m), uint64(n), bad, root); ok {
					t.Fatalf("from %d to %d: hash %d changed, and it still tells a root", m, n, i)
				}
			}
		}
	}
}

// TestEvidenceInconsistent: two notes and the proof that the larger began with
// another root prove a fork for every pair of sizes, and the notes of one honest
// log never do.
func TestEvidenceInconsistent(t *testing.T) {
	const never, fork = 1 << 20, 3
	s, err := GenerateSigner("log.example/l", AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	other, err := GenerateSigner("log.example/other", AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := ParsePolicy([]byte("log " + s.Key().String() + "\nlog " + other.Key().String() + "\nquorum none\n"))
	if err != nil {
		t.Fatal(err)
	}
	note := func(s *Signer, fork, n int) []byte {
		c := Checkpoint{Origin: s.Key().Name(), Size: uint64(n), Root: forkMTH(fork, 0, n)}
		sig, err := s.Sign(c.Text())
		if err != nil {
			t.Fatal(err)
		}
		return (&Note{Text: c.Text(), Sigs: []Signature{sig}}).Bytes()
	}
	open := func(note []byte) (Checkpoint, error) {
		v, err := policy.VerifyLog(note)
		if err != nil {
			return Checkpoint{}, err
		}
		return v.Checkpoint, nil
	}
	made := func(a, b *Signer, forkA, forkB, m, n int) *Evidence {
		return &Evidence{Claim: ClaimInconsistent, First: note(a, forkA, m), Second: note(b, forkB, n),
			Hashes: append([][32]byte{forkMTH(forkB, 0, m)}, consistency(forkB, m, n)...), Remarks: []string{"made\nhere"}}
	}
	for n := 5; n <= 20; n++ {
		for m := 4; m < n; m++ {
			e, err := ParseEvidence(made(s, s, never, fork, m, n).Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if err := e.VerifyFork(open); err != nil {
				t.Errorf("%d and %d: %v", m, n, err)
			}
			if err := made(s, s, never, never, m, n).VerifyFork(open); err == nil || !strings.Contains(err.Error(), "contradicts nothing") {
				t.Errorf("%d and %d, honest: %v", m, n, err)
			}
		}
	}

	good := made(s, s, never, fork, 6, 11)
	for name, tc := range map[string]struct {
		why  string
		e    *Evidence
		edit func(*Evidence)
	}{
		"two logs":            {"of two logs", made(s, other, never, fork, 6, 11), nil},
		"the same note twice": {"not smaller", good, func(e *Evidence) { e.Second = e.First }},
		"larger first":        {"not smaller", good, func(e *Evidence) { e.First, e.Second = e.Second, e.First }},
		"no hashes":           {"no other root", good, func(e *Evidence) { e.Hashes = [][32]byte{} }},
		"no proof":            {"prove nothing", good, func(e *Evidence) { e.Hashes = e.Hashes[:1] }},
		"a hash too many":     {"prove nothing", good, func(e *Evidence) { e.Hashes = append(e.Hashes, [32]byte{}) }},
		"the root alone lies": {"prove nothing", good, func(e *Evidence) { e.Hashes[0][0] ^= 1 }},
		"proof of the honest tree": {"prove nothing", good, func(e *Evidence) {
			e.Hashes = append([][32]byte{forkMTH(never, 0, 6)}, consistency(never, 6, 11)...)
		}},
		"from size 0":   {"no other root", made(s, s, never, fork, 0, 11), nil},
		"another claim": {"no claim about two notes", good, func(e *Evidence) { e.Claim = ClaimAfterEnd }},
	} {
		e := *tc.e
		e.Hashes = append([][32]byte{}, tc.e.Hashes...)
		if tc.edit != nil {
			tc.edit(&e)
		}
		if err := e.VerifyFork(open); err == nil || !strings.Contains(err.Error(), tc.why) {
			t.Errorf("%s: %v, want %q", name, err, tc.why)
		}
	}

	// One changed byte anywhere below the comments proves nothing any more; that
	// of a comment, or a letter of a stranger's, changes nothing of what is proven.
	b := good.Bytes()
	for i := bytes.Index(b, []byte("claim ")); i < len(b); i++ {
		c := bytes.Clone(b)
		c[i] ^= 1
		e, err := ParseEvidence(c)
		if err == nil {
			err = e.VerifyFork(open)
		}
		if err == nil {
			t.Errorf("byte %d, %q, changed, and it still proves a fork", i, b[i])
		}
	}
}
