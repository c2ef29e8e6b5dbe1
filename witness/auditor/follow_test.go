package auditor

import (
	"errors"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
)

// TestFollow: at every size at which a tile begins or ends, the mirror is whole,
// and cosigned.
func TestFollow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.round(); err != nil { // the empty tree is a checkpoint too
		t.Fatal(err)
	}
	for _, size := range []int{1, 2, 255, 256, 257, 300, 511, 512, 513, 700} {
		r.grow(size - int(r.log.Size()))
		if err := r.round(); err != nil {
			t.Fatal(err)
		}
		if got := r.size(); got != int64(size) {
			t.Fatalf("cosigned size %d, want %d", got, size)
		}
		if size%3 == 0 {
			r.restart()
			r.verify()
		}
	}
}

// TestPolicy: with a policy, what has not its quorum is neither followed nor
// taken, whoever brings it.
func TestPolicy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	w := must(c2sp.GenerateSigner("witness.example/w1", c2sp.AlgEd25519Cosig))
	other := must(c2sp.GenerateSigner("witness.example/w1", c2sp.AlgEd25519Cosig)) // of the same name
	policy := func(lines string) *c2sp.Policy {
		return must(c2sp.ParsePolicy([]byte("log " + r.key.Key().String() + "\n" + lines)))
	}
	r.policy = policy("witness w " + w.Key().String() + "\nquorum w\n")
	r.restart()
	by := other
	cosigned := false
	r.log.Bytes(func(raw []byte) []byte {
		if !cosigned {
			return raw
		}
		note := must(c2sp.ParseNote(raw))
		note.Sigs = append(note.Sigs, must(by.Cosign(must(c2sp.ParseCheckpoint(note.Text)), noon)))
		return note.Bytes()
	})
	refused := func(why string) {
		t.Helper()
		var below *PolicyError
		if err := r.round(); !errors.As(err, &below) {
			t.Errorf("%s: followed: %v", why, err)
		}
		if a := r.want(r.addCheckpoint(0), 403); !strings.Contains(a.body, "is not audited") {
			t.Errorf("%s: %s", why, a.body)
		}
		if size, pending := r.size(), r.pending(); size != -1 || pending != 0 {
			t.Errorf("%s: cosigned %d, pending %d", why, size, pending)
		}
	}
	r.grow(5)
	refused("signed by the log alone")
	cosigned = true
	r.log.Publish()
	refused("cosigned by another")
	by = w
	r.log.Publish()
	if err := r.round(); err != nil || r.size() != 5 {
		t.Errorf("cosigned by the quorum: size %d, %v", r.size(), err)
	}

	// A policy that does not name the log lets nothing of it through.
	stranger := must(c2sp.GenerateSigner("log.test/other", c2sp.AlgEd25519)).Key().String()
	r.policy = must(c2sp.ParsePolicy([]byte("log " + stranger + "\nwitness w " + w.Key().String() + "\nquorum w\n")))
	r.restart()
	r.grow(1)
	if err := r.round(); !errors.Is(err, c2sp.ErrUnknownLog) || r.size() != 5 {
		t.Errorf("a log that the policy does not name: size %d, %v", r.size(), err)
	}
	// Nor does one whose quorum is the auditor's own cosignature start at all.
	own := "auditor a " + r.a.Keys()[0].String() + "\nwitness w " + w.Key().String() + "\ngroup both all a w\nquorum both\n"
	if _, err := New(t.Context(), Config{Dir: r.dir, Policy: policy(own)}); err == nil || !strings.Contains(err.Error(), "itself") {
		t.Errorf("it waits for itself: %v", err)
	}
	if _, err := New(t.Context(), Config{Dir: r.dir, Policy: policy(strings.Replace(own, "all a w", "any a w", 1))}); err != nil {
		t.Errorf("it is one of any: %v", err)
	}
}
