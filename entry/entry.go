// Package entry is the leaf format of Portbook: what one entry of the log
// says, as one line of canonical JSON, and the rules for every name in it.
//
// FORMAT.md beside this file is the specification. There is one encoding of an
// entry and no second: [Parse] refuses whatever [Entry.Marshal] would not have
// written byte for byte, and says at which byte or field.
//
// The package depends on the standard library alone, so that an installer, a
// monitor and an auditor can each read leaves without the rest of Portbook.
package entry

import (
	"crypto/sha256"
	"errors"
	"fmt"
)

// MaxSize is the length in bytes of the longest leaf. It binds every version
// of the format.
const MaxSize = 4096

// maxUint is the largest integer in a leaf: the largest that every JSON
// implementation reads exactly (RFC 8259 section 6).
const maxUint = 1<<53 - 1

// maxList is the length of the longest array.
const maxList = 16

// TimeFormat is the one layout of time and upload_time, always UTC.
const TimeFormat = "2006-01-02T15:04:05Z"

// Kind says what happened. The kinds and their fields are the table of
// FORMAT.md section 4.
type Kind string

// The kinds of version 1.
const (
	KindUpload          Kind = "upload"
	KindYank            Kind = "yank"
	KindUnyank          Kind = "unyank"
	KindQuarantine      Kind = "quarantine"
	KindUnquarantine    Kind = "unquarantine"
	KindDeprecate       Kind = "deprecate"
	KindUndeprecate     Kind = "undeprecate"
	KindArchive         Kind = "archive"
	KindUnarchive       Kind = "unarchive"
	KindRemove          Kind = "remove"
	KindReject          Kind = "reject"
	KindDispute         Kind = "dispute"
	KindDistTag         Kind = "dist-tag"
	KindPublisherAdd    Kind = "publisher-add"
	KindPublisherRemove Kind = "publisher-remove"
	KindOwnerAdd        Kind = "owner-add"
	KindOwnerRemove     Kind = "owner-remove"
	KindRegistryPolicy  Kind = "registry-policy"
	KindBaseline        Kind = "baseline"
	KindConflict        Kind = "conflict"
	KindCanary          Kind = "canary"
	KindSuccessor       Kind = "successor"
	KindPredecessor     Kind = "predecessor"
)

// Claim says who speaks.
type Claim string

const (
	ClaimIndex    Claim = "index"    // the registry commits to it
	ClaimObserved Claim = "observed" // a follower saw the registry serve it
	ClaimLog      Claim = "log"      // the log itself says so
)

// The ecosystems, by their package URL (purl) type.
const (
	PyPI    = "pypi"
	NPM     = "npm"
	Conda   = "conda"
	Generic = "generic"
)

// Ecosystems lists the ecosystems of version 1.
func Ecosystems() []string { return []string{PyPI, NPM, Conda, Generic} }

// An Entry is one leaf, understood. Its version (the field v) is always 1.
//
// The zero value of a field means that the field is absent; integers are
// pointers, so that 0 can be said (see [Uint]). Which fields a kind requires,
// permits or forbids is the table of FORMAT.md section 4.
type Entry struct {
	Kind  Kind
	Claim Claim
	Time  string // the submitter's clock, TimeFormat
	ID    string // idempotency key, 16 bytes in hex; every kind but upload

	Registry  string // host[:port][/path], see CheckRegistry
	Ecosystem string
	Project   string // in normal form, see NormalProject
	Version   string // as the index has it
	File      string // path inside the project, see CheckFile

	Size   *uint64 // bytes; in predecessor: entries
	SHA256 string
	SHA512 string

	UploadTime        string // claim observed: what the index said, TimeFormat
	MetadataSHA256    string // PEP 658 core metadata
	Publisher         *Publisher
	Auth              string   // trusted-publisher, token, password or other
	Uploader          string   // pseudonym: hex HMAC-SHA256
	AttestationSHA256 []string // digests of attestation bundles
	SourcesSHA256     []string // digests of the files this one was built from
	Replaces          *uint64  // index of the entry this one replaces

	Reason     string   // a code of FORMAT.md section 6
	Index      *uint64  // dispute: the disputed entry
	Tag        string   // dist-tag: the tag; no Version = the tag was removed
	Subject    string   // owner-add, owner-remove: pseudonym as in Uploader
	Overwrite  string   // registry-policy: never, after-remove or replace
	Count      *uint64  // baseline: lines of the listing
	SlotClaim  Claim    // conflict: the claim of the slot
	FirstIndex *uint64  // conflict: the entry that holds the slot
	Origin     string   // successor, predecessor: the other log
	VKeys      []string // successor: verifier keys of the next log
	URL        string   // successor: where the next log is read
	Root       string   // predecessor: root hash of the last log, hex
}

// A Publisher is the workload identity that an index publishes for an upload
// (Trusted Publishing). Which fields go with which Kind is the table of
// FORMAT.md section 5. No e-mail address is ever in one.
type Publisher struct {
	Kind         string // github, gitlab, google, activestate, npm or oidc
	Issuer       string
	Subject      string
	Repository   string
	RepositoryID string
	OwnerID      string
	Workflow     string
	Environment  string
}

// Uint returns a pointer to n, for the integer fields of an Entry.
func Uint(n uint64) *uint64 { return &n }

// ErrVersion reports a well-formed leaf of another version than 1: v is an
// integer other than 1, and the leaf keeps the grammar that binds every
// version (FORMAT.md section 8). It can be hashed, but not read.
var ErrVersion = errors.New("entry: unknown version")

// A FieldError says which field breaks a rule and how. Field is the name in
// the leaf, "publisher.kind" for one inside publisher, "entry" for the whole.
type FieldError struct{ Field, Reason string }

func (e *FieldError) Error() string { return "entry: " + e.Field + ": " + e.Reason }

// A SyntaxError says at which byte, counted from 0, a leaf stops being one
// line of canonical JSON of version 1.
type SyntaxError struct {
	Offset int
	Reason string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("entry: byte %d: %s", e.Offset, e.Reason)
}

// LeafHash returns the Merkle leaf hash of RFC 6962 section 2.1,
// SHA-256(0x00 || leaf).
func LeafHash(leaf []byte) [32]byte {
	var buf [1024]byte // most leaves; a longer one is copied to the heap
	return sha256.Sum256(append(buf[:1], leaf...))
}
