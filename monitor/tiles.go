// Tiles computed from the leaves in our own database, for when the log no
// longer serves what it once signed.

package monitor

import (
	"context"
	"fmt"

	"github.com/portbook/portbook/entry"
)

// ownTiles is a TileReader over the verified leaves of a log. It costs one
// hash for each leaf below the tile.
type ownTiles struct {
	store *Store
	log   int64
}

func (o ownTiles) Tile(ctx context.Context, level int, index uint64, width int) ([]byte, error) {
	span := uint64(1) << (8 * level) // leaves under one hash of the tile
	first, n := index*256*span, uint64(width)*span
	rows, err := o.store.r.QueryContext(ctx, `SELECT leaf FROM entry WHERE log = ? AND idx >= ? AND idx < ? ORDER BY idx`, o.log, first, first+n)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer rows.Close()
	p := NewPosition()
	out := make([]byte, 0, 32*width)
	for rows.Next() {
		var leaf []byte
		if err := rows.Scan(&leaf); err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		p.add(entry.LeafHash(leaf), 0)
		if p.Size == span {
			out = append(out, p.Range[0][:]...)
			p = NewPosition()
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	if len(out) != 32*width {
		return nil, fmt.Errorf("database: the leaves from %d to %d are not complete", first, first+n)
	}
	return out, nil
}
