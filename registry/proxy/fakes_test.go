package proxy_test

// What the tests stand on: a log that signs what it is told to, an index that
// serves what it is told to, and the proxy between it and real HTTP.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/registry/proxy"
)

const registry = "index.test/simple"

var day0 = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// A testLog is a log with two witnesses, quorum 2. It keeps no rule.
type testLog struct {
	t         testing.TB
	signer    *c2sp.Signer
	witnesses []*c2sp.Signer
	policy    *c2sp.Policy

	mu     sync.Mutex
	leaves [][]byte
	at     time.Time
	srv    *httptest.Server
	status int // not 0: what the server answers
	asked  int // for proofs
}

func newLog(t testing.TB) *testLog {
	t.Helper()
	l := &testLog{t: t, at: day0}
	var err error
	if l.signer, err = c2sp.GenerateSigner("log.test/one", c2sp.AlgEd25519); err != nil {
		t.Fatal(err)
	}
	text := "log " + l.signer.Key().String() + "\n"
	for i := range 2 {
		w, err := c2sp.GenerateSigner(fmt.Sprintf("witness%d.test", i), c2sp.AlgEd25519Cosig)
		if err != nil {
			t.Fatal(err)
		}
		l.witnesses = append(l.witnesses, w)
		text += fmt.Sprintf("witness w%d %s\n", i, w.Key())
	}
	text += "group both 2 w0 w1\nquorum both\n"
	if l.policy, err = c2sp.ParsePolicy([]byte(text)); err != nil {
		t.Fatal(err)
	}
	l.srv = httptest.NewServer(l)
	t.Cleanup(l.srv.Close)
	return l
}

func upload(project, file string, content []byte) *entry.Entry {
	sum := sha256.Sum256(content)
	return &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: registry, Ecosystem: entry.PyPI,
		Project: project, Version: "1.0", File: file, Size: entry.Uint(uint64(len(content))),
		SHA256: hex.EncodeToString(sum[:]), Time: day0.Format(entry.TimeFormat)}
}

func (l *testLog) add(e *entry.Entry) (index int) {
	l.t.Helper()
	leaf, err := e.Marshal()
	if err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaves = append(l.leaves, leaf)
	return len(l.leaves) - 1
}

// prove returns the tlog-proof of a leaf in the tree as it is, cosigned by the
// first n witnesses.
func (l *testLog) prove(index, n int) []byte {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	hashes := leafHashes(l.leaves)
	p := c2sp.Proof{Extra: l.leaves[index], Index: uint64(index), Hashes: path(index, hashes), Checkpoint: l.note(n)}
	return p.Bytes()
}

// note signs the tree as it is; l.mu is held.
func (l *testLog) note(n int) []byte {
	l.t.Helper()
	c := c2sp.Checkpoint{Origin: l.signer.Key().Name(), Size: uint64(len(l.leaves)), Root: root(leafHashes(l.leaves))}
	sig, err := l.signer.Sign(c.Text())
	if err != nil {
		l.t.Fatal(err)
	}
	note := c.Text() + "\n" + sig.Line()
	for _, w := range l.witnesses[:n] {
		sig, err := w.Cosign(c, l.at)
		if err != nil {
			l.t.Fatal(err)
		}
		note += sig.Line()
	}
	return []byte(note)
}

// answer makes the server answer with a status and nothing else; 0 ends that.
func (l *testLog) answer(status int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status = status
}

// forget begins a second history.
func (l *testLog) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leaves = nil
}

func (l *testLog) proofsAsked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

func (l *testLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	status := l.status
	l.mu.Unlock()
	switch {
	case status != 0:
		w.WriteHeader(status)
	case r.URL.Path == "/checkpoint":
		l.mu.Lock()
		defer l.mu.Unlock()
		w.Write(l.note(2))
	case r.URL.Path == "/v1/proof":
		l.mu.Lock()
		l.asked++
		var hits []int
		for i, leaf := range l.leaves {
			if e, err := entry.Parse(leaf); err == nil && e.SHA256 == r.URL.Query().Get("sha256") {
				hits = append(hits, i)
			}
		}
		l.mu.Unlock()
		if len(hits) == 0 {
			http.Error(w, "{}", http.StatusNotFound)
			return
		}
		var proofs []map[string]string
		for _, i := range hits {
			proofs = append(proofs, map[string]string{"index": fmt.Sprint(i), "leaf": base64.StdEncoding.EncodeToString(l.leaves[i]),
				"proof": base64.StdEncoding.EncodeToString(l.prove(i, 2))})
		}
		json.NewEncoder(w).Encode(map[string]any{"proofs": proofs})
	default:
		l.serveTile(w, r)
	}
}

// serveTile serves the entries and their hashes, of less than 256.
func (l *testLog) serveTile(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, err := c2sp.ParseTilePath(strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil || t.Index > 0 || t.Level > 0 || t.Width > len(l.leaves) {
		http.NotFound(w, r)
		return
	}
	for i, h := range leafHashes(l.leaves[:t.Width]) {
		if t.Level == -1 {
			w.Write(append([]byte{byte(len(l.leaves[i]) >> 8), byte(len(l.leaves[i]))}, l.leaves[i]...))
		} else {
			w.Write(h[:])
		}
	}
}

// takeover makes a log that follows l: with its witnesses, if l's operator
// brought it to them.
func (l *testLog) takeover(origin string) *testLog {
	l.t.Helper()
	next := &testLog{t: l.t, at: l.at, witnesses: l.witnesses}
	var err error
	if next.signer, err = c2sp.GenerateSigner(origin, c2sp.AlgEd25519); err != nil {
		l.t.Fatal(err)
	}
	next.srv = httptest.NewServer(next)
	l.t.Cleanup(next.srv.Close)
	return next
}

// end makes l end, with next as the log that takes over, and next begin.
func (l *testLog) end(next *testLog) {
	l.t.Helper()
	id := strings.Repeat("ab", 16)
	l.add(&entry.Entry{Kind: entry.KindSuccessor, Claim: entry.ClaimLog, ID: id, Time: day0.Format(entry.TimeFormat),
		Origin: next.signer.Key().Name(), VKeys: []string{next.signer.Key().String()}, URL: next.srv.URL})
	l.mu.Lock()
	size, r := uint64(len(l.leaves)), root(leafHashes(l.leaves))
	l.mu.Unlock()
	next.add(&entry.Entry{Kind: entry.KindPredecessor, Claim: entry.ClaimLog, ID: id, Time: day0.Format(entry.TimeFormat),
		Origin: l.signer.Key().Name(), Size: entry.Uint(size), Root: hex.EncodeToString(r[:])})
}

// RFC 6962, 2.1, word for word.
func root(h [][32]byte) [32]byte {
	switch len(h) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return h[0]
	}
	k := split(len(h))
	return node(root(h[:k]), root(h[k:]))
}

func path(m int, h [][32]byte) [][32]byte {
	if len(h) <= 1 {
		return nil
	}
	k := split(len(h))
	if m < k {
		return append(path(m, h[:k]), root(h[k:]))
	}
	return append(path(m-k, h[k:]), root(h[:k]))
}

func split(n int) int {
	k := 1
	for k*2 < n {
		k *= 2
	}
	return k
}

func node(a, b [32]byte) [32]byte {
	return sha256.Sum256(append(append([]byte{1}, a[:]...), b[:]...))
}

func leafHashes(leaves [][]byte) (h [][32]byte) {
	for _, l := range leaves {
		h = append(h, entry.LeafHash(l))
	}
	return h
}

// A testIndex serves files and pages made from them.
type testIndex struct {
	files  table[[]byte] // by path, "/f/x-1.0.tar.gz"
	pages  table[string] // by project: the anchors, or a JSON page if it begins with {
	routes table[http.HandlerFunc]
	srv    *httptest.Server
}

// A table may be changed while a server reads it.
type table[V any] struct{ m sync.Map }

func (t *table[V]) set(k string, v V) { t.m.Store(k, v) }

func (t *table[V]) get(k string) (v V) {
	if x, ok := t.m.Load(k); ok {
		v = x.(V)
	}
	return v
}

func newIndex(t testing.TB) *testIndex {
	x := &testIndex{}
	x.srv = httptest.NewServer(x)
	t.Cleanup(x.srv.Close)
	return x
}

func (x *testIndex) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	route, file, page := x.routes.get(r.URL.Path), x.files.get(r.URL.Path), x.pages.get(strings.Trim(strings.TrimPrefix(r.URL.Path, "/simple"), "/"))
	switch {
	case route != nil:
		route(w, r)
	case file != nil:
		w.Header().Set("Content-Length", fmt.Sprint(len(file)))
		w.Write(file)
	case strings.HasPrefix(page, "{"):
		w.Header().Set("Content-Type", "application/vnd.pypi.simple.v1+json")
		io.WriteString(w, page)
	case page != "":
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<!DOCTYPE html><html><body>"+page+"</body></html>")
	default:
		http.NotFound(w, r)
	}
}

// put serves a file with its proof, and lists it with its digest.
func (x *testIndex) put(file string, content, proof []byte) {
	x.files.set("/f/"+file, content)
	if proof != nil {
		x.files.set("/f/"+file+".tlog-proof", proof)
	}
	sum := sha256.Sum256(content)
	x.pages.set(project(file), x.pages.get(project(file))+fmt.Sprintf(`<a href="../../f/%s#sha256=%x">%s</a>`, html.EscapeString(file), sum, file))
}

func project(file string) string { name, _, _ := strings.Cut(file, "-"); return name }

// A stand is the whole arrangement.
type stand struct {
	t     testing.TB
	log   *testLog
	index *testIndex
	proxy *proxy.Proxy
	srv   *httptest.Server
}

func newStand(t testing.TB, change func(*stand, *proxy.Config)) *stand {
	t.Helper()
	s := &stand{t: t, log: newLog(t), index: newIndex(t)}
	cfg := proxy.Config{Index: s.index.srv.URL + "/simple/", Registry: registry, Policy: s.log.policy, TempDir: t.TempDir(),
		Now: func() time.Time { return day0.Add(time.Hour) }}
	if change != nil {
		change(s, &cfg)
	}
	var err error
	if s.proxy, err = proxy.New(cfg); err != nil {
		t.Fatal(err)
	}
	s.srv = httptest.NewUnstartedServer(s.proxy)
	s.srv.Config = s.proxy.Server()
	s.srv.Start()
	t.Cleanup(s.srv.Close)
	return s
}

// good logs a file and serves it with its proof.
func (s *stand) good(file string, content []byte) {
	s.t.Helper()
	s.index.put(file, content, s.log.prove(s.log.add(upload(project(file), file, content)), 2))
}

// page loads a project's page and returns it with the URLs on it, absolute.
func (s *stand) page(project string) (body string, urls []string) {
	s.t.Helper()
	resp, err := http.Get(s.srv.URL + "/simple/" + project + "/")
	if err != nil {
		s.t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 {
		s.t.Fatalf("page of %s: %s %s", project, resp.Status, b)
	}
	for _, part := range strings.Split(string(b), `href="`)[1:] {
		ref, _, _ := strings.Cut(part, `"`)
		u, err := resp.Request.URL.Parse(html.UnescapeString(ref))
		if err != nil {
			s.t.Fatal(err)
		}
		u.Fragment = ""
		urls = append(urls, u.String())
	}
	return string(b), urls
}

type answer struct {
	line   string // the status line without the version
	code   int
	header http.Header
	body   []byte
	err    error // reading the body
}

func get(t testing.TB, u string, header ...string) answer {
	t.Helper()
	return request(t, http.MethodGet, u, header...)
}

func request(t testing.TB, method, u string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequest(method, u, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.Status, resp.StatusCode, resp.Header, b, err}
}

// refused asserts a 403 whose status line carries the code.
func (a answer) refused(t testing.TB, what, code string) {
	t.Helper()
	word := "PORTBOOK REFUSED (" + code + "): "
	if strings.HasPrefix(code, "PB3") {
		word = "PORTBOOK CANNOT CHECK (" + code + "): "
		if !strings.Contains(a.line, "not evidence of tampering; retry") {
			t.Errorf("%s: infrastructure worded like an attack: %s", what, a.line)
		}
	}
	if a.code != 403 || !strings.HasPrefix(a.line, "403 "+word) || a.header.Get("Content-Type") != "application/problem+json" || a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s: want 403 %s…, got %s %v", what, word, a.line, a.header)
		return
	}
	var problem struct{ Title, Detail, Code string }
	if len(a.body) > 0 && (json.Unmarshal(a.body, &problem) != nil || problem.Code != code || problem.Detail == "" || !strings.Contains(problem.Title, code)) {
		t.Errorf("%s: problem %s", what, a.body)
	}
	if _, ok := proxy.Explain(code); !ok {
		t.Errorf("%s has no explanation", code)
	}
}

func (a answer) passed(t testing.TB, what string, want []byte) {
	t.Helper()
	if a.code != 200 || a.err != nil || !bytes.Equal(a.body, want) {
		t.Errorf("%s: %s, %v, %d bytes of %d: %.200s", what, a.line, a.err, len(a.body), len(want), a.body)
	}
}

func (s *stand) counted(verified, refused, cannot int) {
	s.t.Helper()
	r := s.proxy.Report()
	if r.Verified != verified || r.Refused != refused || r.CannotCheck != cannot {
		s.t.Errorf("counts: %d verified, %d refused, %d not checked; want %d, %d, %d: %+v", r.Verified, r.Refused, r.CannotCheck, verified, refused, cannot, r.Problems)
	}
	if len(r.Problems) != refused+cannot {
		s.t.Errorf("problems: %+v", r.Problems)
	}
}

// raw sends bytes to the proxy and returns all it answers.
func raw(t testing.TB, addr, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, text)
	b, _ := io.ReadAll(c)
	return string(b)
}

func hostOf(t testing.TB, rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

var ctx = context.Background()
