package gateway_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/world"
	"github.com/portbook/portbook/registry/gateway"
	"github.com/portbook/portbook/registry/pypi"
)

const registry = "packages.example"

var accounts = map[string]string{"alice": "alice-secret", "mallory": "mallory-secret", "ci": "ci-secret"}

// A stage is an index, a log, and a gateway between them.
type stage struct {
	t        *testing.T
	index    *world.Index
	indexURL string
	log      *fakeLog
	cfg      gateway.Config
	logs     *lockedBuffer

	g    *gateway.Gateway
	url  string
	stop func()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newStage starts a stage. Change may alter the configuration.
func newStage(t *testing.T, change ...func(*gateway.Config)) *stage {
	t.Helper()
	s := &stage{t: t, log: newFakeLog(t), logs: &lockedBuffer{}}
	var err error
	if s.index, err = world.NewIndex(t.TempDir(), world.IndexOptions{Accounts: accounts}); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(s.index)
	t.Cleanup(srv.Close)
	s.indexURL = srv.URL
	s.cfg = gateway.Config{
		Registry: registry, Index: parseURL(t, srv.URL+"/simple/"), Upload: parseURL(t, srv.URL+"/legacy/"),
		Dir: filepath.Join(t.TempDir(), "gateway"), Log: s.log, Policy: s.log.policy, ProofWait: 5 * time.Second,
		Logger: slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(&s.cfg)
	}
	s.start()
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("the gateway's log:\n%s", s.logs)
		}
	})
	return s
}

// start starts the gateway, on what an earlier one left behind.
func (s *stage) start() {
	s.t.Helper()
	g, err := gateway.New(context.Background(), s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); g.Run(ctx) }()
	srv := httptest.NewServer(g)
	s.g, s.url = g, srv.URL
	var once sync.Once
	s.stop = func() {
		once.Do(func() {
			cancel()
			<-done
			srv.CloseClientConnections()
			srv.Close()
			if err := g.Close(); err != nil {
				s.t.Error(err)
			}
		})
	}
}

func parseURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// A dist is a distribution to upload.
type dist struct {
	project, version, file string
	content                []byte
}

func wheel(project, version string, more ...string) dist {
	files := map[string]string{project + ".py": "VERSION = '" + version + "'\n" + strings.Join(more, "\n")}
	return dist{project, version, world.WheelName(project, version), world.BuildWheel(project, version, files)}
}

func (d dist) sha256() string {
	sum := sha256.Sum256(d.content)
	return hex.EncodeToString(sum[:])
}

// form is d as an upload form; fields are added or, with an empty value, removed.
func (d dist) form(t *testing.T, fields ...string) (contentType string, body []byte) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	f := map[string]string{":action": "file_upload", "protocol_version": "1", "metadata_version": "2.1", "name": d.project, "version": d.version, "filetype": "bdist_wheel", "sha256_digest": d.sha256()}
	for i := 0; i < len(fields); i += 2 {
		f[fields[i]] = fields[i+1]
	}
	for k, v := range f {
		if v != "" {
			w.WriteField(k, v)
		}
	}
	c, err := w.CreateFormFile("content", d.file)
	if err != nil {
		t.Fatal(err)
	}
	c.Write(d.content)
	w.Close()
	return w.FormDataContentType(), b.Bytes()
}

// upload sends d as user straight to the gateway, as twine would without retries.
func (s *stage) upload(user string, d dist, fields ...string) (status int, reason, state string) {
	s.t.Helper()
	contentType, body := d.form(s.t, fields...)
	return s.post(user, contentType, body)
}

func (s *stage) post(user, contentType string, body []byte) (status int, reason, state string) {
	s.t.Helper()
	req, _ := http.NewRequest("POST", s.url+"/legacy/", bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	if user != "" {
		req.SetBasicAuth(user, accounts[user])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Status, resp.Header.Get("Portbook-State")
}

// mustUpload is upload that must end with the file proven.
func (s *stage) mustUpload(user string, d dist) {
	s.t.Helper()
	if code, reason, state := s.upload(user, d); code >= 300 || !strings.HasPrefix(state, "proven") {
		s.t.Fatalf("upload of %s by %s: %s, state %q", d.file, user, reason, state)
	}
}

func (s *stage) get(path, accept string) (int, string, http.Header) {
	s.t.Helper()
	req, _ := http.NewRequest("GET", s.url+path, nil)
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := (&http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// listed tells whether the gateway's page lists a file; both serialisations must
// agree.
func (s *stage) listed(d dist) bool {
	s.t.Helper()
	html, json := s.listedTwice(d)
	if html != json { // it may have changed between the two
		html, json = s.listedTwice(d)
	}
	if html != json {
		s.t.Fatalf("%s: listed in HTML: %v, in JSON: %v", d.file, html, json)
	}
	return html
}

func (s *stage) listedTwice(d dist) (html, json bool) {
	s.t.Helper()
	var found [2]bool
	for i, accept := range []string{"text/html", string(pypi.MediaJSON)} {
		code, body, h := s.get("/simple/"+d.project+"/", accept)
		if code == 404 {
			continue
		}
		if code != 200 {
			s.t.Fatalf("page of %s: %d %s", d.project, code, body)
		}
		page, err := pypi.Parse(h.Get("Content-Type"), []byte(body), parseURL(s.t, s.url+"/simple/"+d.project+"/"))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, f := range page.Files {
			found[i] = found[i] || f.Name == d.file
		}
	}
	return found[0], found[1]
}

// checkProven fails unless d is listed, served whole, and proven by what is
// served beside it.
func (s *stage) checkProven(d dist) *client.Verified {
	s.t.Helper()
	if !s.listed(d) {
		s.t.Fatalf("%s is not on the page", d.file)
	}
	at := "/files/" + d.project + "/" + d.file
	if code, body, _ := s.get(at, ""); code != 200 || body != string(d.content) {
		s.t.Fatalf("%s: %d, %d bytes", d.file, code, len(body))
	}
	code, proof, _ := s.get(at+".tlog-proof", "")
	if code != 200 {
		s.t.Fatalf("proof of %s: %d %s", d.file, code, proof)
	}
	v, err := client.Verify(s.log.policy, client.File{Registry: registry, Ecosystem: entry.PyPI, Project: d.project, Name: d.file, SHA256: sha256.Sum256(d.content)}, []byte(proof))
	if err != nil {
		s.t.Fatalf("proof of %s: %v", d.file, err)
	}
	return v
}

// checkWithheld fails if anything of d can be seen through the gateway.
func (s *stage) checkWithheld(d dist) {
	s.t.Helper()
	if s.listed(d) {
		s.t.Errorf("%s is on the page", d.file)
	}
	for _, suffix := range []string{"", ".metadata", ".tlog-proof"} {
		if code, _, _ := s.get("/files/"+d.project+"/"+d.file+suffix, ""); code != 403 && code != 404 {
			s.t.Errorf("%s%s answers %d", d.file, suffix, code)
		}
	}
}

func (s *stage) pending() []gateway.PendingFile {
	s.t.Helper()
	p, err := gateway.Pending(context.Background(), s.cfg.Dir)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// eventually waits for cond.
func (s *stage) eventually(what string, cond func() bool) {
	s.t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if cond() {
			return
		}
	}
	s.t.Fatalf("never: %s; pending: %+v", what, s.pending())
}

func need(t *testing.T, tool string) string {
	t.Helper()
	p, err := exec.LookPath(tool)
	if err != nil {
		t.Skipf("needs %s", tool)
	}
	return p
}

// tool runs a program without the settings of this machine.
func tool(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(need(t, name), args...)
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "NO_COLOR=1", "COLUMNS=1000", "PIP_DISABLE_PIP_VERSION_CHECK=1", "PYTHON_KEYRING_BACKEND=keyring.backends.null.Keyring"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// twine uploads files through the gateway.
func (s *stage) twine(user, pass string, files ...string) (string, error) {
	s.t.Helper()
	return tool(s.t, "twine", append([]string{"upload", "--verbose", "--non-interactive", "--disable-progress-bar", "--repository-url", s.url + "/legacy/", "-u", user, "-p", pass}, files...)...)
}

func (d dist) write(t *testing.T) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), d.file)
	if err := os.WriteFile(p, d.content, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestTwineToPip is the whole way with real neighbours: twine uploads wheels and a
// source distribution, each is proven, pip installs one. No password is written
// anywhere on the way.
func TestTwineToPip(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	mine := wheel("portdemo", "1.0")
	sdist := dist{"portdemo", "1.0", world.SdistName("portdemo", "1.0"), world.BuildSdist("portdemo", "1.0", nil)}
	files := []string{mine.write(t), sdist.write(t)}
	all := []dist{mine, sdist}
	real, _ := filepath.Glob("/usr/share/python-wheels/*.whl")
	for _, p := range real {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		project, version, err := pypi.ParseFileName(filepath.Base(p))
		if err != nil {
			t.Fatal(err)
		}
		files, all = append(files, p), append(all, dist{project, version, filepath.Base(p), b})
	}
	if out, err := s.twine("alice", "alice-secret", files...); err != nil {
		t.Fatalf("twine: %v\n%s", err, out)
	}
	uploader := map[string]string{}
	for _, d := range all {
		v := s.checkProven(d)
		e := v.Entry
		if e.Auth != "password" || len(e.Uploader) != 64 || e.Publisher != nil || e.SHA512 == "" || *e.Size != uint64(len(d.content)) {
			t.Errorf("%s: entry %+v", d.file, e)
		}
		if _, seen := uploader[e.Project]; seen && uploader[e.Project] != e.Uploader {
			t.Errorf("%s: one account has two pseudonyms in one project", e.Project)
		}
		for other, name := range uploader {
			if other != e.Project && name == e.Uploader {
				t.Errorf("%s and %s: the pseudonym links two projects", other, e.Project)
			}
		}
		uploader[e.Project] = e.Uploader
		if strings.HasSuffix(d.file, ".whl") {
			code, meta, _ := s.get("/files/"+d.project+"/"+d.file+".metadata", "")
			if sum := sha256.Sum256([]byte(meta)); code != 200 || hex.EncodeToString(sum[:]) != e.MetadataSHA256 {
				t.Errorf("%s: metadata %d, entry says %s", d.file, code, e.MetadataSHA256)
			}
		}
	}
	if len(s.log.entries(t)) != len(all) || len(s.pending()) != 0 {
		t.Errorf("%d entries for %d files, pending %v", len(s.log.entries(t)), len(all), s.pending())
	}
	target := t.TempDir()
	if out, err := tool(t, "pip", "install", "--no-cache-dir", "--target", target, "--index-url", s.url+"/simple/", "portdemo"); err != nil {
		t.Fatalf("pip: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(target, "portdemo.py")); err != nil || !strings.Contains(string(b), "1.0") {
		t.Errorf("installed %q, %v", b, err)
	}
	s.stop()
	basic := "YWxpY2U6YWxpY2Utc2VjcmV0" // alice:alice-secret in base64
	written := s.logs.String()
	filepath.Walk(s.cfg.Dir, func(p string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			b, _ := os.ReadFile(p)
			written += string(b)
			if fi.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s can be read by others: %v", p, fi.Mode())
			}
		}
		return nil
	})
	if strings.Contains(written, "alice-secret") || strings.Contains(written, basic) {
		t.Error("the password was written down")
	}
}

// TestAccounts: what the operator configured of an account is logged with its
// uploads, a token's account is nobody's guess.
func TestAccounts(t *testing.T) {
	t.Parallel()
	pub := &entry.Publisher{Kind: "github", Repository: "alice/demo", RepositoryID: "1", OwnerID: "2", Workflow: "release.yml"}
	s := newStage(t, func(c *gateway.Config) {
		c.Accounts = map[string]gateway.Account{"ci": {Publisher: pub, Auth: "trusted-publisher"}}
	})
	d := wheel("accounts", "1")
	s.mustUpload("ci", d)
	if e := s.checkProven(d).Entry; e.Publisher == nil || e.Publisher.Repository != "alice/demo" || e.Auth != "trusted-publisher" || e.Uploader == "" {
		t.Errorf("ci: %+v", e)
	}
	d = wheel("accounts", "2")
	if out, err := s.twine("__token__", s.index.Token("ci"), d.write(t)); err != nil {
		t.Fatalf("twine: %v\n%s", err, out)
	}
	if e := s.checkProven(d).Entry; e.Publisher != nil || e.Auth != "token" || e.Uploader != "" {
		t.Errorf("by token: %+v", e)
	}
	cfg := s.cfg
	cfg.Dir = t.TempDir()
	cfg.Accounts = map[string]gateway.Account{"ci": {Publisher: &entry.Publisher{Kind: "github", Subject: "who?"}}}
	if _, err := gateway.New(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), `account "ci": `) {
		t.Errorf("a publisher that no entry can carry: %v", err)
	}
}

// TestTurnedAwayByTheIndex: who the index turns away hears the index's own words,
// leaves no trace in the log, and takes no name from whom it belongs to.
func TestTurnedAwayByTheIndex(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	first, stolen := wheel("demo", "1.0"), wheel("demo", "1.0", "evil")
	check := func(what string, want string, out string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
		if n := len(s.log.entries(t)); n != 0 || s.log.submits != 0 {
			t.Errorf("%s: %d entries, %d submissions", what, n, s.log.submits)
		}
		if p := s.pending(); len(p) != 0 {
			t.Errorf("%s: pending %v", what, p)
		}
	}
	out, err := s.twine("alice", "wrong", first.write(t))
	check("wrong password", "403 Invalid or non-existent authentication information.", out, err)
	out, err = s.twine("nobody", "x", stolen.write(t))
	check("no account", "403 Invalid or non-existent authentication information.", out, err)
	s.index.RejectUploads("Uploads are closed")
	out, err = s.twine("alice", "alice-secret", first.write(t))
	check("index closed", "403 Uploads are closed", out, err)
	s.index.RejectUploads("")

	s.mustUpload("alice", first)
	for user, want := range map[string]string{"mallory": "403 The user 'mallory' isn't allowed to upload to project 'demo'.", "alice": "400 File already exists."} {
		out, err := s.twine(user, accounts[user], stolen.write(t))
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", user, err, out)
		}
	}
	if out, err := s.twine("mallory", "mallory-secret", first.write(t)); err == nil {
		t.Errorf("the same bytes by another: %s", out)
	}
	if out, err := s.twine("alice", "alice-secret", "--skip-existing", stolen.write(t)); err != nil {
		t.Errorf("--skip-existing: %v\n%s", err, out)
	}
	if out, err := s.twine("alice", "alice-secret", first.write(t)); err != nil {
		t.Errorf("identical duplicate: %v\n%s", err, out)
	}
	if n := len(s.log.entries(t)); n != 1 {
		t.Errorf("%d entries for one accepted file", n)
	}
	s.checkProven(first)
}

// TestHeldWhileTheLogIsOut: with hold, an upload succeeds while the log is out,
// stays off the pages, and appears by itself when it can be proven.
func TestHeldWhileTheLogIsOut(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	old, d := wheel("demo", "1.0"), wheel("demo", "2.0")
	s.mustUpload("alice", old)
	s.log.set(func() { s.log.down = true })
	if out, err := s.twine("alice", "alice-secret", d.write(t)); err != nil {
		t.Fatalf("twine: %v\n%s", err, out)
	}
	s.checkWithheld(d)
	s.checkProven(old)
	if _, body, _ := s.get("/simple/demo/", string(pypi.MediaJSON)); strings.Contains(body, "2.0") {
		t.Errorf("the page tells of the held version: %s", body)
	}
	p := s.pending()
	if len(p) != 1 || p[0].File != d.file || p[0].State != gateway.Submitted || p[0].LastError == "" || p[0].SHA256 != d.sha256() {
		t.Fatalf("pending: %+v", p)
	}
	if code, reason, _ := s.get("/files/demo/"+d.file, ""); code != 403 || !strings.Contains(reason, "withheld") {
		t.Errorf("held file: %d %s", code, reason)
	}
	s.stop() // and over a restart
	s.start()
	s.checkWithheld(d)
	s.log.set(func() { s.log.down = false })
	s.eventually("the held file is listed", func() bool { return s.listed(d) })
	if e := s.checkProven(d).Entry; e.Auth != "password" || e.Uploader == "" {
		t.Errorf("entry: %+v", e)
	}
	if p := s.pending(); len(p) != 0 {
		t.Errorf("pending: %v", p)
	}
}

// TestRefuseWhileTheLogIsOut: with refuse, nothing reaches the index while the log
// is out; a log that goes out after the index accepted is the one exception, and
// the file is held.
func TestRefuseWhileTheLogIsOut(t *testing.T) {
	t.Parallel()
	s := newStage(t, func(c *gateway.Config) { c.Refuse = true })
	s.log.set(func() { s.log.down = true })
	d := wheel("demo", "1.0")
	out, err := s.twine("alice", "alice-secret", d.write(t))
	if err == nil || !strings.Contains(out, "503") || !strings.Contains(out, "the transparency log is out") {
		t.Errorf("twine: %v\n%s", err, out)
	}
	if _, has := s.index.Has(d.file); has || len(s.pending()) != 0 {
		t.Errorf("the index has the file: %v, pending %v", has, s.pending())
	}
	s.log.set(func() { s.log.ready = true }) // says that it is ready, and is not
	if code, _, state := s.upload("alice", d); code != 200 || state != "held" {
		t.Errorf("log out after the index accepted: %d %s", code, state)
	}
	s.checkWithheld(d)
	if !strings.Contains(s.logs.String(), "went out after the index accepted") {
		t.Error("nobody was told that the file is held")
	}
	if code, reason, _ := s.upload("alice", wheel("demo", "2.0")); code != 503 {
		t.Errorf("while a file is held: %s", reason)
	}
	s.log.set(func() { s.log.down = false })
	s.eventually("the held file is listed", func() bool { return s.listed(d) })
	s.mustUpload("alice", wheel("demo", "2.0"))
}

// TestConflict: an index that lets a file be overwritten is found out, and the new
// bytes are withheld, also under a name that is proven for the old ones.
func TestConflict(t *testing.T) {
	t.Parallel()
	for _, htmlOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("htmlOnly=%v", htmlOnly), func(t *testing.T) {
			s := newStage(t)
			s.index.HTMLOnly(htmlOnly)
			s.index.AllowOverwrite(true)
			first, second := wheel("demo", "1.0"), wheel("demo", "1.0", "other bytes")
			s.mustUpload("alice", first)
			code, reason, _ := s.upload("alice", second)
			if code != 409 || !strings.Contains(reason, "with other bytes") {
				t.Errorf("uploader hears %s", reason)
			}
			if s.listed(second) {
				t.Error("the overwritten file is listed")
			}
			if code, _, _ := s.get("/files/demo/"+second.file, ""); code != 403 {
				t.Errorf("the overwritten file answers %d", code)
			}
			p := s.pending()
			if len(p) != 1 || p[0].State != gateway.Conflict || p[0].FirstIndex == nil || *p[0].FirstIndex != 0 {
				t.Errorf("pending: %+v", p)
			}
			if !strings.Contains(s.logs.String(), "OTHER BYTES UNDER A NAME THAT IS LOGGED") {
				t.Error("the conflict was not loud")
			}
			// Putting the first bytes back heals the page.
			s.mustUpload("alice", first)
			s.checkProven(first)
			if n := len(s.log.entries(t)); n != 1 {
				t.Errorf("%d entries", n)
			}
		})
	}
}

// TestSwappedAtTheIndex: bytes swapped behind everyone's back stay listed with the
// proof of the old ones, so that clients refuse them loudly.
func TestSwappedAtTheIndex(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	d := wheel("demo", "1.0")
	s.mustUpload("alice", d)
	if err := s.index.SwapFile("demo", d.file, []byte("swapped"), true); err != nil {
		t.Fatal(err)
	}
	if !s.listed(d) {
		t.Error("the swapped file vanished: pip would silently install an older one")
	}
	_, body, _ := s.get("/files/demo/"+d.file, "")
	_, proof, _ := s.get("/files/demo/"+d.file+".tlog-proof", "")
	_, err := client.Verify(s.log.policy, client.File{Registry: registry, Ecosystem: entry.PyPI, Name: d.file, SHA256: sha256.Sum256([]byte(body))}, []byte(proof))
	if body != "swapped" || err == nil || !strings.Contains(err.Error(), "sha256") {
		t.Errorf("%q verifies: %v", body, err)
	}
}

// TestLogMisbehaves: acknowledgements that get lost, proofs that are false, a log
// that is slow or unwilling. The file is listed only when proven, and logged once.
func TestLogMisbehaves(t *testing.T) {
	t.Parallel()
	other := newFakeLog(t) // a stranger's log
	stranger, err := other.Submit(context.Background(), &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: registry, Ecosystem: entry.PyPI,
		Project: "demo", Version: "1.0", File: wheel("demo", "1.0").file, Size: entry.Uint(1), SHA256: wheel("demo", "1.0").sha256(), Time: "2026-01-01T00:00:00Z"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		start func(l *fakeLog, earlier []byte)
		err   string // in pending
	}{
		{"logs, then fails", func(l *fakeLog, _ []byte) { l.thenFail = true }, "navailable"},
		{"is slow", func(l *fakeLog, _ []byte) { l.slow = 2 * time.Second }, ""},
		{"answers garbage", func(l *fakeLog, _ []byte) { l.lie = func([]byte) []byte { return []byte("proof, honestly") } }, "does not verify"},
		{"answers nothing", func(l *fakeLog, _ []byte) { l.lie = func([]byte) []byte { return nil } }, "does not verify"},
		{"proves another file", func(l *fakeLog, earlier []byte) { l.lie = func([]byte) []byte { return earlier } }, "does not verify"},
		{"is another log", func(l *fakeLog, _ []byte) { l.lie = func([]byte) []byte { return stranger.Proof } }, "does not verify"},
		{"has no quorum", func(l *fakeLog, _ []byte) {
			l.lie = func(p []byte) []byte { return p[:bytes.LastIndexByte(p[:len(p)-1], '\n')+1] } // without the last line
		}, "does not verify"},
		{"refuses our token", func(l *fakeLog, _ []byte) { l.unwilling = fmt.Errorf("unauthorized") }, "unauthorized"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, func(c *gateway.Config) { c.ProofWait = 300 * time.Millisecond })
			zero := wheel("demo", "0.1")
			s.mustUpload("alice", zero)
			_, p, _ := s.get("/files/demo/"+zero.file+".tlog-proof", "")
			s.log.set(func() { c.start(s.log, []byte(p)) })
			d := wheel("demo", "1.0")
			if code, reason, state := s.upload("alice", d); code != 200 || state != "held" {
				t.Fatalf("%s, state %q", reason, state)
			}
			s.checkWithheld(d)
			if p := s.pending(); len(p) != 1 || p[0].State != gateway.Submitted || !strings.Contains(p[0].LastError, c.err) {
				t.Errorf("pending: %+v", p)
			}
			s.log.set(func() { s.log.thenFail, s.log.slow, s.log.lie, s.log.unwilling = false, 0, nil, nil })
			s.eventually("listed", func() bool { return s.listed(d) })
			if v := s.checkProven(d); v.Index != 1 || len(s.log.entries(t)) != 2 {
				t.Errorf("index %d, %d entries", v.Index, len(s.log.entries(t)))
			}
		})
	}
}

// TestIndexAnswerLost: an index that takes a file and answers 500, or nothing, is
// asked what it did. The entry then names nobody: its uploader was never confirmed.
func TestIndexAnswerLost(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		fault    func(*world.Index, bool)
		htmlOnly bool
		lie      bool
		want     int
	}{
		{"500", (*world.Index).AcceptThen500, false, false, 500},
		{"dropped", (*world.Index).AcceptThenDrop, false, false, 502},
		{"500 without hashes on the page", (*world.Index).AcceptThen500, true, false, 500},
		{"dropped and a false digest on the page", (*world.Index).AcceptThenDrop, false, true, 502},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			s.index.HTMLOnly(c.htmlOnly)
			s.index.LieAboutDigest(c.lie)
			c.fault(s.index, true)
			d := wheel("demo", "1.0")
			s.log.set(func() { s.log.down = true })
			if code, reason, _ := s.upload("alice", d); code != c.want {
				t.Errorf("uploader hears %s", reason)
			}
			s.checkWithheld(d)
			s.log.set(func() { s.log.down = false })
			s.eventually("listed", func() bool { return s.listed(d) })
			if e := s.checkProven(d).Entry; e.Auth != "" || e.Uploader != "" || e.Publisher != nil {
				t.Errorf("the entry names an uploader whom nobody confirmed: %+v", e)
			}
		})
	}
	t.Run("twine tries again", func(t *testing.T) {
		s := newStage(t)
		s.index.AcceptThen500(true)
		d := wheel("demo", "1.0")
		if out, err := s.twine("alice", "alice-secret", d.write(t)); err != nil {
			t.Fatalf("twine: %v\n%s", err, out)
		}
		s.checkProven(d)
		s.eventually("nothing pending", func() bool { return len(s.pending()) == 0 })
		if n := len(s.log.entries(t)); n != 1 {
			t.Errorf("%d entries", n)
		}
	})
	t.Run("nothing was taken", func(t *testing.T) {
		s := newStage(t)
		d := wheel("demo", "1.0")
		s.index.Down(true)
		if code, reason, _ := s.upload("alice", d); code != 502 {
			t.Errorf("uploader hears %s", reason)
		}
		s.index.Down(false)
		if p := s.pending(); len(p) != 1 || p[0].State != gateway.Forwarding {
			t.Errorf("pending: %+v", p)
		}
		s.mustUpload("alice", d)
		s.eventually("nothing pending", func() bool { return len(s.pending()) == 0 })
		if n := len(s.log.entries(t)); n != 1 {
			t.Errorf("%d entries", n)
		}
	})
	t.Run("given up", func(t *testing.T) {
		var mu sync.Mutex
		var later time.Duration
		s := newStage(t, func(c *gateway.Config) {
			c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(later) }
		})
		s.index.Down(true)
		s.upload("alice", wheel("demo", "1.0"))
		s.index.Down(false)
		wait := func(d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			later += d
		}
		// However long nobody asked, one answer is one answer: the fifth, a quarter
		// of a day after the one before, completes the day.
		for n := range 4 {
			s.eventually("asked", func() bool {
				p := s.pending()
				return len(p) == 1 && p[0].Tries > n && strings.Contains(p[0].LastError, "does not list")
			})
			wait(100 * time.Hour)
		}
		s.eventually("nothing pending", func() bool { return len(s.pending()) == 0 })
		if n := len(s.log.entries(t)); n != 0 {
			t.Errorf("%d entries", n)
		}
	})
	t.Run("off for a weekend, and the index comes up later", func(t *testing.T) {
		var mu sync.Mutex
		var later time.Duration
		s := newStage(t, func(c *gateway.Config) {
			c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(later) }
		})
		d := wheel("demo", "1.0")
		s.index.AcceptThenDrop(true)
		s.upload("alice", d)
		s.stop()
		s.index.AcceptThenDrop(false)
		s.index.Down(true)
		mu.Lock()
		later = 60 * time.Hour
		mu.Unlock()
		s.start()
		tries := s.pending()[0].Tries
		s.eventually("asked in vain", func() bool { p := s.pending(); return len(p) == 1 && p[0].Tries > tries })
		s.index.Down(false)
		mu.Lock()
		later += time.Hour
		mu.Unlock()
		s.eventually("listed", func() bool { return s.listed(d) })
		s.checkProven(d)
	})
	t.Run("yes from a login page", func(t *testing.T) {
		login := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<h1>please log in</h1>")
		}))
		defer login.Close()
		s := newStage(t, func(c *gateway.Config) { c.Upload = parseURL(t, login.URL+"/legacy/") })
		d := wheel("victim", "2.0")
		if code, reason, _ := s.upload("", d); code != 502 || !strings.Contains(reason, "is a login in front of it?") {
			t.Errorf("uploader hears %s", reason)
		}
		s.checkWithheld(d)
		if n := len(s.log.entries(t)); n != 0 {
			t.Errorf("%d entries: a name was claimed by an upload that no index took", n)
		}
		if p := s.pending(); len(p) != 1 || p[0].State != gateway.Forwarding {
			t.Errorf("pending: %+v", p)
		}
	})
	t.Run("someone else's file", func(t *testing.T) {
		s := newStage(t)
		mine, theirs := wheel("demo", "1.0"), wheel("demo", "1.0", "mallory's")
		direct(s, "alice", mine)
		s.index.Down(true)
		s.upload("mallory", theirs)
		s.index.Down(false)
		s.eventually("nothing pending", func() bool { return len(s.pending()) == 0 })
		if n := len(s.log.entries(t)); n != 0 || !s.listed(mine) {
			t.Errorf("%d entries, listed: %v", n, s.listed(mine))
		}
	})
	t.Run("unreachable", func(t *testing.T) {
		s := newStage(t, func(c *gateway.Config) { c.Upload = &url.URL{Scheme: "http", Host: "127.0.0.1:1", Path: "/legacy/"} })
		if code, reason, _ := s.upload("alice", wheel("demo", "1.0")); code != 502 || !strings.Contains(reason, "nothing was uploaded") {
			t.Errorf("uploader hears %s", reason)
		}
		if p := s.pending(); len(p) != 0 {
			t.Errorf("pending: %+v", p)
		}
	})
}

// direct uploads to the index itself, past the gateway.
func direct(s *stage, user string, d dist) {
	s.t.Helper()
	through := s.url
	s.url = s.indexURL
	defer func() { s.url = through }()
	if code, reason, _ := s.upload(user, d); code >= 300 {
		s.t.Fatalf("direct upload: %s", reason)
	}
}

// TestHTMLOnlyIndex: in front of an index like Gitea or pypiserver.
func TestHTMLOnlyIndex(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.index.HTMLOnly(true)
	d, other := wheel("demo", "1.0"), wheel("demo", "1.0", "other")
	if code, _, state := s.upload("alice", d); code != 201 || !strings.HasPrefix(state, "proven") {
		t.Fatalf("%d %s", code, state)
	}
	s.checkProven(d)
	if code, reason, _ := s.upload("alice", other); code != 409 || !strings.Contains(reason, "File already exists") {
		t.Errorf("duplicate: %s", reason)
	}
	s.checkProven(d)
	s.log.set(func() { s.log.down = true })
	held := wheel("demo", "2.0")
	if code, _, state := s.upload("alice", held); code != 201 || state != "held" {
		t.Errorf("%d %s", code, state)
	}
	s.checkWithheld(held)
	s.checkProven(d)
}

// TestUnlogged: files that did not come through the gateway pass without a proof,
// or are hidden. An upload that the index turns away takes none of them down,
// whatever its bytes, not even while the index thinks about it.
func TestUnlogged(t *testing.T) {
	t.Parallel()
	for _, hide := range []bool{false, true} {
		s := newStage(t, func(c *gateway.Config) { c.HideUnlogged = hide })
		old := wheel("demo", "1.0")
		direct(s, "alice", old)
		if s.listed(old) == hide {
			t.Errorf("hide %v: listed %v", hide, s.listed(old))
		}
		if code, _, _ := s.get("/files/demo/"+old.file, ""); (code == 200) == hide {
			t.Errorf("hide %v: file answers %d", hide, code)
		}
		if code, _, _ := s.get("/files/demo/"+old.file+".tlog-proof", ""); code != 404 {
			t.Errorf("proof of an unlogged file answers %d", code)
		}
		if hide {
			continue
		}
		for _, d := range []dist{old, wheel("demo", "1.0", "evil")} {
			s.g.CrashForTest(func(point string) {
				if point == "forwarding" && !s.listed(old) {
					t.Errorf("an upload in flight takes down a file that was there before")
				}
			})
			if code, _, _ := s.upload("mallory", d); code != 403 {
				t.Errorf("mallory: %d", code)
			}
		}
		s.g.CrashForTest(func(point string) {})
		s.mustUpload("alice", old) // the identical file, now through the gateway
		s.checkProven(old)
	}
}

// TestPages: what a page says beyond names comes through, URLs lead to the
// gateway, and a page may be kept but not used without asking.
func TestPages(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	d := wheel("some-demo", "1.0")
	s.mustUpload("alice", d)
	if err := s.index.Yank(d.file, "it 'breaks'"); err != nil {
		t.Fatal(err)
	}
	_, html, h := s.get("/simple/some-demo/", "")
	for _, want := range []string{`href="../../files/some-demo/` + d.file + "#sha256=" + d.sha256() + `"`, `data-yanked="it &#39;breaks&#39;"`, `data-core-metadata="sha256=`} {
		if !strings.Contains(html, want) {
			t.Errorf("no %s in %s", want, html)
		}
	}
	if h.Get("Cache-Control") != "no-cache" || h.Get("ETag") == "" || !strings.HasPrefix(h.Get("Content-Type"), "text/html") {
		t.Errorf("headers %v", h)
	}
	req, _ := http.NewRequest("GET", s.url+"/simple/some-demo/", nil)
	req.Header.Set("If-None-Match", h.Get("ETag"))
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != 304 {
		t.Errorf("revalidation: %v %v", resp, err)
	}
	_, json, _ := s.get("/simple/some-demo/", string(pypi.MediaJSON))
	for _, want := range []string{`"url":"../../files/some-demo/` + d.file + `"`, `"yanked":"it 'breaks'"`, `"upload-time":`, `"_last-serial":`, `"versions":["1.0"]`} {
		if !strings.Contains(strings.ReplaceAll(json, ": ", ":"), want) {
			t.Errorf("no %s in %s", want, json)
		}
	}
	if _, list, _ := s.get("/simple/", ""); !strings.Contains(list, `href="some-demo/"`) {
		t.Errorf("project list: %s", list)
	}
	for path, want := range map[string]string{"/simple/Some.Demo/": "../some-demo/", "/simple/some-demo": "some-demo/"} {
		if code, _, h := s.get(path, ""); code != 301 || h.Get("Location") != want {
			t.Errorf("%s: %d to %q", path, code, h.Get("Location"))
		}
	}
	for _, path := range []string{"/", "/simple/nosuch/", "/simple/a/b/", "/simple/..%2f..%2fetc/", "/simple/%2f%2fevil.example/", "/files/some-demo/nosuch.whl", "/files/some-demo/..%2f..%2findex.json", "/files/some-demo/", "/files/x", "/pypi/some-demo/json"} {
		if code, body, _ := s.get(path, ""); code != 404 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	s.index.Down(true)
	if code, body, _ := s.get("/simple/some-demo/", ""); code != 502 || strings.Contains(body, "127.0.0.1") {
		t.Errorf("index down: %d %s", code, body)
	}
}

// TestOnlyConfiguredHosts: a page cannot make the gateway fetch from anywhere but
// the index and the hosts it was told of, nor does it follow redirects.
func TestOnlyConfiguredHosts(t *testing.T) {
	t.Parallel()
	d := wheel("demo", "1.0")
	asked := 0
	var secret string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		secret = r.Header.Get("Authorization")
		w.Write(d.content)
	}))
	defer elsewhere.Close()
	index := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/simple/demo/":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, `<a href="%s/f/%s">%[2]s</a> <a href="file:///etc/passwd">passwd-1.tar.gz</a> <a href="/moved/x-1.tar.gz">x-1.tar.gz</a>`, elsewhere.URL, d.file)
		default:
			http.Redirect(w, r, elsewhere.URL+"/f", http.StatusFound)
		}
	}))
	defer index.Close()
	hosts := func(list ...string) func(*gateway.Config) {
		return func(c *gateway.Config) {
			c.Index, c.Upload, c.FileHosts = parseURL(t, index.URL+"/simple/"), parseURL(t, index.URL+"/legacy/"), list
		}
	}
	s := newStage(t, hosts())
	for _, path := range []string{d.file, "passwd", "x-1.tar.gz"} {
		if code, body, _ := s.get("/files/demo/"+path, ""); code < 400 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if code, body, _ := s.get("/files/demo/"+d.file, ""); code != 403 || !strings.Contains(body, "--file-host") {
		t.Errorf("%d %s", code, body)
	}
	if code, reason, _ := s.upload("alice", d); code != 502 || !strings.Contains(reason, "upload URL") {
		t.Errorf("redirected upload: %s", reason)
	}
	if asked != 0 {
		t.Errorf("%d requests went elsewhere", asked)
	}
	s = newStage(t, hosts(parseURL(t, elsewhere.URL).Host))
	req, _ := http.NewRequest("GET", s.url+"/files/demo/"+d.file, nil)
	req.SetBasicAuth("alice", "alice-secret")
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 200 || asked != 1 || secret != "" {
		t.Errorf("%v %v, %d requests, credentials %q", resp, err, asked, secret)
	}
}

// TestUploaderGoesAway: the index's answer is recorded though nobody waits for it.
func TestUploaderGoesAway(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	d := wheel("demo", "1.0")
	contentType, body := d.form(t)
	ctx, cancel := context.WithCancel(context.Background())
	s.g.CrashForTest(func(point string) {
		if point == "forwarding" {
			cancel()
			time.Sleep(50 * time.Millisecond)
		}
	})
	req, _ := http.NewRequestWithContext(ctx, "POST", s.url+"/legacy/", bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	req.SetBasicAuth("alice", "alice-secret")
	if _, err := http.DefaultClient.Do(req); err == nil {
		t.Error("the uploader was still there")
	}
	s.eventually("listed", func() bool { return s.listed(d) })
	if e := s.checkProven(d).Entry; e.Uploader == "" {
		t.Errorf("entry %+v", e)
	}
}

// TestOneGateway: one directory is one gateway's, for one registry.
func TestOneGateway(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	if _, err := gateway.New(context.Background(), s.cfg); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another gateway (process %d)", os.Getpid())) {
		t.Errorf("a second gateway: %v", err)
	}
	s.stop()
	cfg := s.cfg
	cfg.Registry = "other.example"
	if _, err := gateway.New(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), `belongs to registry "packages.example"`) {
		t.Errorf("another registry: %v", err)
	}
	if _, err := gateway.Pending(context.Background(), t.TempDir()); err == nil {
		t.Error("pending where there is no gateway")
	}
}

// TestPrivateIndex: readers use their own credentials, which go to the index alone;
// what became of an upload the gateway asks as itself.
func TestPrivateIndex(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The files' URLs are the secret: who knows them needs no more.
		user, pass, _ := r.BasicAuth()
		if !strings.HasPrefix(r.URL.Path, "/files/") && (accounts[user] != pass || pass == "") {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		s.index.ServeHTTP(w, r)
	}))
	defer private.Close()
	s.stop()
	s.cfg.Index, s.cfg.Upload = parseURL(t, private.URL+"/simple/"), parseURL(t, private.URL+"/legacy/")
	s.cfg.ReadUser, s.cfg.ReadPassword = "ci", "ci-secret"
	s.start()
	d := wheel("demo", "1.0")
	s.index.AcceptThen500(true)
	s.upload("alice", d)
	s.eventually("logged", func() bool { return len(s.log.entries(t)) == 1 })
	for _, path := range []string{"/simple/", "/simple/demo/", "/files/demo/" + d.file} {
		code, _, h := s.get(path, "")
		if code != 401 || h.Get("WWW-Authenticate") == "" {
			t.Errorf("%s without credentials: %d", path, code)
		}
		req, _ := http.NewRequest("GET", s.url+path, nil)
		req.SetBasicAuth("mallory", "mallory-secret")
		if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != 200 {
			t.Errorf("%s: %v %v", path, resp, err)
		}
	}
	if code, _, _ := s.get("/files/demo/"+d.file, ""); code != 401 {
		t.Errorf("the file without credentials, after another has read it: %d", code)
	}
}

// TestRace: of many uploads of one name at a time the index picks one, and that one
// is logged, once, whoever else sent the same bytes.
func TestRace(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	first := wheel("demo", "0.1")
	s.mustUpload("alice", first) // the project is hers
	var wg sync.WaitGroup
	for i := range 16 {
		user := []string{"alice", "alice", "alice", "mallory"}[i%4]
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.upload(user, wheel("demo", "1.0", fmt.Sprint(i%8)))
		}()
	}
	wg.Wait()
	entries := s.log.entries(t)
	if len(entries) != 2 || len(s.pending()) != 0 {
		t.Fatalf("%d entries, pending %v", len(entries), s.pending())
	}
	won, _ := s.index.Has(entries[1].File)
	if entries[1].SHA256 != won {
		t.Errorf("the index has %s, logged is %s", won, entries[1].SHA256)
	}
	for i := range 8 {
		if d := wheel("demo", "1.0", fmt.Sprint(i)); d.sha256() == won {
			if i%4 == 3 {
				t.Error("mallory won")
			}
			s.checkProven(d)
		}
	}
}

// TestYesThatTellsNothing: a 2xx is logged when the index lists the bytes, and not
// before; pages that lag are waited for, and who already has the bytes on the page
// learns nothing from a yes.
func TestYesThatTellsNothing(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var lag time.Duration // of the pages, after an upload
	var shown time.Time
	deaf := false // says yes to uploads and does nothing
	s := newStage(t)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		isDeaf, late := deaf, time.Now().Before(shown)
		if r.Method == http.MethodPost {
			shown = time.Now().Add(lag)
		}
		mu.Unlock()
		switch {
		case isDeaf && r.Method == http.MethodPost:
			io.Copy(io.Discard, r.Body)
			w.Write([]byte("ok"))
		case late && strings.HasPrefix(r.URL.Path, "/simple/"):
			http.NotFound(w, r)
		default:
			s.index.ServeHTTP(w, r)
		}
	}))
	defer front.Close()
	set := func(l time.Duration, d bool) { mu.Lock(); defer mu.Unlock(); lag, deaf = l, d }
	s.stop()
	s.cfg.Index, s.cfg.Upload = parseURL(t, front.URL+"/simple/"), parseURL(t, front.URL+"/legacy/")
	s.start()

	set(300*time.Millisecond, false)
	d := wheel("demo", "1.0")
	s.mustUpload("alice", d)
	if e := s.checkProven(d).Entry; e.Uploader == "" {
		t.Errorf("a page that lags a little: %+v", e)
	}
	set(3*time.Second, false)
	d = wheel("demo", "2.0")
	if code, reason, state := s.upload("alice", d); code != 200 || state != "held" || len(s.log.entries(t)) != 1 {
		t.Errorf("a page that lags: %s, state %q", reason, state)
	}
	s.eventually("listed", func() bool { return s.listed(d) })
	s.checkProven(d)

	set(0, true)
	d = wheel("victim", "2.0")
	if code, reason, state := s.upload("", d); code != 200 || state != "held" {
		t.Errorf("an upload that nobody took: %s, state %q", reason, state)
	}
	s.checkWithheld(d)
	if n := len(s.log.entries(t)); n != 2 || len(s.pending()) != 1 {
		t.Errorf("%d entries, pending %v", n, s.pending())
	}
	d = wheel("old", "1.0")
	direct(s, "alice", d)
	s.mustUpload("mallory", d)
	if e := s.checkProven(d).Entry; e.Uploader != "" || e.Auth != "" {
		t.Errorf("bytes that were there before name %+v", e)
	}
}

// TestNoAccountToAsk: where strangers may not read, an upload whose answer was lost
// stays pending, says what to configure, and is found out about once that is done.
func TestNoAccountToAsk(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var later time.Duration
	s := newStage(t, func(c *gateway.Config) {
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(later) }
	})
	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); accounts[user] != pass || pass == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		s.index.ServeHTTP(w, r)
	}))
	defer private.Close()
	s.stop()
	s.cfg.Index, s.cfg.Upload = parseURL(t, private.URL+"/simple/"), parseURL(t, private.URL+"/legacy/")
	s.start()
	s.mustUpload("alice", wheel("demo", "0.1")) // asked with her account
	s.index.AcceptThenDrop(true)
	d := wheel("demo", "1.0")
	s.upload("alice", d)
	s.index.AcceptThenDrop(false)
	for n := range 6 {
		s.eventually("asked in vain", func() bool {
			p := s.pending()
			return len(p) == 1 && p[0].Tries > n && strings.Contains(p[0].LastError, "--read-user")
		})
		mu.Lock()
		later += 100 * time.Hour
		mu.Unlock()
	}
	s.stop()
	s.cfg.ReadUser, s.cfg.ReadPassword = "ci", "ci-secret"
	s.start()
	s.eventually("logged", func() bool { return len(s.log.entries(t)) == 2 })
}

// TestTokenAsUserName: some indexes take a token as the user name. It is logged as
// a token of nobody, and no account is written anywhere in the gateway's directory.
func TestTokenAsUserName(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	token := s.index.Token("alice")
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, ok := r.BasicAuth(); ok && user == token && (pass == "" || pass == "x-oauth-basic") {
			r.SetBasicAuth("__token__", token)
		}
		s.index.ServeHTTP(w, r)
	}))
	defer front.Close()
	s.stop()
	s.cfg.Upload = parseURL(t, front.URL+"/legacy/")
	s.start()
	for i, pass := range []string{"", "x-oauth-basic"} {
		d := wheel("demo", fmt.Sprint(i))
		contentType, body := d.form(t)
		req, _ := http.NewRequest("POST", s.url+"/legacy/", bytes.NewReader(body))
		req.Header.Set("Content-Type", contentType)
		req.SetBasicAuth(token, pass)
		resp, err := http.DefaultClient.Do(req)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v %v", resp, err)
		}
		resp.Body.Close()
		if e := s.checkProven(d).Entry; e.Auth != "token" || e.Uploader != "" {
			t.Errorf("password %q: %+v", pass, e)
		}
	}
	d := wheel("demo", "3")
	s.mustUpload("alice", d)
	if e := s.checkProven(d).Entry; e.Auth != "password" || e.Uploader == "" {
		t.Errorf("%+v", e)
	}
	written := s.logs.String()
	for _, name := range []string{"outbox.db", "outbox.db-wal"} { // beside the running gateway
		b, err := os.ReadFile(filepath.Join(s.cfg.Dir, name))
		if err != nil || len(b) == 0 {
			t.Fatalf("%s: %d bytes, %v", name, len(b), err)
		}
		written += string(b)
	}
	for _, secret := range []string{token, "alice"} {
		if strings.Contains(written, secret) {
			t.Errorf("%q was written down", secret)
		}
	}
}

// TestBackAtOnce: when one file is proven again, those that were to wait long are
// tried at once.
func TestBackAtOnce(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	held := wheel("demo", "1.0")
	s.log.set(func() { s.log.unwilling = &submit.Unavailable{RetryAfter: time.Hour} })
	if _, _, state := s.upload("alice", held); state != "held" {
		t.Fatalf("state %q", state)
	}
	next, err := time.Parse(time.RFC3339, s.pending()[0].NextTry)
	if err != nil || time.Until(next) < 30*time.Second {
		t.Fatalf("next try %v, %v", next, err)
	}
	s.log.set(func() { s.log.unwilling = nil })
	s.mustUpload("alice", wheel("demo", "2.0"))
	s.eventually("listed long before its time", func() bool { return s.listed(held) }) // waits 15 s at most
	s.checkProven(held)
}

// TestLogEnds: a log that has ended is asked once, not for ever; what the index
// accepted meanwhile is logged after a start with the log that took over.
func TestLogEnds(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.log.set(func() {
		s.log.unwilling = &submit.Frozen{Origin: "next.example", URL: "https://next.example", Reason: "it goes on as next.example"}
	})
	a, b := wheel("demo", "1.0"), wheel("demo", "2.0")
	for _, d := range []dist{a, b} {
		if _, _, state := s.upload("alice", d); state != "held" {
			t.Fatalf("state %q", state)
		}
	}
	s.log.mu.Lock()
	asked := s.log.submits
	s.log.mu.Unlock()
	if asked > 2 { // the first upload may have been tried twice at once
		t.Errorf("asked %d times", asked)
	}
	for _, p := range s.pending() {
		next, err := time.Parse(time.RFC3339, p.NextTry)
		if err != nil || time.Until(next) < 24*time.Hour || !strings.Contains(p.LastError, "next.example") {
			t.Errorf("%+v, %v", p, err)
		}
	}
	s.stop()
	s.log.set(func() { s.log.unwilling = nil })
	s.start()
	s.eventually("both are listed", func() bool { return s.listed(a) && s.listed(b) })
	s.checkProven(a)
	s.checkProven(b)
}

// TestRedirectedFiles: an index that sends readers to an object storage is not
// followed there, and the answer says so.
func TestRedirectedFiles(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	d := wheel("demo", "1.0")
	s.mustUpload("alice", d)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/files/") {
			http.Redirect(w, r, "https://storage.example/x?signature=secret", http.StatusFound)
			return
		}
		s.index.ServeHTTP(w, r)
	}))
	defer front.Close()
	s.stop()
	s.cfg.Index = parseURL(t, front.URL+"/simple/")
	s.start()
	if code, body, _ := s.get("/files/demo/"+d.file, ""); code != 502 || !strings.Contains(body, "redirect (302)") || !strings.Contains(body, "object storage") || strings.Contains(body, "secret") {
		t.Errorf("%d %s", code, body)
	}
}
