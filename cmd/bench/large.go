package main

// Rows of a log of 10^6 entries: submit-bulk-at-1m, rss-at-1m, disk-per-entry.
// With -quick it has 10^5.

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/internal/world"
)

func million(quick bool) int {
	if quick {
		return 100_000
	}
	return 1_000_000
}

// submitAtMillion fills a log, and measures in turn on it and on empty ones.
func submitAtMillion(ctx context.Context, quick bool) (Row, error) {
	n, part, rounds := million(quick), 100_000, 5
	if quick {
		part, rounds = 20_000, 3
	}
	var full, empty, fullCPU, emptyCPU []float64
	err := inTempDir(func(dir string) error {
		w, err := world.New(ctx, mkdir(dir, "full"), world.Options{Witnesses: 3, Quorum: 2})
		if err != nil {
			return err
		}
		defer w.Close()
		c, err := w.Log.Submitter(benchRegistry)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := stream(ctx, c, submit.Sequenced, 0, n); err != nil {
			return err
		}
		for i := range rounds {
			a, err := timed(part, func() error { return stream(ctx, c, submit.Sequenced, n+i*part, part) })
			if err != nil {
				return err
			}
			full, fullCPU = append(full, a.rate), append(fullCPU, a.cpu)
			fresh, err := world.New(ctx, mkdir(dir, fmt.Sprint("empty", i)), world.Options{Witnesses: 3, Quorum: 2})
			if err != nil {
				return err
			}
			e, err := fresh.Log.Submitter(benchRegistry)
			if err == nil {
				a, err = timed(part, func() error { return stream(ctx, e, submit.Sequenced, 0, part) })
				e.Close()
			}
			fresh.Close()
			if err != nil {
				return err
			}
			empty, emptyCPU = append(empty, a.rate), append(emptyCPU, a.cpu)
		}
		return nil
	})
	if err != nil {
		return Row{}, err
	}
	r := Row{Value: median(full), Unit: "entries/s", Aim: "ratio >= 0.9",
		Note: fmt.Sprintf("%d entries before; CPU an entry %.1f us, in an empty log %.1f us", n, median(fullCPU), median(emptyCPU))}
	r = r.against("empty log", median(empty))
	r.Met = *r.Ratio >= 0.9
	return r, nil
}

// server is a portbook-log process.
type server struct {
	cmd    *exec.Cmd
	dir    string
	target string
	token  string
}

// startServer builds portbook-log, makes a log without witnesses in dir and
// serves it.
func startServer(ctx context.Context, dir string) (*server, error) {
	bin := filepath.Join(dir, "portbook-log")
	s := &server{dir: filepath.Join(dir, "log")}
	policy := filepath.Join(dir, "policy")
	if err := os.WriteFile(policy, []byte("quorum none\n"), 0o600); err != nil {
		return nil, err
	}
	run := func(name string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	if _, err := run("go", "build", "-o", bin, "github.com/portbook/portbook/cmd/portbook-log"); err != nil {
		return nil, err
	}
	if _, err := run(bin, "init", "--dir", s.dir, "--anchor", filepath.Join(dir, "anchor"), "--origin", "log.bench.example/rss"); err != nil {
		return nil, err
	}
	out, err := run(bin, "token", "create", "--dir", s.dir, "--registry", benchRegistry, "--claim", "index", "--kinds", "upload")
	if err != nil {
		return nil, err
	}
	for _, word := range strings.Fields(out) {
		if strings.HasPrefix(word, "pbt_") {
			s.token = word
		}
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := lis.Addr().String()
	lis.Close()
	s.target = "http://" + address
	s.cmd = exec.Command(bin, "serve", "--dir", s.dir, "--policy", policy, "--http", "127.0.0.1:0", "--grpc", address, "--anchor-beside")
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	c, err := submit.Dial(s.target, s.token)
	if err != nil {
		return nil, s.stop()
	}
	defer c.Close()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := c.Sequence(ctx, uploadEntry(0))
		if err == nil {
			return s, nil
		}
		if time.Now().After(deadline) {
			s.stop()
			return nil, err
		}
	}
}

func (s *server) stop() error {
	s.cmd.Process.Signal(os.Interrupt)
	return s.cmd.Wait()
}

// rss is a process's resident memory in MiB, and its greatest.
func rss(pid int) (now, peak float64) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "VmRSS:":
			now = kib / 1024
		case "VmHWM:":
			peak = kib / 1024
		}
	}
	return now, peak
}

func rssAtMillion(ctx context.Context, quick bool) (Row, error) {
	n := million(quick)
	var under, peak float64
	err := inTempDir(func(dir string) error {
		s, err := startServer(ctx, dir)
		if err != nil {
			return err
		}
		defer s.stop()
		c, err := submit.Dial(s.target, s.token)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := stream(ctx, c, submit.Sequenced, 0, n); err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() { done <- stream(ctx, c, submit.Cosigned, n, n/5) }() // with proofs
		for {
			select {
			case err := <-done:
				_, peak = rss(s.cmd.Process.Pid)
				return err
			case <-time.After(20 * time.Millisecond):
				now, _ := rss(s.cmd.Process.Pid)
				under = max(under, now)
			}
		}
	})
	r := Row{Value: under, Unit: "MiB", Aim: "<= 300", Met: under <= 300 && under > 0,
		Note: fmt.Sprintf("most under load at %d entries and more; peak of the whole run %.0f MiB", n, peak)}
	return r, err
}

// diskPerEntry counts the blocks that files have, without what garbage
// collection removes: partial tiles and bundles where the full one is.
func diskPerEntry(ctx context.Context, quick bool) (Row, error) {
	n := million(quick)
	var bytes, left int64
	var entryBytes int
	err := inTempDir(func(dir string) error {
		w, err := world.New(ctx, dir, world.Options{Witnesses: 3, Quorum: 2})
		if err != nil {
			return err
		}
		c, err := w.Log.Submitter(benchRegistry)
		if err != nil {
			w.Close()
			return err
		}
		err = stream(ctx, c, submit.Sequenced, 0, n)
		c.Close()
		if err := w.Close(); err != nil {
			return err
		}
		if err != nil {
			return err
		}
		for i := 0; i < n; i += 1000 {
			leaf, err := uploadEntry(i).Marshal()
			if err != nil {
				return err
			}
			entryBytes += len(leaf)
		}
		log := ""
		err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == "index" {
				log = filepath.Dir(path)
			}
			return err
		})
		if err != nil {
			return err
		}
		return filepath.WalkDir(log, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st syscall.Stat_t
			if err := syscall.Lstat(path, &st); err != nil {
				return err
			}
			if at := strings.Index(path, "/tile/"); at >= 0 && strings.Contains(path, ".p/") {
				t, err := c2sp.ParseTilePath(path[at+1:])
				if err == nil && t.Width < 256 {
					full := strings.TrimSuffix(filepath.Dir(path), ".p")
					if _, err := os.Stat(full); err == nil {
						left += st.Blocks * 512
						return nil
					}
				}
			}
			bytes += st.Blocks * 512
			return nil
		})
	})
	if err != nil {
		return Row{}, err
	}
	entry := float64(entryBytes) / float64((n+999)/1000)
	r := Row{Value: float64(bytes) / float64(n), Unit: "B", Aim: "ratio <= 1.25",
		Note: fmt.Sprintf("%d entries, blocks on disk of the whole log directory; %.0f B an entry of partial tiles not counted, which garbage collection removes", n, float64(left)/float64(n))}
	r = r.against("entry bytes", entry)
	r.Met = *r.Ratio <= 1.25
	return r, nil
}
