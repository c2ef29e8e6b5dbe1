package logserver

// The journal: entries that have their index and are not in the tiles yet.
//
//	decided ─▶ journal, one fsync ─▶ index, receipt ─▶ storage engine ─▶ tiles
//
// The engine makes a batch durable with some ten fsyncs one after the other; the
// journal needs one, so that an index is known early and the engine gets larger
// batches. What an entry's place is, the journal decides: the server is the
// engine's only writer and gives it entries in the journal's order. Nothing is
// signed, and no proof made, from the journal: that takes tiles.
//
// A segment is begun with the index of its first entry, and removed once all its
// entries are in the tiles. A segment that begins where an older one has entries
// stands in their place: they were being written when a write failed, and nobody
// was told of them. At the start, what the tiles lack is given to the engine
// before anything else (see Log.takeIn).
//
// The journal also says who logged what, before the file that keeps it does.
//
// Who can change the journal can make the log take entries that nobody
// submitted, until the next start; it is as much the log's as its tiles are.
// Losing it loses entries that are in no checkpoint: receipts, never an
// acknowledgement.
//
// A segment is a sequence of frames, as in attribution.go. A payload is one of
// (numbers are uvarints):
//
//	'J' version first origin     first
//	'E' first (ID entry)...      entries, from index first on, and the IDs of the
//	                             credentials that logged them; each a length and
//	                             itself. The empty ID is the log itself.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/portbook/portbook/entry"
	"golang.org/x/sys/unix"
)

const (
	journalDir     = "journal"
	journalVersion = 1
	journalMark    = 'J'
	entriesMark    = 'E'
	// segmentMax bytes, about, before the next segment is begun.
	segmentMax = 16 << 20
	// segmentStep zeros are written behind what made a segment longer: a sync of
	// what is written over them later waits for no change of the file's length.
	segmentStep = 128 << 10
	// frameMax bytes of entries, and one more entry, are in one frame.
	frameMax = 1 << 20
	// maxJournalFrame bounds one frame.
	maxJournalFrame = frameMax + entry.MaxSize + maxID + 64
)

// journalDamage says that what the journal has cannot be made out. Readers hear
// of its text, which leaves away the file.
type journalDamage struct{ file, what string }

func (e *journalDamage) Error() string {
	return fmt.Sprintf("the journal is damaged (%s): entries that are in no checkpoint are lost, which at most receipts were given for; "+
		"stop the server and move the directory %s away to go on without them", e.what, journalDir)
}

// journal is the open journal of an embedded log. One goroutine at a time
// appends; free may be called beside it.
type journal struct {
	dir, origin string

	// Owned by who appends.
	f       *os.File // nil: the next append begins a segment
	written int64    // to f
	head    int64    // of it are f's head
	length  int64    // of f
	next    uint64   // index of the next entry
	number  uint64   // of the last segment
	buf     []byte

	mu       sync.Mutex
	segments []segment // guarded by mu; oldest first
	known    uint64    // guarded by mu; next, for others
	tiled    uint64    // guarded by mu; entries below are in the tiles

	testSync func() error // instead of syncing, in tests
}

// journaled is an entry in the journal.
type journaled struct {
	by   string // ID of the credential
	leaf []byte
}

// segment is one file of the journal.
type segment struct {
	number uint64
	first  uint64 // index of its first entry
}

func (s segment) name() string { return fmt.Sprintf("%012d", s.number) }

// readJournal reads the journal in dir, without changing it: the entries from
// index first on. No journal is an empty one, from 0. Its last frame may be
// torn: it was told to nobody.
func readJournal(dir, origin string) (first uint64, entries []journaled, segments []segment, err error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil, nil, nil
	}
	if err != nil {
		return 0, nil, nil, fmt.Errorf("%w: journal: %w", ErrStorage, withoutPath(err))
	}
	begun := false            // a segment with a head was read
	for _, f := range names { // in the order of their numbers
		n, err := strconv.ParseUint(f.Name(), 10, 64)
		if err != nil || f.Name() != (segment{number: n}).name() {
			return 0, nil, nil, &journalDamage{f.Name(), "no file of a journal"}
		}
		raw, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return 0, nil, nil, fmt.Errorf("%w: journal: %w", ErrStorage, withoutPath(err))
		}
		s := segment{number: n}
		head, rest := cutFrame(raw)
		if head == nil {
			if followed(raw) {
				return 0, nil, nil, &journalDamage{f.Name(), "its head is unreadable"}
			}
			segments = append(segments, segment{n, first + uint64(len(entries))}) // begun, and cut off by a crash
			continue
		}
		of, err := parseHead(head, &s.first)
		switch {
		case err != nil:
			return 0, nil, nil, &journalDamage{f.Name(), err.Error()}
		case of != origin:
			return 0, nil, nil, &journalDamage{f.Name(), fmt.Sprintf("it is of the log %q", of)}
		case !begun:
			first = s.first
		case s.first < first:
			return 0, nil, nil, &journalDamage{f.Name(), fmt.Sprintf("a segment begins at entry %d, the first at %d", s.first, first)}
		case s.first > first+uint64(len(entries)):
			// It was begun when the tiles had more, and the older ones were still
			// there. If the tiles have less than its first entry, that is found out.
			first, entries = s.first, nil
		}
		begun = true
		segments = append(segments, s)
		entries = entries[:s.first-first]
		for len(rest) > 0 {
			payload, after := cutFrame(rest)
			if payload == nil {
				if followed(rest) {
					return 0, nil, nil, &journalDamage{f.Name(), fmt.Sprintf("what comes after entry %d is unreadable", first+uint64(len(entries)))}
				}
				break
			}
			if entries, err = parseEntries(payload, first+uint64(len(entries)), entries); err != nil {
				return 0, nil, nil, &journalDamage{f.Name(), err.Error()}
			}
			rest = after
		}
	}
	return first, entries, segments, nil
}

// cutFrame takes the first frame's payload off raw; nil if there is none that is
// whole.
func cutFrame(raw []byte) (payload, rest []byte) {
	if len(raw) < frameHead {
		return nil, nil
	}
	n := int64(binary.LittleEndian.Uint32(raw))
	if n == 0 || n > maxJournalFrame || n > int64(len(raw)-frameHead) {
		return nil, nil
	}
	payload = raw[frameHead : frameHead+n]
	if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(raw[4:]) {
		return nil, nil
	}
	return payload, raw[frameHead+n:]
}

// followed reports whether a whole frame of entries begins somewhere in raw
// behind its start: then what raw begins with is not the journal's torn end.
func followed(raw []byte) bool {
	for at := 1; at+frameHead < len(raw); at++ {
		next := bytes.IndexByte(raw[at+frameHead:], entriesMark)
		if next < 0 {
			return false
		}
		at += next
		if payload, _ := cutFrame(raw[at:]); payload != nil {
			return true
		}
	}
	return false
}

func parseHead(p []byte, first *uint64) (origin string, err error) {
	if p[0] != journalMark {
		return "", errors.New("it does not begin with a head")
	}
	version, n := binary.Uvarint(p[1:])
	if n <= 0 || version != journalVersion {
		return "", fmt.Errorf("it is of version %d, not %d", version, journalVersion)
	}
	p = p[1+n:]
	if *first, n = binary.Uvarint(p); n <= 0 {
		return "", errors.New("its head is cut short")
	}
	return string(p[n:]), nil
}

// parseEntries appends the entries of a payload, the first of which must be of
// index next.
func parseEntries(p []byte, next uint64, entries []journaled) ([]journaled, error) {
	if p[0] != entriesMark {
		return nil, errors.New("a frame is of no known kind")
	}
	first, n := binary.Uvarint(p[1:])
	if n <= 0 || first != next {
		return nil, fmt.Errorf("entry %d stands where %d should", first, next)
	}
	item := func(r *reader, most uint64) []byte {
		if n := r.number(); n <= most {
			return r.bytes(int(n))
		}
		r.rest = nil
		return nil
	}
	for r := (&reader{p[1+n:]}); len(r.rest) > 0; {
		by := item(r, maxID)
		leaf := item(r, entry.MaxSize)
		if r.short() || len(leaf) == 0 {
			return nil, errors.New("an entry is not of the length it says")
		}
		entries = append(entries, journaled{string(by), leaf})
	}
	return entries, nil
}

// InJournal is how many entries the journal of the log in dir has that its
// storage, of the given size, lacks: the next start of the server takes them in.
func InJournal(dir string, id Identity, size uint64) (uint64, error) {
	first, entries, _, err := readJournal(filepath.Join(dir, journalDir), id.Origin)
	if end := first + uint64(len(entries)); err == nil && end > size {
		return end - size, nil
	}
	return 0, err
}

// openJournal begins to append at index next; what the journal had before is in
// the tiles, and removed.
func openJournal(dir, origin string, old []segment, next uint64) (*journal, error) {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = syncDir(filepath.Dir(dir))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: journal: %w", ErrStorage, withoutPath(err))
	}
	j := &journal{dir: dir, origin: origin, next: next, segments: old, known: next}
	if n := len(old); n > 0 {
		j.number = old[n-1].number
	}
	if err := j.begin(); err != nil {
		return nil, err
	}
	return j, j.free(next)
}

// begin begins a segment at the next entry. It is not durable before its
// directory is: an entry is told to nobody before.
func (j *journal) begin() error {
	s := segment{j.number + 1, j.next}
	f, err := os.OpenFile(filepath.Join(j.dir, s.name()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("%w: journal: %w", ErrStorage, withoutPath(err))
	}
	j.number++ // also if what follows fails: the file may stay
	head := binary.AppendUvarint([]byte{journalMark}, journalVersion)
	head = append(binary.AppendUvarint(head, s.first), j.origin...)
	j.buf = frame(j.buf[:0], head)
	_, err = f.Write(j.buf)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(j.dir)
	}
	if err != nil {
		return fmt.Errorf("%w: journal: %w", ErrStorage, errors.Join(withoutPath(err), f.Close(), withoutPath(os.Remove(f.Name()))))
	}
	j.f, j.written, j.head, j.length = f, int64(len(j.buf)), int64(len(j.buf)), int64(len(j.buf))
	j.mu.Lock()
	j.segments = append(j.segments, s)
	j.mu.Unlock()
	return nil
}

// append gives entries the next indexes, durably. After an error none of them
// has one.
func (j *journal) append(subs []*submission) (first uint64, err error) {
	if j.f != nil && j.written > segmentMax {
		err := j.f.Close()
		j.f = nil
		if err != nil {
			return 0, fmt.Errorf("%w: journal: %w", ErrStorage, withoutPath(err))
		}
	}
	if j.f == nil {
		if err := j.begin(); err != nil {
			return 0, err
		}
	}
	j.buf = j.buf[:0]
	for at := j.next; len(subs) > int(at-j.next); {
		at = j.appendFrame(at, subs[at-j.next:])
	}
	n := int64(len(j.buf))
	if j.written+n > j.length {
		j.buf = append(j.buf, make([]byte, segmentStep)...)
	}
	_, err = j.f.WriteAt(j.buf, j.written)
	if err == nil {
		err = j.sync()
	}
	if err != nil {
		// Nobody knows what of it is on the disk. The next segment begins in its
		// place.
		return 0, j.fail(err)
	}
	j.length = max(j.length, j.written+int64(len(j.buf)))
	j.written += n
	first = j.next
	j.next += uint64(len(subs))
	j.mu.Lock()
	j.known = j.next
	j.mu.Unlock()
	return first, nil
}

// appendFrame puts a frame of entries, the first of which has index at, into the
// buffer, and returns the index of the first that is not in it.
func (j *journal) appendFrame(at uint64, subs []*submission) uint64 {
	from := len(j.buf)
	j.buf = append(j.buf, make([]byte, frameHead)...)
	j.buf = binary.AppendUvarint(append(j.buf, entriesMark), at)
	for _, s := range subs {
		j.buf = append(binary.AppendUvarint(j.buf, uint64(len(s.by))), s.by...)
		j.buf = append(binary.AppendUvarint(j.buf, uint64(len(s.leaf))), s.leaf...)
		at++
		if len(j.buf)-from > frameMax {
			break
		}
	}
	payload := j.buf[from+frameHead:]
	binary.LittleEndian.PutUint32(j.buf[from:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(j.buf[from+4:], crc32.Checksum(payload, castagnoli))
	return at
}

// fail ends a segment whose last write failed.
func (j *journal) fail(err error) error {
	err = withoutPath(err)
	if j.written == j.head { // it has nothing: a disk that fails again and again is not filled
		j.mu.Lock()
		j.segments = j.segments[:len(j.segments)-1]
		j.mu.Unlock()
		err = errors.Join(err, withoutPath(os.Remove(j.f.Name())))
	}
	err = errors.Join(err, withoutPath(j.f.Close()))
	j.f = nil
	return fmt.Errorf("%w: journal: %w", ErrStorage, err)
}

// ready reports whether entries can be written, after a write has failed.
func (j *journal) ready() error {
	if j.f != nil {
		return nil
	}
	if err := j.begin(); err != nil {
		return err
	}
	if err := j.sync(); err != nil {
		return j.fail(err)
	}
	return nil
}

func (j *journal) sync() error {
	if j.testSync != nil {
		return j.testSync()
	}
	return unix.Fdatasync(int(j.f.Fd()))
}

// free removes segments whose entries are all below size, which the tiles have
// durably.
func (j *journal) free(size uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.tiled = size
	for len(j.segments) > 1 && j.segments[1].first <= size {
		if err := os.Remove(filepath.Join(j.dir, j.segments[0].name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: journal: %w", ErrStorage, withoutPath(err))
		}
		j.segments = slices.Delete(j.segments, 0, 1)
	}
	return nil
}

// end is how many entries have their index.
func (j *journal) end() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.known
}

// waiting is how many of them are not in the tiles yet; no journal has none.
func (j *journal) waiting() uint64 {
	if j == nil {
		return 0
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.known - j.tiled
}

// close ends appending. A journal whose entries are all in the tiles leaves
// nothing.
func (j *journal) close() error {
	if j == nil || j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	if j.waiting() > 0 {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range j.segments {
		err = errors.Join(err, withoutPath(os.Remove(filepath.Join(j.dir, s.name()))))
	}
	j.segments = nil
	return err
}
