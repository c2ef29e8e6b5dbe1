package c2sp

// Private keys with a name. A key makes one kind of signature, for ever.

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
)

const seedSize = 32 // of Ed25519 and of ML-DSA alike

// A Signer is a private key with a name. It is safe for concurrent use.
type Signer struct {
	key   *Key
	seed  []byte
	ed    ed25519.PrivateKey  // AlgEd25519, AlgEd25519Cosig
	mldsa *mldsa44.PrivateKey // AlgMLDSA44
}

// GenerateSigner makes a new random key.
func GenerateSigner(name string, alg Alg) (*Signer, error) {
	seed := make([]byte, seedSize)
	rand.Read(seed) // never fails
	return newSigner(name, alg, seed)
}

func newSigner(name string, alg Alg, seed []byte) (*Signer, error) {
	if len(seed) != seedSize {
		return nil, malformed("signer key", "seed of %d bytes instead of %d", len(seed), seedSize)
	}
	s := &Signer{seed: seed}
	var raw []byte
	switch alg {
	case AlgEd25519, AlgEd25519Cosig:
		s.ed = ed25519.NewKeyFromSeed(seed)
		raw = s.ed.Public().(ed25519.PublicKey)
	case AlgMLDSA44:
		var pub *mldsa44.PublicKey
		pub, s.mldsa = mldsa44.NewKeyFromSeed((*[seedSize]byte)(seed))
		raw = pub.Bytes()
	default:
		return nil, malformed("signer key", "%s is not one of 0x01, 0x04, 0x06", alg)
	}
	var err error
	s.key, err = newKey(name, alg, raw)
	return s, err
}

// ParseSKey reads a private key, "PRIVATE+KEY+name+keyid+base64(type || seed)".
// The key ID is that of the public key. Errors never show the key.
func ParseSKey(s string) (*Signer, error) {
	rest, ok := strings.CutPrefix(s, "PRIVATE+KEY+")
	if !ok {
		return nil, malformed("signer key", "does not begin with PRIVATE+KEY+")
	}
	name, id, alg, seed, err := splitKey("signer key", rest)
	if err != nil {
		// Not err itself: in a mistyped key any part may be the secret one.
		return nil, malformed("signer key", "not of the form PRIVATE+KEY+name+keyid+base64")
	}
	signer, err := newSigner(name, alg, seed)
	if err != nil {
		return nil, err
	}
	if signer.key.id != id {
		return nil, malformed("signer key", "the key ID does not belong to name and key: mistyped?")
	}
	return signer, nil
}

// SKey returns the private key as text. It is a secret.
func (s *Signer) SKey() string {
	return fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", s.key.name, s.key.id,
		base64.StdEncoding.EncodeToString(append([]byte{byte(s.key.alg)}, s.seed...)))
}

// Key returns the public key.
func (s *Signer) Key() *Key { return s.key }

// String names the key without its secret, so that a Signer can be logged.
func (s *Signer) String() string { return "signer for " + s.key.name }

// GoString is String, for %#v.
func (s *Signer) GoString() string { return s.String() }

// Sign signs a note text. Only a key of type [AlgEd25519] does; a cosigner
// signs nothing but checkpoints, with [Signer.Cosign].
func (s *Signer) Sign(text string) (Signature, error) {
	if s.key.alg != AlgEd25519 {
		return Signature{}, fmt.Errorf("c2sp: key %s is of type %s and signs checkpoints only, with Cosign", s.key.name, s.key.alg)
	}
	if err := checkText("note", text); err != nil {
		return Signature{}, err
	}
	if !strings.HasSuffix(text, "\n") {
		return Signature{}, malformed("note", "the text does not end with a newline")
	}
	return s.signature(ed25519.Sign(s.ed, []byte(text))), nil
}

// SignCheckpoint signs c as the log that the key's name is the origin of: the
// note text with [AlgEd25519], or with [AlgMLDSA44] the whole tree with a
// timestamp of zero, which makes no statement about when it was the newest one
// (c2sp.org/tlog-cosignature). c must have no extension lines, which the latter
// would not cover. It does not wait; ctx is for signers that ask a device.
func (s *Signer) SignCheckpoint(_ context.Context, c Checkpoint) (Signature, error) {
	if c.Origin != s.key.name {
		return Signature{}, fmt.Errorf("c2sp: key %s does not sign for log %s", s.key.name, quote(c.Origin))
	}
	if len(c.Extensions) > 0 {
		return Signature{}, fmt.Errorf("c2sp: a checkpoint of %s with extension lines is not signed", quoteName(c.Origin))
	}
	switch s.key.alg {
	case AlgEd25519:
		return s.Sign(c.Text())
	case AlgMLDSA44:
		return s.cosign(c, 0)
	}
	return Signature{}, fmt.Errorf("c2sp: key %s is of type %s, which no log signs with", s.key.name, s.key.alg)
}

// Cosign signs c with the time at, in whole seconds since the epoch, which must
// be after it. Only a key of type [AlgEd25519Cosig] or [AlgMLDSA44] does.
func (s *Signer) Cosign(c Checkpoint, at time.Time) (Signature, error) {
	if !s.key.IsCosigner() {
		return Signature{}, fmt.Errorf("c2sp: key %s is of type %s and makes no cosignatures", s.key.name, s.key.alg)
	}
	sec := at.Unix()
	if sec < 1 {
		return Signature{}, errors.New("c2sp: a cosignature needs a time after 1970-01-01: is the clock set?")
	}
	return s.cosign(c, uint64(sec))
}

// cosign is Cosign without a look at the key's type and the time.
func (s *Signer) cosign(c Checkpoint, t uint64) (Signature, error) {
	text := c.Text()
	if _, err := ParseCheckpoint(text); err != nil {
		return Signature{}, err
	}
	if s.key.alg == AlgEd25519Cosig {
		sig := binary.BigEndian.AppendUint64(nil, t)
		return s.signature(append(sig, ed25519.Sign(s.ed, cosignatureV1(text, t))...)), nil
	}
	msg, err := subtreeV1(s.key.name, t, c.Origin, Subtree{End: c.Size, Hash: c.Root})
	if err != nil {
		return Signature{}, err
	}
	return s.signMLDSA44(t, msg, true)
}

// signMLDSA44 signs msg, which says the time t, with an empty context. hedged is
// what FIPS 204 recommends; without it one msg has one signature, for tests.
func (s *Signer) signMLDSA44(t uint64, msg []byte, hedged bool) (Signature, error) {
	sig := make([]byte, 8+mldsa44.SignatureSize)
	binary.BigEndian.PutUint64(sig, t)
	if err := mldsa44.SignTo(s.mldsa, msg, nil, hedged, sig[8:]); err != nil {
		return Signature{}, fmt.Errorf("c2sp: signing with %s: %w", s.key.name, err)
	}
	return s.signature(sig), nil
}

func (s *Signer) signature(sig []byte) Signature {
	return Signature{Name: s.key.name, KeyID: s.key.id, Sig: sig}
}
