package c2sp

// The errors of this package: one for each outcome that a caller can act on.

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrUnknownLog means that no log line of the policy has the checkpoint's
	// origin.
	ErrUnknownLog = errors.New("the policy names no log with this origin")
	// ErrNoLogSignature means that the log is known, but none of its keys
	// signed the checkpoint.
	ErrNoLogSignature = errors.New("no key of the log signed this checkpoint")
	// ErrBadSignature means that a signature line carries the name and key ID
	// of a known key, and does not verify. Such a note is malformed
	// (c2sp.org/signed-note), whatever else it carries.
	ErrBadSignature = errors.New("signature does not verify")
)

// A MalformedError says which of the formats was violated, and how.
type MalformedError struct {
	What   string // what was being read: "note", "checkpoint", "proof", ...
	Reason string
}

func (e *MalformedError) Error() string { return "malformed " + e.What + ": " + e.Reason }

func malformed(what, format string, args ...any) error {
	return &MalformedError{What: what, Reason: fmt.Sprintf(format, args...)}
}

// A PolicyError says which line of a policy file cannot be used, and why.
type PolicyError struct {
	Line   int // counted from 1; 0 if it is about the file as a whole
	Reason string
}

func (e *PolicyError) Error() string {
	if e.Line == 0 {
		return "policy: " + e.Reason
	}
	return fmt.Sprintf("policy, line %d: %s", e.Line, e.Reason)
}

// A QuorumError means that the log signed, but too few of the witnesses did.
type QuorumError struct {
	Have []string // policy names of the witnesses whose cosignatures verified
	Need string   // the quorum in words
}

func (e *QuorumError) Error() string {
	have := "none"
	if len(e.Have) > 0 {
		have = strings.Join(e.Have, ", ")
	}
	return "too few witnesses cosigned: have " + have + "; the policy needs " + e.Need
}
