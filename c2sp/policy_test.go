package c2sp

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestPolicyLimits: 256 logs, witnesses and groups, and 1 MiB.
func TestPolicyLimits(t *testing.T) {
	lines := func(kind string, n int) string {
		var b strings.Builder
		for i := range n {
			switch kind {
			case "log":
				fmt.Fprintf(&b, "log %s\n", testSigner("log.example", AlgEd25519, fmt.Sprint("many", i)).Key())
			case "witness":
				fmt.Fprintf(&b, "witness w%d %s\n", i, testSigner("w.example", AlgEd25519Cosig, fmt.Sprint("many", i)).Key())
			case "group":
				if i == 0 {
					fmt.Fprintf(&b, "witness w %s\n", testW1.Key())
				}
				member := "w"
				if i > 0 {
					member = fmt.Sprint("g", i-1)
				}
				fmt.Fprintf(&b, "group g%d any %s\n", i, member)
			}
		}
		return b.String()
	}
	for _, kind := range []string{"log", "witness", "group"} {
		if p, err := ParsePolicy([]byte(lines(kind, 256) + "quorum none\n")); err != nil {
			t.Errorf("256 of %s: %v", kind, err)
		} else if again := must(ParsePolicy(p.Bytes())); !bytes.Equal(again.Bytes(), p.Bytes()) {
			t.Errorf("256 of %s are not written back", kind)
		}
		_, err := ParsePolicy([]byte(lines(kind, 257) + "quorum none\n"))
		if err == nil || !strings.Contains(err.Error(), "more than 256") {
			t.Errorf("257 of %s: %v", kind, err)
		}
	}
	for _, n := range []int{1 << 20, 1<<20 + 1} {
		b := []byte("quorum none\n#" + strings.Repeat("x", n-14) + "\n")
		if _, err := ParsePolicy(b); len(b) != n || (err == nil) != (n == 1<<20) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
}

// TestHandMadePolicyFailsClosed: a policy that did not come from ParsePolicy
// never counts a key twice and never takes nothing for a quorum.
func TestHandMadePolicyFailsClosed(t *testing.T) {
	alias := testSigner("witness.example/alias", AlgEd25519Cosig, "w1")
	p := &Policy{
		Logs:      []PolicyLog{{Key: testLog.Key()}},
		Witnesses: []PolicyWitness{{Name: "a", Key: testW1.Key()}, {Name: "b", Key: alias.Key()}},
		Groups:    []PolicyGroup{{Name: "g", K: 2, Members: []string{"a", "b"}}},
		Quorum:    "g",
	}
	note := []byte(signed(testCP, cosign(testW1, testCP, 100), cosign(alias, testCP, 100)))
	var q *QuorumError
	if _, err := p.Verify(note); !errors.As(err, &q) {
		t.Errorf("a relabelled key counted twice: %v", err)
	}
	p.Groups[0].K = 0
	if p.Satisfied(map[string]bool{"a": true}) {
		t.Error("a threshold of 0 is satisfied")
	}
	p.Quorum = ""
	if p.Satisfied(map[string]bool{"a": true}) {
		t.Error("no quorum is satisfied")
	}
	if _, err := p.Verify(note); !errors.As(err, &q) {
		t.Errorf("no quorum: %v", err)
	}
}

func TestQuorumErrorSaysWhatIsThereAndWhatIsNeeded(t *testing.T) {
	p := testPolicy3()
	_, err := p.Verify([]byte(signed(testCP, cosign(testW3, testCP, 100))))
	if want := "too few witnesses cosigned: have w3; the policy needs 2 of (w1, w2, w3)"; err == nil || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	_, err = p.Verify([]byte(signed(testCP)))
	if err == nil || !strings.Contains(err.Error(), "have none") {
		t.Error(err)
	}
}

func TestBadSignatureNamesTheSigner(t *testing.T) {
	s := cosign(testW2, testCP, 100)
	s.Sig[70] ^= 1
	_, err := testPolicy3().Verify([]byte(signed(testCP, s)))
	if !errors.Is(err, ErrBadSignature) || !strings.Contains(err.Error(), "witness.example/w2") {
		t.Error(err)
	}
}

func TestVerifyLogNeedsNoQuorum(t *testing.T) {
	v, err := testPolicy3().VerifyLog([]byte(signed(testCP, cosign(testW1, testCP, 100))))
	if err != nil || len(v.Cosignatures) != 1 || !v.QuorumTime.IsZero() || v.Size != 7 {
		t.Error(v, err)
	}
	n := Note{Text: testCP.Text(), Sigs: []Signature{cosign(testW1, testCP, 100)}}
	if _, err := testPolicy3().VerifyLog(n.Bytes()); !errors.Is(err, ErrNoLogSignature) {
		t.Error(err)
	}
}

func testPolicy3() *Policy {
	return must(ParsePolicy(fmt.Appendf(nil, "log %s\nwitness w1 %s\nwitness w2 %s\nwitness w3 %s\ngroup g 2 w1 w2 w3\nquorum g\n",
		testLog.Key(), testW1.Key(), testW2.Key(), testW3.Key())))
}

// TestQuorumTimeCannotBeMovedByAMinority: in 2 of 3, one witness that lies
// about the time cannot make the checkpoint look older for cooldown, nor newer
// for freshness.
func TestQuorumTimeCannotBeMovedByAMinority(t *testing.T) {
	p := testPolicy3()
	const honest1, honest2 = 1000, 1010
	for _, lie := range []int64{1, 999, 1005, 5000, 1<<62 - 1} {
		v, err := p.Verify([]byte(signed(testCP, cosign(testW1, testCP, honest1), cosign(testW2, testCP, honest2), cosign(testW3, testCP, lie))))
		if err != nil {
			t.Fatal(err)
		}
		if v.QuorumTime.Before(time.Unix(honest1, 0)) {
			t.Errorf("lie %d: QuorumTime %v is before any honest witness", lie, v.QuorumTime)
		}
		if v.FreshTime.After(time.Unix(honest2, 0)) {
			t.Errorf("lie %d: FreshTime %v is after any honest witness", lie, v.FreshTime)
		}
	}
}

// TestExplain: the sentences are for people, so the test reads them whole.
func TestExplain(t *testing.T) {
	log := "log " + testLog.Key().String() + "\n"
	var w string
	for i := range 6 {
		w += fmt.Sprintf("witness w%d %s\n", i+1, testSigner("w.example", AlgEd25519Cosig, fmt.Sprint("explain", i)).Key())
	}
	for _, tc := range []struct{ name, policy, want string }{
		{"none", log + "quorum none\n", `
One log is believed: log.example/one (1 key).
Warning: no witness is needed. Whoever holds a log's key can show different people different histories, and nobody would notice from this policy.`},
		{"2 of 3", log + w + "group g 2 w1 w2 w3\nquorum g\n", `
One log is believed: log.example/one (1 key).
A checkpoint counts when it is cosigned by 2 of (w1, w2, w3).
Whoever holds a log's key and 2 suitable witness keys can make anything verify.
Any 1 witness key may fail and everything still verifies.
A log that wants to show two histories needs one witness key that lies with it, since any two quorums share at least one.
Warning: named but without a say in the quorum: w4, w5, w6.`},
		{"any", log + w + "group g any w1 w2 w3 w4 w5 w6\nquorum g\n", `
One log is believed: log.example/one (1 key).
A checkpoint counts when it is cosigned by any of (w1, w2, w3, w4, w5, w6).
Whoever holds a log's key and 1 suitable witness key can make anything verify.
Any 5 witness keys may fail and everything still verifies.
Warning: two quorums need not share a witness. A log can show two histories, each with a full quorum, without any witness lying.`},
		{"all", log + "log " + otherLog.Key().String() + "\n" + w + "group g all w1 w2 w3\nquorum g\n", `
Any one of 2 logs is believed: log.example/one, log.example/two.
A checkpoint counts when it is cosigned by all of (w1, w2, w3).
Whoever holds a log's key and 3 suitable witness keys can make anything verify.
Warning: no witness may fail: there is one whose loss alone stops everything new from verifying.
A log that wants to show two histories needs 3 witness keys that lie with it, since any two quorums share at least that many.
Warning: named but without a say in the quorum: w4, w5, w6.`},
		{"three operators of two keys", w + "group a any w1 w2\ngroup b any w3 w4\ngroup c any w5 w6\ngroup g 2 a b c\nquorum g\n", `
Warning: no log is named, so no checkpoint is accepted.
A checkpoint counts when it is cosigned by 2 of (any of (w1, w2), any of (w3, w4), any of (w5, w6)).
Whoever holds a log's key and 2 suitable witness keys can make anything verify.
Any 3 witness keys may fail and everything still verifies.
Warning: two quorums need not share a witness. A log can show two histories, each with a full quorum, without any witness lying.`},
	} {
		have := "\n" + strings.Join(must(ParsePolicy([]byte(tc.policy))).Explain(), "\n")
		if have != tc.want {
			t.Errorf("%s:%s\nwant:%s", tc.name, have, tc.want)
		}
	}
}
