package logserver

// The log as its readers have it: fetched whole with package client, and by
// Tessera's own fsck; graceful shutdown; leaks.

import (
	"context"
	"errors"
	"flag"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var long = flag.Bool("long", false, "run what takes minutes")

var httpClient = &http.Client{Timeout: 2 * time.Second}

// refetch reads the whole log at its published size and builds the root anew
// from the leaves alone.
func refetch(t *testing.T, url string, key *c2sp.Key) {
	t.Helper()
	ctx := t.Context()
	r, err := client.NewReader(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := r.Checkpoint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	n, err := c2sp.ParseNote(raw)
	if err != nil || key.VerifyLog(n.Text, n.Sigs[0]) != nil {
		t.Fatalf("checkpoint: %v", err)
	}
	cp, err := c2sp.ParseCheckpoint(n.Text)
	if err != nil {
		t.Fatal(err)
	}
	var hashes []tlog.Hash // stored hashes
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, n := range at {
			out[i] = hashes[n]
		}
		return out, nil
	})
	for at := uint64(0); at < cp.Size; at += 256 {
		width := int(min(256, cp.Size-at))
		leaves, err := r.Bundle(ctx, at/256, width)
		if err != nil {
			t.Fatal(err)
		}
		tile, err := r.Tile(ctx, 0, at/256, width)
		if err != nil {
			t.Fatal(err)
		}
		for i, leaf := range leaves {
			h := entry.LeafHash(leaf)
			if string(tile[i*32:i*32+32]) != string(h[:]) {
				t.Fatalf("entry %d does not hash to its place in the tile", at+uint64(i))
			}
			more, err := tlog.StoredHashesForRecordHash(int64(at)+int64(i), tlog.Hash(h), reader)
			if err != nil {
				t.Fatal(err)
			}
			hashes = append(hashes, more...)
		}
	}
	root, err := tlog.TreeHash(int64(cp.Size), reader)
	if err != nil || root != tlog.Hash(cp.Root) {
		t.Fatalf("size %d: the leaves give root %v, the checkpoint says %x (%v)", cp.Size, root, cp.Root, err)
	}
}

// published makes fsck read the checkpoint that we published.
type published struct {
	fsck.Fetcher
	dir  directory
	note []byte
}

func (p published) ReadCheckpoint(context.Context) ([]byte, error) { return p.note, nil }
func (p published) ReadTile(ctx context.Context, l, i uint64, w uint8) ([]byte, error) {
	return p.dir.ReadTile(ctx, l, i, w)
}
func (p published) ReadEntryBundle(ctx context.Context, i uint64, w uint8) ([]byte, error) {
	return p.dir.ReadEntryBundle(ctx, i, w)
}

func runFsck(t *testing.T, r *rig, l *Log) {
	t.Helper()
	v, err := note.NewVerifier(r.signer.Key().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	f := fsck.New(v.Name(), v, published{dir: l.src.(directory), note: l.Published().Note}, func(b []byte) ([][]byte, error) {
		var out [][]byte
		for at := 0; at < len(b); {
			n := int(b[at])<<8 + int(b[at+1])
			h := entry.LeafHash(b[at+2 : at+2+n])
			out = append(out, h[:])
			at += 2 + n
		}
		return out, nil
	}, fsck.Opts{N: 2})
	done := make(chan error, 1)
	go func() { done <- f.Check(ctx) }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("fsck: %v", err)
		}
	case <-time.After(35 * time.Second):
		t.Error("fsck did not end")
	}
}

// TestEveryBoundary reads the log again from outside at the sizes where tiles
// fill up.
func TestEveryBoundary(t *testing.T) {
	sizes := []int{0, 1, 2, 255, 256, 257, 511, 512, 513, 1024}
	if *long {
		sizes = append(sizes, 65535, 65536, 65537, 131072)
	}
	s := newRig(t, 1, 1).serve(func(c *Config) { c.Interval = time.Millisecond })
	at := 0
	for _, size := range sizes {
		for size > at {
			n := min(size-at, 4096)
			acks := s.bulk(s.log, at, n)
			s.check(acks[n-1])
			at += n
		}
		waitFor(t, "the size", func() bool { return s.log.Published().Note != nil && s.log.Published().Size == uint64(size) })
		refetch(t, s.url, s.signer.Key())
		if size > 0 {
			runFsck(t, s.rig, s.log)
		}
	}
}

// TestLevelTwoTiles makes a tree of more than 65536 entries beneath a log that
// has signed less, and lets the guard look at all of it.
func TestLevelTwoTiles(t *testing.T) {
	if !*long {
		t.Skip("needs -long")
	}
	r := filled(t, 300)
	r.addBeneath(300, 70_000)
	l := r.ready()
	waitFor(t, "the size", func() bool { return l.Published().Size == 70_300 })
	runFsck(t, r, l)
}

// TestGracefulShutdown: under load, nothing acknowledged is lost, and it ends
// soon, also without a quorum.
func TestGracefulShutdown(t *testing.T) {
	for _, quorum := range []bool{true, false} {
		s := newRig(t, 3, 2).serve(func(c *Config) { c.RoundLimit = time.Second; c.MaxWait = 30 * time.Second })
		var mu sync.Mutex
		acks := map[int]*Ack{}
		var wg sync.WaitGroup
		stopping := make(chan struct{})
		for w := range 32 {
			wg.Go(func() {
				for n := w * 1000; ; n++ {
					ack, err := s.submit(s.log, nth(n))
					if err != nil {
						if !errors.Is(err, ErrReadOnly) && !errors.Is(err, ErrNotPublished) {
							t.Errorf("%v", err)
						}
						return
					}
					mu.Lock()
					acks[n] = ack
					mu.Unlock()
					select {
					case <-stopping:
						return
					default:
					}
				}
			})
		}
		waitFor(t, "some load", func() bool { mu.Lock(); defer mu.Unlock(); return len(acks) > 100 })
		if !quorum {
			s.witnesses[0].down()
			s.witnesses[1].down()
			time.Sleep(50 * time.Millisecond)
		}
		start := time.Now()
		close(stopping)
		if err := s.stop(); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("took %v", d)
		}
		if quorum {
			wg.Wait()
		}
		s.witnesses[0].pretend(nil)
		s.witnesses[1].pretend(nil)
		l := s.ready()
		mu.Lock()
		for n, ack := range acks {
			s.check(ack)
			if again := s.must(l, nth(n)); again.Index != ack.Index {
				t.Errorf("entry %d moved from %d to %d", n, ack.Index, again.Index)
			}
		}
		mu.Unlock()
		l.Close()
	}
}

// TestNoLeaks: a log that was opened, used and closed leaves nothing running.
func TestNoLeaks(t *testing.T) {
	r := newRig(t, 3, 2)
	r.ready().Close()
	httpClient.CloseIdleConnections()
	before := runtime.NumGoroutine()
	for round := range 5 {
		l := r.ready()
		r.bulk(l, round*50, 50)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before+3 {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, before %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestStorageErrorsNameNoPath: what storage says goes to the operator's log, not
// to a caller.
func TestStorageErrorsNameNoPath(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	s.must(s.log, nth(0))
	if err := os.Rename(string(s.log.src.(directory)), string(s.log.src.(directory))+"-gone"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/proof?index=0", "/tile/entries/000.p/1"} {
		code, _, out := s.rest("GET", path, "", nil) // rest looks for paths
		if code != 503 && code != 404 || strings.Contains(out["detail"].(string), "no such file") {
			t.Errorf("%s: %d %v", path, code, out)
		}
	}
}
