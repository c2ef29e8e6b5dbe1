package main

// The program against a real log with real witnesses.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/internal/world"
	"github.com/portbook/portbook/monitor/alert"
)

const secret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

// output is what a program writes, readable while it does.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func program(ctx context.Context, args ...string) (int, *output, *output) {
	var out, errs output
	root := rootCmd()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	return cli.Run(ctx, root), &out, &errs
}

func upload(version, seed string) *entry.Entry {
	return &entry.Entry{
		Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: "pypi.test", Ecosystem: entry.PyPI, Project: "alice-lib",
		Version: version, File: "alice_lib-" + version + ".tar.gz", Size: entry.Uint(7), SHA256: fmt.Sprintf("%064s", seed),
		Time: time.Now().UTC().Format(entry.TimeFormat), Auth: "token",
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 15 s: " + what)
		}
	}
}

func TestProgram(t *testing.T) {
	ctx := t.Context()
	w, err := world.New(ctx, t.TempDir(), world.Options{Witnesses: 3, Quorum: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	submitter, err := w.Log.Submitter("pypi.test")
	if err != nil {
		t.Fatal(err)
	}
	defer submitter.Close()
	if _, err := submitter.Submit(ctx, upload("0.9", "9")); err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	var got []alert.Payload
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var p alert.Payload
		if err := json.Unmarshal(b, &p); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		got = append(got, p)
	}))
	defer hook.Close()

	dir := t.TempDir()
	policy := write(t, filepath.Join(dir, "policy"), string(w.Policy))
	subs := filepath.Join(dir, "subs.yaml")
	watching := func(project string) string {
		return fmt.Sprintf("subscriptions:\n  - project: pkg:pypi/%s?repository_url=https://pypi.test\n    notify: [{webhook: %s/x, secret: %s}]\n", project, hook.URL, secret)
	}
	write(t, subs, watching("alice-lib"))
	db := filepath.Join(dir, "monitor.db")
	common := []string{"--db", db, "--log-url", w.Log.URL, "--policy", policy}
	serve := append([]string{"serve", "--subscriptions", subs, "--http", "127.0.0.1:0", "--poll", "20ms", "--group-window", "0", "--allow-private-webhooks"}, common...)

	refuse := func(code int, says string, args ...string) {
		t.Helper()
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		got, _, errs := program(short, args...)
		if got != code || !strings.Contains(errs.String(), says) {
			t.Errorf("%q: exit %d, want %d; says %q, want %q", args, got, code, errs, says)
		}
	}
	down := httptest.NewServer(http.NotFoundHandler())
	defer down.Close()
	refuse(2, "portbook-monitor init", serve...)
	refuse(2, "required", "init")
	refuse(2, "policy", "init", "--db", db, "--log-url", w.Log.URL, "--policy", subs)
	refuse(2, "log-url", "init", "--db", db, "--log-url", "gopher://x", "--policy", policy)
	refuse(2, "no log \"other\"", append([]string{"init", "--origin", "other"}, common...)...)
	refuse(3, "where alerts begin", "init", "--db", db, "--log-url", down.URL, "--policy", policy)
	if _, err := os.Stat(db); err == nil {
		t.Fatal("a refused init left a database")
	}
	code, out, errs := program(ctx, append([]string{"init"}, common...)...)
	if code != 0 || !strings.Contains(out.String(), "alerts begin at entry 1") {
		t.Fatalf("init: %d %s %s", code, out, errs)
	}
	if info, err := os.Stat(db); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the database can be read by others: %v %v", info.Mode(), err)
	}
	refuse(2, "already", append([]string{"init"}, common...)...)
	bad := write(t, filepath.Join(dir, "bad.yaml"), "subscription: []\n")
	refuse(2, "field subscription not found", append([]string{"serve", "--subscriptions", bad}, common...)...)
	mails := write(t, filepath.Join(dir, "mails.yaml"), "operator: {notify: [{email: ops@example.org}]}\n")
	refuse(2, "--smtp", append([]string{"serve", "--subscriptions", mails}, common...)...)
	refuse(2, "https", append([]string{"serve", "--subscriptions", subs}, common...)...)
	loose := filepath.Join(dir, "password")
	if err := os.WriteFile(loose, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	refuse(2, "chmod 600", append([]string{"serve", "--smtp", "h:25", "--smtp-from", "a@b.example", "--smtp-username", "u", "--smtp-password-file", loose}, common...)...)

	// subscriptions check: what matches nothing is said.
	origin := w.LogKey.Key().Name()
	code, out, _ = program(ctx, "subscriptions", "check", subs, "--allow-private-webhooks", "--db", db, "--origin", origin)
	if code != 0 || !strings.Contains(out.String(), "NO ENTRY SEEN") || !strings.Contains(out.String(), "every upload is told") {
		t.Errorf("check: %d %s", code, out)
	}
	refuse(2, "field subscription not found", "subscriptions", "check", bad)

	// A config file instead of flags.
	config := write(t, filepath.Join(dir, "monitor.yaml"), fmt.Sprintf("db: %s\nlog-url: %s\npolicy: %s\nsubscriptions: %s\nhttp: 127.0.0.1:0\npoll: 20ms\ngroup-window: 0s\nallow-private-webhooks: true\n", db, w.Log.URL, policy, subs))
	running, stop := context.WithCancel(ctx)
	root := rootCmd()
	root.SetArgs([]string{"serve", "--config", config})
	var logged output
	root.SetErr(&logged)
	done := make(chan int, 1)
	go func() { done <- cli.Run(running, root) }()

	page := ""
	eventually(t, "the page's address", func() bool {
		m := regexp.MustCompile(`page=(http://[0-9.:]+)/`).FindStringSubmatch(logged.String())
		if m != nil {
			page = m[1]
		}
		return m != nil
	})
	ready := func() bool {
		resp, err := http.Get(page + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	}
	eventually(t, "ready", ready)

	alerts := func() []alert.Payload {
		mu.Lock()
		defer mu.Unlock()
		return append([]alert.Payload(nil), got...)
	}
	ack, err := submitter.Submit(ctx, upload("1.0", "1"))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	eventually(t, "the alert", func() bool { return len(alerts()) > 0 })
	t.Logf("alert %v after the upload was proven", time.Since(begin).Round(time.Millisecond))
	a := alerts()[0].Data.Alerts[0]
	v, err := client.VerifyProof(w.ParsedPolicy(), []byte(a.Proof))
	if err != nil || v.Index != ack.Index || v.Entry.Version != "1.0" {
		t.Fatalf("alert %+v: %v", a, err)
	}

	// SIGHUP with a bad file keeps what was loaded, and says so.
	write(t, subs, "subscriptions: [{}]\n")
	hup := func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hup()
	eventually(t, "the refusal of the bad file", func() bool { return strings.Contains(logged.String(), "what was loaded before stays") })
	if _, err := submitter.Submit(ctx, upload("1.1", "2")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the alert after a bad reload", func() bool { return len(alerts()) == 2 })
	write(t, subs, watching("somebody-else"))
	hup()
	eventually(t, "the reload", func() bool { return strings.Contains(logged.String(), "subscriptions loaded") })
	if _, err := submitter.Submit(ctx, upload("1.2", "3")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the third upload on the page", func() bool {
		resp, err := http.Get(page + "/project/pypi.test?ecosystem=pypi&name=alice-lib")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return bytes.Contains(b, []byte("alice_lib-1.2.tar.gz"))
	})
	stop()
	if code := <-done; code != 0 {
		t.Errorf("stopped with %d: %s", code, logged.String())
	}
	if n := len(alerts()); n != 2 {
		t.Errorf("%d alerts, want 2: history, and what is no longer watched, is not told", n)
	}

	// Without its database serve begins again only if told to.
	for _, f := range []string{db, db + "-wal", db + "-shm"} {
		_ = os.Remove(f)
	}
	refuse(2, "init", serve...)
	running, stop = context.WithCancel(ctx)
	root = rootCmd()
	root.SetArgs(append(serve, "--accept-new-baseline"))
	var again output
	root.SetErr(&again)
	go func() { done <- cli.Run(running, root) }()
	eventually(t, "the new baseline", func() bool { return strings.Contains(again.String(), "a new baseline was accepted") })
	eventually(t, "serving", func() bool { return strings.Contains(again.String(), "page=") })
	stop()
	if code := <-done; code != 0 {
		t.Errorf("stopped with %d: %s", code, again.String())
	}
}
