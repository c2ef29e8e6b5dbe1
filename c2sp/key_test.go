package c2sp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestSignersRoundTrip(t *testing.T) {
	for _, alg := range []Alg{AlgEd25519, AlgEd25519Cosig, AlgMLDSA44} {
		s := must(GenerateSigner("example.com/k", alg))
		again := must(ParseSKey(s.SKey()))
		if again.Key().String() != s.Key().String() || again.SKey() != s.SKey() {
			t.Errorf("%s: a key changes when it is written and read", alg)
		}
		k := must(ParseVKey(s.Key().String()))
		if k.Alg() != alg || k.Name() != "example.com/k" || k.IsCosigner() != (alg != AlgEd25519) {
			t.Errorf("%s: vkey reads as %s %s", alg, k.Alg(), k.Name())
		}
		if alg == AlgEd25519 {
			sig := must(again.Sign("hello\n"))
			if at, err := k.VerifyNote("hello\n", sig); err != nil || !at.IsZero() {
				t.Error(at, err)
			}
			if _, err := s.Cosign(testCP, time.Unix(5, 0)); err == nil {
				t.Error("a log key cosigned")
			}
			continue
		}
		at := time.Unix(1679315147, 999)
		sig := must(again.Cosign(testCP, at))
		if have, err := k.VerifyNote(testCP.Text(), sig); err != nil || !have.Equal(at.Truncate(time.Second)) {
			t.Error(have, err)
		}
		if _, err := s.Sign("hello\n"); err == nil {
			t.Errorf("%s: a cosigner signed a text", alg)
		}
	}
	if _, err := GenerateSigner("example.com/k", 0x02); err == nil {
		t.Error("made a key of type 0x02")
	}
	if _, err := GenerateSigner("two words", AlgEd25519); err == nil {
		t.Error("made a key with a space in its name")
	}
}

func TestSignerRefusesWhatItCouldNotRead(t *testing.T) {
	for _, text := range []string{"", "no newline", "a\r\n", "a\x1b\n", "\xff\n"} {
		if _, err := testLog.Sign(text); err == nil {
			t.Errorf("signed %q", text)
		}
	}
	for name, c := range map[string]Checkpoint{
		"empty origin":            {Size: 1},
		"newline in origin":       {Origin: "a\n5", Size: 1},
		"size 2^63":               {Origin: "a", Size: 1 << 63},
		"empty extension":         {Origin: "a", Extensions: []string{""}},
		"newline in an extension": {Origin: "a", Extensions: []string{"x\n"}},
	} {
		for _, s := range []*Signer{testW1, testWPQ} {
			if _, err := s.Cosign(c, time.Unix(5, 0)); err == nil {
				t.Errorf("%s: cosigned", name)
			}
		}
	}
	for _, at := range []time.Time{{}, time.Unix(0, 0), time.Unix(-5, 0)} {
		if _, err := testW1.Cosign(testCP, at); err == nil || !strings.Contains(err.Error(), "clock") {
			t.Errorf("cosigned at %v: %v", at, err)
		}
	}
	long := testCP
	long.Origin = strings.Repeat("o", 256)
	if _, err := testWPQ.Cosign(long, time.Unix(5, 0)); err == nil {
		t.Error("ML-DSA-44 over an origin of 256 bytes")
	}
}

// TestNoSecretInWords: neither printing a signer nor refusing one shows the key.
func TestNoSecretInWords(t *testing.T) {
	skey := testLog.SKey()
	secret := strings.SplitN(skey, "+", 5)[4]
	for _, s := range []string{fmt.Sprint(testLog), fmt.Sprintf("%v %+v %#v %s %q", testLog, testLog, testLog, testLog, testLog)} {
		if strings.Contains(s, secret) {
			t.Errorf("printed the key: %s", s)
		}
	}
	for _, bad := range []string{
		strings.Replace(skey, "+KEY+", "+key+", 1), skey[:len(skey)-1], skey + "\n", " " + skey,
		strings.Replace(skey, "one+", "one", 1), "PRIVATE+KEY+" + secret + "+" + secret + "+" + secret,
		strings.Replace(skey, "one+", "two+", 1),
	} {
		_, err := ParseSKey(bad)
		var m *MalformedError
		if !errors.As(err, &m) {
			t.Fatalf("%q: %v", bad, err)
		}
		if strings.Contains(err.Error(), secret[:20]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

// TestRawIsACopy: nobody can change a key through what it hands out.
func TestRawIsACopy(t *testing.T) {
	k := testW1.Key()
	before := k.String()
	k.Raw()[0] ^= 1
	if k.String() != before {
		t.Error("the key changed")
	}
}

func TestOriginHash(t *testing.T) {
	if OriginHash("") != "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" {
		t.Error(OriginHash(""))
	}
}

// A log signs with Ed25519 as ever, and with ML-DSA-44 without a timestamp,
// which nobody but a log may leave out.
func TestSignCheckpoint(t *testing.T) {
	ctx := context.Background()
	for _, s := range []*Signer{testLog, testLogPQ} {
		c := testCP
		c.Origin = s.Key().Name()
		sig := must(s.SignCheckpoint(ctx, c))
		if err := s.Key().VerifyLog(c.Text(), sig); err != nil {
			t.Errorf("%s: %v", s, err)
		}
		if p := must(ParsePolicy([]byte("log " + s.Key().String() + "\nquorum none\n"))); must(p.Verify((&Note{c.Text(), []Signature{sig}}).Bytes())).LogKey == nil {
			t.Errorf("%s: not believed", s)
		}
		if s == testLogPQ {
			if binary.BigEndian.Uint64(sig.Sig) != 0 {
				t.Error("a log makes no statement about time")
			}
			if _, err := s.Key().VerifyNote(c.Text(), sig); !errors.Is(err, ErrBadSignature) {
				t.Errorf("as a witness's it is accepted without a time: %v", err)
			}
		}
		sig.Sig[20] ^= 1
		if err := s.Key().VerifyLog(c.Text(), sig); !errors.Is(err, ErrBadSignature) {
			t.Errorf("%s: a flipped bit: %v", s, err)
		}
		if err := s.Key().VerifyLog("hello\n", sig); err == nil {
			t.Error("a signature over what is no checkpoint")
		}
		other := c
		other.Origin = "log.example/other"
		if _, err := s.SignCheckpoint(ctx, other); err == nil {
			t.Errorf("%s: signed for another log", s)
		}
		more := c
		more.Extensions = []string{"x"}
		if _, err := s.SignCheckpoint(ctx, more); err == nil {
			t.Errorf("%s: signed an extension line", s)
		}
	}
	if _, err := testW1.SignCheckpoint(ctx, Checkpoint{Origin: testW1.Key().Name()}); err == nil {
		t.Error("a witness's Ed25519 key signed as a log")
	}
}
