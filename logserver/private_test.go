package logserver

// A private log: nothing of it is read without a token that reads; it is cosigned
// like any other.

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func (s *served) readToken() (Credential, string) {
	s.t.Helper()
	t, secret, err := s.log.Tokens.Create(Credential{Read: true})
	if err != nil {
		s.t.Fatal(err)
	}
	return t, secret
}

// restReads are requests for all that can be read over HTTP.
func restReads(e *entry.Entry) (out []struct{ method, path, body string }) {
	where := "registry=" + testRegistry + "&ecosystem=pypi&project=p0"
	for _, path := range []string{
		"/checkpoint", "/tile/0/000.p/5", "/tile/entries/000.p/5",
		"/v1/proof?index=0", "/v1/proof?sha256=" + e.SHA256, "/v1/entries?" + where, "/v1/entries:stream",
		// What is not there looks like what is.
		"/tile/0/000.p/6", "/tile/1/000.p/1", "/tile/nothing", "/v1/proof?index=900", "/v1/entries:stream?from=900",
	} {
		out = append(out, struct{ method, path, body string }{"GET", path, ""})
		if !strings.Contains(path, ":stream") {
			out = append(out, struct{ method, path, body string }{"HEAD", path, ""})
		}
	}
	return append(out, struct{ method, path, body string }{"POST", "/v1/proofs", `{"queries": [{"index": "0"}]}`})
}

// grpcReads are all reading calls.
func (s *served) grpcReads(bearer string) map[string]error {
	ctx := s.t.Context()
	if bearer != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+bearer)
	}
	q := &pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: 0}}
	out := map[string]error{}
	_, out["GetProof"] = s.client.GetProof(ctx, q)
	_, out["GetProofs"] = s.client.GetProofs(ctx, &pb.GetProofsRequest{Queries: []*pb.GetProofRequest{q}})
	_, out["Lookup"] = s.client.Lookup(ctx, &pb.LookupRequest{Registry: testRegistry, Ecosystem: "pypi", Project: "p0"})
	stream, err := s.client.Entries(ctx, &pb.EntriesRequest{})
	if err == nil {
		if _, err = stream.Recv(); err == nil {
			_, err = stream.Recv()
		}
		if err == io.EOF {
			err = nil
		}
	}
	out["Entries"] = err
	return out
}

func TestPrivateLog(t *testing.T) {
	r := newRig(t, 3, 2)
	s := r.serve(func(c *Config) { c.Private = true })
	s.bulk(s.log, 0, 5)
	token, reads := s.readToken()
	_, gone := s.readToken()
	list := s.log.Tokens.List()
	for _, c := range list {
		if c.Read && c.ID != token.ID {
			if err := s.log.Tokens.Revoke(c.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	do := func(method, path, body, authorization string) (*http.Response, string) {
		req, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		res, err := plainClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		raw, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(raw)
	}

	// Refused: nothing, nonsense, a token that submits, one that is revoked.
	for _, row := range restReads(nth(0)) {
		for name, who := range map[string]struct {
			auth string
			code int
		}{
			"nothing": {"", 401}, "nonsense": {"Bearer x", 401}, "no bearer": {"Basic " + reads, 401}, "cut short": {"Bearer " + reads[:len(reads)-1], 401},
			"a token that submits": {"Bearer " + s.bearer, 403}, "a revoked token": {"Bearer " + gone, 401},
		} {
			res, body := do(row.method, row.path, row.body, who.auth)
			if res.StatusCode != who.code || res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s %s with %s: %d %v", row.method, row.path, name, res.StatusCode, res.Header)
			}
			if who.code == 401 && res.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s with %s: no WWW-Authenticate", row.path, name)
			}
			for _, secret := range []string{"p0", "log.example", nth(0).SHA256, reads, s.bearer} {
				if strings.Contains(body, secret) {
					t.Errorf("%s with %s: the refusal tells %q: %s", row.path, name, secret, body)
				}
			}
			if res.Header.Get("ETag") != "" || res.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s with %s: %v", row.path, name, res.Header)
			}
		}
		// Let in, and kept out of shared caches.
		res, _ := do(row.method, row.path, row.body, "Bearer "+reads)
		there := !strings.Contains(row.path, "900") && row.path != "/tile/0/000.p/6" && !strings.HasPrefix(row.path, "/tile/1") && row.path != "/tile/nothing"
		if (res.StatusCode == 200) != there {
			t.Errorf("%s %s with the token: %d", row.method, row.path, res.StatusCode)
		}
		if cc := res.Header.Get("Cache-Control"); there && !strings.HasPrefix(cc, "private") || res.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s with the token: %v", row.path, res.Header)
		}
	}
	for _, who := range []struct {
		bearer string
		code   codes.Code
	}{{"", codes.Unauthenticated}, {"x", codes.Unauthenticated}, {gone, codes.Unauthenticated}, {s.bearer, codes.PermissionDenied}, {reads, codes.OK}} {
		for call, err := range s.grpcReads(who.bearer) {
			if status.Code(err) != who.code {
				t.Errorf("%s with %.8s: %v, want %v", call, who.bearer, err, who.code)
			}
		}
	}
	// Open, and telling nothing.
	for _, path := range []string{"/healthz", "/readyz"} {
		if res, body := do("GET", path, "", ""); res.StatusCode != 200 || len(body) > 10 {
			t.Errorf("%s: %d %s", path, res.StatusCode, body)
		}
	}
	// A token that reads logs nothing.
	if code, _, out := s.rest("POST", "/v1/entries", reads, restEntry(nth(9))); code != 403 || out["reason"] != "NOT_ALLOWED" {
		t.Errorf("a submission with a token that reads: %d %v", code, out)
	}

	// The outside witnesses cosign without a token.
	raw := s.log.Published().Note
	policy := r.config().Policy
	policy.Logs = []c2sp.PolicyLog{{Key: r.signer.Key()}}
	v, err := policy.Verify(raw)
	if err != nil || len(v.Cosignatures) < 2 {
		t.Fatalf("the private log's checkpoint: %v, %v", v, err)
	}

	// A reader with the token, and its revocation within a second.
	transport, err := client.ReadToken(s.url, reads, nil)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := client.NewReader(s.url, &http.Client{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	if leaves, err := reader.Bundle(t.Context(), 0, 5); err != nil || len(leaves) != 5 {
		t.Fatalf("a reader with the token: %v", err)
	}
	bare, err := client.NewReader(s.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bare.Checkpoint(t.Context()); err == nil || !strings.Contains(err.Error(), "private") {
		t.Errorf("a reader without: %v", err)
	}
	other, err := OpenTokens(filepath.Join(s.dir, TokensFile), time.Now) // as the command line does
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Revoke(token.ID); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	waitFor(t, "the revocation", func() bool { _, err := reader.Checkpoint(t.Context()); return err != nil })
	if d := time.Since(start); d > time.Second {
		t.Errorf("revoked after %v", d)
	}
	if _, err := reader.Checkpoint(t.Context()); err == nil || strings.Contains(err.Error(), reads) || strings.Contains(fmt.Sprintf("%v %+v %#v", transport, reader, transport), reads) {
		t.Errorf("after the revocation: %v", err)
	}
}

// TestPrivateReadyTellsNothing: not ready, and the reason stays inside.
func TestPrivateReadyTellsNothing(t *testing.T) {
	r := newRig(t, 1, 1)
	s := r.serve(func(c *Config) { c.Private = true })
	s.must(s.log, nth(0))
	s.log.latch(fmt.Errorf("%w: entry 12345 of project secretive", ErrBehind))
	code, _, out := s.rest("GET", "/readyz", "", nil)
	if detail, _ := out["detail"].(string); code != 503 || detail == "" || strings.Contains(detail, "12345") || strings.Contains(detail, "secretive") {
		t.Errorf("%d %v", code, out)
	}
}

// TestStreamEndsWithItsToken: a stream that runs when its token is revoked.
func TestStreamEndsWithItsToken(t *testing.T) {
	s := newRig(t, 0, 0).serve(func(c *Config) { c.Private = true })
	s.bulk(s.log, 0, 2000)
	token, reads := s.readToken()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+reads)
	stream, err := s.client.Entries(ctx, &pb.EntriesRequest{Proofs: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := s.log.Tokens.Revoke(token.ID); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("the stream ends with %v", err)
	}
}

// TestReadOnlyThatCannotTell: who cannot read a log's credentials does not know
// that it is private, and serves it to nobody.
func TestReadOnlyThatCannotTell(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	r.must(l, nth(0))
	l.Close()
	tokens := filepath.Join(r.dir, TokensFile)
	if err := os.Chmod(tokens, 0o644); err != nil { // refused like a file that may not be read
		t.Fatal(err)
	}
	id, err := ReadIdentity(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	id.Private = nil // made by a version before
	if err := writeIdentity(r.dir, id); err != nil {
		t.Fatal(err)
	}
	cfg := ReadOnlyConfig{Dir: r.dir, State: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Now: time.Now}
	if l, err := OpenReadOnly(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "--private") {
		if l != nil {
			l.Close()
		}
		t.Fatalf("opened to everybody: %v", err)
	}
	for what, change := range map[string]func(*ReadOnlyConfig){
		"private":               func(c *ReadOnlyConfig) { c.Private = true },
		"public, as it is told": func(c *ReadOnlyConfig) { c.Tokens = filepath.Join(t.TempDir(), "none.json") },
	} {
		c := cfg
		change(&c)
		l, err := OpenReadOnly(t.Context(), c)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		l.Close()
	}
}

// TestPrivateByMistakePublic: a log with credentials that read is not served to
// everybody because a flag was forgotten.
func TestPrivateByMistakePublic(t *testing.T) {
	r := newRig(t, 0, 0)
	tokens, err := OpenTokens(filepath.Join(r.dir, TokensFile), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	made, _, err := tokens.Create(Credential{Read: true})
	if err != nil {
		t.Fatal(err)
	}
	if l, err := Open(t.Context(), r.config()); err == nil || !strings.Contains(err.Error(), "--private") {
		if l != nil {
			l.Close()
		}
		t.Fatalf("opened to everybody: %v", err)
	}
	if err := tokens.Revoke(made.ID); err != nil {
		t.Fatal(err)
	}
	r.ready()
	for name, bad := range map[string]Credential{
		"registry": {Read: true, Registry: testRegistry}, "claim": {Read: true, Claim: "index"},
		"kinds": {Read: true, Kinds: []entry.Kind{entry.KindUpload}}, "rate": {Read: true, Rate: 1}, "neither": {},
	} {
		if _, _, err := tokens.Create(bad); err == nil {
			t.Errorf("%s: made a credential that reads and logs, or does nothing", name)
		}
	}
}

// TestPrivateWhateverBecomesOfItsCredentials: a log that is known to be private
// is opened to nobody when its credentials are lost or damaged and --private is
// forgotten; nor is a restored or an exported one. One of which it is not known
// does not open at all then, and a public one goes on.
func TestPrivateWhateverBecomesOfItsCredentials(t *testing.T) {
	r := newRig(t, 0, 0)
	s := r.serve(func(c *Config) { c.Private = true })
	s.bulk(s.log, 0, 3)
	_, reads := s.readToken()
	s.log.Close()
	tokens := filepath.Join(r.dir, TokensFile)
	sound := readFile(t, tokens)
	damage := map[string]func(path string) error{
		"missing":    os.Remove,
		"empty":      func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"truncated":  func(path string) error { return os.WriteFile(path, []byte(sound[:len(sound)/2]), 0o600) },
		"unreadable": func(path string) error { return os.Chmod(path, 0o644) }, // refused as one that may not be read is
		"a directory": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Mkdir(path, 0o700)
		},
	}
	whole := func(t *testing.T, path string) {
		t.Helper()
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(sound), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	get := func(t *testing.T, l *Log, bearer string) int {
		t.Helper()
		req := httptest.NewRequest("GET", "/checkpoint", nil)
		if bearer != "" {
			req.Header.Set("Authorization", "Bearer "+bearer)
		}
		w := httptest.NewRecorder()
		r.handler(l).ServeHTTP(w, req)
		return w.Code
	}
	said := func(t *testing.T, private string) { // what log.json says
		t.Helper()
		raw := readFile(t, filepath.Join(r.dir, identityFile))
		fields := map[string]any{}
		if err := json.Unmarshal([]byte(raw), &fields); err != nil {
			t.Fatal(err)
		}
		switch delete(fields, "private"); private {
		case "true", "false":
			fields["private"] = private == "true"
		}
		out, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.dir, identityFile), out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	readOnly := func() ReadOnlyConfig {
		return ReadOnlyConfig{Dir: r.dir, State: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Now: time.Now}
	}
	for name, harm := range damage {
		t.Run(name, func(t *testing.T) {
			defer whole(t, tokens)
			if err := harm(tokens); err != nil {
				t.Fatal(err)
			}
			said(t, "true")
			opens := map[string]func() (*Log, error){
				"served":    func() (*Log, error) { return Open(t.Context(), r.config()) },
				"read only": func() (*Log, error) { return OpenReadOnly(t.Context(), readOnly()) },
			}
			for how, open := range opens {
				l, err := open()
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				if code := get(t, l, ""); code != 401 && code != 503 {
					t.Errorf("%s, and read by anybody: %d", how, code)
				}
				if code := get(t, l, reads); code == 200 {
					t.Errorf("%s, and read with a token that nobody can vouch for", how)
				}
				l.Close()
			}
			said(t, "") // as a version before wrote it
			for how, open := range opens {
				if l, err := open(); err == nil || !strings.Contains(err.Error(), "--private") {
					if l != nil {
						l.Close()
					}
					t.Errorf("%s, not known to be private: %v", how, err)
				}
			}
			said(t, "false")
			for how, open := range opens {
				l, err := open()
				if err != nil {
					t.Fatalf("%s, a public log: %v", how, err)
				}
				if code := get(t, l, ""); code != 200 {
					t.Errorf("%s, a public log: %d", how, code)
				}
				l.Close()
			}
		})
	}
	said(t, "true")

	// Restored, also without its credentials.
	backup := filepath.Join(t.TempDir(), "backup")
	if _, err := Backup(t.Context(), r.dir, backup, nil); err != nil {
		t.Fatal(err)
	}
	for _, with := range []bool{true, false} {
		if !with {
			if err := os.Remove(filepath.Join(backup, TokensFile)); err != nil {
				t.Fatal(err)
			}
		}
		to := filepath.Join(t.TempDir(), "log")
		if _, err := Restore(t.Context(), backup, to, "", nil); err != nil {
			t.Fatal(err)
		}
		cfg := r.config()
		cfg.Dir = to
		l, err := Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, bearer := range []string{"", reads} {
			if code := get(t, l, bearer); code != 401 {
				t.Errorf("restored, with credentials: %v; read with %q: %d", with, bearer, code)
			}
		}
		l.Close()
	}
	// Exported.
	mirror := filepath.Join(t.TempDir(), "mirror")
	if report, err := Export(t.Context(), ExportConfig{Dir: r.dir, To: mirror}); err != nil || !report.Private {
		t.Fatalf("%+v, %v", report, err)
	}
	if info, err := os.Stat(mirror); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the export is open to everybody: %v, %v", info.Mode(), err)
	}
	cfg := readOnly()
	cfg.Dir, cfg.VKeys = mirror, []*c2sp.Key{r.signer.Key()}
	l, err := OpenReadOnly(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if code := get(t, l, ""); code != 401 {
		t.Errorf("the export: %d", code)
	}
	l.Close()
	cfg.State, cfg.Tokens = t.TempDir(), tokens
	if l, err = OpenReadOnly(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if code := get(t, l, reads); code != 200 {
		t.Errorf("the export with the log's credentials: %d", code)
	}
	l.Close()
}
