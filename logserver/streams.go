package logserver

// How far named submission streams have come, so that a caller that lost its
// connection, or its own state, goes on where it was.
//
// A position is durable before the answer it is about is sent: a caller is never
// ahead of it. It follows the entries it counts, which are durable by then, so
// it is never ahead of the log. All streams that move at once share a write.
//
// An embedded log keeps a file of fixed records. What of it is unreadable is
// forgotten: a stream then begins anew, and its entries, submitted again, get
// the indexes they have. The whole file can be deleted. A shared log keeps rows
// in its database: see shared_streams.go.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"sync"

	"github.com/portbook/portbook/entry"
)

const (
	streamsFile = "streams"
	// maxStreams are remembered; those that moved longest ago are forgotten first.
	maxStreams = 10_000
	// maxStreamRecords are written before the file is made anew, short.
	maxStreamRecords = 100_000
)

// streamKey is of a credential and the stream's name.
type streamKey = [24]byte

// streamRecord is the position of one stream. In a file it is 44 bytes: key,
// position, and least as big-endian integers, and the CRC-32C of these.
type streamRecord struct {
	key      streamKey
	position uint64 // so many entries have been answered
	least    uint64 // entries that the log must have for this to be so
}

// streamStore keeps the positions of streams.
type streamStore interface {
	// position is where a stream stands: 0 if nothing is kept of it, or what is
	// kept counts entries that the log does not have.
	position(ctx context.Context, key streamKey) (uint64, error)
	// write keeps records, of one stream each, durably or fails; no position goes
	// back. One call is made at a time.
	write(batch []streamRecord) error
	close() error
}

// streams are the named streams of a log.
type streams struct {
	store streamStore

	mu      sync.Mutex
	written *sync.Cond   // of mu; a write has ended
	next    *streamWrite // guarded by mu; to be written; nil: nothing
	writing bool         // guarded by mu
}

// streamWrite is what one write keeps.
type streamWrite struct {
	records map[streamKey]streamRecord
	done    bool
	err     error
}

func newStreams(store streamStore) *streams {
	s := &streams{store: store}
	s.written = sync.NewCond(&s.mu)
	return s
}

// streamProgress is one open named stream. Its owner is who answers the stream.
type streamProgress struct {
	of       *streams
	key      streamKey
	accepted uint64 // when it was opened
	kept     uint64 // its position, as far as this call knows
}

var streamName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// open finds how far the credential's stream of this name has come.
func (s *streams) open(ctx context.Context, by, name string) (*streamProgress, error) {
	if !streamName.MatchString(name) {
		return nil, &entry.FieldError{Field: "stream", Reason: "want 1 to 64 of A-Z a-z 0-9 . _ -"}
	}
	sum := sha256.Sum256([]byte(by + "\x00" + name))
	key := streamKey(sum[:])
	at, err := s.store.position(ctx, key)
	return &streamProgress{of: s, key: key, accepted: at, kept: at}, err
}

// advance says that the entries before position have been answered; it returns
// once that is durable. least is how many entries the log has by then.
func (p *streamProgress) advance(position, least uint64) error {
	if position <= p.kept {
		return nil // sent again from an earlier place
	}
	s := p.of
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.next
	if w == nil {
		w = &streamWrite{records: map[streamKey]streamRecord{}}
		s.next = w
	}
	was := w.records[p.key] // of another call under this name
	w.records[p.key] = streamRecord{p.key, max(position, was.position), max(least, was.least)}
	for !w.done {
		if s.writing {
			s.written.Wait()
			continue
		}
		s.next, s.writing = nil, true // it is w
		s.mu.Unlock()
		err := s.store.write(slices.Collect(maps.Values(w.records)))
		s.mu.Lock()
		w.done, w.err, s.writing = true, err, false
		s.written.Broadcast()
	}
	if w.err == nil {
		p.kept = position
	}
	return w.err
}

func (s *streams) close() error {
	if s == nil {
		return nil // the log was never opened so far
	}
	return s.store.close()
}

const streamRecordSize = 24 + 8 + 8 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r streamRecord) append(b []byte) []byte {
	from := len(b)
	b = append(b, r.key[:]...)
	b = binary.BigEndian.AppendUint64(b, r.position)
	b = binary.BigEndian.AppendUint64(b, r.least)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[from:], castagnoli))
}

func parseStreamRecord(b []byte) (r streamRecord, ok bool) {
	copy(r.key[:], b)
	r.position, r.least = binary.BigEndian.Uint64(b[24:]), binary.BigEndian.Uint64(b[32:])
	return r, crc32.Checksum(b[:40], castagnoli) == binary.BigEndian.Uint32(b[40:])
}

// streamFile implements streamStore in a file.
type streamFile struct {
	path string
	size func(context.Context) (uint64, error) // of the log, what is durable

	mu     sync.Mutex
	read   bool                       // guarded by mu; the file has been read
	known  map[streamKey]streamRecord // guarded by mu; on disk
	moved  map[streamKey]uint64       // guarded by mu; number of a stream's last record
	number uint64                     // guarded by mu; of the last record

	// Owned by who writes.
	file    *os.File // nil: to be made anew
	records int      // in the file
}

// newStreamFile is the file at path, which is to be loaded.
func newStreamFile(path string, size func(context.Context) (uint64, error)) *streamFile {
	return &streamFile{path: path, size: size, known: map[streamKey]streamRecord{}, moved: map[streamKey]uint64{}}
}

// openStreams opens the streams that are kept in the file at path.
func openStreams(path string, size func(context.Context) (uint64, error)) (*streams, error) {
	j := newStreamFile(path, size)
	return newStreams(j), j.load()
}

// load reads the file; a missing one is empty. Before, nobody is told of a
// position. After an error it may be called again; once it has succeeded it does
// nothing.
func (j *streamFile) load() error {
	j.mu.Lock()
	read := j.read
	j.mu.Unlock()
	if read {
		return nil
	}
	clear(j.known)
	clear(j.moved)
	raw, err := os.ReadFile(j.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: progress of streams: %w", ErrStorage, withoutPath(err))
	}
	for ; len(raw) >= streamRecordSize; raw = raw[streamRecordSize:] {
		r, ok := parseStreamRecord(raw)
		if !ok {
			break // torn by a crash, or damaged: what follows counts for nothing
		}
		j.note(r)
	}
	if err := j.forget(); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.read = true
	return nil
}

// forget drops, for good, what says more than the log has: it went back while
// nobody looked, and will be that long again with other entries.
func (j *streamFile) forget() error {
	if len(j.known) == 0 {
		return nil
	}
	size, err := j.size(context.Background())
	if err != nil {
		return fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
	}
	before := len(j.known)
	for k, r := range j.known {
		if r.least > size {
			delete(j.known, k)
			delete(j.moved, k)
		}
	}
	if len(j.known) == before {
		return nil
	}
	if err := j.rewrite(); err != nil {
		return fmt.Errorf("%w: progress of streams: %w", ErrStorage, withoutPath(err))
	}
	return nil
}

func (j *streamFile) note(r streamRecord) {
	j.number++
	j.known[r.key], j.moved[r.key] = r, j.number
}

// close implements streamStore.
func (j *streamFile) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	return j.file.Close()
}

// position implements streamStore.
func (j *streamFile) position(ctx context.Context, key streamKey) (uint64, error) {
	j.mu.Lock()
	r, read := j.known[key], j.read
	j.mu.Unlock()
	switch {
	case !read:
		return 0, fmt.Errorf("%w: progress of streams: it has not been read yet", ErrStorage)
	case r.position == 0:
		return 0, nil
	}
	size, err := j.size(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
	}
	if r.least > size {
		return 0, nil // the log was another, or longer, when this was written
	}
	return r.position, nil
}

// write implements streamStore: it appends the records, or makes the file anew
// with them.
func (j *streamFile) write(batch []streamRecord) error {
	if j.file == nil || j.records > maxStreamRecords {
		if err := j.rewrite(); err != nil {
			return fmt.Errorf("%w: progress of streams: %w", ErrStorage, withoutPath(err))
		}
	}
	var raw []byte
	var moved []streamRecord
	j.mu.Lock()
	for _, r := range batch {
		if was := j.known[r.key]; was.position < r.position {
			r.least = max(r.least, was.least)
			moved = append(moved, r)
			raw = r.append(raw)
		}
	}
	j.mu.Unlock()
	if len(moved) == 0 {
		return nil
	}
	_, err := j.file.Write(raw)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil { // what is there now is not known
		j.file.Close()
		j.file = nil
		return fmt.Errorf("%w: progress of streams: %w", ErrStorage, withoutPath(err))
	}
	j.records += len(moved)
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range moved {
		j.note(r)
	}
	return nil
}

// rewrite makes the file of what is known, oldest first.
func (j *streamFile) rewrite() error {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
	j.mu.Lock()
	keys := slices.SortedFunc(maps.Keys(j.known), func(a, b streamKey) int {
		if j.moved[a] < j.moved[b] {
			return -1
		}
		return 1
	})
	if excess := len(keys) - maxStreams; excess > 0 {
		for _, k := range keys[:excess] {
			delete(j.known, k)
			delete(j.moved, k)
		}
		keys = keys[excess:]
	}
	var raw bytes.Buffer
	for _, k := range keys {
		raw.Write(j.known[k].append(nil))
	}
	j.mu.Unlock()
	if err := writeDurably(j.path, raw.Bytes(), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	j.file, j.records = f, len(keys)
	return nil
}
