package audit

import (
	"syscall"
	"testing"
	"time"
)

// BenchmarkAudit: a mirror of 100 000 uploads, from warm files. cpu-ns/entry is
// of all threads, user and system; 10 000 is 200 000 entries a second on two.
func BenchmarkAudit(b *testing.B) {
	const n = 100_000
	f := newFake(b, files(0, n)...).publish()
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	b.ResetTimer()
	start := cpu()
	for b.Loop() {
		if r := f.audit(); r.Outcome() != AllGood || r.Slots != n {
			b.Fatal(kinds(r))
		}
	}
	b.ReportMetric(float64(cpu()-start)/float64(b.N)/n, "cpu-ns/entry")
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/n, "wall-ns/entry")
}
