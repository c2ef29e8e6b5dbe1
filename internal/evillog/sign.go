package evillog

// Signing without scruples: any text, any time, also what package c2sp would
// never sign. c2sp.org/signed-note, c2sp.org/tlog-cosignature.

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness"
)

// private takes the Ed25519 key out of a signer.
func private(s *c2sp.Signer) ed25519.PrivateKey {
	skey := s.SKey()
	b, err := base64.StdEncoding.DecodeString(skey[nth(skey, "+", 4)+1:])
	if err != nil || len(b) != 1+ed25519.SeedSize || c2sp.Alg(b[0]) == c2sp.AlgMLDSA44 {
		panic("evillog: not an Ed25519 key")
	}
	return ed25519.NewKeyFromSeed(b[1:])
}

// nth is where the n-th sep in s is. What follows may have more of them: base64
// has plus signs.
func nth(s, sep string, n int) int {
	at := -1
	for range n {
		at += 1 + strings.Index(s[at+1:], sep)
	}
	return at
}

// signAny signs a text with a log's key, whatever it says.
func signAny(s *c2sp.Signer, text string) c2sp.Signature {
	return c2sp.Signature{Name: s.Key().Name(), KeyID: s.Key().ID(), Sig: ed25519.Sign(private(s), []byte(text))}
}

// cosignAny cosigns a text with a witness's key, whatever it says and whenever
// that is supposed to be.
func cosignAny(s *c2sp.Signer, text string, at uint64) c2sp.Signature {
	msg := fmt.Sprintf("cosignature/v1\ntime %d\n%s", at, text)
	sig := binary.BigEndian.AppendUint64(nil, at)
	return c2sp.Signature{Name: s.Key().Name(), KeyID: s.Key().ID(), Sig: append(sig, ed25519.Sign(private(s), []byte(msg))...)}
}

// A Witness is what the log asks for cosignatures.
type Witness interface {
	// Cosign returns cosignatures of the note text, dated at if the witness
	// lies with the log. request makes the body of an add-checkpoint request.
	Cosign(text string, at uint64, request func(old uint64) []byte) ([]c2sp.Signature, error)
}

// Colluding is a witness that signs all it is shown.
type Colluding struct{ *c2sp.Signer }

// Cosign implements [Witness].
func (w Colluding) Cosign(text string, at uint64, _ func(uint64) []byte) ([]c2sp.Signature, error) {
	return []c2sp.Signature{cosignAny(w.Signer, text, at)}, nil
}

// Honest is a real witness. It signs by its own clock, and only what it should.
type Honest struct{ *witness.Witness }

// Cosign implements [Witness]: it asks with the size the witness says it has.
func (w Honest) Cosign(_ string, _ uint64, request func(uint64) []byte) ([]c2sp.Signature, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	lines, err := w.AddCheckpoint(ctx, request(0))
	var conflict *witness.ConflictError
	if errors.As(err, &conflict) {
		lines, err = w.AddCheckpoint(ctx, request(conflict.Size))
	}
	if err != nil {
		return nil, err
	}
	return c2sp.ParseSignatureLines(lines)
}
