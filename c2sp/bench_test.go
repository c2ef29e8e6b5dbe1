package c2sp

import (
	"crypto/ed25519"
	"testing"
	"time"
)

// BenchmarkPolicyVerify reports, beside its own time, the ratio to the four raw
// Ed25519 verifications that it cannot do without (log and three cosigners),
// measured in the same run. Aim: at most 1.25.
func BenchmarkPolicyVerify(b *testing.B) {
	p := must(ParsePolicy([]byte("log " + testLog.Key().String() + "\nwitness w1 " + testW1.Key().String() +
		"\nwitness w2 " + testW2.Key().String() + "\nwitness w3 " + testW3.Key().String() + "\ngroup g 2 w1 w2 w3\nquorum g\n")))
	text := testCP.Text()
	log := must(testLog.Sign(text))
	sigs := []Signature{cosign(testW1, testCP, 100), cosign(testW2, testCP, 200), cosign(testW3, testCP, 300)}
	note := []byte(signed(testCP, sigs...))
	keys := []*Key{testW1.Key(), testW2.Key(), testW3.Key()}
	messages := [][]byte{cosignatureV1(text, 100), cosignatureV1(text, 200), cosignatureV1(text, 300)}
	raw := func() bool {
		ok := ed25519.Verify(testLog.Key().raw, []byte(text), log.Sig)
		for i, k := range keys {
			ok = ok && ed25519.Verify(k.raw, messages[i], sigs[i].Sig[8:])
		}
		return ok
	}
	// Alternating, so that a change of the machine's speed hits both.
	var ours, theirs time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := p.Verify(note); err != nil {
			b.Fatal(err)
		}
		mid := time.Now()
		if !raw() {
			b.Fatal("raw verification failed")
		}
		ours += mid.Sub(start)
		theirs += time.Since(mid)
	}
	b.ReportMetric(float64(ours.Nanoseconds())/float64(b.N), "ns/verify")
	b.ReportMetric(float64(theirs.Nanoseconds())/float64(b.N), "ns/raw")
	b.ReportMetric(float64(ours)/float64(theirs), "ratio")
}

func BenchmarkPolicyVerifyMLDSA44(b *testing.B) {
	p := must(ParsePolicy([]byte("log " + testLogPQ.Key().String() + "\nwitness w1 " + testWPQ.Key().String() + "\nquorum w1\n")))
	n := Note{Text: testCP.Text(), Sigs: []Signature{cosign(testLogPQ, testCP, 5), cosign(testWPQ, testCP, 5)}}
	note := n.Bytes()
	for b.Loop() {
		if _, err := p.Verify(note); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseProof(b *testing.B) {
	pr := Proof{Extra: make([]byte, 600), Index: 5, Hashes: make([][32]byte, 22), Checkpoint: []byte(signed(testCP, cosign(testW1, testCP, 100), cosign(testW2, testCP, 200), cosign(testW3, testCP, 300)))}
	text := pr.Bytes()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := ParseProof(text); err != nil {
			b.Fatal(err)
		}
	}
}
