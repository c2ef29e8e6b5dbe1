package audit

// The walk over the tree. Workers read a bundle and the tile of its leaf hashes;
// one goroutine takes what they found in order, decides which of two that
// disagree is the damaged one by the tile above, and builds the levels up to
// the root of every size that somebody saw.

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash/maphash"
	"sync"
)

func nodeHash(a, b hash) hash {
	var buf [65]byte
	buf[0] = 1
	copy(buf[1:], a[:])
	copy(buf[33:], b[:])
	return sha256.Sum256(buf[:])
}

var emptyRoot = hash(sha256.Sum256(nil))

// subtree is the root of 2^k hashes.
func subtree(row []hash) hash {
	if len(row) == 1 {
		return row[0]
	}
	var level [perTile / 2]hash
	n := len(row) / 2
	for i := range n {
		level[i] = nodeHash(row[2*i], row[2*i+1])
	}
	for n > 1 {
		n /= 2
		for i := range n {
			level[i] = nodeHash(level[2*i], level[2*i+1])
		}
	}
	return level[0]
}

// peaks appends the roots of the perfect subtrees that a row of hashes falls
// into, left to right.
func peaks(out, row []hash) []hash {
	for len(row) > 0 {
		n := 1
		for 2*n <= len(row) {
			n *= 2
		}
		out = append(out, subtree(row[:n]))
		row = row[n:]
	}
	return out
}

// chunk is what a worker found of one bundle and the tile of its leaf hashes.
type chunk struct {
	t      tile   // the bundle, at the width that the audited tree has
	leaves []hash // of the bundle; nil if it is not there or not a bundle
	tile   []hash // of the tile; nil if it is not there or not of its length
	said   said   // by the entries

	leafRoom, tileRoom [perTile]hash
	ends               []int
	leaf               leaf
}

// walk is one audit of one tree.
type walk struct {
	src      source
	size     int64 // entries to cover
	out      *findings
	seed     maphash.Seed
	targets  map[int64][]*target // by size, ascending in sizes
	workers  int
	progress func(done, size int64)

	take func(c *chunk, sound bool) error // gets every chunk, in order; sound: the bundle is what was signed

	rows   [tileLevels][]hash // owned by the collector; rows[l] are the hashes of the tile at level l that is being filled
	above  parentTile
	tiles  int64
	missed bool // some bundle was not what was signed
	hurt   bool // something was found or could not be read: a root that differs may follow from it
}

// target is a root that the tree must have at a size.
type target struct {
	size int64
	root hash
	got  hash
}

// parentTile is the tile at level 1 that was read last, to decide by.
type parentTile struct {
	index int64
	row   []hash
	known bool
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

func (w *walk) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type job struct {
		index int64
		done  chan *chunk
	}
	jobs := make(chan job)
	order := make(chan chan *chunk, 4*w.workers)
	var working sync.WaitGroup
	for range w.workers {
		working.Go(func() {
			for j := range jobs {
				j.done <- w.look(ctx, j.index)
			}
		})
	}
	working.Go(func() {
		defer close(order)
		defer close(jobs)
		for i := int64(0); i*perTile < w.size; i++ {
			j := job{i, make(chan *chunk, 1)}
			select {
			case order <- j.done:
			case <-ctx.Done():
				return
			}
			select {
			case jobs <- j:
			case <-ctx.Done():
				j.done <- nil
				return
			}
		}
	})
	defer working.Wait()
	defer cancel()
	done := int64(0)
	for c := range order {
		ch := <-c
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.collect(ctx, ch); err != nil {
			return err
		}
		done += int64(ch.t.width)
		chunks.Put(ch)
		if w.progress != nil {
			w.progress(done, w.size)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	w.edge(ctx)
	return nil
}

// look reads bundle index and its tile.
func (w *walk) look(ctx context.Context, index int64) *chunk {
	c := chunks.Get().(*chunk)
	c.t = tile{-1, index, int(min(perTile, w.size-index*perTile))}
	c.leaves, c.tile = nil, nil
	c.said.reset(index * perTile)
	raw, where, err := readTile(ctx, w.src, c.t)
	if err == nil {
		c.ends, err = splitBundle(raw, c.t.width, c.ends[:0])
		if err != nil {
			w.out.add(Damage, "bundle", where, "%v", err)
		} else {
			c.leaves = c.leafRoom[:0]
			c.read(raw, w.seed)
		}
	} else {
		w.notRead(ctx, where, err)
	}
	t := c.t
	t.level = 0
	raw, where, err = readTile(ctx, w.src, t)
	if err == nil {
		row, err := splitTile(raw, t.width, c.tileRoom[:0])
		if err != nil {
			w.out.add(Damage, "tile", where, "%v", err)
		} else {
			c.tile = row
		}
	} else {
		w.notRead(ctx, where, err)
	}
	return c
}

func (w *walk) notRead(ctx context.Context, where string, err error) {
	switch {
	case ctx.Err() != nil:
	case missing(err):
		w.out.add(Damage, "missing", where, "the tree needs it: %v", plain(err))
	default:
		w.out.cannot("%s: %v", where, plain(err))
	}
}

// read hashes and parses the entries of a bundle. It overwrites their length
// bytes: a leaf hash is of a zero byte and the leaf.
func (c *chunk) read(raw []byte, seed maphash.Seed) {
	start := 0
	for _, end := range c.ends {
		raw[start+1] = 0
		c.leaves = append(c.leaves, sha256.Sum256(raw[start+1:end]))
		c.said.add(raw[start+2:end], &c.leaf, seed)
		start = end
	}
}

// collect decides on a chunk and moves its hash up. It is called in order.
func (w *walk) collect(ctx context.Context, c *chunk) error {
	w.tiles += 2
	whole := c.t.width == perTile
	agree := c.leaves != nil && c.tile != nil
	if agree {
		for i := range c.leaves {
			agree = agree && c.leaves[i] == c.tile[i]
		}
	}
	row, sound := c.leaves, true
	if !agree {
		w.hurt = true
		row, sound = w.judge(ctx, c)
	}
	for size, ts := range w.inside(c) {
		got := emptyRoot
		if size > 0 {
			n := int(size - c.t.index*perTile)
			got = w.root(row[:min(n, len(row))])
		}
		for _, t := range ts {
			t.got = got
		}
	}
	if !sound {
		w.missed = true
	}
	if whole {
		var h hash
		if row != nil {
			h = subtree(row)
		}
		if !agree {
			if p := w.parent(ctx, c.t.index/perTile); p != nil {
				h = p[c.t.index%perTile] // row's own, or better than either
			}
		}
		w.push(ctx, 1, h)
	}
	return w.take(c, sound)
}

// inside are the targets whose last entry is in the chunk, and, in the first
// one, those of the empty tree.
func (w *walk) inside(c *chunk) map[int64][]*target {
	first := c.t.index * perTile
	var in map[int64][]*target
	for n := range c.t.width + 1 {
		size := first + int64(n)
		if size == first && first > 0 {
			continue // of the chunk before
		}
		if ts := w.targets[size]; ts != nil {
			if in == nil {
				in = map[int64][]*target{}
			}
			in[size] = ts
		}
	}
	return in
}

// judge says which of a bundle and its tile is what was signed, by the tile
// above or, at the right edge, by the roots that are known.
func (w *walk) judge(ctx context.Context, c *chunk) (row []hash, sound bool) {
	bundle, leafTile := c.t.path(), tile{0, c.t.index, c.t.width}.path()
	damaged := func(path, kind, detail string) { w.out.add(Damage, kind, path, "%s", detail) }
	matches := func(row []hash) bool { // to what decides
		if row == nil {
			return false
		}
		if c.t.width == perTile {
			p := w.parent(ctx, c.t.index/perTile)
			return p != nil && subtree(row) == p[c.t.index%perTile]
		}
		for size, ts := range w.inside(c) {
			for _, t := range ts {
				if n := size - c.t.index*perTile; n > 0 && w.root(row[:n]) == t.root {
					return true
				}
			}
		}
		return false
	}
	byLeaves, byTile := matches(c.leaves), matches(c.tile)
	switch {
	case byLeaves:
		if c.tile != nil {
			damaged(leafTile, "tile", w.differing(c))
		}
		return c.leaves, true
	case byTile:
		if c.leaves != nil {
			damaged(bundle, "bundle", w.differing(c))
		}
		return c.tile, false
	case c.leaves != nil && c.tile != nil:
		damaged(bundle, "bundle-or-tile", w.differing(c)+", and nothing above says which is right: see "+leafTile)
		return c.leaves, false
	case c.leaves != nil && c.t.width == perTile && w.parent(ctx, c.t.index/perTile) != nil:
		damaged(bundle, "bundle", "its entries do not hash to what the tile above has")
		return c.leaves, false
	case c.leaves != nil:
		return c.leaves, true // the tile was reported; nothing speaks against the leaves but the root, perhaps
	case c.tile != nil && c.t.width == perTile && w.parent(ctx, c.t.index/perTile) != nil:
		damaged(leafTile, "tile", "it does not hash to what the tile above has")
	}
	return c.tile, false
}

func (w *walk) differing(c *chunk) string {
	n, at := 0, -1
	for i := range c.leaves {
		if c.leaves[i] != c.tile[i] {
			if n++; at < 0 {
				at = i
			}
		}
	}
	return fmt.Sprintf("%d of %d entries do not have the hash that the tree has, the first is entry %d", n, c.t.width, c.t.index*perTile+int64(at))
}

// parent is the row of the tile at level 1, nil if there is none.
func (w *walk) parent(ctx context.Context, index int64) []hash {
	if w.above.known && w.above.index == index {
		return w.above.row
	}
	n := w.size>>8 - index*perTile
	w.above = parentTile{index: index, known: true}
	t := tile{1, index, int(min(perTile, n))}
	if raw, _, err := readTile(ctx, w.src, t); err == nil {
		if row, err := splitTile(raw, t.width, nil); err == nil {
			w.above.row = row
		}
	}
	return w.above.row
}

// push puts a hash into the tile that is being filled at a level, and checks the
// tile when it is full.
func (w *walk) push(ctx context.Context, level int, h hash) {
	w.rows[level] = append(w.rows[level], h)
	if len(w.rows[level]) < perTile {
		return
	}
	n := int64(0) // of tiles filled at this level before: by what has been pushed above
	for l := tileLevels - 1; l > level; l-- {
		n = n*perTile + int64(len(w.rows[l]))
	}
	w.compare(ctx, tile{level, n, perTile}, w.rows[level])
	up := subtree(w.rows[level])
	w.rows[level] = w.rows[level][:0]
	if level+1 < tileLevels {
		w.push(ctx, level+1, up)
	}
}

// compare checks a stored tile above the leaf hashes.
func (w *walk) compare(ctx context.Context, t tile, row []hash) {
	w.tiles++
	raw, where, err := readTile(ctx, w.src, t)
	if err != nil {
		w.hurt = true
		w.notRead(ctx, where, err)
		return
	}
	var room [perTile]hash
	have, err := splitTile(raw, t.width, room[:0])
	if err != nil {
		w.hurt = true
		w.out.add(Damage, "tile", where, "%v", err)
		return
	}
	for i := range have {
		if have[i] != row[i] {
			w.hurt = true
			w.out.add(Damage, "tile", where, "hash %d is not that of the tile below it", i)
			return
		}
	}
}

// root is the root of the tree of all that was pushed and a last row of leaf
// hashes.
func (w *walk) root(leaves []hash) hash {
	var all []hash
	for l := tileLevels - 1; l >= 1; l-- {
		all = peaks(all, w.rows[l])
	}
	all = peaks(all, leaves)
	if len(all) == 0 {
		return emptyRoot
	}
	h := all[len(all)-1]
	for i := len(all) - 2; i >= 0; i-- {
		h = nodeHash(all[i], h)
	}
	return h
}

// edge checks the partial tiles above the leaf hashes at the right edge.
func (w *walk) edge(ctx context.Context) {
	for l := 1; l < tileLevels; l++ {
		if index, width := last(l, w.size); width > 0 && width < perTile {
			w.compare(ctx, tile{l, index, width}, w.rows[l])
		}
	}
}
