package logserver

// The index by itself: what it says is what a map would say, whatever is
// merged, damaged, cut off or in the wrong place.

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/portbook/portbook/entry"
	"golang.org/x/mod/sumdb/tlog"
)

// smallIndex is an index that writes a run every few entries.
func smallIndex(t testing.TB, dir string, flush int) *index {
	t.Helper()
	x, err := openIndex(dir, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	x.flush = flush
	return x
}

// settle waits until what is full is written.
func (x *index) settle(t testing.TB) {
	t.Helper()
	waitFor(t, "the index to be written", func() bool {
		x.mu.RLock()
		defer x.mu.RUnlock()
		return len(x.frozen) == 0
	})
}

// postingsOf is what a map would say of what someKeys yields.
type postingsOf map[uint64][]uint64

func someKeys(i uint64) []uint64 {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, i%37))
	own := sha256.Sum256(binary.BigEndian.AppendUint64(nil, 1000+i))
	return []uint64{rowKey(own), findKey(own), findKey(sum), findKey([32]byte{}), rowKey(sum)}
}

func (m postingsOf) add(i uint64) {
	for _, k := range someKeys(i) {
		m[k] = append(m[k], i)
	}
}

// upTo are the entries of key below size.
func (m postingsOf) upTo(key, size uint64) []uint64 {
	n, _ := slices.BinarySearch(m[key], size)
	return m[key][:n]
}

// check compares x with the map, up to where x ends.
func (m postingsOf) check(x *index) error {
	size := x.size()
	for key := range m {
		want := m.upTo(key, size)
		var have []uint64
		if err := x.newest(key, func(i uint64) (bool, error) { have = append(have, i); return true, nil }); err != nil {
			return err
		}
		slices.Reverse(have)
		if !slices.Equal(have, want) {
			return fmt.Errorf("size %d: newest of %x: %v, want %v", size, key, have, want)
		}
		for _, from := range []uint64{0, size / 3, size - min(size, 1)} {
			some, err := x.page(key, from, size, 7)
			if err != nil {
				return err
			}
			at, _ := slices.BinarySearch(want, from)
			if rest := want[at:]; !slices.Equal(some, rest[:min(7, len(rest))]) {
				return fmt.Errorf("size %d: page of %x from %d: %v, want the first 7 of %v", size, key, from, some, rest)
			}
		}
	}
	return nil
}

// TestIndexIsAMap: through tables, runs, merges and restarts, every key leads to
// its entries, all of them and no other.
func TestIndexIsAMap(t *testing.T) {
	dir := t.TempDir()
	m := postingsOf{}
	x := smallIndex(t, dir, 3)
	for i := range uint64(400) {
		m.add(i)
		x.append(someKeys(i))
		if i%7 == 0 {
			x.settle(t)
		}
		if i%50 == 17 {
			if err := m.check(x); err != nil {
				t.Fatal(err)
			}
		}
		if i%100 == 99 {
			if err := x.close(); err != nil {
				t.Fatal(err)
			}
			x = smallIndex(t, dir, 3)
			if x.size() != i+1 {
				t.Fatalf("opened again with %d entries, want %d", x.size(), i+1)
			}
			if err := m.check(x); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	if len(x.runs) > 40 {
		t.Errorf("%d runs: nothing was merged", len(x.runs))
	}
}

// crashCopy copies the files of a directory as a crash might leave them: in some
// order, while they are being written.
func crashCopy(t testing.TB, from, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	rand.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	for _, f := range files {
		raw, err := os.ReadFile(filepath.Join(from, f.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // merged away meanwhile
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, f.Name()), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestIndexKilledAnywhere: copies made while the index is written and merged
// open as a beginning of it, whole, or as nothing.
func TestIndexKilledAnywhere(t *testing.T) {
	dir := t.TempDir()
	m := postingsOf{}
	for i := range uint64(600) {
		m.add(i)
	}
	x := smallIndex(t, dir, 4)
	var working sync.WaitGroup
	working.Go(func() {
		for i := range uint64(600) {
			x.append(someKeys(i))
			if i%16 == 15 {
				x.settle(t)
			}
		}
	})
	some := 0
	for n := range 40 {
		to := filepath.Join(t.TempDir(), fmt.Sprint(n))
		crashCopy(t, dir, to)
		y := smallIndex(t, to, 4)
		if y.size() > 0 {
			some++
		}
		if err := m.check(y); err != nil {
			t.Fatal(err)
		}
		for i := y.size(); i < 600; i++ { // what a start replays
			y.append(someKeys(i))
			if i%16 == 15 {
				y.settle(t)
			}
		}
		if err := errors.Join(m.check(y), y.close()); err != nil {
			t.Fatal(err)
		}
	}
	working.Wait()
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	if some == 0 {
		t.Error("no copy held anything")
	}
}

// TestIndexDamage: bytes of each file changed, each file cut at any length
// or gone: what opens all the same forgets nothing that it counts.
func TestIndexDamage(t *testing.T) {
	dir := t.TempDir()
	m := postingsOf{}
	x := smallIndex(t, dir, 6)
	for i := range uint64(14) {
		m.add(i)
		x.append(someKeys(i))
		if i%6 == 5 {
			x.settle(t)
		}
	}
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	try := func(what, path string, raw []byte) {
		t.Helper()
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		y, err := readIndex(dir)
		if err != nil {
			var damage *indexDamage
			if !errors.As(err, &damage) {
				t.Errorf("%s: %v: the index would not be made anew", what, err)
			}
			return
		}
		defer y.closeRuns()
		if filepath.Base(path) != indexManifest && !bytes.Contains(raw, []byte(runMagic)) {
			t.Errorf("%s: opened", what)
		}
		if err := m.check(y); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		whole := []byte(readFile(t, path))
		for i := range whole {
			if i >= headerSize && i%3 != 0 {
				continue // any byte of a checksummed part is like any other
			}
			changed := bytes.Clone(whole)
			changed[i] ^= 1 << (i % 8)
			try(fmt.Sprintf("%s: byte %d changed", filepath.Base(path), i), path, changed)
			try(fmt.Sprintf("%s: cut at %d", filepath.Base(path), i), path, whole[:i])
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if y, err := readIndex(dir); err == nil {
			t.Errorf("%s is gone: opened with %d entries", filepath.Base(path), y.size())
			y.closeRuns()
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	y, err := readIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer y.closeRuns()
	if err := m.check(y); err != nil || y.size() != 14 {
		t.Errorf("as it was: %d entries, %v", y.size(), err)
	}
}

// TestIndexHintsDecideNothing: rows are what a map says they are, through
// everything that can happen to a slot, while keys of other slots lead to the
// entries as well, as keys that collide do.
func TestIndexHintsDecideNothing(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	rounds := 6
	switch {
	case *long:
		rounds = 40
	case testing.Short():
		rounds = 1
	}
	for round := range rounds {
		x := smallIndex(t, t.TempDir(), 5)
		model := mapRows{map[[32]byte]*slotRow{}, map[[2]string]string{}, map[[32]byte]bool{}, map[[2]string]bool{}}
		var leaves [][]byte
		var hashes []tlog.Hash
		var files []*entry.Entry
		for n := range 4 {
			files = append(files, upload("p", fmt.Sprintf("p-%d.tar.gz", n), ""))
		}
		slot := func(n int) [32]byte { key, _, _ := slotKey(files[n]); return key }
		for _, f := range files {
			f.Registry, f.Claim = testRegistry, entry.ClaimIndex
		}
		for i := range 200 {
			n := random.IntN(len(files))
			u := *upload("p", files[n].File, fmt.Sprint(random.IntN(3)))
			e := &u
			switch random.IntN(6) {
			case 0:
				e = reject(&u, i)
			case 1:
				e = remove(&u, i)
			case 2:
				e = policy([]string{"never", "replace", "after-remove"}[random.IntN(3)], i)
			case 3:
				e = plainEntry(entry.KindYank, i)
				e.Project, e.Version, e.File, e.SHA256 = u.Project, u.Version, u.File, u.SHA256
			}
			e.Registry, e.Claim = testRegistry, entry.ClaimIndex
			if r := model.slots[slot(n)]; e.Kind == entry.KindUpload && r != nil {
				if digest, err := digestOf(e); err != nil || bytes.Equal(digest, r.digest) {
					e = policy("never", i) // the same again is not logged
					e.Registry, e.Claim = testRegistry, entry.ClaimIndex
				}
			}
			leaf, err := e.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leaf)
			hashes = append(hashes, entry.LeafHash(leaf))
			x.leaves.bundles = map[int64]*bundle{0: {leaves, hashes}}
			finds := findKeys(nil, entry.LeafHash(leaf), e)
			for n := range files {
				finds = append(finds, rowKey(slot(n)))
			}
			finds = append(finds, rowKey(policyKey(testRegistry, "pypi")), rowKey(policyKey(testRegistry, "npm")), rowKey(baselineKey(testRegistry, "pypi")))
			finds = append(finds, hashKey("uploads", testRegistry, "pypi", "q"), hashKey("release", testRegistry, "pypi", "p", "2.0"))
			if err := (indexRows{x}).apply(uint64(i), e, finds); err != nil {
				t.Fatal(err)
			}
			if err := applyTo(model, int64(i), e); err != nil {
				t.Fatal(err)
			}
			if i%20 == 19 {
				x.settle(t)
			}
			for n := range files {
				have, err := indexRows{x}.row(slot(n))
				want := model.slots[slot(n)]
				if err != nil || (have == nil) != (want == nil) || have != nil && (!bytes.Equal(have.digest, want.digest) || have.index != want.index || have.removed != want.removed) {
					t.Fatalf("round %d, entry %d (%s): file %d: %+v, %v; want %+v", round, i, e.Kind, n, have, err, want)
				}
			}
			for _, ecosystem := range []string{"pypi", "npm"} {
				have, err := indexRows{x}.overwrite(testRegistry, ecosystem)
				if err != nil || have != model.policies[[2]string{testRegistry, ecosystem}] {
					t.Fatalf("entry %d: policy of %s: %q, %v", i, ecosystem, have, err)
				}
			}
			for _, m := range []mark{{testRegistry, "pypi", "p", ""}, {testRegistry, "pypi", "p", "1.0"}, {testRegistry, "pypi", "q", ""}, {testRegistry, "pypi", "p", "2.0"}, {testRegistry, "pypi", "", ""}} {
				have, err := indexRows{x}.has(m)
				want, _ := model.has(m)
				if err != nil || have != want {
					t.Fatalf("entry %d: %v: %v, %v; want %v", i, m, have, err, want)
				}
			}
		}
		if err := x.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIndexOfAnyAge: a log that is opened with what its index was at some time
// before refuses other bytes for every file, and knows every file.
func TestIndexOfAnyAge(t *testing.T) {
	const entries = 24
	r := newRig(t, 0, 0)
	l := r.ready()
	l.lookup.flush = 2
	old := t.TempDir()
	for n := range entries {
		r.must(l, nth(n))
		if n%5 == 0 {
			crashCopy(t, filepath.Join(r.dir, indexDir), filepath.Join(old, fmt.Sprint(n)))
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ages, err := os.ReadDir(old)
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[uint64]bool{}
	for _, age := range ages {
		removeIndex(t, r.dir, indexDir)
		crashCopy(t, filepath.Join(old, age.Name()), filepath.Join(r.dir, indexDir))
		if x, err := readIndex(filepath.Join(r.dir, indexDir)); err == nil {
			sizes[x.size()] = true
			x.closeRuns()
		}
		l := r.ready()
		for n := range entries {
			other := nth(n)
			other.SHA256 = nth(n + 1).SHA256
			var conflict *ConflictError
			if ack, err := r.submit(l, other); !errors.As(err, &conflict) || conflict.FirstIndex != uint64(n) {
				t.Fatalf("index as after %s: other bytes for entry %d: %v, %v", age.Name(), n, ack, err)
			}
			if ack := r.must(l, nth(n)); ack.Index != uint64(n) {
				t.Fatalf("index as after %s: entry %d is now %d", age.Name(), n, ack.Index)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(sizes) < 3 {
		t.Errorf("too few ages of the index: %v", slices.Collect(maps.Keys(sizes)))
	}
}

// TestIndexAheadOfTheLog: an index that counts more entries than the log has is
// not worked with, nor made smaller: the log went back.
func TestIndexAheadOfTheLog(t *testing.T) {
	x := smallIndex(t, t.TempDir(), 4)
	defer x.close()
	for i := range uint64(10) {
		x.append(someKeys(i))
	}
	if err := x.replay(t.Context(), tree{size: 9}, nil); !errors.Is(err, ErrBehind) || x.size() != 10 {
		t.Errorf("%v, size %d", err, x.size())
	}
}
