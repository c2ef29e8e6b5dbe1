package logserver

// How far named submission streams have come, so that a caller that lost its
// connection, or its own state, goes on where it was.
//
// Progress is a journal of fixed records, each on disk before the answer it is
// about is sent: a caller is never ahead of it. A record follows the entries it
// counts, which are durable by then, so it is never ahead of the log. What is
// unreadable is forgotten: a stream then begins anew, and its entries, submitted
// again, get the indexes they have. The whole file can be deleted.

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
	// maxJournal records are written before the file is made anew, short.
	maxJournal = 100_000
)

// streamRecord is the position of one stream. On disk it is 44 bytes: key,
// position, and least as big-endian integers, and the CRC-32C of these.
type streamRecord struct {
	key      [24]byte // of the credential and the stream's name
	position uint64   // so many entries have been answered
	least    uint64   // entries that the log must have for this to be so
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

// streams is the open journal. Nil remembers nothing.
type streams struct {
	path string
	size func(context.Context) (uint64, error) // of the log, what is durable

	mu      sync.Mutex
	written *sync.Cond                // of mu; a write has ended
	known   map[[24]byte]streamRecord // guarded by mu; on disk
	moved   map[[24]byte]uint64       // guarded by mu; number of a stream's last record
	number  uint64                    // guarded by mu; of the last record
	waiting []*streamWrite            // guarded by mu; to be written
	writing bool                      // guarded by mu

	// Owned by who has set writing.
	file    *os.File // nil: to be made anew
	records int      // in the file
}

// streamWrite is a record on its way to disk.
type streamWrite struct {
	streamRecord
	done bool
	err  error
}

// openStreams reads the journal at path; a missing one is empty.
func openStreams(path string, size func(context.Context) (uint64, error)) (*streams, error) {
	s := &streams{path: path, size: size, known: map[[24]byte]streamRecord{}, moved: map[[24]byte]uint64{}}
	s.written = sync.NewCond(&s.mu)
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("progress of streams: %w", withoutPath(err))
	}
	for ; len(raw) >= streamRecordSize; raw = raw[streamRecordSize:] {
		r, ok := parseStreamRecord(raw)
		if !ok {
			break // torn by a crash, or damaged: what follows counts for nothing
		}
		s.note(r)
	}
	return s, s.forget()
}

// forget drops, for good, what says more than the log has: it went back while
// nobody looked, and will be that long again with other entries.
func (s *streams) forget() error {
	if len(s.known) == 0 {
		return nil
	}
	size, err := s.size(context.Background())
	if err != nil {
		return fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
	}
	before := len(s.known)
	for k, r := range s.known {
		if r.least > size {
			delete(s.known, k)
			delete(s.moved, k)
		}
	}
	if len(s.known) == before {
		return nil
	}
	if err := s.rewrite(); err != nil {
		return fmt.Errorf("%w: progress of streams: %w", ErrStorage, withoutPath(err))
	}
	return nil
}

func (s *streams) note(r streamRecord) {
	s.number++
	s.known[r.key], s.moved[r.key] = r, s.number
}

func (s *streams) close() error {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// streamProgress is one open named stream.
type streamProgress struct {
	of       *streams
	key      [24]byte
	accepted uint64 // when it was opened
}

var streamName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// open finds how far the credential's stream of this name has come.
func (s *streams) open(ctx context.Context, by, name string) (*streamProgress, error) {
	if !streamName.MatchString(name) {
		return nil, &entry.FieldError{Field: "stream", Reason: "want 1 to 64 of A-Z a-z 0-9 . _ -"}
	}
	sum := sha256.Sum256([]byte(by + "\x00" + name))
	p := &streamProgress{of: s, key: [24]byte(sum[:])}
	if s == nil {
		return p, nil
	}
	s.mu.Lock()
	r, ok := s.known[p.key]
	s.mu.Unlock()
	if !ok {
		return p, nil
	}
	size, err := s.size(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
	}
	if r.least <= size { // else the log was another, or longer, when this was written
		p.accepted = r.position
	}
	return p, nil
}

// advance says that the entries before position have been answered; it returns
// once that is durable. least is how many entries the log has by then.
func (p *streamProgress) advance(position, least uint64) error {
	s := p.of
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.known[p.key]
	if was.position >= position {
		return nil // sent again from an earlier place
	}
	w := &streamWrite{streamRecord: streamRecord{p.key, position, max(least, was.least)}}
	s.waiting = append(s.waiting, w)
	for !w.done {
		if s.writing {
			s.written.Wait()
			continue
		}
		batch := s.waiting // of all streams: one write
		s.waiting, s.writing = nil, true
		s.mu.Unlock()
		err := s.write(batch)
		s.mu.Lock()
		s.writing = false
		for _, w := range batch {
			w.done, w.err = true, err
			if err == nil && s.known[w.key].position < w.position {
				s.note(w.streamRecord)
			}
		}
		s.written.Broadcast()
	}
	return w.err
}

// write appends records durably, or makes the file anew with them.
func (s *streams) write(batch []*streamWrite) error {
	if s.file == nil || s.records > maxJournal {
		if err := s.rewrite(); err != nil {
			return fmt.Errorf("%w: progress of streams: %w", ErrStorage, withoutPath(err))
		}
	}
	var raw []byte
	for _, r := range batch {
		raw = r.append(raw)
	}
	_, err := s.file.Write(raw)
	if err == nil {
		err = s.file.Sync()
	}
	if err != nil { // what is there now is not known
		s.file.Close()
		s.file = nil
		return fmt.Errorf("%w: progress of streams: %w", ErrStorage, withoutPath(err))
	}
	s.records += len(batch)
	return nil
}

// rewrite makes the file of what is known, oldest first.
func (s *streams) rewrite() error {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
	s.mu.Lock()
	keys := slices.SortedFunc(maps.Keys(s.known), func(a, b [24]byte) int {
		if s.moved[a] < s.moved[b] {
			return -1
		}
		return 1
	})
	if excess := len(keys) - maxStreams; excess > 0 {
		for _, k := range keys[:excess] {
			delete(s.known, k)
			delete(s.moved, k)
		}
		keys = keys[excess:]
	}
	var raw bytes.Buffer
	for _, k := range keys {
		raw.Write(s.known[k].append(nil))
	}
	s.mu.Unlock()
	if err := writeDurably(s.path, raw.Bytes(), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	s.file, s.records = f, len(keys)
	return nil
}
