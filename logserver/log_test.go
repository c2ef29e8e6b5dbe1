package logserver

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"
)

func TestSubmitIsAcknowledgedWithAProof(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.ready()
	for n := range 5 {
		if ack := r.must(l, nth(n)); ack.Index != uint64(n) {
			t.Errorf("entry %d got index %d", n, ack.Index)
		}
	}
}

func TestSameFileAgainHasTheFirstIndex(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.ready()
	first := r.must(l, nth(1))
	r.must(l, nth(2))
	again := nth(1)
	again.Time = "2027-01-01T00:00:00Z"
	second := r.must(l, again)
	if second.Index != first.Index || string(second.Proof.Extra) != string(first.Proof.Extra) {
		t.Errorf("the second submission got index %d and leaf %s", second.Index, second.Proof.Extra)
	}
	if size := l.Published().Size; size != 2 {
		t.Errorf("the log has %d entries, want 2", size)
	}
}

func TestOtherBytesAreAConflictAndARecord(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.ready()
	first := r.must(l, upload("demo", "demo-1.0.tar.gz", "good"))
	for range 3 {
		_, err := r.submit(l, upload("demo", "demo-1.0.tar.gz", "evil"))
		var c *ConflictError
		if !errors.As(err, &c) || c.FirstIndex != first.Index {
			t.Fatalf("other bytes: %v", err)
		}
	}
	r.must(l, nth(1)) // published after the conflict entry
	waitFor(t, "the conflict entry", func() bool { return l.Published().Size >= 3 })
	r.must(l, nth(2))
	if size := l.Published().Size; size != 4 {
		t.Errorf("the log has %d entries, want one conflict entry and 3 uploads", size)
	}
}

func TestManyAtOnce(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.ready()
	const writers, each = 16, 40
	var mu sync.Mutex
	byIndex := map[uint64]string{}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				e := nth(w/2*1000 + n) // each file is submitted by two writers
				ack, err := r.submit(l, e)
				if err != nil {
					t.Errorf("%v", err)
					return
				}
				mu.Lock()
				if was := byIndex[ack.Index]; was != "" && was != e.File {
					t.Errorf("index %d acknowledged for %s and %s", ack.Index, was, e.File)
				}
				byIndex[ack.Index] = e.File
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(byIndex) != writers/2*each {
		t.Errorf("%d indexes for %d files", len(byIndex), writers/2*each)
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	for _, lose := range []string{"nothing", indexDir, filepath.Join(indexDir, indexManifest), filepath.Join(indexDir, runName(0))} {
		t.Run("lose "+lose, func(t *testing.T) {
			r := newRig(t, 3, 2)
			l := r.ready()
			var acks []*Ack
			for n := range 300 {
				if n%50 == 0 || n == 299 { // the last one last: Close refuses what is only queued
					acks = append(acks, r.must(l, nth(n)))
				} else if _, err := l.queue(t.Context(), r.token, nth(n)); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if lose != "nothing" {
				removeIndex(t, r.dir, lose)
			}
			l = r.ready()
			for i, a := range acks {
				r.check(a)
				n := min(i*50, 299)
				if again := r.must(l, nth(n)); again.Index != a.Index {
					t.Errorf("file %d moved from index %d to %d", n, a.Index, again.Index)
				}
			}
			if next := r.must(l, nth(1000)); next.Index != 300 {
				t.Errorf("the next entry got index %d, want 300", next.Index)
			}
		})
	}
}
