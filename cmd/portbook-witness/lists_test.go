package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness"
)

// TestListAddsNoKey: neither a list that names an unknown log twice with two keys
// nor --another-key makes a witness trust a key of nobody's choosing.
func TestListAddsNoKey(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	dir := filepath.Join(work, "w")
	d, err := witness.CreateDir(t.Context(), dir, "w.example/w1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	run := func(args ...string) (string, error) {
		var out strings.Builder
		cmd := addLogCmd()
		cmd.SetArgs(append([]string{"--dir", dir, "--yes"}, args...))
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SilenceUsage = true
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	key := func() string {
		s, err := c2sp.GenerateSigner("log.example/twice", c2sp.AlgEd25519)
		if err != nil {
			t.Fatal(err)
		}
		return s.Key().String()
	}
	first, second := key(), key()
	file := filepath.Join(work, "logs")
	if err := os.WriteFile(file, []byte(first+"\n"+second+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run("--file", file); err == nil || !strings.Contains(out, "NOT added") {
		t.Errorf("two keys of one log: %v\n%s", err, out)
	}
	for _, from := range []string{"--file", "--list"} {
		if out, err := run(from, file, "--another-key"); err == nil || !strings.Contains(err.Error(), "--another-key") {
			t.Errorf("%s with --another-key: %v\n%s", from, err, out)
		}
	}
	l, err := d.Store.Log(t.Context(), "log.example/twice")
	if err != nil || len(l.Keys) != 1 || l.Keys[0].String() != first {
		t.Errorf("trusted: %+v %v", l, err)
	}

	broken := filepath.Join(work, "broken")
	if err := os.WriteFile(broken, []byte("logs/v0\nvkey nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run("--list", broken); err == nil {
		t.Errorf("a list without a line that can be read: no error\n%s", out)
	}
}

// TestListIsNotRedirected: a list comes from the URL that was given, or not at all.
func TestListIsNotRedirected(t *testing.T) {
	followed := false
	srv := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			followed = true
		}
		http.Redirect(rw, r, "/elsewhere", http.StatusFound)
	}))
	defer srv.Close()
	was := http.DefaultTransport
	http.DefaultTransport = srv.Client().Transport // it trusts the server
	defer func() { http.DefaultTransport = was }()
	if _, err := readList(t.Context(), srv.URL+"/list"); err == nil || !strings.Contains(err.Error(), "302") || followed {
		t.Errorf("followed %v: %v", followed, err)
	}
}
