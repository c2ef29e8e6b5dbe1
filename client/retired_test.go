package client

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// TestRetiredLine: under a policy that retires a log's key at a size, what was
// proven up to there verifies for ever, what is signed beyond it is refused with
// all witnesses on it, and a second key of the log goes on.
func TestRetiredLine(t *testing.T) {
	l := newTestLog(t, origin)
	l.fill(9, "log")
	l.add(must(testEntry().Marshal()))
	l.fill(5, "more")
	next := must(c2sp.GenerateSigner(origin, c2sp.AlgEd25519))
	old := "log " + l.signer.Key().String() + "\n"
	policy := func(lines string) *c2sp.Policy {
		return must(c2sp.ParsePolicy([]byte(strings.Replace(string(l.policy.Bytes()), old, lines, 1))))
	}
	gone := policy(fmt.Sprintf("retired %s 10\n", l.signer.Key()))
	both := policy(fmt.Sprintf("retired %s 10\nlog %s\n", l.signer.Key(), next.Key()))
	if l.policy.Retired(origin) || both.Retired(origin) || !gone.Retired(origin) || gone.Retired("other.example") {
		t.Error("Retired is for a log of which every key is")
	}
	at := func(size int, signers ...*c2sp.Signer) []byte {
		n := must(c2sp.ParseNote(l.note(size, t0, 1, 2, 3)))
		n.Sigs = n.Sigs[1:]
		for _, s := range signers {
			n.Sigs = append(n.Sigs, must(s.Sign(n.Text)))
		}
		p := l.proof(9, size, n.Bytes())
		return p.Bytes()
	}
	var r *Refusal
	for _, tc := range []struct {
		name  string
		p     *c2sp.Policy
		proof []byte
		code  string // "": verifies
	}{
		{"at the size, the log retired", gone, at(10, l.signer), ""},
		{"at the size", both, at(10, l.signer), ""},
		{"one beyond it, the log retired", gone, at(11, l.signer), CodeNoLogSignature},
		{"one beyond it", both, at(11, l.signer), CodeNoLogSignature},
		{"the new key", both, at(11, next), ""},
		{"both keys", both, at(11, l.signer, next), ""},
		{"both keys, for who knows the old one alone", l.policy, at(11, l.signer, next), ""},
		{"the new key, for who knows the old one alone", l.policy, at(11, next), CodeNoLogSignature},
	} {
		_, err := Verify(tc.p, testFile(), tc.proof)
		if tc.code == "" && err != nil || tc.code != "" && (!errors.As(err, &r) || r.Code != tc.code) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}

	// A state that saw the log under its old key goes on under both lines; and
	// what the old key signs beyond its size is nothing to remember.
	s, reader := newState(t), l.reader()
	if err := s.Update(t.Context(), l.policy, l.note(10, t0, 1, 2), reader); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*c2sp.Policy{"retired": gone, "rotated": both} {
		if err := s.Update(t.Context(), p, l.note(12, t0.Add(time.Minute), 1, 2, 3), reader); !errors.As(err, &r) || r.Code != CodeHeadSignature {
			t.Errorf("%s: %v", name, err)
		}
	}
	n := must(c2sp.ParseNote(l.note(12, t0.Add(time.Minute), 1, 2)))
	n.Sigs = append(n.Sigs[1:], must(next.Sign(n.Text)))
	if err := s.Update(t.Context(), both, n.Bytes(), reader); err != nil {
		t.Errorf("the new key goes on: %v", err)
	}
	if have, _, _ := s.Newest(origin); have.Checkpoint.Size != 12 {
		t.Errorf("size %d is remembered", have.Checkpoint.Size)
	}
}
