package client

import (
	"crypto/ed25519"
	"crypto/sha256"
	"testing"
	"time"
)

// BenchmarkVerify reports its ratio to the four raw Ed25519 verifications (log
// and three cosigners) that it cannot do without, measured in the same run.
// Aim: at most 1.25.
func BenchmarkVerify(b *testing.B) {
	l, _ := logWith(b, must(testEntry().Marshal()))
	l.fill(1000, "more")
	p := l.proof(5, 1011, l.note(1011, t0, 1, 2, 3))
	proof, f := p.Bytes(), testFile()

	seed := sha256.Sum256(nil)
	key := ed25519.NewKeyFromSeed(seed[:])
	msg := p.Checkpoint[:120]
	sig, pub := ed25519.Sign(key, msg), key.Public().(ed25519.PublicKey)
	var ours, raw time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := Verify(l.policy, f, proof); err != nil {
			b.Fatal(err)
		}
		mid := time.Now()
		for range 4 {
			if !ed25519.Verify(pub, msg, sig) {
				b.Fatal("raw verification failed")
			}
		}
		ours += mid.Sub(start)
		raw += time.Since(mid)
	}
	b.ReportMetric(float64(ours.Nanoseconds())/float64(b.N), "ns/verify")
	b.ReportMetric(float64(ours)/float64(raw), "ratio")
}
