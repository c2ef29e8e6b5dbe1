package logserver

// The index's files: what was written is read again, and whatever becomes of a
// file, it is made anew rather than believed.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/portbook/portbook/entry"
)

// posting leads from a key to an entry of the log.
type posting struct{ key, index uint64 }

func byKey(a, b posting) int {
	if a.key != b.key {
		if a.key < b.key {
			return -1
		}
		return 1
	}
	return int(int64(a.index) - int64(b.index))
}

// somePostings are those of entries [from, to), in order: few keys, so that they
// have many entries each, the smallest and the largest, and keys of their own.
func somePostings(from, to uint64, seed uint64) (out []posting) {
	random := rand.New(rand.NewPCG(seed, from))
	for i := from; i < to; i++ {
		out = append(out, posting{random.Uint64() & keyMask, i}, posting{random.Uint64N(40) << 8, i}, posting{random.Uint64N(40)<<8 | 1, i})
		switch random.IntN(8) {
		case 0:
			out = append(out, posting{0, i})
		case 1:
			out = append(out, posting{keyMask, i})
		case 2:
			out = append(out, posting{keyMask - 1, i})
		}
	}
	slices.SortFunc(out, byKey)
	return slices.Compact(out)
}

// writeRun writes the postings of entries [from, to), which are in order.
func writeRun(t testing.TB, dir string, number, from, to uint64, ps []posting) *indexRun {
	t.Helper()
	r, err := newRun(dir, number, from, to, uint64(len(ps)), func(yield func(key, rel uint64) bool) {
		for _, p := range ps {
			if !yield(p.key, p.index-from) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.file.Close() })
	return r
}

// answers checks that a run says of each key what ps do, and nothing of others.
func answers(t *testing.T, r *indexRun, ps []posting) {
	t.Helper()
	want := map[uint64][]uint64{}
	for _, p := range ps {
		want[p.key] = append(want[p.key], p.index)
	}
	for _, k := range []uint64{0, 1, 2, keyMask, keyMask - 1, keyMask - 2, 7 << 8, 7<<8 | 1, 7<<8 + 2, 1 << 47} {
		want[k] = append([]uint64{}, want[k]...) // also where there is nothing
	}
	for key, indexes := range want {
		for _, n := range []int{1, 7, len(indexes), 1 << 20} {
			from := r.from
			if n == 7 && len(indexes) > 0 {
				from = indexes[len(indexes)/2] // from the middle on
			}
			at, _ := slices.BinarySearch(indexes, from)
			rest := indexes[at:]
			rest = rest[:min(n, len(rest))]
			if got, err := r.page(key, from, n); err != nil || !slices.Equal(got, rest) {
				t.Fatalf("key %012x from %d, %d of them: %v, %v; want %v", key, from, n, got, err, rest)
			}
		}
		var got []uint64
		if more, err := r.newest(key, func(i uint64) (bool, error) { got = append(got, i); return true, nil }); err != nil || !more {
			t.Fatal(more, err)
		}
		slices.Reverse(got)
		if !slices.Equal(got, indexes) {
			t.Fatalf("key %012x, newest first: %v; want %v", key, got, indexes)
		}
		if len(indexes) > 1 {
			calls := 0
			if more, err := r.newest(key, func(uint64) (bool, error) { calls++; return false, nil }); err != nil || more || calls != 1 {
				t.Fatalf("key %012x: asked for one, given %d: %v", key, calls, err)
			}
		}
	}
}

// TestRunFormat: as it was written, and as it is read again, a run answers with
// what was posted; runs with nothing, one posting, and more than a fence's place.
func TestRunFormat(t *testing.T) {
	for _, row := range []struct{ from, to uint64 }{{0, 0}, {0, 1}, {7, 7}, {7, 9}, {1 << 40, 1<<40 + 300}, {100, 4100}} {
		t.Run(fmt.Sprintf("%d to %d", row.from, row.to), func(t *testing.T) {
			dir := t.TempDir()
			ps := somePostings(row.from, row.to, 1)
			wrote := writeRun(t, dir, 3, row.from, row.to, ps)
			answers(t, wrote, ps)
			read, err := openRun(dir, 3)
			if err != nil {
				t.Fatal(err)
			}
			defer read.file.Close()
			if read.from != row.from || read.to != row.to || read.postings != uint64(len(ps)) || read.start != wrote.start ||
				read.shift != wrote.shift || !slices.Equal(read.fence, wrote.fence) || !slices.Equal(read.filter, wrote.filter) {
				t.Errorf("read %+v, wrote %+v", read, wrote)
			}
			answers(t, read, ps)
		})
	}
}

// TestRunNotAsAnnounced: a run with fewer postings than were due leaves no file.
func TestRunNotAsAnnounced(t *testing.T) {
	dir := t.TempDir()
	if _, err := newRun(dir, 1, 0, 5, 3, func(yield func(key, rel uint64) bool) { yield(1, 0) }); err == nil {
		t.Error("1 posting where 3 were due was accepted")
	}
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("it left %v", names)
	}
}

// TestRunsMerged: runs that are merged are the run of all of their postings, byte
// for byte.
func TestRunsMerged(t *testing.T) {
	for name, cuts := range map[string][]uint64{
		"two": {0, 1000, 2000}, "very unlike": {0, 3, 2000}, "one of nothing": {0, 500, 500, 900}, "four, further on": {5000, 5100, 5101, 5400, 6000},
	} {
		t.Run(name, func(t *testing.T) {
			dir, alone := t.TempDir(), t.TempDir()
			x := &index{dir: dir, logger: slog.New(slog.DiscardHandler)}
			from, to := cuts[0], cuts[len(cuts)-1]
			for i := range len(cuts) - 1 {
				x.runs = append(x.runs, writeRun(t, dir, x.number, cuts[i], cuts[i+1], somePostings(cuts[i], cuts[i+1], 2)))
				x.number++
			}
			var all []posting
			for i := range len(cuts) - 1 {
				all = append(all, somePostings(cuts[i], cuts[i+1], 2)...)
			}
			slices.SortFunc(all, byKey)
			writeRun(t, alone, x.number, from, to, all)
			if err := x.mergeRuns(x.runs); err != nil {
				t.Fatal(err)
			}
			if len(x.runs) != 1 {
				t.Fatalf("%d runs", len(x.runs))
			}
			defer x.closeRuns()
			answers(t, x.runs[0], all)
			got, err := os.ReadFile(filepath.Join(dir, runName(x.runs[0].number)))
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join(alone, runName(x.runs[0].number)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("the merged run has other bytes")
			}
			if names, _ := os.ReadDir(dir); len(names) != 2 {
				t.Errorf("beside the run and the list there is more: %v", names)
			}
		})
	}
}

// TestMergeRefusesDamage: a run that was damaged after it was opened is not
// merged into one whose checksum is right.
func TestMergeRefusesDamage(t *testing.T) {
	for _, where := range []string{"first", "key", "offset", "last"} {
		t.Run(where, func(t *testing.T) {
			dir := t.TempDir()
			x := &index{dir: dir, logger: slog.New(slog.DiscardHandler), number: 2}
			a, b := somePostings(0, 300, 3), somePostings(300, 600, 3)
			x.runs = []*indexRun{writeRun(t, dir, 0, 0, 300, a), writeRun(t, dir, 1, 300, 600, b)}
			if err := x.save(); err != nil {
				t.Fatal(err)
			}
			r := x.runs[1]
			at := map[string]int64{"first": 0, "key": 400*postingSize + 5, "offset": 400*postingSize + 9, "last": int64(r.postings)*postingSize - 1}[where]
			flip(t, filepath.Join(dir, runName(1)), r.start+at)
			before := x.runs
			if err := x.mergeRuns(x.runs); err == nil {
				t.Error("a damaged run was merged")
			}
			if !slices.Equal(x.runs, before) {
				t.Errorf("the runs are now %v", x.runs)
			}
			if names, _ := os.ReadDir(dir); len(names) != 3 {
				t.Errorf("what is left: %v", names)
			}
			// The next start finds it.
			var damage *indexDamage
			if _, err := readIndex(dir); !errors.As(err, &damage) {
				t.Errorf("opened again: %v", err)
			}
		})
	}
}

// TestRunDamaged: a run that is cut anywhere, or longer, or has any byte changed,
// is damage; nothing of it is believed.
func TestRunDamaged(t *testing.T) {
	dir := t.TempDir()
	writeRun(t, dir, 0, 10, 20, somePostings(10, 20, 4))
	path := filepath.Join(dir, runName(0))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, at int, raw []byte) {
		t.Helper()
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := openRun(dir, 0)
		if err == nil {
			r.file.Close()
		}
		var damage *indexDamage
		if !errors.As(err, &damage) {
			t.Errorf("%s %d of %d: %v", what, at, len(good), err)
		}
	}
	for n := range good {
		try("cut at", n, good[:n])
		for _, bit := range []byte{0x01, 0x80} {
			raw := bytes.Clone(good)
			raw[n] ^= bit
			try("changed at", n, raw)
		}
	}
	try("one more byte", 0, append(bytes.Clone(good), 0))
	try("one more posting", 0, append(bytes.Clone(good), make([]byte, postingSize)...))
}

// TestIndexIsMadeAnew: whatever is cut or changed in the index of a closed log,
// opening the log gives the index that it had.
func TestIndexIsMadeAnew(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	l.lookup.flush = 20 // several runs
	const n = 70
	for i := range n {
		r.must(l, nth(i))
	}
	l.Close()
	dir := filepath.Join(r.dir, indexDir)
	good := t.TempDir()
	copyDir(t, dir, filepath.Join(good, indexDir))
	want := postings(t, r.dir)
	names, err := os.ReadDir(dir)
	if err != nil || len(names) < 3 {
		t.Fatal(names, err)
	}
	check := func(what string) {
		t.Helper()
		x, err := openIndex(dir, func(size int64) tree { return l.freshTree(size) }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		x.readUpTo(func() (uint64, error) { return n, nil })
		x.applying.Lock()
		err = x.replay(t.Context(), l.freshTree(n), nil)
		x.applying.Unlock()
		if err = errors.Join(err, x.close()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := postings(t, r.dir); got != want {
			t.Errorf("%s: the index is now\n%s\nwant\n%s", what, got, want)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		copyDir(t, filepath.Join(good, indexDir), dir)
	}
	check("nothing")
	for _, f := range names {
		path := filepath.Join(dir, f.Name())
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		step := 1
		if f.Name() != indexManifest { // their bytes one by one are TestRunDamaged's
			step = len(raw)/4 + 1
		}
		for at := 0; at < len(raw); at += step {
			if err := os.WriteFile(path, raw[:at], 0o600); err != nil {
				t.Fatal(err)
			}
			check(fmt.Sprintf("%s cut at %d", f.Name(), at))
			changed := bytes.Clone(raw)
			changed[at] ^= 1 << (at % 8)
			if err := os.WriteFile(path, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			check(fmt.Sprintf("%s changed at %d", f.Name(), at))
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		check(f.Name() + " lost")
	}
	// Leftovers of a crash: a run that the list does not name.
	copyDir(t, filepath.Join(dir, names[0].Name()), filepath.Join(dir, runName(999)))
	check("a run that does not count")
	if _, err := os.Stat(filepath.Join(dir, runName(999))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// sealed gives the bytes of a run right checksums, as somebody who can write the
// file would.
func sealed(raw []byte) []byte {
	raw = bytes.Clone(raw)
	if len(raw) < headerSize {
		return raw
	}
	copy(raw, runMagic)
	words := binary.BigEndian.Uint64(raw[32:])
	if words > uint64(len(raw)-headerSize)/8 {
		return raw
	}
	start := headerSize + int(words)*8
	binary.BigEndian.PutUint32(raw[40:], crc32.Checksum(raw[start:], castagnoli))
	binary.BigEndian.PutUint32(raw[44:], 0)
	binary.BigEndian.PutUint32(raw[44:], crc32.Checksum(raw[:start], castagnoli))
	return raw
}

// TestRunWrongInside: checksums that are right do not make a run of what is none.
func TestRunWrongInside(t *testing.T) {
	dir := t.TempDir()
	writeRun(t, dir, 0, 10, 60, somePostings(10, 60, 5))
	path := filepath.Join(dir, runName(0))
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put := binary.BigEndian.PutUint64
	words := binary.BigEndian.Uint64(good[32:])
	start := headerSize + int(words)*8
	for name, change := range map[string]func(raw []byte) []byte{
		"ends before it begins":   func(raw []byte) []byte { put(raw[8:], 61); return raw },
		"too long for a filter":   func(raw []byte) []byte { put(raw[16:], 1<<63); return raw },
		"shorter than its filter": func(raw []byte) []byte { put(raw[16:], 11); return raw },
		"no filter": func(raw []byte) []byte {
			put(raw[32:], 0)
			return append(raw[:headerSize:headerSize], raw[start:]...)
		},
		"an entry beyond its end": func(raw []byte) []byte { binary.BigEndian.PutUint32(raw[start+6:], 50); return raw },
		"a filter that hides a key": func(raw []byte) []byte {
			clear(raw[headerSize:start])
			return raw
		},
		"keys out of order": func(raw []byte) []byte {
			put(raw[start+8*postingSize:], put48(keyMask, raw[start+8*postingSize:]))
			return raw
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, sealed(change(bytes.Clone(good))), 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := openRun(dir, 0)
			if err == nil {
				r.file.Close()
			}
			var damage *indexDamage
			if !errors.As(err, &damage) {
				t.Errorf("opened: %v", err)
			}
		})
	}
	if err := os.WriteFile(path, sealed(good), 0o600); err != nil { // and the seal is right
		t.Fatal(err)
	}
	r, err := openRun(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.file.Close()
}

// put48 is the eight bytes at raw with another key in the first six.
func put48(key uint64, raw []byte) uint64 { return key<<16 | binary.BigEndian.Uint64(raw)&0xffff }

// FuzzRun reads any bytes as a run. What is accepted is ordered, within its
// bounds, answers as its postings say, and has what would be written of them.
func FuzzRun(f *testing.F) {
	for _, to := range []uint64{5, 6, 40} {
		dir := f.TempDir()
		writeRun(f, dir, 0, 5, to, somePostings(5, to, 6))
		raw, err := os.ReadFile(filepath.Join(dir, runName(0)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, false)
		f.Add(raw, true)
		f.Add(raw[:len(raw)/2], true)
		none := append(bytes.Clone(raw[:headerSize]), raw[headerSize+8*len(newFilter(to-5)):]...)
		binary.BigEndian.PutUint64(none[32:], 0)
		f.Add(none, true)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte, seal bool) {
		if seal {
			raw = sealed(raw)
		}
		path := filepath.Join(dir, runName(0))
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := openRun(dir, 0)
		if err != nil {
			var damage *indexDamage
			if !errors.As(err, &damage) {
				t.Fatalf("neither a run nor damage: %v", err)
			}
			return
		}
		defer r.file.Close()
		var ps []posting
		if err := mergePostings([]*indexRun{r}, r.from, func(key, rel uint64) bool {
			ps = append(ps, posting{key, r.from + rel})
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if !slices.IsSortedFunc(ps, byKey) {
			t.Fatal("not in order")
		}
		for _, p := range ps {
			if p.index < r.from || p.index >= r.to {
				t.Fatalf("it leads to entry %d, of [%d, %d)", p.index, r.from, r.to)
			}
			got, err := r.page(p.key, p.index, 1)
			if err != nil || !slices.Equal(got, []uint64{p.index}) {
				t.Fatalf("key %012x from %d: %v, %v", p.key, p.index, got, err)
			}
			found := false
			if _, err := r.newest(p.key, func(i uint64) (bool, error) { found = i == p.index; return !found, nil }); err != nil || !found {
				t.Fatalf("key %012x does not lead to %d: %v", p.key, p.index, err)
			}
		}
		again := writeRun(t, dir, 1, r.from, r.to, ps)
		wrote, err := os.ReadFile(again.file.Name())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(wrote[8:40], raw[8:40]) || !bytes.Equal(wrote[r.start:], raw[r.start:]) { // a filter may say yes more often
			t.Fatal("written again it has other bytes")
		}
	})
}

// collidingFiles are two file names of project demo that a search over some 10⁷
// found: rowKey of their slots is the same.
var collidingFiles = [2]string{"demo-13617018.tar.gz", "demo-6754564.tar.gz"}

// TestShortKeysCollide: two files whose keys in the index are one, found by
// search: each has its own slot, and each digest is refused for its own file.
func TestShortKeysCollide(t *testing.T) {
	slots := [2]entry.Slot{}
	for i, file := range collidingFiles {
		slots[i] = entry.Slot{Registry: testRegistry, Ecosystem: entry.PyPI, Claim: entry.ClaimIndex, Project: "demo", File: file}
	}
	if slots[0].Key() == slots[1].Key() || rowKey(slots[0].Key()) != rowKey(slots[1].Key()) {
		t.Fatal("these do not collide: the format of slots or of keys has changed; search anew")
	}
	for _, restart := range []bool{false, true} { // in memory, and in a run
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			r := newRig(t, 0, 0)
			l := r.ready()
			again := func() {
				if restart {
					l.Close()
					l = r.ready()
				}
			}
			by := r.all(entry.ClaimIndex)
			a, b := upload("demo", collidingFiles[0], "a"), upload("demo", collidingFiles[1], "b")
			r.step(l, by, a, 0)
			again()
			r.step(l, by, b, 1) // not a conflict with a
			again()
			r.step(l, by, a, 0)
			r.step(l, by, b, 1)
			r.step(l, by, upload("demo", collidingFiles[0], "c"), conflictWith(0))
			waitFor(t, "the conflict entry", func() bool { return l.Published().Size == 3 })
			r.step(l, by, upload("demo", collidingFiles[1], "a"), conflictWith(1))
			waitFor(t, "the conflict entry", func() bool { return l.Published().Size == 4 })
			again()
			// The slot that is freed is one of them.
			r.step(l, by, reject(a, 1), 4)
			again()
			r.step(l, by, b, 1)
			r.step(l, by, upload("demo", collidingFiles[1], "d"), conflictWith(1))
			waitFor(t, "the conflict entry", func() bool { return l.Published().Size == 6 })
			r.step(l, by, upload("demo", collidingFiles[0], "c"), 6)
			r.replayed(l)
		})
	}
}
