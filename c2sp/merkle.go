package c2sp

// RFC 6962 Merkle proofs, on transparency-dev/merkle, with the corners that the
// C2SP specifications settle and the library leaves open.

import (
	"fmt"

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
