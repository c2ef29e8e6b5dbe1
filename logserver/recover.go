package logserver

// The last state of a log whose key is lost or stolen: what its witnesses have
// cosigned, and nothing that the key alone has signed.

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/portbook/portbook/c2sp"
)

// A LastState is what LastCosigned found.
type LastState struct {
	c2sp.Checkpoint
	Note []byte // with all cosignatures that were found
	// Larger are the sizes that the log's key has signed beyond this, without a
	// quorum or beyond the bound that was asked for.
	Larger []uint64
}

// ForkError says that a quorum cosigned two different trees.
type ForkError struct{ First, Second []byte } // signed notes, of one size

func (e *ForkError) Error() string {
	return "a quorum of witnesses has cosigned two different trees of one size: no state of this log can be relied on; choose a smaller one with --at-most, and find out which witnesses lied"
}

// LastCosigned finds in notes, whoever they come from, the largest checkpoint of
// the log origin that the policy's quorum has cosigned. Cosignatures of one
// checkpoint are put together: a witness shows its own alone. Nothing larger
// than atMost counts, unless that is 0. Notes that are no checkpoint of the log
// are ignored.
func LastCosigned(p *c2sp.Policy, origin string, notes [][]byte, atMost uint64) (*LastState, error) {
	if p.Quorum == c2sp.QuorumNone {
		return nil, errors.New("the policy needs no witness, so nothing that the key's thief signs could be told from what the log signed: give the policy with the log's witnesses")
	}
	byText := map[string]*c2sp.Note{}
	for _, raw := range notes {
		v, err := p.VerifyLog(raw)
		if err != nil || v.Origin != origin {
			continue
		}
		have := byText[v.Note.Text]
		if have == nil {
			have = &c2sp.Note{Text: v.Note.Text}
			byText[v.Note.Text] = have
		}
		for _, s := range v.Note.Sigs {
			// A line that nobody here knows is left out: one witness could
			// add so many that the others' do not fit beside them.
			if knows(p, s) && !slices.ContainsFunc(have.Sigs, func(h c2sp.Signature) bool { return h.Name == s.Name && h.KeyID == s.KeyID }) {
				have.Sigs = append(have.Sigs, s)
			}
		}
	}
	var found []LastState
	var signed []uint64
	for _, n := range byText {
		raw := n.Bytes()
		c, err := c2sp.ParseCheckpoint(n.Text)
		if err != nil {
			continue
		}
		if _, err := p.Verify(raw); err != nil || atMost > 0 && c.Size > atMost {
			signed = append(signed, c.Size)
			continue
		}
		found = append(found, LastState{Checkpoint: c, Note: raw})
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no checkpoint of %s with a quorum was found among %d: give one that was published (--checkpoint FILE), or let more witnesses be asked", origin, len(byText))
	}
	slices.SortFunc(found, func(a, b LastState) int { return cmp.Compare(b.Size, a.Size) })
	last := found[0]
	if len(found) > 1 && found[1].Size == last.Size {
		return nil, &ForkError{last.Note, found[1].Note}
	}
	for _, size := range signed {
		if size > last.Size {
			last.Larger = append(last.Larger, size)
		}
	}
	slices.Sort(last.Larger)
	return &last, nil
}

// knows reports whether s is by a key of the policy.
func knows(p *c2sp.Policy, s c2sp.Signature) bool {
	return slices.ContainsFunc(p.Logs, func(l c2sp.PolicyLog) bool { return l.Key.Matches(s) }) ||
		slices.ContainsFunc(p.Witnesses, func(w c2sp.PolicyWitness) bool { return w.Key.Matches(s) })
}
