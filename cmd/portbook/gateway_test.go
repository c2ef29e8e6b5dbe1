package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/internal/world"
	"github.com/portbook/portbook/registry/gateway"
)

// conflictingLog is a log that holds every name with other bytes.
type conflictingLog struct{}

func (conflictingLog) Ready(context.Context) error { return nil }
func (conflictingLog) Submit(context.Context, *entry.Entry) (*submit.Ack, error) {
	return nil, &submit.Conflict{FirstIndex: 7, Reason: "the name is pinned to other bytes"}
}

func gatewayPolicy(t *testing.T) (file string, p *c2sp.Policy) {
	t.Helper()
	key, err := c2sp.GenerateSigner("log.example", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	text := []byte("log " + key.Key().String() + "\nquorum none\n")
	file = filepath.Join(t.TempDir(), "policy")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if p, err = c2sp.ParsePolicy(text); err != nil {
		t.Fatal(err)
	}
	return file, p
}

// gatewayRun runs portbook gateway with args.
func gatewayRun(ctx context.Context, out io.Writer, args ...string) (code int, stderr string) {
	root := rootCmd()
	var e bytes.Buffer
	root.SetOut(out)
	root.SetErr(&e)
	root.SetArgs(append([]string{"gateway"}, args...))
	return cli.Run(ctx, root), e.String()
}

func gatewayUpload(t *testing.T, to string) int {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, f := range [][2]string{{":action", "file_upload"}, {"protocol_version", "1"}, {"name", "demo"}, {"version", "1.0"}} {
		w.WriteField(f[0], f[1])
	}
	c, _ := w.CreateFormFile("content", world.WheelName("demo", "1.0"))
	c.Write(world.BuildWheel("demo", "1.0", nil))
	w.Close()
	resp, err := http.Post(to+"/legacy/", w.FormDataContentType(), &b)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func gatewayIndex(t *testing.T) string {
	t.Helper()
	x, err := world.NewIndex(t.TempDir(), world.IndexOptions{})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(x)
	t.Cleanup(srv.Close)
	return srv.URL
}

// TestGatewayServesAndLists: the command holds an upload while the log is away,
// pending lists it, and the command ends cleanly when asked to.
func TestGatewayServesAndLists(t *testing.T) {
	policy, _ := gatewayPolicy(t)
	dir := filepath.Join(t.TempDir(), "gateway")
	config := filepath.Join(t.TempDir(), "gateway.yaml")
	err := os.WriteFile(config, []byte("registry: packages.example\nindex: "+gatewayIndex(t)+"/simple/\ndir: "+dir+"\npolicy: "+policy+"\nproof-wait: 2s\n"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	r, w := io.Pipe()
	type result struct {
		code   int
		stderr string
	}
	ended := make(chan result, 1)
	go func() {
		code, stderr := gatewayRun(ctx, w, "--config", config, "--listen", "127.0.0.1:0", "--log", "http://127.0.0.1:1")
		w.Close()
		ended <- result{code, stderr}
	}()
	line := make([]byte, 4096)
	n, err := r.Read(line)
	if err != nil {
		t.Fatalf("the gateway did not start: %+v", <-ended)
	}
	at := regexp.MustCompile(`http://[^/]+`).FindString(string(line[:n]))
	if code := gatewayUpload(t, at); code != 200 {
		t.Errorf("upload: %d", code)
	}
	var out bytes.Buffer
	if code, stderr := gatewayRun(ctx, &out, "pending", "--dir", dir, "--json"); code != cli.OK {
		t.Errorf("pending: %d %s", code, stderr)
	}
	var files []gateway.PendingFile
	if err := json.Unmarshal(out.Bytes(), &files); err != nil || len(files) != 1 || files[0].State != gateway.Submitted || files[0].LastError == "" {
		t.Errorf("pending --json: %s", out.String())
	}
	out.Reset()
	if code, _ := gatewayRun(ctx, &out, "pending", "--dir", dir); code != cli.OK || !strings.Contains(out.String(), "demo-1.0-py3-none-any.whl") {
		t.Errorf("pending: %d %s", code, out.String())
	}
	stop()
	select {
	case res := <-ended:
		if res.code != cli.OK {
			t.Errorf("ended with %d %s", res.code, res.stderr)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the gateway did not end")
	}
}

// TestGatewayPendingConflict: a conflict makes pending exit with 1.
func TestGatewayPendingConflict(t *testing.T) {
	_, policy := gatewayPolicy(t)
	index, err := url.Parse(gatewayIndex(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	g, err := gateway.New(context.Background(), gateway.Config{Registry: "packages.example", Index: index.JoinPath("simple/"), Upload: index.JoinPath("legacy/"), Dir: dir, Log: conflictingLog{}, Policy: policy})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(g)
	code := gatewayUpload(t, srv.URL)
	srv.Close()
	if err := g.Close(); err != nil || code != 409 {
		t.Errorf("upload: %d, %v", code, err)
	}
	var out bytes.Buffer
	if code, _ := gatewayRun(context.Background(), &out, "pending", "--dir", dir); code != cli.Refused || !strings.Contains(out.String(), "conflict") {
		t.Errorf("pending: %d %s", code, out.String())
	}
	out.Reset()
	if _, _ = gatewayRun(context.Background(), &out, "pending", "--dir", dir, "--json"); !strings.Contains(out.String(), `"first_index": 7`) {
		t.Errorf("pending --json: %s", out.String())
	}
}

// TestGatewayUsage: mistakes in the configuration are named and exit with 2, what
// is not there with 3.
func TestGatewayUsage(t *testing.T) {
	policy, _ := gatewayPolicy(t)
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("accounts:\n  ci:\n    publisher: {kind: github, repo: a/b}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	good := map[string]string{"--registry": "packages.example", "--index": "http://127.0.0.1:1/simple/", "--dir": filepath.Join(t.TempDir(), "g"), "--log": "http://127.0.0.1:1", "--policy": policy, "--listen": "127.0.0.1:0"}
	for _, c := range []struct {
		flag, value string
		code        int
		want        string
	}{
		{"--registry", "", cli.BadUsage, "--registry is required"},
		{"--registry", "https://packages.example", cli.BadUsage, "registry"},
		{"--index", "ftp://x/", cli.BadUsage, "URL"},
		{"--index", "http://user:secret@127.0.0.1/simple/", cli.BadUsage, "without user"},
		{"--upload", "nowhere", cli.BadUsage, "upload URL"},
		{"--log", "127.0.0.1:1", cli.BadUsage, "https://"},
		{"--policy", "/nonexistent", cli.BadUsage, "--policy"},
		{"--policy", bad, cli.BadUsage, "--policy"},
		{"--accounts", bad, cli.BadUsage, "repo"},
		{"--on-log-outage", "ignore", cli.BadUsage, "hold or refuse"},
		{"--unlogged", "maybe", cli.BadUsage, "pass or hide"},
		{"--max-size", "0", cli.BadUsage, "more than 0"},
		{"--token-file", "/dev/null", cli.BadUsage, "not a plain file"},
		{"--nonsense", "1", cli.BadUsage, "unknown flag"},
	} {
		var args []string
		for k, v := range good {
			if k != c.flag {
				args = append(args, k, v)
			}
		}
		if c.value != "" {
			args = append(args, c.flag, c.value)
		}
		if code, stderr := gatewayRun(context.Background(), io.Discard, args...); code != c.code || !strings.Contains(stderr, c.want) || strings.Contains(stderr, "secret") {
			t.Errorf("%s %s: %d %s", c.flag, c.value, code, stderr)
		}
	}
	if code, stderr := gatewayRun(context.Background(), io.Discard, "pending", "--dir", t.TempDir()); code != cli.CannotCheck || !strings.Contains(stderr, "no gateway keeps its state here") {
		t.Errorf("pending without a gateway: %d %s", code, stderr)
	}
}
