package logserver

// One writer. flock on a file of our own, held for life: the storage engine's
// own fcntl lock drops when any descriptor of the file closes, and does not
// see a second driver in the same process.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// LockedError says who else writes to a log. Its text names no directory.
type LockedError struct {
	Path   string
	Holder string
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is held by %s: stop it first; two writers would fork the log", filepath.Base(e.Path), e.Holder)
}

type fileLock struct {
	path string
	f    *os.File
}

// held are the locks of this process. flock belongs to the open file, so a
// second descriptor is refused in this process too; the map says so in better
// words, and its mutex makes taking, releasing and naming the holder one step.
var held = struct {
	sync.Mutex
	paths map[string]bool // guarded by Mutex
}{paths: map[string]bool{}}

// lockFile takes the lock at path without waiting. The kernel frees it when the
// process ends, however it ends.
func lockFile(path string) (*fileLock, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(dir, filepath.Base(abs))
	}
	held.Lock()
	defer held.Unlock()
	if held.paths[abs] {
		return nil, &LockedError{abs, "this process (" + strconv.Itoa(os.Getpid()) + ")"}
	}
	f, err := os.OpenFile(abs, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := "unknown holder"
		if raw, rerr := os.ReadFile(abs); rerr == nil && len(raw) > 0 {
			holder = strings.TrimSpace(string(raw))
		}
		err = errors.Join(err, f.Close())
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &LockedError{abs, holder}
		}
		return nil, fmt.Errorf("lock %s: %w", abs, err)
	}
	host, _ := os.Hostname() // a name for people; none is no reason to fail
	who := "process " + strconv.Itoa(os.Getpid()) + " on " + host + "\n"
	// The lock holds without its name, which a full disk does not take.
	if err := errors.Join(f.Truncate(0), writeAt0(f, who)); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", abs, err), f.Close())
	}
	held.paths[abs] = true
	return &fileLock{abs, f}, nil
}

// lockFileSoon is lockFile for a lock that is held for moments alone: it waits.
func lockFileSoon(path string) (*fileLock, error) {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		lock, err := lockFile(path)
		var held *LockedError
		if err == nil || !errors.As(err, &held) || time.Now().After(deadline) {
			return lock, err
		}
	}
}

func writeAt0(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// release frees the lock. The file stays: removing it would let two servers
// lock two files of one name.
func (l *fileLock) release() {
	held.Lock()
	defer held.Unlock()
	if l.f != nil { // else released before, and perhaps held by another since
		delete(held.paths, l.path)
		l.f.Close() // frees the lock; nothing was written that could be lost
		l.f = nil
	}
}
