package c2sp

// Evidence: one text file that proves to anyone who holds the log's public keys
// that the log signed two histories. It needs no network and no trust in who
// wrote it. The format is Portbook's own; it stands here so that a witness and a
// client write and read one and the same.
//
//	portbook-evidence/v1
//	# any number of comment lines
//	claim same-size                  or: not-a-prefix, inconsistent, after-end, bad-handover,
//	                                 malformed-entry
//	first                            the checkpoint of the smaller size
//	| <each line of the signed note>
//	second
//	| <each line of the signed note>
//	hashes                           with not-a-prefix and inconsistent only
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
// inconsistent: the same, claimWords with less. The first hash is a root, not that of
// the first note; the others are the consistency proof of RFC 6962, section
// 2.1.2, from it, at the size of the first note, to the second note. So the tree
// that the log signed second began with another tree than it signed first.
//
// after-end, bad-handover, malformed-entry: tlog-proofs in the place of notes,
// about how a log ends and about an entry that is none; package client knows what
// they show. Only bad-handover has a second.

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const (
	evidenceHeader = "portbook-evidence/v1\n"
	// MaxEvidence is the most bytes of an evidence file.
	MaxEvidence = 2<<20 + 64<<10

	maxEvidenceHashes = 128
)

// What evidence can claim.
const (
	ClaimSameSize     = "same-size"
	ClaimNotAPrefix   = "not-a-prefix"
	ClaimInconsistent = "inconsistent"
	ClaimAfterEnd     = "after-end"
	ClaimHandover     = "bad-handover"
	ClaimMalformed    = "malformed-entry"
)

// Evidence is what an evidence file holds: two signed notes of one log, and for
// notes of different sizes the hashes that contradict them; or the tlog-proofs
// of a log that went on after its end, or of a hand-over that was none.
type Evidence struct {
	First, Second []byte     // signed notes, verbatim; First is not the larger
	Hashes        [][32]byte // nil if the sizes are equal
	Claim         string     // "" for two notes: same-size without hashes, else not-a-prefix

	// Remarks are said in comment lines, for people. ParseEvidence forgets them.
	Remarks []string
}

func (e *Evidence) claim() string {
	switch {
	case e.Claim != "":
		return e.Claim
	case e.Hashes != nil:
		return ClaimNotAPrefix
	}
	return ClaimSameSize
}

// single reports whether there is no second.
func (e *Evidence) single() bool { return e.Claim == ClaimAfterEnd || e.Claim == ClaimMalformed }

// claimWords are what comments say for each claim.
var claimWords = map[string][]string{
	ClaimSameSize: {"The log signed two different trees of the same size."},
	ClaimNotAPrefix: {
		"The log signed a larger tree that does not begin with the smaller tree it signed too.",
		"The hashes below lead to the root of the larger tree, and to another root than the signed one of the smaller.",
	},
	ClaimInconsistent: {
		"The log signed a larger tree that does not begin with the smaller tree it signed too.",
		"The first hash below is the root with which the larger tree began, as the others prove (RFC 6962): not the one that was signed.",
	},
	ClaimAfterEnd:  {"The log signed an entry that ends it, and more after that, or one that names itself as its successor.", "Below is the proof of that entry."},
	ClaimMalformed: {"The log signed a tree with an entry that breaks the grammar that binds every version of the format.", "Below is the proof of that entry."},
	ClaimHandover: {
		"A log ended and named a successor, and what that one begins with contradicts it. Below are the proofs of the two entries.",
		"Two honest logs never do this. Which of the two lied, or whose key somebody else has, does not follow from it.",
	},
}

// Bytes returns the evidence file, with comments that say what it shows.
func (e *Evidence) Bytes() []byte {
	claim := e.claim()
	b := []byte(evidenceHeader)
	say := func(words ...string) {
		for _, w := range words {
			b = append(b, "# "+strings.ReplaceAll(w, "\n", " ")+"\n"...)
		}
	}
	say(claimWords[claim]...)
	if claim != ClaimHandover {
		say("An honest log never does this.")
	}
	say("Check it with public keys alone: portbook evidence verify FILE --log-key VKEY")
	say(e.Remarks...)
	b = append(b, "claim "+claim+"\n"...)
	b = appendQuoted(append(b, "first\n"...), e.First)
	if !e.single() {
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
// for [Evidence.VerifyFork] and package client.
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
	hashes := false
	switch {
	case take("claim " + ClaimSameSize):
	case take("claim " + ClaimNotAPrefix):
		hashes = true
	case take("claim " + ClaimInconsistent):
		e.Claim, hashes = ClaimInconsistent, true
	case take("claim " + ClaimAfterEnd):
		e.Claim = ClaimAfterEnd
	case take("claim " + ClaimHandover):
		e.Claim = ClaimHandover
	case take("claim " + ClaimMalformed):
		e.Claim = ClaimMalformed
	default:
		return bad("no claim line that is known")
	}
	if !take("first") {
		return bad("no first note")
	}
	e.First = note()
	if !e.single() {
		if !take("second") {
			return bad("no second note")
		}
		e.Second = note()
	}
	if hashes {
		if !take("hashes") {
			return bad("no hashes")
		}
		e.Hashes = [][32]byte{}
		for _, line := range lines {
			h, ok := decodeHash(line)
			if !ok {
				return bad("a hash line is not canonical base64 of 32 bytes")
			}
			if len(e.Hashes) == maxEvidenceHashes {
				return bad("more than %d hashes", maxEvidenceHashes)
			}
			e.Hashes = append(e.Hashes, h)
		}
		lines = nil
	}
	if len(lines) > 0 {
		return bad("lines after its end")
	}
	return &e, nil
}

// VerifyFork checks that two notes contradict each other: the claims same-size,
// not-a-prefix and inconsistent. open returns the checkpoint of a note if, and
// only if, the accused log signed it; no error means that the log signed two
// histories, whoever made the evidence.
func (e *Evidence) VerifyFork(open func(note []byte) (Checkpoint, error)) error {
	a, err := open(e.First)
	if err != nil {
		return fmt.Errorf("evidence: first note: %w", err)
	}
	b, err := open(e.Second)
	if err != nil {
		return fmt.Errorf("evidence: second note: %w", err)
	}
	if a.Origin != b.Origin {
		return fmt.Errorf("evidence: the notes are of two logs, %q and %q", a.Origin, b.Origin)
	}
	claim := e.claim()
	if claim == ClaimSameSize {
		if a.Size != b.Size {
			return fmt.Errorf("evidence: sizes %d and %d are not the same size", a.Size, b.Size)
		}
		if a.Root == b.Root {
			return errors.New("evidence: both notes have the same root; the log contradicts nothing")
		}
		return nil
	}
	if a.Size >= b.Size {
		return fmt.Errorf("evidence: the first note, of size %d, is not smaller than the second, of size %d", a.Size, b.Size)
	}
	var began [32]byte // the tree that was signed second, at the size of the first
	switch claim {
	case ClaimNotAPrefix:
		var root [32]byte
		if began, root, err = PrefixRoots(a.Size, b.Size, e.Hashes); err != nil {
			return fmt.Errorf("evidence: %w", err)
		}
		if root != b.Root {
			return errors.New("evidence: the hashes do not lead to the root the log signed for the larger tree, so they prove nothing")
		}
	case ClaimInconsistent:
		if len(e.Hashes) == 0 || a.Size == 0 {
			return errors.New("evidence: no other root that the larger tree would begin with")
		}
		began = e.Hashes[0]
		if err := VerifyConsistency(a.Size, b.Size, e.Hashes[1:], began, b.Root); err != nil {
			return fmt.Errorf("evidence: the hashes do not show with what the larger tree begins, so they prove nothing: %w", err)
		}
	default:
		return fmt.Errorf("evidence: %s is no claim about two notes", claim)
	}
	if began == a.Root {
		return errors.New("evidence: the hashes agree with both roots; the log contradicts nothing")
	}
	return nil
}
