package logserver

// Closing a log and opening it again at once, under load.

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// TestReopenAtOnce: the storage engine's own goroutines may outlive Close for a
// moment; nothing of what they still do harms the log that is opened then.
func TestReopenAtOnce(t *testing.T) {
	r := newRig(t, 1, 1)
	var mu sync.Mutex
	acks := map[int]*Ack{}
	for round := range 20 {
		l := r.ready()
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					n := round*100_000 + w*10_000 + i
					ack, err := r.submit(l, nth(n))
					if err != nil {
						if !errors.Is(err, ErrReadOnly) {
							t.Errorf("round %d: %v", round, err)
						}
						return
					}
					mu.Lock()
					acks[n] = ack
					mu.Unlock()
				}
			})
		}
		time.Sleep(60 * time.Millisecond)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}
	l := r.ready()
	if len(acks) < 20 {
		t.Fatalf("only %d acknowledged", len(acks))
	}
	t.Logf("%d acknowledged", len(acks))
	byIndex := map[uint64]int{}
	last := l.Published()
	whole := l.freshTree(int64(last.Size))
	for n, ack := range acks {
		r.check(ack)
		if other, twice := byIndex[ack.Index]; twice {
			t.Errorf("index %d acknowledged for %d and %d", ack.Index, n, other)
		}
		byIndex[ack.Index] = n
		// Each acknowledged tree is a beginning of the last one.
		p, err := c2sp.ParseNote(ack.Proof.Checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		cp, err := c2sp.ParseCheckpoint(p.Text)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := whole.consistency(int64(cp.Size))
		if err != nil {
			t.Fatal(err)
		}
		if err := c2sp.VerifyConsistency(cp.Size, last.Size, proof, cp.Root, last.Root); err != nil {
			t.Errorf("index %d: %v", ack.Index, err)
		}
		now, err := l.prove(context.Background(), last, ack.Index, nil)
		if err != nil || string(now.Extra) != string(ack.Proof.Extra) {
			t.Errorf("index %d is another entry now: %v", ack.Index, err)
		}
	}
	if err := leavesMatchTiles(whole, 0); err != nil {
		t.Error(err)
	}
	if err := tilesMatchTiles(whole, 0); err != nil {
		t.Error(err)
	}
	r.replayed(l)
}
