package c2sp

// Subtrees: what sign-subtree of c2sp.org/tlog-witness asks a witness, the proof
// that a subtree is part of a tree (draft-ietf-plants-merkle-tree-certs-03,
// section 4), and the cosignature over it (c2sp.org/tlog-cosignature).

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
)

// A Subtree is the range [Start, End) of a log's leaves and its Merkle hash.
type Subtree struct {
	Start, End uint64
	Hash       [32]byte
}

// Valid reports whether the range is one that a subtree may have (draft section
// 4.1): it is not empty, and Start is a multiple of the smallest power of two
// that is not below its length.
func (s Subtree) Valid() bool {
	if s.Start >= s.End || s.End >= 1<<63 {
		return false
	}
	ceil := uint64(1) << bits.Len64(s.End-s.Start-1)
	return s.Start%ceil == 0
}

// VerifySubtree checks that the subtree is part of the tree of this size and
// root: the Subtree Consistency Proof of draft section 4.4, whose hashes go from
// the bottom upwards.
func VerifySubtree(s Subtree, size uint64, hashes [][32]byte, root [32]byte) error {
	if !s.Valid() || s.End > size || size >= 1<<63 {
		return fmt.Errorf("subtree [%d, %d) is not a subtree of a tree of size %d", s.Start, s.End, size)
	}
	v := subtreeProof{subtree: s.Hash, hashes: hashes}
	hash, whole, err := v.roots(s.Start, s.End, size, true)
	if err != nil {
		return fmt.Errorf("subtree proof of [%d, %d) in the tree of size %d: %w", s.Start, s.End, size, err)
	}
	if len(v.hashes) != 0 {
		return fmt.Errorf("subtree proof of [%d, %d) in the tree of size %d: %d hashes too many", s.Start, s.End, size, len(v.hashes))
	}
	if hash != s.Hash || whole != root {
		return fmt.Errorf("subtree proof of [%d, %d) in the tree of size %d: the root it gives is another one", s.Start, s.End, size)
	}
	return nil
}

// subtreeProof is a proof being read from its end, where the top of the tree is.
type subtreeProof struct {
	subtree [32]byte
	hashes  [][32]byte
}

func (v *subtreeProof) pop() (h [32]byte, err error) {
	if len(v.hashes) == 0 {
		return h, errors.New("it is too short")
	}
	h, v.hashes = v.hashes[len(v.hashes)-1], v.hashes[:len(v.hashes)-1]
	return h, nil
}

// roots runs SUBTREE_SUBPROOF(start, end, D[n], known) backwards: the hash of
// the part [start, end) of a tree of n leaves, and of the whole. known says that
// the part is the subtree in question itself, not a piece of it.
func (v *subtreeProof) roots(start, end, n uint64, known bool) (part, whole [32]byte, err error) {
	if start == 0 && end == n {
		if known {
			return v.subtree, v.subtree, nil
		}
		h, err := v.pop()
		return h, h, err
	}
	k := uint64(1) << (bits.Len64(n-1) - 1) // the largest power of two below n
	top, err := v.pop()
	if err != nil {
		return part, whole, err
	}
	switch {
	case end <= k: // it is in the left half
		part, left, err := v.roots(start, end, k, known)
		return part, nodeHash(left, top), err
	case start >= k: // in the right half
		part, right, err := v.roots(start-k, end-k, n-k, known)
		return part, nodeHash(top, right), err
	default: // in both, and then it begins at 0: the left half is whole
		part, right, err := v.roots(0, end-k, n-k, false)
		return nodeHash(top, part), nodeHash(top, right), err
	}
}

func nodeHash(left, right [32]byte) [32]byte {
	var b [65]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[33:], right[:])
	return sha256.Sum256(b[:])
}

// CosignSubtree signs a subtree of the log with this origin, without a time.
// Only a key of type [AlgMLDSA44] does: the other formats have no subtrees.
func (s *Signer) CosignSubtree(origin string, sub Subtree) (Signature, error) {
	if s.key.alg != AlgMLDSA44 {
		return Signature{}, fmt.Errorf("c2sp: key %s is of type %s, whose format has no subtrees", s.key.name, s.key.alg)
	}
	if !sub.Valid() {
		return Signature{}, fmt.Errorf("c2sp: [%d, %d) is not the range of a subtree", sub.Start, sub.End)
	}
	msg, err := subtreeV1(s.key.name, 0, origin, sub)
	if err != nil {
		return Signature{}, err
	}
	return s.signMLDSA44(0, msg, true)
}

// VerifySubtree checks that sig is k's cosignature, without a time, over a
// subtree of the log with this origin. Any failure is an [ErrBadSignature].
func (k *Key) VerifySubtree(origin string, sub Subtree, sig Signature) error {
	bad := func(why string) error {
		return fmt.Errorf("%w: %s (key ID %08x): %s", ErrBadSignature, quoteName(k.name), k.id, why)
	}
	switch {
	case k.alg != AlgMLDSA44:
		return bad("a key of type " + k.alg.String() + " signs no subtrees")
	case !k.Matches(sig):
		return bad(fmt.Sprintf("the line is by %s (key ID %08x)", quote(sig.Name), sig.KeyID))
	case !sub.Valid():
		return bad("not the range of a subtree")
	}
	if len(sig.Sig) != 8+mldsa44.SignatureSize || binary.BigEndian.Uint64(sig.Sig) != 0 {
		return bad("not a signature of its kind without a time")
	}
	msg, err := subtreeV1(k.name, 0, origin, sub)
	if err != nil {
		return bad(err.Error())
	}
	if !verifyMLDSA44(k.raw, msg, sig.Sig[8:]) {
		return bad("wrong cosignature")
	}
	return nil
}

const subtreeRequest = "sign-subtree request"

// A SignSubtree is the body of a sign-subtree request.
type SignSubtree struct {
	Subtree
	Proof      [][32]byte // subtree consistency proof; at most 63
	Checkpoint []byte     // the reference checkpoint: a signed note, verbatim
}

// ParseSignSubtree reads a request body: its grammar, and that the range is that
// of a subtree. That it ends within the checkpoint's tree is left to the witness.
// The error is a [*MalformedError].
func ParseSignSubtree(b []byte) (*SignSubtree, error) {
	if len(b) > MaxAddCheckpoint {
		return nil, malformed(subtreeRequest, "longer than %d bytes", MaxAddCheckpoint)
	}
	line, rest, _ := strings.Cut(string(b), "\n")
	v, ok := strings.CutPrefix(line, "subtree ")
	if !ok {
		return nil, malformed(subtreeRequest, "the first line does not begin with \"subtree \"")
	}
	from, to, ok := strings.Cut(v, " ")
	var s SignSubtree
	var ok1, ok2 bool
	s.Start, ok1 = parseSize(from)
	s.End, ok2 = parseSize(to)
	if !ok || !ok1 || !ok2 {
		return nil, malformed(subtreeRequest, "%s is not two decimal numbers below 2^63 without leading zeros", quote(v))
	}
	if !s.Valid() {
		return nil, malformed(subtreeRequest, "[%d, %d) is not the range of a subtree", s.Start, s.End)
	}
	line, rest, _ = strings.Cut(rest, "\n")
	if s.Hash, ok = decodeHash(line); !ok {
		return nil, malformed(subtreeRequest, "hash line %s is not canonical base64 of 32 bytes", quote(line))
	}
	var err error
	if s.Proof, rest, err = parseHashLines(subtreeRequest, rest); err != nil {
		return nil, err
	}
	s.Checkpoint = []byte(rest)
	if err := checkSignedCheckpoint(s.Checkpoint); err != nil {
		return nil, err
	}
	return &s, nil
}

// Bytes returns the request body.
func (s *SignSubtree) Bytes() []byte {
	b := strconv.AppendUint([]byte("subtree "), s.Start, 10)
	b = strconv.AppendUint(append(b, ' '), s.End, 10)
	b = append(b, '\n')
	b = base64.StdEncoding.AppendEncode(b, s.Hash[:])
	b = append(b, '\n')
	b = appendHashLines(b, s.Proof)
	return append(b, s.Checkpoint...)
}
