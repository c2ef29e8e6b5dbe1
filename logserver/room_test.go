package logserver

// FAULTS b1: the disk is full, or its inodes are gone.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDiskFull: on a small file system, which is filled by somebody else. What is
// submitted then is refused at once and clearly; reads go on, also over a
// restart; it goes on by itself. With --min-free before the disk is full, without
// when it is.
func TestDiskFull(t *testing.T) {
	for _, row := range []struct {
		name    string
		minFree float64
		options string
		inodes  bool // that run out
	}{
		{"nearly full", .05, "size=24m", false},
		{"full", 0, "size=24m", false},
		{"nearly no inodes", .05, "size=24m,nr_inodes=2000", true},
		{"no inodes", 0, "size=24m,nr_inodes=2000", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			disk := t.TempDir()
			if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, row.options); err != nil {
				t.Skipf("needs leave to mount a small file system: %v", err)
			}
			t.Cleanup(func() { syscall.Unmount(disk, 2) }) // MNT_DETACH
			r := newRig(t, 1, 1)
			if err := os.CopyFS(filepath.Join(disk, "log"), os.DirFS(r.dir)); err != nil {
				t.Fatal(err)
			}
			r.dir = filepath.Join(disk, "log")
			limit := func(c *Config) { c.MinFree = row.minFree; c.MaxWait = 20 * time.Second }
			s := r.serve(limit)
			first := r.must(s.log, nth(0))

			filler := filepath.Join(disk, "filler")
			if err := os.Mkdir(filler, 0o700); err != nil {
				t.Fatal(err)
			}
			for n := 0; ; n++ {
				name, content := filepath.Join(filler, fmt.Sprint(n)), make([]byte, 1<<16)
				if row.inodes {
					content = nil
				}
				if err := os.WriteFile(name, content, 0o600); errors.Is(err, syscall.ENOSPC) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			// The first refusals may be of the engine; then it is known.
			n := 1
			submit := func() (took time.Duration, detail string) {
				start := time.Now()
				code, _, out := s.rest("POST", "/v1/entries", s.bearer, restEntry(nth(n)))
				took = time.Since(start)
				detail, _ = out["detail"].(string)
				if code == 200 {
					n++
					detail = ""
				} else if code != 503 {
					t.Errorf("refused with %d %v", code, out)
				}
				return took, detail
			}
			waitFor(t, "the disk to be refused", func() bool { _, detail := submit(); return detail != "" })
			if row.minFree > 0 {
				waitFor(t, "the floor", func() bool { return s.log.room.check() != nil })
				if err := s.log.Ready(); err == nil || !strings.Contains(err.Error(), "nearly full") {
					t.Errorf("ready: %v", err)
				}
			}
			quickest := time.Hour
			for range 10 {
				took, detail := submit()
				if detail == "" {
					continue // a last entry that there was room for
				}
				quickest = min(quickest, took)
				if !strings.Contains(detail, "log storage failed") || strings.Contains(detail, disk) || row.minFree > 0 && !strings.Contains(detail, "nearly full") {
					t.Errorf("refused with %q", detail)
				}
			}
			if quickest > 200*time.Millisecond { // the quickest, since the machine may be busy
				t.Errorf("refused after %v, want at most 200 ms", quickest)
			}
			if s.log.Status().Latched {
				t.Fatalf("latched: %v", s.log.Status().Reason)
			}
			reads := func() {
				t.Helper()
				for _, path := range []string{"/checkpoint", "/v1/proof?index=0"} {
					if code, _, out := s.rest("GET", path, "", nil); path != "/checkpoint" && code != 200 {
						t.Errorf("%s on a full disk: %d %v", path, code, out)
					}
				}
				if s.log.Published().Note == nil {
					t.Error("nothing is published any more")
				}
			}
			reads()

			// A restart on the full disk serves reads.
			s.stop()
			l, err := Open(t.Context(), func() Config { c := r.config(); limit(&c); return c }())
			if err != nil {
				t.Fatalf("on a full disk: %v", err)
			}
			if res := get(r.handler(l), "/checkpoint"); res.Code != 200 {
				t.Errorf("the checkpoint after a restart on a full disk: %d", res.Code)
			}
			if err := os.RemoveAll(filler); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			var ack *Ack
			waitFor(t, "the log to go on", func() bool { ack, err = r.submit(l, nth(n)); return err == nil })
			if took := time.Since(start); took > 5*time.Second {
				t.Logf("it went on after %v", took)
			}
			r.check(ack)
			if again := r.must(l, nth(0)); again.Index != first.Index {
				t.Errorf("index %d became %d", first.Index, again.Index)
			}
			r.replayed(l)
			l.Close()
		})
	}
}
