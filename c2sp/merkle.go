package c2sp

// RFC 6962 Merkle proofs, on transparency-dev/merkle, with the corners that the
// C2SP specifications settle and the library leaves open.

import (
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// maxProofHashes is the longest Merkle proof in a tree of fewer than 2^63 leaves.
const maxProofHashes = 63

// VerifyInclusion checks that the leaf with this hash is at index in the tree
// of this size and root. The proof goes from the leaf's sibling upwards.
func VerifyInclusion(index, size uint64, leafHash [32]byte, hashes [][32]byte, root [32]byte) error {
	if size >= 1<<63 {
		return fmt.Errorf("inclusion proof: tree size %d is not below 2^63", size)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, size, leafHash[:], asSlices(hashes), root[:]); err != nil {
		return fmt.Errorf("inclusion proof of index %d in the tree of size %d does not lead to its root: %w", index, size, short(err))
	}
	return nil
}

// VerifyConsistency checks that the tree of oldSize and oldRoot is a prefix of
// the tree of size and root. From size zero the proof is empty and oldRoot must
// be [EmptyRoot]; between equal sizes the proof is empty and the roots are equal.
func VerifyConsistency(oldSize, size uint64, hashes [][32]byte, oldRoot, root [32]byte) error {
	if size >= 1<<63 {
		return fmt.Errorf("consistency proof: tree size %d is not below 2^63", size)
	}
	if oldSize == 0 && oldRoot != EmptyRoot || size == 0 && root != EmptyRoot {
		return fmt.Errorf("consistency proof: a tree of size 0 with a root that is not the empty tree's")
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, oldSize, size, asSlices(hashes), oldRoot[:], root[:]); err != nil {
		return fmt.Errorf("consistency proof from size %d to size %d does not verify: %w", oldSize, size, short(err))
	}
	return nil
}

// PrefixRoots computes, from the complete subtrees of [0, old) and then of [old, size), from left to right, the root at size old
// and the root at size. If the second is a root that the log signed for size,
// then the first is the only one that an honest log can have signed for old: a
// different tree under the same root would be a collision of SHA-256.
func PrefixRoots(old, size uint64, hashes [][32]byte) (atOld, atSize [32]byte, err error) {
	n := compact.RangeSize(0, old)
	if want := n + compact.RangeSize(old, size); old >= size || len(hashes) != want {
		return atOld, atSize, fmt.Errorf("%d hashes for sizes %d and %d; %d belong there", len(hashes), old, size, want)
	}
	raw := asSlices(hashes)
	f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	left, err := f.NewRange(0, old, raw[:n])
	if err != nil {
		return atOld, atSize, err
	}
	right, err := f.NewRange(old, size, raw[n:])
	if err != nil {
		return atOld, atSize, err
	}
	root := func(r *compact.Range) ([32]byte, error) {
		if r.End() == 0 {
			return EmptyRoot, nil
		}
		h, err := r.GetRootHash(nil)
		if err != nil {
			return [32]byte{}, err
		}
		return [32]byte(h), nil
	}
	if atOld, err = root(left); err != nil {
		return atOld, atSize, err
	}
	if err = left.AppendRange(right, nil); err != nil {
		return atOld, atSize, err
	}
	atSize, err = root(left)
	return atOld, atSize, err
}

// RootAt returns the root that the tree of this size and root has at oldSize, if
// the consistency proof shows it. Where oldSize is a power of two it shows it
// only to those who know it already: the proof leaves that hash out.
func RootAt(oldSize, size uint64, hashes [][32]byte, root [32]byte) (oldRoot [32]byte, ok bool) {
	// The library computes the old root to compare it, and tells what it got.
	var mismatch proof.RootMismatchError
	err := proof.VerifyConsistency(rfc6962.DefaultHasher, oldSize, size, asSlices(hashes), make([]byte, 32), root[:])
	if !errors.As(err, &mismatch) || len(mismatch.CalculatedRoot) != 32 {
		return oldRoot, false
	}
	oldRoot = [32]byte(mismatch.CalculatedRoot)
	return oldRoot, oldSize > 0 && VerifyConsistency(oldSize, size, hashes, oldRoot, root) == nil
}

// short replaces the library's dump of two hashes, which helps nobody.
func short(err error) error {
	if _, ok := err.(proof.RootMismatchError); ok {
		return fmt.Errorf("the root it gives is another one")
	}
	return err
}

func asSlices(hashes [][32]byte) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}
