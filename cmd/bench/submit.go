package main

// Rows of the log: submit-bulk and submit-latency-N.

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
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

// uploadEntry is the n-th upload, some 512 bytes: a trusted publisher's wheel.
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

// measured is one run of a bulk submission.
type measured struct {
	rate float64 // entries/s
	cpu  float64 // microseconds of this process an entry, of client and server together
}

// cpuTime is the processor time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// timed measures do, which handles n entries.
func timed(n int, do func() error) (measured, error) {
	cpu, start := cpuTime(), time.Now()
	err := do()
	return measured{float64(n) / time.Since(start).Seconds(), float64((cpuTime() - cpu).Microseconds()) / float64(n)}, err
}

// stream submits the uploads [from, from+n) over one stream, and returns when
// the last is answered.
func stream(ctx context.Context, c *submit.Client, wait submit.Wait, from, n int) error {
	next, answered := from, 0
	err := c.Stream(ctx, submit.StreamOptions{Wait: wait}, func() (*entry.Entry, error) {
		if next == from+n {
			return nil, io.EOF
		}
		next++
		return uploadEntry(next - 1), nil
	}, func(_ uint64, r submit.Result) error {
		answered++
		return r.Err
	})
	if err == nil && answered != n {
		err = fmt.Errorf("%d of %d entries answered", answered, n)
	}
	return err
}

// portbookBulk streams entries through a whole log with three witnesses, over
// gRPC, with a token and uniqueness, until the last is answered.
func portbookBulk(ctx context.Context, dir string, wait submit.Wait, entries []*entry.Entry) (m measured, err error) {
	w, err := world.New(ctx, dir, world.Options{Witnesses: 3, Quorum: 2})
	if err != nil {
		return m, err
	}
	defer w.Close()
	c, err := w.Log.Submitter(benchRegistry)
	if err != nil {
		return m, err
	}
	defer c.Close()
	return timed(len(entries), func() error {
		next, answered := 0, 0
		err := c.Stream(ctx, submit.StreamOptions{Wait: wait}, func() (*entry.Entry, error) {
			if next == len(entries) {
				return nil, io.EOF
			}
			next++
			return entries[next-1], nil
		}, func(_ uint64, r submit.Result) error {
			answered++
			return r.Err
		})
		if err == nil && answered != len(entries) {
			err = fmt.Errorf("%d of %d entries answered", answered, len(entries))
		}
		if err != nil {
			return err
		}
		return inTiles(ctx, dir, len(entries))
	})
}

// inTiles waits until the tiles of the log below dir have n entries: a receipt
// is given when the journal has its entry, and the yardstick's future is not.
func inTiles(ctx context.Context, dir string, n int) error {
	states := must(filepath.Glob(filepath.Join(dir, "*", "log", ".state", "treeState")))
	if len(states) != 1 {
		return fmt.Errorf("%d logs below %s", len(states), dir)
	}
	for {
		raw, err := os.ReadFile(states[0])
		if err != nil {
			return err
		}
		var tree struct{ Size int }
		if err := json.Unmarshal(raw, &tree); err != nil || tree.Size >= n {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// submitBulk waits for receipts, and for the tiles, which is what the
// yardstick's futures are: the index of an integrated entry, without a proof.
func submitBulk(ctx context.Context, quick bool) (Row, error) {
	return bulk(ctx, quick, submit.Sequenced)
}

func submitBulkCosigned(ctx context.Context, quick bool) (Row, error) {
	return bulk(ctx, quick, submit.Cosigned)
}

func bulk(ctx context.Context, quick bool, wait submit.Wait) (Row, error) {
	n, rounds := 100_000, 5
	if quick {
		n, rounds = 20_000, 3
	}
	leaves, err := leavesOf(n)
	if err != nil {
		return Row{}, err
	}
	entries := make([]*entry.Entry, n)
	for i := range entries {
		entries[i] = uploadEntry(i)
	}
	var raw, ours, rawCPU, ourCPU []float64
	err = inTempDir(func(dir string) error {
		for i := range rounds {
			a, err := timed(n, func() error {
				_, err := rawTessera(ctx, filepath.Join(dir, fmt.Sprint("raw", i)), leaves)
				return err
			})
			if err != nil {
				return fmt.Errorf("raw Tessera: %w", err)
			}
			b, err := portbookBulk(ctx, mkdir(dir, fmt.Sprint("ours", i)), wait, entries)
			if err != nil {
				return fmt.Errorf("Portbook: %w", err)
			}
			raw, ours = append(raw, a.rate), append(ours, b.rate)
			rawCPU, ourCPU = append(rawCPU, a.cpu), append(ourCPU, b.cpu)
		}
		return nil
	})
	r := Row{Value: median(ours), Unit: "entries/s", Aim: "ratio >= 0.7",
		Note: fmt.Sprintf("%d entries of %d B, %d rounds; CPU an entry %.1f us, client included, raw %.1f us", n, len(leaves[0]), rounds, median(ourCPU), median(rawCPU))}
	if wait == submit.Cosigned {
		r.Aim = "none"
		r.Note += "; each with its proof, 3 witnesses"
	}
	if err != nil {
		return r, err
	}
	r = r.against("raw Tessera POSIX", median(raw))
	r.Met = wait == submit.Cosigned || *r.Ratio >= 0.7
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
	if uploaders == 16 {
		r.Aim, r.Met = "p50 <= 150 ms, p99 <= 350 ms", p50 <= 150*time.Millisecond && p99 <= 350*time.Millisecond
	}
	return r, nil
}
