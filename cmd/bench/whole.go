package main

// Rows of what goes through a whole log of 10^6 entries: audit-at-1m,
// rebuild-index-at-1m, start-at-1m. With -quick it has 10^5. Nothing of the log
// is in the page cache when they begin.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/portbook/portbook/client/submit"
	"golang.org/x/sys/unix"
)

// overWholeLog fills a log of n entries, stops its server, and calls do.
func overWholeLog(ctx context.Context, n int, do func(dir string, s *server) error) error {
	return inTempDir(func(dir string) error {
		s, err := startServer(ctx, dir)
		if err != nil {
			return err
		}
		c, err := submit.Dial(s.target, s.token)
		if err == nil {
			err = stream(ctx, c, submit.Sequenced, 0, n)
			c.Close()
		}
		if err = errors.Join(err, s.stop()); err != nil {
			return err
		}
		return do(dir, s)
	})
}

// forget drops the files below dir from the page cache.
func forget(dir string) error {
	unix.Sync()
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// spent is what a program took.
type spent struct {
	wall, cpu time.Duration
	mib       float64 // most resident memory
}

func (s spent) row(n int) Row {
	us := float64(s.wall.Microseconds()) / float64(n)
	return Row{Value: us, Unit: "us/entry", Aim: "<= 20", Met: us <= 20 && s.wall > 0,
		Note: fmt.Sprintf("%d entries in %.1f s; %.1f us of processor an entry; at most %.0f MiB resident", n, s.wall.Seconds(),
			float64(s.cpu.Microseconds())/float64(n), s.mib)}
}

// timedProgram runs portbook-log on the log in dir, of which nothing is cached.
func timedProgram(ctx context.Context, dir string, args ...string) (spent, error) {
	if err := forget(dir); err != nil {
		return spent{}, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "portbook-log"), args...)
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return spent{}, fmt.Errorf("portbook-log %s: %w: %s", args[0], err, out)
	}
	used := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return spent{time.Since(start), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), float64(used.Maxrss) / 1024}, nil
}

func wholeRow(command ...string) func(context.Context, bool) (Row, error) {
	return func(ctx context.Context, quick bool) (row Row, err error) {
		n := million(quick)
		err = overWholeLog(ctx, n, func(dir string, s *server) error {
			took, err := timedProgram(ctx, dir, append(command, "--quiet", "--dir", s.dir)...)
			row = took.row(n)
			return err
		})
		return row, err
	}
}

// startAtMillion measures from the start of serve until /readyz: as the last
// server left the log, and without its index.
func startAtMillion(ctx context.Context, quick bool) (row Row, err error) {
	n := million(quick)
	err = overWholeLog(ctx, n, func(dir string, s *server) error {
		as, err := timedStart(ctx, dir, s)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Join(s.dir, "index")); err != nil {
			return err
		}
		without, err := timedStart(ctx, dir, s)
		row = without.row(n)
		row.Note = fmt.Sprintf("without its index: %s. With it: %.2f s, %.0f MiB", row.Note, as.wall.Seconds(), as.mib)
		return err
	})
	return row, err
}

func timedStart(ctx context.Context, dir string, s *server) (spent, error) {
	if err := forget(dir); err != nil {
		return spent{}, err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return spent{}, err
	}
	address := lis.Addr().String()
	lis.Close()
	cmd := exec.Command(filepath.Join(dir, "portbook-log"), "serve", "--dir", s.dir, "--policy", filepath.Join(dir, "policy"),
		"--http", address, "--grpc", "127.0.0.1:0", "--anchor-beside")
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return spent{}, err
	}
	again := &server{cmd: cmd}
	for ctx.Err() == nil && time.Since(start) < 10*time.Minute {
		res, err := http.Get("http://" + address + "/readyz")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				took := spent{wall: time.Since(start)}
				_, took.mib = rss(again.cmd.Process.Pid)
				if err := again.stop(); err != nil {
					return took, err
				}
				took.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
				return took, nil
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	return spent{}, errors.Join(errors.New("the server does not get ready"), again.stop())
}
