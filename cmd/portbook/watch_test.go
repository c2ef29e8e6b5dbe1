package main

// watch against a log of one bundle that can be told to lie.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/monitor"
)

// A smallLog has fewer than 256 leaves and one witness.
type smallLog struct {
	log, witness *c2sp.Signer
	policy       string // file

	mu     sync.Mutex
	leaves [][]byte
	note   []byte
	lie    map[int][]byte
}

func newSmallLog(t *testing.T) (*smallLog, string) {
	l := &smallLog{}
	var err error
	if l.log, err = c2sp.GenerateSigner("log.example/small", c2sp.AlgEd25519); err != nil {
		t.Fatal(err)
	}
	if l.witness, err = c2sp.GenerateSigner("w.example", c2sp.AlgEd25519Cosig); err != nil {
		t.Fatal(err)
	}
	l.policy = filepath.Join(t.TempDir(), "policy")
	if err := os.WriteFile(l.policy, fmt.Appendf(nil, "log %s\nwitness w %s\nquorum w\n", l.log.Key(), l.witness.Key()), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(l)
	t.Cleanup(srv.Close)
	l.set(t)
	return l, srv.URL
}

// set makes the log consist of leaves, whatever it was before, and publishes.
func (l *smallLog) set(t *testing.T, leaves ...[]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaves = leaves
	p, hashes := monitor.NewPosition(), l.hashes()
	if len(leaves) > 0 {
		p.Root = treeHead(hashes)
	}
	c := c2sp.Checkpoint{Origin: "log.example/small", Size: uint64(len(leaves)), Root: p.Root}
	sig, err := l.log.Sign(c.Text())
	if err != nil {
		t.Fatal(err)
	}
	cosig, err := l.witness.Cosign(c, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l.note = (&c2sp.Note{Text: c.Text(), Sigs: []c2sp.Signature{sig, cosig}}).Bytes()
}

func (l *smallLog) hashes() (out [][32]byte) {
	for _, b := range l.leaves {
		out = append(out, entry.LeafHash(b))
	}
	return out
}

func treeHead(h [][32]byte) [32]byte {
	if len(h) == 1 {
		return h[0]
	}
	k := 1
	for k*2 < len(h) {
		k *= 2
	}
	a, b := treeHead(h[:k]), treeHead(h[k:])
	return sha256.Sum256(append(append([]byte{1}, a[:]...), b[:]...))
}

func (l *smallLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.URL.Path == "/checkpoint" {
		w.Write(l.note)
		return
	}
	tile, err := c2sp.ParseTilePath(strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil || tile.Index != 0 || tile.Level > 0 || tile.Width > len(l.leaves) {
		http.NotFound(w, r)
		return
	}
	var b []byte
	for i, h := range l.hashes()[:tile.Width] {
		if tile.Level == 0 {
			b = append(b, h[:]...)
			continue
		}
		leaf := l.leaves[i]
		if lie := l.lie[i]; lie != nil {
			leaf = lie
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(leaf))), leaf...)
	}
	w.Write(b)
}

func watchLeaf(t *testing.T, project, version string) []byte {
	t.Helper()
	e := entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: "pypi.org", Ecosystem: entry.PyPI, Project: project, Version: version,
		File: project + "-" + version + ".tar.gz", Size: entry.Uint(1), SHA256: strings.Repeat("ab", 32), Time: "2026-11-21T05:00:00Z", Auth: "token"}
	b, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func watch(ctx context.Context, args ...string) (int, *syncBuffer, *syncBuffer) {
	var out, errs syncBuffer
	cmd := watchCmd()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	return cli.Run(ctx, cmd), &out, &errs
}

func TestWatchOnce(t *testing.T) {
	l, url := newSmallLog(t)
	a, b, c := watchLeaf(t, "alice", "1.0"), watchLeaf(t, "bob", "1.0"), watchLeaf(t, "alice", "1.1")
	l.set(t, a, b, []byte("\x1b[2J not an entry"), c)
	common := []string{"--log-url", url, "--policy", l.policy, "--once"}
	for _, tt := range []struct {
		args []string
		code int
		out  []string // one a line
		errs string
	}{
		{[]string{"--from", "0"}, 0, []string{"0  2026-11-21T05:00:00Z  upload  pypi:alice 1.0", "1  ", "2  UNREADABLE", "3  "}, "from entry 0"},
		{[]string{"--from", "1", "pkg:pypi/Alice"}, 0, []string{"2  UNREADABLE", "3  2026-11-21T05:00:00Z  upload  pypi:alice 1.1 alice-1.1.tar.gz at pypi.org by token sha256:abab"}, "1 projects"},
		{[]string{"--from", "1", "--json", "pkg:pypi/bob"}, 0, []string{`{"index":1,"entry":` + string(b) + `}`, `{"index":2,"unreadable":`}, ""},
		{nil, 0, nil, "from entry 4"},
		{[]string{"--from", "5"}, 2, nil, "the log has 4 entries"},
		{[]string{"--from", "x"}, 2, nil, "not an index"},
		{[]string{"alice"}, 2, nil, "not a package URL"},
		{[]string{"--log-url", url + "/nothing"}, 3, nil, "not there"},
		{[]string{"--policy", "/nonexistent"}, 2, nil, "policy"},
	} {
		code, out, errs := watch(t.Context(), append(append([]string{}, common...), tt.args...)...)
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if out.String() == "" {
			lines = nil
		}
		if code != tt.code || len(lines) != len(tt.out) || !strings.Contains(errs.String(), tt.errs) {
			t.Errorf("%q: exit %d\n%s%s", tt.args, code, out, errs)
			continue
		}
		for i, want := range tt.out {
			if !strings.HasPrefix(lines[i], want) {
				t.Errorf("%q: line %q, want %q", tt.args, lines[i], want)
			}
		}
		if strings.Contains(out.String()+errs.String(), "\x1b") {
			t.Errorf("%q: an escape sequence reaches the terminal", tt.args)
		}
	}

	// A leaf that is not in the tree is not printed.
	l.mu.Lock()
	l.lie = map[int][]byte{1: watchLeaf(t, "mallory", "6.6")}
	l.mu.Unlock()
	code, out, errs := watch(t.Context(), append(common, "--from", "0")...)
	if code != 1 || out.String() != "" || !strings.Contains(errs.String(), "do not hash") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

func TestWatchFollowsUntilTheLogLies(t *testing.T) {
	for name, lie := range map[string]func(l *smallLog, leaves [][]byte){
		"goes back": func(l *smallLog, leaves [][]byte) { l.set(t, leaves[0]) },
		"forks":     func(l *smallLog, leaves [][]byte) { l.set(t, leaves[0], leaves[0], leaves[1]) },
		"same size": func(l *smallLog, leaves [][]byte) { l.set(t, leaves[1], leaves[0]) },
		"strange key": func(l *smallLog, leaves [][]byte) {
			l.mu.Lock()
			l.note = bytes.Replace(l.note, []byte("\n2\n"), []byte("\n3\n"), 1)
			l.mu.Unlock()
		},
	} {
		for _, state := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, state %v", name, state), func(t *testing.T) {
				l, url := newSmallLog(t)
				leaves := [][]byte{watchLeaf(t, "alice", "1.0"), watchLeaf(t, "alice", "1.1")}
				args := []string{"--log-url", url, "--policy", l.policy, "--poll", "10ms"}
				if state {
					args = append(args, "--state", filepath.Join(t.TempDir(), "state"))
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				var out, errs syncBuffer
				cmd := watchCmd()
				cmd.SetArgs(args)
				cmd.SetOut(&out)
				cmd.SetErr(&errs)
				done := make(chan int, 1)
				go func() { done <- cli.Run(ctx, cmd) }()
				await := func(b *syncBuffer, what string) {
					t.Helper()
					for !strings.Contains(b.String(), what) {
						if ctx.Err() != nil {
							t.Fatalf("no %q in %s%s", what, out.String(), errs.String())
						}
						time.Sleep(5 * time.Millisecond)
					}
				}
				await(&errs, "from entry 0")
				l.set(t, leaves[0])
				await(&out, "alice 1.0")
				l.set(t, leaves...)
				await(&out, "alice 1.1")
				lie(l, leaves)
				if code := <-done; code != 1 {
					t.Errorf("exit %d: %s", code, errs.String())
				}
				if n := strings.Count(out.String(), "\n"); n != 2 {
					t.Errorf("%d lines, want 2: %s", n, out.String())
				}
			})
		}
	}
}

func TestWatchWaitsOutAnOutageAndEndsQuietly(t *testing.T) {
	l, url := newSmallLog(t)
	ctx, cancel := context.WithCancel(t.Context())
	var out, errs syncBuffer
	cmd := watchCmd()
	cmd.SetArgs([]string{"--log-url", url, "--policy", l.policy, "--poll", "5ms"})
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	done := make(chan int, 1)
	l.mu.Lock()
	good := l.note
	l.note = []byte("<html>")
	l.mu.Unlock()
	go func() { done <- cli.Run(ctx, cmd) }()
	for !strings.Contains(errs.String(), "trying again") {
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(30 * time.Millisecond)
	if n := strings.Count(errs.String(), "trying again"); n != 1 {
		t.Errorf("the same trouble is told %d times", n)
	}
	l.mu.Lock()
	l.note = good
	l.mu.Unlock()
	for !strings.Contains(errs.String(), "watching") {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit %d", code)
	}
}
