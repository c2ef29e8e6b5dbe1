//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package client

// The lock between processes that share a state file: flock, which the kernel
// drops when its holder dies.

import (
	"os"

	"golang.org/x/sys/unix"
)

// tryLock takes the exclusive lock on f, and reports false if another has it.
func tryLock(f *os.File) (bool, error) {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch err {
		case nil:
			return true, nil
		case unix.EWOULDBLOCK:
			return false, nil
		case unix.EINTR:
			continue
		}
		return false, err
	}
}
