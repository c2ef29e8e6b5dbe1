package c2sp

// What a log and a witness say to each other, c2sp.org/tlog-witness.

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
)

// MaxAddCheckpoint is the most bytes an add-checkpoint request may have: a note
// and the longest proof.
const MaxAddCheckpoint = MaxNote + (maxProofHashes+2)*45

// An AddCheckpoint is the body of an add-checkpoint request.
type AddCheckpoint struct {
	Old        uint64     // size of the checkpoint the witness has cosigned last
	Proof      [][32]byte // consistency proof from Old; at most 63
	Checkpoint []byte     // the signed note, verbatim
}

// ParseAddCheckpoint reads a request body. It checks the grammar only: that Old
// is not above the checkpoint's size is left to the witness. The error is a
// [*MalformedError].
func ParseAddCheckpoint(b []byte) (*AddCheckpoint, error) {
	const what = "add-checkpoint request"
	if len(b) > MaxAddCheckpoint {
		return nil, malformed(what, "longer than %d bytes", MaxAddCheckpoint)
	}
	line, rest, _ := strings.Cut(string(b), "\n")
	v, ok := strings.CutPrefix(line, "old ")
	if !ok {
		return nil, malformed(what, "the first line does not begin with \"old \"")
	}
	var a AddCheckpoint
	if a.Old, ok = parseSize(v); !ok {
		return nil, malformed(what, "old size %s is not a decimal number below 2^63 without leading zeros", quote(v))
	}
	var err error
	if a.Proof, rest, err = parseHashLines(what, rest); err != nil {
		return nil, err
	}
	a.Checkpoint = []byte(rest)
	if err := checkSignedCheckpoint(a.Checkpoint); err != nil {
		return nil, err
	}
	return &a, nil
}

// Bytes returns the request body.
func (a *AddCheckpoint) Bytes() []byte {
	b := strconv.AppendUint([]byte("old "), a.Old, 10)
	b = append(b, '\n')
	b = appendHashLines(b, a.Proof)
	return append(b, a.Checkpoint...)
}

// OriginHash returns how the read API of a witness names a log: the SHA-256 of
// its origin in lower-case hex.
func OriginHash(origin string) string {
	h := sha256.Sum256([]byte(origin))
	return hex.EncodeToString(h[:])
}
