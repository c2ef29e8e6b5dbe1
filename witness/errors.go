package witness

// One error for each outcome that c2sp.org/tlog-witness knows. http.go turns
// them into status codes, in one switch.

import (
	"fmt"
	"time"
)

// A MalformedError means that the request is not in the grammar of
// add-checkpoint (400).
type MalformedError struct{ Err error }

func (e *MalformedError) Error() string { return e.Err.Error() }
func (e *MalformedError) Unwrap() error { return e.Err }

// An OldSizeError means that the request's old size is above the size of its
// checkpoint (400).
type OldSizeError struct{ Old, Size uint64 }

func (e *OldSizeError) Error() string {
	return fmt.Sprintf("old size %d is above the checkpoint's size %d", e.Old, e.Size)
}

// An UnknownLogError means that this witness was not configured for the log (404).
type UnknownLogError struct{ Origin string }

func (e *UnknownLogError) Error() string {
	return fmt.Sprintf("unknown log %.100q: its operator and this witness's have to agree first", e.Origin)
}

// A SignatureError means that no trusted key of the log signed the checkpoint,
// or that a signature under the name and ID of a trusted key is wrong (403).
type SignatureError struct {
	Origin string
	Err    error // nil if there was no signature by a trusted key at all
}

func (e *SignatureError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("no signature by a trusted key of log %.100q", e.Origin)
	}
	return fmt.Sprintf("log %.100q: %v", e.Origin, e.Err)
}
func (e *SignatureError) Unwrap() error { return e.Err }

// A ConflictError means that the request's old size is not the size cosigned
// last (409). Size is what the client has to start from: 0 if nothing was
// cosigned yet.
type ConflictError struct{ Size uint64 }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("the latest checkpoint cosigned for this log has size %d", e.Size)
}

// A ProofError means that the checkpoint is not shown to contain the one
// cosigned before, or is an impossible tree (422).
type ProofError struct{ Reason string }

func (e *ProofError) Error() string { return e.Reason }

// A ForkError means that the log signed two trees that cannot both be of one
// history (422). Both notes are kept, and published: see [Fork].
type ForkError struct {
	Origin string
	Old    uint64 // cosigned before
	Size   uint64 // refused now; Old if both are of one size
}

func (e *ForkError) Error() string {
	if e.Old < e.Size {
		return fmt.Sprintf("log %.100q has signed a tree of size %d that does not begin with the tree of size %d it signed before", e.Origin, e.Size, e.Old)
	}
	return fmt.Sprintf("log %.100q has signed two different trees of size %d", e.Origin, e.Size)
}

// A ClockError means that this witness will not sign because its own clock
// stands before a time it must be after (503). It says nothing about the log.
// There is nothing to repair but the clock: no earlier state is ever signed.
type ClockError struct {
	Now, After time.Time
	What       string // what happened at After
}

func (e *ClockError) Error() string {
	return fmt.Sprintf("the clock of this witness says %s, which is before %s at %s: its operator has to set the clock right",
		e.Now.UTC().Format(time.RFC3339), e.What, e.After.UTC().Format(time.RFC3339))
}

// A BusyError means that a log or a client asks more often than this witness
// allows (429). It says nothing about the log.
type BusyError struct{ Reason string }

func (e *BusyError) Error() string { return e.Reason + ": try again in a second" }

// A HeldError means that this witness does not sign for a log yet, since its
// peers have not shown that its own memory is the newest (503). It says nothing
// about the log.
type HeldError struct{ Origin, Reason string }

func (e *HeldError) Error() string {
	return fmt.Sprintf("this witness does not sign for log %.100q yet: %s", e.Origin, e.Reason)
}
