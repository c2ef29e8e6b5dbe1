package client

// Evidence that proves a log's misbehaviour to anyone who holds its public keys.
// The file, and what two notes can prove, is package c2sp's; here are the claims
// for which an entry has to be read:
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
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// MaxEvidence is the most bytes of an evidence file.
const MaxEvidence = c2sp.MaxEvidence

// Evidence is what an evidence file holds; see [c2sp.Evidence].
type Evidence c2sp.Evidence

// AfterEnd is the evidence that a log signed more after the entry that ends it:
// a tlog-proof of that entry in a larger tree.
func AfterEnd(proof []byte) *Evidence { return &Evidence{Claim: c2sp.ClaimAfterEnd, First: proof} }

// Bytes returns the evidence file, with comments that say what it shows.
func (e *Evidence) Bytes() []byte { return (*c2sp.Evidence)(e).Bytes() }

// ParseEvidence reads the form of an evidence file. That it proves anything is
// for [Evidence.Verify].
func ParseEvidence(b []byte) (*Evidence, error) {
	e, err := c2sp.ParseEvidence(b)
	return (*Evidence)(e), err
}

// A Misbehaviour is what verified evidence proves.
type Misbehaviour struct {
	Code          string         // CodeForkSameSize, CodeForkPrefix, CodeAfterEnd, CodeHandover or CodeBadEntry
	First, Second *c2sp.Verified // Second is nil with CodeAfterEnd and CodeBadEntry, and of another log with CodeHandover: one of the two lied
	// Witnesses are those of the policy that cosigned both notes. For a fork
	// of one size each of them broke its promise as well.
	Witnesses []string
}

// Verify checks that the evidence proves that a log of the policy signed two
// histories. The quorum does not matter: it is the log that is accused. No
// error means that it is proven.
func (e *Evidence) Verify(p *c2sp.Policy) (*Misbehaviour, error) {
	switch e.Claim {
	case c2sp.ClaimAfterEnd:
		return e.verifyAfterEnd(p)
	case c2sp.ClaimHandover:
		return e.verifyHandover(p)
	case c2sp.ClaimMalformed:
		return e.verifyMalformed(p)
	}
	var notes []*c2sp.Verified
	if err := (*c2sp.Evidence)(e).VerifyFork(func(note []byte) (c2sp.Checkpoint, error) {
		v, err := p.VerifyLog(note)
		if err != nil {
			return c2sp.Checkpoint{}, err
		}
		notes = append(notes, v)
		return v.Checkpoint, nil
	}); err != nil {
		return nil, err
	}
	m := &Misbehaviour{Code: CodeForkSameSize, First: notes[0], Second: notes[1]}
	if m.First.Size != m.Second.Size {
		m.Code = CodeForkPrefix
	}
	for _, x := range m.First.Cosignatures {
		for _, y := range m.Second.Cosignatures {
			if x.Witness == y.Witness {
				m.Witnesses = append(m.Witnesses, x.Witness)
			}
		}
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

// verifyMalformed checks the claim malformed-entry. An entry of a version that is
// not known to this program is none.
func (e *Evidence) verifyMalformed(p *c2sp.Policy) (*Misbehaviour, error) {
	pr, err := c2sp.ParseProof(e.First)
	if err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	v, err := p.VerifyLog(pr.Checkpoint)
	if err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	if err := c2sp.VerifyInclusion(pr.Index, v.Size, entry.LeafHash(pr.Extra), pr.Hashes, v.Root); err != nil {
		return nil, fmt.Errorf("evidence: %w", err)
	}
	if _, err := entry.Parse(pr.Extra); err == nil || errors.Is(err, entry.ErrVersion) {
		return nil, fmt.Errorf("evidence: entry %d keeps the grammar; the log did nothing wrong", pr.Index)
	}
	return &Misbehaviour{Code: CodeBadEntry, First: v}, nil
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
