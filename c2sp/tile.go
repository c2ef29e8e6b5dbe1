package c2sp

// Tile paths and entry bundles, c2sp.org/tlog-tiles.

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

const (
	// TileWidth is the number of hashes of a full tile, and of entries of a
	// full bundle.
	TileWidth = 256
	// MaxBundle is the most bytes a bundle may have: 256 entries of 65 535
	// bytes with their lengths.
	MaxBundle = TileWidth * (2 + 1<<16 - 1)
)

// maxTileIndex bounds a tile's index at any level: a tree of fewer than 2^63
// leaves has fewer tiles than this at level 0.
const maxTileIndex = 1 << 55

// A Tile names a resource of a log: hashes of the tree, or entries.
type Tile struct {
	Level int    // 0..63; -1 means a bundle of entries
	Index uint64 // within the level
	Width int    // 1..256; below 256 the tile is partial
}

// ParseTilePath reads a path as [Tile.Path] writes it. The path is never used
// itself, so nothing in it can climb out of a directory. The error is a
// [*MalformedError].
func ParseTilePath(path string) (Tile, error) {
	fail := func(why string) (Tile, error) {
		return Tile{}, malformed("tile path", "%s: %s", quote(path), why)
	}
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || len(path) > 100 {
		return fail("not of the form tile/<level>/<index>[.p/<width>]")
	}
	var t Tile
	level, rest, _ := strings.Cut(rest, "/")
	if level == "entries" {
		t.Level = -1
	} else {
		n, ok := parseSize(level)
		if !ok || n > 63 {
			return fail("the level is neither 0..63 nor \"entries\"")
		}
		t.Level = int(n)
	}
	index, width, partial := strings.Cut(rest, ".p/")
	t.Width = TileWidth
	if partial {
		n, ok := parseSize(width)
		if !ok || n < 1 || n >= TileWidth {
			return fail("the width is not 1..255")
		}
		t.Width = int(n)
	}
	elems := strings.Split(index, "/")
	for i, e := range elems {
		if i < len(elems)-1 {
			if e, ok = strings.CutPrefix(e, "x"); !ok {
				return fail("all but the last element of the index begin with x")
			}
		}
		n, err := strconv.ParseUint(e, 10, 16)
		if err != nil || len(e) != 3 {
			return fail("an element of the index is not three digits")
		}
		if t.Index = t.Index*1000 + n; t.Index >= maxTileIndex {
			return fail("the index is too large for any tree")
		}
	}
	if t.Path() != path {
		return fail("not in its one form, " + t.Path())
	}
	return t, nil
}

// Path returns where the tile is below the log's URL prefix, such as
// "tile/0/x001/067.p/8" or "tile/entries/000".
func (t Tile) Path() string {
	level := "entries"
	if t.Level >= 0 {
		level = strconv.Itoa(t.Level)
	}
	index := fmt.Sprintf("%03d", t.Index%1000)
	for n := t.Index / 1000; n > 0; n /= 1000 {
		index = fmt.Sprintf("x%03d/%s", n%1000, index)
	}
	path := "tile/" + level + "/" + index
	if t.Width != TileWidth {
		path += ".p/" + strconv.Itoa(t.Width)
	}
	return path
}

// ParseBundle splits an entry bundle into exactly width entries. They share
// memory with b. The error is a [*MalformedError].
func ParseBundle(b []byte, width int) ([][]byte, error) {
	if width < 1 || width > TileWidth {
		return nil, malformed("entry bundle", "a width of %d is not 1..%d", width, TileWidth)
	}
	entries := make([][]byte, 0, width)
	for i := range width {
		if len(b) < 2 {
			return nil, malformed("entry bundle", "it ends before entry %d of %d", i+1, width)
		}
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; len(b) < n {
			return nil, malformed("entry bundle", "entry %d of %d is cut off", i+1, width)
		}
		entries = append(entries, b[:n:n])
		b = b[n:]
	}
	if len(b) > 0 {
		return nil, malformed("entry bundle", "%d bytes after the last of %d entries", len(b), width)
	}
	return entries, nil
}
