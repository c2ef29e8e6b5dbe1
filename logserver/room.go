package logserver

// The log stops by itself while its disk has room for what it has promised: what
// is queued is still published, checkpoints are still cosigned anew, and an
// operator still has space to work with. It goes on by itself.

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
)

// roomEvery is how soon a full disk, and one that has room again, is noticed.
const roomEvery = 250 * time.Millisecond

// room watches the file systems of the log and of its anchor.
type room struct {
	dirs  []string
	least float64 // share that must be free, of bytes and of inodes; 0: none
	free  atomic.Pointer[float64]
}

// left is the smallest share that is free of any of the file systems, as it was
// seen last: what a user without privileges can use. 1 where it cannot be told.
func (r *room) left() float64 {
	if free := r.free.Load(); free != nil {
		return *free
	}
	return 1
}

// look measures.
func (r *room) look() {
	least := 1.0
	for _, dir := range r.dirs {
		var fs syscall.Statfs_t
		if syscall.Statfs(dir, &fs) != nil {
			continue // what is wrong with it others say
		}
		if fs.Blocks > 0 {
			least = min(least, float64(fs.Bavail)/float64(fs.Blocks))
		}
		if fs.Files > 0 { // some have inodes without end, and say 0
			least = min(least, float64(fs.Ffree)/float64(fs.Files))
		}
	}
	r.free.Store(&least)
}

// watch measures until ctx ends; said is told when room runs out or is back.
func (r *room) watch(ctx context.Context, said func(err error)) {
	was := r.check()
	for sleep(ctx, roomEvery) {
		r.look()
		if err := r.check(); (err == nil) != (was == nil) {
			said(err)
			was = err
		}
	}
}

// check is nil while there is room.
func (r *room) check() error {
	if left := r.left(); left < r.least {
		return &fullError{left, r.least}
	}
	return nil
}

// fullError refuses what there may be no room for. It is an ErrStorage that may
// be told to everybody.
type fullError struct{ left, least float64 }

func (e *fullError) Error() string {
	return fmt.Sprintf("%v: the disk is nearly full: %.1f %% of its space or inodes are free, %.1f %% are kept; nothing more is taken until there is room", ErrStorage, 100*e.left, 100*e.least)
}

// Is makes it an ErrStorage.
func (e *fullError) Is(target error) bool { return target == ErrStorage }
