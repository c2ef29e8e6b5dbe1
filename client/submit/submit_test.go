package submit_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/witness"
)

const registry = "index.example"

// realLog is a log with one witness that can be taken away.
type realLog struct {
	log         *logserver.Log
	policy      *c2sp.Policy
	url         string
	token       string
	id          string
	witnessDown atomic.Bool
}

func start(t *testing.T) *realLog {
	t.Helper()
	dir := t.TempDir()
	signer, err := c2sp.GenerateSigner("log.example/test", c2sp.AlgEd25519)
	check(t, err)
	check(t, logserver.Init(t.Context(), filepath.Join(dir, "log"), filepath.Join(dir, "anchor"), signer.Key()))
	w, err := c2sp.GenerateSigner("witness.example/w", c2sp.AlgEd25519Cosig)
	check(t, err)
	store, err := witness.CreateStore(t.Context(), filepath.Join(dir, "w.db"), []*c2sp.Key{w.Key()}, time.Now())
	check(t, err)
	_, err = store.AddLog(t.Context(), signer.Key().Name(), []*c2sp.Key{signer.Key()})
	check(t, err)
	wit, err := witness.New(witness.Config{Signer: w, Store: store})
	check(t, err)
	l := &realLog{}
	handler := wit.Handler()
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if l.witnessDown.Load() {
			http.Error(rw, "down", 503)
			return
		}
		handler.ServeHTTP(rw, r)
	}))
	l.policy, err = c2sp.ParsePolicy(fmt.Appendf(nil, "log %s\nwitness w %s %s\nquorum w\n", signer.Key(), w.Key(), server.URL))
	check(t, err)
	l.log, err = logserver.Open(t.Context(), logserver.Config{Dir: filepath.Join(dir, "log"), Signer: signer, Policy: l.policy,
		AnchorBeside: true, Interval: 5 * time.Millisecond, RoundLimit: 300 * time.Millisecond, MaxWait: time.Second})
	check(t, err)
	g, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	h, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.log.Serve(ctx, g, h, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		server.Close()
		store.Close()
	})
	l.url = "http://" + g.Addr().String()
	tok, secret, err := l.log.Tokens.Create(logserver.Token{Registry: registry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}})
	check(t, err)
	l.token, l.id = secret, tok.ID
	for deadline := time.Now().Add(10 * time.Second); !l.log.Status().Writable; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not ready")
		}
	}
	return l
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (l *realLog) dial(t *testing.T, token string) *submit.Client {
	t.Helper()
	c, err := submit.Dial(l.url, token)
	check(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func upload(n int, content string) *entry.Entry {
	sum := sha256.Sum256([]byte(content))
	return &entry.Entry{Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "demo", Version: "1.0", File: fmt.Sprintf("demo-1.%d.tar.gz", n),
		Size: entry.Uint(1), SHA256: hex.EncodeToString(sum[:]), Time: "2026-11-21T05:00:00Z"}
}

// TestSubmit: the proof is one that package client accepts.
func TestSubmit(t *testing.T) {
	l := start(t)
	c := l.dial(t, l.token)
	for deadline := time.Now().Add(10 * time.Second); c.Ready(t.Context()) != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(c.Ready(t.Context()))
		}
	}
	ack, err := c.Submit(t.Context(), upload(0, "a"))
	check(t, err)
	v, err := client.Verify(l.policy, client.File{Registry: registry, Ecosystem: entry.PyPI, Project: "demo", Name: "demo-1.0.tar.gz", SHA256: sha256.Sum256([]byte("a"))}, ack.Proof)
	if err != nil || v.Index != ack.Index {
		t.Fatalf("%v, %v", v, err)
	}
}

// TestErrors: each kind, from a real log.
func TestErrors(t *testing.T) {
	l := start(t)
	c := l.dial(t, l.token)
	first, err := c.Submit(t.Context(), upload(0, "a"))
	check(t, err)

	var conflict *submit.Conflict
	if _, err := c.Submit(t.Context(), upload(0, "b")); !errors.As(err, &conflict) || conflict.FirstIndex != first.Index || conflict.Reason == "" {
		t.Errorf("other bytes: %v", err)
	}
	var invalid *submit.Invalid
	bad := upload(1, "a")
	bad.File = "../demo.tar.gz"
	if _, err := c.Submit(t.Context(), bad); !errors.As(err, &invalid) || invalid.Field != "file" || invalid.Denied {
		t.Errorf("malformed: %v", err)
	}
	bad = upload(1, "a")
	bad.Registry = "other.example"
	if _, err := c.Submit(t.Context(), bad); !errors.As(err, &invalid) || invalid.Field != "registry" || !invalid.Denied {
		t.Errorf("another registry: %v", err)
	}
	bad = upload(1, "a")
	bad.Origin = "log.example"
	if _, err := c.Submit(t.Context(), bad); !errors.As(err, &invalid) || invalid.Field != "origin" {
		t.Errorf("a log's own field: %v", err)
	}
	bad = upload(9, "a")
	bad.Replaces = entry.Uint(0)
	if _, err := c.Submit(t.Context(), bad); !errors.As(err, &invalid) || invalid.Field != "replaces" {
		t.Errorf("precondition: %v", err)
	}
	for _, token := range []string{"", "garbage", l.token[:len(l.token)-2]} {
		if _, err := l.dial(t, token).Submit(t.Context(), upload(1, "a")); !errors.Is(err, submit.ErrUnauthorized) {
			t.Errorf("token %.5q: %v", token, err)
		}
	}

	// Below the quorum: unavailable, with a hint; the retry gets its index.
	l.witnessDown.Store(true)
	var out *submit.Unavailable
	if _, err := c.Submit(t.Context(), upload(1, "a")); !errors.As(err, &out) || out.RetryAfter <= 0 || out.Reason == "" {
		t.Errorf("no quorum: %v", err)
	}
	if err := c.Ready(t.Context()); !errors.As(err, &out) {
		t.Errorf("ready without a quorum: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Submit(short, upload(1, "a")); !errors.As(err, &out) {
		t.Errorf("the caller's own deadline: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Submit(gone, upload(1, "a")); !errors.Is(err, context.Canceled) {
		t.Errorf("the caller went away: %v", err)
	}
	l.witnessDown.Store(false)
	var ack *submit.Ack
	for deadline := time.Now().Add(10 * time.Second); ; {
		if ack, err = c.Submit(t.Context(), upload(1, "a")); err == nil {
			break
		}
		if !errors.As(err, &out) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	again, err := c.Submit(t.Context(), upload(1, "a"))
	check(t, err)
	if again.Index != ack.Index {
		t.Errorf("index %d, then %d", ack.Index, again.Index)
	}

	check(t, l.log.Tokens.Revoke(l.id))
	if _, err := c.Submit(t.Context(), upload(1, "a")); !errors.Is(err, submit.ErrUnauthorized) {
		t.Errorf("revoked: %v", err)
	}
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	nobody.Close()
	away, err := submit.Dial("http://"+nobody.Addr().String(), l.token)
	check(t, err)
	defer away.Close()
	if _, err := away.Submit(t.Context(), upload(1, "a")); !errors.As(err, &out) {
		t.Errorf("nobody there: %v", err)
	}
}

// TestStream: in order, refusals in the middle, errors of both callbacks.
func TestStream(t *testing.T) {
	l := start(t)
	c := l.dial(t, l.token)
	source := func(n int, end error) func() (*entry.Entry, error) {
		i := 0
		return func() (*entry.Entry, error) {
			if i == n {
				return nil, end
			}
			i++
			e := upload(i, fmt.Sprint(i))
			if i == 5 {
				e.SHA256 = "00"
			}
			if i == 6 {
				e = upload(1, "other")
			}
			return e, nil
		}
	}
	var got uint64
	err := c.Stream(t.Context(), submit.StreamOptions{}, source(300, io.EOF), func(seq uint64, r submit.Result) error {
		if seq != got {
			t.Errorf("answer %d where %d was due", seq, got)
		}
		got++
		var invalid *submit.Invalid
		var conflict *submit.Conflict
		switch seq {
		case 4:
			if !errors.As(r.Err, &invalid) || invalid.Field != "sha256" {
				t.Errorf("entry 4: %v", r.Err)
			}
		case 5:
			if !errors.As(r.Err, &conflict) {
				t.Errorf("entry 5: %v", r.Err)
			}
		default:
			if r.Err != nil {
				t.Errorf("entry %d: %v", seq, r.Err)
			}
		}
		return nil
	})
	if err != nil || got != 300 {
		t.Fatalf("%d answers, %v", got, err)
	}
	broken := errors.New("the source broke")
	if err := c.Stream(t.Context(), submit.StreamOptions{}, source(3, broken), func(uint64, submit.Result) error { return nil }); !errors.Is(err, broken) {
		t.Errorf("a source that breaks: %v", err)
	}
	full := errors.New("the sink is full")
	if err := c.Stream(t.Context(), submit.StreamOptions{}, source(300, io.EOF), func(uint64, submit.Result) error { return full }); !errors.Is(err, full) {
		t.Errorf("a sink that breaks: %v", err)
	}
	if err := l.dial(t, "garbage").Stream(t.Context(), submit.StreamOptions{}, source(3, io.EOF), func(uint64, submit.Result) error { return nil }); !errors.Is(err, submit.ErrUnauthorized) {
		t.Errorf("a garbage token: %v", err)
	}
}

func TestDialRefuses(t *testing.T) {
	for target, want := range map[string]string{
		"http://log.example:80":        "in the clear",
		"http://192.0.2.1:80":          "in the clear",
		"http://127.0.0.1":             "in the clear",
		"http://[2001:db8::1]:80":      "in the clear",
		"http://127.0.0.1.evil.org:80": "in the clear",
		"ftp://127.0.0.1:1":            "unknown scheme",
		"127.0.0.1:1":                  "want https",
		"https://":                     "want https",
		"https://user@log.example":     "want https",
		"https://log.example/path":     "want https",
		"":                             "want https",
	} {
		if c, err := submit.Dial(target, "t"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", target, err, want)
			if err == nil {
				c.Close()
			}
		}
	}
	for _, target := range []string{"http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://log.example", "https://[2001:db8::1]"} {
		c, err := submit.Dial(target, "t")
		check(t, err)
		c.Close()
	}
}
