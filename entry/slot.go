// The slot: what one digest is pinned to.

package entry

import (
	"crypto/sha256"
	"encoding/binary"
)

// A Slot is a place in a registry that holds at most one digest at a time. It
// is comparable.
type Slot struct {
	Registry, Ecosystem string
	Claim               Claim
	Project, File       string
}

// Slot returns the slot that e speaks of: the one an upload takes, a reject
// frees, or a conflict was refused. Other kinds have none.
func (e *Entry) Slot() (Slot, bool) {
	claim := e.Claim
	switch e.Kind {
	case KindUpload, KindReject:
	case KindConflict:
		claim = e.SlotClaim
	default:
		return Slot{}, false
	}
	return Slot{e.Registry, e.Ecosystem, claim, e.Project, e.File}, true
}

// Key returns a fixed-size name of s for a database: the SHA-256 of its fields
// in order (registry, ecosystem, claim, project, file), each with its length
// in four bytes, big-endian, before it.
func (s Slot) Key() [32]byte {
	b := make([]byte, 0, 512)
	for _, f := range [...]string{s.Registry, s.Ecosystem, string(s.Claim), s.Project, s.File} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return sha256.Sum256(b)
}
