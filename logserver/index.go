package logserver

// The index: which entries of the log a key leads to. It decides on uniqueness
// (slots.go) and answers lookups (lookup.go). It follows from the log, and can
// be deleted at any time: opening the log makes it anew from the tiles.
//
//	apply ─▶ recent, in memory ─▶ a run, sorted, on disk ─▶ runs merged
//
// A posting is a key of 48 bits and the index of an entry. A key is no more
// than a hint: every hit is compared with the leaf itself, so a collision costs
// a read and never gives a wrong answer. A run holds the postings of a range of
// the log; it is written once, durably, and never changed. What is in memory
// when the process dies is replayed from the tiles.
//
// Who can change a run can make the log forget that a file name is pinned, and
// accept a second digest for it; monitors and clients check uniqueness
// themselves and would show it. Damage by chance fails a checksum at the start.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/entry"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	indexDir      = "index"
	indexManifest = "runs.json"
	// indexVersion is raised with every change of what is posted or how it is
	// written: an older index is made anew.
	indexVersion = 1

	keyBits    = 48
	keyMask    = 1<<keyBits - 1
	recentMax  = 1 << 15 // entries in one table in memory; their offsets have 16 bits
	frozenMax  = 4       // tables that wait to be written; then no more entries are taken
	mergeWidth = 4       // runs of a size that are merged into one
	// maxPostings of one run; larger ones are not merged further.
	maxPostings = math.MaxInt32
)

// A key that decides on uniqueness has its lowest bit set. For those, and only
// those, a run has a filter: nearly every upload asks for a key that is not there.
func rowKey(hash [32]byte) uint64 { return binary.BigEndian.Uint64(hash[:])>>(64-keyBits) | 1 }

// findKey is a key for lookups alone.
func findKey(hash [32]byte) uint64 { return binary.BigEndian.Uint64(hash[:]) >> (64 - keyBits) &^ 1 }

// index is the open index. One goroutine at a time applies; any may look.
type index struct {
	dir    string
	tree   func(size int64) tree // of the log, read anew
	logger *slog.Logger
	flush  int // entries in a table before it is written; only tests change it

	applying sync.Mutex // held by who applies
	leaves   leafCache
	closing  atomic.Bool

	mu      sync.RWMutex
	recent  *recent                // guarded by mu; the applier alone writes it
	frozen  []*recent              // guarded by mu; full, oldest first
	runs    []*indexRun            // guarded by mu; oldest first, replaced as a whole
	failure error                  // guarded by mu; why the last write failed, nil if it did not
	whole   func() (uint64, error) // guarded by mu; the size of the log that can be read
	number  uint64                 // guarded by mu; of the next run
	closed  bool                   // guarded by mu

	covered *board        // how many entries are in, for those who wait
	wake    chan struct{} // capacity 1: there is something to write
	idle    chan struct{} // closed when the writer has ended
	saving  sync.Mutex    // held while the manifest is written

	testWrite func() error // called in tests before a run is written
}

// openIndex opens the index in dir. What is not whole is made anew, empty.
func openIndex(dir string, tree func(int64) tree, logger *slog.Logger) (*index, error) {
	x := &index{dir: dir, tree: tree, logger: logger, flush: recentMax, covered: newBoard(), wake: make(chan struct{}, 1), idle: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("index: %w", withoutPath(err))
	}
	err := x.load()
	var damage *indexDamage
	switch {
	case err == nil:
		err = x.sweep()
	case errors.Is(err, fs.ErrNotExist):
		err = x.wipe()
	case errors.As(err, &damage):
		logger.Warn("the index is made anew from the log", "why", err)
		err = x.wipe()
	}
	if err != nil {
		return nil, fmt.Errorf("index: %w: it follows from the log; if it is damaged, stop the server, delete the directory %s and start again", withoutPath(err), indexDir)
	}
	size := x.end()
	x.recent = newRecent(size)
	x.covered.set(Published{Size: size, Quorum: true})
	go x.write()
	return x, nil
}

// indexDamage says that what is on disk is no whole index of this version.
type indexDamage struct{ what string }

func (e *indexDamage) Error() string { return e.what }

// manifest names the runs that count.
type manifest struct {
	Version int      `json:"version"`
	Runs    []uint64 `json:"runs"`
}

// errOtherVersion is damage of the manifest that a change of version explains.
var errOtherVersion = &indexDamage{"its list of runs is of another version, or damaged"}

// load reads the manifest and the runs it names; fs.ErrNotExist: there is none.
func (x *index) load() error {
	raw, err := os.ReadFile(filepath.Join(x.dir, indexManifest))
	if err != nil {
		return err
	}
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil || m.Version != indexVersion {
		return errOtherVersion
	}
	at := uint64(0)
	for _, n := range m.Runs {
		r, err := openRun(x.dir, n)
		if err != nil {
			return err
		}
		if r.from != at {
			return &indexDamage{fmt.Sprintf("run %d begins at %d, not %d", n, r.from, at)}
		}
		at = r.to
		x.runs = append(x.runs, r)
		x.number = max(x.number, n+1)
	}
	return nil
}

// readIndex opens what is on disk to look at it alone, and changes nothing.
func readIndex(dir string) (*index, error) {
	x := &index{dir: dir}
	if err := x.load(); err != nil {
		x.closeRuns()
		return nil, err
	}
	x.recent = newRecent(x.end())
	return x, nil
}

// end is where the runs end.
func (x *index) end() uint64 {
	if n := len(x.runs); n > 0 {
		return x.runs[n-1].to
	}
	return 0
}

func (x *index) closeRuns() {
	for _, r := range x.runs {
		r.file.Close()
	}
}

// sweep removes what the manifest does not name.
func (x *index) sweep() error {
	names, err := os.ReadDir(x.dir)
	if err != nil {
		return err
	}
	keep := map[string]bool{indexManifest: true}
	for _, r := range x.runs {
		keep[runName(r.number)] = true
	}
	for _, f := range names {
		if !keep[f.Name()] {
			if err := os.RemoveAll(filepath.Join(x.dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// wipe makes the index empty.
func (x *index) wipe() error {
	x.closeRuns()
	x.runs, x.number = nil, 0
	if err := x.save(); err != nil {
		return err
	}
	return x.sweep()
}

// save writes the manifest durably.
func (x *index) save() error {
	x.saving.Lock()
	defer x.saving.Unlock()
	x.mu.RLock()
	m := manifest{Version: indexVersion}
	for _, r := range x.runs {
		m.Runs = append(m.Runs, r.number)
	}
	x.mu.RUnlock()
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(x.dir, indexManifest), append(raw, '\n'), 0o600)
}

// size is how many entries are applied.
func (x *index) size() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.recent.from + uint64(x.recent.entries)
}

// full reports whether so much waits to be written that no more entries should
// be applied, and why writing fails, if it does. So memory stays bounded.
func (x *index) full() (bool, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if len(x.frozen) < frozenMax {
		return false, nil
	}
	return true, x.failure
}

// append adds the postings of the next entry.
func (x *index) append(keys []uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.recent.append(keys)
	if x.recent.entries >= x.flush {
		x.freeze()
	}
}

// freeze has the writer write the table in memory. The caller holds x.mu.
func (x *index) freeze() {
	x.frozen = append(x.frozen, x.recent)
	x.recent = newRecent(x.recent.from + uint64(x.recent.entries))
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// announce tells those who wait how far the index is.
func (x *index) announce() { x.covered.set(Published{Size: x.size(), Quorum: true}) }

// close writes what is in memory, so that the next start need not replay it.
func (x *index) close() error {
	x.closing.Store(true)
	x.mu.Lock()
	x.closed = true
	if x.recent.entries > 0 {
		x.freeze()
	}
	select {
	case x.wake <- struct{}{}:
	default:
	}
	x.mu.Unlock()
	<-x.idle
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closeRuns()
	if len(x.frozen) > 0 {
		return fmt.Errorf("index: %w: the next start replays the log's tail", withoutPath(x.failure))
	}
	return nil
}

// write writes full tables, and merges runs, until the index is closed.
func (x *index) write() {
	defer close(x.idle)
	var merging sync.WaitGroup
	defer merging.Wait()
	merged := make(chan struct{}, 1)
	merged <- struct{}{}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-x.wake:
		case <-retry.C:
		}
		for {
			x.mu.RLock()
			var table *recent
			if len(x.frozen) > 0 {
				table = x.frozen[0]
			}
			closed := x.closed
			x.mu.RUnlock()
			if table == nil {
				if closed {
					return
				}
				break
			}
			if err := x.writeTable(table); err != nil {
				x.logger.Error("the index cannot be written; trying again", "err", err)
				x.mu.Lock()
				x.failure = err
				x.mu.Unlock()
				if closed {
					return
				}
				retry.Reset(time.Second)
				break
			}
			select {
			case <-merged:
				merging.Go(func() {
					if err := x.merge(); err != nil && !errors.Is(err, errClosing) {
						x.logger.Error("runs of the index cannot be merged", "err", err)
					}
					merged <- struct{}{}
				})
			default: // under way
			}
		}
	}
}

// writeTable makes a run of the oldest full table.
func (x *index) writeTable(table *recent) error {
	if x.testWrite != nil {
		if err := x.testWrite(); err != nil {
			return err
		}
	}
	sorted := slices.Clone(table.postings)
	slices.Sort(sorted)
	x.mu.Lock()
	n := x.number
	x.number++
	x.mu.Unlock()
	r, err := newRun(x.dir, n, table.from, table.from+uint64(table.entries), uint64(len(sorted)), func(yield func(key, rel uint64) bool) {
		for _, p := range sorted {
			if !yield(p>>16, p&math.MaxUint16) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	x.mu.Lock()
	x.runs = append(slices.Clip(x.runs), r)
	x.frozen = slices.Delete(x.frozen, 0, 1)
	x.failure = nil
	x.mu.Unlock()
	// Without it the run does not count at the next start: its entries are replayed.
	return x.save()
}

// sizeClass is how often runs of n entries have been merged, about.
func sizeClass(n uint64) int { return bits.Len64(n/recentMax) / 2 }

// merge merges the newest runs while there are several of a size.
func (x *index) merge() error {
	for {
		x.mu.RLock()
		runs := x.runs
		x.mu.RUnlock()
		var group []*indexRun
		for class := 0; class < 24 && group == nil; class++ {
			at, postings := len(runs), uint64(0)
			for at > 0 && sizeClass(runs[at-1].to-runs[at-1].from) <= class && postings+runs[at-1].postings <= maxPostings {
				at--
				postings += runs[at].postings
			}
			if len(runs)-at >= mergeWidth {
				group = runs[at:]
			}
		}
		if group == nil {
			return nil
		}
		if err := x.mergeRuns(group); err != nil {
			return err
		}
	}
}

func (x *index) mergeRuns(group []*indexRun) error {
	x.mu.Lock()
	n := x.number
	x.number++
	x.mu.Unlock()
	from, to := group[0].from, group[len(group)-1].to
	var postings uint64
	for _, r := range group {
		postings += r.postings
	}
	var failed error
	merged, err := newRun(x.dir, n, from, to, postings, func(yield func(key, rel uint64) bool) {
		count := 0
		failed = mergePostings(group, from, func(key, rel uint64) bool {
			if count++; count%4096 == 0 && x.closing.Load() {
				failed = errClosing
				return false
			}
			return yield(key, rel)
		})
		if x.closing.Load() {
			failed = errClosing
		}
	})
	if failed != nil && err == nil { // it was written all the same
		failed = errors.Join(failed, merged.file.Close(), os.Remove(filepath.Join(x.dir, runName(n))))
	}
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	x.mu.Lock()
	at := slices.Index(x.runs, group[0])
	runs := slices.Clone(x.runs[:at])
	x.runs = append(append(runs, merged), x.runs[at+len(group):]...)
	x.mu.Unlock()
	if err := x.save(); err != nil {
		return err
	}
	for _, r := range group {
		// Who still reads it has it open; the file goes with the last of them.
		if err := os.Remove(filepath.Join(x.dir, runName(r.number))); err != nil {
			return err
		}
	}
	return nil
}

// mergePostings yields the postings of runs that follow each other, in order. It
// fails if one of them has been damaged since it was opened; what was yielded
// then counts for nothing.
func mergePostings(group []*indexRun, from uint64, yield func(key, rel uint64) bool) error {
	type source struct {
		run  *indexRun
		in   *bufio.Reader
		sum  hash.Hash32 // of what in has read
		left uint64
		base uint64
		key  uint64
		rel  uint64
	}
	next := func(s *source) error {
		var p [postingSize]byte
		if _, err := io.ReadFull(s.in, p[:]); err != nil {
			return err
		}
		s.left--
		s.key, s.rel = parsePosting(p[:])
		s.rel += s.base
		return nil
	}
	var sources []*source
	for _, r := range group {
		if r.postings == 0 {
			continue
		}
		s := &source{run: r, sum: crc32.New(castagnoli), left: r.postings, base: r.from - from}
		s.in = bufio.NewReaderSize(io.TeeReader(io.NewSectionReader(r.file, r.start, int64(r.postings)*postingSize), s.sum), 256<<10)
		if err := next(s); err != nil {
			return err
		}
		sources = append(sources, s)
	}
	for len(sources) > 0 {
		best := 0
		for i := 1; i < len(sources); i++ {
			if sources[i].key < sources[best].key { // else the older first
				best = i
			}
		}
		s := sources[best]
		if !yield(s.key, s.rel) {
			return nil
		}
		if s.left == 0 {
			if s.sum.Sum32() != s.run.sum {
				return fmt.Errorf("run %d was damaged while the log was open: stop the server and start it again, which makes the index anew", s.run.number)
			}
			sources = slices.Delete(sources, best, best+1)
		} else if err := next(s); err != nil {
			return err
		}
	}
	return nil
}

// newest calls do with the indexes that key may lead to, newest first, until it
// returns false.
func (x *index) newest(key uint64, do func(index uint64) (bool, error)) error {
	var buf [8]uint64
	x.mu.RLock()
	runs := x.runs
	hits := x.recent.newest(key, buf[:0])
	for _, t := range slices.Backward(x.frozen) {
		hits = t.newest(key, hits)
	}
	x.mu.RUnlock()
	for _, i := range hits {
		if more, err := do(i); err != nil || !more {
			return err
		}
	}
	for _, r := range slices.Backward(runs) {
		if more, err := r.newest(key, do); err != nil || !more {
			return err
		}
	}
	return nil
}

// page returns up to n indexes in [from, to) that key may lead to, oldest first.
func (x *index) page(key, from, to uint64, n int) ([]uint64, error) {
	x.mu.RLock()
	runs := x.runs
	var late []uint64 // of what is in memory
	late = x.recent.newest(key, late)
	for _, t := range slices.Backward(x.frozen) {
		late = t.newest(key, late)
	}
	x.mu.RUnlock()
	var out []uint64
	for _, r := range runs {
		if r.to <= from || r.from >= to || len(out) >= n {
			continue
		}
		more, err := r.page(key, from, n-len(out))
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	for _, i := range slices.Backward(late) {
		if i >= from {
			out = append(out, i)
		}
	}
	if len(out) > n {
		out = out[:n]
	}
	for len(out) > 0 && out[len(out)-1] >= to {
		out = out[:len(out)-1]
	}
	return out, nil
}

// recent is the postings of the newest entries, in memory.
type recent struct {
	from     uint64   // index of the first entry
	entries  int      // how many
	postings []uint64 // key and offset (16 bits), in the order they came
	before   []uint32 // for each, one more than the place of the last with its slot in heads
	heads    []uint32 // by the lowest bits of a key but one: where its newest is, plus one
}

func newRecent(from uint64) *recent { return &recent{from: from, heads: make([]uint32, 1<<8)} }

func (t *recent) slot(key uint64) uint64 { return key >> 1 & uint64(len(t.heads)-1) }

func (t *recent) append(keys []uint64) {
	for _, key := range keys {
		if len(t.postings) == len(t.heads) {
			t.grow()
		}
		s := t.slot(key)
		t.postings = append(t.postings, key<<16|uint64(t.entries))
		t.before = append(t.before, t.heads[s])
		t.heads[s] = uint32(len(t.postings))
	}
	t.entries++
}

func (t *recent) grow() {
	t.heads = make([]uint32, 2*len(t.heads))
	for i, p := range t.postings {
		s := t.slot(p >> 16)
		t.before[i] = t.heads[s]
		t.heads[s] = uint32(i + 1)
	}
}

// newest appends the indexes of key to out, newest first.
func (t *recent) newest(key uint64, out []uint64) []uint64 {
	for i := t.heads[t.slot(key)]; i != 0; i = t.before[i-1] {
		if p := t.postings[i-1]; p>>16 == key {
			out = append(out, t.from+p&math.MaxUint16)
		}
	}
	return out
}

// A run's file: a header of 48 bytes, the filter, then the postings in order,
// each 6 bytes of key and 4 of the entry's offset in the run, big-endian.
const (
	runMagic    = "pbindex1"
	headerSize  = 48
	postingSize = 10
)

// indexRun is an immutable part of the index: the postings of entries [from, to).
type indexRun struct {
	number   uint64
	from, to uint64
	postings uint64
	sum      uint32 // of the postings, CRC-32C
	start    int64  // of the postings in the file
	file     *os.File
	filter   filter
	fence    []uint32 // by the highest bits of a key: the place of its first posting
	shift    int      // of a key to those bits
}

func runName(n uint64) string { return fmt.Sprintf("%08d.run", n) }

func parsePosting(p []byte) (key, rel uint64) {
	return binary.BigEndian.Uint64(p) >> 16, uint64(binary.BigEndian.Uint32(p[6:]))
}

// fences prepares the fence for n postings: some 128 to a place.
func (r *indexRun) fences() {
	b := max(bits.Len64(r.postings>>7), 1)
	r.shift = keyBits - b
	r.fence = make([]uint32, 1<<b+1)
}

// newRun writes a run durably. postings yields exactly n, in order.
func newRun(dir string, number, from, to, n uint64, postings func(yield func(key, rel uint64) bool)) (*indexRun, error) {
	r := &indexRun{number: number, from: from, to: to, postings: n, filter: newFilter(to - from)}
	r.fences()
	path := filepath.Join(dir, runName(number))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	r.file, r.start = f, int64(headerSize+len(r.filter)*8)
	err = r.fill(postings)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return r, nil
}

func (r *indexRun) fill(postings func(yield func(key, rel uint64) bool)) error {
	sum := crc32.New(castagnoli)
	out := bufio.NewWriterSize(io.MultiWriter(io.NewOffsetWriter(r.file, r.start), sum), 256<<10)
	var p [postingSize]byte
	var err error
	var i uint64
	place := uint64(0)
	postings(func(key, rel uint64) bool {
		for ; place <= key>>r.shift; place++ {
			r.fence[place] = uint32(i)
		}
		if key&1 == 1 {
			r.filter.add(key)
		}
		binary.BigEndian.PutUint64(p[:], key<<16)
		binary.BigEndian.PutUint32(p[6:], uint32(rel))
		_, err = out.Write(p[:])
		i++
		return err == nil
	})
	for ; place < uint64(len(r.fence)); place++ {
		r.fence[place] = uint32(i)
	}
	if err == nil && i != r.postings {
		err = fmt.Errorf("%d postings where %d were due", i, r.postings)
	}
	if err = errors.Join(err, out.Flush()); err != nil {
		return err
	}
	r.sum = sum.Sum32()
	head := r.header(r.sum)
	_, err = r.file.WriteAt(head, 0)
	return err
}

// header is the run's header and filter.
func (r *indexRun) header(postings uint32) []byte {
	b := make([]byte, 0, r.start)
	b = append(b, runMagic...)
	b = binary.BigEndian.AppendUint64(b, r.from)
	b = binary.BigEndian.AppendUint64(b, r.to)
	b = binary.BigEndian.AppendUint64(b, r.postings)
	b = binary.BigEndian.AppendUint64(b, uint64(len(r.filter)))
	b = binary.BigEndian.AppendUint32(b, postings)
	at := len(b)
	b = binary.BigEndian.AppendUint32(b, 0)
	for _, w := range r.filter {
		b = binary.BigEndian.AppendUint64(b, w)
	}
	binary.BigEndian.PutUint32(b[at:], crc32.Checksum(b, castagnoli)) // over itself as zero
	return b
}

// openRun reads a run whole, against its checksums.
func openRun(dir string, number uint64) (*indexRun, error) {
	f, err := os.Open(filepath.Join(dir, runName(number)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &indexDamage{fmt.Sprintf("run %d is missing", number)}
	}
	if err != nil {
		return nil, err
	}
	r := &indexRun{number: number, file: f}
	if err := r.read(); err != nil {
		f.Close()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errRun) {
			return nil, &indexDamage{fmt.Sprintf("run %d is damaged", number)}
		}
		return nil, err
	}
	return r, nil
}

var errRun = errors.New("not a run of the index")

func (r *indexRun) read() error {
	info, err := r.file.Stat()
	if err != nil {
		return err
	}
	buffer := int(min(info.Size(), 1<<20))
	in := bufio.NewReaderSize(r.file, buffer)
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(in, head); err != nil {
		return err
	}
	if string(head[:8]) != runMagic {
		return errRun
	}
	r.from, r.to, r.postings = binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint64(head[16:]), binary.BigEndian.Uint64(head[24:])
	words := binary.BigEndian.Uint64(head[32:])
	if r.to < r.from || r.to-r.from > 1<<32 || r.postings > maxPostings || words != filterWords(r.to-r.from) || uint64(info.Size()) != headerSize+words*8+r.postings*postingSize {
		return errRun
	}
	raw := make([]byte, words*8)
	if _, err := io.ReadFull(in, raw); err != nil {
		return err
	}
	r.filter = make(filter, words)
	for i := range r.filter {
		r.filter[i] = binary.BigEndian.Uint64(raw[8*i:])
	}
	r.start = int64(headerSize + len(raw))
	r.sum = binary.BigEndian.Uint32(head[40:])
	if !bytes.Equal(r.header(r.sum)[:headerSize], head) {
		return errRun
	}
	r.fences()
	sum := crc32.New(castagnoli)
	in = bufio.NewReaderSize(io.TeeReader(io.NewSectionReader(r.file, r.start, int64(r.postings)*postingSize), sum), buffer)
	var p [postingSize]byte
	var place, lastKey, lastRel uint64
	for i := range r.postings {
		if _, err := io.ReadFull(in, p[:]); err != nil {
			return err
		}
		key, rel := parsePosting(p[:])
		if rel >= r.to-r.from || key < lastKey || key == lastKey && rel < lastRel || key&1 == 1 && !r.filter.has(key) {
			return errRun
		}
		lastKey, lastRel = key, rel
		for ; place <= key>>r.shift; place++ {
			r.fence[place] = uint32(i)
		}
	}
	for ; place < uint64(len(r.fence)); place++ {
		r.fence[place] = uint32(r.postings)
	}
	if sum.Sum32() != r.sum {
		return errRun
	}
	return nil
}

// search returns the place of the first posting at or after (key, rel).
func (r *indexRun) search(key, rel uint64) (uint64, error) {
	place := key >> r.shift
	if place >= uint64(len(r.fence)-1) {
		return r.postings, nil
	}
	lo, hi := uint64(r.fence[place]), uint64(r.fence[place+1])
	var p [postingSize]byte
	for hi-lo > 256 { // a key with many entries
		mid := lo + (hi-lo)/2
		if _, err := r.file.ReadAt(p[:], r.start+int64(mid)*postingSize); err != nil {
			return 0, err
		}
		if k, i := parsePosting(p[:]); k < key || k == key && i < rel {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	var buf [256 * postingSize]byte
	raw := buf[:(hi-lo)*postingSize]
	if _, err := r.file.ReadAt(raw, r.start+int64(lo)*postingSize); err != nil {
		return 0, err
	}
	for ; lo < hi; lo++ {
		if k, i := parsePosting(raw); k > key || k == key && i >= rel {
			return lo, nil
		}
		raw = raw[postingSize:]
	}
	return hi, nil
}

// newest is index.newest in one run; it reports whether to go on.
func (r *indexRun) newest(key uint64, do func(index uint64) (bool, error)) (bool, error) {
	if key&1 == 1 && !r.filter.has(key) {
		return true, nil
	}
	end, err := r.search(key+1, 0)
	if err != nil {
		return false, err
	}
	const together = 16
	var buf [together * postingSize]byte
	for end > 0 {
		n := min(end, together)
		raw := buf[:n*postingSize]
		if _, err := r.file.ReadAt(raw, r.start+int64(end-n)*postingSize); err != nil {
			return false, err
		}
		for i := n; i > 0; i-- {
			k, rel := parsePosting(raw[(i-1)*postingSize:])
			if k != key {
				return true, nil
			}
			if more, err := do(r.from + rel); err != nil || !more {
				return false, err
			}
		}
		end -= n
	}
	return true, nil
}

// page is index.page in one run, without an end.
func (r *indexRun) page(key, from uint64, n int) ([]uint64, error) {
	rel := uint64(0)
	if from > r.from {
		rel = from - r.from
	}
	at, err := r.search(key, rel)
	if err != nil {
		return nil, err
	}
	var out []uint64
	raw := make([]byte, min(uint64(n), 64)*postingSize)
	for len(out) < n && at < r.postings {
		part := raw[:min(uint64(len(raw)), (r.postings-at)*postingSize)]
		if _, err := r.file.ReadAt(part, r.start+int64(at)*postingSize); err != nil {
			return nil, err
		}
		for ; len(part) > 0 && len(out) < n; part = part[postingSize:] {
			k, rel := parsePosting(part)
			if k != key {
				return out, nil
			}
			out = append(out, r.from+rel)
			at++
		}
	}
	return out, nil
}

// filter is a Bloom filter: blocks of 512 bits, one for each key, in which six
// bits are set. It has some 12 bits for each entry.
type filter []uint64

const blockWords = 8

func newFilter(entries uint64) filter { return make(filter, filterWords(entries)) }

func filterWords(entries uint64) uint64 { return (entries*12/512 + 1) * blockWords }

// block is the key's block, and the hash that its bits come from.
func (f filter) block(key uint64) (filter, uint64) {
	h := key * 0x9E3779B97F4A7C15
	h ^= h >> 32
	h *= 0xD6E8FEB86659FD93
	h ^= h >> 32
	at, _ := bits.Mul64(h, uint64(len(f)/blockWords))
	return f[at*blockWords:][:blockWords], h * 0xA24BAED4963EE407
}

func (f filter) add(key uint64) {
	b, h := f.block(key)
	for range 6 {
		b[h>>61] |= 1 << (h >> 55 & 63)
		h *= 0x9E3779B97F4A7C15
	}
}

func (f filter) has(key uint64) bool {
	b, h := f.block(key)
	for range 6 {
		if b[h>>61]&(1<<(h>>55&63)) == 0 {
			return false
		}
		h *= 0x9E3779B97F4A7C15
	}
	return true
}

// unreadableKey leads to entries of a version that this server does not know.
// They are found by index and leaf hash alone.
var unreadableKey = rowKey(sha256.Sum256([]byte("unreadable")))

// readable fails if there is an entry that this server cannot read: it cannot
// decide on uniqueness then.
func (x *index) readable() error {
	return x.newest(unreadableKey, func(i uint64) (bool, error) {
		_, err := x.entryAt(int64(i))
		return true, err
	})
}

// replay applies the entries of t, a tree of the log, that are not yet applied.
// The caller holds x.applying.
func (x *index) replay(ctx context.Context, t tree, progress func(done, size int64)) error {
	rows := indexRows{x}
	from := int64(x.size())
	if from > t.size {
		return fmt.Errorf("%w: the index knows %d entries, the log has %d: the log went back; restore it, do not delete the index",
			ErrBehind, from, t.size)
	}
	t.ctx = ctx
	defer x.announce()
	return t.each(from, func(i int64, leaf []byte) error {
		if i%tileWidth == 0 {
			if progress != nil {
				progress(i, t.size)
			}
			for {
				full, err := x.full()
				if err != nil {
					return fmt.Errorf("%w: %w", ErrStorage, withoutPath(err))
				}
				if !full {
					break
				}
				if !sleep(ctx, time.Millisecond) {
					return ctx.Err()
				}
			}
		}
		hash := entry.LeafHash(leaf)
		if err := t.matches(i, hash); err != nil {
			return err
		}
		e, err := entry.Parse(leaf)
		if err != nil { // of a newer server, say; a log does not end at one
			x.logger.Warn("an entry of an unknown version: it is found by index and leaf hash alone", "index", i, "err", err)
			x.append([]uint64{findKey(hash), unreadableKey})
			return nil
		}
		if err := rows.apply(uint64(i), e, findKeys(nil, hash, e)); err != nil {
			return fmt.Errorf("replaying the log into the index: entry %d: %w", i, err)
		}
		return nil
	})
}

// follow keeps up with the published log until ctx ends, whenever nobody else
// applies.
func (x *index) follow(ctx context.Context, b *board) {
	for {
		p, changed := b.get()
		if x.size() < p.Size {
			x.applying.Lock()
			var err error
			if ctx.Err() == nil && x.size() < p.Size {
				err = x.replay(ctx, x.tree(int64(p.Size)), nil)
			}
			x.applying.Unlock()
			if err != nil && ctx.Err() == nil {
				x.logger.Error("the index cannot follow the log; trying again", "err", err)
				if !sleep(ctx, time.Second) {
					return
				}
				continue
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// leafCache holds the entries of a few bundles.
type leafCache struct {
	mu      sync.Mutex
	bundles map[int64]*bundle // guarded by mu; by number
	order   []int64           // guarded by mu; oldest first
}

// bundle is the entries of a bundle, with the hashes that the tile has for them.
type bundle struct {
	leaves [][]byte
	hashes []tlog.Hash
}

// leaf is entry at of bundle n. What does not hash to the tile's leaf is not what
// was logged: to take a damaged name for another would free a pinned one.
func (b *bundle) leaf(n int64, at int) ([]byte, error) {
	if b == nil || at >= len(b.leaves) {
		return nil, fmt.Errorf("%w: the log has no entry %d", errUnreadable, n*tileWidth+int64(at))
	}
	return b.leaves[at], matches(n*tileWidth+int64(at), entry.LeafHash(b.leaves[at]), b.hashes[at])
}

const leafBundles = 32 // some 4 MB

// leaf reads entry i, which is applied.
func (x *index) leaf(i uint64) ([]byte, error) {
	n, at := int64(i/tileWidth), int(i%tileWidth)
	x.leaves.mu.Lock()
	have := x.leaves.bundles[n]
	x.leaves.mu.Unlock()
	if leaf, err := have.leaf(n, at); err == nil {
		return leaf, nil
	}
	read, err := x.bundle(n)
	if errors.Is(err, errUnreadable) {
		read, err = x.bundle(n) // the log has grown, and a partial bundle is gone
	}
	if err != nil {
		return nil, err
	}
	leaf, err := read.leaf(n, at)
	if err != nil {
		return nil, err
	}
	x.leaves.mu.Lock()
	defer x.leaves.mu.Unlock()
	if x.leaves.bundles == nil {
		x.leaves.bundles = map[int64]*bundle{}
	}
	if x.leaves.bundles[n] == nil {
		if len(x.leaves.order) >= leafBundles {
			delete(x.leaves.bundles, x.leaves.order[0])
			x.leaves.order = x.leaves.order[1:]
		}
		x.leaves.order = append(x.leaves.order, n)
	}
	x.leaves.bundles[n] = read
	return leaf, nil
}

// bundle reads what there is of bundle n; nil if there is nothing.
func (x *index) bundle(n int64) (*bundle, error) {
	x.mu.RLock()
	whole := x.whole
	x.mu.RUnlock()
	size, err := whole()
	if err != nil {
		return nil, fmt.Errorf("%w: size of the log: %w", ErrStorage, withoutPath(err))
	}
	width := min(int64(size)-n*tileWidth, tileWidth)
	if width <= 0 {
		return nil, nil
	}
	t := x.tree(int64(size))
	leaves, err := t.leaves(n*tileWidth, int(width))
	if err != nil {
		return nil, err
	}
	tile, err := t.tile(0, n)
	if err != nil {
		return nil, err
	}
	return &bundle{leaves, tile[0]}, nil
}

// readUpTo says what of the log can be read, from now on.
func (x *index) readUpTo(whole func() (uint64, error)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.whole = whole
}

// entryAt reads and parses entry i, which is applied.
func (x *index) entryAt(i int64) (*entry.Entry, error) {
	leaf, err := x.leaf(uint64(i))
	if err != nil {
		return nil, err
	}
	e, err := entry.Parse(leaf)
	if err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", errUnreadable, i, err)
	}
	return e, nil
}
