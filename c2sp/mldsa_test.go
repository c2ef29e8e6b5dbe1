package c2sp

// ML-DSA-44 of this package (circl) against another implementation of FIPS 204,
// filippo.io/mldsa, which is what transparency-dev/formats uses. See
// docs/decisions/0020-ml-dsa-by-circl.md.

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"testing"

	"filippo.io/mldsa"
	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
)

// Where the parts of a signature begin: the challenge, z, the hint (80 places, and
// where each of 4 polynomials ends among them).
const (
	mldsaZ    = 32
	mldsaHint = mldsa44.SignatureSize - 84
	mldsaEnds = mldsa44.SignatureSize - 4
)

// TestMLDSA44Differential: one seed is one key in both, without randomness one
// message has one signature in both, and each verifies what the other signs.
func TestMLDSA44Differential(t *testing.T) {
	t.Parallel()
	for i := range 64 {
		seed := sha256.Sum256(fmt.Append(nil, "seed ", i))
		ours := must(newSigner("w.example/w", AlgMLDSA44, seed[:]))
		theirs := must(mldsa.NewPrivateKey(mldsa.MLDSA44(), seed[:]))
		if !bytes.Equal(ours.key.raw, theirs.PublicKey().Bytes()) {
			t.Fatalf("seed %d: two public keys", i)
		}
		msg := bytes.Repeat([]byte{byte(i)}, i*7)
		same := must(ours.signMLDSA44(0, msg, false)).Sig[8:]
		if !bytes.Equal(same, must(theirs.SignDeterministic(msg, &mldsa.Options{}))) {
			t.Errorf("seed %d: two signatures without randomness", i)
		}
		hedged := must(ours.signMLDSA44(0, msg, true)).Sig[8:]
		if bytes.Equal(hedged, same) {
			t.Errorf("seed %d: a signature is not randomized", i)
		}
		if err := mldsa.Verify(theirs.PublicKey(), msg, hedged, nil); err != nil {
			t.Errorf("seed %d: they refuse our signature: %v", i, err)
		}
		if !verifyMLDSA44(ours.key.raw, msg, must(theirs.Sign(nil, msg, nil))) {
			t.Errorf("seed %d: we refuse their signature", i)
		}
		if verifyMLDSA44(ours.key.raw, msg, must(theirs.Sign(nil, msg, &mldsa.Options{Context: "x"}))) {
			t.Errorf("seed %d: we accept a signature for another context", i)
		}
	}
}

// TestMLDSA44OneEncoding: another way to write a good signature is none, to either.
// The order of a hint's places and what is behind the last one say nothing, so a
// lax verifier would accept them.
func TestMLDSA44OneEncoding(t *testing.T) {
	t.Parallel()
	seed := sha256.Sum256([]byte("one encoding"))
	ours := must(newSigner("w.example/w", AlgMLDSA44, seed[:]))
	theirs := must(mldsa.NewPublicKey(mldsa.MLDSA44(), ours.key.raw))
	verify := func(what string, msg, sig []byte, want bool) {
		t.Helper()
		if got := verifyMLDSA44(ours.key.raw, msg, sig); got != want {
			t.Errorf("%s: we say %v", what, got)
		}
		if got := mldsa.Verify(theirs, msg, sig, nil) == nil; got != want {
			t.Errorf("%s: they say %v", what, got)
		}
	}
	seen := map[string]int{}
	for i := range 20 {
		msg := fmt.Append(nil, "message ", i)
		good := must(ours.signMLDSA44(0, msg, false)).Sig[8:]
		verify("as it is", msg, good, true)
		other := func(what string, change func(sig []byte)) {
			sig := bytes.Clone(good)
			change(sig)
			if !bytes.Equal(sig, good) {
				seen[what]++
				verify(what, msg, sig, false)
			}
		}
		first, last := int(good[mldsaEnds]), int(good[mldsaEnds+3])
		if first >= 2 {
			other("two places in the other order", func(sig []byte) {
				sig[mldsaHint], sig[mldsaHint+1] = sig[mldsaHint+1], sig[mldsaHint]
			})
		}
		if first >= 1 && last < 80 {
			other("a place twice", func(sig []byte) {
				copy(sig[mldsaHint+1:], good[mldsaHint:mldsaHint+last])
				for p := range 4 {
					sig[mldsaEnds+p]++
				}
			})
		}
		if last < 80 {
			other("a place behind the last", func(sig []byte) { sig[mldsaHint+last] = 1 })
		}
		other("more places than there are", func(sig []byte) { sig[mldsaEnds+3] = 81 })
		other("places that end before they begin", func(sig []byte) { sig[mldsaEnds+1] = sig[mldsaEnds] - 1 })
		other("a z out of range", func(sig []byte) { clear(sig[mldsaZ : mldsaZ+3]) }) // 18 bits of zeros are 2^17
		verify("a byte too many", msg, append(bytes.Clone(good), 0), false)
		verify("a byte too few", msg, good[:len(good)-1], false)
		for at := i; at < len(good); at += 97 {
			other("a bit", func(sig []byte) { sig[at] ^= 1 << (at % 8) })
		}
	}
	if len(seen) != 7 {
		t.Errorf("only tried %v", seen)
	}
}
