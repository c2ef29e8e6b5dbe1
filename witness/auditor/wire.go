package auditor

// The body of add-entries, c2sp.org/tlog-mirror: binary, of any size, read one
// package at a time.

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/portbook/portbook/c2sp"
)

// maxHashes is the longest subtree consistency proof.
const maxHashes = 63

// leafCost is what an entry in memory costs beside its bytes.
const leafCost = 64

// readUpload reads the header of an add-entries request. The ticket is read and
// means nothing: which checkpoints are pending stands in our own database.
func readUpload(r *bufio.Reader) (*upload, error) {
	origin, err := readSized(r, "log_origin")
	if err != nil {
		return nil, err
	}
	u := &upload{origin: string(origin)}
	for _, f := range []struct {
		to   *uint64
		name string
	}{{&u.start, "upload_start"}, {&u.end, "upload_end"}} {
		var b [8]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, &MalformedError{"it ends within " + f.name}
		}
		if *f.to = binary.BigEndian.Uint64(b[:]); *f.to >= 1<<63 {
			return nil, &MalformedError{f.name + " is not below 2^63"}
		}
	}
	if _, err := readSized(r, "ticket"); err != nil {
		return nil, err
	}
	if u.start > u.end {
		return nil, &MalformedError{fmt.Sprintf("upload_start %d is above upload_end %d", u.start, u.end)}
	}
	return u, nil
}

// readSized reads a value with its length before it, in two bytes.
func readSized(r *bufio.Reader, what string) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, &MalformedError{"it ends within the length of " + what}
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, &MalformedError{"it ends within " + what}
	}
	return b, nil
}

// readPack reads the package of entries [start, end). The memory for each is asked
// for first: 17 kB of gzip can be 16 MiB.
func readPack(r *intake, start, end uint64) (pack, error) {
	p := pack{start: start, end: end}
	for i := start; i < end; i++ {
		n, err := r.Peek(2)
		if err != nil {
			return pack{}, &MalformedError{fmt.Sprintf("it ends within the length of entry %d", i)}
		}
		if err := r.guest.take(int(binary.BigEndian.Uint16(n)) + leafCost); err != nil {
			return pack{}, err
		}
		leaf, err := readSized(r.Reader, fmt.Sprintf("entry %d", i))
		if err != nil {
			return pack{}, err
		}
		p.leaves = append(p.leaves, leaf)
	}
	n, err := r.ReadByte()
	if err != nil {
		return pack{}, &MalformedError{"it ends before num_hashes"}
	}
	if n > maxHashes {
		return pack{}, &MalformedError{fmt.Sprintf("num_hashes is %d; at most %d are read", n, maxHashes)}
	}
	p.proof = make([]hash, n)
	for i := range p.proof {
		if _, err := io.ReadFull(r, p.proof[i][:]); err != nil {
			return pack{}, &MalformedError{"it ends within a proof"}
		}
	}
	return p, nil
}

// canonical calls do with the bounds of each package of an upload.
func canonical(start, end uint64, do func(start, end uint64) error) error {
	for start < end {
		next := min(end, start/c2sp.TileWidth*c2sp.TileWidth+c2sp.TileWidth)
		if err := do(start, next); err != nil {
			return err
		}
		start = next
	}
	return nil
}
