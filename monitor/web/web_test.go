package web

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor"
	"github.com/portbook/portbook/monitor/internal/fakelog"
)

const origin = "log.test/one"

type page struct {
	t   testing.TB
	log *fakelog.Log
	m   *monitor.Monitor
	srv *httptest.Server
	dir string
	now time.Time
}

func newPage(t testing.TB, quorum bool) *page {
	return newPageFor(t, quorum, "operator: {notify: [{email: ops@example.org}]}\n")
}

func newPageFor(t testing.TB, quorum bool, subscriptions string) *page {
	p := &page{t: t, dir: t.TempDir(), now: time.Now()}
	n := 3
	if !quorum {
		n = 0
	}
	p.log = fakelog.New(origin, n, 2, func() time.Time { return p.now })
	logSrv := httptest.NewServer(p.log)
	t.Cleanup(logSrv.Close)
	db := filepath.Join(p.dir, "monitor.db")
	if err := monitor.Begin(t.Context(), db, origin, 0); err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return p.now }
	store, err := monitor.OpenStore(t.Context(), db, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	r, err := client.NewReader(logSrv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	subs, err := monitor.ParseSubscriptions([]byte(subscriptions), "")
	if err != nil {
		t.Fatal(err)
	}
	p.m, err = monitor.New(t.Context(), monitor.Config{Store: store, Source: r, Policy: p.log.Policy, Subscriptions: subs, Now: now, Confirm: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{Monitor: p.m, Policy: p.log.Policy, LogURL: logSrv.URL, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	p.srv = httptest.NewServer(h)
	t.Cleanup(p.srv.Close)
	return p
}

func (p *page) round() {
	p.t.Helper()
	if err := p.m.Round(context.Background()); err != nil {
		p.t.Fatal(err)
	}
}

func (p *page) get(path string, status int) string {
	p.t.Helper()
	resp, err := http.Get(p.srv.URL + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if resp.StatusCode != status {
		p.t.Fatalf("%s: %s, want %d\n%s", path, resp.Status, status, b)
	}
	csp := resp.Header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "script-src") {
		p.t.Errorf("%s: Content-Security-Policy %q", path, csp)
	}
	if resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		p.t.Errorf("%s: may be sniffed", path)
	}
	if strings.Contains(resp.Header.Get("Content-Type"), "html") {
		for _, no := range []string{"<script", "style=", "onclick", "javascript:", "ZgotmplZ"} {
			if strings.Contains(strings.ToLower(string(b)), strings.ToLower(no)) {
				p.t.Errorf("%s: contains %q", path, no)
			}
		}
	}
	return string(b)
}

func (p *page) has(body string, wants ...string) {
	p.t.Helper()
	for _, w := range wants {
		if !strings.Contains(body, w) {
			p.t.Errorf("the page does not contain %q:\n%s", w, body)
		}
	}
}

func TestPages(t *testing.T) {
	p := newPage(t, true)
	p.has(p.get("/", 200), "The log has not been read yet")
	p.get("/readyz", 503)
	p.get("/checkpoint", 404)
	e := fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "alice/lib", "a")
	p.log.AddEntry(e, fakelog.Status(entry.KindYank, "alice-lib", "1.0", 1))
	p.log.Add([]byte("\x1b[31m<script>alert(1)</script> not an entry \xe2\x80\xae"))
	p.round()

	home := p.get("/", 200)
	p.has(home, "Every entry is verified", "alice_lib-1.0.tar.gz", "w1.test", "cosigned", "alerts sent", "1 to deliver", `action="/"`, "unreadable")
	p.has(p.get("/?q=Alice_Lib", 200), "1 project", "/project/pypi.test?ecosystem=pypi&amp;name=alice-lib")
	p.has(p.get("/?q=alice", 200), "alice-lib")
	p.has(p.get("/?q="+e.SHA256, 200), "This digest is in the log", "/entry/0")
	p.has(p.get("/?q="+strings.Repeat("0", 64), 200), "Nothing verified here matches")
	p.has(p.get("/?q="+url.QueryEscape(`"><script>alert(1)</script>%'`), 200), "Nothing verified here matches", "&lt;script&gt;")

	project := p.get("/project/pypi.test?ecosystem=pypi&name=Alice.Lib", 200)
	p.has(project, "github · alice/lib · release.yml · pypi", "yank", "/entry/0/proof", "Who uploaded")
	p.has(p.get("/project/pypi.test?ecosystem=pypi&name=nobody", 404), "No entry of this project")
	p.get("/project/PYPI.test?ecosystem=pypi&name=x", 404)
	p.get("/project/pypi.test?ecosystem=nonsense&name=x", 404)
	p.get("/project/pypi.test?ecosystem=pypi&name=alice-lib&before=-1", 400)

	en := p.get("/entry/0", 200)
	p.has(en, "c2sp.org/tlog-proof@v1", "portbook verify alice_lib-1.0.tar.gz \\\n  --proof alice_lib-1.0.tar.gz.tlog-proof \\\n  --policy", e.SHA256,
		"<dt>Publisher</dt><dd>github · alice/lib", "as a trusted publisher", "1 kB (1\u202f000 bytes)", "<dt>Logged by</dt><dd>the index", "2026-11-21 05:00:00 UTC", "byte for byte")
	for _, no := range []string{"<dt>v</dt>", "<dt>claim</dt>", "unexpected"} {
		if strings.Contains(en, no) {
			t.Errorf("an expected entry's page contains %q", no)
		}
	}
	proof := p.get("/entry/0/proof", 200)
	v, err := client.VerifyProof(p.log.Policy, []byte(proof))
	if err != nil || v.Index != 0 {
		t.Fatalf("the page's proof: %v", err)
	}
	bad := p.get("/entry/2", 200)
	p.has(bad, "This entry cannot be read", "?[31m&lt;script&gt;")
	if strings.ContainsAny(bad, "\x1b\u202e") {
		t.Error("control or bidi characters reach the page")
	}
	for _, path := range []string{"/entry/3", "/entry/00", "/entry/-1", "/entry/x", "/entry/99999999999999999999", "/nothing", "/evidence/..%2f..%2fmonitor.db", "/evidence/portbook-evidence-0000000000000000.txt"} {
		p.get(path, 404)
	}

	var ready map[string]any
	if err := json.Unmarshal([]byte(p.get("/readyz", 200)), &ready); err != nil || ready["behind"] != 0.0 || ready["ready"] != true || ready["verified"] != 3.0 {
		t.Errorf("readyz: %v %v", ready, err)
	}
	if p.get("/healthz", 200) != "ok\n" {
		t.Error("healthz")
	}
	if p.get("/checkpoint", 200) != string(p.log.Note()) {
		t.Error("checkpoint")
	}
	p.get("/style.css", 200)
	p.get("/icon.svg", 200)
	resp, err := http.Post(p.srv.URL+"/", "text/plain", strings.NewReader("x"))
	if err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %v %v", resp, err)
	}
}

// What a subscription did not expect is marked in words wherever the entry is
// shown, with how many were told of it and not who.
func TestUnexpectedIsMarked(t *testing.T) {
	p := newPageFor(t, true, `
subscriptions:
  - name: secret-subscriber
    project: {registry: pypi.test, ecosystem: pypi, project: alice-lib}
    notify: [{email: alice@example.org}]
    expect: {publishers: [{kind: github, repository: alice/lib}]}
  - name: all of other
    project: {registry: pypi.test, ecosystem: pypi, project: other}
    notify: [{email: alice@example.org}]
`)
	p.log.AddEntry(
		fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "alice/lib", "a"),
		fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "b"),
		fakelog.Upload("other", "1.0", "other-1.0.tar.gz", "", "c"),
	)
	p.round()
	const pill = `<span class="mark full warn">unexpected</span>`
	count := func(path string, want int) string {
		t.Helper()
		body := p.get(path, 200)
		if got := strings.Count(body, pill); got != want {
			t.Errorf("%s: %d marks, want %d\n%s", path, got, want, body)
		}
		for _, no := range []string{"secret-subscriber", "alice@example.org", "example.org", "all of other"} {
			if strings.Contains(body, no) {
				t.Errorf("%s tells who subscribed: %q", path, no)
			}
		}
		return body
	}
	p.has(count("/", 1), `<dt>alerts sent</dt><dd>0<small>2 to deliver`)
	p.has(count("/entry/1", 1), "Unexpected</h2>", "1 alert to deliver.", "with an API token", "none named")
	count("/entry/0", 0)
	count("/entry/2", 0) // told to who expects nothing in particular; that is no judgement
	count("/project/pypi.test?ecosystem=pypi&name=other", 0)
	// In the timeline, and beside the publisher.
	p.has(count("/project/pypi.test?ecosystem=pypi&name=alice-lib", 2), "new publisher", "new on 2026-11-21 05:00")

	// Once sent, the page says so.
	store := p.m.Store()
	for range 2 {
		due, err := store.Due(t.Context(), p.now.Add(time.Hour), nil, 10)
		if err != nil || len(due) != 1 {
			t.Fatal(due, err)
		}
		if err := store.Sent(t.Context(), due[0], p.now); err != nil {
			t.Fatal(err)
		}
	}
	p.has(count("/", 1), `<dt>alerts sent</dt><dd>2<small>none to deliver</small>`)
	p.has(count("/entry/1", 1), "1 alert sent.")

	// A second content under one name is worse.
	p.log.AddEntry(fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "alice/lib", "other bytes"))
	p.round()
	for _, path := range []string{"/", "/entry/3", "/project/pypi.test?ecosystem=pypi&name=alice-lib"} {
		p.has(p.get(path, 200), `<span class="mark full odd">tampering</span>`)
	}
}

func TestComparePublishers(t *testing.T) {
	rec := func(i uint64, repository, id string) monitor.Record {
		e := fakelog.Upload("p", "1", "p-1.tar.gz", repository, "x")
		if id != "" {
			e.Publisher.RepositoryID = id
		}
		return monitor.Record{Index: i, Entry: e}
	}
	// Newest first: the name changed hands at 3, a token came at 2.
	rows, list := compare([]monitor.Record{rec(4, "a/b", "7"), rec(3, "a/b", "7"), rec(2, "", ""), rec(1, "a/b", "6"), rec(0, "a/b", "6")})
	for i, want := range []bool{false, true, true, false, false} {
		if rows[i].New != want {
			t.Errorf("row %d: new %t, want %t", i, rows[i].New, want)
		}
	}
	if len(list) != 3 || !list[0].New || !strings.HasSuffix(list[0].Name, "repository id 7") || list[1].Name != "API token" || list[2].New || list[2].Uploads != 2 || list[2].Share != 40 || !strings.HasSuffix(list[2].Name, "repository id 6") {
		t.Errorf("%+v", list)
	}
	if rows, list := compare(nil); len(rows) != 0 || len(list) != 0 {
		t.Error("something out of nothing")
	}
}

// Every kind of entry has a page with words for its fields, and none is lost.
func TestFieldsOfEveryKind(t *testing.T) {
	id, dig := strings.Repeat("ab", 16), strings.Repeat("cd", 32)
	e := &entry.Entry{
		Kind: entry.KindConflict, Claim: entry.ClaimObserved, Time: "2026-11-21T05:00:00Z", ID: id, Registry: "r.test", Ecosystem: entry.PyPI, Project: "p", Version: "v1",
		File: "f.whl", Size: entry.Uint(2_500_000), SHA256: dig, SHA512: dig + dig, UploadTime: "2026-11-21T04:00:00Z", MetadataSHA256: "meta",
		Publisher: &entry.Publisher{Kind: "oidc", Issuer: "iss", Subject: "subj", Repository: "repo", RepositoryID: "77", OwnerID: "88", Workflow: "wf", Environment: "env"},
		Auth:      "other", Uploader: "upl", AttestationSHA256: []string{"att1", "att2"}, SourcesSHA256: []string{"src1"}, Replaces: entry.Uint(11), Reason: "because",
		Index: entry.Uint(12), Tag: "latest", Subject: "person", Overwrite: "never", Count: entry.Uint(13), SlotClaim: entry.ClaimIndex, FirstIndex: entry.Uint(14),
		Origin: "or.test", VKeys: []string{"vk"}, URL: "https://u.test", Root: "root",
	}
	all := ""
	names := map[string]bool{}
	for _, f := range fields(e) {
		all += f.Name + ": " + f.Value + "\n"
		if names[f.Name] {
			t.Errorf("two fields are called %q", f.Name)
		}
		names[f.Name] = true
	}
	for _, want := range []string{id, "r.test", "Project: p", "Version: v1", "f.whl", "2.5 MB", dig, "04:00:00", "05:00:00", "meta", "oidc", "iss", "subj", "repo", "77", "88", "wf", "env", "by other means",
		"upl", "att1\natt2", "src1", "entry 11", "because", "entry 12", "latest", "person", "never", "13", "entry 14", "or.test", "vk", "https://u.test", "root", "a follower"} {
		if !strings.Contains(all, want) {
			t.Errorf("the fields leave out %q:\n%s", want, all)
		}
	}
	for n, want := range map[uint64]string{0: "0 bytes", 1: "1 byte", 999: "999 bytes", 1000: "1 kB (1\u202f000 bytes)", 999_600: "1 MB (999\u202f600 bytes)"} {
		if got := bytesWords(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// The grammar lets few characters into a name, but a version may hold what HTML
// means something by. It is text on every page.
func TestHostileVersionIsText(t *testing.T) {
	p := newPage(t, true)
	const hostile = `1<script>alert('x')</script>&amp;<img/src=x/onerror=alert(1)>`
	e := fakelog.Upload("tool", hostile, "tool-1.bin", "", "x")
	e.Ecosystem = entry.Generic
	e.Publisher = &entry.Publisher{Kind: "oidc", Issuer: "https://issuer.test/<b>", Subject: "<svg/onload=alert(1)>'&"}
	if err := e.Validate(); err != nil {
		t.Logf("the grammar refuses it already: %v", err)
		e.Version = "1.0"
		if err := e.Validate(); err != nil {
			e.Publisher = nil
		}
	}
	p.log.AddEntry(e)
	p.round()
	for _, path := range []string{"/", "/project/pypi.test?ecosystem=generic&name=tool", "/entry/0"} {
		body := p.get(path, 200)
		for _, no := range []string{"<script>", "<img/src", "<svg/onload", "<b>"} {
			if strings.Contains(body, no) {
				t.Errorf("%s: contains %s", path, no)
			}
		}
	}
}

func TestHealthIsHonest(t *testing.T) {
	p := newPage(t, true)
	p.log.AddEntry(fakelog.Upload("a", "1", "a-1.tar.gz", "", "x"))
	p.round()
	p.log.Blind(1)
	p.log.Publish()
	p.now = p.now.Add(time.Second)
	p.log.Publish()
	p.round()
	p.has(p.get("/", 200), "did not cosign this checkpoint")

	p.now = p.now.Add(20 * time.Minute)
	p.round()
	p.has(p.get("/", 200), "Nothing new from the log for 20 minutes", "Troubles now", "1 to deliver")
	p.has(p.get("/readyz", 503), "Nothing new")

	p.log.Blind(0)
	p.log.Fork(0, []byte("another history"))
	p.round()
	home := p.get("/", 200)
	p.has(home, "Tampering seen", "two different histories", "/evidence/portbook-evidence-")
	p.has(p.get("/readyz", 503), `"tampering":"the log shows two different histories"`)
	i := strings.Index(home, "/evidence/")
	text := p.get(home[i:i+strings.Index(home[i:], `"`)], 200)
	if err := client.VerifyEvidence([]byte(text), p.log.Policy); err != nil {
		t.Errorf("evidence from the page: %v", err)
	}
}

func TestEntryWithoutProofSaysSo(t *testing.T) {
	p := newPage(t, false)
	p.log.AddEntry(fakelog.Upload("a", "1", "a-1.tar.gz", "", "x"), fakelog.Upload("b", "1", "b-1.tar.gz", "", "x"))
	p.round()
	p.log.NoTiles(true)
	p.has(p.get("/entry/0", 200), "did not yield the hashes")
	p.has(p.get("/entry/0/proof", 502), "says nothing about the entry")
	p.has(p.get("/", 200), "no witnesses in the policy", "names no witness")
}
