package client

// Merkle proofs built from tiles, and the one computation on which judging a
// log rests: the root that the tiles give at two sizes at once.

import (
	"context"
	"fmt"

	"github.com/portbook/portbook/c2sp"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Inclusion builds the proof that the entry at index is in the tree of this
// size. It is as true as the tiles: check it with c2sp.VerifyInclusion.
func (r *Reader) Inclusion(ctx context.Context, index, size uint64) ([][32]byte, error) {
	nodes, err := proof.Inclusion(index, size)
	if err != nil {
		return nil, fmt.Errorf("inclusion proof: %w", err)
	}
	return buildProof(ctx, r, size, nodes)
}

// Consistency builds the proof that the tree of size old is a prefix of that of
// this size. It is as true as the tiles: check it with c2sp.VerifyConsistency.
func (r *Reader) Consistency(ctx context.Context, old, size uint64) ([][32]byte, error) {
	nodes, err := proof.Consistency(old, size)
	if err != nil {
		return nil, fmt.Errorf("consistency proof: %w", err)
	}
	return buildProof(ctx, r, size, nodes)
}

func buildProof(ctx context.Context, r TileReader, size uint64, nodes proof.Nodes) ([][32]byte, error) {
	hashes, err := newTileTree(r, size).nodes(ctx, nodes.IDs)
	if err != nil {
		return nil, err
	}
	hashes, err = nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
	if err != nil {
		return nil, fmt.Errorf("building a proof: %w", err)
	}
	out := make([][32]byte, len(hashes))
	for i, h := range hashes {
		out[i] = [32]byte(h)
	}
	return out, nil
}

// A tileTree computes inner nodes of the tree of one size from its tiles. It
// fetches each tile once.
type tileTree struct {
	r     TileReader
	size  uint64
	tiles map[c2sp.Tile][]byte
}

func newTileTree(r TileReader, size uint64) *tileTree {
	return &tileTree{r: r, size: size, tiles: map[c2sp.Tile][]byte{}}
}

func (t *tileTree) nodes(ctx context.Context, ids []compact.NodeID) ([][]byte, error) {
	out := make([][]byte, len(ids))
	for i, id := range ids {
		h, err := t.node(ctx, id)
		if err != nil {
			return nil, err
		}
		out[i] = h
	}
	return out, nil
}

// node returns the hash of a complete subtree. Those whose level is a multiple
// of 8 are in a tile; the others are hashed together from one tile.
func (t *tileTree) node(ctx context.Context, id compact.NodeID) ([]byte, error) {
	level, below := int(id.Level/8), id.Level%8
	first := id.Index << below // in hashes of the tile level
	tile := c2sp.Tile{Level: level, Index: first / c2sp.TileWidth, Width: c2sp.TileWidth}
	if have := t.size >> (8 * level); tile.Index == have/c2sp.TileWidth {
		tile.Width = int(have % c2sp.TileWidth)
	}
	b, ok := t.tiles[tile]
	if !ok {
		var err error
		if b, err = t.r.Tile(ctx, tile.Level, tile.Index, tile.Width); err != nil {
			return nil, err
		}
		if len(b) != 32*tile.Width { // a TileReader is not always ours
			return nil, &CannotCheck{Code: CodeBadAnswer, Reason: fmt.Sprintf("%s has %d bytes instead of %d", tile.Path(), len(b), 32*tile.Width)}
		}
		t.tiles[tile] = b
	}
	off := int(first % c2sp.TileWidth)
	if off+1<<below > tile.Width {
		return nil, fmt.Errorf("no node %d/%d in a tree of size %d", id.Level, id.Index, t.size)
	}
	row := make([][]byte, 1<<below)
	for i := range row {
		row[i] = b[32*(off+i) : 32*(off+i+1)]
	}
	for len(row) > 1 {
		for i := range len(row) / 2 {
			row[i] = rfc6962.DefaultHasher.HashChildren(row[2*i], row[2*i+1])
		}
		row = row[:len(row)/2]
	}
	return row[0], nil
}

// prefixHashes returns the complete subtrees that make up [0, old) and then
// [old, size) in the tree of this size. They give both roots; see [c2sp.PrefixRoots].
func prefixHashes(ctx context.Context, r TileReader, old, size uint64) ([][32]byte, error) {
	ids := compact.RangeNodes(old, size, compact.RangeNodes(0, old, nil))
	hashes, err := newTileTree(r, size).nodes(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := make([][32]byte, len(hashes))
	for i, h := range hashes {
		out[i] = [32]byte(h)
	}
	return out, nil
}
