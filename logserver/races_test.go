package logserver

// What is decided while something else about the same file is on its way into
// the log. The hooks make each race certain.

import (
	"context"
	"log/slog"
	"sync"
	"testing"

	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera"
	"golang.org/x/mod/sumdb/tlog"
)

// race submits first, and the others once first is decided and not yet handed
// over; the storage engine answers for first only after the sequencer has looked
// at the others. It returns what became of each.
func (r *rig) race(l *Log, by Token, first *entry.Entry, others ...*entry.Entry) []error {
	r.t.Helper()
	looked := make(chan struct{})
	tickets := make([]*ticket, len(others))
	calls := 0
	embedded(l).testDecided = func() { // in the sequencer's goroutine
		if calls++; calls == 1 {
			for i, e := range others {
				var err error
				if tickets[i], err = l.queue(context.Background(), by, e); err != nil {
					r.t.Errorf("%s: %v", e.Kind, err)
				}
			}
		}
		if calls == 2 {
			close(looked)
		}
	}
	write := embedded(l).append
	var once sync.Once
	embedded(l).append = func(ctx context.Context, entries []*tessera.Entry) (uint64, error) {
		once.Do(func() { <-looked })
		return write(ctx, entries)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), l.cfg.MaxWait)
	defer cancel()
	_, err := l.Submit(ctx, by, first, Cosigned)
	errs := []error{err}
	for _, t := range tickets {
		_, err := t.one(ctx, Cosigned)
		errs = append(errs, err)
	}
	return errs
}

func wantPrecondition(t *testing.T, err error, field string) {
	t.Helper()
	if needs, ok := err.(*PreconditionError); !ok || needs.Field != field {
		t.Errorf("%v; want %s refused", err, field)
	}
}

func wantConflict(t *testing.T, err error, first uint64) {
	t.Helper()
	if c, ok := err.(*ConflictError); !ok || c.FirstIndex != first {
		t.Errorf("%v; want a conflict with %d", err, first)
	}
}

func replacing(e *entry.Entry, index uint64) *entry.Entry {
	e.Replaces = entry.Uint(index)
	return e
}

// demo is the one file that these tests are about.
func demo(content string) *entry.Entry { return upload("demo", "demo-1.0.tar.gz", content) }

// TestRejectOfReplacedDigest: a reject of the old digest, submitted while its
// replacement is on the way, does not free the slot of the new one.
func TestRejectOfReplacedDigest(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.step(l, by, policy("replace", 1), 0)
	r.step(l, by, demo("d1"), 1)
	errs := r.race(l, by, replacing(demo("d2"), 1), reject(demo("d1"), 2))
	if errs[0] != nil {
		t.Fatal(errs[0])
	}
	wantPrecondition(t, errs[1], "sha256")
	r.step(l, by, demo("d3"), conflictWith(2))
	r.replayed(l)
}

// TestTwoRejectsInFlight: the second waits for the first, and erases nothing
// that comes after it.
func TestTwoRejectsInFlight(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.step(l, by, demo("d1"), 0)
	errs := r.race(l, by, reject(demo("d1"), 1), reject(demo("d1"), 1), reject(demo("d1"), 2), demo("d2"), reject(demo("d1"), 3))
	if errs[0] != nil || errs[1] != nil || errs[3] != nil {
		t.Fatal(errs)
	}
	wantPrecondition(t, errs[2], "file")
	wantPrecondition(t, errs[4], "sha256")
	r.step(l, by, reject(demo("d1"), 1), 1)
	r.step(l, by, demo("d2"), 2)
	r.step(l, by, demo("d3"), conflictWith(2))
	r.replayed(l)
}

// TestUploadWaitsForReject: the slot is free once the reject stands.
func TestUploadWaitsForReject(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.step(l, by, demo("d1"), 0)
	errs := r.race(l, by, reject(demo("d1"), 1), demo("d1"), demo("d2"), nth(7))
	if errs[0] != nil || errs[1] != nil || errs[3] != nil {
		t.Fatal(errs)
	}
	// The other file did not wait, so d1 came after it; d2 met d1.
	r.step(l, by, nth(7), 2)
	r.step(l, by, demo("d1"), 3)
	wantConflict(t, errs[2], 3)
	r.replayed(l)
}

// TestUploadWaitsForRemove: under after-remove.
func TestUploadWaitsForRemove(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.step(l, by, policy("after-remove", 1), 0)
	r.step(l, by, demo("d1"), 1)
	for i, err := range r.race(l, by, remove(demo("d1"), 2), demo("d2")) {
		if err != nil {
			t.Fatal(i, err)
		}
	}
	r.step(l, by, demo("d2"), 3)
	r.step(l, by, remove(demo("d1"), 3), PreconditionError{Field: "sha256"}) // other bytes than those logged
	r.step(l, by, demo("d3"), conflictWith(3))
	r.replayed(l)
}

// TestUploadWaitsForPolicy: a policy on its way forbids what comes after it,
// and waits for what was allowed before it.
func TestUploadWaitsForPolicy(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.step(l, by, policy("replace", 1), 0)
	r.step(l, by, demo("d1"), 1)
	errs := r.race(l, by, policy("never", 2), replacing(demo("d2"), 1), policy("replace", 3), replacing(demo("d3"), 1))
	if errs[0] != nil || errs[2] != nil || errs[3] != nil {
		t.Fatal(errs)
	}
	wantConflict(t, errs[1], 1)
	r.replayed(l)
}

// TestRejectFreesItsOwnDigestOnly: whatever order the log has, living through
// it and replaying it.
func TestRejectFreesItsOwnDigestOnly(t *testing.T) {
	dir := t.TempDir()
	full := func(e *entry.Entry) *entry.Entry {
		e.Registry, e.Claim = testRegistry, entry.ClaimIndex
		if err := e.Validate(); err != nil {
			t.Fatal(err)
		}
		return e
	}
	var leaves [][]byte
	var hashes []tlog.Hash
	x, err := openIndex(dir, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer x.close()
	rows := indexRows{x}
	slot, _ := full(demo("d1")).Slot()
	for i, row := range []struct {
		e    *entry.Entry
		want int64 // index that holds the slot; -1: it is free
	}{
		{demo("d1"), 0},
		{replacing(demo("d2"), 0), 1},
		{reject(demo("d1"), 1), 1},
		{reject(demo("d1"), 2), 1},
		{reject(demo("d2"), 3), -1},
		{reject(demo("d2"), 4), -1},
		{demo("d3"), 6},
	} {
		leaf, err := full(row.e).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leaf)
		hashes = append(hashes, entry.LeafHash(leaf))
		x.leaves.bundles = map[int64]*bundle{0: {leaves, hashes}} // what the log has
		if err := rows.apply(uint64(i), row.e, nil); err != nil {
			t.Fatal(err)
		}
		got, err := rows.row(slot.Key())
		if err != nil {
			t.Fatal(err)
		}
		if have := got; have == nil && row.want != -1 || have != nil && int64(have.index) != row.want {
			t.Errorf("after entry %d: %+v; want %d", i, have, row.want)
		}
	}
}
