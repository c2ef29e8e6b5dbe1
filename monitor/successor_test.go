package monitor

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/portbook/portbook/monitor/internal/fakelog"
)

const rotationSubs = `
operator:
  notify:
    - webhook: OPS
      secret: SECRET
subscriptions:
  - name: mine
    project: {registry: pypi.test, ecosystem: pypi, project: mine}
    notify:
      - webhook: HOOK
        secret: SECRET
        only: [tampering, unexpected]
`

// next starts a log with the witnesses of w's.
func (w *world) next(l *fakelog.Log, origin string) (*fakelog.Log, *httptest.Server) {
	n := l.Next(origin)
	srv := httptest.NewServer(n)
	w.t.Cleanup(srv.Close)
	return n, srv
}

// kinds are the kinds of the alerts that h got, and empties it.
func (w *world) kinds(h *hook) (out []string, all []alert.Alert) {
	for _, p := range h.all(w.t) {
		for _, a := range p.Data.Alerts {
			out = append(out, string(a.Severity)+"/"+a.Kind)
			all = append(all, a)
		}
	}
	h.clear()
	return out, all
}

// TestMonitorFollowsTheLogThatTakesOver without an operator, told as
// infrastructure, and goes on watching: also after a restart, with the old log
// gone, and against the old log's files.
func TestMonitorFollowsTheLogThatTakesOver(t *testing.T) {
	w := newWorld(t, rotationSubs)
	w.log.AddEntry(fakelog.Upload("mine", "1.0", "mine-1.0.tar.gz", "", "one"))
	w.round()
	w.kinds(w.hook)
	next, srv := w.next(w.log, "log.test/two")
	w.clock.Add(time.Hour) // as long as the monitor has run
	next.Begin(w.log.End("log.test/two", srv.URL, next.VKey()))
	w.round()
	w.round()
	got, all := w.kinds(w.ops)
	if strings.Join(got, " ") != "infrastructure/successor infrastructure/rotated" {
		t.Fatalf("the operator got %q", got)
	}
	if !strings.Contains(all[1].Title, "log.test/two") || all[1].Log != testOrigin {
		t.Errorf("%+v", all[1])
	}
	if got, _ := w.kinds(w.hook); len(got) > 0 {
		t.Errorf("who wants no infrastructure got %q", got)
	}
	if w.m.Origin() != "log.test/two" || w.m.LogURL() != srv.URL {
		t.Errorf("watching %s at %s", w.m.Origin(), w.m.LogURL())
	}
	w.log.Down(true)
	w.reopen()
	next.AddEntry(fakelog.Upload("mine", "2.0", "mine-2.0.tar.gz", "", "two"))
	w.round()
	a := w.want(w.hook, alert.Unexpected, "upload")
	if a.Log != "log.test/two" || a.Proof == "" {
		t.Errorf("%+v", a)
	}
	if _, err := client.VerifyProof(w.m.Policy(), []byte(a.Proof)); err != nil {
		t.Errorf("its proof: %v", err)
	}
	// A name that the old log pinned, with other bytes.
	next.AddEntry(fakelog.Upload("mine", "1.0", "mine-1.0.tar.gz", "", "something else"))
	w.round()
	w.want(w.hook, alert.Tampering, "second-digest")
	w.kinds(w.ops)
	// The same bytes again are an upload like any other.
	next.AddEntry(fakelog.Upload("mine", "1.1", "mine-1.1.tar.gz", "", "three"))
	w.round()
	w.want(w.hook, alert.Unexpected, "upload")
	// Once more, to a third.
	third, srv3 := w.next(next, "log.test/three")
	third.Begin(next.End("log.test/three", srv3.URL, third.VKey()))
	w.round()
	w.round()
	if got, _ := w.kinds(w.ops); strings.Join(got, " ") != "infrastructure/successor infrastructure/rotated" || w.m.Origin() != "log.test/three" {
		t.Errorf("the operator got %q, watching %s", got, w.m.Origin())
	}
	w.reopen()
	if w.m.Origin() != "log.test/three" {
		t.Errorf("after a restart it watches %s", w.m.Origin())
	}
}

// TestMonitorRefusesForgedSuccessor: none is followed; what contradicts itself
// is tampering, with evidence where there is some; what cannot be checked is
// trouble, told as an outage.
func TestMonitorRefusesForgedSuccessor(t *testing.T) {
	const two = "log.test/two"
	for _, tc := range []struct {
		name     string
		kind     string // of the alert; "" = none but that the log says it ends
		evidence bool
		forge    func(w *world, next *fakelog.Log, url string)
	}{
		{"another size", "bad-successor", true, func(w *world, next *fakelog.Log, url string) {
			c := w.log.End(two, url, next.VKey())
			c.Size++
			next.Begin(c)
		}},
		{"another root", "bad-successor", true, func(w *world, next *fakelog.Log, url string) {
			c := w.log.End(two, url, next.VKey())
			c.Root[0]++
			next.Begin(c)
		}},
		{"no predecessor leaf", "bad-successor", true, func(w *world, next *fakelog.Log, url string) {
			w.log.End(two, url, next.VKey())
			next.AddEntry(fakelog.Upload("mine", "2.0", "mine-2.0.tar.gz", "", "x"))
		}},
		{"the first entry is not the signed one", "bad-successor", false, func(w *world, next *fakelog.Log, url string) {
			c := w.log.End(two, url, next.VKey())
			next.AddEntry(fakelog.Upload("mine", "2.0", "mine-2.0.tar.gz", "", "x"))
			lie := w.log.Next("liar.test")
			lie.Begin(c)
			next.WrongLeaf(0, lie.Leaf(0))
		}},
		{"it names itself", "bad-successor", true, func(w *world, _ *fakelog.Log, url string) {
			w.log.End(testOrigin, url, w.log.VKey())
		}},
		{"signed by another key", "bad-successor", false, func(w *world, next *fakelog.Log, url string) {
			other := must(c2sp.GenerateSigner(two, c2sp.AlgEd25519))
			next.Begin(w.log.End(two, url, other.Key().String()))
		}},
		{"no quorum", "", false, func(w *world, next *fakelog.Log, url string) {
			next.Blind(2)
			next.Begin(w.log.End(two, url, next.VKey()))
		}},
		{"does not answer", "", false, func(w *world, next *fakelog.Log, url string) {
			w.log.End(two, url, next.VKey())
			next.Down(true)
		}},
		{"not the last entry", "after-end", true, func(w *world, next *fakelog.Log, url string) {
			next.Begin(w.log.End(two, url, next.VKey()))
			w.log.AddEntry(fakelog.Upload("other", "2.0", "other-2.0.tar.gz", "", "x"))
		}},
		{"two successors", "after-end", true, func(w *world, next *fakelog.Log, url string) {
			c := w.log.End(two, url, next.VKey())
			next.Begin(c)
			w.log.End("log.test/three", url, w.log.Next("log.test/three").VKey())
		}},
		{"a circle", "bad-successor", false, func(w *world, next *fakelog.Log, url string) {
			next.Begin(w.log.End(two, url, next.VKey()))
			next.End(testOrigin, w.srv.URL, w.log.VKey())
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, rotationSubs)
			w.log.AddEntry(fakelog.Upload("other", "1.0", "other-1.0.tar.gz", "", "one"))
			w.round()
			w.kinds(w.ops)
			next, srv := w.next(w.log, two)
			tc.forge(w, next, srv.URL)
			for range 3 {
				w.round()
			}
			var told []alert.Alert
			_, all := w.kinds(w.ops)
			for _, a := range all {
				if a.Kind != "successor" && a.Kind != "rotated" {
					told = append(told, a)
				}
			}
			want := testOrigin
			if tc.name == "a circle" {
				want = two
			}
			if w.m.Origin() != want {
				t.Fatalf("it follows, to %s", w.m.Origin())
			}
			if tc.kind == "" {
				if len(told) > 0 {
					t.Fatalf("told %+v", told)
				}
				// An outage, if it stays like this; never worded like an attack.
				w.clock.Add(16 * time.Minute)
				w.round()
				a := w.want(w.ops, alert.Infrastructure, "silent")
				if !strings.Contains(a.What, "has ended and names") || strings.Contains(a.What, "tamper") {
					t.Error(a.What)
				}
				return
			}
			if len(told) != 1 || told[0].Severity != alert.Tampering || told[0].Kind != tc.kind || (told[0].Evidence != "") != tc.evidence {
				t.Fatalf("told %+v", told)
			}
			if w.m.Standing() == "" {
				t.Error("nothing stands")
			}
			files, err := filepath.Glob(filepath.Join(w.dir, "evidence", "*"))
			if err != nil || (len(files) == 1) != tc.evidence {
				t.Fatalf("evidence files: %v, %v", files, err)
			}
			if tc.evidence {
				raw, err := os.ReadFile(files[0])
				if err != nil || string(raw) != told[0].Evidence {
					t.Error("the evidence in the alert and in the file differ")
				}
				if err := client.VerifyEvidence(raw, w.log.Policy); err != nil {
					t.Errorf("the evidence proves nothing: %v", err)
				}
			}
		})
	}
}

// TestMonitorNeedsAQuorumToFollow: with quorum none the log's key alone would
// lead it anywhere.
func TestMonitorNeedsAQuorumToFollow(t *testing.T) {
	w := newWorld(t, rotationSubs, func(w *world) {
		w.log = fakelog.New(testOrigin, 0, 0, w.clock.Now)
		w.srv.Config.Handler = w.log
		w.cfg.Policy = w.log.Policy
	})
	next, srv := w.next(w.log, "log.test/two")
	next.Begin(w.log.End("log.test/two", srv.URL, next.VKey()))
	w.round()
	w.round()
	if w.m.Origin() != testOrigin {
		t.Errorf("it follows, to %s", w.m.Origin())
	}
}

// TestHandoverNeedsThePolicyAtEachStart: the owner of the policy has the last word.
func TestHandoverNeedsThePolicyAtEachStart(t *testing.T) {
	w := newWorld(t, rotationSubs)
	w.log.AddEntry(&entry.Entry{Kind: entry.KindCanary, Claim: entry.ClaimLog, Time: "2026-11-21T05:00:00Z", ID: strings.Repeat("1", 32)})
	next, srv := w.next(w.log, "log.test/two")
	next.Begin(w.log.End("log.test/two", srv.URL, next.VKey()))
	w.round()
	w.round()
	if w.m.Origin() != "log.test/two" {
		t.Fatalf("it watches %s", w.m.Origin())
	}
	mine := w.cfg.Policy
	w.cfg.Policy = must(c2sp.ParsePolicy([]byte(strings.Replace(string(mine.Bytes()), " 2 w1 w2 w3", " 3 w1 w2 w3", 1))))
	next.Blind(1)
	w.reopen() // the hand-over was cosigned by all three: it still stands
	if w.m.Origin() != "log.test/two" {
		t.Errorf("it watches %s", w.m.Origin())
	}
	stranger := fakelog.New(testOrigin, 3, 2, w.clock.Now)
	w.cfg.Policy = must(c2sp.ParsePolicy([]byte(strings.Replace(string(stranger.Policy.Bytes()), stranger.VKey(), w.log.VKey(), 1))))
	w.reopen()
	if w.m.Origin() != testOrigin {
		t.Errorf("under other witnesses it watches %s", w.m.Origin())
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
