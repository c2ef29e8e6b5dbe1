package audit

// What entries say, boiled down to records of one size that can be sorted on
// disk: one for each name they are unique under, and for each slot they are
// about.

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/maphash"
)

// said is what the entries of one bundle say.
type said struct {
	first    int64
	regs     []uint32 // for each entry a keyed hash of its registry; 0 without one
	records  []record
	policies []policyChange
	disputes []dispute
	order    []int64 // indexes of successor entries, and of predecessors as ^index
	others   []int64 // entries of another version
	bad      []badLeaf
}

type badLeaf struct {
	index int64
	why   string
}

// policyChange is a registry-policy entry.
type policyChange struct {
	index     int64
	of        uint64 // a keyed hash of registry and ecosystem
	overwrite string
}

type dispute struct {
	index, of int64
	reg       uint32
}

// what a record says of its key.
type what uint8

const (
	anID     what = iota // key: of an id, or of a conflict's slot and digest
	anUpload             // the others: key of a slot
	aReject
	aRemove
	aConflict
	aStatus // of a file: yank and its like
)

// record is what one entry says of one key.
type record struct {
	key    [32]byte
	index  int64
	arg    int64  // of an upload what it replaces, of a conflict the first index; -1: none
	policy uint64 // of an upload: which policy it is under
	sha256 [16]byte
	sha512 [16]byte // the first 16 bytes: enough to tell two files from each other
	is     what
	has    uint8 // bit 0: sha256, bit 1: sha512, bit 2: claim index
}

const (
	has256 = 1 << iota
	has512
	byTheIndex
)

const recordSize = 32 + 8 + 8 + 8 + 16 + 16 + 2

func (r *record) append(b []byte) []byte {
	b = append(b, r.key[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.index))
	b = binary.BigEndian.AppendUint64(b, uint64(r.arg))
	b = binary.BigEndian.AppendUint64(b, r.policy)
	b = append(b, r.sha256[:]...)
	b = append(b, r.sha512[:]...)
	return append(b, byte(r.is), r.has)
}

func (r *record) decode(b []byte) {
	r.key = [32]byte(b)
	r.index = int64(binary.BigEndian.Uint64(b[32:]))
	r.arg = int64(binary.BigEndian.Uint64(b[40:]))
	r.policy = binary.BigEndian.Uint64(b[48:])
	r.sha256, r.sha512 = [16]byte(b[56:]), [16]byte(b[72:])
	r.is, r.has = what(b[88]), b[89]
}

func (s *said) reset(first int64) {
	*s = said{first: first, regs: s.regs[:0], records: s.records[:0], policies: s.policies[:0], disputes: s.disputes[:0],
		order: s.order[:0], others: s.others[:0], bad: s.bad[:0]}
}

// add notes what the next entry says.
func (s *said) add(line []byte, l *leaf, seed maphash.Seed) {
	index := s.first + int64(len(s.regs))
	if err := l.parse(line); err != nil {
		s.regs = append(s.regs, 0)
		if e := err.(*leafError); e.other {
			s.others = append(s.others, index)
		} else {
			s.bad = append(s.bad, badLeaf{index, e.Error()})
		}
		return
	}
	var reg uint32
	if l.has(fRegistry) {
		reg = uint32(maphash.Bytes(seed, l.str[fRegistry])) | 1
	}
	s.regs = append(s.regs, reg)
	r := record{index: index, arg: -1}
	for _, d := range []struct {
		f    int
		into *[16]byte
		bit  uint8
	}{{fSHA256, &r.sha256, has256}, {fSHA512, &r.sha512, has512}} {
		if l.has(d.f) {
			hex.Decode(d.into[:], l.str[d.f][:32])
			r.has |= d.bit
		}
	}
	if string(l.str[fClaim]) == "index" {
		r.has |= byTheIndex
	}
	kind := string(l.str[fKind])
	of := func(what what, claim []byte) {
		r.is, r.key = what, l.slot(claim)
		s.records = append(s.records, r)
	}
	switch kind {
	case "upload":
		if l.has(fReplaces) {
			r.arg = int64(l.num[fReplaces])
		}
		r.policy = policyOf(l, seed)
		of(anUpload, l.str[fClaim])
		return // it has no id: its slot and digest are its name
	case "reject":
		of(aReject, l.str[fClaim])
	case "remove":
		if l.has(fFile) {
			of(aRemove, l.str[fClaim])
		}
	case "yank", "unyank", "quarantine", "unquarantine", "deprecate", "undeprecate":
		if l.has(fFile) {
			of(aStatus, l.str[fClaim])
		}
	case "conflict":
		r.arg = int64(l.num[fFirstIndex])
		of(aConflict, l.str[fSlotClaim])
		r.is, r.key = anID, conflictKey(l, r.key)
		s.records = append(s.records, r)
		return
	case "registry-policy":
		s.policies = append(s.policies, policyChange{index, policyOf(l, seed), string(l.str[fOverwrite])})
	case "dispute":
		s.disputes = append(s.disputes, dispute{index, int64(l.num[fIndex]), reg})
	case "successor":
		s.order = append(s.order, index)
	case "predecessor":
		s.order = append(s.order, ^index)
	}
	r.is, r.key = anID, idKey(l)
	s.records = append(s.records, r)
}

func policyOf(l *leaf, seed maphash.Seed) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	h.Write(l.str[fRegistry])
	h.WriteByte(0) // no name has one
	h.Write(l.str[fEcosystem])
	return h.Sum64()
}

// idKey is the key that an entry with an id is unique under, in the index too:
// SHA-256 of "id", registry, claim and id, each but the last ended by a zero byte.
func idKey(l *leaf) [32]byte {
	var room [512]byte
	b := append(room[:0], "id\x00"...)
	b = append(append(b, l.text(fRegistry)...), 0)
	b = append(append(b, l.str[fClaim]...), 0)
	return sha256.Sum256(append(b, l.str[fID]...))
}

// conflictKey is the key of a conflict: SHA-256 of "conflict", a zero byte, the
// slot's key, and the digests that the entry has.
func conflictKey(l *leaf, slot [32]byte) [32]byte {
	var room [160]byte
	b := append(room[:0], "conflict\x00"...)
	b = append(b, slot[:]...)
	for _, f := range []int{fSHA256, fSHA512} {
		b, _ = hex.AppendDecode(b, l.text(f)) // isHex has seen it
	}
	return sha256.Sum256(b)
}
