package c2sp

// Public keys with a name (vkeys), and what verifying a signature line means
// for each kind: c2sp.org/signed-note and c2sp.org/tlog-cosignature.

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
)

// Alg is the signature type byte of c2sp.org/signed-note.
type Alg byte

const (
	AlgEd25519      Alg = 0x01 // a log's signature over the note text
	AlgEd25519Cosig Alg = 0x04 // a timestamped cosignature, Ed25519
	AlgMLDSA44      Alg = 0x06 // a timestamped cosignature, ML-DSA-44
)

func (a Alg) String() string {
	switch a {
	case AlgEd25519:
		return "Ed25519 (0x01)"
	case AlgEd25519Cosig:
		return "Ed25519 cosignature (0x04)"
	case AlgMLDSA44:
		return "ML-DSA-44 cosignature (0x06)"
	}
	return fmt.Sprintf("signature type 0x%02x", byte(a))
}

// keySize returns the length of the raw public key, or 0 for what is unknown.
func (a Alg) keySize() int {
	switch a {
	case AlgEd25519, AlgEd25519Cosig:
		return ed25519.PublicKeySize
	case AlgMLDSA44:
		return mldsa44.PublicKeySize
	}
	return 0
}

// A Key is a public key with a name. It is immutable and safe for concurrent use.
type Key struct {
	name string
	alg  Alg
	id   uint32
	raw  []byte
}

// newKey checks name and key material. Both come from outside.
func newKey(name string, alg Alg, raw []byte) (*Key, error) {
	if !validName(name) {
		return nil, malformed("vkey", "key name %s must be non-empty and have no spaces, '+' or control characters", quote(name))
	}
	if n := alg.keySize(); n == 0 {
		return nil, malformed("vkey", "%s is not one of 0x01, 0x04, 0x06", alg)
	} else if len(raw) != n {
		return nil, malformed("vkey", "public key of %d bytes; %s has %d", len(raw), alg, n)
	}
	k := &Key{name: name, alg: alg, raw: raw}
	switch alg {
	case AlgMLDSA44:
		if len(name) > 255 {
			return nil, malformed("vkey", "key name of %d bytes; an ML-DSA-44 cosigner's has at most 255", len(name))
		}
		// Any bytes of this length are an ML-DSA-44 public key (FIPS 204, algorithm 23).
	default:
		if weakEd25519(raw) {
			return nil, malformed("vkey", "the Ed25519 public key has small order or a second encoding: anyone could sign for it")
		}
	}
	h := sha256.New()
	h.Write([]byte(name))
	h.Write([]byte{'\n', byte(alg)})
	h.Write(raw)
	k.id = binary.BigEndian.Uint32(h.Sum(nil))
	return k, nil
}

// NewLogKey gives an Ed25519 public key of 32 bytes the name of a log, its
// origin. The error is a [*MalformedError].
func NewLogKey(origin string, raw []byte) (*Key, error) {
	return newKey(origin, AlgEd25519, bytes.Clone(raw))
}

// ParseVKey reads a verifier key, "name+keyid+base64(type || key)". The key ID
// must be the one computed from the rest. The error is a [*MalformedError].
func ParseVKey(s string) (*Key, error) {
	name, id, alg, raw, err := splitKey("vkey", s)
	if err != nil {
		return nil, err
	}
	k, err := newKey(name, alg, raw)
	if err != nil {
		return nil, err
	}
	if k.id != id {
		return nil, malformed("vkey", "key ID %08x does not belong to name and key (they give %08x): mistyped?", id, k.id)
	}
	return k, nil
}

// splitKey splits "name+keyid+base64(alg || data)".
func splitKey(what, s string) (name string, id uint32, alg Alg, data []byte, err error) {
	name, rest, ok1 := strings.Cut(s, "+")
	hexID, b64, ok2 := strings.Cut(rest, "+")
	if !ok1 || !ok2 {
		err = malformed(what, "not of the form name+keyid+base64")
		return
	}
	rawID, herr := hex.DecodeString(hexID)
	if herr != nil || len(rawID) != 4 || hexID != strings.ToLower(hexID) {
		err = malformed(what, "key ID %s is not eight lower-case hex digits", quote(hexID))
		return
	}
	b, ok := decode64(b64)
	if !ok || len(b) < 1 {
		err = malformed(what, "the key is not canonical base64")
		return
	}
	return name, binary.BigEndian.Uint32(rawID), Alg(b[0]), b[1:], nil
}

func (k *Key) Name() string { return k.name } // the key name: a log's origin, or a cosigner's name
func (k *Key) ID() uint32   { return k.id }   // the key ID
func (k *Key) Alg() Alg     { return k.alg }  // the signature type

// Raw returns the public key itself: 32 bytes of Ed25519 or 1312 of ML-DSA-44.
// Two names for one Raw are one signer.
func (k *Key) Raw() []byte { return bytes.Clone(k.raw) }

// String returns the vkey.
func (k *Key) String() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.id, base64.StdEncoding.EncodeToString(append([]byte{byte(k.alg)}, k.raw...)))
}

// IsCosigner reports whether k makes timestamped cosignatures (types 0x04, 0x06).
func (k *Key) IsCosigner() bool { return k.alg == AlgEd25519Cosig || k.alg == AlgMLDSA44 }

// Matches reports whether s says that it is by k. If it is not true, the spec
// has s ignored; if it is, s must verify.
func (k *Key) Matches(s Signature) bool { return s.KeyID == k.id && s.Name == k.name }

// VerifyNote checks that s is k's signature over the note text. A cosignature
// is only ever over a checkpoint; its timestamp is returned, and must be
// 1..2^63-1 seconds after the epoch. For Ed25519 (0x01) the time is zero.
//
// Any failure is an [ErrBadSignature], except that a text which is no
// checkpoint gives a [*MalformedError] for a cosigner.
func (k *Key) VerifyNote(text string, s Signature) (time.Time, error) {
	if !k.IsCosigner() {
		return k.verify(text, nil, s, false)
	}
	c, err := ParseCheckpoint(text)
	if err != nil {
		return time.Time{}, err
	}
	return k.verify(text, &c, s, false)
}

// VerifyLog checks that s is the signature of k, a log's key, over the text of a
// checkpoint. It is [Key.VerifyNote] for who signs as a log: with ML-DSA-44 the
// timestamp may be zero, which says that the log makes no statement about time
// (c2sp.org/tlog-cosignature); a witness's must not be (c2sp.org/tlog-witness).
func (k *Key) VerifyLog(text string, s Signature) error {
	c, err := ParseCheckpoint(text)
	if err != nil {
		return err
	}
	_, err = k.verify(text, &c, s, true)
	return err
}

// verify is VerifyNote with the text already parsed; c is needed by cosigners
// only. zeroTime allows a cosignature without a timestamp, which is what a log
// may make with an ML-DSA-44 key (c2sp.org/tlog-cosignature).
func (k *Key) verify(text string, c *Checkpoint, s Signature, zeroTime bool) (time.Time, error) {
	bad := func(why string) (time.Time, error) {
		return time.Time{}, fmt.Errorf("%w: %s (key ID %08x): %s", ErrBadSignature, quoteName(k.name), k.id, why)
	}
	if !k.Matches(s) {
		return bad(fmt.Sprintf("the line is by %s (key ID %08x)", quote(s.Name), s.KeyID))
	}
	sig := s.Sig
	if k.alg == AlgEd25519 {
		if len(sig) != ed25519.SignatureSize {
			return bad(fmt.Sprintf("%d bytes instead of %d", len(sig), ed25519.SignatureSize))
		}
		if !ed25519.Verify(k.raw, []byte(text), sig) {
			return bad("wrong signature")
		}
		return time.Time{}, nil
	}

	want := 8 + ed25519.SignatureSize
	if k.alg == AlgMLDSA44 {
		want = 8 + mldsa44.SignatureSize
	}
	if len(sig) != want {
		return bad(fmt.Sprintf("%d bytes instead of %d", len(sig), want))
	}
	t := binary.BigEndian.Uint64(sig)
	if t > math.MaxInt64 || (t == 0 && !(zeroTime && k.alg == AlgMLDSA44)) {
		return bad(fmt.Sprintf("timestamp %d is out of range", t))
	}
	switch k.alg {
	case AlgEd25519Cosig:
		if !ed25519.Verify(k.raw, cosignatureV1(text, t), sig[8:]) {
			return bad("wrong cosignature")
		}
	case AlgMLDSA44:
		msg, err := subtreeV1(k.name, t, c.Origin, Subtree{End: c.Size, Hash: c.Root})
		if err != nil {
			return bad(err.Error())
		}
		if !verifyMLDSA44(k.raw, msg, sig[8:]) {
			return bad("wrong cosignature")
		}
	}
	if t == 0 {
		return time.Time{}, nil
	}
	return time.Unix(int64(t), 0).UTC(), nil
}

// verifyMLDSA44 verifies with an empty context. raw has the length of a public key.
// The matrix that it stands for is 16 KiB, which a witness of 10,000 logs would keep
// for each: it is made anew, in less time than the rest takes.
func verifyMLDSA44(raw, msg, sig []byte) bool {
	var pub mldsa44.PublicKey
	pub.Unpack((*[mldsa44.PublicKeySize]byte)(raw))
	return mldsa44.Verify(&pub, msg, nil, sig)
}

// cosignatureV1 is the message of an Ed25519 cosignature.
func cosignatureV1(text string, t uint64) []byte {
	b := make([]byte, 0, len(text)+48)
	b = append(b, "cosignature/v1\ntime "...)
	b = strconv.AppendUint(b, t, 10)
	b = append(b, '\n')
	return append(b, text...)
}

// subtreeV1 is the message of an ML-DSA-44 cosignature over a subtree; that of a
// checkpoint is over [0, size). It does not cover extension lines.
func subtreeV1(name string, t uint64, origin string, s Subtree) ([]byte, error) {
	if len(name) == 0 || len(name) > 255 || len(origin) == 0 || len(origin) > 255 {
		return nil, errors.New("an ML-DSA-44 cosignature needs a cosigner name and an origin of 1 to 255 bytes")
	}
	b := []byte("subtree/v1\n\x00")
	b = append(b, byte(len(name)))
	b = append(b, name...)
	b = binary.BigEndian.AppendUint64(b, t)
	b = append(b, byte(len(origin)))
	b = append(b, origin...)
	b = binary.BigEndian.AppendUint64(b, s.Start)
	b = binary.BigEndian.AppendUint64(b, s.End)
	return append(b, s.Hash[:]...), nil
}

// weakEd25519 reports whether raw is a point of small order, for which a
// signature can be made without any private key, or encodes its y coordinate
// in the second way (y + p), which would give one key two faces.
func weakEd25519(raw []byte) bool {
	y := bytes.Clone(raw) // little-endian, without the sign of x
	y[31] &= 0x7f
	if y[31] == 0x7f && y[0] >= 0xed { // y >= p = 2^255 - 19 ?
		if bytes.Count(y[1:31], []byte{0xff}) == 30 {
			return true
		}
	}
	for _, small := range smallOrderY {
		if bytes.Equal(y, small) {
			return true
		}
	}
	return false
}

// smallOrderY holds the y coordinates of the eight points of small order.
var smallOrderY = func() (list [][]byte) {
	for _, s := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			panic(err)
		}
		list = append(list, b)
	}
	return list
}()
