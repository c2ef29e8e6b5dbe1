package logserver

// The keys of a shared log change while it is served.

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// signers are how many of keys have signed a checkpoint.
func signers(t *testing.T, raw []byte, keys ...*c2sp.Signer) (n int) {
	t.Helper()
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		for _, s := range note.Sigs {
			if k.Key().Matches(s) && k.Key().VerifyLog(note.Text, s) == nil {
				n++
			}
		}
	}
	return n
}

// TestSharedRotation: two keys sign from begin to finish, whoever publishes; who
// lacks one does not publish and says so; the old key is retired at what it signed
// last. No frontend is restarted but to be given keys.
func TestSharedRotation(t *testing.T) {
	r := newSharedRig(t, 3, 2)
	old := r.signer
	next, err := c2sp.GenerateSigner(old.Key().Name(), c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	both := func(c *Config) { c.Also = []Signer{next} }
	only := func(c *Config) { c.Signer = next }
	by := r.all(entry.ClaimIndex)
	a := r.ready() // knows nothing of the new key
	b := r.ready(both)
	c := r.ready(frontendOnly)
	r.must2(c, by, nth(0))
	if n := signers(t, c.Published().Note, old, next); n != 1 {
		t.Errorf("%d keys signed before the rotation", n)
	}
	other, err := c2sp.GenerateSigner("other.example/log", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := BeginSharedRotation(t.Context(), r.database, other.Key()); err == nil {
		t.Error("a key of another log")
	}
	if _, err := FinishSharedRotation(t.Context(), r.database, dirFiles(r.engine.dir), r.rig.config().Policy); err == nil || !strings.Contains(err.Error(), "no rotation has begun") {
		t.Errorf("finished before it began: %v", err)
	}
	watch := r.watch()
	if _, err := BeginSharedRotation(t.Context(), r.database, next.Key()); err != nil {
		t.Fatal(err)
	}
	// b is elected, a gives way, and both keys sign.
	r.must2(a, by, nth(1))
	waitFor(t, "the one with both keys to publish", func() bool { return b.shared.terms.Load() == 1 && a.shared.terms.Load() == 0 })
	if n := signers(t, a.Published().Note, old, next); n != 2 {
		t.Errorf("%d keys signed in the overlap", n)
	}
	if _, err := FinishSharedRotation(t.Context(), r.database, dirFiles(r.engine.dir), r.rig.config().Policy); err == nil || !strings.Contains(err.Error(), "too few witnesses accept") {
		t.Errorf("finished before the witnesses know the key: %v", err)
	}

	// Without b nobody publishes, and every frontend says why.
	b.Close()
	waitFor(t, "the lack of a key to be told", func() bool {
		err := c.Ready()
		return err != nil && strings.Contains(err.Error(), "not given to this server")
	})
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	if _, err := a.Submit(short, by, nth(2), Cosigned); err == nil {
		t.Error("acknowledged without a key that signs")
	}
	cancel()
	cfg := r.config()
	if l, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "not given to this server") {
		l.Close()
		t.Errorf("a server without a key that signs starts: %v", err)
	}
	b = r.open(both)
	r.must2(c, by, nth(2))

	for _, w := range r.witnesses {
		if _, err := w.store.AddLog(t.Context(), old.Key().Name(), []*c2sp.Key{old.Key(), next.Key()}); err != nil {
			t.Fatal(err)
		}
	}
	named := r.rig.config().Policy
	named.Logs = []c2sp.PolicyLog{{Key: old.Key()}}
	if _, err := FinishSharedRotation(t.Context(), r.database, dirFiles(r.engine.dir), named); err == nil || !strings.Contains(err.Error(), "none of its log lines has the new key") {
		t.Errorf("finished under a policy that does not know the key: %v", err)
	}
	id, err := FinishSharedRotation(t.Context(), r.database, dirFiles(r.engine.dir), r.rig.config().Policy)
	if err != nil {
		t.Fatal(err)
	}
	if id.VKey != next.Key().String() || id.Keys[0].State != KeyRetired || id.Keys[0].UpTo != 3 {
		t.Errorf("%+v", id)
	}
	r.signer = next // that acknowledgements are checked with
	r.must2(c, by, nth(3))
	if n := signers(t, c.Published().Note, old); n != 0 {
		t.Error("the retired key signed")
	}
	if n := signers(t, c.Published().Note, next); n != 1 {
		t.Error("the new key did not sign")
	}
	b.Close()
	d := r.open(only)
	r.must2(d, by, nth(4))
	watch()
	for i, l := range []*Log{a, c, d} {
		if l.Status().Latched {
			t.Errorf("frontend %d latched: %v", i, l.Status().Reason)
		}
	}

	// A second key beside it, and away again.
	pq := mlKey(t)
	if _, err := AddSharedKey(t.Context(), r.database, pq.Key()); err != nil {
		t.Fatal(err)
	}
	r.signer = next
	e := r.open(only, func(c *Config) { c.Also = []Signer{pq} })
	r.must2(e, by, nth(5))
	if n := signers(t, e.Published().Note, next, pq); n != 2 {
		t.Errorf("%d keys signed", n)
	}
	if _, err := RetireSharedKey(t.Context(), r.database, next.Key().ID()); err == nil {
		t.Error("the key that every reader knows was taken away")
	}
	if id, err = RetireSharedKey(t.Context(), r.database, pq.Key().ID()); err != nil || id.Keys[2].UpTo != 6 {
		t.Fatalf("%+v, %v", id, err)
	}
	r.must2(d, by, nth(6))
	if n := signers(t, d.Published().Note, pq); n != 0 {
		t.Error("the retired key signed")
	}
	// A database that has forgotten a retirement is not believed.
	r.exec("UPDATE log SET identity = $1", `{"origin":"`+old.Key().Name()+`","vkey":"`+next.Key().String()+`","anchor":""}`)
	waitFor(t, "the loss to be seen", func() bool { return d.Status().Latched && errors.Is(d.Status().Reason, ErrBehind) })
}

// TestSharedRotationPaused: a publisher that was paused before the keys changed
// signs nothing that counts when it wakes up: its anchor and its checkpoint are
// refused, and a key was retired at no less than it can have signed.
func TestSharedRotationPaused(t *testing.T) {
	for _, where := range []string{"anchor", "checkpoint"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			r := newSharedRig(t, 1, 1)
			pq := mlKey(t)
			p := newPausing()
			by := r.all(entry.ClaimIndex)
			a := r.ready(func(c *Config) {
				*map[string]*func(){"anchor": &c.Shared.testBeforeSwap, "checkpoint": &c.Shared.testBeforePublish}[where] = p.hook
			})
			r.must2(a, by, nth(0))
			b := r.ready(func(c *Config) { c.Also = []Signer{pq} })
			p.armed.Store(true)
			done := make(chan *Ack)
			go func() { done <- r.must2(b, by, nth(1)) }()
			<-p.reached
			if _, err := AddSharedKey(t.Context(), r.database, pq.Key()); err != nil {
				t.Fatal(err)
			}
			r.endElectionSession()
			<-done
			if n := signers(t, b.Published().Note, r.signer, pq); n != 2 {
				t.Fatalf("%d keys signed", n)
			}
			id, err := RetireSharedKey(t.Context(), r.database, pq.Key().ID())
			if err != nil || id.Keys[1].UpTo != 2 {
				t.Fatalf("%+v, %v", id, err)
			}
			r.must2(b, by, nth(2))
			close(p.resume)
			waitFor(t, "the paused one to be deposed, or elected anew", func() bool { return a.shared.terms.Load()+b.shared.terms.Load() == 1 })
			r.must2(a, by, nth(3))
			if a.Status().Latched || b.Status().Latched {
				t.Errorf("latched: %v, %v", a.Status().Reason, b.Status().Reason)
			}
		})
	}
}
