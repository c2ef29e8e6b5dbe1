package evillog_test

import (
	"flag"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Most cells wait for a log that is slow on purpose, so more of them run at
// once than there are processors.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		flag.Set("test.parallel", "8")
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			os.Stderr.WriteString("goroutines left behind: " + err.Error() + "\n")
			code = 1
		}
	}
	os.Exit(code)
}

// A reader is one column of the matrix.
type reader struct {
	name string
	read func(*stage, func(*stage)) string
	want func(*row) string
}

var readers = []reader{
	{"state", readState, func(r *row) string { return r.state }},
	{"proof", readProof, func(r *row) string { return r.proof }},
	{"proxy", readProxy, func(r *row) string { return r.proxy }},
	{"monitor", readMonitor, func(r *row) string { return r.monitor }},
	{"witness", readWitness, func(r *row) string { return r.witness }},
}

const notApplicable = "n/a: "

// TestHostileLog is the hostile log matrix: every behaviour before every
// reader. A reader must come to the right conclusion within its patience, all
// of them together within 64 MiB above what the program took before, and none
// may install, remember or cosign what it refuses. See readers_test.go for what
// each outcome says and what is checked for all of them.
func TestHostileLog(t *testing.T) {
	keys() // not part of what is measured
	memory := watchMemory()
	names := map[string]bool{}
	var asserted, skipped atomic.Int64
	var big sync.Mutex // what sends megabytes does so one at a time: the liar holds them too
	t.Run("cells", func(t *testing.T) {
		for i := range rows {
			r := &rows[i]
			if names[r.name] {
				t.Errorf("two behaviours are called %q", r.name)
			}
			names[r.name] = true
			for _, rd := range readers {
				want := rd.want(r)
				if strings.HasPrefix(want, notApplicable) {
					skipped.Add(1)
					continue
				}
				t.Run(r.name+"/"+rd.name, func(t *testing.T) {
					t.Parallel()
					if r.heavy {
						big.Lock()
						defer big.Unlock()
					}
					s := newStage(t, r)
					got := rd.read(s, r.lie)
					if took := time.Since(s.lied); took > patience {
						t.Errorf("took %s", took)
					}
					if raced {
						// So slowed down, a bound on time may be met before one on size:
						// the log cannot be read either way.
						got, want = strings.ReplaceAll(got, "PB302", "PB301"), strings.ReplaceAll(want, "PB302", "PB301")
					}
					if got != want {
						t.Errorf("got  %s\nwant %s", got, want)
					}
					asserted.Add(1)
				})
			}
		}
	})
	grew := memory()
	t.Logf("%d behaviours × %d readers: %d cells asserted, %d do not apply; memory grew by at most %.1f MiB",
		len(rows), len(readers), asserted.Load(), skipped.Load(), float64(grew)/(1<<20))
	if grew > 64<<20 && !raced {
		t.Errorf("memory grew by %d MiB", grew>>20)
	}
	if len(rows) < 60 || flag.Lookup("test.run").Value.String() == "" && asserted.Load() < 120 {
		t.Errorf("%d behaviours, %d cells", len(rows), asserted.Load())
	}
}

// watchMemory samples the heap until the function it returns is called, which
// says by how much it had grown at most: all readers and all logs together.
// Where it seems much, what is garbage by then is left out.
func watchMemory() (growth func() uint64) {
	var m runtime.MemStats
	percent := debug.SetGCPercent(25)
	runtime.GC()
	runtime.ReadMemStats(&m)
	before := m.HeapAlloc
	peak, stop := before, make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if m.HeapAlloc > before+48<<20 { // held, or only not yet collected?
				runtime.GC()
				runtime.ReadMemStats(&m)
			}
			peak = max(peak, m.HeapAlloc)
		}
	})
	return func() uint64 {
		close(stop)
		wg.Wait()
		debug.SetGCPercent(percent)
		return peak - before
	}
}
