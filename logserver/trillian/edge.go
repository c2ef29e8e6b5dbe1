package trillian

// The right edge of the tree: the tiles and the bundle that are not full yet, from
// which both the root and the next tiles follow.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/tlog"
)

const tileWidth = layout.TileWidth

// edge is the right edge of a tree of some size.
type edge struct {
	size uint64
	// tiles[l] are the hashes of the tile of level l that is not full: as many as
	// size >> 8l has modulo 256.
	tiles  [][]tlog.Hash
	bundle []byte // the entries of the bundle that is not full
}

func (e *edge) clone() *edge {
	c := &edge{size: e.size, bundle: slices.Clone(e.bundle), tiles: make([][]tlog.Hash, len(e.tiles))}
	for i, t := range e.tiles {
		c.tiles[i] = append(make([]tlog.Hash, 0, tileWidth), t...)
	}
	return c
}

// append adds a leaf, whose hash the caller has, and hands the tiles and the
// bundle that it fills to emit.
func (e *edge) append(leaf []byte, hash tlog.Hash, emit func(Object)) {
	e.bundle = binary.BigEndian.AppendUint16(e.bundle, uint16(len(leaf)))
	e.bundle = append(e.bundle, leaf...)
	index := e.size
	e.size++
	for level := 0; ; level++ {
		if level == len(e.tiles) {
			e.tiles = append(e.tiles, make([]tlog.Hash, 0, tileWidth))
		}
		e.tiles[level] = append(e.tiles[level], hash)
		if len(e.tiles[level]) < tileWidth {
			return
		}
		index /= tileWidth
		if level == 0 {
			emit(Object{layout.EntriesPath(index, 0), e.bundle})
			e.bundle = nil
		}
		emit(Object{layout.TilePath(uint64(level), index, 0), tileBytes(e.tiles[level])})
		hash = perfect(e.tiles[level])
		e.tiles[level] = e.tiles[level][:0]
	}
}

// partials hands the partial tiles and bundle to emit that a tree of size from
// did not have.
func (e *edge) partials(from uint64, emit func(Object)) {
	for level, t := range e.tiles {
		shift := 8 * level
		if n := e.size >> shift; len(t) > 0 && n != from>>shift {
			if level == 0 {
				emit(Object{layout.EntriesPath(n/tileWidth, uint8(len(t))), slices.Clone(e.bundle)})
			}
			emit(Object{layout.TilePath(uint64(level), n/tileWidth, uint8(len(t))), tileBytes(t)})
		}
	}
}

func tileBytes(hashes []tlog.Hash) []byte {
	out := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return out
}

// perfect is the root over 2^k hashes.
func perfect(hashes []tlog.Hash) tlog.Hash {
	row := slices.Clone(hashes)
	for len(row) > 1 {
		for i := range len(row) / 2 {
			row[i] = tlog.NodeHash(row[2*i], row[2*i+1])
		}
		row = row[:len(row)/2]
	}
	return row[0]
}

// root is the RFC 6962 root: the perfect subtrees, joined from the right.
func (e *edge) root() [32]byte {
	var root tlog.Hash
	first := true
	for _, t := range e.tiles { // lowest level first: the rightmost subtrees
		for rest := len(t); rest > 0; {
			n := rest & -rest // the rightmost perfect subtree
			h := perfect(t[rest-n : rest])
			if first {
				root, first = h, false
			} else {
				root = tlog.NodeHash(h, root)
			}
			rest -= n
		}
	}
	if first {
		return emptyRoot
	}
	return root
}

// emptyRoot is the root of no leaves, RFC 6962 §2.1.
var emptyRoot = func() [32]byte {
	h, err := tlog.TreeHash(0, nil)
	if err != nil {
		panic(err)
	}
	return h
}()

// loadEdge reads the edge of a tree of some size, and checks that it gives root
// and that the partial bundle has the leaves that its tile says.
func loadEdge(ctx context.Context, s Store, size uint64, root [32]byte) (*edge, error) {
	e := &edge{size: size}
	for level := 0; size>>(8*level) > 0; level++ {
		n := size >> (8 * level)
		w, index := int(n%tileWidth), n/tileWidth
		tile := make([]tlog.Hash, 0, tileWidth)
		if w > 0 {
			raw, err := getWide(ctx, s, uint8(w), func(p uint8) string { return layout.TilePath(uint64(level), index, p) })
			if err := damaged(err, fmt.Sprintf("tile %d/%d, width %d", level, index, w)); err != nil {
				return nil, err
			}
			if len(raw) < w*tlog.HashSize {
				return nil, &StateError{fmt.Sprintf("tile %d/%d has %d bytes, want %d", level, index, len(raw), w*tlog.HashSize)}
			}
			for i := range w {
				tile = append(tile, tlog.Hash(raw[i*tlog.HashSize:(i+1)*tlog.HashSize]))
			}
		}
		e.tiles = append(e.tiles, tile)
	}
	if got := e.root(); got != root {
		return nil, &StateError{fmt.Sprintf("its tiles at size %d have the root %x, want %x", size, got, root)}
	}
	w := int(size % tileWidth)
	if w == 0 {
		return e, nil
	}
	index := size / tileWidth
	raw, err := getWide(ctx, s, uint8(w), func(p uint8) string { return layout.EntriesPath(index, p) })
	if err := damaged(err, fmt.Sprintf("entry bundle %d, width %d", index, w)); err != nil {
		return nil, err
	}
	at := 0
	for i := range w {
		leaf, next, err := bundleEntry(raw, at)
		if err != nil || tlog.RecordHash(leaf) != e.tiles[0][i] {
			return nil, &StateError{fmt.Sprintf("entry %d of bundle %d is not the one of its tile", i, index)}
		}
		at = next
	}
	e.bundle = slices.Clone(raw[:at])
	return e, nil
}

// damaged tells an object that is not there, though the integrated size says so,
// from trouble in reading it.
func damaged(err error, what string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &StateError{what + " is missing"}
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	return nil
}

// bundleEntry is the entry that begins at a place of a bundle, and where the
// next begins: a big-endian uint16 length, then the entry.
func bundleEntry(bundle []byte, at int) (leaf []byte, next int, err error) {
	if len(bundle)-at < 2 {
		return nil, 0, errors.New("the bundle ends early")
	}
	next = at + 2 + int(binary.BigEndian.Uint16(bundle[at:]))
	if next > len(bundle) {
		return nil, 0, errors.New("the bundle ends early")
	}
	return bundle[at+2 : next], next, nil
}
