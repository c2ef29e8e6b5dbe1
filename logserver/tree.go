package logserver

// The tree as the tiles have it: hashes, proofs and roots are read from the
// c2sp.org/tlog-tiles files that readers get, never from the storage engine's
// own bookkeeping, so that what we sign is what can be read.

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/portbook/portbook/c2sp"
	"golang.org/x/mod/sumdb/tlog"
)

// errUnreadable says that storage does not hold what a tree of some size must
// have: a missing or short tile or bundle.
var errUnreadable = errors.New("log storage is incomplete")

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// tileSource is what we read of tessera.LogReader: tiles and bundles by
// level, index and width (0 for a full one), as raw bytes. It may answer a
// request for a partial tile with a wider one.
type tileSource interface {
	ReadTile(ctx context.Context, level, index uint64, p uint8) ([]byte, error)
	ReadEntryBundle(ctx context.Context, index uint64, p uint8) ([]byte, error)
}

// readTile reads a tile or entry bundle, or the wider one that src has of it.
func readTile(ctx context.Context, src tileSource, t c2sp.Tile) ([]byte, error) {
	if t.Level < 0 {
		return src.ReadEntryBundle(ctx, t.Index, uint8(t.Width%tileWidth))
	}
	return src.ReadTile(ctx, uint64(t.Level), t.Index, uint8(t.Width%tileWidth))
}

// tree reads one tree size from tiles. It is a tlog.HashReader. Expanded tiles
// are shared with the trees before and after it through cache.
type tree struct {
	ctx   context.Context
	src   tileSource
	size  int64
	cache *tileCache // nil: every hash is read afresh
}

// ReadHashes implements tlog.HashReader for stored hashes of the tree.
func (t tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		tileLevel, height := level/tileHeight, level%tileHeight
		tileIndex := n >> (tileHeight - height)
		x, err := t.tile(tileLevel, tileIndex)
		if err != nil {
			return nil, err
		}
		row, at := x[height], n&(tileWidth>>height-1)
		if at >= int64(len(row)) {
			return nil, fmt.Errorf("%w: tile %d/%d has no node %d at height %d", errUnreadable, tileLevel, tileIndex, at, height)
		}
		out[i] = row[at]
	}
	return out, nil
}

// expanded is a tile with its inner nodes: expanded[h] are the nodes at height
// h above the tile's leaves.
type expanded [tileHeight][]tlog.Hash

func (t tree) tile(level int, index int64) (*expanded, error) {
	atLevel := t.size >> (level * tileHeight)
	width := min(atLevel-index*tileWidth, tileWidth)
	if width <= 0 {
		return nil, fmt.Errorf("%w: no tile %d/%d in a tree of %d", errUnreadable, level, index, t.size)
	}
	key := tileKey{level, index, width}
	if t.cache != nil {
		if x := t.cache.get(key); x != nil {
			return x, nil
		}
	}
	raw, err := t.src.ReadTile(t.ctx, uint64(level), uint64(index), uint8(width%tileWidth))
	if err != nil {
		return nil, unreadable(err, fmt.Sprintf("tile %d/%d, width %d", level, index, width))
	}
	if int64(len(raw)) < width*sha256.Size || len(raw)%sha256.Size != 0 {
		return nil, fmt.Errorf("%w: tile %d/%d has %d bytes, want %d", errUnreadable, level, index, len(raw), width*sha256.Size)
	}
	x := new(expanded)
	x[0] = make([]tlog.Hash, width)
	for i := range x[0] {
		copy(x[0][i][:], raw[i*sha256.Size:])
	}
	for h := 1; h < tileHeight; h++ {
		below := x[h-1]
		x[h] = make([]tlog.Hash, len(below)/2)
		for i := range x[h] {
			x[h][i] = tlog.NodeHash(below[2*i], below[2*i+1])
		}
	}
	if t.cache != nil {
		t.cache.put(key, x)
	}
	return x, nil
}

// unreadable tells a file that is not there, which is damage, from one that
// cannot be read at the moment, which is trouble.
func unreadable(err error, what string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing", errUnreadable, what)
	}
	return fmt.Errorf("%w: reading %s: %w", ErrStorage, what, withoutPath(err))
}

// withoutPath drops the file name from a file error: no path of this machine
// reaches a submitter.
func withoutPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError // of a rename
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}

// root is the tree's root hash.
func (t tree) root() ([32]byte, error) {
	if t.size == 0 {
		return c2sp.EmptyRoot, nil
	}
	h, err := tlog.TreeHash(t.size, t)
	return h, err
}

// inclusion is the RFC 6962 §2.1.1 inclusion proof of the leaf at index.
func (t tree) inclusion(index int64) ([][32]byte, error) {
	p, err := tlog.ProveRecord(t.size, index, t)
	return plain(p), err
}

// consistency is the RFC 6962 §2.1.2 proof that the tree of size old is a
// prefix of t. It is empty from size 0 and between equal sizes.
func (t tree) consistency(old int64) ([][32]byte, error) {
	if old == 0 || old == t.size {
		return nil, nil
	}
	p, err := tlog.ProveTree(t.size, old, t)
	return plain(p), err
}

func plain[S ~[]tlog.Hash](s S) [][32]byte {
	out := make([][32]byte, len(s))
	for i, h := range s {
		out[i] = h
	}
	return out
}

// leaves returns the entries [from, from+n) of one bundle.
func (t tree) leaves(from int64, n int) ([][]byte, error) {
	index := from / tileWidth
	width := min(t.size-index*tileWidth, tileWidth)
	first := from % tileWidth
	if width <= 0 || first+int64(n) > width {
		return nil, fmt.Errorf("%w: no entries [%d, %d) in a tree of %d", errUnreadable, from, from+int64(n), t.size)
	}
	raw, err := t.src.ReadEntryBundle(t.ctx, uint64(index), uint8(width%tileWidth))
	if err != nil {
		return nil, unreadable(err, fmt.Sprintf("entry bundle %d, width %d", index, width))
	}
	raw, err = truncateBundle(raw, int(width))
	if err != nil {
		return nil, fmt.Errorf("%w: entry bundle %d: %w", errUnreadable, index, err)
	}
	all, err := c2sp.ParseBundle(raw, int(width))
	if err != nil {
		return nil, fmt.Errorf("%w: entry bundle %d: %w", errUnreadable, index, err)
	}
	return all[first : first+int64(n)], nil
}

// matches compares the hash of entry index with the tree's leaf.
func (t tree) matches(index int64, hash tlog.Hash) error {
	tile, err := t.tile(0, index/tileWidth)
	if err != nil {
		return err
	}
	return matches(index, hash, tile[0][index%tileWidth])
}

func matches(index int64, hash, want tlog.Hash) error {
	if hash != want {
		return fmt.Errorf("%w: entry %d does not hash to its leaf in the tile", errUnreadable, index)
	}
	return nil
}

// each calls do with every leaf in [from, t.size), in order.
func (t tree) each(from int64, do func(index int64, leaf []byte) error) error {
	for from < t.size {
		n := int(min(tileWidth-from%tileWidth, t.size-from))
		leaves, err := t.leaves(from, n)
		if err != nil {
			return err
		}
		for i, leaf := range leaves {
			if err := do(from+int64(i), leaf); err != nil {
				return err
			}
		}
		from += int64(n)
		if err := t.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// truncateBundle cuts a bundle that may be wider than asked for to its first
// width entries (each a big-endian uint16 length and the entry).
func truncateBundle(b []byte, width int) ([]byte, error) {
	at := 0
	for range width {
		if len(b)-at < 2 {
			return nil, errors.New("bundle ends early")
		}
		at += 2 + int(b[at])<<8 + int(b[at+1])
		if at > len(b) {
			return nil, errors.New("bundle ends early")
		}
	}
	return b[:at], nil
}

// tileCache keeps the most recently used expanded tiles, some 16 kB each.
type tileCache struct {
	mu     sync.Mutex
	tiles  map[tileKey]*expanded // guarded by mu
	before map[tileKey]*expanded // guarded by mu; the generation before tiles
}

type tileKey struct {
	level int
	index int64
	width int64
}

// tilesPerGeneration bounds the cache to twice as many tiles, some 16 MB.
const tilesPerGeneration = 512

func newTileCache() *tileCache { return &tileCache{tiles: map[tileKey]*expanded{}} }

func (c *tileCache) get(k tileKey) *expanded {
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.tiles[k]
	if x == nil {
		if x = c.before[k]; x != nil {
			c.add(k, x)
		}
	}
	return x
}

func (c *tileCache) put(k tileKey, x *expanded) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(k, x)
}

func (c *tileCache) add(k tileKey, x *expanded) {
	if len(c.tiles) >= tilesPerGeneration {
		c.before, c.tiles = c.tiles, make(map[tileKey]*expanded, tilesPerGeneration)
	}
	c.tiles[k] = x
}
