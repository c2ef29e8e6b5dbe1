package main

// Row submit-bulk-vs-trillian.

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/google/trillian"
	"github.com/portbook/portbook/internal/world"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
)

// each calls do for [0, n) from 64 writers.
func each(n int, do func(i int) error) error {
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || failed.Load() != nil {
					return
				}
				if err := do(i); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// submitVsTrillian compares receipts with what QueueLeaf returns: the leaf is
// durable in a queue, without an index even.
func submitVsTrillian(ctx context.Context, quick bool) (Row, error) {
	n, rounds := 10_000, 3
	if quick {
		n, rounds = 2_000, 2
	}
	db, err := trilliantest.StartPostgreSQL(ctx, nil)
	if err != nil {
		return Row{}, err
	}
	defer db.Close()
	tr, err := trilliantest.Start(ctx, trilliantest.Options{Database: db})
	if err != nil {
		return Row{}, err
	}
	defer tr.Close()
	tree, err := tr.CreateTree(ctx, trillian.TreeType_LOG)
	if err != nil {
		return Row{}, err
	}
	log := trillian.NewTrillianLogClient(tr.Conn)
	var ours, theirs []float64
	err = inTempDir(func(dir string) error {
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
		for round := range rounds {
			a, err := timed(n, func() error {
				return each(n, func(i int) error { _, err := c.Sequence(ctx, uploadEntry(round*n+i)); return err })
			})
			if err != nil {
				return fmt.Errorf("Portbook: %w", err)
			}
			b, err := timed(n, func() error {
				return each(n, func(i int) error {
					leaf, err := uploadEntry(round*n + i).Marshal()
					if err != nil {
						return err
					}
					id := sha256.Sum256(leaf)
					_, err = log.QueueLeaf(ctx, &trillian.QueueLeafRequest{LogId: tree, Leaf: &trillian.LogLeaf{LeafValue: leaf, LeafIdentityHash: id[:]}})
					return err
				})
			})
			if err != nil {
				return fmt.Errorf("Trillian: %w", err)
			}
			ours, theirs = append(ours, a.rate), append(theirs, b.rate)
		}
		return nil
	})
	if err != nil {
		return Row{}, err
	}
	r := Row{Value: median(ours), Unit: "entries/s", Aim: "ratio >= 8", Note: fmt.Sprintf("%d entries a round, %d rounds", n, rounds)}
	r = r.against("Trillian QueueLeaf on PostgreSQL", median(theirs))
	r.Met = *r.Ratio >= 8
	return r, nil
}
