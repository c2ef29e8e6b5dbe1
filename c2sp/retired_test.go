package c2sp

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestRetiredKey: a retired key is believed up to its size and no further,
// however many witnesses cosigned; beside a key that is not retired, its
// signature is one that does not count.
func TestRetiredKey(t *testing.T) {
	policy := func(lines ...string) *Policy {
		return must(ParsePolicy([]byte(strings.Join(lines, "\n") + "\nquorum none\n")))
	}
	note := []byte(signed(testCP))
	at := func(size uint64) *Policy { return policy(fmt.Sprintf("retired %s %d", testLog.Key(), size)) }
	for _, size := range []uint64{testCP.Size, testCP.Size + 1, 1<<63 - 1} {
		if _, err := at(size).Verify(note); err != nil {
			t.Errorf("retired at %d, checkpoint of %d: %v", size, testCP.Size, err)
		}
	}
	for _, size := range []uint64{0, testCP.Size - 1} {
		_, err := at(size).Verify(note)
		if !errors.Is(err, ErrNoLogSignature) || !strings.Contains(err.Error(), "retired") {
			t.Errorf("retired at %d, checkpoint of %d: %v", size, testCP.Size, err)
		}
	}
	next := testSigner(testLog.Key().Name(), AlgEd25519, "next key")
	both := policy(fmt.Sprintf("retired %s 0", testLog.Key()), "log "+next.Key().String())
	if _, err := both.Verify(note); !errors.Is(err, ErrNoLogSignature) {
		t.Errorf("signed by the retired key alone: %v", err)
	}
	sig := must(next.Sign(testCP.Text()))
	n := must(ParseNote(note))
	n.Sigs = append(n.Sigs, sig)
	if v, err := both.Verify(n.Bytes()); err != nil || v.LogKey.String() != next.Key().String() {
		t.Errorf("signed by both: %v, %v", v, err)
	}
}

func TestRetiredLine(t *testing.T) {
	key := testLog.Key().String()
	for line, want := range map[string]string{
		"retired " + key:                         "a retired line is",
		"retired " + key + " 07":                 "size \"07\"",
		"retired " + key + " -1":                 "size",
		"retired " + key + " 5 u x":              "a retired line is",
		"retired " + key + " 5 # x":              "a retired line is",
		"retired " + key + " 5 #x":               noComment,
		"retired x 5":                            "malformed",
		"log " + key + "\nretired " + key + " 5": "already",
	} {
		if _, err := ParsePolicy([]byte(line + "\nquorum none\n")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", line, err)
		}
	}
	p := must(ParsePolicy([]byte("retired " + key + " 5 https://log.example\nquorum none\n")))
	if again := must(ParsePolicy(p.Bytes())); len(again.Logs) != 1 || again.Logs[0].UpTo != 5 || !again.Logs[0].Retired || again.Logs[0].URL != "https://log.example" {
		t.Errorf("not written back: %s", p.Bytes())
	}
	if words := strings.Join(p.Explain(), "\n"); !strings.Contains(words, "is retired: believed for the first 5 entries") {
		t.Error(words)
	}
}
