// A position in a log: everything before it has been rehashed to a root. The
// compact range is the list of roots of the perfect subtrees that make up the
// tree so far (RFC 6962 section 2.1), enough to go on hashing from there.

package monitor

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"

	"github.com/transparency-dev/merkle/compact"

	"github.com/portbook/portbook/c2sp"
)

var emptyRoot = sha256.Sum256(nil)

// Position is how far a log has been verified. The zero value, with Root
// filled in by NewPosition, is the beginning.
type Position struct {
	Size  uint64     // leaves before it
	Root  [32]byte   // of the tree of those leaves
	Range [][32]byte // one hash for each bit set in Size, largest subtree first
}

// NewPosition is the beginning of every log.
func NewPosition() Position { return Position{Root: emptyRoot} }

// check refuses a position whose parts contradict each other.
func (p *Position) check() error {
	if len(p.Range) != bits.OnesCount64(p.Size) {
		return fmt.Errorf("position %d: compact range has %d hashes, must have %d", p.Size, len(p.Range), bits.OnesCount64(p.Size))
	}
	if p.root() != p.Root {
		return fmt.Errorf("position %d: compact range does not hash to the root beside it", p.Size)
	}
	return nil
}

// clone returns a position that shares no memory with p.
func (p *Position) clone() Position {
	return Position{p.Size, p.Root, append(make([][32]byte, 0, 64), p.Range...)}
}

// add appends the root of a perfect subtree of 2^level leaves. Size must be a
// multiple of 2^level. Root is left alone until seal.
func (p *Position) add(h [32]byte, level uint) {
	for n := p.Size >> level; n&1 == 1; n >>= 1 {
		last := len(p.Range) - 1
		h = nodeHash(&p.Range[last], &h)
		p.Range = p.Range[:last]
	}
	p.Range = append(p.Range, h)
	p.Size += 1 << level
}

// seal computes Root.
func (p *Position) seal() { p.Root = p.root() }

func (p *Position) root() [32]byte {
	if len(p.Range) == 0 {
		return emptyRoot
	}
	r := p.Range[len(p.Range)-1]
	for i := len(p.Range) - 2; i >= 0; i-- {
		r = nodeHash(&p.Range[i], &r)
	}
	return r
}

// nodeHash is RFC 6962's SHA-256(0x01 || left || right).
func nodeHash(left, right *[32]byte) [32]byte {
	var b [65]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[33:], right[:])
	return sha256.Sum256(b[:])
}

// TileReader reads the tiles of hashes of a log; *client.Reader is one.
type TileReader interface {
	// Tile returns exactly 32·width bytes.
	Tile(ctx context.Context, level int, index uint64, width int) ([]byte, error)
}

// tree reads inner nodes of the tree of one size, each tile once. What it
// returns is as true as the tiles: its users compare with a signed root.
type tree struct {
	r     TileReader
	size  uint64
	tiles map[c2sp.Tile][]byte
}

func newTree(r TileReader, size uint64) *tree {
	return &tree{r, size, map[c2sp.Tile][]byte{}}
}

// extend adds the leaves up to p.Size < end <= size to p, by the nodes that
// cover them, and returns those nodes' hashes.
func (t *tree) extend(ctx context.Context, p *Position, end uint64) ([][32]byte, error) {
	var hashes [][32]byte
	for _, id := range compact.RangeNodes(p.Size, end, nil) {
		h, err := t.node(ctx, id)
		if err != nil {
			return nil, err
		}
		p.add(h, id.Level)
		hashes = append(hashes, h)
	}
	p.seal()
	return hashes, nil
}

func (t *tree) node(ctx context.Context, id compact.NodeID) ([32]byte, error) {
	level := int(id.Level / 8)
	first := id.Index << (id.Level % 8) // of 2^(level%8) hashes at the tile's level
	tile := c2sp.Tile{Level: level, Index: first / c2sp.TileWidth}
	tile.Width = int(min(c2sp.TileWidth, t.size>>(8*level)-tile.Index*c2sp.TileWidth))
	b, ok := t.tiles[tile]
	if !ok {
		var err error
		if b, err = t.r.Tile(ctx, tile.Level, tile.Index, tile.Width); err != nil {
			return [32]byte{}, fmt.Errorf("read %s: %w", tile.Path(), err)
		}
		if len(b) != 32*tile.Width {
			return [32]byte{}, fmt.Errorf("read %s: %d bytes, must be %d", tile.Path(), len(b), 32*tile.Width)
		}
		t.tiles[tile] = b
	}
	hashes := make([][32]byte, 1<<(id.Level%8))
	for i := range hashes {
		hashes[i] = [32]byte(b[32*(int(first%c2sp.TileWidth)+i):])
	}
	return perfectRoot(hashes), nil
}

// PositionAt builds the position after the first size leaves of a verified
// checkpoint's tree from tiles, for who wants to follow a log from there on
// without reading its past. The hashes are proven: completed to the whole tree
// they must make up the checkpoint's root.
func PositionAt(ctx context.Context, r TileReader, cp c2sp.Checkpoint, size uint64) (Position, error) {
	if size > cp.Size {
		return Position{}, fmt.Errorf("the log has %d entries; there is no position %d yet", cp.Size, size)
	}
	t, p := newTree(r, cp.Size), NewPosition()
	if _, err := t.extend(ctx, &p, size); err != nil {
		return Position{}, err
	}
	whole := p.clone()
	if _, err := t.extend(ctx, &whole, cp.Size); err != nil {
		return Position{}, err
	}
	if whole.Root != cp.Root {
		return Position{}, &InconsistentError{From: 0, To: cp.Size, Reason: "the log's tiles do not hash to the root of its own checkpoint"}
	}
	return p, nil
}

// InconsistentError reports that what the log serves is not what it signed.
type InconsistentError struct {
	From, To uint64 // leaves concerned, half open
	Reason   string
}

func (e *InconsistentError) Error() string {
	return fmt.Sprintf("entries %d to %d: %s", e.From, e.To, e.Reason)
}

var errBackwards = errors.New("monitor: cannot scan backwards")
