package audit

// The grammar of a leaf: FORMAT.md sections 1 and 8. A leaf is read in two
// passes: first the whole line into members by field, then (rules.go) what the
// members may say.

import (
	"bytes"
	"fmt"
)

const (
	maxLeaf   = 4096
	maxNumber = 1<<53 - 1
	maxNested = 8
)

// The fields of version 1, in the order of a leaf.
const (
	fAttestation = iota
	fAuth
	fClaim
	fCount
	fEcosystem
	fFile
	fFirstIndex
	fID
	fIndex
	fKind
	fMetadata
	fOrigin
	fOverwrite
	fProject
	fPublisher
	fReason
	fRegistry
	fReplaces
	fRoot
	fSHA256
	fSHA512
	fSize
	fSlotClaim
	fSources
	fSubject
	fTag
	fTime
	fUploadTime
	fUploader
	fURL
	fV
	fVersion
	fVKeys
	numFields
)

var fieldNames = [numFields]string{
	"attestation_sha256", "auth", "claim", "count", "ecosystem", "file", "first_index", "id", "index", "kind",
	"metadata_sha256", "origin", "overwrite", "project", "publisher", "reason", "registry", "replaces", "root", "sha256",
	"sha512", "size", "slot_claim", "sources_sha256", "subject", "tag", "time", "upload_time", "uploader", "url", "v",
	"version", "vkeys",
}

// The fields of a publisher, in the order of a leaf.
const (
	pEnvironment = iota
	pIssuer
	pKind
	pOwnerID
	pRepository
	pRepositoryID
	pSubject
	pWorkflow
	numPublisher
)

var publisherNames = [numPublisher]string{"environment", "issuer", "kind", "owner_id", "repository", "repository_id", "subject", "workflow"}

const (
	numberFields = 1<<fCount | 1<<fFirstIndex | 1<<fIndex | 1<<fReplaces | 1<<fSize | 1<<fV
	listFields   = 1<<fAttestation | 1<<fSources | 1<<fVKeys
)

// leaf is a parsed leaf. Its values point into the line; those of fields that
// are not in have are stale.
type leaf struct {
	have uint64 // bit i: fieldNames[i] is there
	str  [numFields][]byte
	num  [numFields]uint64
	pub  struct {
		have uint64
		str  [numPublisher][]byte
	}
}

func (l *leaf) has(f int) bool { return l.have>>f&1 == 1 }

// text is the field's value, "" if it is not there.
func (l *leaf) text(f int) []byte {
	if !l.has(f) {
		return nil
	}
	return l.str[f]
}

// leafError says why a leaf is refused: by its grammar at a byte, by a field, or
// because it is well formed and of another version.
type leafError struct {
	at      int    // if field is "" and version is 0
	field   string // "publisher.NAME" inside publisher
	version uint64 // valid if other
	other   bool
	why     string
}

func (e *leafError) Error() string {
	switch {
	case e.other:
		return fmt.Sprintf("is of version %d, and this audit reads version 1", e.version)
	case e.field != "":
		return "field " + e.field + ": " + e.why
	}
	return fmt.Sprintf("byte %d: %s", e.at, e.why)
}

// parse reads line into l. The error is a *leafError.
func (l *leaf) parse(line []byte) error {
	if len(line) > maxLeaf {
		return &leafError{at: maxLeaf, why: "longer than 4096 bytes"}
	}
	s := scanner{b: line}
	bad := s.leaf(l)
	if bad == nil && l.has(fV) && l.num[fV] == 1 {
		return l.check()
	}
	if v, ok := otherVersion(line); ok {
		return &leafError{other: true, version: v}
	}
	if bad == nil { // v is missing: any other would have been another version
		bad = &leafError{field: "v", why: "missing"}
	}
	return bad
}

// scanner reads b from i on. bad is the first fault; after it nothing is read.
type scanner struct {
	b   []byte
	i   int
	bad *leafError
}

func (s *scanner) refuse(at int, why string) {
	if s.bad == nil {
		s.bad = &leafError{at: at, why: why}
	}
}

// next is the byte at i; 0, which is legal nowhere, at the end.
func (s *scanner) next() byte {
	if s.bad != nil || s.i >= len(s.b) {
		return 0
	}
	return s.b[s.i]
}

func (s *scanner) want(c byte) bool {
	if s.next() != c {
		s.refuse(s.i, "want "+string(c))
		return false
	}
	s.i++
	return true
}

// leaf reads the whole line as an object of the fields of version 1.
func (s *scanner) leaf(l *leaf) *leafError {
	l.have, l.pub.have = 0, 0
	at := -1
	s.members(func(key []byte, start int) {
		f := find(fieldNames[:], key, at)
		if f < 0 {
			s.refuse(start, "unknown field")
			return
		}
		at = f
		l.have |= 1 << f
		if !s.want(':') {
			return
		}
		switch {
		case numberFields>>f&1 == 1:
			l.num[f] = s.number()
		case listFields>>f&1 == 1:
			from := s.i
			if s.next() != '[' {
				s.refuse(s.i, "want an array")
				return
			}
			s.items(func() { s.text() })
			l.str[f] = s.b[from:s.i]
		case f == fPublisher:
			inside := -1
			s.members(func(key []byte, start int) {
				p := find(publisherNames[:], key, inside)
				if p < 0 {
					s.refuse(start, "unknown field in publisher")
					return
				}
				inside = p
				l.pub.have |= 1 << p
				if s.want(':') {
					l.pub.str[p] = s.text()
				}
			})
		default:
			l.str[f] = s.text()
		}
	})
	if s.bad == nil && s.i != len(s.b) {
		s.refuse(s.i, "bytes after the object")
	}
	return s.bad
}

// find is the position of key in names after position at, -1 if it is not
// there: keys come in order, so none is looked for twice.
func find(names []string, key []byte, at int) int {
	for i := at + 1; i < len(names); i++ {
		if string(key) == names[i] {
			return i
		}
	}
	return -1
}

// members reads an object: keys unique and ascending, at least one. each reads
// on from the colon.
func (s *scanner) members(each func(key []byte, start int)) {
	if !s.want('{') {
		return
	}
	if s.next() == '}' {
		s.refuse(s.i, "empty object")
		return
	}
	var before []byte
	for {
		start := s.i
		key := s.text()
		if s.bad != nil {
			return
		}
		if before != nil && bytes.Compare(before, key) >= 0 {
			s.refuse(start, "key is not after the one before it")
			return
		}
		before = key
		each(key, start)
		switch s.next() {
		case ',':
			s.i++
		case '}':
			s.i++
			return
		default:
			s.refuse(s.i, "want , or }")
			return
		}
	}
}

// items reads an array of at least one item.
func (s *scanner) items(each func()) {
	if !s.want('[') {
		return
	}
	if s.next() == ']' {
		s.refuse(s.i, "empty array")
		return
	}
	for {
		each()
		switch s.next() {
		case ',':
			s.i++
		case ']':
			s.i++
			return
		default:
			s.refuse(s.i, "want , or ]")
			return
		}
	}
}

// text reads a string of printable ASCII without quote and backslash.
func (s *scanner) text() []byte {
	if !s.want('"') {
		return nil
	}
	start := s.i
	for i := start; i < len(s.b); i++ {
		c := s.b[i]
		if c == '"' {
			if i == start {
				s.refuse(start-1, "empty string")
				return nil
			}
			s.i = i + 1
			return s.b[start:i]
		}
		if c < 0x20 || c > 0x7e || c == '\\' {
			s.refuse(i, "character that may not be in a string")
			return nil
		}
	}
	s.refuse(len(s.b), "ends inside a string")
	return nil
}

// number reads an integer from 0 to 2^53-1.
func (s *scanner) number() uint64 {
	start, n := s.i, uint64(0)
	for c := s.next(); c >= '0' && c <= '9'; c = s.next() {
		if n = 10*n + uint64(c-'0'); n > maxNumber {
			s.refuse(start, "larger than 2^53-1")
			return 0
		}
		s.i++
	}
	switch c := s.next(); {
	case s.i == start:
		s.refuse(start, "want an integer")
	case s.i > start+1 && s.b[start] == '0':
		s.refuse(start, "leading zero")
	case c == '.' || c == 'e' || c == 'E':
		s.refuse(s.i, "fraction or exponent")
	}
	return n
}

// otherVersion reports whether line keeps the grammar of every version and has
// an integer v other than 1.
func otherVersion(line []byte) (v uint64, ok bool) {
	s := scanner{b: line}
	has := false
	s.members(func(key []byte, _ int) {
		if !s.want(':') {
			return
		}
		if string(key) == "v" {
			has = true
			v = s.number()
			return
		}
		s.value(2)
	})
	return v, s.bad == nil && s.i == len(line) && has && v != 1
}

// value reads any value at a depth of nesting.
func (s *scanner) value(depth int) {
	switch c := s.next(); {
	case (c == '{' || c == '[') && depth > maxNested:
		s.refuse(s.i, "nested too deep")
	case c == '{':
		s.members(func([]byte, int) {
			if s.want(':') {
				s.value(depth + 1)
			}
		})
	case c == '[':
		s.items(func() { s.value(depth + 1) })
	case c == '"':
		s.text()
	default:
		s.number()
	}
}
