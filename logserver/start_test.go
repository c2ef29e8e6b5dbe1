package logserver

// FAULTS b2 while the server starts: what its storage cannot do at this moment is
// tried again, with reads going on where they can; a guard alone latches.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "github.com/portbook/portbook/proto/portbook/v1"
)

// TestStorageOutAtStart: a file that cannot be opened or read (there is a
// directory in its place) when the server starts, and can be a while later.
func TestStorageOutAtStart(t *testing.T) {
	for _, name := range []string{
		"log/.state/version", "log/.state/treeState", "log/.state/treeState.lock", "streams", "checkpoint", "logged-by",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, 1)
			s := r.serve()
			ack := r.must(s.log, nth(0))
			stream, _, err := s.named(s.bearer, "backfill")
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&pb.SubmitStreamRequest{Entries: several(1, 1)}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			if err := stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			s.stop()
			path, aside := filepath.Join(r.dir, filepath.FromSlash(name)), filepath.Join(t.TempDir(), "aside")
			if err := errors.Join(os.Rename(path, aside), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
			asked := r.witnesses[0].asked.Load()
			l := r.open()
			waitFor(t, "the reason", func() bool { return errors.Is(l.Status().Reason, ErrStorage) })
			if s := l.Status(); s.Writable || s.Latched || strings.Contains(l.Ready().Error(), r.dir) {
				t.Errorf("%+v", s)
			}
			if _, err := r.submit(l, nth(9)); !errors.Is(err, ErrReadOnly) {
				t.Errorf("a submission meanwhile: %v", err)
			}
			if res := get(r.handler(l), fmt.Sprint("/tile/entries/000.p/", l.Published().Size)); res.Code != 200 && name != "checkpoint" { // what is published is not known then
				t.Errorf("reads do not go on: %d of %d: %s", res.Code, l.Published().Size, res.Body)
			}
			if r.witnesses[0].asked.Load() != asked {
				t.Error("witnesses were asked by a log that is not sure of itself")
			}
			if err := errors.Join(os.Remove(path), os.Rename(aside, path)); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the log to take submissions", func() bool { return l.Status().Writable })
			if again := r.must(l, nth(0)); again.Index != ack.Index {
				t.Errorf("index %d became %d", ack.Index, again.Index)
			}
			if more := r.must(l, nth(2)); more.Index != 2 {
				t.Errorf("index %d", more.Index)
			}
			if p, err := l.streams.open(t.Context(), s.tokenID(), "backfill"); err != nil || p.accepted != 1 {
				t.Errorf("the stream's progress is lost: %+v, %v", p, err)
			}
			r.replayed(l)
		})
	}
}

// tokenID is of the credential of s.bearer.
func (s *served) tokenID() string { return strings.Split(s.bearer, "_")[1] }

// TestStreamsNotReadYet: nobody is told that a stream begins before that is known.
func TestStreamsNotReadYet(t *testing.T) {
	j := newStreamFile(filepath.Join(t.TempDir(), "streams"), func(context.Context) (uint64, error) { return 0, nil })
	s := newStreams(j)
	if _, err := s.open(t.Context(), "x", "y"); !errors.Is(err, ErrStorage) {
		t.Errorf("opened: %v", err)
	}
	if err := j.load(); err != nil {
		t.Fatal(err)
	}
	if p, err := s.open(t.Context(), "x", "y"); err != nil || p.accepted != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestMayPass(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EMFILE, syscall.ENFILE, syscall.EDQUOT, syscall.ESTALE, syscall.EROFS, syscall.ETIMEDOUT} {
		if err := errors.Join(errors.New("x"), &os.PathError{Op: "open", Err: errno}); !mayPass(err) {
			t.Errorf("%v latches", errno)
		}
	}
	for _, err := range []error{ErrBehind, errUnreadable, errNoAnchor, errBadAnchor, errAnchorMoved, &guardError{ErrStorage}, errors.Join(ErrStorage, ErrBehind), syscall.ENOENT, errors.New("anything else")} {
		if mayPass(err) {
			t.Errorf("%v is tried again", err)
		}
	}
}

// TestDiskFailsAtStart is TestStorageOutAtStart with the errors that disks and
// kernels give, put into a real server's calls.
func TestDiskFailsAtStart(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: a traced server is slow, more so under the race detector")
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed: faults cannot be injected")
	}
	for _, row := range []struct{ name, path, inject string }{
		{"the state cannot be read", "log/.state/treeState", "read:error=EIO:when=1..2"},
		{"no descriptors for the lock", "log/.state/treeState.lock", "openat:error=EMFILE:when=1..2"},
		{"no space for the lock", "log/.state/treeState.lock", "openat:error=ENOSPC:when=1..2"},
		{"the engine's version cannot be opened", "log/.state/version", "openat:error=EIO:when=1..2"},
		{"a stale handle of the streams' journal", "streams", "openat:error=ESTALE:when=1..2"},
		{"the mount is not there yet", "log/.state/treeState", "openat:error=ETIMEDOUT:when=1..2"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, 1)
			l := r.ready()
			r.must(l, nth(0))
			l.Close()
			if err := os.WriteFile(filepath.Join(r.dir, streamsFile), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			trace, errs := filepath.Join(t.TempDir(), "trace"), filepath.Join(t.TempDir(), "stderr")
			said, err := os.Create(errs)
			if err != nil {
				t.Fatal(err)
			}
			defer said.Close()
			cmd := exec.Command(strace, "-f", "-qq", "-o", trace, "-P", filepath.Join(r.dir, filepath.FromSlash(row.path)), "-e", "inject="+row.inject, os.Args[0], r.dir, r.signer.SKey(), r.policy)
			cmd.Env = append(os.Environ(), childEnv+"=1")
			cmd.Stderr = said
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			stop := sync.OnceFunc(func() {
				endLockHolder(t, filepath.Join(r.dir, lockFileName))
				cmd.Wait()
			})
			defer stop()
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatalf("the server did not start: %s", readFile(t, errs))
			}
			_, web, _ := strings.Cut(strings.TrimSpace(line), " ")
			status := func(path string) int {
				res, err := http.Get("http://" + web + path)
				if err != nil {
					return 0
				}
				res.Body.Close()
				return res.StatusCode
			}
			waitFor(t, "an answer", func() bool { return status("/healthz") == 200 })
			if code := status("/checkpoint"); code != 200 {
				t.Errorf("reads do not go on: %d", code)
			}
			for deadline := time.Now().Add(60 * time.Second); status("/readyz") != 200; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("it does not become ready:\n%s", readFile(t, errs))
				}
			}
			if faults := strings.Count(readFile(t, trace), "(INJECTED)"); faults < 2 {
				t.Errorf("%d faults were injected: the row tests nothing", faults)
			}
			if text := readFile(t, errs); strings.Contains(text, "an operator must look") || strings.Count(text, "tried again each second") == 0 {
				t.Errorf("it latched, or was not made sure of again:\n%s", text)
			}
			stop()
			l = r.ready()
			if ack := r.must(l, nth(1)); ack.Index != 1 {
				t.Errorf("index %d", ack.Index)
			}
		})
	}
}
