package logserver

// Who logged what: which credential logged which entries, so that what a stolen
// one logged can be found and disputed. It is the operator's alone: no leaf, no
// answer and no metric has it.
//
// It is an append-only file in the log's directory. Before anyone is told of an
// index, the journal has it with the credential (journal.go); this file has it
// before the journal forgets it. Who can change the file can at most blame, or
// hide, a credential before the operator; losing it loses attribution alone, and
// the log goes on with a new one. A shared log keeps its record in its database:
// see shared_logged.go.
//
// An entry that is in the log without a record, because journal or file were
// lost, is recorded when somebody is acknowledged for it, as "late": by whom it
// was asked for again, which is who logged it unless two had the same file.
//
// The file is a sequence of frames:
//
//	length of the payload (4 bytes, little-endian) | CRC-32C of it (4) | payload
//
// and a payload is one of (numbers are uvarints, an ID its length and itself):
//
//	'S' start origin          first: entries below start are not recorded
//	'L' time n IDs m runs     runs (gap, count, which ID), in the log's order;
//	'A' …                     the same, late
//	'V' n                     void: what was said before of entries n and above
//
// The empty ID is the log itself.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/portbook/portbook/entry"
	"golang.org/x/sys/unix"
)

// AttributionFile is where an embedded log keeps who logged what.
const AttributionFile = "logged-by"

// attributions remembers who logged what.
type attributions interface {
	// ensure records entries as late, as by's, of which nothing is known although
	// the log had them before; it returns at once if there is none among them.
	ensure(ctx context.Context, indexes []uint64, by string) error
	close() error
}

// Attributed is a run of entries that one credential logged.
type Attributed struct {
	First, Count uint64
	By           string    // ID of the credential; empty: the log itself
	Time         time.Time // when they were recorded; to the second
	Late         bool      // recorded when somebody was acknowledged for them, not when they were logged
}

// span is the indexes from, ..., to-1.
type span struct{ from, to uint64 }

// spans are disjoint and ascending, with something between any two.
type spans []span

// has reports whether i is in one.
func (s spans) has(i uint64) bool {
	n, _ := slices.BinarySearchFunc(s, i, func(x span, i uint64) int {
		if x.to <= i {
			return -1
		}
		return 1
	})
	return n < len(s) && s[n].from <= i
}

// add returns s with x.
func (s spans) add(x span) spans {
	if x.from >= x.to {
		return s
	}
	first, _ := slices.BinarySearchFunc(s, x.from, func(y span, from uint64) int {
		if y.to < from {
			return -1
		}
		return 1
	})
	last := first
	for last < len(s) && s[last].from <= x.to {
		x.from, x.to = min(x.from, s[last].from), max(x.to, s[last].to)
		last++
	}
	return slices.Replace(s, first, last, x)
}

// below is what of s is below n.
func (s spans) below(n uint64) spans {
	var out spans
	for _, x := range s {
		if x.to = min(x.to, n); x.from < x.to {
			out = append(out, x)
		}
	}
	return out
}

// without is what of [from, to) is not in s.
func (s spans) without(from, to uint64) spans {
	var out spans
	for _, x := range s {
		if x.to <= from || x.from >= to {
			continue
		}
		if from < x.from {
			out = append(out, span{from, x.from})
		}
		from = x.to
	}
	if from < to {
		out = append(out, span{from, to})
	}
	return out
}

// attributionFile is the embedded log's record of who logged what.
type attributionFile struct {
	path string
	now  func() time.Time

	mu       sync.Mutex
	start    uint64       // guarded by mu
	known    spans        // guarded by mu; from start on: in the file, or expected
	expected []Attributed // guarded by mu; to be written, in the log's order

	writing  sync.Mutex   // taken before mu
	f        *os.File     // guarded by writing; nil after a write has failed, until it is opened again
	end      int64        // guarded by writing; of what is durable
	buf      []byte       // guarded by writing
	closed   bool         // guarded by writing
	testSync func() error // guarded by writing; instead of syncing, in tests
}

const (
	frameHead  = 8
	maxFrame   = 1 << 20
	maxRuns    = 1 << 15 // of one frame
	maxIDs     = 1 << 12 // of one frame
	maxID      = 64      // bytes
	loggedMark = 'L'
	lateMark   = 'A'
	startMark  = 'S'
	voidMark   = 'V'
)

// openAttribution opens the record of a log of the given size, or begins one: at
// the first entry of which the caller knows who logged it, or behind the last.
// What is torn at its end was never acknowledged, unless the disk damaged it: it
// is cut off and kept beside. A file that is damaged otherwise is set aside.
func openAttribution(path, origin string, size, begins uint64, now func() time.Time, logger *slog.Logger) (*attributionFile, error) {
	a := &attributionFile{path: path, now: now}
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("who logged what: %w", withoutPath(err))
	}
	if err == nil && len(raw) > 0 {
		said, err := parseAttribution(raw)
		if err == nil && said.origin != origin {
			err = fmt.Errorf("it is of the log %q", said.origin)
		}
		if err == nil {
			a.start, a.known, a.end = said.start, said.known(), said.end
			if torn := raw[said.end:]; len(torn) > 0 {
				aside := fmt.Sprintf("%s.torn-%d", path, now().Unix())
				logger.Warn("the record of who logged what is torn at its end: that is cut off, and kept", "file", filepath.Base(aside), "bytes", len(torn))
				if err := writeDurably(aside, torn, 0o600); err != nil {
					return nil, fmt.Errorf("who logged what: %w", withoutPath(err))
				}
			}
			return a, a.resume(size)
		}
		aside := fmt.Sprintf("%s.damaged-%d", path, now().Unix())
		logger.Error("the record of who logged what is damaged: it is set aside, and a new one is begun", "file", filepath.Base(aside), "err", err)
		if err := os.Rename(path, aside); err != nil {
			return nil, fmt.Errorf("who logged what: %w", withoutPath(err))
		}
	}
	if begins > 0 {
		logger.Warn("nothing says who logged the entries before these", "index", begins)
	}
	payload := binary.AppendUvarint([]byte{startMark}, begins)
	if err := writeDurably(path, frame(nil, append(payload, origin...)), 0o600); err != nil {
		return nil, fmt.Errorf("who logged what: %w", withoutPath(err))
	}
	a.start, a.end = begins, int64(frameHead+len(payload)+len(origin))
	return a, a.open()
}

// resume opens a record that was read, of a log that has grown to size.
func (a *attributionFile) resume(size uint64) error {
	if err := a.open(); err != nil {
		return err
	}
	if len(a.known) == 0 || a.known[len(a.known)-1].to <= size {
		return nil
	}
	// The log lost what this file knows: other entries will come there.
	a.known = a.known.below(size)
	return a.append(binary.AppendUvarint([]byte{voidMark}, size))
}

// open opens the file for appending behind what is durable.
func (a *attributionFile) open() error {
	f, err := os.OpenFile(a.path, os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("who logged what: %w", withoutPath(err))
	}
	if err := f.Truncate(a.end); err != nil {
		return errors.Join(fmt.Errorf("who logged what: %w", withoutPath(err)), f.Close())
	}
	a.f = f
	return nil
}

// frame appends the frame of a payload.
func frame(to, payload []byte) []byte {
	to = binary.LittleEndian.AppendUint32(to, uint32(len(payload)))
	to = binary.LittleEndian.AppendUint32(to, crc32.Checksum(payload, castagnoli))
	return append(to, payload...)
}

// append writes payloads durably; a.writing is held, or a is new. After an error the
// file is what it was.
func (a *attributionFile) append(payloads ...[]byte) error {
	if a.closed {
		return errors.New("who logged what: it is closed")
	}
	if a.f == nil {
		if err := a.open(); err != nil {
			return err
		}
	}
	a.buf = a.buf[:0]
	for _, p := range payloads {
		a.buf = frame(a.buf, p)
	}
	_, err := a.f.WriteAt(a.buf, a.end)
	if err == nil {
		err = a.sync()
	}
	if err != nil {
		// Nobody knows what of it is on the disk. It is written anew, at the same
		// place, by another descriptor.
		a.f.Close()
		a.f = nil
		return fmt.Errorf("who logged what: %w", withoutPath(err))
	}
	a.end += int64(len(a.buf))
	return nil
}

func (a *attributionFile) sync() error {
	if a.testSync != nil {
		return a.testSync()
	}
	return unix.Fdatasync(int(a.f.Fd()))
}

// expect notes who logged entries that have just got their indexes, and are in
// the journal. flush writes it.
func (a *attributionFile) expect(entries []Attributed) {
	at := time.Unix(a.now().Unix(), 0)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range entries {
		e.Time = at
		a.expected = addRun(a.expected, e)
		a.known = a.known.add(span{e.First, e.First + e.Count})
	}
}

// flush writes what is expected, durably. After an error it still is expected.
func (a *attributionFile) flush() error {
	a.writing.Lock()
	defer a.writing.Unlock()
	a.mu.Lock()
	now := slices.Clone(a.expected)
	a.mu.Unlock()
	if len(now) == 0 {
		return nil
	}
	var payloads [][]byte
	for rest := now; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Time.Equal(rest[0].Time) {
			n++
		}
		of, err := encodeRuns(rest[:n], loggedMark, rest[0].Time)
		if err != nil {
			return err
		}
		payloads, rest = append(payloads, of...), rest[n:]
	}
	if err := a.append(payloads...); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// The last run may have grown meanwhile.
	last := now[len(now)-1]
	if grown := a.expected[len(now)-1]; grown.Count > last.Count {
		grown.First, grown.Count = last.First+last.Count, grown.Count-last.Count
		a.expected[len(now)-1] = grown
		a.expected = slices.Delete(a.expected, 0, len(now)-1)
	} else {
		a.expected = slices.Delete(a.expected, 0, len(now))
	}
	return nil
}

// add records, of entries that the journal had, those of which nothing is known.
func (a *attributionFile) add(entries []Attributed) error {
	for _, e := range entries {
		a.mu.Lock()
		unknown := a.known.without(max(e.First, a.start), max(e.First+e.Count, a.start))
		a.mu.Unlock()
		for _, x := range unknown {
			a.expect([]Attributed{{First: x.from, Count: x.to - x.from, By: e.By}})
		}
	}
	return a.flush()
}

// ensure implements attributions.
func (a *attributionFile) ensure(_ context.Context, indexes []uint64, by string) error {
	if len(a.unknown(indexes, by)) == 0 {
		return nil
	}
	a.writing.Lock()
	defer a.writing.Unlock()
	late := a.unknown(indexes, by) // who came first has recorded it
	if len(late) == 0 {
		return nil
	}
	payloads, err := encodeRuns(late, lateMark, a.now())
	if err != nil {
		return err
	}
	if err := a.append(payloads...); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range late {
		a.known = a.known.add(span{e.First, e.First + 1})
	}
	return nil
}

// unknown are the indexes of which nothing is known, in order, as by's.
func (a *attributionFile) unknown(indexes []uint64, by string) (late []Attributed) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, i := range indexes {
		if i >= a.start && !a.known.has(i) {
			late = append(late, Attributed{First: i, Count: 1, By: by})
		}
	}
	slices.SortFunc(late, func(x, y Attributed) int { return compareUint(x.First, y.First) })
	return slices.CompactFunc(late, func(x, y Attributed) bool { return x.First == y.First })
}

func compareUint(x, y uint64) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// close implements attributions.
func (a *attributionFile) close() error {
	a.writing.Lock()
	defer a.writing.Unlock()
	a.closed = true
	if a.f == nil {
		return nil
	}
	err := a.f.Close()
	a.f = nil
	return err
}

// encodeRuns makes payloads of runs in ascending order.
func encodeRuns(entries []Attributed, mark byte, now time.Time) ([][]byte, error) {
	var payloads [][]byte
	for len(entries) > 0 {
		n := min(len(entries), maxRuns)
		ids := map[string]uint64{}
		var names, runs []byte
		var at uint64
		for i, e := range entries[:n] {
			which, named := ids[e.By]
			if !named {
				if len(ids) == maxIDs {
					n = i
					break
				}
				if len(e.By) > maxID {
					return nil, fmt.Errorf("who logged what: %q is no credential's ID", e.By)
				}
				which = uint64(len(ids))
				ids[e.By] = which
				names = append(append(names, byte(len(e.By))), e.By...)
			}
			if e.First < at || e.Count == 0 {
				return nil, fmt.Errorf("who logged what: entry %d out of order", e.First)
			}
			runs = binary.AppendUvarint(runs, e.First-at)
			runs = binary.AppendUvarint(runs, e.Count)
			runs = binary.AppendUvarint(runs, which)
			at = e.First + e.Count
		}
		p := binary.AppendUvarint([]byte{mark}, uint64(max(now.Unix(), 0)))
		p = binary.AppendUvarint(p, uint64(len(ids)))
		p = append(p, names...)
		p = binary.AppendUvarint(p, uint64(n))
		payloads = append(payloads, append(p, runs...))
		entries = entries[n:]
	}
	return payloads, nil
}

// runsOf are the runs of entries that have just got their indexes, in order.
func runsOf(subs []*submission) []Attributed {
	var runs []Attributed
	for _, s := range subs {
		runs = addRun(runs, Attributed{First: s.index, Count: 1, By: s.by})
	}
	return runs
}

// addRun appends x to runs, as part of the last one if it goes on with it.
func addRun(runs []Attributed, x Attributed) []Attributed {
	if last := len(runs) - 1; last >= 0 && runs[last].By == x.By && runs[last].Late == x.Late &&
		runs[last].First+runs[last].Count == x.First && runs[last].Time.Equal(x.Time) {
		runs[last].Count += x.Count
		return runs
	}
	return append(runs, x)
}

// Attribution is what a record says.
type Attribution struct {
	origin string
	start  uint64
	runs   []Attributed // in the order of the file
	end    int64        // of its last whole frame
}

// ReadAttribution reads the record of who logged what in a log's directory, also
// while a server writes it.
func ReadAttribution(dir string) (*Attribution, error) {
	raw, err := os.ReadFile(filepath.Join(dir, AttributionFile))
	if err != nil {
		return nil, fmt.Errorf("who logged what: %w", err)
	}
	a, err := parseAttribution(raw)
	if err != nil {
		return nil, fmt.Errorf("who logged what: %s: %w", filepath.Join(dir, AttributionFile), err)
	}
	return a, nil
}

// By are the runs of one credential, in the log's order.
func (a *Attribution) By(id string) []Attributed {
	runs := slices.DeleteFunc(slices.Clone(a.runs), func(r Attributed) bool { return r.By != id })
	slices.SortStableFunc(runs, func(x, y Attributed) int { return compareUint(x.First, y.First) })
	return runs
}

// Unknown are the entries below size of which the record says nothing although
// it should: a server was killed between logging and recording them, and nobody
// was acknowledged for them. Before the record began nothing is said at all.
func (a *Attribution) Unknown(size uint64) (runs []Attributed, begins uint64) {
	for _, x := range a.known().without(a.start, size) {
		runs = append(runs, Attributed{First: x.from, Count: x.to - x.from})
	}
	return runs, a.start
}

func (a *Attribution) known() spans {
	var s spans
	for _, r := range a.runs {
		s = s.add(span{r.First, r.First + r.Count})
	}
	return s
}

var errDamaged = errors.New("it is damaged")

// parseAttribution reads a file of frames. What is torn at the end is left out.
func parseAttribution(raw []byte) (*Attribution, error) {
	a := &Attribution{}
	for at := 0; at < len(raw); {
		rest := raw[at:]
		if len(rest) < frameHead {
			break // torn
		}
		length := int(binary.LittleEndian.Uint32(rest))
		if length > maxFrame && frameHead+length <= len(rest) {
			return nil, fmt.Errorf("%w: at byte %d", errDamaged, at)
		}
		if frameHead+length > len(rest) {
			if len(rest) > frameHead+maxFrame { // too much for one frame that was being written
				return nil, fmt.Errorf("%w: at byte %d", errDamaged, at)
			}
			break // torn
		}
		payload := rest[frameHead : frameHead+length]
		if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(rest[4:]) {
			if frameHead+length == len(rest) {
				break // torn
			}
			return nil, fmt.Errorf("%w: at byte %d", errDamaged, at)
		}
		if err := a.take(payload, at == 0); err != nil {
			return nil, fmt.Errorf("%w: at byte %d: %w", errDamaged, at, err)
		}
		at += frameHead + length
		a.end = int64(at)
	}
	if a.end == 0 {
		return nil, fmt.Errorf("%w: it has no beginning", errDamaged)
	}
	return a, nil
}

// take understands one payload.
func (a *Attribution) take(payload []byte, first bool) error {
	r := reader{payload}
	mark := r.byte()
	if first != (mark == startMark) {
		return errors.New("a beginning belongs at the beginning")
	}
	switch mark {
	case startMark:
		a.start, a.origin = r.number(), string(r.rest)
		r.rest = r.rest[:0]
	case voidMark:
		n := r.number()
		var kept []Attributed
		for _, x := range a.runs {
			if x.First < n {
				x.Count = min(x.Count, n-x.First)
				kept = append(kept, x)
			}
		}
		a.runs = kept
	case loggedMark, lateMark:
		at := time.Unix(int64(r.number()&(1<<40-1)), 0).UTC()
		ids := make([]string, min(r.number(), maxIDs))
		for i := range ids {
			ids[i] = string(r.bytes(int(r.byte())))
		}
		var next uint64
		for n := r.number(); n > 0 && !r.short(); n-- {
			gap, count, which := r.number(), r.number(), r.number()
			if count == 0 || which >= uint64(len(ids)) || next+gap < next || next+gap+count < next+gap || next+gap+count > 1<<62 {
				return errors.New("a run that cannot be")
			}
			x := Attributed{First: next + gap, Count: count, By: ids[which], Time: at, Late: mark == lateMark}
			a.runs = addRun(a.runs, x)
			next += gap + count
		}
	default:
		return fmt.Errorf("a frame of kind %q", mark)
	}
	if r.short() || len(r.rest) > 0 {
		return errors.New("a frame of another length than it says")
	}
	return nil
}

// reader reads a payload; once it is short it stays so.
type reader struct{ rest []byte }

func (r *reader) short() bool { return r.rest == nil }

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) bytes(n int) []byte {
	if len(r.rest) < n {
		r.rest = nil
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) number() uint64 {
	x, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.rest = nil
		return 0
	}
	r.rest = r.rest[n:]
	return x
}

// AttributedEntry is an entry that a record names.
type AttributedEntry struct {
	Index uint64
	Time  time.Time // when it was recorded
	Late  bool
	Entry *entry.Entry // nil if it is not published yet, or cannot be read
}

// Entries yields the entries of runs in order, as far as they are published
// read from the log in dir. It ends with the first error.
func Entries(ctx context.Context, dir string, runs []Attributed) iter.Seq2[AttributedEntry, error] {
	return func(yield func(AttributedEntry, error) bool) {
		p, _, err := Ended(dir)
		if err != nil {
			yield(AttributedEntry{}, err)
			return
		}
		entriesOf(tree{ctx, directory(filepath.Join(dir, engineDir)), int64(p.Size), nil}, runs, yield)
	}
}

// EntriesIn is Entries for a log of the given size whose tiles are in files.
func EntriesIn(ctx context.Context, files Files, size uint64, runs []Attributed) iter.Seq2[AttributedEntry, error] {
	return func(yield func(AttributedEntry, error) bool) {
		entriesOf(tree{ctx, filesSource{files}, int64(size), nil}, runs, yield)
	}
}

func entriesOf(t tree, runs []Attributed, yield func(AttributedEntry, error) bool) {
	size := uint64(t.size)
	for _, r := range runs {
		for at, end := r.First, r.First+r.Count; at < end; {
			n := min(end-at, tileWidth-at%tileWidth) // of one bundle
			var leaves [][]byte
			if at < size {
				err := t.ctx.Err()
				if err == nil {
					leaves, err = t.leaves(int64(at), int(min(n, size-at)))
				}
				if err != nil {
					yield(AttributedEntry{}, err)
					return
				}
			}
			for i := range n {
				x := AttributedEntry{Index: at + i, Time: r.Time, Late: r.Late}
				if i < uint64(len(leaves)) {
					if e, err := entry.Parse(leaves[i]); err == nil {
						x.Entry = e
					}
				}
				if !yield(x, nil) {
					return
				}
			}
			at += n
		}
	}
}
