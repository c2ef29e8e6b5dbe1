package monitor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/internal/fakelog"
)

// memoryLog is a log without HTTP, for speed and for lies in single answers.
type memoryLog struct {
	bundles [][][]byte
	levels  [][][32]byte
	size    uint64
	reads   atomic.Int64
	bundle  func(index uint64, leaves [][]byte) [][]byte // a lie; nil: none
	tile    func(b []byte) []byte
}

func newMemoryLog(leaves [][]byte) *memoryLog {
	l := &memoryLog{size: uint64(len(leaves))}
	var add func(level int, h [32]byte)
	add = func(level int, h [32]byte) {
		if level == len(l.levels) {
			l.levels = append(l.levels, nil)
		}
		l.levels[level] = append(l.levels[level], h)
		if n := len(l.levels[level]); n%256 == 0 {
			add(level+1, perfectRoot(append([][32]byte(nil), l.levels[level][n-256:]...)))
		}
	}
	for i, b := range leaves {
		if i%256 == 0 {
			l.bundles = append(l.bundles, nil)
		}
		l.bundles[i/256] = append(l.bundles[i/256], b)
		add(0, entry.LeafHash(b))
	}
	return l
}

func (l *memoryLog) checkpoint(size uint64) c2sp.Checkpoint {
	p := NewPosition()
	for _, h := range l.levels[0][:size] {
		p.add(h, 0)
	}
	p.seal()
	return c2sp.Checkpoint{Origin: testOrigin, Size: size, Root: p.Root}
}

func (l *memoryLog) Checkpoint(context.Context) ([]byte, error) { return nil, errors.New("none") }
func (l *memoryLog) Bundle(_ context.Context, index uint64, width int) ([][]byte, error) {
	l.reads.Add(1)
	if index >= uint64(len(l.bundles)) || width > len(l.bundles[index]) {
		return nil, fmt.Errorf("no bundle %d of %d", index, width)
	}
	b := l.bundles[index][:width]
	if l.bundle != nil {
		return l.bundle(index, b), nil
	}
	return b, nil
}
func (l *memoryLog) Tile(_ context.Context, level int, index uint64, width int) ([]byte, error) {
	if level >= len(l.levels) || int(index)*256+width > len(l.levels[level]) || width < 1 || width > 256 {
		return nil, fmt.Errorf("no tile %d/%d of %d", level, index, width)
	}
	var b []byte
	for _, h := range l.levels[level][index*256:][:width] {
		b = append(b, h[:]...)
	}
	if l.tile != nil {
		b = l.tile(b)
	}
	return b, nil
}
func (l *memoryLog) Inclusion(context.Context, uint64, uint64) ([][32]byte, error) {
	return nil, errors.New("none")
}

func numbered(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = binary.BigEndian.AppendUint64(nil, uint64(i))
	}
	return out
}

var sizes = []uint64{1, 2, 3, 255, 256, 257, 511, 512, 513, 8191, 8192, 8193, 65535, 65536, 65537, 70000}

// The compact range is transparency-dev/merkle's, and survives being built in
// any cut.
func TestPositionAgainstMerkle(t *testing.T) {
	f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	r, p := f.NewEmptyRange(0), NewPosition()
	for i, leaf := range numbered(3000) {
		h := entry.LeafHash(leaf)
		if err := r.Append(h[:], nil); err != nil {
			t.Fatal(err)
		}
		p.add(h, 0)
		p.seal()
		want, err := r.GetRootHash(nil)
		if err != nil {
			t.Fatal(err)
		}
		if p.Root != [32]byte(want) || len(p.Range) != len(r.Hashes()) || p.check() != nil {
			t.Fatalf("at %d leaves: %x, want %x", i+1, p.Root, want)
		}
	}
	p.Range[0][5] ^= 1
	if p.check() == nil {
		t.Error("a damaged cursor is accepted")
	}
	p.Range = p.Range[1:]
	if p.check() == nil {
		t.Error("a short cursor is accepted")
	}
}

func TestScanAndPositionAtEveryBoundary(t *testing.T) {
	log := newMemoryLog(numbered(70000))
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range sizes {
		cp := log.checkpoint(size)
		at := map[uint64]Position{0: NewPosition()}
		for _, from := range append([]uint64{0, size, r.Uint64N(size + 1)}, sizes...) {
			if from > size {
				continue
			}
			p, err := PositionAt(t.Context(), log, cp, from)
			if err != nil {
				t.Fatalf("position %d of %d: %v", from, size, err)
			}
			if err := p.check(); err != nil {
				t.Fatalf("position %d of %d: %v", from, size, err)
			}
			at[from] = p
		}
		for from, p := range at {
			next := from
			end, err := Scan(t.Context(), log, p, cp, ScanOptions{Workers: 3, Chunk: 1 + r.IntN(8)}, func(leaves []Leaf, p Position) error {
				for _, l := range leaves {
					if l.Index != next || binary.BigEndian.Uint64(l.Bytes) != next {
						return fmt.Errorf("leaf %d is %x", next, l.Bytes)
					}
					next++
				}
				if p.Size != next {
					return fmt.Errorf("position %d behind leaf %d", p.Size, next)
				}
				return p.check()
			})
			if err != nil || end.Size != size || end.Root != cp.Root || next != size {
				t.Fatalf("scan from %d to %d ended at %d, %d leaves: %v", from, size, end.Size, next-from, err)
			}
		}
	}
}

// Nothing is concluded from a leaf before the root matches: with one bit wrong
// anywhere, fn sees only chunks before it.
func TestScanNothingBeforeRoot(t *testing.T) {
	const n = 5000
	log := newMemoryLog(numbered(n))
	cp := log.checkpoint(n)
	for _, bad := range []uint64{0, 255, 256, 1023, 1024, 3000, n - 1} {
		log.bundle = func(index uint64, leaves [][]byte) [][]byte {
			if bad/256 != index {
				return leaves
			}
			out := append([][]byte(nil), leaves...)
			out[bad%256] = append([]byte(nil), out[bad%256]...)
			out[bad%256][7] ^= 1
			return out
		}
		seen := uint64(0)
		end, err := Scan(t.Context(), log, NewPosition(), cp, ScanOptions{Chunk: 4}, func(leaves []Leaf, p Position) error {
			seen += uint64(len(leaves))
			return nil
		})
		var inconsistent *InconsistentError
		if !errors.As(err, &inconsistent) || inconsistent.From > bad || inconsistent.To <= bad {
			t.Errorf("leaf %d is wrong: %v", bad, err)
		}
		if seen != bad/1024*1024 || end.Size != seen {
			t.Errorf("leaf %d is wrong, and %d leaves were handed on (position %d)", bad, seen, end.Size)
		}
	}
}

func TestScanErrors(t *testing.T) {
	log := newMemoryLog(numbered(1000))
	cp := log.checkpoint(1000)
	no := func([]Leaf, Position) error { t.Error("leaves were handed on"); return nil }
	log.bundle = func(_ uint64, l [][]byte) [][]byte { return append(l[:len(l):len(l)], []byte("extra")) }
	if _, err := Scan(t.Context(), log, NewPosition(), cp, ScanOptions{}, no); err == nil || errors.As(err, new(*InconsistentError)) {
		t.Errorf("an extra leaf: %v", err)
	}
	log.bundle = func(_ uint64, l [][]byte) [][]byte { return l[:len(l)-1] }
	if _, err := Scan(t.Context(), log, NewPosition(), cp, ScanOptions{}, no); err == nil || errors.As(err, new(*InconsistentError)) {
		t.Errorf("a missing leaf: %v", err)
	}
	log.bundle = nil
	log.tile = func(b []byte) []byte { return b[1:] }
	if _, err := Scan(t.Context(), log, NewPosition(), cp, ScanOptions{Chunk: 1}, no); err == nil || errors.As(err, new(*InconsistentError)) {
		t.Errorf("a short tile: %v", err)
	}
	log.tile = func(b []byte) []byte { b[3] ^= 1; return b }
	if _, err := Scan(t.Context(), log, NewPosition(), cp, ScanOptions{Chunk: 1}, no); !errors.As(err, new(*InconsistentError)) {
		t.Errorf("a wrong tile: %v", err)
	}
	if _, err := PositionAt(t.Context(), log, cp, 1000); !errors.As(err, new(*InconsistentError)) {
		t.Errorf("a position from wrong tiles: %v", err)
	}
	log.tile = nil
	if _, err := PositionAt(t.Context(), log, cp, 1001); err == nil {
		t.Error("a position behind the end")
	}
	p, err := PositionAt(t.Context(), log, cp, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Scan(t.Context(), log, p, log.checkpoint(999), ScanOptions{}, no); !errors.Is(err, errBackwards) {
		t.Errorf("backwards: %v", err)
	}
	if _, err := Scan(t.Context(), log, p, c2sp.Checkpoint{Size: 1000}, ScanOptions{}, no); !errors.As(err, new(*InconsistentError)) {
		t.Errorf("another root at the same size: %v", err)
	}
	stop := errors.New("stop")
	end, err := Scan(t.Context(), log, NewPosition(), cp, ScanOptions{Chunk: 1}, func(_ []Leaf, p Position) error {
		if p.Size > 512 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || end.Size != 512 {
		t.Errorf("stopped at %d: %v", end.Size, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ctx, log, NewPosition(), cp, ScanOptions{}, no); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// How far ahead bundles are fetched is bounded, whatever fn does.
func TestScanFetchesBounded(t *testing.T) {
	log := newMemoryLog(numbered(256 * 500))
	o := ScanOptions{Workers: 2, Chunk: 4}
	handed := 0
	_, err := Scan(t.Context(), log, NewPosition(), log.checkpoint(256*500), o, func(leaves []Leaf, _ Position) error {
		handed += len(leaves) / 256
		if handed <= 40 {
			time.Sleep(2 * time.Millisecond)
		}
		if ahead := int(log.reads.Load()) - handed; ahead > o.Chunk+2*o.Workers+1 {
			return fmt.Errorf("%d bundles ahead", ahead)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Our own leaves give the same proofs as the log's tiles.
func TestOwnTiles(t *testing.T) {
	w := newWorld(t, "")
	fill(w, 600)
	w.round()
	own := ownTiles{w.store, 1}
	for _, tt := range []struct {
		level, width int
		index        uint64
	}{{0, 256, 0}, {0, 88, 2}, {1, 2, 0}} {
		a, err := own.Tile(t.Context(), tt.level, tt.index, tt.width)
		if err != nil {
			t.Fatal(err)
		}
		r, err := client.NewReader(w.srv.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := r.Tile(t.Context(), tt.level, tt.index, tt.width)
		if err != nil || string(a) != string(b) {
			t.Errorf("tile %+v differs: %v", tt, err)
		}
	}
	if _, err := own.Tile(t.Context(), 0, 2, 89); err == nil {
		t.Error("a tile of leaves that are not there")
	}
	if _, err := proof.Inclusion(1, 2); err != nil {
		t.Error(err)
	}
}

// BenchmarkScan is the verified scan: every leaf rehashed and parsed, nothing
// inserted; from memory, and over HTTP on loopback.
func BenchmarkScan(b *testing.B) {
	leaves := uploads(b, 1<<16)
	log := newMemoryLog(leaves)
	cp := log.checkpoint(log.size)
	run := func(b *testing.B, src Source) {
		for b.Loop() {
			if _, err := Scan(b.Context(), src, NewPosition(), cp, ScanOptions{}, func([]Leaf, Position) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(leaves))*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	}
	b.Run("memory", func(b *testing.B) { run(b, log) })
	b.Run("http", func(b *testing.B) {
		l := fakelog.New(testOrigin, 1, 1, time.Now)
		l.Add(leaves...)
		srv := httptest.NewServer(l)
		defer srv.Close()
		r, err := client.NewReader(srv.URL, nil)
		if err != nil {
			b.Fatal(err)
		}
		run(b, r)
	})
}

// BenchmarkIndex is the same with every row inserted into SQLite.
func BenchmarkIndex(b *testing.B) {
	leaves := uploads(b, 1<<16)
	n := 0
	for b.Loop() {
		b.StopTimer()
		w := newWorld(b, subsAlice)
		w.log.Add(leaves...)
		b.StartTimer()
		if err := w.m.Round(b.Context()); err != nil {
			b.Fatal(err)
		}
		n += len(leaves)
		b.StopTimer()
		if fi, err := os.Stat(w.path()); err == nil {
			b.ReportMetric(float64(fi.Size())/float64(len(leaves)), "bytes/entry")
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "entries/s")
}

func uploads(b *testing.B, n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		e := fakelog.Upload(fmt.Sprintf("project-%d", i%5000), fmt.Sprintf("1.%d", i/5000), fmt.Sprintf("project_%d-1.%d-%d-py3-none-any.whl", i%5000, i/5000, i), "someone/something", fmt.Sprint(i))
		var err error
		if out[i], err = e.Marshal(); err != nil {
			b.Fatal(err)
		}
	}
	return out
}
