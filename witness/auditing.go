package witness

// What an auditing mirror (package witness/auditor) needs of a witness: the same
// judgement of add-checkpoint, and the same memory of what was cosigned. The
// mirror keeps its pending checkpoints itself and cosigns later, so neither of
// these signs anything.

import (
	"context"
	"errors"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// Judge applies the rule of add-checkpoint to a request body: its grammar, the
// signatures of the log's keys, and consistency with the checkpoint that known
// returns as the log's head. It returns the new checkpoint and its note,
// re-encoded, with the verified signatures of the log alone. It changes nothing.
// Its errors are those of errors.go and known's own. With an error, fork is what
// the request proves against the log, to be kept; nil if that is nothing.
func Judge(body []byte, known func(origin string) (*Log, error)) (cp c2sp.Checkpoint, note *c2sp.Note, fork *Fork, err error) {
	req, err := parseRequest(body)
	if err != nil {
		return cp, nil, nil, err
	}
	log, err := known(req.cp.Origin)
	if err != nil {
		return req.cp, nil, nil, err
	}
	sigs, err := verifyLog(log, req.note)
	if err != nil {
		return req.cp, nil, nil, err
	}
	if err = check(req, log.Head); err == nil {
		return req.cp, &c2sp.Note{Text: req.cp.Text(), Sigs: sigs}, nil, nil
	}
	fork = contradiction(req, log, sigs)
	var unproven *ProofError
	if fork != nil && errors.As(err, &unproven) {
		err = &ForkError{log.Origin, fork.OursSize, fork.Size}
	}
	return req.cp, nil, fork, err
}

// VerifyLog returns the signatures of the log's trusted keys on a note, one for
// each key. The error is a *SignatureError.
func (l *Log) VerifyLog(n *c2sp.Note) ([]c2sp.Signature, error) { return verifyLog(l, n) }

// ErrMoved means that [Store.Advance] found another head than the caller knew.
var ErrMoved = errMoved

// Advance makes to the head of a log whose head is from (nil: none yet), and
// returns when it is durable, and the mark with it. [ErrMoved]: the head was
// another. After any other error nobody knows which head is on the disk, and
// nothing signed may leave.
func (s *Store) Advance(ctx context.Context, origin string, from *Head, to Head) error {
	if from != nil && to.Size < from.Size {
		return errors.New("a head never goes back")
	}
	return s.advance(ctx, origin, from, to)
}

// KeepFork stores evidence. kept is false if it was there, there is enough of it,
// or it does not convince everyone who has the log's key.
func (s *Store) KeepFork(ctx context.Context, f *Fork) (kept bool, err error) {
	l, err := s.Log(ctx, f.Origin)
	if err != nil {
		return false, err
	}
	e, err := c2sp.ParseEvidence(f.Evidence(l.Keys).Bytes())
	if err != nil || e.VerifyFork(l.open) != nil {
		return false, nil
	}
	return s.keepFork(ctx, f)
}

// MadeFor returns when the state was made for these keys, which must be exactly
// those that it belongs to: else [ErrOtherKey].
func (s *Store) MadeFor(keys []*c2sp.Key) (since time.Time, err error) {
	if err := s.belongsTo(keys); err != nil {
		return since, err
	}
	return s.bound(keys[0])
}
