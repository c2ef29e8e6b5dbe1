//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package client

// Where there is no lock between processes (a browser has one process), only
// the lock within this one holds: two processes on one state file must then be
// kept apart by whoever runs them.

import (
	"os"
	"sync"
)

var (
	lockMu sync.Mutex
	locked = map[string]*os.File{}
)

// tryLock takes the lock on f, and reports false if another file of this
// process with the same name has it. A file that was closed has none.
func tryLock(f *os.File) (bool, error) {
	lockMu.Lock()
	defer lockMu.Unlock()
	if other, ok := locked[f.Name()]; ok && other != f {
		if _, err := other.Stat(); err == nil {
			return false, nil
		}
	}
	locked[f.Name()] = f
	return true, nil
}
