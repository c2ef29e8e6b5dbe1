package logserver

// Who logged what: that it is known before anybody is answered, whatever is
// killed, torn or failing.

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// attributed checks that the record names by for every index in acked.
func (r *rig) attributed(acked map[uint64]string, by string) {
	r.t.Helper()
	a, err := ReadAttribution(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	var known spans
	for _, run := range a.By(by) {
		known = known.add(span{run.First, run.First + run.Count})
	}
	for index := range acked {
		if !known.has(index) {
			r.t.Errorf("entry %d was acknowledged, and nothing says that %s logged it", index, by)
		}
	}
	if _, begins := a.Unknown(0); begins != 0 {
		r.t.Errorf("the record begins at %d", begins)
	}
}

func fixedTime() time.Time { return time.Date(2026, 11, 21, 5, 0, 0, 0, time.UTC) }

func openTestAttribution(t testing.TB, dir string, size uint64) *attributionFile {
	t.Helper()
	a, err := openAttribution(filepath.Join(dir, AttributionFile), "log.example/test", size, size, fixedTime, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.close() })
	return a
}

func run(first, count uint64, by string) Attributed {
	return Attributed{First: first, Count: count, By: by}
}

// said is what the file says, without times.
func said(t testing.TB, dir, by string) []Attributed {
	t.Helper()
	a, err := ReadAttribution(dir)
	if err != nil {
		t.Fatal(err)
	}
	runs := a.By(by)
	for i := range runs {
		if !runs[i].Time.Equal(fixedTime()) {
			t.Errorf("recorded at %v", runs[i].Time)
		}
		runs[i].Time = time.Time{}
	}
	return runs
}

func TestAttributionFile(t *testing.T) {
	dir := t.TempDir()
	a := openTestAttribution(t, dir, 0)
	note := func(runs ...Attributed) {
		t.Helper()
		if err := a.add(runs); err != nil {
			t.Fatal(err)
		}
	}
	note(run(0, 10, "a"), run(10, 2, "b"), run(12, 1, "")) // the last one by the log itself
	note(run(14, 6, "a"))                                  // 13 is nobody's
	note(run(13, 0+1, "b"))
	note(run(25, 1, "a"))
	// Acknowledged although nobody had noted it.
	if err := a.ensure(t.Context(), []uint64{24, 3, 22, 22, 25}, "c"); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		for by, want := range map[string][]Attributed{
			"a": {run(0, 10, "a"), run(14, 6, "a"), run(25, 1, "a")},
			"b": {run(10, 2, "b"), run(13, 1, "b")},
			"":  {run(12, 1, "")},
			"c": {{First: 22, Count: 1, By: "c", Late: true}, {First: 24, Count: 1, By: "c", Late: true}},
			"d": {},
		} {
			if got := said(t, dir, by); len(got)+len(want) > 0 && !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %q: %v, want %v", when, by, got, want)
			}
		}
		all, err := ReadAttribution(dir)
		if err != nil {
			t.Fatal(err)
		}
		holes, _ := all.Unknown(28)
		if want := []Attributed{{First: 20, Count: 2}, {First: 23, Count: 1}, {First: 26, Count: 2}}; !reflect.DeepEqual(holes, want) {
			t.Errorf("%s: unknown: %v, want %v", when, holes, want)
		}
	}
	check("as it was written")
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	if err := a.add([]Attributed{run(99, 1, "a")}); err == nil {
		t.Error("recorded after it was closed")
	}
	path := filepath.Join(dir, AttributionFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Torn at every byte of what is written next: nothing of it counts, nothing else is lost.
	b := openTestAttribution(t, dir, 28)
	if err := b.add([]Attributed{run(28, 3, "a"), run(31, 1, "b")}); err != nil {
		t.Fatal(err)
	}
	b.close()
	more, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(whole); cut < len(more); cut++ {
		if err := os.WriteFile(path, more[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprintf("torn at byte %d", cut))
		c := openTestAttribution(t, dir, 28)
		if err := c.add(nil); err != nil {
			t.Fatal(err)
		}
		c.close()
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, whole) {
			t.Errorf("torn at byte %d: opened, it has %d bytes, want %d: %v", cut, len(now), len(whole), err)
		}
		if cut > len(whole) { // the disk may have damaged what was whole: it is kept
			if kept := readFile(t, fmt.Sprintf("%s.torn-%d", path, fixedTime().Unix())); kept != string(more[len(whole):cut]) {
				t.Errorf("torn at byte %d: %d bytes are kept, want %d", cut, len(kept), cut-len(whole))
			}
		}
	}
	// A log that has lost entries: what comes there now is not what was there.
	d := openTestAttribution(t, dir, 11)
	if err := d.add([]Attributed{run(11, 1, "d")}); err != nil {
		t.Fatal(err)
	}
	d.close()
	if got, want := said(t, dir, "a"), []Attributed{run(0, 10, "a")}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got, want := said(t, dir, "b"), []Attributed{run(10, 1, "b")}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestAttributionIsDamaged: any flipped bit is noticed or changes nothing; the
// damaged file is set aside, and the log goes on.
func TestAttributionIsDamaged(t *testing.T) {
	dir := t.TempDir()
	a := openTestAttribution(t, dir, 0)
	for i := range 20 {
		if err := a.add([]Attributed{run(uint64(i), 1, "a")}); err != nil {
			t.Fatal(err)
		}
	}
	a.close()
	path := filepath.Join(dir, AttributionFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	noticed := 0
	for bit := range len(whole) * 8 {
		bad := bytes.Clone(whole)
		bad[bit/8] ^= 1 << (bit % 8)
		got, err := parseAttribution(bad)
		if err != nil {
			noticed++
			continue
		}
		// Taken for torn: what is left is true, and short of no more than the last frames.
		for i, r := range got.By("a") {
			if r.First != 0 || i > 0 {
				t.Fatalf("bit %d: entry %d by a", bit, r.First)
			}
		}
	}
	if noticed < len(whole)*6 {
		t.Errorf("%d of %d flipped bits were noticed as damage", noticed, len(whole)*8)
	}
	bad := bytes.Clone(whole)
	bad[len(bad)/2] ^= 1
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadAttribution(dir); !errors.Is(err, errDamaged) {
		t.Errorf("damaged: %v", err)
	}
	b := openTestAttribution(t, dir, 20)
	if err := b.add([]Attributed{run(20, 1, "b")}); err != nil {
		t.Fatal(err)
	}
	now, err := ReadAttribution(dir)
	if err != nil || len(now.By("b")) != 1 {
		t.Errorf("the new one: %v", err)
	}
	if holes, begins := now.Unknown(21); len(holes) > 0 || begins != 20 {
		t.Errorf("unknown: %v, begins %d", holes, begins)
	}
	aside, err := filepath.Glob(path + ".damaged-*")
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %v, %v", aside, err)
	}
	if kept, err := os.ReadFile(aside[0]); err != nil || !bytes.Equal(kept, bad) {
		t.Error("what was set aside is not what was there")
	}
	// Another log's file is not believed.
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := openAttribution(path, "log.example/other", 20, 20, fixedTime, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if got, err := ReadAttribution(dir); err != nil || len(got.By("a")) != 0 {
		t.Errorf("another log's: %v", err)
	}
}

// TestRecordOut: while who logged what cannot be written, the journal knows it:
// receipts stand, nothing is acknowledged and nothing more taken; a crash then
// loses nothing, and afterwards each entry is recorded, and none late.
func TestRecordOut(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	r.must(l, nth(0))
	file := l.who.(*attributionFile)
	var failing atomic.Bool
	failing.Store(true)
	file.writing.Lock()
	file.testSync = func() error {
		if failing.Load() {
			return errors.New("disk on fire")
		}
		return nil
	}
	file.writing.Unlock()
	if ack, err := receipt(r, l, nth(1)); err != nil || ack.Index != 1 {
		t.Fatalf("a receipt before anybody knew: %v, %v", ack, err)
	}
	waitFor(t, "the log to know", func() bool { return embedded(l).stuck.Load() != nil })
	for _, n := range []int{1, 2} {
		for _, wait := range []Wait{Cosigned, Sequenced} {
			if _, err := l.Submit(t.Context(), r.token, nth(n), wait); !errors.Is(err, ErrStorage) || strings.Contains(err.Error(), "fire") {
				t.Errorf("answered without a record, or the disk's words reach the caller: %v", err)
			}
		}
	}
	if size := l.Published().Size; size > 1 {
		t.Errorf("%d entries are published, one is recorded", size)
	}
	crash := filepath.Join(t.TempDir(), "log")
	copyDir(t, r.dir, crash)
	anchor := readFile(t, r.anchor)
	failing.Store(false)
	acked := map[uint64]string{}
	waitFor(t, "the record to be written", func() bool { _, err := r.submit(l, nth(1)); return err == nil })
	for n := range 8 {
		acked[r.must(l, nth(n)).Index] = ""
	}
	if len(acked) != 8 {
		t.Errorf("%d indexes for 8 entries", len(acked))
	}
	recorded := func(r *rig, l *Log, acked map[uint64]string) {
		t.Helper()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		r.attributed(acked, r.token.ID)
		a, err := ReadAttribution(r.dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range a.By(r.token.ID) {
			if x.Late {
				t.Errorf("recorded late: %+v", x)
			}
		}
	}
	recorded(r, l, acked)

	r2 := r.crashed(crash, anchor)
	l = r2.ready()
	if ack := r2.must(l, nth(1)); ack.Index != 1 {
		t.Errorf("the receipt said 1, it is %d", ack.Index)
	}
	recorded(r2, l, map[uint64]string{0: "", 1: ""})
}

// TestAttributionOfConcurrentCredentials: each entry by whom it was submitted,
// conflicts by the log itself.
func TestAttributionOfConcurrentCredentials(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	type one struct {
		index uint64
		by    string
	}
	acks := make(chan one, 400)
	done := make(chan bool)
	for w := range 4 {
		by := r.token
		by.ID = fmt.Sprintf("%016x", w+1)
		go func() {
			defer func() { done <- true }()
			for n := range 50 {
				ack, err := l.Submit(t.Context(), by, nth(w*1000+n), Cosigned)
				if err != nil {
					t.Error(err)
					return
				}
				acks <- one{ack.Index, by.ID}
			}
		}()
	}
	for range 4 {
		<-done
	}
	close(acks)
	if _, err := r.submit(l, upload("p0", "p0-0.tar.gz", "other bytes")); err == nil {
		t.Fatal("two contents of one file")
	}
	waitFor(t, "the conflict's record", func() bool { return l.Published().Size == 201 })
	want := map[uint64]string{}
	for a := range acks {
		want[a.index] = a.by
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	a, err := ReadAttribution(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[uint64]string{}
	for w := range 5 {
		by := ""
		if w > 0 {
			by = fmt.Sprintf("%016x", w)
		}
		for _, x := range a.By(by) {
			for i := range x.Count {
				if _, twice := got[x.First+i]; twice {
					t.Errorf("entry %d is recorded twice", x.First+i)
				}
				got[x.First+i] = by
			}
		}
	}
	for i := range uint64(201) {
		if got[i] != want[i] {
			t.Errorf("entry %d: by %q, want %q", i, got[i], want[i])
		}
	}
	if holes, _ := a.Unknown(201); len(holes) > 0 {
		t.Errorf("unknown: %v", holes)
	}
	info, err := os.Stat(filepath.Join(r.dir, AttributionFile))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: it is the operator's alone", info.Mode())
	}
	// It is nowhere that a caller can see.
	if raw, err := os.ReadFile(filepath.Join(r.dir, checkpointFile)); err != nil || bytes.Contains(raw, []byte("0000000000000001")) {
		t.Errorf("the checkpoint has a credential's ID: %v", err)
	}
}

// TestAttributionIsCheap: a bulk upload is one run a batch.
func TestAttributionIsCheap(t *testing.T) {
	dir := t.TempDir()
	a := openTestAttribution(t, dir, 0)
	const n = 1 << 20
	for i := uint64(0); i < n; i += 1024 {
		if err := a.add([]Attributed{run(i, 1024, "0123456789abcdef")}); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, AttributionFile))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > n/16 {
		t.Errorf("%d bytes for %d entries", info.Size(), n)
	}
	if len(a.known) != 1 {
		t.Errorf("%d spans in memory", len(a.known))
	}
	if got := said(t, dir, "0123456789abcdef"); len(got) != 1 || got[0].Count != n {
		t.Errorf("read back: %d runs", len(got))
	}
}

// TestSpans against a plain set.
func TestSpans(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var s spans
		set := map[uint64]bool{}
		for range 40 {
			from := rng.Uint64N(100)
			x := span{from, from + rng.Uint64N(8)}
			s = s.add(x)
			for i := x.from; i < x.to; i++ {
				set[i] = true
			}
		}
		below := s.below(50)
		holes := s.without(20, 80)
		for i := range uint64(120) {
			if s.has(i) != set[i] || below.has(i) != (set[i] && i < 50) || holes.has(i) != (!set[i] && i >= 20 && i < 80) {
				t.Fatalf("%d in %v: has %v below %v hole %v", i, s, s.has(i), below.has(i), holes.has(i))
			}
		}
		for i := 1; i < len(s); i++ {
			if s[i-1].to >= s[i].from {
				t.Fatalf("not apart: %v", s)
			}
		}
	}
}

func FuzzAttribution(f *testing.F) {
	dir := f.TempDir()
	a := openTestAttribution(f, dir, 3)
	if err := errors.Join(a.add([]Attributed{run(3, 4, "a"), run(7, 1, "")}), a.ensure(f.Context(), []uint64{9}, "b"), a.append([]byte{voidMark, 8})); err != nil {
		f.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, AttributionFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(frame(frame(nil, []byte{startMark, 0}), []byte{loggedMark, 1, 1, 0, 1, 0, 1, 0}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := parseAttribution(raw)
		if err != nil {
			return
		}
		if a.end > int64(len(raw)) {
			t.Fatalf("%d of %d bytes", a.end, len(raw))
		}
		for _, r := range a.runs {
			if r.Count == 0 || r.First+r.Count < r.First {
				t.Fatalf("run %v", r)
			}
		}
		again, err := parseAttribution(raw[:a.end])
		if err != nil || !reflect.DeepEqual(a, again) {
			t.Fatalf("what is whole reads otherwise: %v", err)
		}
	})
}

// BenchmarkAttribution is one batch, made durable.
func BenchmarkAttribution(b *testing.B) {
	a := openTestAttribution(b, b.TempDir(), 0)
	for i := 0; b.Loop(); i++ {
		if err := a.add([]Attributed{run(uint64(i)*1024, 1024, "0123456789abcdef")}); err != nil {
			b.Fatal(err)
		}
	}
}
