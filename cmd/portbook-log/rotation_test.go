package main

// Rotating the key of a real log (a process that is killed at every turn) under
// the eyes of real witnesses, monitors and clients that know the old key, the
// new one, or both.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/monitor"
	"github.com/portbook/portbook/witness"
)

// turn is a log whose key is being rotated.
type turn struct {
	t                      *testing.T
	dir, log, token        string
	http, grpc             string
	witnesses              []*witness.Dir
	witnessLines           string
	server                 *exec.Cmd
	proofs                 [][]byte // every one ever given, by index
	oldKey, newKey         *c2sp.Key
	monitorOld, monitorNew *watcher // their policy never changes
	monitorBoth            *watcher // is given each policy that is right
}

// run runs the program to its end.
func (w *turn) run(args ...string) (string, error) {
	cmd := exec.Command("portbook-log", args...)
	cmd.Dir = w.dir
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("portbook-log %s: %w\n%s", strings.Join(args, " "), err, &complaints)
	}
	return string(out), err
}

func (w *turn) must(args ...string) string {
	w.t.Helper()
	out, err := w.run(args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *turn) path(name string) string { return filepath.Join(w.dir, name) }

// policy writes the log lines with the witnesses as a policy.
func (w *turn) policy(name string, logs ...string) *c2sp.Policy {
	w.t.Helper()
	text := strings.Join(logs, "\n") + "\n" + w.witnessLines + "group two 2 w1 w2 w3\nquorum two\n"
	if err := os.WriteFile(w.path(name), []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	p, err := c2sp.ParsePolicy([]byte(text))
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// serve starts the log with keys, and waits until it is ready.
func (w *turn) serve(keys ...string) {
	w.t.Helper()
	args := []string{"serve", "--dir", "log", "--policy", "publish.policy", "--http", w.http, "--grpc", w.grpc, "--anchor-beside", "--publish-interval", "10ms"}
	for _, k := range keys {
		args = append(args, "--key", k)
	}
	out, err := os.Create(w.path("serve.log"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = exec.Command("portbook-log", args...)
	w.server.Dir, w.server.Stdout, w.server.Stderr = w.dir, out, out
	err = w.server.Start()
	out.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if res, err := http.Get("http://" + w.http + "/readyz"); err == nil {
			res.Body.Close()
			if res.StatusCode == 200 {
				return
			}
		}
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(w.path("serve.log"))
			w.kill()
			w.t.Fatalf("not ready after 20 s\n%s", said)
		}
	}
}

// kill is kill -9.
func (w *turn) kill() {
	if w.server == nil {
		return
	}
	w.server.Process.Kill()
	w.server.Wait()
	w.server = nil
}

func (w *turn) file(n int) (*entry.Entry, client.File) {
	sum := sha256.Sum256(fmt.Append(nil, n))
	name := fmt.Sprintf("demo-%d.tar.gz", n)
	return &entry.Entry{
			Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "demo", Version: fmt.Sprint(n), File: name,
			Size: entry.Uint(3), SHA256: fmt.Sprintf("%x", sum), Time: "2026-11-21T05:00:00Z",
		}, client.File{
			Registry: "index.example", Ecosystem: entry.PyPI, Project: "demo", Name: name, SHA256: sum,
		}
}

// submit logs the next file. With killed, the server is killed while it does, and
// the same file is submitted again, to one that is started with keys.
func (w *turn) submit(killed bool, keys ...string) {
	w.t.Helper()
	n := len(w.proofs)
	e, _ := w.file(n)
	try := func() (*submit.Ack, error) {
		c, err := submit.Dial("http://"+w.grpc, w.token)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
		defer cancel()
		return c.Submit(ctx, e)
	}
	if killed {
		ended := make(chan struct{})
		go func() { defer close(ended); try() }() // it may succeed or not
		time.Sleep(time.Duration(rand.IntN(30_000)) * time.Microsecond)
		w.kill()
		<-ended
		w.serve(keys...)
	}
	ack, err := try()
	if err != nil {
		w.t.Fatal(err)
	}
	if ack.Index != uint64(n) {
		w.t.Fatalf("file %d got index %d", n, ack.Index)
	}
	w.proofs = append(w.proofs, ack.Proof)
}

// verifies checks which of all proofs a client with the policy accepts: those of
// the files [from, to), and what it says of the others.
func (w *turn) verifies(who string, p *c2sp.Policy, from, to int) {
	w.t.Helper()
	for n, proof := range w.proofs {
		_, f := w.file(n)
		_, err := client.Verify(p, f, proof)
		var refusal *client.Refusal
		switch ok := n >= from && n < to; {
		case ok && err != nil:
			w.t.Errorf("%s: file %d: %v", who, n, err)
		case !ok && (!errors.As(err, &refusal) || refusal.Code != client.CodeNoLogSignature):
			w.t.Errorf("%s: file %d: %v, want a refusal for want of the log's signature", who, n, err)
		}
	}
}

// watcher is a real monitor and the state of a client.
type watcher struct {
	w     *turn
	name  string
	store *monitor.Store
	state *client.State
}

func (w *turn) watcher(name string) *watcher {
	w.t.Helper()
	db := w.path(name + ".db")
	if err := monitor.Begin(w.t.Context(), db, w.oldKey.Name(), 0); err != nil {
		w.t.Fatal(err)
	}
	store, err := monitor.OpenStore(w.t.Context(), db, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { store.Close() })
	state, err := client.OpenState(w.path(name + ".state"))
	if err != nil {
		w.t.Fatal(err)
	}
	return &watcher{w, name, store, state}
}

// looks has the monitor and the client follow the log to its end under p.
func (m *watcher) looks(p *c2sp.Policy) {
	m.w.t.Helper()
	ctx := m.w.t.Context()
	r, err := client.NewReader("http://"+m.w.http, nil)
	if err != nil {
		m.w.t.Fatal(err)
	}
	mon, err := monitor.New(ctx, monitor.Config{Store: m.store, Source: r, Policy: p, Confirm: time.Millisecond})
	if err != nil {
		m.w.t.Fatal(err)
	}
	if err := mon.Round(ctx); err != nil {
		m.w.t.Errorf("monitor %s: %v", m.name, err)
	}
	if why := mon.Standing(); why != "" {
		m.w.t.Errorf("monitor %s: sees tampering: %s", m.name, why)
	}
	h, err := m.store.Health(ctx, m.w.oldKey.Name())
	if err != nil || h.Verified != uint64(len(m.w.proofs)) {
		m.w.t.Errorf("monitor %s: has verified %+v, %v; want %d entries", m.name, h, err, len(m.w.proofs))
	}
	if err := m.state.Latest(ctx, p, r); err != nil {
		m.w.t.Errorf("client %s: %v", m.name, err)
	}
}

// killedUntil runs a command and kills it at random moments, until it has done
// what done says. After each kill the log is whole: in the state before, or after.
func (w *turn) killedUntil(done func(logserver.Identity) bool, args ...string) {
	w.t.Helper()
	for attempt := range 25 {
		cmd := exec.Command("portbook-log", args...)
		cmd.Dir = w.dir
		if err := cmd.Start(); err != nil {
			w.t.Fatal(err)
		}
		if attempt < 24 {
			time.Sleep(time.Duration(rand.IntN(25_000)) * time.Microsecond)
			cmd.Process.Kill()
		}
		cmd.Wait()
		id, err := logserver.ReadIdentity(w.path("log"))
		if err != nil {
			w.t.Fatal(err)
		}
		if len(id.Keys) > 2 {
			w.t.Fatalf("%d keys after a kill", len(id.Keys))
		}
		if done(id) {
			w.t.Logf("done at attempt %d", attempt+1)
			return
		}
	}
	w.t.Fatalf("portbook-log %s never got done", strings.Join(args, " "))
}

func TestRotationUnderKills(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server some twenty times")
	}
	w := &turn{t: t, dir: t.TempDir()}
	defer w.kill()
	for _, a := range []*string{&w.http, &w.grpc} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		*a = l.Addr().String()
		l.Close()
	}
	generate := func(out string) *c2sp.Key {
		var made struct {
			VKey string `json:"vkey"`
		}
		if err := json.Unmarshal([]byte(w.must("key", "generate", "--origin", "log.example/turn", "--out", out, "--json")), &made); err != nil {
			t.Fatal(err)
		}
		k, err := c2sp.ParseVKey(made.VKey)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	w.oldKey, w.newKey = generate("old.key"), generate("new.key")
	w.must("init", "--origin", "log.example/turn", "--dir", "log", "--anchor", "anchor", "--key", "old.key")
	w.token = strings.TrimSpace(w.must("token", "create", "--dir", "log", "--registry", "index.example"))
	for i := range 3 {
		d, err := witness.CreateDir(t.Context(), w.path(fmt.Sprintf("w%d", i+1)), fmt.Sprintf("witness%d.example/w", i+1), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		wit, err := witness.New(witness.Config{Signer: d.Signer, Store: d.Store})
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewServer(wit.Handler())
		t.Cleanup(func() { srv.Close(); d.Close() })
		w.witnesses = append(w.witnesses, d)
		w.witnessLines += fmt.Sprintf("witness w%d %s %s\n", i+1, d.Signer.Key(), srv.URL)
	}
	trust := func(i int, k *c2sp.Key) {
		t.Helper()
		if _, err := w.witnesses[i].Store.AddLog(t.Context(), k.Name(), []*c2sp.Key{k}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		trust(i, w.oldKey)
	}
	oldLine, newLine := "log "+w.oldKey.String(), "log "+w.newKey.String()
	onlyOld, onlyNew, both := w.policy("old.policy", oldLine), w.policy("new.policy", newLine), w.policy("both.policy", oldLine, newLine)
	w.policy("publish.policy", oldLine)
	w.monitorOld, w.monitorBoth = w.watcher("old"), w.watcher("both")

	// The old key alone.
	w.serve("old.key")
	w.submit(false)
	w.submit(true, "old.key")
	w.monitorOld.looks(onlyOld)
	w.monitorBoth.looks(onlyOld)
	if _, err := w.run("key", "rotate", "begin", "--dir", "log", "--new-key", "new.key"); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Fatalf("while the log is served: %v", err)
	}
	w.kill()
	overlap := len(w.proofs)

	// begin. The witnesses and readers still know the old key alone, then both.
	w.killedUntil(func(id logserver.Identity) bool { return len(id.Keys) == 2 }, "key", "rotate", "begin", "--dir", "log", "--new-key", "new.key")
	if _, err := w.run("serve", "--dir", "log", "--policy", "publish.policy", "--key", "old.key", "--http", w.http, "--grpc", w.grpc, "--anchor-beside"); err == nil || !strings.Contains(err.Error(), "(next) is not given") {
		t.Fatalf("served without the new key: %v", err)
	}
	w.serve("old.key", "new.key")
	w.submit(false)
	w.monitorOld.looks(onlyOld)
	w.monitorBoth.looks(both)
	trust(0, w.newKey)
	w.submit(true, "old.key", "new.key")
	w.kill()
	if _, err := w.run("key", "rotate", "finish", "--dir", "log", "--policy", "both.policy"); err == nil || !strings.Contains(err.Error(), "too few witnesses accept") {
		t.Fatalf("finished while one witness of three knows the new key: %v", err)
	}
	trust(1, w.newKey)
	w.policy("publish.policy", oldLine, newLine)
	w.serve("new.key", "old.key")
	w.submit(true, "new.key", "old.key")
	w.monitorNew = w.watcher("new")
	w.monitorNew.looks(onlyNew)
	w.monitorOld.looks(onlyOld)
	w.monitorBoth.looks(both)
	w.kill()
	end := len(w.proofs)
	w.verifies("knows the old key", onlyOld, 0, end)
	w.verifies("knows the new key", onlyNew, overlap, end)
	w.verifies("knows both keys", both, 0, end)

	// finish. The third witness never learns the new key, and drops out.
	w.killedUntil(func(id logserver.Identity) bool { return id.VKey == w.newKey.String() }, "key", "rotate", "finish", "--dir", "log", "--policy", "publish.policy")
	id, err := logserver.ReadIdentity(w.path("log"))
	if err != nil {
		t.Fatal(err)
	}
	if k := id.Keys[0]; k.State != logserver.KeyRetired || k.UpTo != uint64(end) {
		t.Fatalf("the old key is %s at %d, want retired at %d", k.State, k.UpTo, end)
	}
	lines := id.PolicyLines("")
	now := w.policy("now.policy", lines...)
	w.policy("publish.policy", lines...)
	w.serve("new.key")
	w.submit(false)
	w.submit(true, "new.key")
	w.monitorNew.looks(onlyNew)
	w.monitorBoth.looks(now)

	// A thief of the old key cannot make anything newer verify.
	note, err := http.Get("http://" + w.http + "/checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(note.Body)
	note.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	w.kill()
	secret, err := os.ReadFile(w.path("old.key"))
	if err != nil {
		t.Fatal(err)
	}
	thief, err := c2sp.ParseSKey(strings.TrimSpace(string(secret)))
	if err != nil {
		t.Fatal(err)
	}
	published, err := c2sp.ParseNote(raw)
	if err != nil {
		t.Fatal(err)
	}
	cp, err := c2sp.ParseCheckpoint(published.Text)
	if err != nil {
		t.Fatal(err)
	}
	if published.Sigs[0], err = thief.SignCheckpoint(t.Context(), cp); err != nil {
		t.Fatal(err)
	}
	if _, err := now.Verify(published.Bytes()); !errors.Is(err, c2sp.ErrNoLogSignature) {
		t.Errorf("a retired key's signature on a newer checkpoint: %v", err)
	}

	w.verifies("knows the old key still", onlyOld, 0, end)
	w.verifies("knows the new key", onlyNew, overlap, len(w.proofs))
	w.verifies("knows the lines of now", now, 0, len(w.proofs))
}
