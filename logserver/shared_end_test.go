package logserver

// A shared log that ends, and one that begins as a successor: what no frontend
// may do after the decision, whoever is paused or dead meanwhile.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

func (r *sharedRig) freeze(next Successor) {
	r.t.Helper()
	if err := FreezeShared(r.t.Context(), r.database, next, time.Now()); err != nil {
		r.t.Fatal(err)
	}
}

// ended waits for the last checkpoint and checks it as a reader would.
func (r *sharedRig) ended(next Successor) (p Published) {
	r.t.Helper()
	waitFor(r.t, "the last checkpoint", func() bool {
		var leaf *entry.Entry
		var err error
		if p, leaf, _, err = SharedEnded(r.t.Context(), r.database); err != nil {
			r.t.Fatal(err)
		}
		if leaf != nil && (leaf.Origin != next.Origin || leaf.URL != next.URL || leaf.VKeys[0] != next.VKeys[0]) {
			r.t.Fatalf("ended with %+v", leaf)
		}
		return leaf != nil
	})
	policy := r.rig.config().Policy
	policy.Logs = []c2sp.PolicyLog{{Key: r.signer.Key()}}
	v, err := policy.Verify(p.Note)
	if err != nil {
		r.t.Fatal(err)
	}
	last, err := lastLeaf(tree{r.t.Context(), r.engine, int64(v.Size), nil})
	if err != nil || last == nil || last.Origin != next.Origin {
		r.t.Fatalf("the last of %d entries is %+v, %v", v.Size, last, err)
	}
	waitFor(r.t, "the last checkpoint beside the tiles", func() bool {
		raw, err := r.engine.ReadCheckpoint(r.t.Context())
		return err == nil && bytes.Equal(raw, p.Note)
	})
	return p
}

// asked is how often the witnesses were asked for anything.
func (r *rig) asked() (n int) {
	for _, w := range r.witnesses {
		n += int(w.asked.Load())
	}
	return n
}

// refusesFrozen waits until a frontend refuses submissions, naming the successor.
func (r *sharedRig) refusesFrozen(l *Log, by Token, e *entry.Entry, next Successor) {
	r.t.Helper()
	waitFor(r.t, "the refusal", func() bool {
		ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
		defer cancel()
		ack, err := l.Submit(ctx, by, e, Cosigned)
		var frozen *FrozenError
		if err == nil {
			r.t.Fatalf("acknowledged as %d after the end", ack.Index)
		}
		return errors.As(err, &frozen) && frozen.Next == next.Origin && frozen.URL == next.URL
	})
}

// TestSharedFreeze: submissions under way at three frontends are acknowledged or
// refused with the successor's name; the leaf is the last; nothing is signed after
// it, by frontends that go on, start anew, or have forgotten the mark, also when
// something comes after it in the engine.
func TestSharedFreeze(t *testing.T) {
	r := newSharedRig(t, 3, 2)
	often := func(c *Config) { c.Republish = time.Millisecond }
	logs := []*Log{r.ready(often), r.ready(often), r.ready(frontendOnly)}
	next := testSuccessor(t)
	by := r.all(entry.ClaimIndex)
	var wg sync.WaitGroup
	var mu sync.Mutex
	acks := map[uint64]*Ack{}
	for w := range 9 {
		wg.Go(func() {
			for n := 0; ; n++ {
				ack, err := logs[w%3].Submit(t.Context(), by, nth(w*10000+n), Cosigned)
				var frozen *FrozenError
				if errors.As(err, &frozen) && frozen.Next == next.Origin {
					return
				}
				if err != nil {
					t.Errorf("neither logged nor refused as frozen: %v", err)
					return
				}
				mu.Lock()
				acks[ack.Index] = ack
				mu.Unlock()
			}
		})
	}
	waitFor(t, "some acknowledgements", func() bool { mu.Lock(); defer mu.Unlock(); return len(acks) > 20 })
	watch := r.watch()
	r.freeze(next)
	wg.Wait()
	p := r.ended(next)
	for i, ack := range acks {
		if i >= p.Size-1 {
			t.Errorf("entry %d was acknowledged in a log of %d", i, p.Size)
		}
		r.check(ack)
	}
	for i, l := range logs {
		waitFor(t, "the end to be known", func() bool { return l.Published().Size == p.Size })
		if err := l.Ready(); err == nil || !strings.Contains(err.Error(), next.Origin) {
			t.Errorf("frontend %d is ready: %v", i, err)
		}
	}
	watch()
	state := func() string { return r.query("SELECT size || ' ' || encode(root, 'hex') FROM anchor") + r.published() }
	before, asked := state(), r.asked()
	still := func(what string, more ...*Log) {
		t.Helper()
		// What may come after in the engine, and whatever would make a log publish.
		if err := r.engine.Queue(t.Context(), [32]byte{byte(len(what))}, []byte("late")); err != nil {
			t.Fatal(err)
		}
		for i, l := range append(logs, more...) {
			if err := l.SetPolicy(r.rig.config().Policy); err != nil {
				t.Fatal(err)
			}
			r.refusesFrozen(l, by, nth(70+i), next)
		}
		time.Sleep(100 * time.Millisecond)
		if after := state(); after != before {
			t.Errorf("%s: the log went on:\n%s\nwas\n%s", what, after, before)
		}
		if n := r.asked(); n != asked {
			t.Errorf("%s: the witnesses were asked %d times after the end", what, n-asked)
		}
	}
	if err := FreezeShared(t.Context(), r.database, next, time.Now()); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := FreezeShared(t.Context(), r.database, testSuccessor(t), time.Now()); err == nil || !strings.Contains(err.Error(), "cannot be changed") {
		t.Errorf("frozen twice for different logs: %v", err)
	}
	for _, l := range logs[:2] { // the first of them publishes
		l.Close()
	}
	logs = logs[2:]
	still("without a publisher")
	anew := r.open(often)
	waitFor(t, "a publisher", func() bool { return anew.shared.terms.Load() == 1 })
	still("a publisher starts", anew)
	r.exec("UPDATE log SET identity = (identity::jsonb - 'freeze')::text")
	waitFor(t, "the loss to be seen", func() bool { return anew.Status().Latched })
	anew.Close()
	logs[0].Close()
	logs = nil
	again := r.open(often)
	waitFor(t, "a publisher", func() bool { return again.shared.terms.Load() == 1 })
	still("the mark is deleted", again)
}

// TestSharedFreezePaused pauses the publisher in front of each of its last writes,
// as one that is killed there or wakes up late, and lets another one end the log.
func TestSharedFreezePaused(t *testing.T) {
	for _, where := range []string{"leaf reserved", "index rows", "anchor", "checkpoint"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			r := newSharedRig(t, 3, 2)
			next := testSuccessor(t)
			p := newPausing()
			a := r.open(func(c *Config) {
				*map[string]*func(){"leaf reserved": &c.Shared.testEnding, "index rows": &c.Shared.testBeforeCommit,
					"anchor": &c.Shared.testBeforeSwap, "checkpoint": &c.Shared.testBeforePublish}[where] = p.hook
			})
			waitFor(t, "the first publisher", func() bool { return a.Status().Writable })
			b := r.open()
			by := r.all(entry.ClaimIndex)
			ack := r.must2(b, by, nth(0))
			watch := r.watch()
			p.armed.Store(true)
			r.freeze(next)
			<-p.reached
			r.endElectionSession()
			last := r.ended(next)
			if last.Size != 2 || ack.Index != 0 {
				t.Errorf("ended with %d entries", last.Size)
			}
			watch() // it asks the witnesses too
			anchor, asked := r.anchorText(), r.asked()
			close(p.resume)
			waitFor(t, "the first to hear that it is deposed", func() bool { return r.deposed(a.shared) })
			r.refusesFrozen(a, by, nth(1), next)
			r.refusesFrozen(b, by, nth(1), next)
			time.Sleep(200 * time.Millisecond)
			if p, leaf, _, err := SharedEnded(t.Context(), r.database); err != nil || leaf == nil || !bytes.Equal(p.Note, last.Note) || r.anchorText() != anchor {
				t.Errorf("the publisher that woke up changed the end: %v", err)
			}
			if n := r.asked() - asked; n > 0 {
				t.Errorf("the witnesses were asked %d times after the end", n)
			}
			if a.Status().Latched || b.Status().Latched {
				t.Error("a deposed publisher is no failed guard")
			}
		})
	}
}

// TestSharedFreezeDeadFrontend: what a frontend has reserved, and did not queue
// before it died or was paused, comes before the last leaf; when it wakes up it
// changes nothing.
func TestSharedFreezeDeadFrontend(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	next := testSuccessor(t)
	r.ready()
	dying := r.ready(frontendOnly)
	by := r.all(entry.ClaimIndex)
	p := newPausing()
	dying.seq.(*sharedSequencer).testDecided = p.hook
	p.armed.Store(true)
	var late sync.WaitGroup
	late.Go(func() { // it is told what became of it, in the end
		ack, err := dying.Submit(t.Context(), by, nth(0), Cosigned)
		if err != nil {
			t.Errorf("what was reserved: %v", err)
			return
		}
		r.check(ack)
	})
	<-p.reached
	r.freeze(next)
	if last := r.ended(next); last.Size != 2 {
		t.Errorf("ended with %d entries, want the reserved one and the leaf", last.Size)
	}
	before := r.anchorText() + r.published()
	close(p.resume)
	late.Wait()
	r.refusesFrozen(dying, by, nth(1), next)
	time.Sleep(50 * time.Millisecond)
	if after := r.anchorText() + r.published(); after != before {
		t.Errorf("the frontend that woke up changed\n%s\ninto\n%s", before, after)
	}
}

// TestSharedFreezeWithoutQuorum: the log ends, takes nothing, and its last
// checkpoint is published when the witnesses are back, by another publisher.
func TestSharedFreezeWithoutQuorum(t *testing.T) {
	r := newSharedRig(t, 3, 2)
	next := testSuccessor(t)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.must2(l, by, nth(0))
	r.witnesses[0].down()
	r.witnesses[1].down()
	r.freeze(next)
	waitFor(t, "the leaf", func() bool { return r.query("SELECT ended FROM log") != "" })
	if _, leaf, publisher, err := SharedEnded(t.Context(), r.database); err != nil || leaf != nil || !publisher {
		t.Fatalf("published without a quorum, %v", err)
	}
	r.refusesFrozen(l, by, nth(1), next)
	l.Close()
	if _, _, publisher, err := SharedEnded(t.Context(), r.database); err != nil || publisher {
		t.Errorf("a publisher is seen where there is none, %v", err)
	}
	r.witnesses[0].pretend(nil)
	r.witnesses[1].pretend(nil)
	l = r.open()
	if p := r.ended(next); p.Size != 2 {
		t.Errorf("ended at %d", p.Size)
	}
	r.refusesFrozen(l, by, nth(2), next)
}

// TestSharedGuardAfterTheEnd: an entry behind the leaf in the engine is found
// while the last checkpoint is not published, and nothing is signed of it.
func TestSharedGuardAfterTheEnd(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	next := testSuccessor(t)
	l := r.ready(func(c *Config) {
		c.Shared.testEnding = sync.OnceFunc(func() { // the leaf and another entry are ordered in one step
			r.engine.hold(true)
			late := nth(5)
			late.Claim, late.Registry = entry.ClaimIndex, testRegistry
			s, err := newSubmission(late, nil)
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				for {
					r.engine.mu.Lock()
					n := len(r.engine.queue)
					r.engine.mu.Unlock()
					if n > 0 {
						break
					}
					time.Sleep(time.Millisecond)
				}
				r.engine.Queue(context.Background(), [32]byte{7}, s.leaf)
				r.engine.hold(false)
			}()
		})
	})
	r.freeze(next)
	waitFor(t, "the guard", func() bool { return l.Status().Latched })
	if !errors.Is(l.Status().Reason, errAfterEnd) {
		t.Errorf("latched by %v", l.Status().Reason)
	}
	if got := r.query("SELECT size::text FROM anchor"); got != "0" {
		t.Errorf("the anchor moved to %s", got)
	}
}

func TestSharedFreezeRefuses(t *testing.T) {
	r := newSharedRig(t, 0, 0)
	good := testSuccessor(t)
	for want, s := range map[string]Successor{
		"is this log":              {"log.example/test", good.VKeys, good.URL},
		"at least one key":         {good.Origin, nil, good.URL},
		"does not start with http": {good.Origin, good.VKeys, "ftp://x"},
	} {
		if err := FreezeShared(t.Context(), r.database, s, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if got := r.query("SELECT coalesce(identity::jsonb->>'freeze', 'no mark') FROM log"); got != "no mark" {
		t.Fatalf("a refused freeze left %s", got)
	}
	if err := FreezeShared(t.Context(), newDatabase(t), good, time.Now()); !errors.Is(err, ErrNoLog) {
		t.Errorf("no log: %v", err)
	}
	r.freeze(good)
	if _, err := AddSharedKey(t.Context(), r.database, mlKey(t).Key()); !errors.Is(err, errEnds) {
		t.Errorf("a key for a log that ends: %v", err)
	}
}

func mlKey(t testing.TB) *c2sp.Signer {
	t.Helper()
	s, err := c2sp.GenerateSigner("log.example/test", c2sp.AlgMLDSA44)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSharedSuccessorBegins: the predecessor leaf is at index 0, or nothing is,
// also while frontends are running.
func TestSharedSuccessorBegins(t *testing.T) {
	r := newSharedRig(t, 3, 2)
	old := c2sp.Checkpoint{Origin: "old.example/log", Size: 12, Root: [32]byte{1, 2, 3}}
	if err := AwaitSharedPredecessor(t.Context(), r.database, r.signer.Key().Name()); err == nil {
		t.Error("a log takes over from itself")
	}
	if err := AwaitSharedPredecessor(t.Context(), r.database, old.Origin); err != nil {
		t.Fatal(err)
	}
	l, other := r.open(), r.open(frontendOnly)
	by := r.all(entry.ClaimIndex)
	for _, l := range []*Log{l, other} {
		waitFor(t, "waiting for the predecessor", func() bool { return strings.Contains(fmt.Sprint(l.Status().Reason), "portbook-log successor") })
		if _, err := l.Submit(t.Context(), by, nth(1), Cosigned); !errors.Is(err, ErrReadOnly) {
			t.Errorf("before its first entry: %v", err)
		}
	}
	// Nor may a frontend that has not looked yet.
	early := nth(1)
	early.Claim, early.Registry = entry.ClaimIndex, testRegistry
	sub, err := newSubmission(early, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.seq.submit(t.Context(), []*submission{sub}); err != nil {
		t.Fatal(err)
	}
	if <-sub.group.done; sub.err == nil || !strings.Contains(sub.err.Error(), errAwaits.Error()) {
		t.Errorf("decided before the first entry: %v", sub.err)
	}
	stranger, itself := old, old
	stranger.Origin, itself.Origin = "other.example", r.signer.Key().Name()
	for _, c := range []c2sp.Checkpoint{stranger, itself} {
		if err := BeginShared(t.Context(), r.database, c, time.Now()); err == nil {
			t.Errorf("took over from %s", c.Origin)
		}
	}
	for range 2 {
		if err := BeginShared(t.Context(), r.database, old, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	bigger := old
	bigger.Size++
	if err := BeginShared(t.Context(), r.database, bigger, time.Now()); err == nil {
		t.Error("took over twice, from two sizes, before the first was logged")
	}
	waitFor(t, "the first entry", func() bool { return other.Status().Writable })
	if ack := r.must2(other, by, nth(1)); ack.Index != 1 {
		t.Errorf("first upload at %d", ack.Index)
	}
	if err := BeginShared(t.Context(), r.database, old, time.Now().Add(time.Hour)); err != nil {
		t.Errorf("once more: %v", err)
	}
	if err := BeginShared(t.Context(), r.database, bigger, time.Now()); err == nil || !strings.Contains(err.Error(), "init --successor-of") {
		t.Errorf("took over twice, from two sizes: %v", err)
	}
	first, err := l.lookup.entryAt(0)
	if err != nil || first.Kind != entry.KindPredecessor || *first.Size != 12 || first.Origin != old.Origin {
		t.Errorf("%+v, %v", first, err)
	}
}
