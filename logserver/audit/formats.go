package audit

// The byte formats around a leaf: signed notes and checkpoints, tile paths,
// tiles, bundles. Each has one encoding; everything else is refused.

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// hash is a node of the tree.
type hash [32]byte

const (
	maxNote     = 512 << 10
	maxSigs     = 100
	maxBundle   = 256 * (2 + 65535)
	perTile     = 256
	tileLevels  = 8 // 256^8 > 2^63
	checkpoint  = "checkpoint"
	sigPrefix   = "\u2014 "
	shortestSig = 5 // key ID and one byte
)

// Checkpoint is a signed tree head (c2sp.org/tlog-checkpoint).
type Checkpoint struct {
	Origin string
	Size   int64
	Root   [32]byte
}

// parseCheckpoint reads a signed note and the checkpoint in it, which one of the
// keys must have signed. Signatures of other keys are ignored; one of a known
// key that is wrong spoils the note.
func parseCheckpoint(raw []byte, keys []signer) (Checkpoint, error) {
	text, sigs, err := splitNote(raw)
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := parseBody(text)
	if err != nil {
		return c, err
	}
	signed := false
	for _, s := range sigs {
		for _, k := range keys {
			if k.Name() != s.name || k.KeyHash() != s.id {
				continue
			}
			if !k.Verify([]byte(text), s.sig) {
				return c, fmt.Errorf("the signature of %q is wrong", s.name)
			}
			signed = signed || s.name == c.Origin && (!k.Retired || c.Size <= k.UpTo)
		}
	}
	if !signed {
		return c, errors.New("not signed by the log's key")
	}
	return c, nil
}

type signature struct {
	name string
	id   uint32
	sig  []byte
}

// splitNote cuts a signed note (c2sp.org/signed-note) into its text, which ends
// in a newline, and its signatures.
func splitNote(raw []byte) (text string, sigs []signature, err error) {
	if len(raw) > maxNote {
		return "", nil, errors.New("note longer than 512 KiB")
	}
	if !utf8.Valid(raw) {
		return "", nil, errors.New("note is not UTF-8")
	}
	for _, c := range raw {
		if c < 0x20 && c != '\n' {
			return "", nil, errors.New("note has a control character")
		}
	}
	at := bytes.LastIndex(raw, []byte("\n\n"))
	if at < 0 || raw[len(raw)-1] != '\n' {
		return "", nil, errors.New("not a signed note: no empty line before the signatures, or no newline at the end")
	}
	text = string(raw[:at+1])
	lines := raw[at+2:]
	if len(lines) == 0 {
		return "", nil, errors.New("note without a signature")
	}
	for line := range strings.Lines(string(lines)) {
		name, blob, ok := strings.Cut(strings.TrimPrefix(strings.TrimSuffix(line, "\n"), sigPrefix), " ")
		if !ok || !strings.HasPrefix(line, sigPrefix) || name == "" || strings.Contains(name, "+") || strings.ContainsFunc(name, unicode.IsSpace) {
			return "", nil, errors.New("malformed signature line")
		}
		sig, err := base64.StdEncoding.Strict().DecodeString(blob)
		if err != nil || len(sig) < shortestSig {
			return "", nil, errors.New("malformed signature")
		}
		if sigs = append(sigs, signature{name, binary.BigEndian.Uint32(sig), sig[4:]}); len(sigs) > maxSigs {
			return "", nil, errors.New("note with more than 100 signatures")
		}
	}
	return text, sigs, nil
}

// parseBody reads the text of a checkpoint: origin, size, root, and extension
// lines, which are legal and mean nothing here.
func parseBody(text string) (Checkpoint, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[0] == "" {
		return Checkpoint{}, errors.New("not a checkpoint: fewer than three lines")
	}
	for _, extension := range lines[3 : len(lines)-1] {
		if extension == "" {
			return Checkpoint{}, errors.New("checkpoint with an empty extension line")
		}
	}
	c := Checkpoint{Origin: lines[0]}
	if !isDecimal([]byte(lines[1])) {
		return c, errors.New("checkpoint: size is not a number without leading zeros")
	}
	var err error
	if c.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return c, errors.New("checkpoint: size is 2^63 or more")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(c.Root) {
		return c, errors.New("checkpoint: root is not base64 of 32 bytes")
	}
	c.Root = [32]byte(root)
	return c, nil
}

// tile names a tile, or, at level -1, an entry bundle.
type tile struct {
	level int
	index int64
	width int // 1 to 256
}

// path is the tile's path (c2sp.org/tlog-tiles).
func (t tile) path() string {
	n := fmt.Sprintf("%03d", t.index%1000)
	for i := t.index / 1000; i > 0; i /= 1000 {
		n = fmt.Sprintf("x%03d/", i%1000) + n
	}
	kind := "entries"
	if t.level >= 0 {
		kind = strconv.Itoa(t.level)
	}
	if t.width < perTile {
		n += ".p/" + strconv.Itoa(t.width)
	}
	return "tile/" + kind + "/" + n
}

// parsePath reads a tile path. It builds the path anew from what it understood
// and refuses what is not the same.
func parsePath(path string) (tile, bool) {
	parts := strings.Split(path, "/")
	if len(parts) < 3 || len(parts) > 12 || parts[0] != "tile" {
		return tile{}, false
	}
	t := tile{level: -1, width: perTile}
	var err error
	if parts[1] != "entries" {
		if t.level, err = strconv.Atoi(parts[1]); err != nil || t.level < 0 || t.level >= tileLevels {
			return tile{}, false
		}
	}
	parts = parts[2:]
	if n := len(parts); n >= 2 && strings.HasSuffix(parts[n-2], ".p") {
		if t.width, err = strconv.Atoi(parts[n-1]); err != nil || t.width < 1 || t.width >= perTile {
			return tile{}, false
		}
		parts = parts[:n-1]
		parts[n-2] = strings.TrimSuffix(parts[n-2], ".p")
	}
	for i, p := range parts {
		if i < len(parts)-1 {
			p = strings.TrimPrefix(p, "x")
		}
		v, err := strconv.Atoi(p)
		if err != nil || v < 0 || v > 999 || t.index > 1<<52 {
			return tile{}, false
		}
		t.index = 1000*t.index + int64(v)
	}
	return t, t.path() == path
}

// within reports whether a tree of size has the tile at its width.
func (t tile) within(size int64) bool {
	return t.index*perTile+int64(t.width) <= size>>(8*max(t.level, 0))
}

// last is the index and width of the rightmost tile at a level of a tree; width
// 0 if the level has none. A level that is full to its edge ends in a full tile.
func last(level int, size int64) (index int64, width int) {
	n := size >> (8 * level)
	if n == 0 {
		return 0, 0
	}
	index = (n - 1) / perTile
	return index, int(n - index*perTile)
}

// splitTile cuts the bytes of a tile into its hashes.
func splitTile(raw []byte, width int, into []hash) ([]hash, error) {
	if len(raw) != 32*width {
		return nil, fmt.Errorf("has %d bytes, %d hashes have %d", len(raw), width, 32*width)
	}
	for ; len(raw) > 0; raw = raw[32:] {
		into = append(into, hash(raw))
	}
	return into, nil
}

// splitBundle cuts an entry bundle into its entries, each behind its length in
// two bytes. ends[i] is where entry i ends.
func splitBundle(raw []byte, width int, ends []int) ([]int, error) {
	at := 0
	for i := range width {
		if len(raw)-at < 2 {
			return ends, fmt.Errorf("ends before entry %d of %d", i, width)
		}
		at += 2 + int(binary.BigEndian.Uint16(raw[at:]))
		if at > len(raw) {
			return ends, fmt.Errorf("ends inside entry %d of %d", i, width)
		}
		ends = append(ends, at)
	}
	if at != len(raw) {
		return ends, fmt.Errorf("has %d bytes after its %d entries", len(raw)-at, width)
	}
	return ends, nil
}
