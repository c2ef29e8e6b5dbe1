package logserver

// FAULTS rules 1, 3 and 6, suite c1: witnesses that fail and witnesses that lie.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness"
)

// answer lets the real witness answer and changes what it said.
func (w *rigWitness) answer(change func(status int, body string) (int, string)) {
	w.pretend(func(rw http.ResponseWriter, req *http.Request) {
		rec := httptest.NewRecorder()
		w.real.ServeHTTP(rec, req)
		status, body := rec.Code, rec.Body.String()
		if req.Method == http.MethodPost {
			status, body = change(status, body)
		}
		rw.WriteHeader(status)
		io.WriteString(rw, body)
	})
}

// badWitnesses are all the ways of c1 in which a witness gives no vote.
func badWitnesses(t testing.TB, r *rig) map[string]func(w *rigWitness) {
	other, err := c2sp.GenerateSigner("witness.example/w1", c2sp.AlgEd25519Cosig) // the name of w1, another key
	if err != nil {
		t.Fatal(err)
	}
	forever := func(first string, every time.Duration, chunk []byte) func(w *rigWitness) {
		return func(w *rigWitness) {
			w.pretend(func(rw http.ResponseWriter, req *http.Request) {
				io.Copy(io.Discard, req.Body)
				io.WriteString(rw, first)
				for {
					if _, err := rw.Write(chunk); err != nil || req.Context().Err() != nil {
						return
					}
					if every > 0 {
						rw.(http.Flusher).Flush()
						select {
						case <-time.After(every):
						case <-req.Context().Done():
							return
						}
					}
				}
			})
		}
	}
	status := func(code int, header ...string) func(w *rigWitness) {
		return func(w *rigWitness) {
			w.pretend(func(rw http.ResponseWriter, _ *http.Request) {
				for i := 0; i+1 < len(header); i += 2 {
					rw.Header().Set(header[i], header[i+1])
				}
				rw.WriteHeader(code)
			})
		}
	}
	says := func(f func(status int, body string) (int, string)) func(w *rigWitness) {
		return func(w *rigWitness) { w.answer(f) }
	}
	line := func(body string) c2sp.Signature {
		sigs, err := c2sp.ParseSignatureLines([]byte(body))
		if err != nil || len(sigs) == 0 {
			return c2sp.Signature{Name: "x", Sig: make([]byte, 72)}
		}
		return sigs[0]
	}
	var stolen atomic.Pointer[string]
	return map[string]func(w *rigWitness){
		"down": func(w *rigWitness) { w.down() },
		"silent": func(w *rigWitness) {
			w.pretend(func(_ http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body) // else the server never sees the caller go
				<-r.Context().Done()
			})
		},
		"1 byte/s":                forever("", time.Second, []byte("x")),
		"endless body":            forever("", 0, bytes.Repeat([]byte("x"), 32<<10)),
		"endless signature lines": forever("", 0, bytes.Repeat([]byte("— x "+strings.Repeat("A", 96)+"\n"), 256)),
		"500":                     status(500),
		"404":                     status(404),
		"redirect":                status(307, "Location", r.witnesses[1].server.URL+"/add-checkpoint"),
		"endless header":          status(200, "X", strings.Repeat("x", 1<<20)),
		"nothing":                 says(func(int, string) (int, string) { return 200, "" }),
		"HTML":                    says(func(int, string) (int, string) { return 200, "<html>ok</html>" }),
		"foreign signature": says(func(_ int, body string) (int, string) {
			cp := c2sp.Checkpoint{Origin: r.signer.Key().Name(), Size: 1, Root: [32]byte{1}}
			sig, _ := other.Cosign(cp, time.Now())
			return 200, sig.Line()
		}),
		"relabelled": says(func(_ int, body string) (int, string) { // w2's signature under w1's name
			s := line(body)
			s.Name = "witness.example/w2"
			return 200, s.Line()
		}),
		"own name, changed signature": says(func(_ int, body string) (int, string) {
			s := line(body)
			s.Sig = bytes.Clone(s.Sig)
			s.Sig[20] ^= 1
			return 200, s.Line()
		}),
		"stale": says(func(status int, body string) (int, string) { // the first cosignature, again and again
			if status != 200 {
				return status, body
			}
			stolen.CompareAndSwap(nil, &body)
			if s := *stolen.Load(); s != body {
				return 200, s
			}
			return 503, ""
		}),
		"conflict with garbage":      says(func(int, string) (int, string) { return 409, "many\n" }),
		"conflict with 007":          says(func(int, string) (int, string) { return 409, "007\n" }),
		"conflict, larger, unproven": says(func(int, string) (int, string) { return 409, "1000000\n" }),
		"conflict, smaller":          says(func(int, string) (int, string) { return 409, "0\n" }),
		"conflict, negative":         says(func(int, string) (int, string) { return 409, "-1\n" }),
	}
}

// TestOneBadWitnessCostsItsVoteOnly: quorum 2 of 3, one of them bad.
func TestOneBadWitnessCostsItsVoteOnly(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.ready()
	r.must(l, nth(0))
	n := 1
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, bad := range badWitnesses(t, r) {
		t.Run(name, func(t *testing.T) {
			bad(r.witnesses[0])
			for range 2 {
				start := time.Now()
				r.must(l, nth(n))
				n++
				if d := time.Since(start); d > 2*time.Second {
					t.Errorf("took %v", d)
				}
			}
		})
	}
	var after runtime.MemStats
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
	if s := l.Status(); !s.Writable {
		t.Errorf("after all that: %v", s.Reason)
	}
	r.witnesses[0].pretend(nil)
	r.must(l, nth(n))
	waitFor(t, "the first witness's vote again", func() bool {
		n++
		ack := r.must(l, nth(n))
		return strings.Contains(string(ack.Proof.Checkpoint), "witness.example/w1 ")
	})
}

// TestNoQuorumNoAcknowledgement: two of three bad in every way; nothing is
// acknowledged or published, the retry gets the first index, and the log
// catches up when the witnesses are back.
func TestNoQuorumNoAcknowledgement(t *testing.T) {
	for name := range badWitnesses(t, newRig(t, 3, 2)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 3, 2)
			l := r.ready(func(c *Config) { c.RoundLimit, c.MaxWait = 300*time.Millisecond, 700*time.Millisecond })
			r.must(l, nth(0))
			badWitnesses(t, r)[name](r.witnesses[0])
			r.witnesses[1].down()
			_, err := r.submit(l, nth(1))
			if name == "stale" && err == nil {
				return // it is honest the first time
			}
			if !errors.Is(err, ErrNotPublished) {
				t.Fatalf("without a quorum: %v", err)
			}
			if strings.Contains(err.Error(), "127.0.0.1") && strings.Contains(err.Error(), "http://") {
				t.Errorf("the error names a witness's URL: %v", err)
			}
			if p := l.Published(); p.Size != 1 {
				t.Errorf("size %d is published", p.Size)
			}
			if l.Ready() == nil {
				t.Error("ready without a quorum")
			}
			r.witnesses[0].pretend(nil)
			r.witnesses[1].pretend(nil)
			var ack *Ack
			waitFor(t, "the quorum", func() bool { ack, err = r.submit(l, nth(1)); return err == nil })
			r.check(ack)
			if ack.Index != 1 {
				t.Errorf("the retry got index %d, want 1", ack.Index)
			}
			waitFor(t, "ready", func() bool { return l.Ready() == nil })
		})
	}
}

// TestDuplicateCosignatureCountsOnce: one witness of two answers twice.
func TestDuplicateCosignatureCountsOnce(t *testing.T) {
	r := newRig(t, 2, 2)
	l := r.ready(func(c *Config) { c.RoundLimit, c.MaxWait = 300*time.Millisecond, 700*time.Millisecond })
	r.witnesses[0].answer(func(status int, body string) (int, string) { return status, body + body })
	r.witnesses[1].down()
	if _, err := r.submit(l, nth(0)); !errors.Is(err, ErrNotPublished) {
		t.Fatalf("one witness twice: %v", err)
	}
	r.witnesses[1].pretend(nil)
	waitFor(t, "both", func() bool { _, err := r.submit(l, nth(0)); return err == nil })
	note, err := c2sp.ParseNote(l.Published().Note)
	if err != nil || len(note.Sigs) != 3 {
		t.Errorf("%d signatures are published, want the log's and two", len(note.Sigs))
	}
}

// TestWitnessAheadWithOurSignatureLatches: while running, and at start.
func TestWitnessAheadWithOurSignatureLatches(t *testing.T) {
	r := filled(t, 5)
	cp := c2sp.Checkpoint{Origin: r.signer.Key().Name(), Size: 99, Root: [32]byte{9}}
	sig, err := r.signer.Sign(cp.Text())
	if err != nil {
		t.Fatal(err)
	}
	note := (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()
	ahead := func(slow time.Duration) http.HandlerFunc {
		return func(rw http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodPost {
				rw.WriteHeader(409)
				io.WriteString(rw, "99\n")
				return
			}
			time.Sleep(slow)
			rw.Write(note)
		}
	}
	t.Run("running", func(t *testing.T) {
		r := *r
		r.t = t
		l := r.ready()
		r.witnesses[2].pretend(ahead(0))
		_, _ = r.submit(l, nth(50)) // acknowledged or not: the others are a quorum
		waitFor(t, "the guard", func() bool { return l.Status().Latched })
		r.latchedFor(l, "witness w3 holds a checkpoint signed by this log's key")
		l.Close()
	})
	t.Run("running, slow to show it", func(t *testing.T) {
		r := *r
		r.t = t
		r.witnesses[2].pretend(nil)
		l := r.ready()
		r.witnesses[2].pretend(ahead(500 * time.Millisecond))
		start := time.Now()
		r.must(l, nth(51))
		if d := time.Since(start); d > 450*time.Millisecond {
			t.Errorf("the round waited %v for it", d)
		}
		waitFor(t, "the guard", func() bool { return l.Status().Latched })
		l.Close()
	})
	t.Run("at start", func(t *testing.T) {
		r := *r
		r.t = t
		r.witnesses[2].pretend(ahead(0))
		l := r.open()
		waitFor(t, "the guard", func() bool { return l.Status().Latched })
		r.latchedFor(l, "it has size 99")
	})
}

// TestStartHearsEnoughWitnesses: n-k+1 of n, by their read API and a stale
// add-checkpoint; until then the log is read-only, and not latched.
func TestStartHearsEnoughWitnesses(t *testing.T) {
	for _, row := range []struct {
		name string
		bad  func(w *rigWitness)
		says string
	}{
		{"down", (*rigWitness).down, "503"},
		{"lying: larger, without proof", func(w *rigWitness) {
			w.answer(func(int, string) (int, string) { return 409, "12345\n" })
		}, "12345"},
		{"read API shows garbage", func(w *rigWitness) {
			w.pretend(func(rw http.ResponseWriter, req *http.Request) {
				if req.Method == http.MethodPost {
					w.real.ServeHTTP(rw, req)
					return
				}
				io.WriteString(rw, "no note\n")
			})
		}, "w1"},
		{"read API shows what this log did not sign", func(w *rigWitness) {
			other, _ := c2sp.GenerateSigner("log.example/test", c2sp.AlgEd25519)
			cp := c2sp.Checkpoint{Origin: "log.example/test", Size: 99}
			sig, _ := other.Sign(cp.Text())
			w.pretend(func(rw http.ResponseWriter, req *http.Request) {
				if req.Method == http.MethodPost {
					w.real.ServeHTTP(rw, req)
					return
				}
				rw.Write((&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes())
			})
		}, "did not sign"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			r := filled(t, 5)
			// Quorum 2 of 3: two must be heard. Two bad are too many.
			row.bad(r.witnesses[0])
			row.bad(r.witnesses[1])
			l := r.open()
			waitFor(t, "the reason", func() bool { return strings.Contains(fmt.Sprint(l.Status().Reason), row.says) })
			if s := l.Status(); s.Writable || s.Latched {
				t.Errorf("writable %v, latched %v with one witness heard", s.Writable, s.Latched)
			}
			if _, err := r.submit(l, nth(0)); !errors.Is(err, ErrReadOnly) {
				t.Errorf("submission: %v", err)
			}
			if res := get(r.handler(l), "/checkpoint"); res.Code != 200 {
				t.Errorf("reads stopped: %d", res.Code)
			}
			r.witnesses[1].pretend(nil)
			if strings.HasPrefix(row.name, "lying") {
				time.Sleep(600 * time.Millisecond)
				if l.Status().Writable {
					t.Error("took submissions in the face of a claim")
				}
				start := time.Now()
				if err := l.Close(); err != nil || time.Since(start) > 2*time.Second {
					t.Errorf("closing while waiting for witnesses: %v, %v", time.Since(start), err)
				}
				return
			}
			waitFor(t, "two of three", func() bool { return l.Status().Writable })
			r.must(l, nth(5))
		})
	}
}

// TestNewWitnessOfAnOldLog: a witness that has never seen the log joins.
func TestNewWitnessOfAnOldLog(t *testing.T) {
	r := filled(t, 300)
	w := newRigWitness(t, "w9", t.TempDir()+"/w9.db", r.signer.Key())
	r.witnesses = append(r.witnesses, w)
	r.policy = strings.Replace(r.policy, "group g 2 w1 w2 w3", fmt.Sprintf("witness w9 %s %s\ngroup g 4 w1 w2 w3 w9", w.key, w.server.URL), 1)
	l := r.ready()
	ack := r.must(l, nth(1)) // the old checkpoint lacks w9: not good for this
	if !strings.Contains(string(ack.Proof.Checkpoint), "witness.example/w9 ") {
		t.Error("acknowledged without the new witness")
	}
	r.must(l, nth(300))
}

// TestWitnessForgetsSize: we remember another size than it holds.
func TestWitnessForgetsSize(t *testing.T) {
	r := newRig(t, 3, 3)
	l := r.ready()
	r.bulk(l, 0, 10)
	for _, size := range []int64{0, 3, 9, 1 << 40} {
		l.pub.quorum.Load().witnesses[0].size.Store(size)
		r.must(l, nth(int(100+size%50)))
	}
}

// TestQuorumNone publishes with the log's own signature alone.
func TestQuorumNone(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	r.must(l, nth(0))
}

func TestPolicyRefusedAtOpen(t *testing.T) {
	r := newRig(t, 1, 1)
	for name, change := range map[string]func(c *Config){
		"another log's policy": func(c *Config) {
			other, _ := c2sp.GenerateSigner("other.example", c2sp.AlgEd25519)
			c.Policy.Logs = []c2sp.PolicyLog{{Key: other.Key()}}
		},
		"witness without URL": func(c *Config) { c.Policy.Witnesses[0].URL = "" },
		"another key":         func(c *Config) { c.Signer, _ = c2sp.GenerateSigner("log.example/test", c2sp.AlgEd25519) },
		"no log here":         func(c *Config) { c.Dir = t.TempDir() },
	} {
		cfg := r.config()
		change(&cfg)
		if l, err := Open(t.Context(), cfg); err == nil {
			l.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

// TestBothKeysOfOneWitness: a witness with two keys is two lines with one URL.
// It is asked once, both its cosignatures count for their own lines and as one
// voice, and one that lacks a key has no vote for that line.
func TestBothKeysOfOneWitness(t *testing.T) {
	r := newRig(t, 2, 2)
	d, err := witness.CreateDir(t.Context(), filepath.Join(t.TempDir(), "w"), "witness.example/both", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if _, err := d.Store.AddLog(t.Context(), r.signer.Key().Name(), []*c2sp.Key{r.signer.Key()}); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	serve := func(mldsa *c2sp.Signer) http.Handler {
		w, err := witness.New(witness.Config{Signer: d.Signer, MLDSA: mldsa, Store: d.Store})
		if err != nil {
			t.Fatal(err)
		}
		return w.Handler()
	}
	var handler atomic.Value
	handler.Store(serve(d.MLDSA))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPost {
			asked.Add(1)
		}
		handler.Load().(http.Handler).ServeHTTP(rw, req)
	}))
	t.Cleanup(server.Close)
	r.policy = fmt.Sprintf("witness ed %s %s\nwitness pq %s %s/\ngroup both all ed pq\nquorum both\n", d.Signer.Key(), server.URL, d.MLDSA.Key(), server.URL)
	l := r.ready()
	waitFor(t, "the first round to be over", func() bool { return l.Ready() == nil })
	asked.Store(0)
	rounds := l.Published()
	r.must(l, nth(0))
	note, err := c2sp.ParseNote(l.Published().Note)
	if err != nil {
		t.Fatal(err)
	}
	if len(note.Sigs) != 3 {
		t.Errorf("%d signatures in the checkpoint, want the log's and two of the witness", len(note.Sigs))
	}
	if n := asked.Load(); n != 1 && rounds.Size+1 == l.Published().Size {
		t.Errorf("the witness was asked %d times for one checkpoint", n)
	}
	handler.Store(serve(nil)) // it signs with its first key alone
	if _, err := r.submit(l, nth(1)); !errors.Is(err, ErrNotPublished) {
		t.Errorf("%v, want %v: one key is not both", err, ErrNotPublished)
	}
}
