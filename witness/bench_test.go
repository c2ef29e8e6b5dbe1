package witness

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Each operation is one durable cosignature: grammar, log signature, proof,
// cosignature, fsync. Over HTTP on loopback, with keep-alive, as logs do it.
//
//	go test ./witness -run '^$' -bench AddCheckpoint -count 10
//
// The yardstick is BenchmarkFsync: one row in the same database, nothing else.
func BenchmarkAddCheckpoint(b *testing.B) {
	for _, logs := range []int{1, 100} {
		b.Run(fmt.Sprintf("logs=%d", logs), func(b *testing.B) {
			r := newRig(b)
			addr := serve(b, r, nil)
			hc := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: logs}}
			defer hc.CloseIdleConnections()
			each := (b.N + logs - 1) / logs
			bodies := make([][][]byte, logs)
			for i := range bodies {
				l := newLog(b, fmt.Sprintf("example.com/log%d", i))
				r.trust(l)
				for n := range uint64(each) {
					bodies[i] = append(bodies[i], l.request(n, n+1))
				}
			}
			var mu sync.Mutex
			var took []time.Duration
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for i := range bodies {
				wg.Go(func() {
					var mine []time.Duration
					for _, body := range bodies[i] {
						if left.Add(-1) < 0 {
							break
						}
						begin := time.Now()
						if err := send(hc, addr, body); err != nil {
							b.Error(err)
							return
						}
						mine = append(mine, time.Since(begin))
					}
					mu.Lock()
					took = append(took, mine...)
					mu.Unlock()
				})
			}
			wg.Wait()
			b.StopTimer()
			slices.Sort(took)
			if len(took) > 0 {
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "cosignatures/s")
				b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			}
		})
	}
}

// BenchmarkFsync is what one durable write costs in this database, at least.
func BenchmarkFsync(b *testing.B) {
	r := newRig(b)
	r.must(r.post(r.log.request(0, 1)), 200)
	for b.Loop() {
		if _, err := r.dir.Store.write.Exec("UPDATE log SET added = added + 1"); err != nil {
			b.Fatal(err)
		}
	}
}
