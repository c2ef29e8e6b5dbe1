package logserver

import "errors"

// What can be wrong with the log itself, as opposed to a submission. None of
// these is a verdict on an entry.
var (
	// ErrReadOnly: the server takes no submissions now; Status says why.
	ErrReadOnly = errors.New("the log takes no submissions")
	// ErrStorage: a write failed; the same submission may be tried again.
	ErrStorage = errors.New("log storage failed")
	// ErrNotPublished: the entry has an index, but the quorum has not cosigned a
	// checkpoint that covers it yet. The same submission later gets the same index.
	ErrNotPublished = errors.New("not yet cosigned by the quorum")
	// ErrOverloaded: more is asked, by one or by all, than the server takes now.
	ErrOverloaded = errors.New("too much at once, try again later")
	// ErrBehind: the log's storage holds less, or other, than what was signed
	// before: it was restored from a backup, or damaged.
	ErrBehind = errors.New("the log is behind what it has signed")

	// errLatched: a guard failed; Status says which.
	errLatched = errors.New("writing has stopped")
	errStopped = errors.New("publishing has stopped")
	errClosing = errors.New("the server is shutting down")
)
