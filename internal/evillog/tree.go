package evillog

// The tree of a log, RFC 6962 section 2.1 by the letter, sharing no code with
// what is tested against it. Small trees only: a few thousand leaves.

import (
	"crypto/sha256"

	"github.com/portbook/portbook/c2sp"
)

type hash = [32]byte

// A tree is leaves and their hashes. It is only ever appended to, and the leaves
// are never written to.
type tree struct {
	leaves [][]byte
	hashes []hash
}

func (t *tree) append(leaf []byte) {
	t.leaves = append(t.leaves, leaf)
	t.hashes = append(t.hashes, sha256.Sum256(append([]byte{0}, leaf...)))
}

func (t *tree) size() uint64 { return uint64(len(t.leaves)) }

// prefix is a new tree of the first n leaves.
func (t *tree) prefix(n uint64) *tree {
	return &tree{append([][]byte(nil), t.leaves[:n]...), append([]hash(nil), t.hashes[:n]...)}
}

// root is MTH(D[:n]).
func (t *tree) root(n uint64) hash { return mth(t.hashes[:n]) }

func mth(d []hash) hash {
	switch len(d) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return d[0]
	}
	k := split(len(d))
	left, right := mth(d[:k]), mth(d[k:])
	return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
}

// split is the largest power of two smaller than n.
func split(n int) int {
	k := 1
	for k*2 < n {
		k *= 2
	}
	return k
}

// inclusion is PATH(m, D[:n]), section 2.1.1.
func (t *tree) inclusion(m, n uint64) []hash { return path(int(m), t.hashes[:n]) }

func path(m int, d []hash) []hash {
	if len(d) <= 1 {
		return nil
	}
	k := split(len(d))
	if m < k {
		return append(path(m, d[:k]), mth(d[k:]))
	}
	return append(path(m-k, d[k:]), mth(d[:k]))
}

// consistency is PROOF(m, D[:n]), section 2.1.2; nil where there is none.
func (t *tree) consistency(m, n uint64) []hash {
	if m == 0 || m >= n {
		return nil
	}
	return subproof(int(m), t.hashes[:n], true)
}

func subproof(m int, d []hash, whole bool) []hash {
	if m == len(d) {
		if whole {
			return nil
		}
		return []hash{mth(d)}
	}
	k := split(len(d))
	if m <= k {
		return append(subproof(m, d[:k], whole), mth(d[k:]))
	}
	return append(subproof(m-k, d[k:], false), mth(d[:k]))
}

// tile returns the hashes of a tile; nil if the tree has no such tile.
func (t *tree) tile(tile c2sp.Tile) []byte {
	if tile.Level > 3 {
		return nil
	}
	var b []byte
	span := uint64(1) << (8 * tile.Level)
	for i := range uint64(tile.Width) {
		first := (tile.Index*c2sp.TileWidth + i) * span
		if first+span > t.size() {
			return nil
		}
		h := mth(t.hashes[first : first+span])
		b = append(b, h[:]...)
	}
	return b
}

// bundle returns the leaves of a bundle; nil if the tree has no such bundle.
func (t *tree) bundle(tile c2sp.Tile) [][]byte {
	first := tile.Index * c2sp.TileWidth
	if last := first + uint64(tile.Width); last <= t.size() {
		return t.leaves[first:last:last]
	}
	return nil
}
