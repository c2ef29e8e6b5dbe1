package proxy_test

// A log that ends while the proxy serves it, and the one that takes over.

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/registry/proxy"
)

// rotating is a stand whose log has one file, and a log that may take over.
func rotating(t *testing.T) (s *stand, next *testLog, clock *time.Time, statePath string) {
	now := day0.Add(time.Hour)
	clock, statePath = &now, filepath.Join(t.TempDir(), "state")
	s = newStand(t, func(s *stand, c *proxy.Config) {
		state, err := client.OpenState(statePath)
		if err != nil {
			t.Fatal(err)
		}
		c.State, c.Log, c.Now = state, s.log.srv.URL, func() time.Time { return *clock }
	})
	s.good("old-1.0.tar.gz", []byte("old"))
	s.proxy.Refresh(ctx)
	return s, s.log.takeover("log.test/two"), clock, statePath
}

// put serves a file that l has logged, with its proof beside it or not.
func (s *stand) put(l *testLog, file string, content []byte, beside bool) {
	s.t.Helper()
	at := l.add(upload(project(file), file, content))
	var proof []byte
	if beside {
		proof = l.prove(at, 2)
	}
	s.index.put(file, content, proof)
}

func (s *stand) file(name string) answer {
	s.t.Helper()
	_, urls := s.page(project(name))
	return get(s.t, urls[0])
}

// TestProxyFollowsTheLogThatTakesOver: files of both logs pass, with a proof
// beside them and without; also after a restart, without the old log; and what
// the old key signs after its end does not.
func TestProxyFollowsTheLogThatTakesOver(t *testing.T) {
	s, next, _, statePath := rotating(t)
	s.put(s.log, "unbeside-1.0.tar.gz", []byte("unbeside"), false)
	s.log.end(next)
	s.proxy.Refresh(ctx)
	s.put(next, "new-1.0.tar.gz", []byte("new"), true)
	s.put(next, "asked-1.0.tar.gz", []byte("asked"), false)
	s.file("new-1.0.tar.gz").passed(t, "of the new log", []byte("new"))
	s.file("asked-1.0.tar.gz").passed(t, "of the new log, which is asked", []byte("asked"))
	s.file("old-1.0.tar.gz").passed(t, "of the old log", []byte("old"))
	s.file("unbeside-1.0.tar.gz").passed(t, "of the old log, which is asked", []byte("unbeside"))
	if next.proofsAsked() == 0 {
		t.Error("the new log was not asked for a proof")
	}
	s.put(s.log, "late-1.0.tar.gz", []byte("late"), true)
	s.file("late-1.0.tar.gz").refused(t, "logged after the end", client.CodeNoLogSignature)
	// A swapped file is refused as ever.
	s.index.files.set("/f/new-1.0.tar.gz", []byte("wen"))
	s.file("new-1.0.tar.gz").refused(t, "swapped", client.CodeDigest)

	s.log.answer(410)
	again := newStand(t, func(r *stand, c *proxy.Config) {
		state, err := client.OpenState(statePath)
		if err != nil {
			t.Fatal(err)
		}
		r.index = s.index
		c.Index, c.Policy, c.State, c.Log = s.index.srv.URL+"/simple/", s.log.policy, state, s.log.srv.URL
	})
	again.proxy.Refresh(ctx)
	if w := again.proxy.Report().Warnings; len(w) > 0 {
		t.Errorf("after a restart: %q", w)
	}
	s.put(next, "later-1.0.tar.gz", []byte("later"), true)
	s.put(next, "sought-1.0.tar.gz", []byte("sought"), false)
	again.file("later-1.0.tar.gz").passed(t, "after a restart", []byte("later"))
	again.file("sought-1.0.tar.gz").passed(t, "after a restart, asked for", []byte("sought"))
	again.file("old-1.0.tar.gz").passed(t, "of the old log after a restart", []byte("old"))
}

// TestProxyFollowsForAProof: a proof of a log that the policy does not name has
// the proxy look whether its own log has ended, now and not at the next round,
// and not at each such proof.
func TestProxyFollowsForAProof(t *testing.T) {
	s, next, clock, _ := rotating(t)
	s.put(next, "early-1.0.tar.gz", []byte("early"), true) // before either says anything
	s.file("early-1.0.tar.gz").refused(t, "of a log that nobody named", client.CodeUnknownLog)

	next.forget()
	s.log.end(next)
	s.put(next, "new-1.0.tar.gz", []byte("new"), true)
	s.file("new-1.0.tar.gz").refused(t, "at once after it has looked", client.CodeUnknownLog)
	*clock = clock.Add(time.Minute)
	s.file("new-1.0.tar.gz").passed(t, "a minute later", []byte("new"))
}

// TestProxyFollowsNoForgery: without the quorum of the policy, and where the logs
// contradict each other, the old log's files pass and the new one's do not.
func TestProxyFollowsNoForgery(t *testing.T) {
	for name, tc := range map[string]struct {
		forge func(s *stand, next *testLog)
		warn  string
	}{
		"no quorum": {func(s *stand, next *testLog) {
			next.witnesses = newLog(t).witnesses
			s.log.end(next)
		}, "too few witnesses"},
		"it begins with another entry": {func(s *stand, next *testLog) {
			next.add(upload("x", "x-1.0.tar.gz", []byte("x")))
			s.log.end(next)
		}, "its first entry does not say so"},
	} {
		s, next, _, _ := rotating(t)
		tc.forge(s, next)
		s.put(next, "new-1.0.tar.gz", []byte("new"), true)
		s.proxy.Refresh(ctx)
		if w := s.proxy.Report().Warnings; len(w) == 0 || !strings.Contains(w[0], tc.warn) {
			t.Errorf("%s: %q", name, w)
		}
		s.file("new-1.0.tar.gz").refused(t, name, client.CodeUnknownLog)
		s.file("old-1.0.tar.gz").passed(t, name, []byte("old"))
	}
}
