package client

// Evidence: one text file that proves to anyone who holds the log's public keys
// that the log signed two histories. It needs no network and no trust in who
// wrote it.
//
//	portbook-evidence/v1
//	# any number of comment lines
//	claim same-size                  or: not-a-prefix, after-end, bad-handover
//	first                            the checkpoint of the smaller size
//	| <each line of the signed note>
//	second
//	| <each line of the signed note>
//	hashes                           with not-a-prefix only
//	<base64 of 32 bytes, one a line>
//
// same-size: both notes are for one size and have different roots.
//
// not-a-prefix: the first is smaller. The hashes are the complete subtrees of
// [0, size of first) and then of [size of first, size of second), in the order
// of RFC 6962 from left to right. All of them together hash to the second root,
// so they are in the tree that the log signed there; those of the first range
// alone do not hash to the first root, so that tree never began like this.
//
// after-end: the first is not a note but a tlog-proof, of a successor leaf that
// is not the last entry of the tree it is proven in, or that names its own log.
// There is no second.
//
// bad-handover: both are tlog-proofs: of the successor leaf that a log ended
// with, and of an entry 0 of the log that it names, signed by a key that it
// names, which is not the predecessor leaf that belongs there. It accuses both
// logs together: a log can name an honest one that never meant to take over, and
// whoever has the new log's key can contradict an honest old one.

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

const (
	evidenceHeader = "portbook-evidence/v1\n"
	// MaxEvidence is the most bytes of an evidence file.
	MaxEvidence = 2<<20 + 64<<10

	claimSameSize   = "same-size"
	claimNotAPrefix = "not-a-prefix"
	claimAfterEnd   = "after-end"
	claimHandover   = "bad-handover"
)

// Evidence is what an evidence file holds: two signed notes of one log, and for
// notes of different sizes the hashes that contradict them; or the tlog-proofs
// of a log that went on after its end, or of a hand-over that was none.
type Evidence struct {
	First, Second []byte     // signed notes, verbatim; First is not the larger
	Hashes        [][32]byte // nil if the sizes are equal
	Claim         string     // "" for two notes
}

// AfterEnd is the evidence that a log signed more after the entry that ends it:
// a tlog-proof of that entry in a larger tree.
func AfterEnd(proof []byte) *Evidence { return &Evidence{Claim: claimAfterEnd, First: proof} }

// Bytes returns the evidence file, with comments that say what it shows.
func (e *Evidence) Bytes() []byte {
	claim, words := claimSameSize, []string{
		"The log signed two different trees of the same size.",
	}
	if e.Hashes != nil {
		claim, words = claimNotAPrefix, []string{
			"The log signed a larger tree that does not begin with the smaller tree it signed too.",
			"The hashes below lead to the root of the larger tree, and to another root than the signed one of the smaller.",
		}
	}
	switch e.Claim {
	case claimAfterEnd:
		claim, words = e.Claim, []string{"The log signed an entry that ends it, and more after that, or one that names itself as its successor.", "Below is the proof of that entry."}
	case claimHandover:
		claim, words = e.Claim, []string{
			"A log ended and named a successor, and what that one begins with contradicts it. Below are the proofs of the two entries.",
			"Two honest logs never do this. Which of the two lied, or whose key somebody else has, does not follow from it.",
		}
	}
	if e.Claim != claimHandover {
		words = append(words, "An honest log never does this.")
	}
	words = append(words, "Check it with public keys alone: see client.VerifyEvidence.")
	b := []byte(evidenceHeader)
	for _, w := range words {
		b = append(b, "# "+w+"\n"...)
	}
	b = append(b, "claim "+claim+"\n"...)
	b = appendQuoted(append(b, "first\n"...), e.First)
	if e.Claim != claimAfterEnd {
		b = appendQuoted(append(b, "second\n"...), e.Second)
	}
	if e.Hashes != nil {
		b = append(b, "hashes\n"...)
		for _, h := range e.Hashes {
			b = base64.StdEncoding.AppendEncode(b, h[:])
			b = append(b, '\n')
		}
	}
	return b
}

// appendQuoted writes each line of a note after a bar, so that the empty line
// in it does not end anything.
func appendQuoted(b, note []byte) []byte {
	for line := range bytes.Lines(note) {
		b = append(append(b, "| "...), line...)
	}
	return b
}

// ParseEvidence reads the form of an evidence file. That it proves anything is
// for [Evidence.Verify].
func ParseEvidence(b []byte) (*Evidence, error) {
	bad := func(format string, args ...any) (*Evidence, error) {
		return nil, fmt.Errorf("evidence: "+format, args...)
	}
	if len(b) > MaxEvidence {
		return bad("longer than %d bytes", MaxEvidence)
	}
	s, ok := strings.CutPrefix(string(b), evidenceHeader)
	if !ok {
		return bad("the first line is not %s", strings.TrimSpace(evidenceHeader))
	}
	if !strings.HasSuffix(s, "\n") {
		return bad("the last line has no newline: is the file cut off?")
	}
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	for len(lines) > 0 && strings.HasPrefix(lines[0], "#") {
		lines = lines[1:]
	}
	take := func(want string) bool {
		if len(lines) == 0 || lines[0] != want {
			return false
		}
		lines = lines[1:]
		return true
	}
	note := func() []byte {
		var n []byte
		for len(lines) > 0 && strings.HasPrefix(lines[0], "| ") {
			n = append(append(n, lines[0][2:]...), '\n')
			lines = lines[1:]
		}
		return n
	}
	var e Evidence
	prefix := take("claim " + claimNotAPrefix)
	switch {
	case prefix, take("claim " + claimSameSize):
	case take("claim " + claimAfterEnd):
		e.Claim = claimAfterEnd
	case take("claim " + claimHandover):
		e.Claim = claimHandover
	default:
		return bad("no claim line that is known")
	}
	if !take("first") {
		return bad("no first note")
	}
	e.First = note()
	if e.Claim != claimAfterEnd {
		if !take("second") {
			return bad("no second note")
		}
		e.Second = note()
	}
	if prefix {
		if !take("hashes") {
			return bad("no hashes")
		}
		e.Hashes = [][32]byte{}
		for _, line := range lines {
			h, err := base64.StdEncoding.Strict().DecodeString(line)
			if err != nil || len(h) != 32 || len(line) != 44 {
				return bad("a hash line is not canonical base64 of 32 bytes")
			}
			if len(e.Hashes) == 128 {
				return bad("more than 128 hashes")
			}
			e.Hashes = append(e.Hashes, [32]byte(h))
		}
		lines = nil
	}
	if len(lines) > 0 {
		return bad("lines after its end")
	}
	return &e, nil
}

// A Misbehaviour is what verified evidence proves.
type Misbehaviour struct {
	Code          string         // CodeForkSameSize, CodeForkPrefix, CodeAfterEnd or CodeHandover
	First, Second *c2sp.Verified // Second is nil with CodeAfterEnd, and of another log with CodeHandover: one of the two lied
	// Witnesses are those of the policy that cosigned both notes. For a fork
	// of one size each of them broke its promise as well.
	Witnesses []string
}

// Verify checks that the evidence proves that a log of the policy signed two
// histories. The quorum does not matter: it is the log that is accused. No
// error means that it is proven.
func (e *Evidence) Verify(p *c2sp.Policy) (*Misbehaviour, error) {
	switch e.Claim {
	case claimAfterEnd:
		return e.verifyAfterEnd(p)
	case claimHandover:
		return e.verifyHandover(p)
	}
	m := &Misbehaviour{Code: CodeForkSameSize}
	var err error
	if m.First, err = p.VerifyLog(e.First); err != nil {
		return nil, fmt.Errorf("evidence: first note: %w", err)
	}
	if m.Second, err = p.VerifyLog(e.Second); err != nil {
		return nil, fmt.Errorf("evidence: second note: %w", err)
	}
	a, b := m.First, m.Second
	if a.Origin != b.Origin {
		return nil, fmt.Errorf("evidence: the notes are of two logs, %q and %q", a.Origin, b.Origin)
	}
	for _, x := range a.Cosignatures {
		for _, y := range b.Cosignatures {
			if x.Witness == y.Witness {
				m.Witnesses = append(m.Witnesses, x.Witness)
			}
		}
	}
	if e.Hashes == nil {
		if a.Size != b.Size {
			return nil, fmt.Errorf("evidence: sizes %d and %d are not the same size", a.Size, b.Size)
		}
		if a.Root == b.Root {
			return nil, errors.New("evidence: both notes have the same root; the log contradicts nothing")
		}
		return m, nil
	}
	m.Code = CodeForkPrefix
	if a.Size >= b.Size {
		return nil, fmt.Errorf("evidence: the first note, of size %d, is not smaller than the second, of size %d", a.Size, b.Size)
	}
	atA, atB, err := prefixRoots(a.Size, b.Size, e.Hashes)
	if err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	if atB != b.Root {
		return nil, errors.New("evidence: the hashes do not lead to the root the log signed for the larger tree, so they prove nothing")
	}
	if atA == a.Root {
		return nil, errors.New("evidence: the hashes agree with both roots; the log contradicts nothing")
	}
	return m, nil
}

// verifyAfterEnd checks the claim after-end.
func (e *Evidence) verifyAfterEnd(p *c2sp.Policy) (*Misbehaviour, error) {
	leaf, pr, v, err := leafOf(e.First, p.VerifyLog)
	if err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	if leaf.Kind != entry.KindSuccessor {
		return nil, fmt.Errorf("evidence: entry %d is of kind %q and ends no log", pr.Index, leaf.Kind)
	}
	if pr.Index+1 == v.Size && leaf.Origin != v.Origin {
		return nil, errors.New("evidence: the entry is the last of the tree and names another log; the log contradicts nothing")
	}
	return &Misbehaviour{Code: CodeAfterEnd, First: v}, nil
}

// verifyHandover checks the claim bad-handover. The quorum does not matter: it
// is the logs that are accused, the two of them together.
func (e *Evidence) verifyHandover(p *c2sp.Policy) (*Misbehaviour, error) {
	leaf, pr, old, err := leafOf(e.First, p.VerifyLog)
	if err != nil {
		return nil, fmt.Errorf("evidence: first proof: %w", err)
	}
	if leaf.Kind != entry.KindSuccessor || pr.Index+1 != old.Size {
		return nil, fmt.Errorf("evidence: entry %d is not the one that ends the log", pr.Index)
	}
	f := &Followed{From: old.Checkpoint, To: leaf.Origin, URL: leaf.URL}
	next, err := f.policy(p, leaf.VKeys)
	if err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	second, pr2, v, err := leafOf(e.Second, next.VerifyLog)
	if err != nil {
		return nil, fmt.Errorf("evidence: second proof: %w", err)
	}
	if v.Origin != f.To {
		return nil, fmt.Errorf("evidence: the second proof is of %q, not of %q", v.Origin, f.To)
	}
	var r *Refusal
	if err := f.matches(pr2.Index, second); !errors.As(err, &r) {
		return nil, errors.New("evidence: the logs do not contradict each other")
	}
	return &Misbehaviour{Code: CodeHandover, First: old, Second: v}, nil
}

// VerifyEvidence checks an evidence file offline, with the log's public keys in
// the policy alone. No error means that the log's misbehaviour is proven.
func VerifyEvidence(b []byte, p *c2sp.Policy) error {
	e, err := ParseEvidence(b)
	if err != nil {
		return err
	}
	_, err = e.Verify(p)
	return err
}

// WriteEvidence writes e into dir, which it makes if need be, and returns the
// path. The name depends on the contents alone, so that one fork met a thousand
// times leaves one file. A file is there whole or not at all.
func WriteEvidence(dir string, e *Evidence) (string, error) {
	b := e.Bytes()
	sum := sha256.Sum256(b)
	path := filepath.Join(dir, "portbook-evidence-"+hex.EncodeToString(sum[:8])+".txt")
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, b) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("writing evidence: %w", err)
	}
	if err := replaceFile(path, b); err != nil {
		return "", fmt.Errorf("writing evidence: %w", err)
	}
	return path, nil
}
