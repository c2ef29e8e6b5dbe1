package client

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// takeover is a log with the witnesses of l, at an address of its own.
func (l *testLog) takeover(name string) (next *testLog, url string) {
	next = &testLog{t: l.t, signer: must(c2sp.GenerateSigner(name, c2sp.AlgEd25519)), witnesses: l.witnesses}
	srv := httptest.NewServer(next)
	l.t.Cleanup(srv.Close)
	return next, srv.URL
}

func (l *testLog) successorLeaf(origin, url string, vkeys ...string) []byte {
	return must((&entry.Entry{Kind: entry.KindSuccessor, Claim: entry.ClaimLog, ID: strings.Repeat("ab", 16), Time: "2026-11-21T11:00:00Z",
		Origin: origin, VKeys: vkeys, URL: url}).Marshal())
}

// end logs the successor leaf and publishes the last checkpoint.
func (l *testLog) end(origin, url string, vkeys ...string) c2sp.Checkpoint {
	l.add(l.successorLeaf(origin, url, vkeys...))
	l.publish(1, 2)
	return l.checkpoint(len(l.leaves))
}

func (l *testLog) publish(witnesses ...int) { l.setHead(l.note(len(l.leaves), t0, witnesses...)) }

func predecessorLeaf(c c2sp.Checkpoint) []byte {
	return must((&entry.Entry{Kind: entry.KindPredecessor, Claim: entry.ClaimLog, ID: strings.Repeat("cd", 16), Time: "2026-11-21T11:00:00Z",
		Origin: c.Origin, Size: entry.Uint(c.Size), Root: hex.EncodeToString(c.Root[:])}).Marshal())
}

// rotated is a log of 300 entries that ends, and its successor.
func rotated(t testing.TB) (a, b *testLog, ra *Reader, url string) {
	a = newTestLog(t, origin)
	a.fill(300, "log")
	b, url = a.takeover("next.example/log")
	c := a.end("next.example/log", url, b.signer.Key().String())
	b.add(predecessorLeaf(c))
	b.fill(20, "next")
	b.publish(2, 3)
	return a, b, a.reader(), url
}

// TestFollow: the hand-over is verified, remembered, used for proofs of both
// logs, and judged anew at each use.
func TestFollow(t *testing.T) {
	a, b, ra, url := rotated(t)
	s := newState(t)
	f, err := s.Follow(t.Context(), a.policy, ra)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Handovers) != 1 || f.Handovers[0].From.Size != 301 || f.Handovers[0].To != "next.example/log" || f.Reader.base != url {
		t.Fatalf("%+v", f)
	}
	if words := f.Handovers[0].String(); !strings.Contains(words, "has ended with 301 entries and goes on as next.example/log") {
		t.Error(words)
	}
	// Proofs of both logs, with the policy as the state has it; offline.
	again := must(OpenState(s.path))
	p := again.Policy(a.policy)
	for name, l := range map[string]*testLog{"old": a, "new": b} {
		l.fill(1, "unrelated")
		file := must(testEntry().Marshal())
		switch name {
		case "new":
			l.add(file)
			n := len(l.leaves)
			pr := l.proof(n-1, n, l.note(n, t0, 1, 3))
			if _, err := Verify(p, testFile(), pr.Bytes()); err != nil {
				t.Errorf("a file of the new log: %v", err)
			}
			var r *Refusal
			if _, err := Verify(a.policy, testFile(), pr.Bytes()); !errors.As(err, &r) || r.Code != CodeUnknownLog {
				t.Errorf("without the state: %v", err)
			}
			pr = l.proof(n-1, n, l.note(n, t0, 1))
			if _, err := Verify(p, testFile(), pr.Bytes()); !errors.As(err, &r) || r.Code != CodeQuorum {
				t.Errorf("one witness is enough for the new log: %v", err)
			}
		case "old":
			v, err := p.Verify(l.note(301, t0, 1, 2))
			if err != nil || v.Origin != origin {
				t.Errorf("the old log's last checkpoint: %v", err)
			}
			if _, err := p.Verify(l.note(302, t0, 1, 2)); !errors.Is(err, c2sp.ErrNoLogSignature) {
				t.Errorf("the old log after its end: %v", err)
			}
		}
	}
	// The old log's age does not matter any more; the new one's does.
	if f := again.Freshness(origin, t0.Add(time.Hour)); f.Kind != Fresh || f.Age != time.Hour {
		t.Errorf("%+v", f)
	}
	if f := again.Freshness(origin, t0.Add(8*24*time.Hour)); f.Kind != Stale {
		t.Errorf("%+v", f)
	}
	// It is not asked any more.
	a.intercept = func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "gone", 410); return true }
	b.fill(5, "more")
	b.setHead(b.note(len(b.leaves), t0.Add(6*24*time.Hour), 1, 2))
	if f, err = again.Follow(t.Context(), a.policy, ra); err != nil || len(f.Handovers) != 1 {
		t.Fatalf("without the old log: %v", err)
	}
	if f := again.Freshness(origin, t0.Add(6*24*time.Hour+time.Minute)); f.Kind != Fresh {
		t.Errorf("%+v", f)
	}
	// The policy's owner has the last word: with other witnesses nothing of it stands.
	other := newTestLog(t, origin)
	strangers := must(c2sp.ParsePolicy([]byte(strings.Replace(string(other.policy.Bytes()), other.signer.Key().String(), a.signer.Key().String(), 1))))
	if q := again.Policy(strangers); string(q.Bytes()) != string(strangers.Bytes()) {
		t.Errorf("under other witnesses:\n%s", q.Bytes())
	}
	// And a policy that names the new log needs no hand-over.
	named := must(c2sp.ParsePolicy([]byte("log " + b.signer.Key().String() + "\n" + string(a.policy.Bytes()))))
	if q := again.Policy(named); !q.Logs[1].Retired || q.Logs[0].Retired || len(q.Logs) != 2 {
		t.Errorf("the policy names both:\n%s", q.Bytes())
	}
}

// TestFollowChain: A -> B -> C is followed; a ninth log is not.
func TestFollowChain(t *testing.T) {
	a := newTestLog(t, origin)
	a.fill(3, "log")
	ra, l := a.reader(), a
	for i := range MaxHandovers + 1 {
		next, url := a.takeover(fmt.Sprintf("next%d.example", i))
		c := l.end(next.signer.Key().Name(), url, next.signer.Key().String())
		next.add(predecessorLeaf(c))
		next.publish(1, 2)
		s := newState(t)
		f, err := s.Follow(t.Context(), a.policy, ra)
		var cannot *CannotCheck
		switch {
		case i < MaxHandovers:
			if err != nil || len(f.Handovers) != i+1 || f.Reader.base != url {
				t.Fatalf("%d hand-overs: %v", i+1, err)
			}
			if f, err = s.Follow(t.Context(), a.policy, ra); err != nil || f.Reader.base != url {
				t.Fatalf("%d hand-overs, again: %v", i+1, err)
			}
		case !errors.As(err, &cannot) || cannot.Code != CodeNotFollowed:
			t.Fatalf("%d hand-overs: %v", i+1, err)
		}
		l = next
	}
}

// TestForgedSuccessorIsRefused: each with its class, and with evidence that
// convinces a third party where there is some; nothing is remembered.
func TestForgedSuccessorIsRefused(t *testing.T) {
	key := func(l *testLog) string { return l.signer.Key().String() }
	for _, tc := range []struct {
		name     string
		code     string
		evidence bool
		forge    func(a, b *testLog, url string)
	}{
		{"the leaf is not in the tree", CodeTilesMismatch, false, func(a, b *testLog, url string) {
			a.publish(1, 2)
			leaf := a.successorLeaf("next.example/log", url, key(b))
			a.intercept = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "entries") {
					var out []byte
					for _, l := range append(append([][]byte(nil), a.leaves[:len(a.leaves)-1]...), leaf) {
						out = append(out, byte(len(l)>>8), byte(len(l)))
						out = append(out, l...)
					}
					w.Write(out)
					return true
				}
				return false
			}
		}},
		{"the predecessor leaf names another size", CodeHandover, true, func(a, b *testLog, url string) {
			c := a.end("next.example/log", url, key(b))
			c.Size--
			b.add(predecessorLeaf(c))
			b.publish(1, 2)
		}},
		{"the predecessor leaf names another root", CodeHandover, true, func(a, b *testLog, url string) {
			c := a.end("next.example/log", url, key(b))
			c.Root[0] ^= 1
			b.add(predecessorLeaf(c))
			b.publish(1, 2)
		}},
		{"the predecessor leaf names another log", CodeHandover, true, func(a, b *testLog, url string) {
			c := a.end("next.example/log", url, key(b))
			c.Origin = "third.example"
			b.add(predecessorLeaf(c))
			b.publish(1, 2)
		}},
		{"the first entry is another one", CodeHandover, true, func(a, b *testLog, url string) {
			c := a.end("next.example/log", url, key(b))
			b.add(must(testEntry().Marshal()), predecessorLeaf(c))
			b.publish(1, 2)
		}},
		{"the first entry is not the one that is signed", CodeTilesMismatch, false, func(a, b *testLog, url string) {
			c := a.end("next.example/log", url, key(b))
			b.add(must(testEntry().Marshal()))
			b.publish(1, 2)
			b.intercept = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "entries") {
					l := predecessorLeaf(c)
					w.Write(append([]byte{byte(len(l) >> 8), byte(len(l))}, l...))
					return true
				}
				return false
			}
		}},
		{"the new log has no quorum", CodeHeadQuorum, false, func(a, b *testLog, url string) {
			b.add(predecessorLeaf(a.end("next.example/log", url, key(b))))
			b.publish(1)
		}},
		{"the new log is signed by another key", CodeHeadSignature, false, func(a, b *testLog, url string) {
			c := a.end("next.example/log", url, must(c2sp.GenerateSigner("next.example/log", c2sp.AlgEd25519)).Key().String())
			b.add(predecessorLeaf(c))
			b.publish(1, 2)
		}},
		{"the address serves another log", CodeOtherLog, false, func(a, b *testLog, url string) {
			a.end("third.example/log", url, must(c2sp.GenerateSigner("third.example/log", c2sp.AlgEd25519)).Key().String())
			b.fill(1, "x")
			b.publish(1, 2)
		}},
		{"the new log is empty", CodeNotFollowed, false, func(a, b *testLog, url string) {
			a.end("next.example/log", url, key(b))
			b.publish(1, 2)
		}},
		{"the new log does not answer", CodeUnreachable, false, func(a, b *testLog, url string) {
			a.end("next.example/log", url, key(b))
			b.intercept = func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, "", 503); return true }
		}},
		{"it names itself", CodeHandover, true, func(a, _ *testLog, url string) {
			a.end(origin, url, key(a))
		}},
		{"its key belongs to a witness", CodeHandover, false, func(a, b *testLog, url string) {
			a.end("next.example/log", url, relabel(a.witnesses[0].Key(), "next.example/log"))
		}},
		{"its key is the old log's own", CodeHandover, false, func(a, b *testLog, url string) {
			a.end("next.example/log", url, relabel(a.signer.Key(), "next.example/log"))
		}},
		{"a circle: A to B to A", CodeHandover, false, func(a, b *testLog, url string) {
			b.add(predecessorLeaf(a.end("next.example/log", url, key(b))))
			b.end(origin, "http://127.0.0.1:1", key(a))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newTestLog(t, origin)
			a.fill(7, "log")
			b, url := a.takeover("next.example/log")
			tc.forge(a, b, url)
			s := newState(t)
			_, err := s.Follow(t.Context(), a.policy, a.reader())
			var r *Refusal
			if tc.code[2] == '3' {
				wantCannot(t, err, tc.code)
			} else {
				r = wantRefusal(t, err, tc.code)
			}
			if r != nil && r.Evidence != "" != tc.evidence || r == nil && tc.evidence {
				t.Errorf("evidence: %+v", r)
			}
			if tc.evidence {
				raw := must(os.ReadFile(r.Evidence))
				if err := VerifyEvidence(raw, a.policy); err != nil {
					t.Errorf("the evidence proves nothing: %v", err)
				}
				for i := range raw {
					// Without whole lines of witnesses it is the logs that are accused, still.
					if (i == 0 || raw[i-1] != '\n') && VerifyEvidence(raw[:i], a.policy) == nil {
						t.Fatalf("cut off after %d bytes it still proves something", i)
					}
				}
			}
			want := 0
			if strings.HasPrefix(tc.name, "a circle") {
				want = 1 // A to B stands
			}
			if again := must(OpenState(s.path)); len(again.handovers) != want {
				t.Errorf("%d hand-overs are remembered", len(again.handovers))
			}
		})
	}
}

// proven is proof, as text.
func (l *testLog) proven(index, size int, note []byte) []byte {
	p := l.proof(index, size, note)
	return p.Bytes()
}

// relabel is a key under another name, as an Ed25519 log key.
func relabel(k *c2sp.Key, name string) string {
	raw := append([]byte{1}, k.Raw()...)
	id := sha256.Sum256(append([]byte(name+"\n"), raw...))
	return fmt.Sprintf("%s+%x+%s", name, id[:4], base64.StdEncoding.EncodeToString(raw))
}

// TestSuccessorThatIsNotLast: what a hand-over proves is the last entry, or it
// is evidence.
func TestSuccessorThatIsNotLast(t *testing.T) {
	a, b, _, _ := rotated(t)
	first := b.proven(0, len(b.leaves), b.head)
	honest := &Handover{a.proven(300, 301, a.head), first}
	if _, _, err := honest.Verify(a.policy); err != nil {
		t.Fatal(err)
	}
	a.fill(1, "after the end")
	h := &Handover{a.proven(300, 302, a.note(302, t0, 1, 2)), first}
	_, _, err := h.Verify(a.policy)
	r := wantRefusal(t, err, CodeAfterEnd)
	if r.proof == nil {
		t.Fatalf("%v", err)
	}
	m, err := r.proof.Verify(a.policy)
	if err != nil || m.Code != CodeAfterEnd || m.First.Size != 302 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := AfterEnd(honest.Last).Verify(a.policy); err == nil {
		t.Error("an honest end is evidence")
	}
	if _, err := (&Evidence{Claim: c2sp.ClaimHandover, First: honest.Last, Second: honest.First}).Verify(a.policy); err == nil {
		t.Error("an honest hand-over is evidence")
	}
	for name, h := range map[string]*Handover{
		"another entry as the last":   {a.proven(299, 300, a.note(300, t0, 1, 2)), first},
		"another entry as the first":  {honest.Last, b.proven(1, len(b.leaves), b.head)},
		"the old log's last as first": {honest.Last, honest.Last},
		"no quorum":                   {a.proven(300, 301, a.note(301, t0, 1)), first},
		"garbage":                     {[]byte("x"), first},
	} {
		if _, _, err := h.Verify(a.policy); err == nil {
			t.Errorf("%s: followed", name)
		}
	}
}

// TestTwoSuccessors: what was followed stays; the other one is refused.
func TestTwoSuccessors(t *testing.T) {
	a, _, ra, url := rotated(t)
	s := newState(t)
	must(s.Follow(t.Context(), a.policy, ra))

	// The log shows another end: in a fork, with a quorum of its own.
	f := a.fork(300)
	c, curl := f.takeover("thief.example")
	c.add(predecessorLeaf(f.end("thief.example", curl, c.signer.Key().String())))
	c.publish(1, 2)
	last := f.proven(300, 301, f.head)
	h, _, _, err := Take(t.Context(), a.policy, last, func(url string) (LogReader, error) { return NewReader(url, nil) })
	if err != nil {
		t.Fatal(err) // key and quorum: by itself it is all right
	}
	var r *Refusal
	if err := s.hand(t.Context(), a.policy, remembered{*h, ra.base}); !errors.As(err, &r) || r.Code != CodeHandover || !strings.Contains(r.Detail, "ended twice") {
		t.Errorf("%v", err)
	}
	if got, err := s.Follow(t.Context(), a.policy, ra); err != nil || got.Reader.base != url {
		t.Errorf("%v", err)
	}
	// Its checkpoints are refused: a fork at the same size, with evidence.
	if err := s.Update(t.Context(), s.Policy(a.policy), f.head, ra); !errors.As(err, &r) || r.Code != CodeForkSameSize || r.Evidence == "" {
		t.Errorf("%v", err)
	}
	// And after its end by the bound, whoever cosigned.
	a.fill(3, "after the end")
	if err := s.Update(t.Context(), s.Policy(a.policy), a.note(304, t0, 1, 2, 3), ra); !errors.As(err, &r) || r.Code != CodeHeadSignature || !strings.Contains(r.Detail, "retired") {
		t.Errorf("%v", err)
	}
}

// TestLogGoesOnAfterItsEnd, at an address where it was not read before.
func TestLogGoesOnAfterItsEnd(t *testing.T) {
	a, _, ra, _ := rotated(t)
	s := newState(t)
	must(s.Follow(t.Context(), a.policy, ra))
	if _, err := s.Follow(t.Context(), a.policy, a.reader()); err != nil {
		t.Errorf("a mirror of the log that has ended: %v", err)
	}
	a.fill(3, "after the end")
	a.publish(1, 2, 3)
	_, err := s.Follow(t.Context(), a.policy, a.reader())
	wantRefusal(t, err, CodeAfterEnd)
}

// TestNoWitnessNoFollowing: under quorum none the key alone would redirect.
func TestNoWitnessNoFollowing(t *testing.T) {
	a, _, ra, _ := rotated(t)
	p := must(c2sp.ParsePolicy([]byte("log " + a.signer.Key().String() + "\nquorum none\n")))
	var c *CannotCheck
	if _, err := newState(t).Follow(t.Context(), p, ra); !errors.As(err, &c) || c.Code != CodeNotFollowed {
		t.Errorf("%v", err)
	}
}

// TestStolenKeyRedirectsNobody: the thief logs a successor leaf, and honest
// witnesses cosign it; the log it names has no witness.
func TestStolenKeyRedirectsNobody(t *testing.T) {
	a := newTestLog(t, origin)
	a.fill(7, "log")
	a.publish(1, 2, 3)
	s, ra := newState(t), a.reader()
	must(s.Follow(t.Context(), a.policy, ra))
	thief, url := a.takeover("thief.example")
	mine := must(c2sp.GenerateSigner("witness.example/w1", c2sp.AlgEd25519Cosig))
	thief.witnesses = []*c2sp.Signer{mine, mine, mine} // of its own, with a known name
	thief.add(predecessorLeaf(a.end("thief.example", url, thief.signer.Key().String())))
	thief.publish(1, 2, 3)
	var c *CannotCheck
	if _, err := s.Follow(t.Context(), a.policy, ra); !errors.As(err, &c) || c.Code != CodeHeadQuorum {
		t.Errorf("%v", err)
	}
	if p := s.Policy(a.policy); string(p.Bytes()) != string(a.policy.Bytes()) {
		t.Errorf("the thief's log is believed:\n%s", p.Bytes())
	}
}

// TestSuccessorOverPlainHTTP: not from https.
func TestSuccessorOverPlainHTTP(t *testing.T) {
	r := must(NewReader("https://log.example", nil))
	if _, err := r.Successor("http://next.example"); err == nil {
		t.Error("from https to http")
	}
	if _, err := r.Successor("https://next.example"); err != nil {
		t.Error(err)
	}
	secret := must(NewReader("https://log.example", &http.Client{Transport: http.NewFileTransport(http.Dir("."))}))
	if next := must(secret.Successor("https://next.example")); next.hc.Transport == secret.hc.Transport {
		t.Error("a transport that may add a token goes to the next log")
	}
}

// TestSuccessorStaysPublic: who has the key of a log that is read in public
// cannot have its readers ask machines that only they can reach.
func TestSuccessorStaysPublic(t *testing.T) {
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer srv.Close()
	internal := strings.Replace(srv.URL, "127.0.0.1", "localhost", 1)
	var c *CannotCheck
	for _, before := range []string{"http://93.184.215.14", "http://no-such-name.invalid", "http://[2a04:4e42::223]:8080/log"} {
		for _, url := range []string{srv.URL, internal} {
			next := must(must(NewReader(before, nil)).Successor(url))
			if _, err := next.Checkpoint(t.Context()); !errors.As(err, &c) || c.Code != CodeUnreachable || !errors.Is(err, errNotPublic) {
				t.Errorf("from %s to %s: %v", before, url, err)
			}
			// Nor one hop further, although that log is a private one.
			next = must(next.Successor(url))
			if _, err := next.Checkpoint(t.Context()); !errors.Is(err, errNotPublic) {
				t.Errorf("from %s to %s in two steps: %v", before, url, err)
			}
		}
	}
	// A program's own ways to connect are bounded too.
	own := &http.Transport{}
	next := must(must(NewReader("http://93.184.215.14", &http.Client{Transport: own})).Successor(srv.URL))
	if _, err := next.Checkpoint(t.Context()); !errors.Is(err, errNotPublic) || own.DialContext != nil {
		t.Errorf("with a transport of its own: %v", err)
	}
	if asked > 0 {
		t.Errorf("asked %d times", asked)
	}
	// A private log may be followed to a private one.
	for _, before := range []string{"http://127.0.0.1:1", "http://localhost", "http://10.0.0.1/log"} {
		next := must(must(NewReader(before, nil)).Successor(srv.URL))
		if _, err := next.Checkpoint(t.Context()); err != nil {
			t.Errorf("from %s: %v", before, err)
		}
	}
	// What an HTTP proxy may reach is the proxy's to say.
	through := &http.Transport{Proxy: http.ProxyURL(must(url.Parse(srv.URL)))}
	next = must(must(NewReader("http://93.184.215.14", &http.Client{Transport: through})).Successor("http://next.example"))
	if _, err := next.Checkpoint(t.Context()); err != nil {
		t.Errorf("through a proxy: %v", err)
	}
}

// TestHandoverStateIsChecked: a state whose hand-over was changed is damaged or
// worth nothing.
func TestHandoverStateIsChecked(t *testing.T) {
	a, _, ra, _ := rotated(t)
	s := newState(t)
	must(s.Follow(t.Context(), a.policy, ra))
	m := must(readState(s.path))
	m.handovers[0].Last = []byte(strings.Replace(string(m.handovers[0].Last), "index 300", "index 299", 1))
	if err := writeState(s.path, m); err != nil {
		t.Fatal(err)
	}
	if p := must(OpenState(s.path)).Policy(a.policy); string(p.Bytes()) != string(a.policy.Bytes()) {
		t.Error("a proof that proves nothing is believed")
	}
	m.handovers[0].Last = []byte("garbage")
	if err := writeState(s.path, m); err != nil {
		t.Fatal(err)
	}
	var c *CannotCheck
	if _, err := OpenState(s.path); !errors.As(err, &c) || c.Code != CodeStateUnreadable {
		t.Errorf("%v", err)
	}
}
