package logserver

// Uniqueness: what one slot is pinned to, whatever happens around it.

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera"
)

// all is a credential for every kind that a claim can log.
func (r *rig) all(claim entry.Claim) Token {
	t := Token{ID: "all-" + string(claim), Registry: testRegistry, Claim: claim}
	for _, k := range entry.Kinds() {
		for _, c := range k.Claims() {
			if c == claim {
				t.Kinds = append(t.Kinds, k)
			}
		}
	}
	return t
}

func id(n int) string { return fmt.Sprintf("%032x", n) }

// plainEntry is an entry of a kind other than upload.
func plainEntry(kind entry.Kind, n int) *entry.Entry {
	return &entry.Entry{Kind: kind, Ecosystem: entry.PyPI, ID: id(n), Time: "2026-11-21T05:00:00Z"}
}

func reject(e *entry.Entry, n int) *entry.Entry {
	x := plainEntry(entry.KindReject, n)
	x.Project, x.File, x.SHA256 = e.Project, e.File, e.SHA256
	return x
}

func remove(e *entry.Entry, n int) *entry.Entry {
	x := plainEntry(entry.KindRemove, n)
	x.Project, x.Version, x.File, x.SHA256 = e.Project, e.Version, e.File, e.SHA256
	return x
}

func policy(overwrite string, n int) *entry.Entry {
	x := plainEntry(entry.KindRegistryPolicy, n)
	x.Overwrite = overwrite
	return x
}

// step submits e as by and checks the index, or that it is refused.
func (r *rig) step(l *Log, by Token, e *entry.Entry, want any) {
	r.t.Helper()
	ack, err := l.Submit(context.Background(), by, e, Cosigned)
	var conflict *ConflictError
	var needs *PreconditionError
	switch want := want.(type) {
	case int:
		if err != nil || ack.Index != uint64(want) {
			r.t.Fatalf("%s %s: %v, %v; want index %d", e.Kind, e.File, ack, err, want)
		}
		r.check(ack)
	case ConflictError:
		if !errors.As(err, &conflict) || conflict.FirstIndex != want.FirstIndex {
			r.t.Fatalf("%s %s: %v, %v; want a conflict with %d", e.Kind, e.File, ack, err, want.FirstIndex)
		}
	case PreconditionError:
		if !errors.As(err, &needs) || needs.Field != want.Field {
			r.t.Fatalf("%s %s: %v, %v; want %s refused", e.Kind, e.File, ack, err, want.Field)
		}
	}
}

func conflictWith(n uint64) ConflictError { return ConflictError{FirstIndex: n} }

// postings is all that the index on disk says.
func postings(t testing.TB, dir string) string {
	t.Helper()
	x, err := openIndex(filepath.Join(dir, indexDir), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer x.close()
	var out strings.Builder
	fmt.Fprintln(&out, "size", x.size())
	if err := mergePostings(x.runs, 0, func(key, rel uint64) bool {
		fmt.Fprintf(&out, "%012x %d\n", key, rel)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// rows is what uniqueness goes by, as the index of a closed log has it: as the
// rows of a shared log's database.
func rows(t testing.TB, dir string) string {
	t.Helper()
	x, err := readIndex(filepath.Join(dir, indexDir))
	if err != nil {
		t.Fatal(err)
	}
	defer x.closeRuns()
	x.tree = func(size int64) tree {
		return tree{context.Background(), directory(filepath.Join(dir, engineDir)), size, nil}
	}
	x.readUpTo(func() (uint64, error) { return x.size(), nil })
	view := indexRows{x}
	slots, policies := map[string]bool{}, map[string]bool{}
	for i := range x.size() {
		e, err := x.entryAt(int64(i))
		if err != nil {
			t.Fatal(err)
		}
		key, _, err := slotKey(e)
		if err != nil {
			t.Fatal(err)
		}
		r, err := view.row(key)
		if err != nil {
			t.Fatal(err)
		}
		if r != nil {
			removed := map[bool]int{true: 1}[r.removed]
			slots[fmt.Sprintf("%X %X %d %d\n", key, r.digest, r.index, removed)] = true
		}
		if e.Kind == entry.KindRegistryPolicy {
			overwrite, err := view.overwrite(e.Registry, e.Ecosystem)
			if err != nil {
				t.Fatal(err)
			}
			policies[fmt.Sprintf("%s %s %s\n", e.Registry, e.Ecosystem, overwrite)] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(slots)), "") + strings.Join(slices.Sorted(maps.Keys(policies)), "") + fmt.Sprintf("tail %d\n", x.size())
}

// replayed checks that the index rebuilt from the tiles is the same.
func (r *rig) replayed(l *Log) {
	r.t.Helper()
	l.Close()
	r.audited()
	lived := postings(r.t, r.dir)
	removeIndex(r.t, r.dir, indexDir)
	r.ready().Close()
	if again := postings(r.t, r.dir); again != lived {
		r.t.Errorf("lived through:\n%s\nreplayed:\n%s", lived, again)
	}
}

// TestUniquenessStory walks through what can happen to a slot, then replays it.
func TestUniquenessStory(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	index, observed := r.all(entry.ClaimIndex), r.all(entry.ClaimObserved)
	a, b := upload("demo", "demo-1.0.tar.gz", "a"), upload("demo", "demo-1.0.tar.gz", "b")
	r.step(l, index, a, 0)
	r.step(l, index, a, 0)
	r.step(l, observed, b, 1) // observed never blocks index, nor the other way
	r.step(l, index, b, conflictWith(0))
	waitFor(t, "the conflict entry", func() bool { return l.Published().Size == 3 })

	// Rejects: only what is logged, by its digest; it frees the slot.
	r.step(l, index, reject(b, 1), PreconditionError{Field: "sha256"})
	r.step(l, index, reject(upload("demo", "none-1.tar.gz", "x"), 2), PreconditionError{Field: "file"})
	r.step(l, index, reject(a, 3), 3)
	r.step(l, index, reject(a, 3), 3) // again: the id decides
	r.step(l, index, b, 4)
	r.step(l, index, reject(a, 3), 3)
	r.step(l, index, a, conflictWith(4))
	waitFor(t, "the second conflict entry", func() bool { return l.Published().Size == 6 })

	// An id names one entry for ever.
	r.step(l, index, policy("replace", 4), 6)
	again := policy("replace", 4)
	again.Time = "2027-01-01T00:00:00Z"
	r.step(l, index, again, 6)
	r.step(l, index, policy("never", 4), conflictWith(6))

	// Replacing, as the logged policy allows, and no further.
	c := upload("demo", "demo-1.0.tar.gz", "c")
	r.step(l, index, c, conflictWith(4)) // without naming what it replaces
	waitFor(t, "the third conflict entry", func() bool { return l.Published().Size == 8 })
	c.Replaces = entry.Uint(0)
	r.step(l, index, c, conflictWith(4)) // recorded already
	c.Replaces = entry.Uint(4)
	r.step(l, index, c, 8)
	fresh := upload("demo", "demo-2.0.tar.gz", "c")
	fresh.Replaces = entry.Uint(8)
	r.step(l, index, fresh, PreconditionError{Field: "replaces"})
	d := upload("demo", "demo-1.0.tar.gz", "d")
	r.step(l, observed, d, conflictWith(1)) // an observer replaces nothing
	waitFor(t, "its conflict entry", func() bool { return l.Published().Size == 10 })

	r.step(l, index, policy("after-remove", 5), 10)
	d.Replaces = entry.Uint(8)
	r.step(l, index, d, conflictWith(8)) // not removed
	waitFor(t, "the fifth conflict entry", func() bool { return l.Published().Size == 12 })
	r.step(l, index, remove(c, 6), 12)
	d.Replaces = nil
	r.step(l, index, d, 13)
	r.step(l, index, c, conflictWith(13)) // the removal is used up
	waitFor(t, "the sixth", func() bool { return l.Published().Size >= 14 })

	// Disputes name an entry of this registry.
	dispute := plainEntry(entry.KindDispute, 7)
	dispute.Ecosystem, dispute.Index = "", entry.Uint(4000)
	if dispute.Registry, dispute.Claim = testRegistry, entry.ClaimIndex; dispute.Validate() != nil {
		dispute.Ecosystem = entry.PyPI
	}
	r.step(l, index, dispute, PreconditionError{Field: "index"})
	dispute.Index = entry.Uint(0)
	size := int(l.Published().Size)
	r.step(l, index, dispute, size)
	foreign := index
	foreign.Registry = "other.example"
	dispute.Registry, dispute.ID = "other.example", id(8)
	r.step(l, foreign, dispute, PreconditionError{Field: "index"})
	r.replayed(l)
}

// TestNpmDigests: observed entries may carry sha512 alone.
func TestNpmDigests(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	by := r.all(entry.ClaimObserved)
	npm := func(content string, with256, with512 bool) *entry.Entry {
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
	r.step(l, by, npm("a", false, true), 0)
	r.step(l, by, npm("a", true, true), 0)
	r.step(l, by, npm("a", true, false), PreconditionError{Field: "sha512"}) // cannot be compared
	r.step(l, by, npm("b", true, false), PreconditionError{Field: "sha512"})
	r.step(l, by, npm("b", false, true), conflictWith(0))
	waitFor(t, "the conflict entry", func() bool { return l.Published().Size == 2 })
	half := npm("a", true, true)
	half.SHA512 = npm("b", true, true).SHA512
	r.step(l, by, half, conflictWith(0))
	waitFor(t, "its conflict entry", func() bool { return l.Published().Size == 3 })
	r.replayed(l)
}

// TestRaceForOneSlot: writers with different bytes; one wins, the others are
// told its index, and each refused digest is recorded once.
func TestRaceForOneSlot(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	const writers = 8
	for round := range 10 {
		var mu sync.Mutex
		won, firsts := map[uint64]int{}, map[uint64]int{}
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				e := upload("race", fmt.Sprintf("race-%d.tar.gz", round), fmt.Sprint(w/2)) // two writers for each digest
				ack, err := r.submit(l, e)
				var c *ConflictError
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won[ack.Index]++
					if !strings.Contains(string(ack.Proof.Extra), e.SHA256) {
						t.Error("acknowledged other bytes")
					}
				case errors.As(err, &c):
					firsts[c.FirstIndex]++
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 || len(firsts) != 1 {
			t.Fatalf("round %d: winners %v, losers were told %v", round, won, firsts)
		}
		for index, n := range won {
			if n != 2 || firsts[index] != writers-2 {
				t.Errorf("round %d: index %d acknowledged %d times, named %d times", round, index, n, firsts[index])
			}
		}
	}
	waitFor(t, "the conflict entries", func() bool {
		l.seq.submit(t.Context(), []*submission{nopSubmission(t)})
		return l.Published().Size >= 20
	})
	l.Close()
	seen := map[string]int{}
	size := int64(l.Published().Size)
	err := l.freshTree(size).each(0, func(_ int64, leaf []byte) error {
		e, err := entry.Parse(leaf)
		if err == nil && e.Kind == entry.KindConflict {
			seen[e.File+" "+e.SHA256]++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for what, n := range seen {
		if n != 1 {
			t.Errorf("%d conflict entries for %s", n, what)
		}
	}
	if len(seen) == 0 || len(seen) > 10 {
		t.Errorf("%d conflict entries; at most 10 at once are credited for a project", len(seen))
	}
}

// nopSubmission is an entry of the log itself.
func nopSubmission(t testing.TB) *submission {
	t.Helper()
	s, err := newSubmission(&entry.Entry{Kind: entry.KindCanary, Claim: entry.ClaimLog, ID: id(1), Time: "2026-11-21T05:00:00Z"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestConflictEntriesAreBounded: a token cannot fill the log with them.
func TestConflictEntriesAreBounded(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	r.must(l, upload("demo", "demo-1.0.tar.gz", "good"))
	for n := range 40 {
		r.step(l, r.token, upload("demo", "demo-1.0.tar.gz", fmt.Sprint("evil", n)), conflictWith(0))
	}
	r.must(l, nth(1))
	r.must(l, nth(2))
	if size := l.Published().Size; size > 3+11 {
		t.Errorf("40 refusals made %d conflict entries", size-3)
	}
	// Who has no right to the slot causes none.
	if _, err := l.Submit(t.Context(), Token{ID: "x", Registry: "other.example", Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}},
		func() *entry.Entry {
			e := upload("demo", "demo-1.0.tar.gz", "foreign")
			e.Registry = testRegistry
			return e
		}(), Cosigned); err == nil {
		t.Error("another registry's token logged a file")
	}
}

// crashed is the log as a crash at the moment of backup would have left it. Its
// anchor and witnesses are those of later; so it has no witnesses.
func (r *rig) crashed(backup, anchor string) *rig {
	r.t.Helper()
	r.restore(backup)
	r2 := *r
	if err := writeDurably(r.anchor, []byte(anchor), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r2.policy = "quorum none\n"
	return &r2
}

// TestCrashBeforeAdd: what was decided and not handed over is forgotten, and its
// slot is free again.
func TestCrashBeforeAdd(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	r.must(l, nth(0))
	backup := filepath.Join(t.TempDir(), "log")
	var once sync.Once
	l.seq.(*sequencer).testDecided = func() { once.Do(func() { copyDir(t, r.dir, backup) }) }
	anchor := readFile(t, r.anchor)
	r.must(l, upload("demo", "demo-1.0.tar.gz", "lost"))
	l.Close()
	r2 := r.crashed(backup, anchor)
	l = r2.ready()
	ack, err := r2.submit(l, upload("demo", "demo-1.0.tar.gz", "other bytes"))
	if err != nil || ack.Index != 1 {
		t.Errorf("the slot was not freed: %v, %v", ack, err)
	}
	r2.replayed(l)
}

// TestCrashAfterAdd: what the storage engine has taken, and nobody was told, is
// found again: its slot is taken, and the same submission gets its index.
func TestCrashAfterAdd(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	r.must(l, nth(0))
	backup := filepath.Join(t.TempDir(), "log")
	var once sync.Once
	seq := l.seq.(*sequencer)
	who := seq.indexed
	seq.indexed = func(subs []*submission) {
		who(subs)
		if len(subs) != 1 || subs[0].by != r.token.ID || subs[0].index != 1 {
			t.Errorf("the hook was called with %+v", subs[0])
		}
		if subs[0].decided {
			t.Error("the hook was called after the submitter was told")
		}
		once.Do(func() { copyDir(t, r.dir, backup) })
	}
	anchor := readFile(t, r.anchor)
	r.must(l, upload("demo", "demo-1.0.tar.gz", "taken"))
	l.Close()
	r2 := r.crashed(backup, anchor)
	l = r2.ready()
	r2.step(l, r2.token, upload("demo", "demo-1.0.tar.gz", "other bytes"), conflictWith(1))
	r2.step(l, r2.token, upload("demo", "demo-1.0.tar.gz", "taken"), 1)
	r2.replayed(l)
}

// TestFailedWritesAreRecovered injects failures of the storage engine: before
// the write, and after it.
func TestFailedWritesAreRecovered(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.ready()
	r.must(l, nth(0))
	fault := errors.New("disk on fire")
	var mu sync.Mutex
	n := 0
	write := embedded(l).append
	embedded(l).append = func(ctx context.Context, entries []*tessera.Entry) (uint64, error) { // the sequencer is idle
		n++ // one goroutine calls
		switch n % 5 {
		case 1: // never written
			return 0, fault
		case 2: // written, and reported as failed
			_, err := write(ctx, entries)
			return 0, errors.Join(err, fault)
		case 3: // half of it written
			_, err := write(ctx, entries[:len(entries)/2])
			return 0, errors.Join(err, fault)
		}
		return write(ctx, entries)
	}
	acks := map[int]uint64{}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 15 {
				k := 1 + w*15 + i
				for try := 0; ; try++ {
					ack, err := r.submit(l, nth(k))
					if err == nil {
						mu.Lock()
						acks[k] = ack.Index
						mu.Unlock()
						r.check(ack)
						break
					}
					if !errors.Is(err, ErrStorage) || try > 200 {
						t.Errorf("entry %d: %v", k, err)
						return
					}
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	byIndex := map[uint64]int{}
	for k, index := range acks {
		if other, twice := byIndex[index]; twice {
			t.Errorf("index %d for entries %d and %d", index, k, other)
		}
		byIndex[index] = k
		if again := r.must(l, nth(k)); again.Index != index {
			t.Errorf("entry %d moved from %d to %d", k, index, again.Index)
		}
	}
	if len(acks) != 120 {
		t.Errorf("%d of 120 acknowledged", len(acks))
	}
	if s := l.Status(); !s.Writable {
		t.Errorf("after recovery: %v", s.Reason)
	}
	r.replayed(l)
}

// receipt submits e for a receipt.
func receipt(r *rig, l *Log, e *entry.Entry) (*Ack, error) {
	return l.Submit(r.t.Context(), r.token, e, Sequenced)
}

// TestEngineOut: while the engine writes nothing, receipts stand, nothing more
// is taken, and what has its index is in the log once the engine is back.
func TestEngineOut(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	r.must(l, nth(0))
	fault := errors.New("disk on fire")
	var broken atomic.Bool
	write, size := embedded(l).append, embedded(l).size
	embedded(l).append = func(ctx context.Context, entries []*tessera.Entry) (uint64, error) { // the sequencer is idle
		first, err := write(ctx, entries)
		if broken.Load() {
			return 0, errors.Join(err, fault)
		}
		return first, err
	}
	embedded(l).size = func(ctx context.Context) (uint64, error) {
		if broken.Load() {
			return 0, fault
		}
		return size(ctx)
	}
	broken.Store(true)
	if ack, err := receipt(r, l, nth(1)); err != nil || ack.Index != 1 {
		t.Fatalf("a receipt before anybody knew: %v, %v", ack, err)
	}
	waitFor(t, "the log to know", func() bool { return embedded(l).stuck.Load() != nil })
	if err := l.Ready(); !errors.Is(err, ErrStorage) {
		t.Errorf("ready: %v", err)
	}
	if n := l.journal.Load().waiting(); n != 1 {
		t.Errorf("%d entries wait in the journal", n)
	}
	other := nth(1)
	other.SHA256 = nth(2).SHA256
	for until := time.Now().Add(300 * time.Millisecond); time.Now().Before(until); {
		for _, e := range []*entry.Entry{other, nth(1), nth(0)} {
			if ack, err := receipt(r, l, e); !errors.Is(err, ErrStorage) {
				t.Fatalf("while the engine is out: %v, %v", ack, err)
			}
		}
	}
	broken.Store(false)
	var conflict *ConflictError
	waitFor(t, "the engine to be back", func() bool { _, err := r.submit(l, other); return errors.As(err, &conflict) })
	if ack := r.must(l, nth(1)); conflict.FirstIndex != 1 || ack.Index != 1 {
		t.Errorf("conflict with %d; the entry is %d", conflict.FirstIndex, ack.Index)
	}
	r.replayed(l)
}

// TestRecoverMissesATakenEntry: an entry that the engine said it has, and that is
// not in the log when the index is made anew, means that the log went back.
func TestRecoverMissesATakenEntry(t *testing.T) {
	q := newSequencer()
	q.size = func(context.Context) (uint64, error) { return 3, nil }
	q.top = 4
	if err := q.recover(t.Context()); !errors.Is(err, ErrBehind) {
		t.Errorf("%v", err)
	}
}

// TestFailingIndex: the index cannot be written for a while. Entries are taken
// until so much waits that memory would not be bounded.
func TestFailingIndex(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	var broken atomic.Bool
	broken.Store(true)
	l.lookup.flush = 2
	l.lookup.testWrite = func() error {
		if broken.Load() {
			return errors.New("disk full")
		}
		return nil
	}
	logged := 0
	for n := range 40 {
		if _, err := r.submit(l, nth(n)); err == nil {
			logged++
		} else if !errors.Is(err, ErrStorage) {
			t.Fatal(err)
		}
	}
	if logged < frozenMax*2 || logged > frozenMax*2+4 {
		t.Errorf("%d entries were taken while the index could not be written", logged)
	}
	broken.Store(false)
	waitFor(t, "writes again", func() bool { _, err := r.submit(l, nth(39)); return err == nil })
	for n := range 40 {
		if ack := r.must(l, nth(n)); n < logged && ack.Index != uint64(n) {
			t.Errorf("entry %d moved to index %d", n, ack.Index)
		}
	}
	r.replayed(l)
}
