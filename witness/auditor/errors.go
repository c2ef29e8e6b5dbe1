package auditor

// One error for each outcome that c2sp.org/tlog-mirror knows beside those of
// add-checkpoint (package witness). http.go turns them into status codes.

import (
	"fmt"

	"github.com/portbook/portbook/c2sp"
)

// A MalformedError means that an add-entries request ended, or stopped being in
// the grammar, before its first package of entries was whole (400).
type MalformedError struct{ Reason string }

func (e *MalformedError) Error() string { return "add-entries request: " + e.Reason }

// A NoPendingError means that the log has sent no checkpoint yet (422).
type NoPendingError struct{ Origin string }

func (e *NoPendingError) Error() string {
	return fmt.Sprintf("log %.100q has no pending checkpoint: add-checkpoint comes first", e.Origin)
}

// An Info says where a log stands: what a client goes on from.
type Info struct {
	Size uint64 // of a pending checkpoint that is good for upload_end
	Next uint64 // the next entry
}

// A ConflictError means that the upload does not fit to where the log stands (409).
type ConflictError struct {
	Info
	Reason string
}

func (e *ConflictError) Error() string { return e.Reason }

// An AcceptedError means that entries were taken, and that more are needed before
// the checkpoint can be cosigned (202).
type AcceptedError struct{ Info }

func (e *AcceptedError) Error() string {
	return fmt.Sprintf("entries before %d are stored; the checkpoint has %d", e.Next, e.Size)
}

// A PackageError means that a package of entries is not proven part of the
// pending checkpoint (422).
type PackageError struct {
	Start, End uint64
	Reason     string
}

func (e *PackageError) Error() string {
	return fmt.Sprintf("entries [%d, %d) are not shown to be part of the checkpoint: %s", e.Start, e.End, e.Reason)
}

// A FindingError means that the log broke a rule, and that nothing beyond that
// entry is cosigned (422).
type FindingError struct{ Finding }

func (e *FindingError) Error() string {
	return fmt.Sprintf("not cosigned: %s at entry %d of log %.100q: %s", e.Kind, e.Index, e.Origin, e.Reason)
}

// A PolicyError means that a checkpoint, signed by the log, lacks the quorum of
// witnesses that this auditor asks for (403).
type PolicyError struct {
	Checkpoint c2sp.Checkpoint
	Err        error
}

func (e *PolicyError) Error() string {
	return fmt.Sprintf("the checkpoint of %d entries of log %.100q is not audited: %v", e.Checkpoint.Size, e.Checkpoint.Origin, e.Err)
}
func (e *PolicyError) Unwrap() error { return e.Err }

// A BusyError means that this auditor has enough to do (503, or 429 for one client).
type BusyError struct {
	Reason string
	Client bool
}

func (e *BusyError) Error() string { return e.Reason + ": try again in a second" }
