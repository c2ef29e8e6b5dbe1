package logserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera"
)

const journalOrigin = "log.example/journal"

// journalRig is a journal in a directory, and what it should have.
type journalRig struct {
	*testing.T
	dir  string
	j    *journal
	want []journaled
}

func newJournalRig(t *testing.T, next uint64) *journalRig {
	r := &journalRig{T: t, dir: filepath.Join(t.TempDir(), journalDir)}
	var err error
	if r.j, err = openJournal(r.dir, journalOrigin, nil, next); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.j.close() })
	return r
}

// submissions are n entries, no two of which are alike.
func (r *journalRig) submissions(n int) (subs []*submission) {
	for range n {
		k := len(r.want) + len(subs)
		subs = append(subs, &submission{by: fmt.Sprintf("credential%d", k%3), leaf: fmt.Appendf(nil, "leaf %d %s", k, strings.Repeat("x", k%50))})
	}
	return subs
}

func (r *journalRig) append(n int) {
	r.Helper()
	subs := r.submissions(n)
	if _, err := r.j.append(subs); err != nil {
		r.Fatal(err)
	}
	for _, s := range subs {
		r.want = append(r.want, journaled{s.by, s.leaf})
	}
}

// has reads the journal: want from index first on.
func (r *journalRig) has(first uint64, want []journaled) []segment {
	r.Helper()
	at, entries, segments, err := readJournal(r.dir, journalOrigin)
	if err != nil {
		r.Fatal(err)
	}
	if at != first || len(entries) != len(want) {
		r.Fatalf("%d entries from %d on; want %d from %d on", len(entries), at, len(want), first)
	}
	for i, e := range entries {
		if e.by != want[i].by || !bytes.Equal(e.leaf, want[i].leaf) {
			r.Fatalf("entry %d is %q of %q, want %q of %q", first+uint64(i), e.leaf, e.by, want[i].leaf, want[i].by)
		}
	}
	return segments
}

func (r *journalRig) damaged(what string) {
	r.Helper()
	var damage *journalDamage
	if _, _, _, err := readJournal(r.dir, journalOrigin); !errors.As(err, &damage) || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "receipts") {
		r.Errorf("%v; want damage: %s", err, what)
	}
}

// newest is the newest segment's file.
func (r *journalRig) newest() string {
	names, err := os.ReadDir(r.dir)
	if err != nil || len(names) == 0 {
		r.Fatal(names, err)
	}
	return filepath.Join(r.dir, names[len(names)-1].Name())
}

func TestJournal(t *testing.T) {
	if first, entries, segments, err := readJournal(filepath.Join(t.TempDir(), "none"), journalOrigin); err != nil || first != 0 || len(entries)+len(segments) > 0 {
		t.Errorf("no journal: %d, %v, %v, %v", first, entries, segments, err)
	}
	r := newJournalRig(t, 7)
	r.has(7, nil)
	for n := range 40 {
		r.append(n + 1)
	}
	r.has(7, r.want)
	if r.j.end() != 7+uint64(len(r.want)) || r.j.waiting() != uint64(len(r.want)) {
		t.Errorf("it ends at %d, %d wait", r.j.end(), r.j.waiting())
	}
	// Segments are begun behind one another, and removed once they are in the tiles.
	second := len(r.want)
	r.j.written = segmentMax + 1
	r.append(3)
	third := len(r.want)
	r.j.written = segmentMax + 1
	r.append(2)
	if s := r.has(7, r.want); len(s) != 3 {
		t.Fatalf("segments %v", s)
	}
	for _, row := range []struct{ size, first, segments int }{
		{second - 1, 0, 3}, {second, second, 2}, {third - 1, second, 2}, {len(r.want), third, 1},
	} {
		if err := r.j.free(7 + uint64(row.size)); err != nil {
			t.Fatal(err)
		}
		if s := r.has(7+uint64(row.first), r.want[row.first:]); len(s) != row.segments {
			t.Errorf("at size %d: segments %v", row.size, s)
		}
	}
	if r.j.waiting() > 0 {
		t.Error("all is in the tiles")
	}
	// Opened again, it begins behind what is in the tiles.
	r.j.f.Close()
	j, err := openJournal(r.dir, journalOrigin, r.has(7+uint64(third), r.want[third:]), 7+uint64(len(r.want)))
	if err != nil {
		t.Fatal(err)
	}
	r.j, r.want = j, nil
	first := j.next
	r.append(1)
	if s := r.has(first, r.want); len(s) != 1 {
		t.Errorf("segments %v", s)
	}
}

// TestJournalTorn: a crash at each byte of the last write leaves what was
// written before; nobody was told of the rest.
func TestJournalTorn(t *testing.T) {
	r := newJournalRig(t, 0)
	r.append(2)
	before := r.want
	from := r.j.written
	r.append(2)
	whole := readFile(t, r.newest())
	for _, zeros := range []int{0, segmentStep} { // the file's length reached the disk, or did not
		for at := from; at < r.j.written; at++ {
			torn := append([]byte(whole[:at]), make([]byte, zeros)...)
			if err := os.WriteFile(r.newest(), torn, 0o600); err != nil {
				t.Fatal(err)
			}
			r.has(0, before)
		}
	}
	// A segment whose beginning is torn has nothing.
	if err := os.WriteFile(r.newest(), []byte(whole), 0o600); err != nil {
		t.Fatal(err)
	}
	r.j.f = nil
	if err := r.j.begin(); err != nil {
		t.Fatal(err)
	}
	head := readFile(t, r.newest())
	for at := range 20 {
		if err := os.WriteFile(r.newest(), []byte(head[:at]), 0o600); err != nil {
			t.Fatal(err)
		}
		if s := r.has(0, r.want); len(s) != 2 {
			t.Errorf("segments %v", s)
		}
	}
}

// TestJournalFailedWrite: what was being written when a write failed has no
// index, whatever of it is on the disk; the next segment stands in its place.
func TestJournalFailedWrite(t *testing.T) {
	r := newJournalRig(t, 0)
	r.append(3)
	r.j.testSync = func() error { return errors.New("disk on fire") }
	if _, err := r.j.append(r.submissions(5)); !errors.Is(err, ErrStorage) || strings.Contains(err.Error(), r.dir) {
		t.Fatalf("a failed write: %v", err)
	}
	if r.j.end() != 3 {
		t.Errorf("it ends at %d", r.j.end())
	}
	if _, entries, _, err := readJournal(r.dir, journalOrigin); err != nil || len(entries) != 8 {
		t.Errorf("the disk has %d entries, %v", len(entries), err)
	}
	r.j.testSync = nil
	r.want = append(r.want, journaled{}) // so that the next entry is another one than what failed
	subs := r.submissions(1)
	r.want = r.want[:3]
	if first, err := r.j.append(subs); err != nil || first != 3 {
		t.Fatal(first, err)
	}
	r.has(0, append(r.want, journaled{subs[0].by, subs[0].leaf}))

	// As long as no segment can be begun, nothing is taken and nothing is left over.
	r.j.f.Close()
	r.j.f = nil
	aside := r.dir + ".aside"
	if err := os.Rename(r.dir, aside); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := r.j.append(subs); !errors.Is(err, ErrStorage) {
			t.Error(err)
		}
	}
	if err := os.Rename(aside, r.dir); err != nil {
		t.Fatal(err)
	}
	if first, err := r.j.append(subs); err != nil || first != 4 {
		t.Error(first, err)
	}
}

func TestJournalDamage(t *testing.T) {
	r := newJournalRig(t, 5)
	r.append(2)
	r.append(2)
	r.append(2)
	path := r.newest()
	whole := readFile(t, path)
	last := strings.LastIndex(whole[:r.j.written], string(entriesMark)+"\x09") - frameHead // the frame of entries 9 and 10
	for at := range int(r.j.written) {
		flipped := []byte(whole)
		flipped[at] ^= 0x10
		if err := os.WriteFile(path, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		if at < last {
			r.damaged("")
		} else {
			r.has(5, r.want[:4]) // as if it was torn
		}
	}
	if err := os.WriteFile(path, []byte(whole), 0o600); err != nil {
		t.Fatal(err)
	}
	var damage *journalDamage
	if _, _, _, err := readJournal(r.dir, "log.example/other"); !errors.As(err, &damage) || !strings.Contains(err.Error(), "of the log") {
		t.Errorf("another log's: %v", err)
	}
	// What follows one another must.
	for what, change := range map[string]func(){
		"no file of a journal": func() { os.WriteFile(filepath.Join(r.dir, "notes"), nil, 0o600) },
		"begins at entry 4":    func() { r.j.f, r.j.next = nil, 4; r.j.begin() },
		"where 11 should":      func() { r.j.f, r.j.next = nil, 11; r.j.begin(); r.j.next = 13; r.j.append(r.submissions(1)) },
		"of version":           func() { os.WriteFile(path, frame(nil, []byte{journalMark, 2, 0}), 0o600) },
		"with a head":          func() { os.WriteFile(path, frame(nil, []byte{entriesMark, 5}), 0o600) },
		"known kind": func() {
			os.WriteFile(path, frame([]byte(whole[:frameHead+3+len(journalOrigin)]), []byte{'?', 5}), 0o600)
		},
		"length it says": func() {
			os.WriteFile(path, frame([]byte(whole[:frameHead+3+len(journalOrigin)]), []byte{entriesMark, 5, 1, 'a', 200, 'b'}), 0o600)
		},
	} {
		aside := filepath.Join(t.TempDir(), "aside")
		copyDir(t, r.dir, aside)
		change()
		r.damaged(what)
		if err := errors.Join(os.RemoveAll(r.dir), os.Rename(aside, r.dir)); err != nil {
			t.Fatal(err)
		}
	}
	r.has(5, r.want)
}

// TestJournalBehindTheTiles: a segment that was begun when the tiles had more
// than the journal stands alone; that they have so much is for who reads it.
func TestJournalBehindTheTiles(t *testing.T) {
	r := newJournalRig(t, 0)
	r.append(3)
	r.j.f, r.j.next = nil, 7
	if err := r.j.begin(); err != nil {
		t.Fatal(err)
	}
	r.has(7, nil)
	subs := r.submissions(1)
	if first, err := r.j.append(subs); err != nil || first != 7 {
		t.Fatal(first, err)
	}
	r.has(7, []journaled{{subs[0].by, subs[0].leaf}})
}

// TestJournalFrames: as many entries as come at once are written, in frames that
// can be read.
func TestJournalFrames(t *testing.T) {
	r := newJournalRig(t, 0)
	var subs []*submission
	for n := range 2000 {
		s := &submission{by: strings.Repeat("b", maxID), leaf: bytes.Repeat([]byte{'a' + byte(n%26)}, entry.MaxSize)}
		subs, r.want = append(subs, s), append(r.want, journaled{s.by, s.leaf})
	}
	if first, err := r.j.append(subs); err != nil || first != 0 {
		t.Fatal(first, err)
	}
	r.append(1)
	r.has(0, r.want)
}

// TestJournalFailsAgainAndAgain leaves no files.
func TestJournalFailsAgainAndAgain(t *testing.T) {
	r := newJournalRig(t, 0)
	r.append(1)
	r.j.testSync = func() error { return errors.New("disk on fire") }
	for range 10 {
		if _, err := r.j.append(r.submissions(1)); !errors.Is(err, ErrStorage) {
			t.Fatal(err)
		}
		if err := r.j.ready(); !errors.Is(err, ErrStorage) {
			t.Fatal(err)
		}
	}
	if files, err := os.ReadDir(r.dir); err != nil || len(files) != 1 {
		t.Errorf("%d files, %v", len(files), err)
	}
	r.j.testSync = nil
	if err := r.j.ready(); err != nil {
		t.Fatal(err)
	}
	r.append(1)
	if err := r.j.free(2); err != nil {
		t.Fatal(err)
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte{})
	dir := filepath.Join(f.TempDir(), "seed")
	j, err := openJournal(dir, journalOrigin, nil, 3)
	if err != nil {
		f.Fatal(err)
	}
	j.append([]*submission{{by: "a", leaf: []byte("leaf")}, {leaf: []byte("other")}})
	raw, err := os.ReadFile(j.f.Name())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw[:j.written])
	f.Add(raw[:j.written-3])
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, segment{number: 1}.name()), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		first, entries, segments, err := readJournal(dir, journalOrigin)
		if err != nil {
			var damage *journalDamage
			if !errors.As(err, &damage) {
				t.Fatal(err)
			}
			return
		}
		// Written anew it reads the same.
		j, err := openJournal(filepath.Join(dir, "again"), journalOrigin, nil, first)
		if err != nil {
			t.Fatal(err)
		}
		defer j.close()
		var subs []*submission
		for _, e := range entries {
			subs = append(subs, &submission{by: e.by, leaf: e.leaf})
		}
		if _, err := j.append(subs); err != nil {
			t.Fatal(err)
		}
		_, again, _, err := readJournal(j.dir, journalOrigin)
		if err != nil || len(again) != len(entries) || len(segments) != 1 {
			t.Fatalf("%d entries, then %d, %v", len(entries), len(again), err)
		}
	})
}

// receipts is a log that gave receipts for entries 1 to n, and whose engine then
// took nothing more: as it was left, and its anchor.
func (r *rig) receipts(n int) (dir, anchor string) {
	r.t.Helper()
	l := r.ready()
	r.must(l, nth(0))
	write := embedded(l).append
	var out atomic.Bool
	out.Store(true)
	embedded(l).append = func(ctx context.Context, entries []*tessera.Entry) (uint64, error) { // the sequencer is idle
		for out.Load() {
			sleep(ctx, recoverPause)
		}
		return write(ctx, entries)
	}
	for i := 1; i <= n; i++ {
		if ack, err := receipt(r, l, nth(i)); err != nil || ack.Index != uint64(i) || ack.Proof != nil {
			r.t.Fatalf("receipt: %v, %v", ack, err)
		}
	}
	dir = filepath.Join(r.t.TempDir(), "log")
	copyDir(r.t, r.dir, dir)
	anchor = readFile(r.t, r.anchor)
	out.Store(false)
	if err := l.Close(); err != nil {
		r.t.Fatal(err)
	}
	return dir, anchor
}

// TestReceiptsOutliveACrash: what has its index and is in the journal alone is in
// the log after a crash, at its index, for whom it was.
func TestReceiptsOutliveACrash(t *testing.T) {
	r := newRig(t, 1, 1)
	dir, anchor := r.receipts(5)
	r = r.crashed(dir, anchor)
	if size, err := (&lateEngine{dir: filepath.Join(r.dir, engineDir)}).size(t.Context()); size != 0 || err == nil {
		t.Fatal("the engine is not open")
	}
	l := r.ready()
	for n := 5; n >= 0; n-- {
		if ack := r.must(l, nth(n)); ack.Index != uint64(n) {
			t.Errorf("entry %d is at index %d", n, ack.Index)
		}
	}
	if ack := r.must(l, nth(6)); ack.Index != 6 {
		t.Errorf("the next one is at index %d", ack.Index)
	}
	r.replayed(l)
	l.Close()
	r.attributed(map[uint64]string{0: "", 1: "", 2: "", 3: "", 4: "", 5: "", 6: ""}, r.token.ID)
	if _, entries, segments, err := readJournal(filepath.Join(r.dir, journalDir), r.signer.Key().Name()); err != nil || len(segments) > 0 {
		t.Errorf("left in the journal: %d entries in %d segments, %v", len(entries), len(segments), err)
	}
}

// TestJournalAndTilesDisagree: of two times, or changed. Nothing is written.
func TestJournalAndTilesDisagree(t *testing.T) {
	latched := func(t *testing.T, r *rig, want string) {
		t.Helper()
		l := r.open()
		waitFor(t, "the guard", func() bool { return l.Status().Latched })
		if err := l.Status().Reason; !errors.Is(err, ErrBehind) && !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), want) {
			t.Errorf("latched by %v", err)
		}
		if size, err := l.engine.size(t.Context()); err != nil || size != 1 && size != 2 {
			t.Errorf("%d entries, %v", size, err)
		}
		if res := get(r.handler(l), "/tile/entries/000.p/1"); res.Code != 200 {
			t.Errorf("reads do not go on: %d", res.Code)
		}
		l.Close()
	}
	prepare := func(t *testing.T) *rig {
		r := newRig(t, 1, 1)
		dir, anchor := r.receipts(2)
		return r.crashed(dir, anchor)
	}
	t.Run("other entry in the tiles", func(t *testing.T) {
		r := prepare(t)
		r.addBeneath(7, 1)
		latched(t, r, "entry 1 is another in the tiles")
		// What the words say to do lets it go on.
		if err := os.RemoveAll(filepath.Join(r.dir, journalDir)); err != nil {
			t.Fatal(err)
		}
		l := r.ready()
		if ack := r.must(l, nth(1)); ack.Index != 2 {
			t.Errorf("index %d", ack.Index)
		}
	})
	t.Run("tiles of before the journal", func(t *testing.T) {
		r := prepare(t)
		dir := filepath.Join(r.dir, journalDir)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		j, err := openJournal(dir, r.signer.Key().Name(), nil, 3)
		if err != nil {
			t.Fatal(err)
		}
		j.f.Close() // as a crash leaves it
		latched(t, r, "its journal begins at entry 3")
	})
	t.Run("damaged", func(t *testing.T) {
		r := prepare(t)
		names, err := os.ReadDir(filepath.Join(r.dir, journalDir))
		if err != nil || len(names) != 1 {
			t.Fatal(names, err)
		}
		path := filepath.Join(r.dir, journalDir, names[0].Name())
		raw := []byte(readFile(t, path))
		raw[frameHead+5] ^= 1
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		latched(t, r, "the journal is damaged")
	})
	t.Run("all of it older than what was signed", func(t *testing.T) {
		r := newRig(t, 1, 1)
		dir, _ := r.receipts(2)
		l := r.ready()
		r.must(l, nth(5))
		r.must(l, nth(6))
		l.Close()
		anchor := readFile(t, r.anchor)
		r = r.crashed(dir, anchor)
		latched(t, r, "and has signed 5")
	})
}

// TestJournalOut: while the journal cannot be written, nobody gets an index;
// afterwards the same entries do.
func TestJournalOut(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	r.must(l, nth(0))
	var out atomic.Bool
	out.Store(true)
	l.journal.Load().testSync = func() error { // the sequencer is idle
		if out.Load() {
			return errors.New("disk on fire")
		}
		return nil
	}
	for range 3 {
		if ack, err := receipt(r, l, nth(1)); !errors.Is(err, ErrStorage) || strings.Contains(err.Error(), "fire") {
			t.Fatalf("%v, %v", ack, err)
		}
	}
	if err := l.Ready(); !errors.Is(err, ErrStorage) {
		t.Errorf("ready: %v", err)
	}
	out.Store(false)
	waitFor(t, "the log to notice", func() bool { return l.Ready() == nil }) // without anybody who submits
	if ack := r.must(l, nth(2)); ack.Index != 1 {                            // another has the place of what failed
		t.Errorf("index %d", ack.Index)
	}
	if ack := r.must(l, nth(1)); ack.Index != 2 {
		t.Errorf("index %d", ack.Index)
	}
	r.replayed(l)
	r.attributed(map[uint64]string{0: "", 1: "", 2: ""}, r.token.ID)
}

// TestFreezeTakesTheJournalIn: a log that is frozen while its engine takes
// nothing ends with its successor leaf, behind every receipt.
func TestFreezeTakesTheJournalIn(t *testing.T) {
	r := newRig(t, 1, 1)
	dir, anchor := r.receipts(3)
	r = r.crashed(dir, anchor)
	next := testSuccessor(t)
	r.freeze(next)
	l := r.open()
	waitFor(t, "the last checkpoint", func() bool { return l.Published().Size == 5 })
	_, last, err := Ended(r.dir)
	if err != nil || last == nil || last.Origin != next.Origin {
		t.Errorf("it ends with %+v, %v", last, err)
	}
}

// TestTakeInSyncs: what a failed write has left is durable before the journal
// forgets it.
func TestTakeInSyncs(t *testing.T) {
	r := newRig(t, 1, 1)
	dir, anchor := r.receipts(5)
	r = r.crashed(dir, anchor)
	l := r.open(func(c *Config) { c.testStart = func(l *Log) { failOnce(t, l) } })
	waitFor(t, "the log to take submissions", func() bool { return l.Status().Writable })
	r.replayed(l)
}

// failOnce has the first write of l's engine report an error after it has
// happened, and wants a sync before the journal is begun anew.
func failOnce(t *testing.T, l *Log) {
	if err := l.engine.open(t.Context()); err != nil {
		t.Error(err)
		return
	}
	was := l.engine.opened.Load()
	fake := *was
	failed, synced := false, false
	fake.append = func(ctx context.Context, entries []*tessera.Entry) (uint64, error) {
		first, err := was.append(ctx, entries)
		if !failed {
			failed = true
			return 0, errors.Join(err, errors.New("fsync: input/output error"))
		}
		return first, err
	}
	fake.sync = func() error {
		if _, entries, _, err := readJournal(filepath.Join(l.cfg.Dir, journalDir), l.Origin()); err != nil || len(entries) < 5 {
			t.Errorf("synced when the journal has %d entries, %v", len(entries), err)
		}
		synced = true
		return was.sync()
	}
	l.engine.opened.Store(&fake)
	t.Cleanup(func() {
		if !failed || !synced {
			t.Errorf("failed %v, synced %v", failed, synced)
		}
	})
}

// TestHeldBack: what waits for an entry in flight is bounded, is forgotten when
// nobody waits for it, and has its receipts written in frames that a start reads.
func TestHeldBack(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready(func(c *Config) { c.MaxInFlight = 100_000 })
	r.must(l, nth(0))
	by := withKinds(r.token, entry.KindUpload, entry.KindRegistryPolicy)
	write := embedded(l).append
	var pass atomic.Bool
	embedded(l).append = func(ctx context.Context, entries []*tessera.Entry) (uint64, error) { // the sequencer is idle
		for !pass.Load() {
			sleep(ctx, recoverPause)
		}
		return write(ctx, entries)
	}
	if ack, err := l.Submit(t.Context(), by, policy("never", 1), Sequenced); err != nil || ack.Index != 1 {
		t.Fatal(ack, err)
	}
	gone, err := l.queue(t.Context(), by, nth(1))
	if err != nil {
		t.Fatal(err)
	}
	gone.abandon()
	for n := 10; ; n += 20 {
		var entries []*entry.Entry
		for k := range 20 {
			entries = append(entries, nth(n+k))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := l.queue(ctx, by, entries...)
		cancel()
		if err != nil { // the queue is full, and nothing of it is taken
			break
		}
		if n > 3*(maxFeed+queueMax*20) {
			t.Fatalf("%d entries are held back", n)
		}
	}
	pass.Store(true)
	if ack, err := receipt(r, l, nth(1)); err != nil || ack.Index < 100 { // it was not the first that was held back
		t.Errorf("what nobody waited for: %+v, %v", ack, err)
	}
	r.replayed(l)
}

// TestFreezeAfterAFailedWrite: whatever of a failed write is on the disk, the
// log ends with its successor leaf, also if it is killed before that is published.
func TestFreezeAfterAFailedWrite(t *testing.T) {
	r := newRig(t, 1, 1)
	backup := filepath.Join(t.TempDir(), "log")
	l := r.ready(func(c *Config) {
		c.testEnding = func(step string) {
			if step == "logged" {
				copyDir(t, r.dir, backup)
			}
		}
	})
	r.must(l, nth(0))
	anchor := readFile(t, r.anchor)
	j := l.journal.Load()
	var once atomic.Bool
	j.testSync = func() error { // the sequencer is idle
		if once.CompareAndSwap(false, true) {
			return errors.New("disk on fire")
		}
		return nil
	}
	if _, err := receipt(r, l, nth(1)); !errors.Is(err, ErrStorage) {
		t.Fatal("taken")
	}
	r.freeze(testSuccessor(t))
	waitFor(t, "the last checkpoint", func() bool { return l.Published().Size == 2 })
	l.Close()
	r.attributed(map[uint64]string{0: ""}, r.token.ID)
	if a, err := ReadAttribution(r.dir); err != nil {
		t.Error(err)
	} else if unknown, _ := a.Unknown(2); len(unknown) > 0 {
		t.Errorf("unknown: %+v", unknown)
	}
	r = r.crashed(backup, anchor)
	l = r.open()
	waitFor(t, "the last checkpoint", func() bool { return l.Published().Size == 2 || l.Status().Latched })
	if l.Status().Latched {
		t.Errorf("%v", l.Status().Reason)
	}
}

// TestLatchedLogEndsNot: a log whose guard failed writes nothing, its end neither.
func TestLatchedLogEndsNot(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	r.must(l, nth(0))
	l.latch(&guardError{errors.New("the tiles do not extend the signed tree")})
	r.freeze(testSuccessor(t))
	waitFor(t, "the mark to be seen", func() bool { return l.mark.Load() != nil })
	select {
	case <-l.seqDone:
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
	if size, err := l.engine.size(t.Context()); err != nil || size != 1 {
		t.Errorf("%d entries, %v", size, err)
	}
}

// TestSuccessorTakesNoIndex that the journal has given.
func TestSuccessorTakesNoIndex(t *testing.T) {
	r := newRig(t, 1, 1)
	dir := filepath.Join(r.dir, journalDir)
	j, err := openJournal(dir, r.signer.Key().Name(), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.append([]*submission{{leaf: []byte("leaf")}}); err != nil {
		t.Fatal(err)
	}
	j.f.Close()
	if err := Begin(t.Context(), r.dir, c2sp.Checkpoint{Origin: "log.example/old", Size: 3}, time.Now()); err == nil || !strings.Contains(err.Error(), "not in its tiles yet") {
		t.Errorf("%v", err)
	}
}

// TestRecordIsLostJournalKnows: who logged what is begun anew with what the
// journal knows.
func TestRecordIsLostJournalKnows(t *testing.T) {
	r := newRig(t, 1, 1)
	dir, anchor := r.receipts(5)
	r = r.crashed(dir, anchor)
	if err := os.Remove(filepath.Join(r.dir, AttributionFile)); err != nil {
		t.Fatal(err)
	}
	r.ready().Close()
	r.attributed(map[uint64]string{1: "", 2: "", 3: "", 4: "", 5: ""}, r.token.ID)
}
