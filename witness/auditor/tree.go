package auditor

// RFC 6962 by the letter, over the tiles of a log or of our own copy: MTH, PATH,
// PROOF, and the Subtree Consistency Proof of a package of entries.

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/bits"

	"github.com/portbook/portbook/c2sp"
)

type hash = [32]byte

// tileReader has the tiles of a log.
type tileReader interface {
	// Tile returns exactly 32*t.Width bytes.
	Tile(ctx context.Context, t c2sp.Tile) ([]byte, error)
}

// maxRemembered bounds the nodes that a tree remembers, some 100 B each.
const maxRemembered = 1 << 15

// A tree is the tree of one size as its tiles have it. What it computes is as
// true as the tiles: compare it with a signed root. It is for one goroutine.
type tree struct {
	ctx   context.Context
	tiles tileReader
	size  uint64
	nodes map[node]hash
	last  map[c2sp.Tile][]byte // a few tiles
}

// A node is the root of the 2^level leaves from index*2^level on.
type node struct {
	level int
	index uint64
}

func newTree(ctx context.Context, tiles tileReader, size uint64) *tree {
	return &tree{ctx: ctx, tiles: tiles, size: size, nodes: map[node]hash{}, last: map[c2sp.Tile][]byte{}}
}

// split is the largest power of two below n > 1.
func split(n uint64) uint64 { return 1 << (bits.Len64(n-1) - 1) }

// mth is MTH(D[lo:hi]), where lo is a multiple of the smallest power of two that
// is not below hi-lo, and hi is too, or the size.
func (t *tree) mth(lo, hi uint64) (hash, error) {
	n := hi - lo
	if n == 0 {
		return c2sp.EmptyRoot, nil
	}
	if n&(n-1) == 0 {
		level := bits.TrailingZeros64(n)
		return t.node(node{level, lo >> level})
	}
	k := split(n)
	left, err := t.mth(lo, lo+k)
	if err != nil {
		return hash{}, err
	}
	right, err := t.mth(lo+k, hi)
	return nodeHash(left, right), err
}

func (t *tree) root() (hash, error) { return t.mth(0, t.size) }

// node returns the hash of a complete subtree, out of the tile that has it or
// those of which it can be hashed together.
func (t *tree) node(n node) (hash, error) {
	if h, ok := t.nodes[n]; ok {
		return h, nil
	}
	level, below := n.level/8, n.level%8
	first := n.index << below // of 2^below hashes at the tile's level
	tile := c2sp.Tile{Level: level, Index: first / c2sp.TileWidth}
	have := t.size >> (8 * level)
	if first+1<<below > have {
		return hash{}, fmt.Errorf("no node %d/%d in a tree of size %d", n.level, n.index, t.size)
	}
	tile.Width = int(min(c2sp.TileWidth, have-tile.Index*c2sp.TileWidth))
	raw, ok := t.last[tile]
	if !ok {
		var err error
		if raw, err = t.tiles.Tile(t.ctx, tile); err != nil {
			return hash{}, err
		}
		if len(t.last) >= 16 {
			clear(t.last)
		}
		t.last[tile] = raw
	}
	at := int(first % c2sp.TileWidth)
	row := make([]hash, 1<<below)
	for i := range row {
		row[i] = hash(raw[32*(at+i):])
	}
	if len(t.nodes) >= maxRemembered {
		clear(t.nodes)
	}
	h := perfect(row)
	t.nodes[n] = h
	return h, nil
}

// path is the audit path of the subtree [start, end), which is a node of the
// tree: from its sibling upwards. For one leaf it is PATH(start, D[size]); for a
// package of entries it is its subtree consistency proof.
func (t *tree) path(start, end uint64) ([]hash, error) {
	var out []hash
	lo, hi := uint64(0), t.size
	for lo != start || hi != end {
		if hi-lo < 2 || start < lo || end > hi {
			return nil, fmt.Errorf("[%d, %d) is no node of a tree of size %d", start, end, t.size)
		}
		mid := lo + split(hi-lo)
		a, b := mid, hi // the sibling
		if start >= mid {
			a, b = lo, mid
			lo = mid
		} else {
			hi = mid
		}
		h, err := t.mth(a, b)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out, nil
}

// consistency is PROOF(old, D[size]).
func (t *tree) consistency(old uint64) ([]hash, error) {
	if old == 0 || old == t.size {
		return nil, nil
	}
	return t.subproof(old, 0, t.size, true)
}

func (t *tree) subproof(m, lo, hi uint64, known bool) ([]hash, error) {
	n := hi - lo
	if m == n {
		if known {
			return nil, nil
		}
		h, err := t.mth(lo, hi)
		return []hash{h}, err
	}
	k := split(n)
	a, b := lo+k, hi // the other half
	var out []hash
	var err error
	if m <= k {
		out, err = t.subproof(m, lo, lo+k, known)
	} else {
		a, b = lo, lo+k
		out, err = t.subproof(m-k, lo+k, hi, false)
	}
	if err != nil {
		return nil, err
	}
	h, err := t.mth(a, b)
	return append(out, h), err
}

// rootOf is the root of a few leaf hashes, any number.
func rootOf(leaves []hash) hash {
	switch n := uint64(len(leaves)); n {
	case 0:
		return c2sp.EmptyRoot
	case 1:
		return leaves[0]
	default:
		k := split(n)
		return nodeHash(rootOf(leaves[:k]), rootOf(leaves[k:]))
	}
}

// perfect overwrites row, whose length is a power of two, and returns its root.
func perfect(row []hash) hash {
	for n := len(row); n > 1; n /= 2 {
		for i := range n / 2 {
			row[i] = nodeHash(row[2*i], row[2*i+1])
		}
	}
	return row[0]
}

func nodeHash(left, right hash) hash {
	var b [65]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[33:], right[:])
	return sha256.Sum256(b[:])
}
