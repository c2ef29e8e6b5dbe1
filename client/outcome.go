package client

// The two ways in which verification does not end well.

import "strings"

// A Refusal means that something is wrong: with this file (codes PB1xx), or
// with the log itself (PB2xx).
type Refusal struct {
	Code     string // "PB101"; see [Explain]
	Check    string // the check that failed, in a few words
	Detail   string // what was found, and what was expected
	Evidence string // path of the evidence file, if one was written
	Err      error  // the cause, if there is one

	proof *Evidence // not yet written
}

func (r *Refusal) Error() string {
	s := r.Code + ": refused, " + r.Check + ": " + r.Detail
	if r.Evidence != "" {
		s += " (evidence: " + r.Evidence + ")"
	}
	return s
}

// Proof is the evidence of a refused hand-over that is not yet written to a
// file; nil if there is none.
func (r *Refusal) Proof() *Evidence { return r.proof }

func (r *Refusal) Unwrap() error { return r.Err }

// Tampering reports whether the log itself misbehaved (PB2xx), as opposed to
// something being wrong with one file.
func (r *Refusal) Tampering() bool { return strings.HasPrefix(r.Code, "PB2") }

// A CannotCheck means that verification was not possible: a network, a disk, a
// configuration. It says nothing about the file or the log.
type CannotCheck struct {
	Code   string // "PB3xx"; see [Explain]
	Reason string
	Err    error
}

func (c *CannotCheck) Error() string { return c.Code + ": cannot check: " + c.Reason }
func (c *CannotCheck) Unwrap() error { return c.Err }

// cannot wraps err as the reason itself.
func cannot(code, doing string, err error) *CannotCheck {
	return &CannotCheck{Code: code, Reason: doing + ": " + err.Error(), Err: err}
}
