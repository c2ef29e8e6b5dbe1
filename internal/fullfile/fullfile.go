// Package fullfile makes files that this process has open fail as on a full disk,
// for tests.
package fullfile

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// Break makes each write to the file at path, through whatever descriptor this
// process has open, fail with ENOSPC until mend is called. Locks stay held.
func Break(path string) (mend func() error, err error) {
	var want syscall.Stat_t
	if err := syscall.Stat(path, &want); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	full, err := syscall.Open("/dev/full", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/full: %w", err)
	}
	defer syscall.Close(full)
	saved := map[int]int{} // by the descriptor: a copy, which keeps the locks
	for _, e := range list {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var is syscall.Stat_t
		if syscall.Fstat(fd, &is) != nil || is.Dev != want.Dev || is.Ino != want.Ino {
			continue
		}
		if saved[fd], err = syscall.Dup(fd); err != nil {
			return nil, err
		}
		syscall.CloseOnExec(saved[fd])
		if err := syscall.Dup3(full, fd, syscall.O_CLOEXEC); err != nil {
			return nil, err
		}
	}
	if len(saved) == 0 {
		return nil, fmt.Errorf("%s is not open", path)
	}
	return func() error {
		for fd, was := range saved {
			if err := syscall.Dup3(was, fd, syscall.O_CLOEXEC); err != nil {
				return err
			}
			if err := syscall.Close(was); err != nil {
				return err
			}
		}
		return nil
	}, nil
}
