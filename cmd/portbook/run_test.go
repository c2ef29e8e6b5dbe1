package main

// portbook run with a real pip: what it installs, what it refuses, what it says
// at the end and how it exits.

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/spf13/cobra"
)

// A shop is an index of wheels, each with a proof from a log of one entry.
type shop struct {
	t        *testing.T
	dir      string
	python   string
	log      *c2sp.Signer
	registry string
	files    map[string][]byte
	srv      *httptest.Server
	policy   string
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{t: t, dir: t.TempDir(), files: map[string][]byte{}}
	for _, py := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(py, "-m", "pip", "--version").Run() == nil {
			s.python = py
			break
		}
	}
	if s.python == "" {
		t.Skip("needs pip (python3-pip)")
	}
	var err error
	if s.log, err = c2sp.GenerateSigner("log.test", c2sp.AlgEd25519); err != nil {
		t.Fatal(err)
	}
	s.policy = filepath.Join(s.dir, "policy")
	s.write("policy", "log "+s.log.Key().String()+"\nquorum none\n")
	s.srv = httptest.NewServer(s)
	t.Cleanup(s.srv.Close)
	if s.registry, err = entry.RegistryFromURL(s.srv.URL); err != nil {
		t.Fatal(err)
	}
	// What a person may have set, and must not lead past the proxy.
	s.write("pip.conf", "[global]\nextra-index-url = http://127.0.0.1:9/evil/\nfind-links = "+filepath.Join(s.dir, "links")+"\nno-index = true\n[install]\nindex-url = http://127.0.0.1:9/evil/\n")
	for _, k := range []string{"PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"} {
		t.Setenv(k, "") // restores it
		os.Unsetenv(k)
	}
	for k, v := range map[string]string{"HOME": s.dir, "XDG_STATE_HOME": s.dir, "PIP_CONFIG_FILE": filepath.Join(s.dir, "pip.conf"), "PIP_FIND_LINKS": filepath.Join(s.dir, "links"),
		"PIP_EXTRA_INDEX_URL": "http://127.0.0.1:9/evil/", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "", "HTTPS_PROXY": "", "NO_PROXY": "127.0.0.1",
		"COLUMNS": "1000", "PIP_ROOT_USER_ACTION": "ignore"} {
		t.Setenv(k, v)
	}
	return s
}

func (s *shop) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if project, ok := strings.CutPrefix(r.URL.Path, "/simple/"); ok {
		w.Header().Set("Content-Type", "text/html")
		for name := range s.files {
			if strings.HasPrefix(name, strings.TrimSuffix(project, "/")+"-") && strings.HasSuffix(name, ".whl") {
				fmt.Fprintf(w, "<a href='/f/%s'>%[1]s</a>", name)
			}
		}
		return
	}
	b, ok := s.files[strings.TrimPrefix(r.URL.Path, "/f/")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Write(b)
}

// add serves a wheel of a project, proven, and returns its name.
func (s *shop) add(project string, requires ...string) string {
	s.t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	info := project + "-1.0.dist-info/"
	meta := "Metadata-Version: 2.1\nName: " + project + "\nVersion: 1.0\n"
	for _, r := range requires {
		meta += "Requires-Dist: " + r + "\n"
	}
	for _, f := range [][2]string{{project + ".py", "V = 1\n"}, {info + "METADATA", meta},
		{info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{info + "RECORD", project + ".py,,\n" + info + "METADATA,,\n" + info + "WHEEL,,\n" + info + "RECORD,,\n"}} {
		w, err := z.Create(f[0])
		if err != nil {
			s.t.Fatal(err)
		}
		w.Write([]byte(f[1]))
	}
	if err := z.Close(); err != nil {
		s.t.Fatal(err)
	}
	name := project + "-1.0-py3-none-any.whl"
	sum := sha256.Sum256(b.Bytes())
	e := entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: s.registry, Ecosystem: entry.PyPI, Project: project, Version: "1.0",
		File: name, Size: entry.Uint(uint64(b.Len())), SHA256: hex.EncodeToString(sum[:]), Time: time.Now().UTC().Format(entry.TimeFormat)}
	leaf, err := e.Marshal()
	if err != nil {
		s.t.Fatal(err)
	}
	c := c2sp.Checkpoint{Origin: "log.test", Size: 1, Root: entry.LeafHash(leaf)}
	sig, err := s.log.Sign(c.Text())
	if err != nil {
		s.t.Fatal(err)
	}
	proof := c2sp.Proof{Extra: leaf, Checkpoint: []byte(c.Text() + "\n" + sig.Line())}
	s.files[name], s.files[name+".tlog-proof"] = b.Bytes(), proof.Bytes()
	return name
}

// run runs "portbook run" and returns its exit code and all it printed.
func (s *shop) run(flags []string, args ...string) (code int, out string) {
	s.t.Helper()
	var b bytes.Buffer
	root := &cobra.Command{Use: "portbook"}
	root.AddCommand(runCmd())
	root.SetOut(&b)
	root.SetErr(&b)
	root.SetArgs(append(append([]string{"run", "--index", s.srv.URL + "/simple/", "--policy", s.policy}, flags...), append([]string{"--"}, args...)...))
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	code = cli.Run(ctx, root)
	return code, b.String()
}

// target returns pip's arguments to install into a fresh directory, and what
// arrived there.
func (s *shop) target() (args []string, arrived func() []string) {
	dir := s.t.TempDir()
	return []string{s.python, "-m", "pip", "install", "--target", dir}, func() (names []string) {
		left, _ := filepath.Glob(filepath.Join(dir, "*.py"))
		for _, l := range left {
			names = append(names, filepath.Base(l))
		}
		return names
	}
}

func (s *shop) expect(flags, args []string, code int, says ...string) {
	s.t.Helper()
	got, out := s.run(flags, args...)
	if got != code {
		s.t.Errorf("%q: exit %d, want %d\n%s", args, got, code, out)
	}
	for _, want := range says {
		if !strings.Contains(out, want) {
			s.t.Errorf("%q: lacks %q\n%s", args, want, out)
		}
	}
}

func TestRunVerified(t *testing.T) {
	s := newShop(t)
	s.add("aaa", "bbb")
	s.add("bbb")
	// What pip would take from elsewhere if anything led it there.
	os.MkdirAll(filepath.Join(s.dir, "links"), 0o755)
	s.write("links/bbb-2.0-py3-none-any.whl", "not even a wheel")
	args, arrived := s.target()
	report := filepath.Join(s.dir, "report.json")
	s.expect([]string{"--report", report}, append(args, "aaa"), 0, "portbook: 2 verified, 0 refused, 0 could not be checked\n", "Successfully installed aaa-1.0 bbb-1.0")
	if got := arrived(); len(got) != 2 {
		t.Errorf("installed %q", got)
	}
	var r struct{ Verified, Refused int }
	if b, err := os.ReadFile(report); err != nil || json.Unmarshal(b, &r) != nil || r.Verified != 2 {
		t.Errorf("report: %v %s", err, b)
	}
}

func TestRunRefused(t *testing.T) {
	s := newShop(t)
	name := s.add("aaa")
	s.files[name] = bytes.Replace(s.files[name], []byte("V = 1"), []byte("V = 2"), 1)
	if !bytes.Contains(s.files[name], []byte("V = ")) {
		s.files[name] = append(s.files[name][:len(s.files[name])-1:len(s.files[name])-1], 1)
	}
	args, arrived := s.target()
	s.expect(nil, append(args, "aaa"), 1, "PORTBOOK REFUSED (PB115)", "portbook: REFUSED http://", "portbook: 0 verified, 1 refused, 0 could not be checked\n")
	delete(s.files, name+".tlog-proof")
	s.expect(nil, append(args, "aaa"), 1, "PORTBOOK REFUSED (PB117)")
	if got := arrived(); len(got) != 0 {
		t.Errorf("installed %q", got)
	}
}

// A package may name its dependency by URL. pip follows it, for packages that
// are not PyPI's own; it must come past us to do so.
func TestRunRefusesDirectDependency(t *testing.T) {
	s := newShop(t)
	asked := false
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked = true; http.NotFound(w, r) }))
	defer evil.Close()
	s.add("aaa", "bbb @ "+evil.URL+"/bbb-1.0-py3-none-any.whl")
	s.add("ccc", "ddd @ https://"+strings.TrimPrefix(evil.URL, "http://")+"/ddd-1.0-py3-none-any.whl")
	for _, p := range []string{"aaa", "ccc"} {
		args, arrived := s.target()
		s.expect(nil, append(args, p), 1, "PORTBOOK REFUSED (PB151): a direct URL bypasses the index", "portbook: 1 verified, 1 refused, 0 could not be checked\n")
		if got := arrived(); len(got) != 0 || asked {
			t.Errorf("installed %q, asked %v", got, asked)
		}
	}
	if _, err := exec.LookPath("git"); err == nil {
		s.add("eee", "fff @ git+"+evil.URL+"/fff")
		args, arrived := s.target()
		s.expect(nil, append(args, "eee"), commandFailed, "transport 'http' not allowed")
		if got := arrived(); len(got) != 0 || asked {
			t.Errorf("installed %q, asked %v", got, asked)
		}
	}
}

func TestRunCannotCheck(t *testing.T) {
	s := newShop(t)
	s.add("aaa")
	s.srv.Close()
	args, _ := s.target()
	s.expect(nil, append(args, "aaa"), 3, "CANNOT CHECK (not evidence of tampering)", "portbook: 0 verified, 0 refused, 1 could not be checked\n")
}

func TestRunCommandFailsItself(t *testing.T) {
	s := newShop(t)
	args, _ := s.target()
	s.expect(nil, append(args, "absent"), commandFailed, "No matching distribution", "the command failed: exit status 1", "portbook: 0 verified, 0 refused, 0 could not be checked\n")
}

// The index a person has set for pip is the one that is verified.
func TestRunTakesPipsIndex(t *testing.T) {
	s := newShop(t)
	s.add("aaa")
	t.Setenv("PIP_INDEX_URL", strings.Replace(s.srv.URL, "http://", "http://me:secret@", 1)+"/simple/")
	args, _ := s.target()
	var b bytes.Buffer
	root := &cobra.Command{Use: "portbook"}
	root.AddCommand(runCmd())
	root.SetOut(&b)
	root.SetErr(&b)
	root.SetArgs(append([]string{"run", "--policy", s.policy, "--"}, append(args, "aaa")...))
	if code := cli.Run(t.Context(), root); code != 0 || !strings.Contains(b.String(), "portbook: index "+s.srv.URL+"/simple/, registry "+s.registry+"\n") || strings.Contains(b.String(), "secret") {
		t.Errorf("exit %d\n%s", code, b.String())
	}
}

func TestRunUsage(t *testing.T) {
	s := newShop(t)
	s.write("r.txt", "aaa\n--extra-index-url http://127.0.0.1:9/\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"npm", "install", "x"}, "run knows pip only"},
		{[]string{"pip", "install", "--extra-index-url", "http://e", "x"}, "--extra-index-url: a second index would go unverified"},
		{[]string{"pip", "install", "-i", "http://e", "x"}, "-i: the index is the one given to portbook"},
		{[]string{"pip", "install", "-r", filepath.Join(s.dir, "r.txt")}, "r.txt:2: --extra-index-url"},
		{[]string{"pip", "install", "git+https://e/x"}, "git+https://e/x: is not from the index"},
		{[]string{"pip", "install", "."}, "--allow-local"},
		{[]string{"pip-of-nobody"}, "run knows pip only"},
		{[]string{"/nowhere/pip", "install", "x"}, "no such file"},
		{nil, "requires at least 1 arg"},
	} {
		s.expect(nil, c.args, 2, c.want)
	}
	s.expect([]string{"--policy", filepath.Join(s.dir, "absent")}, []string{"pip", "install", "x"}, 2, "absent")
	s.expect([]string{"--index", "nowhere"}, []string{"pip", "install", "x"}, 2, "--index")
	s.expect([]string{"--registry", "https://x"}, []string{"pip", "install", "x"}, 2, "registry")
}

func TestRunLocalIsSkippedAndCounted(t *testing.T) {
	s := newShop(t)
	name := s.add("aaa", "bbb")
	s.add("bbb")
	s.write(name, string(s.files[name]))
	args, arrived := s.target()
	wheel := filepath.Join(s.dir, name)
	s.expect([]string{"--allow-local"}, append(args, wheel), 0, "portbook: 1 verified, 0 refused, 0 could not be checked, 1 skipped (local: "+wheel+")\n")
	if got := arrived(); len(got) != 2 {
		t.Errorf("installed %q", got)
	}
}

// The long-running proxy, as a person starts it.
func TestProxyCommand(t *testing.T) {
	s := newShop(t)
	name := s.add("aaa")
	var out, errs syncBuffer
	root := &cobra.Command{Use: "portbook"}
	root.AddCommand(proxyCmd())
	root.SetOut(&out)
	root.SetErr(&errs)
	s.write("proxy.yaml", "index: "+s.srv.URL+"/simple/\npolicy: "+s.policy+"\nlisten: 127.0.0.1:0\nstate: none\n")
	root.SetArgs([]string{"proxy", "--config", filepath.Join(s.dir, "proxy.yaml")})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() { done <- cli.Run(ctx, root) }()
	var url string
	for i := 0; url == "" && i < 500; i++ {
		time.Sleep(10 * time.Millisecond)
		if f := strings.Fields(out.String()); len(f) > 2 {
			url = strings.TrimSuffix(f[2], "/simple/")
		}
	}
	resp, err := http.Get(url + "/files/" + strings.Replace(s.srv.URL, "://", "/", 1) + "/f/" + name)
	if err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("%s", resp.Status)
	}
	cancel()
	if code := <-done; code != 0 || !strings.Contains(errs.String(), "portbook proxy: 1 verified, 0 refused, 0 could not be checked") {
		t.Errorf("exit %d: %s", code, errs.String())
	}
}
