// Package enginetest holds one conformance suite for every storage engine of the
// log, known by Tessera's driver interface alone: the same entries in, the same
// tiles, bundles, roots and proofs out, byte for byte. It also has Memory, the
// engine that does so with the least code.
//
// What is expected is computed here from the entries, with golang.org/x/mod's
// tlog and, for roots, with transparency-dev/merkle too; no engine is compared
// with another's output.
package enginetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	mrand "math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Place opens the engine on the place where one log is kept, which is empty at
// first. The suite opens it several times, each time after the context of the
// time before has ended.
type Place func(ctx context.Context) (tessera.Driver, error)

// Options say what to run.
type Options struct {
	// New makes a place for a new log.
	New func(t *testing.T) Place
	// Long crosses the boundary of the second tile level, 65 536 entries.
	Long bool
}

// Run runs the suite. An engine passes if one goroutine's entries keep their
// order, every entry has one index, and at every size all that can be read is
// what the entries say.
func Run(t *testing.T, o Options) {
	t.Run("boundaries", func(t *testing.T) {
		sizes := []int{0, 1, 2, 255, 256, 257, 511, 512, 513}
		if o.Long {
			sizes = append(sizes, 65_535, 65_536, 65_537)
		}
		boundaries(t, o.New(t), sizes)
	})
	t.Run("concurrent", func(t *testing.T) { concurrent(t, o.New(t)) })
	t.Run("limits", func(t *testing.T) { limits(t, o.New(t)) })
}

// Log is an open engine.
type Log struct {
	Add    tessera.AddFn
	Reader tessera.LogReader
	Close  func() // ends the engine's goroutines
}

// Open opens a place as an appender, with a throw-away signer.
func Open(t *testing.T, place Place) *Log {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	driver, err := place(ctx)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	skey, _, err := note.GenerateKey(rand.Reader, "enginetest.invalid")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	opts := tessera.NewAppendOptions().WithCheckpointSigner(signer).WithCheckpointInterval(100*time.Millisecond).WithBatching(300, 5*time.Millisecond)
	a, _, r, err := tessera.NewAppender(ctx, driver, opts)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	l := &Log{Add: a.Add, Reader: r, Close: func() {
		cancel()
		time.Sleep(20 * time.Millisecond) // Tessera has no way to wait for its goroutines
	}}
	t.Cleanup(l.Close)
	return l
}

// Leaf is the i-th entry of the suite: no two are equal, and they are of all
// lengths up to 500 bytes, some longer.
func Leaf(i int) []byte {
	r := mrand.New(mrand.NewPCG(uint64(i), 7))
	n := 8 + r.IntN(492)
	switch i {
	case 3, 300:
		n = 65_535 // the longest that a bundle can hold
	case 256:
		n = 8
	}
	leaf := make([]byte, n)
	for j := range leaf {
		leaf[j] = byte(r.Uint32())
	}
	binary.BigEndian.PutUint64(leaf, uint64(i))
	return leaf
}

func boundaries(t *testing.T, place Place, sizes []int) {
	var ref Reference
	l := Open(t, place)
	last := sizes[len(sizes)-1]
	for i, size := range sizes {
		var futures []tessera.IndexFuture
		settle := func() {
			for k, f := range futures {
				want := uint64(ref.Size() - len(futures) + k)
				if got, err := f(); err != nil || got.Index != want {
					t.Fatalf("entry %d: got index %d, %v", want, got.Index, err)
				}
			}
			futures = nil
		}
		for n := ref.Size(); n < size; n++ {
			leaf := Leaf(n)
			ref.Append(leaf)
			futures = append(futures, l.Add(t.Context(), tessera.NewEntry(leaf)))
			if len(futures) == 1024 {
				settle()
			}
		}
		settle()
		AwaitIntegrated(t, l.Reader, size)
		ref.Check(t, l.Reader, size)
		if i%3 == 2 && size != last {
			l.Close()
			l = Open(t, place)
			AwaitIntegrated(t, l.Reader, size)
			ref.Check(t, l.Reader, size)
		}
	}
	ref.checkCheckpoint(t, l.Reader, last)
	for _, size := range sizes { // proofs between all of them, from the tiles there are now
		ref.CheckProofs(t, l.Reader, size, last)
	}
}

// concurrent adds from many goroutines, in two runs with a restart between.
func concurrent(t *testing.T, place Place) {
	const adders, each = 16, 12
	var leaves [][]byte
	for run := range 2 {
		l := Open(t, place)
		var (
			mu  sync.Mutex
			got = map[uint64][]byte{} // guarded by mu
			wg  sync.WaitGroup
		)
		for a := range adders {
			wg.Go(func() {
				for i := range each {
					leaf := fmt.Appendf(nil, "run %d adder %d entry %d", run, a, i)
					index, err := l.Add(t.Context(), tessera.NewEntry(leaf))()
					mu.Lock()
					if err != nil {
						t.Errorf("%s: %v", leaf, err)
					} else if have := got[index.Index]; have != nil {
						t.Errorf("index %d was given to %s and to %s", index.Index, have, leaf)
					}
					got[index.Index] = leaf
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		for range adders * each {
			leaf := got[uint64(len(leaves))]
			if leaf == nil {
				t.Fatalf("run %d: nobody was given index %d", run, len(leaves))
			}
			leaves = append(leaves, leaf)
		}
		AwaitIntegrated(t, l.Reader, len(leaves))
		var ref Reference
		for _, leaf := range leaves {
			ref.Append(leaf)
		}
		ref.Check(t, l.Reader, len(leaves))
		l.Close()
	}
}

// limits adds what is one byte too long, and two entries that are equal.
func limits(t *testing.T, place Place) {
	l := Open(t, place)
	if _, err := l.Add(t.Context(), tessera.NewEntry(make([]byte, 65_536)))(); err == nil {
		t.Error("an entry that no bundle can hold was added")
	}
	same := []byte("the same bytes")
	a, b := l.Add(t.Context(), tessera.NewEntry(same)), l.Add(t.Context(), tessera.NewEntry(same))
	i, err := a()
	if err != nil {
		t.Fatal(err)
	}
	k, err := b()
	if err != nil || i.Index == k.Index {
		t.Fatalf("equal entries: indices %d and %d, %v; deduplication is not the engine's", i.Index, k.Index, err)
	}
	if again, err := a(); err != nil || again != i {
		t.Errorf("a future changed its mind: %v, %v", again, err)
	}
	AwaitIntegrated(t, l.Reader, 2)
	var ref Reference
	ref.Append(same)
	ref.Append(same)
	ref.Check(t, l.Reader, 2)
}

// AwaitIntegrated waits until the integrated size is size, at most 30 seconds.
func AwaitIntegrated(t *testing.T, r tessera.LogReader, size int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got, err := r.IntegratedSize(t.Context())
		if err == nil && got == uint64(size) {
			return
		}
		if err == nil && got > uint64(size) || time.Now().After(deadline) {
			t.Fatalf("integrated size %d, %v; want %d", got, err, size)
		}
	}
}

// Reference is a log computed from its entries.
type Reference struct {
	leaves [][]byte
	stored []tlog.Hash
	roots  [][]byte // by transparency-dev/merkle, of every size up to now
	edge   *compact.Range
}

// Append adds an entry.
func (r *Reference) Append(leaf []byte) {
	if r.edge == nil {
		r.edge = (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
		r.roots = [][]byte{rfc6962.DefaultHasher.EmptyRoot()}
	}
	hashes, err := tlog.StoredHashes(int64(len(r.leaves)), leaf, r)
	if err != nil {
		panic(err)
	}
	r.stored = append(r.stored, hashes...)
	r.leaves = append(r.leaves, leaf)
	if err := r.edge.Append(rfc6962.DefaultHasher.HashLeaf(leaf), nil); err != nil {
		panic(err)
	}
	root, err := r.edge.GetRootHash(nil)
	if err != nil {
		panic(err)
	}
	r.roots = append(r.roots, root)
}

// ReadHashes implements tlog.HashReader.
func (r *Reference) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		out[i] = r.stored[n]
	}
	return out, nil
}

// Size is the number of entries.
func (r *Reference) Size() int { return len(r.leaves) }

// Root is the root of the first size entries, by both libraries.
func (r *Reference) Root(t testing.TB, size int) tlog.Hash {
	t.Helper()
	root, err := tlog.TreeHash(int64(size), r)
	if err != nil {
		t.Fatal(err)
	}
	want := rfc6962.DefaultHasher.EmptyRoot()
	if r.roots != nil {
		want = r.roots[size]
	}
	if !bytes.Equal(root[:], want) {
		t.Fatalf("at size %d tlog has the root %x, merkle %x", size, root, want)
	}
	return root
}

// Check compares every tile and bundle of a tree of size with the entries, byte
// for byte, and its proofs.
func (r *Reference) Check(t testing.TB, lr tessera.LogReader, size int) {
	t.Helper()
	for _, tile := range tlog.NewTiles(8, 0, int64(size)) {
		want, err := tlog.ReadTileData(tile, r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := lr.ReadTile(t.Context(), uint64(tile.L), uint64(tile.N), uint8(tile.W%256))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("size %d, tile %s: %v; got %d bytes, want %d", size, tile.Path(), err, len(got), len(want))
		}
	}
	for first := 0; first < size; first += 256 {
		n := min(size-first, 256)
		var want []byte
		for _, leaf := range r.leaves[first : first+n] {
			want = binary.BigEndian.AppendUint16(want, uint16(len(leaf)))
			want = append(want, leaf...)
		}
		got, err := lr.ReadEntryBundle(t.Context(), uint64(first/256), uint8(n%256))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("size %d, bundle %d: %v; got %d bytes, want %d", size, first/256, err, len(got), len(want))
		}
	}
	if next, err := lr.NextIndex(t.Context()); err != nil || next < uint64(size) {
		t.Fatalf("size %d, next index %d, %v", size, next, err)
	}
	r.CheckProofs(t, lr, 1, size)
}

// checkCheckpoint waits for Tessera's own checkpoint of size, and compares its root.
func (r *Reference) checkCheckpoint(t testing.TB, lr tessera.LogReader, size int) {
	t.Helper()
	root := r.Root(t, size)
	want := fmt.Appendf(nil, "\n%d\n%s\n", size, base64.StdEncoding.EncodeToString(root[:]))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got, err := lr.ReadCheckpoint(t.Context())
		if err == nil && bytes.Contains(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("checkpoint: %v, %q; want %q in it", err, got, want)
		}
	}
}

// CheckProofs proves from the engine's tiles that the tree of size old is a
// prefix of that of size, and that some entries are in it.
func (r *Reference) CheckProofs(t testing.TB, lr tessera.LogReader, old, size int) {
	t.Helper()
	root := r.Root(t, size)
	if size == 0 {
		return
	}
	tree := tlog.Tree{N: int64(size), Hash: root}
	hashes := tlog.TileHashReader(tree, tileReader{t, lr, size}) // authenticates what it reads
	indexes := []int{0, 1, 254, 255, 256, 257, 511, old - 1, old, size / 2, size - 1}
	slices.Sort(indexes)
	for _, i := range slices.Compact(indexes) {
		if i < 0 || i >= size {
			continue
		}
		p, err := tlog.ProveRecord(int64(size), int64(i), hashes)
		if err == nil {
			err = tlog.CheckRecord(p, int64(size), root, int64(i), tlog.RecordHash(r.leaves[i]))
		}
		if err != nil {
			t.Fatalf("size %d, inclusion of %d: %v", size, i, err)
		}
	}
	if old == 0 || old > size {
		return
	}
	p, err := tlog.ProveTree(int64(size), int64(old), hashes)
	if err == nil {
		err = tlog.CheckTree(p, int64(size), root, int64(old), r.Root(t, old))
	}
	if err != nil {
		t.Fatalf("consistency of %d with %d: %v", size, old, err)
	}
}

// tileReader is a tlog.TileReader on an engine.
type tileReader struct {
	t    testing.TB
	lr   tessera.LogReader
	size int
}

func (r tileReader) Height() int { return 8 }

func (r tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

func (r tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, tile := range tiles {
		raw, err := r.lr.ReadTile(r.t.Context(), uint64(tile.L), uint64(tile.N), uint8(tile.W%256))
		if err != nil {
			return nil, err
		}
		if len(raw) < tile.W*tlog.HashSize {
			return nil, fmt.Errorf("tile %s has %d bytes", tile.Path(), len(raw))
		}
		out[i] = raw[:tile.W*tlog.HashSize]
	}
	return out, nil
}
