package logserver

// The embedded and the shared log give the same verdicts: each scenario runs on
// one embedded log, and on two frontends of a shared one that take turns.

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/portbook/portbook/entry"
)

// stage is a log on which a scenario runs.
type stage interface {
	step(by Token, e *entry.Entry, want any)
	// race submits first, and others, in this order, while first is reserved and
	// has no index.
	race(by Token, first *entry.Entry, others ...*entry.Entry) []error
	// grown waits until the log has n published entries.
	grown(n int)
	// rows is what the uniqueness database says in the end.
	rows() string
}

type embeddedStage struct {
	r *rig
	l *Log
}

func (s embeddedStage) step(by Token, e *entry.Entry, want any) {
	s.r.t.Helper()
	s.r.step(s.l, by, e, want)
}
func (s embeddedStage) race(by Token, first *entry.Entry, others ...*entry.Entry) []error {
	return s.r.race(s.l, by, first, others...)
}
func (s embeddedStage) grown(n int) {
	s.r.t.Helper()
	waitFor(s.r.t, "the log to grow", func() bool { return s.l.Published().Size >= uint64(n) })
}
func (s embeddedStage) rows() string {
	s.l.Close()
	return rows(s.r.t, s.r.dir)
}

type sharedStage struct {
	r         *sharedRig
	frontends []*Log
	turn      int
}

func (s *sharedStage) next() *Log {
	s.turn++
	return s.frontends[s.turn%len(s.frontends)]
}
func (s *sharedStage) step(by Token, e *entry.Entry, want any) {
	s.r.t.Helper()
	s.r.step(s.next(), by, e, want)
}

// race submits first at one frontend, and the others at another one.
func (s *sharedStage) race(by Token, first *entry.Entry, others ...*entry.Entry) []error {
	s.r.t.Helper()
	ctx, cancel := context.WithTimeout(s.r.t.Context(), 10*time.Second)
	defer cancel()
	a, b := s.next(), s.next()
	s.r.engine.hold(true)
	before := s.reserved()
	t, err := a.queue(ctx, by, first)
	if err != nil {
		s.r.t.Fatal(err)
	}
	waitFor(s.r.t, "the first to be reserved", func() bool { return s.reserved() == before+1 })
	tickets := []*ticket{t}
	for _, e := range others {
		t, err := b.queue(ctx, by, e)
		if err != nil {
			s.r.t.Fatal(err)
		}
		tickets = append(tickets, t)
	}
	time.Sleep(5 * heldPause) // b has looked at them, more than once
	s.r.engine.hold(false)
	var errs []error
	for _, t := range tickets {
		_, err := t.one(ctx, Cosigned)
		errs = append(errs, err)
	}
	return errs
}

func (s *sharedStage) reserved() int {
	return strings.Count(s.r.rows(), "reserved ")
}
func (s *sharedStage) grown(n int) {
	s.r.t.Helper()
	for _, l := range s.frontends {
		waitFor(s.r.t, "the log to grow", func() bool { return l.Published().Size >= uint64(n) })
	}
}
func (s *sharedStage) rows() string { return s.r.rows() }

func TestSharedVerdictsAreTheEmbeddedOnes(t *testing.T) {
	scenarios := []struct {
		name string
		play func(t *testing.T, r *rig, s stage)
	}{
		{"story", playStory},
		{"npm digests", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimObserved)
			s.step(by, npm("a", false, true), 0)
			s.step(by, npm("a", true, true), 0)
			s.step(by, npm("b", false, true), conflictWith(0))
			s.grown(2)
			s.step(by, npm("a", true, false), PreconditionError{Field: "sha512"})
		}},
		{"reject of a replaced digest", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			s.step(by, policy("replace", 1), 0)
			s.step(by, demo("d1"), 1)
			errs := s.race(by, replacing(demo("d2"), 1), reject(demo("d1"), 2))
			if errs[0] != nil {
				t.Fatal(errs[0])
			}
			wantPrecondition(t, errs[1], "sha256")
			s.step(by, demo("d3"), conflictWith(2))
			s.grown(4)
		}},
		{"two rejects in flight", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			s.step(by, demo("d1"), 0)
			errs := s.race(by, reject(demo("d1"), 1), reject(demo("d1"), 1), reject(demo("d1"), 2), demo("d2"), reject(demo("d1"), 3))
			if errs[0] != nil || errs[1] != nil || errs[3] != nil {
				t.Fatal(errs)
			}
			wantPrecondition(t, errs[2], "file")
			wantPrecondition(t, errs[4], "sha256")
			s.step(by, reject(demo("d1"), 1), 1)
			s.step(by, demo("d2"), 2)
			s.step(by, demo("d3"), conflictWith(2))
			s.grown(4)
		}},
		{"an upload waits for a reject", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			s.step(by, demo("d1"), 0)
			errs := s.race(by, reject(demo("d1"), 1), demo("d1"), demo("d2"), nth(7))
			if errs[0] != nil || errs[1] != nil || errs[3] != nil {
				t.Fatal(errs)
			}
			s.step(by, nth(7), 2)
			s.step(by, demo("d1"), 3)
			wantConflict(t, errs[2], 3)
			s.grown(5)
		}},
		{"an upload waits for a removal", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			s.step(by, policy("after-remove", 1), 0)
			s.step(by, demo("d1"), 1)
			for i, err := range s.race(by, remove(demo("d1"), 2), demo("d2")) {
				if err != nil {
					t.Fatal(i, err)
				}
			}
			s.step(by, demo("d2"), 3)
			s.step(by, remove(demo("d1"), 3), PreconditionError{Field: "sha256"})
			s.step(by, demo("d3"), conflictWith(3))
			s.grown(5)
		}},
		{"an upload waits for a policy", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			s.step(by, policy("replace", 1), 0)
			s.step(by, demo("d1"), 1)
			errs := s.race(by, policy("never", 2), replacing(demo("d2"), 1))
			if errs[0] != nil {
				t.Fatal(errs[0])
			}
			wantConflict(t, errs[1], 1)
			s.grown(4)
		}},
		{"a policy waits for an upload", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			s.step(by, policy("replace", 1), 0)
			s.step(by, demo("d1"), 1)
			// What comes after the policy does not overtake it.
			errs := s.race(by, nth(3), policy("never", 2), replacing(demo("d2"), 1))
			if errs[0] != nil || errs[1] != nil {
				t.Fatal(errs)
			}
			wantConflict(t, errs[2], 1)
			s.step(by, policy("never", 2), 3)
			s.grown(5)
		}},
		{"the same and another digest in flight", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			errs := s.race(by, demo("d1"), demo("d1"), demo("d2"), demo("d1"), demo("d2"))
			if errs[0] != nil || errs[1] != nil || errs[3] != nil {
				t.Fatal(errs)
			}
			wantConflict(t, errs[2], 0)
			wantConflict(t, errs[4], 0)
			s.grown(2)
			s.step(by, demo("d1"), 0)
		}},
		{"a status waits for its upload", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			wrong := about(entry.KindYank, 2)
			wrong.Version = "2.0"
			errs := s.race(by, demo("d1"), about(entry.KindYank, 1), wrong, reject(demo("d2"), 3))
			if errs[0] != nil || errs[1] != nil {
				t.Fatal(errs)
			}
			wantPrecondition(t, errs[2], "version")
			wantPrecondition(t, errs[3], "sha256")
			s.step(r.all(entry.ClaimObserved), about(entry.KindUnyank, 1), 2)
			// Of a file, and one that has it alone.
			for i, kind := range []entry.Kind{entry.KindQuarantine, entry.KindRemove} {
				up := upload("demo", fmt.Sprintf("demo-1.0-%d.tar.gz", i), "e1")
				right, other := about(kind, 10+i), about(kind, 20+i)
				right.File, right.SHA256 = up.File, up.SHA256
				other.File, other.SHA256 = up.File, demo("e2").SHA256
				errs := s.race(by, up, right, other)
				if errs[0] != nil || errs[1] != nil {
					t.Fatal(errs)
				}
				wantPrecondition(t, errs[2], "sha256")
			}
			s.grown(7)
		}},
		{"a status waits for a baseline", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			base := plainEntry(entry.KindBaseline, 9000)
			base.Count, base.SHA256 = entry.Uint(3), demo("d1").SHA256
			errs := s.race(by, base, about(entry.KindYank, 1))
			if errs[0] != nil || errs[1] != nil {
				t.Fatal(errs)
			}
			s.grown(2)
		}},
		{"a dispute waits for its entry", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			dispute := func(index uint64, n int) *entry.Entry {
				e := plainEntry(entry.KindDispute, n)
				e.Ecosystem, e.Index = "", entry.Uint(index)
				e.Registry, e.Claim = testRegistry, entry.ClaimIndex
				if e.Validate() != nil {
					e.Ecosystem = entry.PyPI
				}
				return e
			}
			s.step(by, demo("d1"), 0)
			errs := s.race(by, nth(1), dispute(1, 1), dispute(7, 2))
			if errs[0] != nil || errs[1] != nil {
				t.Fatal(errs)
			}
			wantPrecondition(t, errs[2], "index")
		}},
		{"one id for two entries in flight", func(t *testing.T, r *rig, s stage) {
			by := r.all(entry.ClaimIndex)
			s.step(by, demo("d1"), 0)
			yank, other := plainEntry(entry.KindYank, 9), plainEntry(entry.KindUnyank, 9)
			yank.Project, yank.Version, other.Project, other.Version = "demo", "1.0", "demo", "1.0"
			errs := s.race(by, yank, other, yank)
			if errs[0] != nil || errs[2] != nil {
				t.Fatal(errs)
			}
			wantConflict(t, errs[1], 1)
			s.step(by, yank, 1)
		}},
	}
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			r := newRig(t, 1, 1)
			e := embeddedStage{r, r.ready()}
			sc.play(t, r, e)
			sr := newSharedRig(t, 1, 1)
			s := &sharedStage{r: sr, frontends: []*Log{sr.ready(), sr.ready(frontendOnly)}}
			sc.play(t, sr.rig, s)
			embedded, shared := e.rows(), s.rows()
			if embedded != shared {
				t.Errorf("rows of the embedded log:\n%s\nrows of the shared log:\n%s", embedded, shared)
			}
		})
	}
}

func playStory(t *testing.T, r *rig, s stage) {
	index, observed := r.all(entry.ClaimIndex), r.all(entry.ClaimObserved)
	a, b := upload("demo", "demo-1.0.tar.gz", "a"), upload("demo", "demo-1.0.tar.gz", "b")
	s.step(index, a, 0)
	s.step(index, a, 0)
	s.step(observed, b, 1)
	s.step(index, b, conflictWith(0))
	s.grown(3)
	s.step(index, reject(b, 1), PreconditionError{Field: "sha256"})
	s.step(index, reject(upload("demo", "none-1.tar.gz", "x"), 2), PreconditionError{Field: "file"})
	s.step(index, reject(a, 3), 3)
	s.step(index, reject(a, 3), 3)
	s.step(index, b, 4)
	s.step(index, reject(a, 3), 3)
	s.step(index, a, conflictWith(4))
	s.grown(6)
	s.step(index, policy("replace", 4), 6)
	again := policy("replace", 4)
	again.Time = "2027-01-01T00:00:00Z"
	s.step(index, again, 6)
	s.step(index, policy("never", 4), conflictWith(6))
	c := upload("demo", "demo-1.0.tar.gz", "c")
	s.step(index, c, conflictWith(4))
	s.grown(8)
	c.Replaces = entry.Uint(0)
	s.step(index, c, conflictWith(4))
	c.Replaces = entry.Uint(4)
	s.step(index, c, 8)
	fresh := upload("demo", "demo-2.0.tar.gz", "c")
	fresh.Replaces = entry.Uint(8)
	s.step(index, fresh, PreconditionError{Field: "replaces"})
	d := upload("demo", "demo-1.0.tar.gz", "d")
	s.step(observed, d, conflictWith(1))
	s.grown(10)
	s.step(index, policy("after-remove", 5), 10)
	d.Replaces = entry.Uint(8)
	s.step(index, d, conflictWith(8))
	s.grown(12)
	s.step(index, remove(c, 6), 12)
	d.Replaces = nil
	s.step(index, d, 13)
	s.step(index, c, conflictWith(13))
	s.grown(14)
	dispute := plainEntry(entry.KindDispute, 7)
	dispute.Ecosystem, dispute.Index = "", entry.Uint(4000)
	if dispute.Registry, dispute.Claim = testRegistry, entry.ClaimIndex; dispute.Validate() != nil {
		dispute.Ecosystem = entry.PyPI
	}
	s.step(index, dispute, PreconditionError{Field: "index"})
	dispute.Index = entry.Uint(0)
	s.step(index, dispute, 14)
	foreign := index
	foreign.Registry = "other.example"
	dispute.Registry, dispute.ID = "other.example", id(8)
	s.step(foreign, dispute, PreconditionError{Field: "index"})
}

// npm is an upload of which the index tells one digest or both.
func npm(content string, with256, with512 bool) *entry.Entry {
	e := upload("left-pad", "left-pad-1.0.0.tgz", content)
	e.Ecosystem, e.Version = entry.NPM, "1.0.0"
	sum := sha512.Sum512([]byte(content))
	if with512 {
		e.SHA512 = hex.EncodeToString(sum[:])
	}
	if !with256 {
		e.SHA256 = ""
	}
	return e
}

// about is a status of demo's release 1.0.
func about(kind entry.Kind, n int) *entry.Entry {
	e := plainEntry(kind, n)
	e.Project, e.Version = "demo", "1.0"
	return e
}

// TestSharedStatusWaits as long as its caller does, and for what was in flight
// when it came, not for what comes later.
func TestSharedStatusWaits(t *testing.T) {
	r := newSharedRig(t, 0, 0)
	a, b := r.ready(), r.ready(frontendOnly)
	by := r.all(entry.ClaimIndex)
	s := &sharedStage{r: r}
	queue := func(l *Log, e *entry.Entry) *ticket {
		t.Helper()
		ticket, err := l.queue(t.Context(), by, e)
		if err != nil {
			t.Fatal(err)
		}
		return ticket
	}
	reserved := func(n int) {
		t.Helper()
		waitFor(t, fmt.Sprint(n, " to be reserved"), func() bool { return s.reserved() == n })
	}
	r.engine.hold(true)
	first := queue(a, demo("d1"))
	reserved(1)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if ack, err := b.Submit(ctx, by, about(entry.KindYank, 1), Sequenced); !errors.Is(err, ErrNotPublished) {
		t.Errorf("a status whose upload does not arrive: %v, %v", ack, err)
	}
	left := queue(b, about(entry.KindYank, 1))
	left.abandon()
	<-left.group.done
	if err := left.subs[0].err; !errors.Is(err, ErrNotPublished) {
		t.Errorf("a status that nobody waits for any more: %v", err)
	}
	wrong := about(entry.KindYank, 2)
	wrong.Version = "2.0"
	waiting := queue(b, wrong)
	held := queue(b, about(entry.KindYank, 3))
	time.Sleep(5 * heldPause) // b has looked at them
	select {
	case <-waiting.group.done:
		t.Error("decided while what it may need is in flight")
	default:
	}
	r.engine.mu.Lock()
	r.engine.lose = true // for the next upload of the project, again and again
	r.engine.mu.Unlock()
	later := queue(a, upload("demo", "demo-2.0.tar.gz", "later"))
	reserved(2)
	r.engine.hold(false)
	if ack, err := first.one(t.Context(), Sequenced); err != nil || ack.Index != 0 {
		t.Errorf("%v, %v", ack, err)
	}
	_, err := waiting.one(t.Context(), Sequenced)
	wantPrecondition(t, err, "version")
	waitFor(t, "the other status to be reserved", func() bool { return s.reserved() == 2 }) // it and the upload
	r.engine.mu.Lock()
	r.engine.lose = false
	r.engine.mu.Unlock()
	rows, err := r.pool().Query(t.Context(), "SELECT id, leaf FROM submissions WHERE idx IS NULL ORDER BY at") // as the sweep would
	if err != nil {
		t.Fatal(err)
	}
	var id, leaf []byte
	if _, err := pgx.ForEachRow(rows, []any{&id, &leaf}, func() error { return r.engine.Queue(t.Context(), submissionID(id), leaf) }); err != nil {
		t.Fatal(err)
	}
	for i, ticket := range []*ticket{later, held} {
		if ack, err := ticket.one(t.Context(), Sequenced); err != nil || ack.Index != uint64(1+i) {
			t.Error(i, ack, err)
		}
	}
	// What nobody waited for any more was not logged behind its caller's back.
	r.step(a, by, about(entry.KindYank, 1), 3)
}
