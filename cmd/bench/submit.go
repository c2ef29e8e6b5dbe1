package main

// Rows of the log: submit-bulk and submit-latency-N.

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/world"
	"github.com/portbook/portbook/logserver"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

const benchRegistry = "index.bench.example"

// uploadEntry is the n-th upload of a typical size: a trusted publisher's wheel.
func uploadEntry(n int) *entry.Entry {
	sum := sha256.Sum256(fmt.Appendf(nil, "file %d", n))
	meta := sha256.Sum256(fmt.Appendf(nil, "metadata %d", n))
	return &entry.Entry{
		Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: benchRegistry, Ecosystem: entry.PyPI,
		Project: fmt.Sprintf("project-%d", n%5000), Version: fmt.Sprintf("1.%d.0", n/5000),
		File: fmt.Sprintf("project_%d-1.%d.0-py3-none-any.whl", n%5000, n/5000), Size: entry.Uint(uint64(10_000 + n)),
		SHA256: hex.EncodeToString(sum[:]), MetadataSHA256: hex.EncodeToString(meta[:]), Time: "2026-11-21T05:00:00Z",
		Auth:      "trusted-publisher",
		Publisher: &entry.Publisher{Kind: "github", Repository: fmt.Sprintf("owner/project-%d", n%5000), Workflow: "release.yml"},
	}
}

func leavesOf(n int) ([][]byte, error) {
	out := make([][]byte, n)
	for i := range out {
		leaf, err := uploadEntry(i).Marshal()
		if err != nil {
			return nil, err
		}
		out[i] = leaf
	}
	return out, nil
}

// rawTessera adds leaves to a bare Tessera POSIX log with the log server's
// batching and returns entries/s until all are integrated.
func rawTessera(ctx context.Context, dir string, leaves [][]byte) (float64, error) {
	skey, _, err := note.GenerateKey(rand.Reader, "bench.invalid")
	if err != nil {
		return 0, err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		return 0, err
	}
	appender, _, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(signer).WithCheckpointInterval(5*time.Second).
		WithBatching(logserver.EngineBatch, logserver.EngineBatchAge))
	if err != nil {
		return 0, err
	}
	start := time.Now()
	futures := make([]tessera.IndexFuture, len(leaves))
	for i, l := range leaves {
		futures[i] = appender.Add(ctx, tessera.NewEntry(l))
	}
	for _, f := range futures {
		if _, err := f(); err != nil {
			return 0, err
		}
	}
	return float64(len(leaves)) / time.Since(start).Seconds(), nil
}

// portbookBulk streams entries through a whole log with three witnesses and
// returns entries/s until the last is acknowledged with its proof.
func portbookBulk(ctx context.Context, dir string, entries []*entry.Entry) (rate float64, err error) {
	w, err := world.New(ctx, dir, world.Options{Witnesses: 3, Quorum: 2})
	if err != nil {
		return 0, err
	}
	defer w.Close()
	c, err := w.Log.Submitter(benchRegistry)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	start := time.Now()
	next := 0
	acked := 0
	err = c.Stream(ctx, submit.StreamOptions{}, func() (*entry.Entry, error) {
		if next == len(entries) {
			return nil, io.EOF
		}
		next++
		return entries[next-1], nil
	}, func(_ uint64, r submit.Result) error {
		if r.Err != nil {
			return r.Err
		}
		acked++
		return nil
	})
	if err != nil {
		return 0, err
	}
	if acked != len(entries) {
		return 0, fmt.Errorf("%d of %d entries acknowledged", acked, len(entries))
	}
	return float64(len(entries)) / time.Since(start).Seconds(), nil
}

func submitBulk(ctx context.Context, quick bool) (Row, error) {
	n, rounds := 100_000, 3
	if quick {
		n, rounds = 20_000, 2
	}
	leaves, err := leavesOf(n)
	if err != nil {
		return Row{}, err
	}
	entries := make([]*entry.Entry, n)
	for i := range entries {
		entries[i] = uploadEntry(i)
	}
	var raw, ours []float64
	err = inTempDir(func(dir string) error {
		for i := range rounds {
			a, err := rawTessera(ctx, filepath.Join(dir, fmt.Sprint("raw", i)), leaves)
			if err != nil {
				return fmt.Errorf("raw Tessera: %w", err)
			}
			b, err := portbookBulk(ctx, mkdir(dir, fmt.Sprint("ours", i)), entries)
			if err != nil {
				return fmt.Errorf("Portbook: %w", err)
			}
			raw, ours = append(raw, a), append(ours, b)
		}
		return nil
	})
	r := Row{Value: median(ours), Unit: "entries/s", Aim: "ratio >= 0.5",
		Note: fmt.Sprintf("%d entries of %d B, %d rounds, each acknowledged with its proof; 3 witnesses", n, len(leaves[0]), rounds)}
	if err != nil {
		return r, err
	}
	r = r.against("raw Tessera POSIX", median(raw))
	r.Met = *r.Ratio >= 0.5
	return r, nil
}

func submitLatency(ctx context.Context, quick bool, uploaders int) (Row, error) {
	total := max(1000, 40*uploaders)
	if quick {
		total = max(100, 8*uploaders)
	}
	var took []time.Duration
	err := inTempDir(func(dir string) error {
		w, err := world.New(ctx, dir, world.Options{Witnesses: 3, Quorum: 2})
		if err != nil {
			return err
		}
		defer w.Close()
		c, err := w.Log.Submitter(benchRegistry)
		if err != nil {
			return err
		}
		defer c.Close()
		var next atomic.Int64
		var mu sync.Mutex
		var failed error
		var wg sync.WaitGroup
		for range uploaders {
			wg.Go(func() {
				for {
					n := int(next.Add(1)) - 1
					if n >= total {
						return
					}
					start := time.Now()
					_, err := c.Submit(ctx, uploadEntry(n))
					d := time.Since(start)
					mu.Lock()
					if err != nil {
						failed = err
					}
					took = append(took, d)
					mu.Unlock()
					if err != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		return failed
	})
	if err != nil {
		return Row{}, err
	}
	p50, p99 := percentile(took, 0.5), percentile(took, 0.99)
	r := Row{Value: float64(p99.Microseconds()) / 1000, Unit: "ms (p99)", Note: fmt.Sprintf("p50 %.1f ms, %d submissions", float64(p50.Microseconds())/1000, len(took))}
	r.Aim, r.Met = "p99 <= 500 ms", p99 <= 500*time.Millisecond
	return r, nil
}
