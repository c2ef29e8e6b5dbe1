package logserver

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// odd is a signer that can be broken in the ways of a device or a service.
type odd struct {
	*c2sp.Signer
	do    atomic.Pointer[func(ctx context.Context, c c2sp.Checkpoint) (c2sp.Signature, error)] // instead
	asked atomic.Int64
}

func (s *odd) SignCheckpoint(ctx context.Context, c c2sp.Checkpoint) (c2sp.Signature, error) {
	s.asked.Add(1)
	if do := s.do.Load(); do != nil {
		return (*do)(ctx, c)
	}
	return s.Signer.SignCheckpoint(ctx, c)
}

func (s *odd) pretend(do func(ctx context.Context, c c2sp.Checkpoint) (c2sp.Signature, error)) {
	if do == nil {
		s.do.Store(nil)
		return
	}
	s.do.Store(&do)
}

func mustKey(t testing.TB, name string, alg c2sp.Alg) *c2sp.Signer {
	t.Helper()
	s, err := c2sp.GenerateSigner(name, alg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// submitFor is submit, for so long.
func (r *rig) submitFor(l *Log, e *entry.Entry, d time.Duration) (*Ack, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), d)
	defer cancel()
	return l.Submit(ctx, r.token, e, Cosigned)
}

// setKeys replaces what the log's identity says about keys.
func (r *rig) setKeys(keys ...LogKey) {
	r.t.Helper()
	id, err := ReadIdentity(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	id.Keys = keys
	if err := writeIdentity(r.dir, id); err != nil {
		r.t.Fatal(err)
	}
}

// TestSignerTrouble: a key that cannot sign, is slow, hangs, or signs something
// else delays publishing. Nothing wrong is published or sent to a witness, the
// guard does not latch, and publishing goes on when the key is well again.
func TestSignerTrouble(t *testing.T) {
	other := mustKey(t, "log.example/test", c2sp.AlgEd25519)
	for name, tc := range map[string]struct {
		do   func(s *c2sp.Signer) func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error)
		want string
	}{
		"down": {func(*c2sp.Signer) func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
			return func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
				return c2sp.Signature{}, errors.New("the key service is away")
			}
		}, "the key service is away"},
		"slow, and heeds the context": {func(*c2sp.Signer) func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
			return func(ctx context.Context, _ c2sp.Checkpoint) (c2sp.Signature, error) {
				<-ctx.Done()
				return c2sp.Signature{}, ctx.Err()
			}
		}, ""},
		"hangs for good": {func(*c2sp.Signer) func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
			return func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
				time.Sleep(2 * time.Second)
				return c2sp.Signature{}, errors.New("too late")
			}
		}, ""},
		"signs another tree": {func(s *c2sp.Signer) func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
			return func(ctx context.Context, c c2sp.Checkpoint) (c2sp.Signature, error) {
				c.Root[0] ^= 1
				return s.SignCheckpoint(ctx, c)
			}
		}, "wrong signature"},
		"returns zeros": {func(s *c2sp.Signer) func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
			return func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
				return c2sp.Signature{Name: s.Key().Name(), KeyID: s.Key().ID(), Sig: make([]byte, 64)}, nil
			}
		}, "wrong signature"},
		"returns nothing": {func(*c2sp.Signer) func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
			return func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) { return c2sp.Signature{}, nil }
		}, "signature of another key"},
		"signs with another key": {func(*c2sp.Signer) func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
			return other.SignCheckpoint
		}, "signature of another key"},
		"a line within the name": {func(s *c2sp.Signer) func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
			return func(ctx context.Context, c c2sp.Checkpoint) (c2sp.Signature, error) {
				sig, err := s.SignCheckpoint(ctx, c)
				sig.Name += "\nx"
				return sig, err
			}
		}, "signature of another key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, 1)
			key := &odd{Signer: r.signer}
			l := r.ready(func(c *Config) { c.Signer, c.RoundLimit, c.MaxWait = key, 500*time.Millisecond, 30*time.Second })
			r.must(l, nth(0))
			before := l.Published()
			key.pretend(tc.do(r.signer))
			var sent atomic.Int64
			r.witnesses[0].pretend(func(rw http.ResponseWriter, req *http.Request) {
				sent.Add(1)
				r.witnesses[0].real.ServeHTTP(rw, req)
			})
			if _, err := r.submitFor(l, nth(1), 1500*time.Millisecond); !errors.Is(err, ErrNotPublished) || !errors.Is(err, ErrSigner) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%v, want one that says %q", err, tc.want)
			}
			if n := sent.Load(); n != 0 {
				t.Errorf("%d requests were sent to a witness without a good signature", n)
			}
			if s := l.Status(); s.Latched || !s.Writable {
				t.Errorf("trouble with a key latched the log: %v", s.Reason)
			}
			if p := l.Published(); !bytes.Equal(p.Note, before.Note) {
				t.Errorf("something was published:\n%s", p.Note)
			}
			if err := l.Ready(); err == nil {
				t.Error("ready, and cannot publish")
			}
			key.pretend(nil)
			waitFor(t, "publishing to go on", func() bool { return l.Published().Size == 2 }) // one that hangs still has to come back
			if ack := r.must(l, nth(1)); ack.Index != 1 {
				t.Errorf("index %d", ack.Index)
			}
			if tc.want == "" && key.asked.Load() > 20 {
				t.Errorf("a key that does not answer was asked %d times", key.asked.Load())
			}
		})
	}
}

// TestSignerDownAtStart: the log waits for its key, and does not latch.
func TestSignerDownAtStart(t *testing.T) {
	r := newRig(t, 1, 1)
	key := &odd{Signer: r.signer}
	key.pretend(func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
		return c2sp.Signature{}, errors.New("the HSM is locked")
	})
	l := r.open(func(c *Config) { c.Signer = key })
	waitFor(t, "the log to say what it waits for", func() bool { return errors.Is(l.Status().Reason, ErrSigner) })
	if s := l.Status(); s.Latched || s.Writable {
		t.Fatalf("%+v", s)
	}
	key.pretend(nil)
	waitFor(t, "the log to take submissions", func() bool { return l.Status().Writable })
	r.must(l, nth(0))
}

// TestSeveralKeys: each key that is not retired signs each checkpoint, so that
// a reader needs to know only one; a witness with any of them cosigns.
func TestSeveralKeys(t *testing.T) {
	r := newRig(t, 3, 3)
	origin := r.signer.Key().Name()
	next, pq := mustKey(t, origin, c2sp.AlgEd25519), mustKey(t, origin, c2sp.AlgMLDSA44)
	r.setKeys(LogKey{VKey: pq.Key().String(), State: KeyActive}, LogKey{VKey: r.signer.Key().String(), State: KeyActive}, LogKey{VKey: next.Key().String(), State: KeyNext})
	// One witness knows the old key, one the new one, one the ML-DSA-44 key as well.
	r.witnesses[1] = newRigWitness(t, "w2", t.TempDir()+"/w2.db", next.Key())
	if _, err := r.witnesses[2].store.AddLog(t.Context(), origin, []*c2sp.Key{pq.Key()}); err != nil {
		t.Fatal(err)
	}
	r.policy = "group g all w1 w2 w3\nquorum g\n"
	var body atomic.Pointer[[]byte]
	for _, w := range r.witnesses {
		r.policy = "witness " + w.name + " " + w.key.String() + " " + w.server.URL + "\n" + r.policy
		w.pretend(func(rw http.ResponseWriter, req *http.Request) {
			var b bytes.Buffer
			b.ReadFrom(req.Body)
			if bytes.HasPrefix(b.Bytes(), []byte("old ")) {
				body.Store(new(b.Bytes()))
			}
			req.Body = http.NoBody
			again, _ := http.NewRequest(req.Method, req.URL.String(), &b)
			w.real.ServeHTTP(rw, again)
		})
	}
	// The order in which keys are given does not matter.
	l := r.ready(func(c *Config) { c.Signer, c.Also = pq, []Signer{next, r.signer} })
	for i := range 3 {
		ack := r.must(l, nth(i))
		note, err := c2sp.ParseNote(ack.Proof.Checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		if len(note.Sigs) != 6 {
			t.Fatalf("%d signatures, want those of 3 keys and 3 witnesses", len(note.Sigs))
		}
		if !r.signer.Key().Matches(note.Sigs[0]) && !next.Key().Matches(note.Sigs[0]) {
			t.Errorf("the first line is by %08x, want an Ed25519 key", note.Sigs[0].KeyID)
		}
		for _, key := range []*c2sp.Key{r.signer.Key(), next.Key(), pq.Key()} {
			p := r.config().Policy
			p.Logs = []c2sp.PolicyLog{{Key: key}}
			if v, err := p.Verify(ack.Proof.Checkpoint); err != nil || len(v.Cosignatures) != 3 {
				t.Errorf("who knows only %s: %v", name(key), err)
			}
		}
	}
	// Witnesses take notes of 16 signatures and less, and of what size they like.
	if n := len(*body.Load()); n > 8<<10 {
		t.Errorf("witnesses are sent %d bytes", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"one is missing":              {func(c *Config) { c.Also = []Signer{pq} }, "(next) is not given"},
		"only the ML-DSA-44 key":      {func(c *Config) { c.Signer = pq }, "(active) is not given"},
		"a stranger's besides":        {func(c *Config) { c.Also = []Signer{pq, next, mustKey(t, origin, c2sp.AlgEd25519)} }, "not a key of this log"},
		"the policy calls it retired": {func(c *Config) { c.Policy.Logs = []c2sp.PolicyLog{{Key: next.Key(), Retired: true, UpTo: 9}} }, "is called retired"},
		"the policy has another log": {func(c *Config) {
			c.Policy.Logs = []c2sp.PolicyLog{{Key: mustKey(t, "other.example", c2sp.AlgEd25519).Key()}}
		}, "none of its log lines"},
		"a witness has the key": {func(c *Config) {
			w, err := c2sp.ParseSKey(pq.SKey())
			if err != nil {
				t.Fatal(err)
			}
			c.Policy.Witnesses[0].Key = w.Key()
		}, "nobody witnesses himself"},
	} {
		cfg := r.config()
		cfg.Also = []Signer{next, pq}
		tc.change(&cfg)
		if l, err := Open(t.Context(), cfg); err == nil {
			l.Close()
			t.Errorf("%s: opened", name)
		} else if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// TestOneKeyOfTwoFails: the anchor has moved and one key has signed when the
// other fails. The next round signs the same tree, or a larger one, again.
func TestOneKeyOfTwoFails(t *testing.T) {
	r := newRig(t, 1, 1)
	next := &odd{Signer: mustKey(t, r.signer.Key().Name(), c2sp.AlgEd25519)}
	r.setKeys(LogKey{VKey: r.signer.Key().String(), State: KeyActive}, LogKey{VKey: next.Key().String(), State: KeyNext})
	l := r.ready(func(c *Config) { c.Also, c.MaxWait = []Signer{next}, 30*time.Second })
	r.must(l, nth(0))
	for range 3 {
		next.pretend(func(context.Context, c2sp.Checkpoint) (c2sp.Signature, error) {
			return c2sp.Signature{}, errors.New("away")
		})
		if _, err := r.submitFor(l, nth(1), 500*time.Millisecond); !errors.Is(err, ErrSigner) {
			t.Fatal(err)
		}
		if a := l.anchor.known(); a.size != 2 || l.Published().Size != 1 {
			t.Fatalf("anchor at %d, published %d", a.size, l.Published().Size)
		}
	}
	next.pretend(nil)
	r.must(l, nth(1))
	r.must(l, nth(2))
	if s := l.Status(); s.Latched {
		t.Fatal(s.Reason)
	}
}

// TestRetiredKeyAtAWitness: what a retired key signed up to its size is the
// log's word; what it signs after that is not, and stops nothing but the trust
// in that witness.
func TestRetiredKeyAtAWitness(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	r.must(l, nth(0))
	r.must(l, nth(1))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	next := mustKey(t, r.signer.Key().Name(), c2sp.AlgEd25519)
	id, err := ReadIdentity(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	id.VKey = next.Key().String()
	id.Keys = []LogKey{{VKey: r.signer.Key().String(), State: KeyRetired, UpTo: 2}, {VKey: id.VKey, State: KeyActive}}
	if err := writeIdentity(r.dir, id); err != nil {
		t.Fatal(err)
	}
	old := r.signer
	r.signer = next
	cfg := r.config()
	cfg.Also = []Signer{old}
	if l, err := Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "was retired at size 2 and signs no more") {
		if err == nil {
			l.Close()
		}
		t.Fatalf("served with the retired key: %v", err)
	}
	if _, err := r.witnesses[0].store.AddLog(t.Context(), old.Key().Name(), []*c2sp.Key{next.Key()}); err != nil {
		t.Fatal(err)
	}
	// The witness and the public checkpoint file still have what the old key alone signed.
	l = r.ready()
	r.must(l, nth(2))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	// A thief of the old key shows the witness, which still knows it, a tree of his own.
	cp := c2sp.Checkpoint{Origin: old.Key().Name(), Size: 9, Root: [32]byte{1}}
	sig, err := old.SignCheckpoint(t.Context(), cp)
	if err != nil {
		t.Fatal(err)
	}
	forged := (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()
	w := r.witnesses[0]
	w.pretend(func(rw http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet {
			rw.Write(forged)
			return
		}
		w.real.ServeHTTP(rw, req)
	})
	l = r.open()
	waitFor(t, "the log to say what is wrong", func() bool {
		return l.Status().Reason != nil && strings.Contains(l.Status().Reason.Error(), "somebody else has that key")
	})
	if s := l.Status(); s.Latched || s.Writable {
		t.Fatalf("%+v", s)
	}
	w.pretend(nil)
	waitFor(t, "the log to take submissions", func() bool { return l.Status().Writable })
	r.must(l, nth(3))
}

// TestIdentityKeys: what is refused of an identity file.
func TestIdentityKeys(t *testing.T) {
	key := func(alg c2sp.Alg) string { return mustKey(t, "log.example/test", alg).Key().String() }
	a, b, c, pq := key(c2sp.AlgEd25519), key(c2sp.AlgEd25519), key(c2sp.AlgEd25519), key(c2sp.AlgMLDSA44)
	other := mustKey(t, "other.example", c2sp.AlgEd25519).Key().String()
	cosigner := key(c2sp.AlgEd25519Cosig)
	for name, tc := range map[string]struct {
		keys []LogKey
		want string // "" if it is fine
	}{
		"of before there were several": {nil, ""},
		"one":                          {[]LogKey{{VKey: a, State: KeyActive}}, ""},
		"everything":                   {[]LogKey{{VKey: c, State: KeyRetired, UpTo: 7}, {VKey: a, State: KeyActive}, {VKey: b, State: KeyNext}, {VKey: pq, State: KeyActive}}, ""},
		"empty list":                   {[]LogKey{}, "no active Ed25519 key"},
		"no Ed25519 key":               {[]LogKey{{VKey: pq, State: KeyActive}}, "no active Ed25519 key"},
		"another vkey":                 {[]LogKey{{VKey: b, State: KeyActive}}, "is not the active Ed25519 key"},
		"vkey is next":                 {[]LogKey{{VKey: b, State: KeyActive}, {VKey: a, State: KeyNext}}, "is not the active Ed25519 key"},
		"vkey is retired":              {[]LogKey{{VKey: b, State: KeyActive}, {VKey: a, State: KeyRetired}}, "is not the active Ed25519 key"},
		"two active of a type":         {[]LogKey{{VKey: a, State: KeyActive}, {VKey: b, State: KeyActive}}, "2 keys of type Ed25519"},
		"two next of a type":           {[]LogKey{{VKey: a, State: KeyActive}, {VKey: b, State: KeyNext}, {VKey: c, State: KeyNext}}, "2 next"},
		"next beside nothing":          {[]LogKey{{VKey: a, State: KeyActive}, {VKey: pq, State: KeyNext}}, "1 next"},
		"twice":                        {[]LogKey{{VKey: a, State: KeyActive}, {VKey: a, State: KeyRetired}}, "named twice"},
		"another log's":                {[]LogKey{{VKey: a, State: KeyActive}, {VKey: other, State: KeyRetired}}, "does not have the origin"},
		"a witness's":                  {[]LogKey{{VKey: a, State: KeyActive}, {VKey: cosigner, State: KeyRetired}}, "no log signs with"},
		"unknown state":                {[]LogKey{{VKey: a, State: "asleep"}}, "unknown state"},
		"active with an end":           {[]LogKey{{VKey: a, State: KeyActive, UpTo: 5}}, "only a retired key ends"},
		"no key":                       {[]LogKey{{VKey: "x", State: KeyActive}}, "vkey"},
	} {
		id := Identity{Origin: "log.example/test", VKey: a, Keys: tc.keys}
		err := id.checkKeys()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
