package witness

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// together runs n calls at once and counts their status codes.
func together(n int, call func(i int) int) map[int]int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	count := map[int]int{}
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			status := call(i)
			mu.Lock()
			count[status]++
			mu.Unlock()
		})
	}
	close(start)
	wg.Wait()
	return count
}

// Of 1,000 racing updates through two programs, one wins each step.
func TestOneOfThousandWins(t *testing.T) { eachStore(t, oneOfThousandWins) }

func oneOfThousandWins(t *testing.T, r *rig) {
	const racers = 1000
	rigs := []*rig{r, r.another()}
	var old uint64
	for range 3 {
		bodies := make([][]byte, racers)
		for i := range bodies { // to the same size, or to different ones
			bodies[i] = r.log.request(old, old+5+uint64(i%2)*uint64(i%17))
		}
		count := together(racers, func(i int) int { return rigs[i/2%2].do("POST", "/add-checkpoint", bodies[i]).status })
		if count[200] != 1 || count[409] != racers-1 {
			t.Errorf("from size %d: answers %v, want one 200 and %d times 409", old, count, racers-1)
		}
		h := r.head(r.log.origin)
		if h.Size <= old || h.Root != r.log.tree.root(h.Size) {
			t.Errorf("after size %d the state is %+v", old, h)
		}
		old = h.Size
	}
	r.audit(r.log.origin)
}

// Two histories race for each size. Whatever wins, no size ever gets two roots.
func TestForksRace(t *testing.T) { eachStore(t, forksRace) }

func forksRace(t *testing.T, r *rig) {
	good, evil := r.log, r.log.evil(3)
	r.must(r.post(good.request(0, 3)), 200)
	for n := uint64(4); n < 40; n++ {
		old := r.head(r.log.origin).Size
		count := together(20, func(i int) int {
			l := good
			if i%2 == 1 {
				l = evil
			}
			b := l.request(old, n)
			rec := r.do("POST", "/add-checkpoint", b)
			if rec.status == 200 {
				r.enter(l.checkpoint(n), rec.body)
			}
			return rec.status
		})
		if old == n-1 && count[200] != 1 {
			t.Fatalf("size %d: %v", n, count)
		}
	}
	forks, err := r.dir.Store.Forks(context.Background(), r.log.origin)
	if err != nil || len(forks) == 0 {
		t.Errorf("%d forks kept (%v): the log signed two trees of every size", len(forks), err)
	}
	r.audit(r.log.origin)
}

// Cosigning one size again and again, by many at once, always succeeds.
func TestSameSizeTogether(t *testing.T) { eachStore(t, sameSizeTogether) }

func sameSizeTogether(t *testing.T, r *rig) {
	r.must(r.post(r.log.request(0, 5)), 200)
	var mu sync.Mutex
	tick := noon
	r.w.now = func() time.Time { // every signature is of another second
		mu.Lock()
		defer mu.Unlock()
		tick = tick.Add(time.Second)
		return tick
	}
	b := r.log.request(5, 5)
	count := together(8, func(int) int { return r.do("POST", "/add-checkpoint", b).status })
	if count[200] != 8 {
		t.Errorf("%v", count)
	}
}

// Two programs on one database are one witness.
func TestTwoServersOnOneDatabase(t *testing.T) { eachStore(t, twoServersOnOneDatabase) }

func twoServersOnOneDatabase(t *testing.T, r *rig) {
	rigs := []*rig{r, r.another()}
	for n := uint64(1); n <= 10; n++ {
		bodies := [][]byte{r.log.request(n-1, n), r.log.evil(1).request(n-1, n)}
		count := together(20, func(i int) int {
			a := rigs[i%2].do("POST", "/add-checkpoint", bodies[i/2%2])
			return a.status
		})
		if count[200] != 1 {
			t.Fatalf("size %d: %v", n, count)
		}
		if r.head(r.log.origin).Root != r.log.tree.root(n) { // evil won the first step; go its way
			r.log = r.log.evil(1)
		}
	}
}

// What was cosigned before a restart binds after it.
func TestRestart(t *testing.T) { eachStore(t, restart) }

func restart(t *testing.T, r *rig) {
	rnd := rand.New(rand.NewPCG(1, 2))
	evil := r.log.evil(1)
	size := uint64(1)
	r.must(r.post(r.log.request(0, size)), 200)
	for range 10 {
		r.restart()
		r.audit(r.log.origin)
		r.must(r.post(evil.request(size-1, size+1)), 409)
		if size > 1 {
			r.must(r.post(evil.request(size, size)), 422)
			r.must(r.post(evil.request(size, size+1)), 422)
		}
		next := size + rnd.Uint64N(20)
		r.must(r.post(r.log.request(size, next)), 200)
		size = next
	}
}

// A fork is kept with both notes, told to the operator, and bounded.
func TestForkIsKept(t *testing.T) { eachStore(t, forkIsKept) }

func forkIsKept(t *testing.T, r *rig) {
	var journal bytes.Buffer
	r.w.log = slog.New(slog.NewTextHandler(&journal, nil))
	ctx := context.Background()
	r.must(r.post(r.log.request(0, 5)), 200)
	evil := r.log.evil(3)
	stranger := c2sp.Signature{Name: "stranger.example", KeyID: 7, Sig: make([]byte, 64)}
	r.must(r.post(body(5, nil, evil.note(evil.checkpoint(5), stranger))), 422)
	// Evidence is evidence whatever the answer to the request is.
	r.must(r.post(r.log.request(5, 8)), 200)
	r.must(r.post(evil.request(4, 8)), 409)
	r.must(r.post(evil.request(4, 8)), 409) // once is enough
	r.must(r.post(body(9, nil, evil.note(evil.checkpoint(8)))), 400)

	forks, err := r.dir.Store.Forks(ctx, r.log.origin)
	if err != nil || len(forks) != 2 {
		t.Fatalf("%d forks (%v), want those of size 5 and 8", len(forks), err)
	}
	if n := strings.Count(journal.String(), "level=WARN"); n != 4 || !strings.Contains(journal.String(), "FORK") {
		t.Errorf("%d warnings:\n%s", n, journal.String())
	}
	for i, f := range forks {
		size := []uint64{5, 8}[i]
		var roots [][32]byte
		for _, note := range [][]byte{f.Ours, f.Theirs} {
			// With the log's key alone, anyone sees it.
			n, err := c2sp.ParseNote(note)
			if err != nil {
				t.Fatal(err)
			}
			cp, err := c2sp.ParseCheckpoint(n.Text)
			if err != nil || cp.Size != size || cp.Origin != r.log.origin {
				t.Fatalf("%+v %v", cp, err)
			}
			if _, err := r.log.signer.Key().VerifyNote(n.Text, n.Sigs[0]); err != nil {
				t.Error(err)
			}
			roots = append(roots, cp.Root)
			if strings.Contains(string(note), "stranger") {
				t.Error("a stranger's signature was stored")
			}
		}
		if roots[0] == roots[1] {
			t.Error("one root twice is no fork")
		}
	}

	// Never "the proof did not verify": with garbage anyone could frame a log.
	r.must(r.post(body(8, make([][32]byte, 3), r.log.note(r.log.checkpoint(12)))), 422)
	r.must(r.post(evil.request(8, 12)), 422)
	if forks, _ := r.dir.Store.Forks(ctx, r.log.origin); len(forks) != 2 {
		t.Errorf("%d forks after a bad proof", len(forks))
	}
	if !strings.Contains(journal.String(), "not shown to be consistent") {
		t.Errorf("no warning about the bad proof:\n%s", journal.String())
	}

	// Nobody can fill the journal by saying it again.
	for range 100 {
		r.must(r.post(body(8, make([][32]byte, 3), r.log.note(r.log.checkpoint(12)))), 422)
	}
	if n := strings.Count(journal.String(), "not shown to be consistent"); n > 20 {
		t.Errorf("%d warnings about one bad proof", n)
	}

	for range 100 {
		r.must(r.post(evil.request(8, 8)), 422)
	}
	if n := strings.Count(journal.String(), "FORK"); n > 20+2 {
		t.Errorf("%d warnings about two forks", n)
	}

	// Unsigned notes leave no trace.
	impostor := newLog(t, r.log.origin)
	r.must(r.post(impostor.request(8, 8)), 403)
	if forks, _ := r.dir.Store.Forks(ctx, r.log.origin); len(forks) != 2 {
		t.Errorf("%d forks after an impostor", len(forks))
	}

	for n := uint64(9); n < 9+maxForks; n++ {
		r.must(r.post(r.log.request(n-1, n)), 200)
		r.must(r.post(evil.request(n, n)), 422)
	}
	if forks, _ := r.dir.Store.Forks(ctx, r.log.origin); len(forks) != maxForks {
		t.Errorf("%d forks kept, want at most %d", len(forks), maxForks)
	}
	r.restart()
	if forks, _ := r.dir.Store.Forks(ctx, r.log.origin); len(forks) != maxForks {
		t.Errorf("%d forks after a restart", len(forks))
	}
}

// A hundred logs at once do not get into each other's way.
func TestManyLogs(t *testing.T) { eachStore(t, manyLogs) }

func manyLogs(t *testing.T, r *rig) {
	logs := make([]*testLog, 100)
	for i := range logs {
		logs[i] = newLog(t, fmt.Sprintf("example.com/log%d", i))
		r.trust(logs[i])
	}
	count := together(len(logs), func(i int) int {
		for n := uint64(0); n < 5; n++ {
			if a := r.do("POST", "/add-checkpoint", logs[i].request(n, n+1)); a.status != http.StatusOK {
				return a.status
			}
		}
		return http.StatusOK
	})
	if count[http.StatusOK] != len(logs) {
		t.Fatalf("%v", count)
	}
	for _, l := range logs {
		r.audit(l.origin)
	}
}
