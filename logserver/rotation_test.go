package logserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
)

// keyStates is what the log's identity says, in words.
func (r *rig) keyStates() string {
	r.t.Helper()
	id, err := ReadIdentity(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	var s []string
	for _, k := range id.Keys {
		word := string(k.State)
		if k.State == KeyRetired {
			word += fmt.Sprintf("@%d", k.UpTo)
		}
		s = append(s, fmt.Sprintf("%d:%s", k.key.Alg(), word))
	}
	return strings.Join(s, " ")
}

func (r *rig) wantStates(want string) {
	r.t.Helper()
	if have := r.keyStates(); have != want {
		r.t.Fatalf("the keys are %s, want %s", have, want)
	}
}

func refused(t *testing.T, what string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want %q", what, err, want)
	}
}

// TestRotation goes through a rotation of both keys, with every refusal on the
// way. See cmd/portbook-log for one with real processes and readers.
func TestRotation(t *testing.T) {
	r := newRig(t, 3, 2)
	origin := r.signer.Key().Name()
	policy := func() *c2sp.Policy { return r.config().Policy }
	a, b, c := r.signer, mustKey(t, origin, c2sp.AlgEd25519), mustKey(t, origin, c2sp.AlgEd25519)
	pq, pq2 := mustKey(t, origin, c2sp.AlgMLDSA44), mustKey(t, origin, c2sp.AlgMLDSA44)
	serve := func(want string, keys ...Signer) {
		t.Helper()
		r.wantStates(want)
		l := r.ready(func(c *Config) { c.Signer, c.Also = keys[0], keys[1:] })
		ack := r.must(l, nth(int(l.Published().Size)))
		n, err := c2sp.ParseNote(ack.Proof.Checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range []*c2sp.Signer{a, b, c, pq, pq2} {
			signed, given := false, false
			for _, s := range n.Sigs {
				signed = signed || k.Key().Matches(s)
			}
			for _, g := range keys {
				given = given || g.Key() == k.Key()
			}
			if signed != given {
				t.Errorf("key %s: signed %v, want %v", name(k.Key()), signed, given)
			}
		}
		if _, err := BeginRotation(r.dir, c.Key()); err != nil {
			var locked *LockedError
			if !errors.As(err, &locked) {
				t.Errorf("while the log is served: %v", err)
			}
		} else {
			t.Error("the keys were changed while the log is served")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	trust := func(w int, keys ...*c2sp.Signer) {
		t.Helper()
		for _, k := range keys {
			if _, err := r.witnesses[w].store.AddLog(t.Context(), origin, []*c2sp.Key{k.Key()}); err != nil {
				t.Fatal(err)
			}
		}
	}

	_, err := FinishRotation(t.Context(), r.dir, policy())
	refused(t, "finish before begin", err, "no rotation has begun")
	_, err = BeginRotation(r.dir, mustKey(t, "log.example/other", c2sp.AlgEd25519).Key())
	refused(t, "another log's key", err, "has its origin")
	_, err = BeginRotation(r.dir, mustKey(t, origin, c2sp.AlgEd25519Cosig).Key())
	refused(t, "a witness's key", err, "the log has no key of type")
	_, err = BeginRotation(r.dir, a.Key())
	refused(t, "the same key", err, "is a key of this log already (active)")
	_, err = BeginRotation(r.dir, pq.Key())
	refused(t, "an ML-DSA-44 key where there is none", err, "key add")
	_, err = AddKey(r.dir, b.Key())
	refused(t, "a second Ed25519 key beside the first", err, "key rotate begin")
	_, err = AddKey(r.dir, mustKey(t, origin, c2sp.AlgEd25519Cosig).Key())
	refused(t, "adding a witness's key", err, "no log signs with")
	_, err = RetireKey(r.dir, a.Key().ID())
	refused(t, "retiring the only key", err, "the one that every reader knows")
	_, err = RetireKey(r.dir, b.Key().ID())
	refused(t, "retiring a stranger's key", err, "no key of this log")
	_, err = BeginRotation(t.TempDir(), b.Key())
	refused(t, "no log", err, "no log here")
	serve("1:active", a)

	if _, err := AddKey(r.dir, pq.Key()); err != nil {
		t.Fatal(err)
	}
	serve("1:active 6:active", a, pq)
	if _, err := BeginRotation(r.dir, b.Key()); err != nil {
		t.Fatal(err)
	}
	_, err = BeginRotation(r.dir, c.Key())
	refused(t, "a second rotation", err, "is the next one already")
	_, err = RetireKey(r.dir, a.Key().ID())
	refused(t, "retiring what is being replaced", err, "key rotate finish")
	trust(0, b)
	trust(1, b)
	_, err = FinishRotation(t.Context(), r.dir, policy())
	refused(t, "finish before the new key signed anything", err, "has not signed the public checkpoint")
	serve("1:active 6:active 1:next", a, pq, b)

	// Two witnesses know the new key. Without one of them there is no quorum for it.
	r.witnesses[0].down()
	_, err = FinishRotation(t.Context(), r.dir, policy())
	refused(t, "finish with one witness that knows the key", err, "too few witnesses accept")
	r.wantStates("1:active 6:active 1:next")
	r.witnesses[0].pretend(nil)
	p := policy()
	p.Logs = []c2sp.PolicyLog{{Key: a.Key()}}
	_, err = FinishRotation(t.Context(), r.dir, p)
	refused(t, "finish with a policy that has the old key only", err, "none of its log lines has the new key")
	anchor, err := readAnchor(r.anchor)
	if err != nil {
		t.Fatal(err)
	}
	id, err := FinishRotation(t.Context(), r.dir, policy())
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("retired %s %d https://log.example", a.Key(), anchor.size); id.PolicyLines("https://log.example")[0] != want {
		t.Errorf("lines for readers: %q, want the first to be %q", id.PolicyLines("https://log.example"), want)
	}
	if _, err := c2sp.ParsePolicy([]byte(strings.Join(id.PolicyLines(""), "\n") + "\nquorum none\n")); err != nil {
		t.Error(err)
	}
	_, err = FinishRotation(t.Context(), r.dir, policy())
	refused(t, "finish twice", err, "no rotation has begun")
	_, err = BeginRotation(r.dir, a.Key())
	refused(t, "a key that was retired", err, "a retired key never comes back")
	_, err = RetireKey(r.dir, a.Key().ID())
	refused(t, "retiring twice", err, "was retired at size")

	// r.must verifies with the key of the rig: from now on the new one.
	r.signer = b
	serve("1:retired@3 6:active 1:active", b, pq)

	// A rotation that is given up; the ML-DSA-44 key is rotated, and taken away.
	if _, err := BeginRotation(r.dir, c.Key()); err != nil {
		t.Fatal(err)
	}
	serve("1:retired@3 6:active 1:active 1:next", b, pq, c)
	if _, err := RetireKey(r.dir, c.Key().ID()); err != nil {
		t.Fatal(err)
	}
	serve("1:retired@3 6:active 1:active 1:retired@5", b, pq)
	if _, err := BeginRotation(r.dir, pq2.Key()); err != nil {
		t.Fatal(err)
	}
	_, err = RetireKey(r.dir, pq.Key().ID())
	refused(t, "retiring the ML-DSA-44 key that is being replaced", err, "key rotate finish")
	serve("1:retired@3 6:active 1:active 1:retired@5 6:next", b, pq, pq2)
	if _, err := FinishRotation(t.Context(), r.dir, policy()); err != nil {
		t.Fatal(err)
	}
	serve("1:retired@3 6:retired@7 1:active 1:retired@5 6:active", b, pq2)
	if _, err := RetireKey(r.dir, pq2.Key().ID()); err != nil {
		t.Fatal(err)
	}
	serve("1:retired@3 6:retired@7 1:active 1:retired@5 6:retired@8", b)

	// Every acknowledgement ever given stands under the lines for readers of now.
	id, err = ReadIdentity(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c2sp.ParsePolicy([]byte(strings.Join(id.PolicyLines("https://log.example"), "\n") + "\nquorum none\n")); err != nil {
		t.Error(err)
	}
}

// TestFinishReadsThePublishedCheckpoint: what is damaged or another's is no
// proof that readers could learn the new key.
func TestFinishReadsThePublishedCheckpoint(t *testing.T) {
	r := newRig(t, 0, 0)
	b := mustKey(t, r.signer.Key().Name(), c2sp.AlgEd25519)
	if _, err := BeginRotation(r.dir, b.Key()); err != nil {
		t.Fatal(err)
	}
	_, err := FinishRotation(t.Context(), r.dir, r.config().Policy)
	refused(t, "nothing was ever published", err, "public checkpoint")
	l := r.ready(func(c *Config) { c.Also = []Signer{b} })
	r.must(l, nth(0))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.dir, checkpointFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"no note":        "hello\n",
		"no checkpoint":  "hello\n\n" + strings.SplitN(string(good), "\n\n", 2)[1],
		"another's text": strings.Replace(string(good), "\n1\n", "\n2\n", 1),
	} {
		if err := os.WriteFile(path, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := FinishRotation(t.Context(), r.dir, r.config().Policy); err == nil {
			t.Errorf("%s: finished", name)
		}
	}
	if err := os.WriteFile(path, good, 0o644); err != nil {
		t.Fatal(err)
	}
	// Without its anchor nobody knows what the old key has signed.
	if err := os.Rename(r.anchor, r.anchor+".away"); err != nil {
		t.Fatal(err)
	}
	_, err = FinishRotation(t.Context(), r.dir, r.config().Policy)
	refused(t, "without an anchor", err, "the anchor is missing")
	if err := os.Rename(r.anchor+".away", r.anchor); err != nil {
		t.Fatal(err)
	}
	if _, err := FinishRotation(t.Context(), r.dir, r.config().Policy); err != nil {
		t.Fatal(err)
	}
	r.wantStates("1:retired@1 1:active")
}
