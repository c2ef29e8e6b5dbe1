package c2sp

// The one place where a checkpoint becomes trusted.

import (
	"bytes"
	"fmt"
	"slices"
	"time"
)

// A Verified is a checkpoint that its log signed and a quorum cosigned.
type Verified struct {
	Checkpoint
	Note   *Note // with all its lines, also those that nobody here knows
	LogKey *Key  // the first key of the log whose signature is on the note

	// Cosignatures are the verified ones of the policy's witnesses, one for
	// each raw key, in the order of the note. See [Policy.Verify] for which
	// one it is if a witness signed more than once.
	Cosignatures []Cosignature

	// QuorumTime is the earliest T such that the cosignatures with time <= T
	// satisfy the quorum: by then the log had published this. It bounds the
	// age of what is in the tree (cooldown): fewer liars than a quorum cannot
	// make it earlier. Zero if the policy needs no witness.
	QuorumTime time.Time

	// FreshTime is the latest T such that the cosignatures with time >= T
	// satisfy the quorum: at T this was still the newest tree. It is the one
	// for judging freshness, since fewer liars than a quorum cannot make it
	// later, as they can with QuorumTime. Zero if the policy needs no witness.
	FreshTime time.Time
}

// A Cosignature is a verified statement of a witness about a checkpoint.
type Cosignature struct {
	Witness string // name in the policy
	Key     *Key
	Time    time.Time // whole seconds, UTC
}

// Verify checks a signed note as a checkpoint under the policy: the grammar,
// a signature of a log key whose name is the checkpoint's origin, every
// signature line of any key in the policy, and the quorum, counted by raw key.
// Lines of unknown keys are ignored and count for nothing.
//
// The error is, or wraps, [*MalformedError], [ErrUnknownLog],
// [ErrNoLogSignature], [ErrBadSignature] or [*QuorumError].
//
// If several lines are by one key, all must verify, and the one with the
// earliest time is credited. Only the witness itself can make such a line, and
// whoever passes the note on can leave lines out. Were the latest credited,
// anyone who can ask the witness to cosign the same tree again could add that
// line to an old note, make the files in it look new and hold them back in
// everybody's cooldown; and a copy of today's line would make an old quorum
// look fresh. With the earliest, an added line can at most make the checkpoint
// look older, which leaving lines out does as well.
func (p *Policy) Verify(note []byte) (*Verified, error) {
	v, err := p.VerifyLog(note)
	if err != nil || p.Quorum == QuorumNone {
		return v, err
	}
	byTime := slices.Clone(v.Cosignatures)
	slices.SortStableFunc(byTime, func(a, b Cosignature) int { return a.Time.Compare(b.Time) })
	var ok bool
	if v.QuorumTime, ok = p.quorumAt(byTime); !ok {
		e := &QuorumError{Need: p.quorumWords()}
		for _, c := range v.Cosignatures {
			e.Have = append(e.Have, c.Witness)
		}
		return nil, e
	}
	slices.Reverse(byTime)
	v.FreshTime, _ = p.quorumAt(byTime)
	return v, nil
}

// VerifyLog is [Policy.Verify] without the quorum, and without its times: it
// says what the log has signed, which is what counts when the log is accused.
// It is not enough to trust a checkpoint.
func (p *Policy) VerifyLog(note []byte) (*Verified, error) {
	n, err := ParseNote(note)
	if err != nil {
		return nil, err
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return nil, err
	}
	if c.Size == 0 && c.Root != EmptyRoot {
		return nil, malformed("checkpoint", "a tree of size 0 whose root is not that of the empty tree")
	}
	known := false
	for _, l := range p.Logs {
		known = known || l.Key.name == c.Origin
	}
	if !known {
		return nil, fmt.Errorf("%w: %s", ErrUnknownLog, quote(c.Origin))
	}

	v := &Verified{Checkpoint: c, Note: n}
	var retired *PolicyLog // signed, beyond what it is believed for
	for _, s := range n.Sigs {
		if l := p.logKey(s); l != nil {
			if _, err := l.Key.verify(n.Text, &c, s, true); err != nil {
				return nil, err
			}
			switch {
			case l.Key.name != c.Origin:
			case l.Retired && c.Size > l.UpTo:
				retired = l
			case v.LogKey == nil:
				v.LogKey = l.Key
			}
		} else if w := p.witness(s); w != nil {
			t, err := w.Key.verify(n.Text, &c, s, false)
			if err != nil {
				return nil, err
			}
			v.credit(Cosignature{Witness: w.Name, Key: w.Key, Time: t})
		}
	}
	if v.LogKey == nil && retired != nil {
		return nil, fmt.Errorf("%w: %s: its key %08x is retired, and believed for at most %d entries; this is signed for %d",
			ErrNoLogSignature, quote(c.Origin), retired.Key.id, retired.UpTo, c.Size)
	}
	if v.LogKey == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoLogSignature, quote(c.Origin))
	}
	return v, nil
}

// credit takes a verified cosignature, one for each raw key. That a policy has
// no raw key twice is for ParsePolicy to see; one that was put together by
// hand must not count a relabelled key twice either.
func (v *Verified) credit(c Cosignature) {
	for i, have := range v.Cosignatures {
		if bytes.Equal(have.Key.raw, c.Key.raw) {
			if have.Key == c.Key && c.Time.Before(have.Time) {
				v.Cosignatures[i] = c
			}
			return
		}
	}
	v.Cosignatures = append(v.Cosignatures, c)
}

// quorumAt adds cosignatures in their order and returns the time of the one
// that makes the quorum.
func (p *Policy) quorumAt(list []Cosignature) (time.Time, bool) {
	names := make(map[string]bool, len(list))
	for _, c := range list {
		names[c.Witness] = true
		if p.Satisfied(names) {
			return c.Time, true
		}
	}
	return time.Time{}, false
}

// logKey returns the log line whose key s says it is by, or nil.
func (p *Policy) logKey(s Signature) *PolicyLog {
	for i := range p.Logs {
		if l := &p.Logs[i]; l.Key.Matches(s) {
			return l
		}
	}
	return nil
}

// witness returns the witness that s says it is by, or nil.
func (p *Policy) witness(s Signature) *PolicyWitness {
	for i := range p.Witnesses {
		if w := &p.Witnesses[i]; w.Key.Matches(s) {
			return w
		}
	}
	return nil
}
