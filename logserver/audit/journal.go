package audit

// The journal of a log's own directory: entries that have their index and may not
// be in the tiles yet. A second reading of the format in logserver/journal.go:
//
//	journal/000000000001   segments, read in the order of their numbers
//	segment                frames; then zeros, or what a crash left of a frame
//	frame                  uint32 length, uint32 CRC-32C of the payload (both little-endian), payload
//	payload                'J' version first origin | 'E' first (ID entry)...
//
// It is read before the tiles: what is taken out of a live log's journal
// meanwhile, they have.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	journalDir = "journal"
	maxSegment = 64 << 20 // bytes; the server begins another after 16 MiB and one batch
	maxFrame   = 16 << 20 // bytes
	maxID      = 64       // bytes
)

// journal is what was read of a journal.
type journal struct {
	there bool   // it has a segment with a head
	first int64  // index of the first entry
	leafs []hash // of the entries, from first on
	told  bool   // an entry that differs was reported
}

// end is how many entries a log with this journal has.
func (j *journal) end() int64 { return j.first + int64(len(j.leafs)) }

// readJournal reads the journal of the log in dir; that it has none is no fault.
func readJournal(dir, origin string, out *findings) *journal {
	for try := 0; ; try++ {
		j, where, err := parseJournal(filepath.Join(dir, journalDir), origin)
		var perr *fs.PathError
		switch {
		case err == nil:
			return j
		case errors.Is(err, fs.ErrNotExist) && try < 10: // a live log has removed a segment
		case errors.As(err, &perr):
			out.cannot("%s: %v", where, err)
			return nil
		default:
			out.add(Damage, "journal", where, "%v: receipts may have been given for entries that are lost", err)
			return nil
		}
	}
}

func parseJournal(dir, origin string) (j *journal, where string, err error) {
	j = &journal{}
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return j, "", nil
	}
	if err != nil {
		return nil, journalDir, err
	}
	for _, f := range files {
		where = journalDir + "/" + f.Name()
		if name := []byte(f.Name()); len(name) < 12 || len(bytes.Trim(name, "0123456789")) > 0 || !f.Type().IsRegular() {
			return nil, where, errors.New("is no file of a journal")
		}
		raw, err := directory(dir).read(context.Background(), f.Name(), maxSegment)
		if err != nil {
			return nil, where, err
		}
		if err := j.segment(raw, origin); err != nil {
			return nil, where, err
		}
	}
	return j, "", nil
}

// segment reads one segment. Where it begins among the entries of those before
// it, it stands in their place.
func (j *journal) segment(raw []byte, origin string) error {
	head, rest := nextFrame(raw)
	if head == nil {
		return tornOr(raw, "its head is unreadable")
	}
	version, n := binary.Uvarint(head[1:])
	if head[0] != 'J' || n <= 0 || version != 1 {
		return errors.New("it does not begin with a head of version 1")
	}
	first, m := binary.Uvarint(head[1+n:])
	if m <= 0 || first > 1<<53 {
		return errors.New("its head says no first entry")
	}
	if of := string(head[1+n+m:]); of != origin {
		return fmt.Errorf("it is of the log %q", of)
	}
	at := int64(first)
	if !j.there {
		j.there, j.first = true, at
	}
	if at < j.first || at > j.end() {
		return fmt.Errorf("it begins at entry %d, those before it have [%d, %d)", at, j.first, j.end())
	}
	j.leafs = j.leafs[:at-j.first]
	for len(rest) > 0 {
		payload, after := nextFrame(rest)
		if payload == nil {
			return tornOr(rest, fmt.Sprintf("what comes after its entry %d is unreadable", j.end()-1))
		}
		if err := j.entries(payload); err != nil {
			return err
		}
		rest = after
	}
	return nil
}

func (j *journal) entries(p []byte) error {
	if p[0] != 'E' {
		return errors.New("a frame is of no known kind")
	}
	first, n := binary.Uvarint(p[1:])
	if n <= 0 || first != uint64(j.end()) {
		return fmt.Errorf("entry %d stands where %d should", first, j.end())
	}
	for p = p[1+n:]; len(p) > 0; {
		var parts [2][]byte // ID, entry
		for i := range parts {
			length, n := binary.Uvarint(p)
			if n <= 0 || length > uint64(len(p)-n) || i == 0 && length > maxID {
				return fmt.Errorf("entry %d is not of the length that it says", j.end())
			}
			parts[i], p = p[n:n+int(length)], p[n+int(length):]
		}
		if err := new(leaf).parse(parts[1]); err != nil {
			if _, other := otherVersion(parts[1]); !other {
				return fmt.Errorf("entry %d: %w", j.end(), err)
			}
		}
		j.leafs = append(j.leafs, sha256.Sum256(append([]byte{0}, parts[1]...)))
	}
	return nil
}

// nextFrame cuts the frame that raw begins with; a nil payload: it is not whole.
func nextFrame(raw []byte) (payload, rest []byte) {
	if len(raw) < 8 {
		return nil, nil
	}
	n := binary.LittleEndian.Uint32(raw)
	if n == 0 || n > maxFrame || int(n) > len(raw)-8 {
		return nil, nil
	}
	payload = raw[8 : 8+n]
	if crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(raw[4:]) {
		return nil, nil
	}
	return payload, raw[8+n:]
}

// tornOr is nil if raw can be what a crash left of the last write, else why. It
// cannot if a whole frame of entries comes later: that was written, and synced,
// after it.
func tornOr(raw []byte, why string) error {
	for at := 1; at+8 < len(raw); at++ {
		next := bytes.IndexByte(raw[at+8:], 'E')
		if next < 0 {
			return nil
		}
		at += next
		if payload, _ := nextFrame(raw[at:]); payload != nil {
			return errors.New(why)
		}
	}
	return nil
}

// held returns take, with each entry that the tiles have held against the
// journal's.
func (j *journal) held(take func(*chunk, bool) error, out *findings) func(*chunk, bool) error {
	if j == nil || !j.there {
		return take
	}
	return func(c *chunk, sound bool) error {
		for i, h := range c.leaves {
			at := c.t.index*perTile + int64(i) - j.first
			if sound && !j.told && at >= 0 && at < int64(len(j.leafs)) && j.leafs[at] != h {
				j.told = true // those after it differ too
				out.add(Damage, "journal", fmt.Sprintf("entry %d", at+j.first), "it is another in the journal than in the tiles: one of them is of another time, or was changed; receipts were given for what the journal has")
			}
		}
		return take(c, sound)
	}
}

// judge says what the journal has beyond the tiles' size entries. known: the size
// is what the engine says.
func (j *journal) judge(size int64, known bool, out *findings) {
	switch {
	case j == nil || !j.there:
	case j.first > size && known:
		out.add(Damage, "journal", journalDir, "it begins at entry %d, and the tiles have %d: those between are lost, or the tiles were restored from a backup", j.first, size)
	case j.end() > size && !j.told:
		out.note("%d entries wait in the journal, from %d on: the server takes them into the tiles, at its next start if it is stopped", j.end()-max(size, j.first), max(size, j.first))
	}
}
