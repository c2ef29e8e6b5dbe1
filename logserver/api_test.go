package logserver

// The API on its own listeners: every call over gRPC and REST, and every
// refusal as the person behind a program sees it.

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// served is a log on real listeners.
type served struct {
	*rig
	log    *Log
	url    string
	client pb.LogClient
	bearer string
	stop   func() error

	grpcAddress string
}

func (r *rig) serve(change ...func(*Config)) *served {
	r.t.Helper()
	return r.serveOpen(r.ready(change...))
}

// serveOpen serves a log that is open.
func (r *rig) serveOpen(l *Log) *served {
	r.t.Helper()
	listen := func() net.Listener {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			r.t.Fatal(err)
		}
		return lis
	}
	g, h := listen(), listen()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, g, h, nil) }()
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	conn, err := grpc.NewClient("passthrough:///"+g.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.t.Fatal(err)
	}
	_, secret, err := l.Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload, entry.KindReject}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close(); stop() })
	return &served{rig: r, log: l, url: "http://" + h.Addr().String(), client: pb.NewLogClient(conn), bearer: secret, stop: stop, grpcAddress: g.Addr().String()}
}

func (s *served) auth() context.Context {
	return metadata.AppendToOutgoingContext(s.t.Context(), "authorization", "Bearer "+s.bearer)
}

// rest makes one REST call.
func (s *served) rest(method, path, bearer string, body any) (int, http.Header, map[string]any) {
	s.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			s.t.Fatal(err)
		}
		r = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, s.url+path, r)
	if err != nil {
		s.t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	res, err := (&http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if strings.Contains(string(raw), filepath.Dir(s.dir)) {
		s.t.Errorf("%s %s: the answer names a path: %s", method, path, raw)
	}
	if s.bearer != "" && strings.Contains(string(raw), s.bearer) {
		s.t.Errorf("%s %s: the answer has the token", method, path)
	}
	out := map[string]any{}
	if err := json.Unmarshal(raw, &out); err != nil {
		out["raw"] = string(raw)
	}
	return res.StatusCode, res.Header, out
}

func restEntry(e *entry.Entry) map[string]any {
	return map[string]any{"entry": map[string]any{
		"kind": string(e.Kind), "ecosystem": e.Ecosystem, "project": e.Project, "version": e.Version, "file": e.File,
		"size": fmt.Sprint(*e.Size), "sha256": e.SHA256, "time": e.Time,
	}}
}

func pbEntry(e *entry.Entry) *pb.Entry {
	return &pb.Entry{Kind: string(e.Kind), Ecosystem: e.Ecosystem, Project: e.Project, Version: e.Version, File: e.File, Size: e.Size, Sha256: e.SHA256, Time: e.Time, Id: e.ID}
}

// TestEveryCall over gRPC and REST gives the same.
func TestEveryCall(t *testing.T) {
	s := newRig(t, 3, 2).serve()
	e := nth(0)
	res, err := s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: pbEntry(e)})
	if err != nil {
		t.Fatal(err)
	}
	proof, err := c2sp.ParseProof(res.Proof)
	if err != nil {
		t.Fatal(err)
	}
	s.check(&Ack{Index: res.Index, Proof: proof})
	code, _, out := s.rest("POST", "/v1/entries", s.bearer, restEntry(e))
	if code != 200 || out["index"] != "0" {
		t.Fatalf("REST submit: %d %v", code, out)
	}
	raw, err := base64.StdEncoding.DecodeString(out["proof"].(string))
	if err != nil {
		t.Fatal(err)
	}
	if proof, err = c2sp.ParseProof(raw); err != nil {
		t.Fatal(err)
	}
	s.check(&Ack{Index: 0, Proof: proof})
	for n := range 6 { // the same bytes under other names
		x := upload("p0", fmt.Sprintf("p0-9.%d.tar.gz", n), "0")
		x.Project = e.Project
		if code, _, out := s.rest("POST", "/v1/entries", s.bearer, restEntry(x)); code != 200 {
			t.Fatalf("%d %v", code, out)
		}
	}

	leaf := entry.LeafHash(proof.Extra)
	for name, row := range map[string]struct {
		req   *pb.GetProofRequest
		query string
		n     int
	}{
		"index":  {&pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: 0}}, "index=0", 1},
		"leaf":   {&pb.GetProofRequest{By: &pb.GetProofRequest_LeafHash{LeafHash: hex.EncodeToString(leaf[:])}}, "leaf_hash=" + hex.EncodeToString(leaf[:]), 1},
		"sha256": {&pb.GetProofRequest{By: &pb.GetProofRequest_Sha256{Sha256: e.SHA256}}, "sha256=" + e.SHA256, 7},
	} {
		got, err := s.client.GetProof(t.Context(), row.req)
		if err != nil || len(got.Proofs) != row.n {
			t.Fatalf("GetProof by %s: %v, %v", name, got, err)
		}
		for _, p := range got.Proofs {
			proof, err := c2sp.ParseProof(p.Proof)
			if err != nil || !bytes.Equal(proof.Extra, p.Leaf) {
				t.Fatalf("by %s: %v", name, err)
			}
			s.check(&Ack{Index: p.Index, Proof: proof})
		}
		code, _, out := s.rest("GET", "/v1/proof?"+row.query, "", nil)
		if code != 200 || len(out["proofs"].([]any)) != row.n {
			t.Errorf("REST proof by %s: %d %v", name, code, out)
		}
	}

	// Pages of a lookup.
	where := "registry=" + testRegistry + "&ecosystem=pypi&project=p0"
	token, files := "", 0
	for pages := 0; ; pages++ {
		code, _, out := s.rest("GET", "/v1/entries?"+where+"&page_size=3&page_token="+token, "", nil)
		if code != 200 || pages > 3 {
			t.Fatalf("%d %v", code, out)
		}
		files += len(out["entries"].([]any))
		next, _ := out["next_page_token"].(string)
		if token = next; token == "" {
			break
		}
	}
	if files != 7 {
		t.Errorf("pages list %d entries, want 7", files)
	}
	one, err := s.client.Lookup(t.Context(), &pb.LookupRequest{Registry: testRegistry, Ecosystem: "pypi", Project: "p0", File: "p0-9.3.tar.gz"})
	if err != nil || len(one.Entries) != 1 {
		t.Errorf("lookup of a file: %v, %v", one, err)
	}
	if code, _, out := s.rest("GET", "/v1/openapi.json", "", nil); code != 200 || out["swagger"] == nil {
		t.Errorf("OpenAPI: %d", code)
	}

	// A REST stream: one JSON object a line in, one a line out.
	var lines bytes.Buffer
	for n := range 5 {
		x := nth(100 + n)
		if n == 2 {
			x.SHA256 = "00"
		}
		raw, _ := json.Marshal(map[string]any{"entries": []any{restEntry(x)["entry"]}})
		lines.Write(append(raw, '\n'))
	}
	code, _, out = s.rest("POST", "/v1/entries:stream", s.bearer, lines.String())
	answer, _ := out["raw"].(string)
	if code != 200 || strings.Count(answer, `"proof":"`) != 5 || strings.Count(answer, `"proof":""`) != 1 || strings.Count(answer, `"field":"sha256"`) != 1 {
		t.Errorf("REST stream: %d %v", code, out)
	}
}

// TestEveryRefusal over REST: status, reason, field; and the same over gRPC.
func TestEveryRefusal(t *testing.T) {
	r := newRig(t, 1, 1)
	s := r.serve()
	s.must(s.log, upload("demo", "demo-1.0.tar.gz", "first"))
	_, old, err := s.log.Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}, Ends: "2020-01-01T00:00:00Z"})
	if err != nil {
		t.Fatal(err)
	}
	revoked, gone, err := s.log.Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.log.Tokens.Revoke(revoked.ID); err != nil {
		t.Fatal(err)
	}
	with := func(field string, value any) map[string]any {
		m := restEntry(nth(1))
		m["entry"].(map[string]any)[field] = value
		return m
	}
	short := s.bearer[:len(s.bearer)-1]
	last := map[bool]string{true: "B", false: "A"}[s.bearer[len(s.bearer)-1] != 'B']
	for _, row := range []struct {
		name, method, path, bearer string
		body                       any
		status                     int
		reason, field              string
	}{
		{"no token", "POST", "/v1/entries", "", restEntry(nth(1)), 401, "UNAUTHENTICATED", ""},
		{"garbage token", "POST", "/v1/entries", "garbage", restEntry(nth(1)), 401, "UNAUTHENTICATED", ""},
		{"token cut short", "POST", "/v1/entries", short, restEntry(nth(1)), 401, "UNAUTHENTICATED", ""},
		{"token with another last letter", "POST", "/v1/entries", short + last, restEntry(nth(1)), 401, "UNAUTHENTICATED", ""},
		{"token of unknown ID", "POST", "/v1/entries", "pbt_0000000000000000_" + strings.Repeat("A", 43), restEntry(nth(1)), 401, "UNAUTHENTICATED", ""},
		{"expired token", "POST", "/v1/entries", old, restEntry(nth(1)), 401, "UNAUTHENTICATED", ""},
		{"revoked token", "POST", "/v1/entries", gone, restEntry(nth(1)), 401, "UNAUTHENTICATED", ""},
		{"wrong registry", "POST", "/v1/entries", s.bearer, with("registry", "other.example"), 403, "NOT_ALLOWED", "registry"},
		{"wrong claim", "POST", "/v1/entries", s.bearer, with("claim", "observed"), 403, "NOT_ALLOWED", "claim"},
		{"the log's claim", "POST", "/v1/entries", s.bearer, with("claim", "log"), 403, "NOT_ALLOWED", "claim"},
		{"wrong kind", "POST", "/v1/entries", s.bearer, with("kind", "yank"), 403, "NOT_ALLOWED", "kind"},
		{"conflict entry from outside", "POST", "/v1/entries", s.bearer, with("kind", "conflict"), 403, "NOT_ALLOWED", "kind"},
		{"no entry", "POST", "/v1/entries", s.bearer, "{}", 403, "NOT_ALLOWED", "kind"},
		{"malformed project", "POST", "/v1/entries", s.bearer, with("project", "Demo_X"), 400, "INVALID_ENTRY", "project"},
		{"path in file", "POST", "/v1/entries", s.bearer, with("file", "../x-1.0.tar.gz"), 400, "INVALID_ENTRY", "file"},
		{"control character in version", "POST", "/v1/entries", s.bearer, with("version", "1.0\u001b[31m"), 400, "INVALID_ENTRY", "version"},
		{"bidi in file", "POST", "/v1/entries", s.bearer, with("file", "x\u202e-1.0.tar.gz"), 400, "INVALID_ENTRY", "file"},
		{"unknown ecosystem", "POST", "/v1/entries", s.bearer, with("ecosystem", "cpan"), 400, "INVALID_ENTRY", "ecosystem"},
		{"upper-case digest", "POST", "/v1/entries", s.bearer, with("sha256", strings.Repeat("A", 64)), 400, "INVALID_ENTRY", "sha256"},
		{"malformed time", "POST", "/v1/entries", s.bearer, with("time", "yesterday"), 400, "INVALID_ENTRY", "time"},
		{"id on an upload", "POST", "/v1/entries", s.bearer, with("id", id(1)), 400, "INVALID_ENTRY", "id"},
		{"unknown field", "POST", "/v1/entries", s.bearer, with("sha1", "00"), 400, "INVALID_REQUEST", "sha1"},
		{"wrong type", "POST", "/v1/entries", s.bearer, with("size", "many"), 400, "INVALID_REQUEST", "size"},
		{"no JSON", "POST", "/v1/entries", s.bearer, "entry=1", 400, "INVALID_REQUEST", "body"},
		{"oversized field", "POST", "/v1/entries", s.bearer, with("version", strings.Repeat("1", 5000)), 400, "INVALID_ENTRY", "version"},
		{"oversized entry", "POST", "/v1/entries", s.bearer, with("sources_sha256", many(60)), 400, "INVALID_ENTRY", "sources_sha256"},
		{"oversized body", "POST", "/v1/entries", s.bearer, strings.Repeat(" ", 1<<20), 413, "INVALID_REQUEST", "body"},
		{"other bytes", "POST", "/v1/entries", s.bearer, restEntry(upload("demo", "demo-1.0.tar.gz", "second")), 409, "DIGEST_CONFLICT", ""},
		{"replaces what is not there", "POST", "/v1/entries", s.bearer, with("replaces", "0"), 400, "PRECONDITION", "replaces"},
		{"unknown index", "GET", "/v1/proof?index=4000", "", nil, 404, "NOT_FOUND", ""},
		{"unknown leaf", "GET", "/v1/proof?leaf_hash=" + strings.Repeat("0", 64), "", nil, 404, "NOT_FOUND", ""},
		{"unknown file", "GET", "/v1/proof?sha256=" + strings.Repeat("0", 64), "", nil, 404, "NOT_FOUND", ""},
		{"malformed leaf hash", "GET", "/v1/proof?leaf_hash=xyz", "", nil, 400, "INVALID_ENTRY", "leaf_hash"},
		{"malformed sha256", "GET", "/v1/proof?sha256=" + strings.Repeat("0", 63), "", nil, 400, "INVALID_ENTRY", "sha256"},
		{"malformed index", "GET", "/v1/proof?index=-1", "", nil, 400, "INVALID_REQUEST", "index"},
		{"proof of nothing", "GET", "/v1/proof", "", nil, 400, "INVALID_ENTRY", "by"},
		{"unknown sha512", "GET", "/v1/proof?sha512=" + strings.Repeat("0", 128), "", nil, 404, "NOT_FOUND", ""},
		{"malformed sha512", "GET", "/v1/proof?sha512=" + strings.Repeat("0", 64), "", nil, 400, "INVALID_ENTRY", "sha512"},
		{"upper-case sha512", "GET", "/v1/proof?sha512=" + strings.Repeat("A", 128), "", nil, 400, "INVALID_ENTRY", "sha512"},
		{"no queries", "POST", "/v1/proofs", "", "{}", 400, "INVALID_ENTRY", "queries"},
		{"too many queries", "POST", "/v1/proofs", "", `{"queries": [` + strings.Repeat(`{"index": "0"}, `, 256) + `{"index": "0"}]}`, 400, "INVALID_ENTRY", "queries"},
		{"queries that are none", "POST", "/v1/proofs", "", `{"queries": 7}`, 400, "INVALID_REQUEST", "body"},
		{"queries without end", "POST", "/v1/proofs", "", strings.Repeat(" ", 1<<20), 413, "INVALID_REQUEST", "body"},
		{"entries from beyond the log", "GET", "/v1/entries:stream?from=4000", "", nil, 400, "OUT_OF_RANGE", ""},
		{"entries to beyond the log", "GET", "/v1/entries:stream?from=0&to=4000", "", nil, 400, "OUT_OF_RANGE", ""},
		{"entries from nowhere", "GET", "/v1/entries:stream?from=-1", "", nil, 400, "INVALID_REQUEST", "from"},
		{"deleting entries", "DELETE", "/v1/entries", s.bearer, nil, 405, "", ""},
		{"getting proofs of nothing", "GET", "/v1/proofs", "", nil, 405, "", ""},
		{"posting a query for one proof", "POST", "/v1/proof", s.bearer, `{"index": "0"}`, 405, "", ""},
		{"writing the checkpoint", "PUT", "/checkpoint", s.bearer, "x", 405, "", ""},
		{"a call in other letters", "GET", "/v1/%65ntries:Stream", "", nil, 404, "", ""},
		{"lookup without registry", "GET", "/v1/entries", "", nil, 400, "INVALID_ENTRY", "registry"},
		{"lookup with a bad project", "GET", "/v1/entries?registry=" + testRegistry + "&ecosystem=pypi&project=A%20B", "", nil, 400, "INVALID_ENTRY", "project"},
		{"lookup page too large", "GET", "/v1/entries?registry=" + testRegistry + "&ecosystem=pypi&project=demo&page_size=5000", "", nil, 400, "INVALID_ENTRY", "page_size"},
		{"lookup page token", "GET", "/v1/entries?registry=" + testRegistry + "&ecosystem=pypi&project=demo&page_token=x", "", nil, 400, "INVALID_ENTRY", "page_token"},
		{"no such call", "GET", "/v1/nothing", "", nil, 404, "", ""},
		{"no such page", "GET", "/etc/passwd", "", nil, 404, "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			code, h, out := s.rest(row.method, row.path, row.bearer, row.body)
			str := func(k string) string { v, _ := out[k].(string); return v }
			if code != row.status || str("reason") != row.reason || str("field") != row.field {
				t.Errorf("%d %v; want %d %s %s", code, out, row.status, row.reason, row.field)
			}
			if h.Get("Content-Type") != "application/problem+json" || str("detail") == "" {
				t.Errorf("not a problem: %s %v", h.Get("Content-Type"), out)
			}
			if row.status == 401 && h.Get("WWW-Authenticate") == "" {
				t.Error("no WWW-Authenticate")
			}
			if row.reason == "DIGEST_CONFLICT" && str("first_index") != "0" {
				t.Errorf("first_index %v", out["first_index"])
			}
		})
	}

	// gRPC has the same behind it; one of each code.
	for want, do := range map[codes.Code]func() error{
		codes.Unauthenticated: func() error {
			_, err := s.client.Submit(t.Context(), &pb.SubmitRequest{Entry: pbEntry(nth(1))})
			return err
		},
		codes.PermissionDenied: func() error {
			e := pbEntry(nth(1))
			e.Registry = "other.example"
			_, err := s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: e})
			return err
		},
		codes.InvalidArgument: func() error {
			e := pbEntry(nth(1))
			e.File = "a/../b"
			_, err := s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: e})
			return err
		},
		codes.AlreadyExists: func() error {
			_, err := s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: pbEntry(upload("demo", "demo-1.0.tar.gz", "x"))})
			return err
		},
		codes.NotFound: func() error {
			_, err := s.client.GetProof(t.Context(), &pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: 99}})
			return err
		},
		codes.ResourceExhausted: func() error { // the message limit
			_, err := s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: &pb.Entry{Version: strings.Repeat("1", 1<<20)}})
			return err
		},
	} {
		if err := do(); status.Code(err) != want {
			t.Errorf("want %v: %v", want, err)
		}
	}
}

func many(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("%064x", i))
	}
	return out
}

// TestServerFull: refused at once, with a hint when to come back.
func TestServerFull(t *testing.T) {
	s := newRig(t, 1, 1).serve(func(c *Config) { c.MaxInFlight, c.RoundLimit, c.MaxWait = 1, 300*time.Millisecond, 2*time.Second })
	s.witnesses[0].down()
	first := make(chan error, 1)
	go func() { _, err := s.submit(s.log, nth(1)); first <- err }()
	waitFor(t, "the first submission", func() bool { return s.log.inFlightNow() == 1 })
	start := time.Now()
	_, err := s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: pbEntry(nth(2))})
	st := status.Convert(err)
	hint := false
	for _, d := range st.Details() {
		if ri, ok := d.(*errdetails.RetryInfo); ok && ri.RetryDelay.AsDuration() > 0 {
			hint = true
		}
	}
	if st.Code() != codes.ResourceExhausted || !hint || time.Since(start) > 200*time.Millisecond {
		t.Errorf("full: %v, hint %v, after %v", err, hint, time.Since(start))
	}
	code, h, out := s.rest("POST", "/v1/entries", s.bearer, restEntry(nth(2)))
	if code != 429 || h.Get("Retry-After") == "" || out["reason"] != "OVERLOADED" {
		t.Errorf("full over REST: %d %v %v", code, h, out)
	}
	if err := <-first; !errors.Is(err, ErrNotPublished) {
		t.Errorf("the first: %v", err)
	}
	code, h, out = s.rest("POST", "/v1/entries", s.bearer, restEntry(nth(1)))
	if code != 503 || h.Get("Retry-After") == "" || out["reason"] != "NOT_PUBLISHED" {
		t.Errorf("no quorum over REST: %d %v %v", code, h, out)
	}
	if code, _, out := s.rest("GET", "/readyz", "", nil); code != 503 {
		t.Errorf("/readyz without a quorum: %d %v", code, out)
	}
	if code, _, _ := s.rest("GET", "/healthz", "", nil); code != 200 {
		t.Error("/healthz fails")
	}
}

// TestTokenRate: a token's own rate.
func TestTokenRate(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	slow := r.token
	slow.ID, slow.Rate = "slow", 2
	refused := 0
	for n := range 6 {
		if _, err := l.Submit(t.Context(), slow, nth(n), Cosigned); errors.Is(err, ErrOverloaded) {
			refused++
		}
	}
	if refused < 2 {
		t.Errorf("%d of 6 refused at 2 a second", refused)
	}
}

// TestStream answers in order, with refusals in the middle, and outlives a
// caller that goes away.
func TestStream(t *testing.T) {
	s := newRig(t, 3, 2).serve()
	stream, err := s.client.SubmitStream(s.auth())
	if err != nil {
		t.Fatal(err)
	}
	const n = 500
	go func() {
		for i := range n {
			e := pbEntry(nth(i))
			switch i % 100 {
			case 7:
				e.File = ".."
			case 8:
				e = pbEntry(nth(i - 8))
				e.Sha256 = strings.Repeat("0", 64)
			}
			stream.Send(&pb.SubmitStreamRequest{Entries: []*pb.Entry{e}})
		}
		stream.CloseSend()
	}()
	for i := range uint64(n) {
		res, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if res.Position != i || len(res.Results) != 1 {
			t.Fatalf("answer %d where %d was due: %v", res.Position, i, res)
		}
		one := res.Results[0]
		switch i % 100 {
		case 7:
			if one.GetError().GetField() != "file" || codes.Code(one.GetError().GetCode()) != codes.InvalidArgument {
				t.Errorf("answer %d: %v", i, res)
			}
		case 8:
			if one.GetError().GetReason() != "DIGEST_CONFLICT" || one.GetError().FirstIndex == nil {
				t.Errorf("answer %d: %v", i, res)
			}
		default:
			p, err := c2sp.ParseProof(one.Proof)
			if err != nil {
				t.Fatalf("answer %d: %v", i, res)
			}
			if i%50 == 0 {
				s.check(&Ack{Index: one.Index, Proof: p})
			}
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}

	ctx, cancel := context.WithCancel(s.auth())
	stream, err = s.client.SubmitStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		stream.Send(&pb.SubmitStreamRequest{Entries: []*pb.Entry{pbEntry(nth(10_000 + i))}})
	}
	stream.Recv()
	cancel()
	waitFor(t, "nothing in flight", func() bool { return s.log.inFlightNow() == 0 })
	s.must(s.log, nth(20_000))
}

// TestTokensFile: damage vouches for nobody; a revocation counts within a second.
func TestTokensFile(t *testing.T) {
	s := newRig(t, 0, 0).serve()
	path := filepath.Join(s.dir, TokensFile)
	s.log.Tokens.mu.Lock()
	s.log.Tokens.every = 10 * time.Millisecond
	s.log.Tokens.mu.Unlock()
	good := readFile(t, path)
	status := func() int { code, _, _ := s.rest("POST", "/v1/entries", s.bearer, restEntry(nth(1))); return code }
	if status() != 200 {
		t.Fatal("the token does not work")
	}
	for name, damage := range map[string]func(){
		"garbage":       func() { os.WriteFile(path, []byte("{"), 0o600) },
		"empty":         func() { os.WriteFile(path, nil, 0o600) },
		"readable":      func() { os.Chmod(path, 0o644) },
		"unknown field": func() { os.WriteFile(path, []byte(strings.Replace(good, `"hash"`, `"revokd": "x", "hash"`, 1)), 0o600) },
		"negative rate": func() { os.WriteFile(path, []byte(strings.Replace(good, `"hash"`, `"rate": -1, "hash"`, 1)), 0o600) },
		"another registry": func() {
			os.WriteFile(path, []byte(strings.Replace(good, `"index.example"`, `"indey.example"`, 1)), 0o600)
		},
		"same ID twice": func() {
			os.WriteFile(path, []byte("["+strings.Trim(good, "[]\n")+","+strings.Trim(good, "[]\n")+"]"), 0o600)
		},
		"a link": func() { os.Rename(path, path+".x"); os.Symlink(path+".x", path) },
	} {
		damage()
		time.Sleep(20 * time.Millisecond)
		for range 2 {
			if code := status(); code != 503 {
				t.Errorf("%s: %d", name, code)
			}
		}
		os.Remove(path)
		os.WriteFile(path, []byte(good), 0o600)
		time.Sleep(20 * time.Millisecond)
		if code := status(); code != 200 {
			t.Fatalf("%s: mended, and yet %d", name, code)
		}
	}
	os.Remove(path)
	time.Sleep(20 * time.Millisecond)
	if code := status(); code != 401 {
		t.Errorf("no tokens at all: %d", code)
	}
	os.WriteFile(path, []byte(good), 0o600)
	other, err := OpenTokens(path, time.Now) // as the command line does
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if status() != 200 {
		t.Fatal("not restored")
	}
	for _, tok := range other.List() {
		if err := other.Revoke(tok.ID); err != nil {
			t.Fatal(err)
		}
	}
	s.log.Tokens.mu.Lock()
	s.log.Tokens.every, s.log.Tokens.checked = 500*time.Millisecond, time.Now() // as in earnest
	s.log.Tokens.mu.Unlock()
	start := time.Now()
	waitFor(t, "the revocation", func() bool { return status() == 401 })
	if d := time.Since(start); d > time.Second {
		t.Errorf("revoked after %v", d)
	}
	if err := other.Revoke("0000000000000000"); err == nil {
		t.Error("revoked a token that does not exist")
	}
	if strings.Contains(readFile(t, path), s.bearer[len(s.bearer)-40:]) {
		t.Error("the secret is stored")
	}
}

// TestTileReads: types, cache headers, widths, and what is refused.
func TestTileReads(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	s.bulk(s.log, 0, 300)
	s.must(s.log, nth(0))
	for _, row := range []struct {
		path   string
		status int
		size   int
		cache  string
	}{
		{"/checkpoint", 200, -1, "no-cache"},
		{"/tile/0/000", 200, 256 * 32, "public, max-age=31536000, immutable"},
		{"/tile/0/001.p/44", 200, 44 * 32, "public, max-age=31536000, immutable"},
		{"/tile/0/000.p/7", 200, 7 * 32, "public, max-age=31536000, immutable"}, // only the full one exists
		{"/tile/entries/000", 200, -1, "public, max-age=31536000, immutable"},
		{"/tile/entries/000.p/5", 200, -1, "public, max-age=31536000, immutable"},
		{"/tile/1/000.p/1", 200, 32, "public, max-age=31536000, immutable"},
		{"/tile/0/001", 404, 0, "no-store"},
		{"/tile/0/001.p/45", 404, 0, "no-store"}, // beyond the published size
		{"/tile/0/002.p/1", 404, 0, "no-store"},
		{"/tile/1/000.p/2", 404, 0, "no-store"},
		{"/tile/2/000.p/1", 404, 0, "no-store"},
		{"/tile/63/000.p/1", 404, 0, "no-store"},
		{"/tile/0/000.p/256", 404, 0, "no-store"},
		{"/tile/0/000.p/0", 404, 0, "no-store"},
		{"/tile/0/000.p/07", 404, 0, "no-store"},
		{"/tile/0/x000/000", 404, 0, "no-store"},
		{"/tile/0/0", 404, 0, "no-store"},
		{"/tile/00/000", 404, 0, "no-store"},
		{"/tile/-1/000", 404, 0, "no-store"},
		{"/tile/0/%2e%2e/%2e%2e/%2e%2e/tokens.json", -404, 0, ""},
		{"/tile/entries/..%2f..%2f..%2ftokens.json", -404, 0, ""},
		{"/tile/../../tokens.json", -404, 0, ""},
		{"/tile/0/000?x=1", 404, 0, "no-store"},
		{"/log/tile/0/000", 404, 0, "no-store"},
		{"/tokens.json", 404, 0, "no-store"},
		{"/log.key", 404, 0, "no-store"},
		{"/.state/treeState", 404, 0, "no-store"},
	} {
		code, h, out := s.rest("GET", row.path, "", nil)
		if row.status < 0 { // a redirect to a clean path, or not found: never a file
			if code != 404 && code/100 != 3 {
				t.Errorf("%s: %d %v", row.path, code, out)
			}
			continue
		}
		if code != row.status || h.Get("Cache-Control") != row.cache {
			t.Errorf("%s: %d, Cache-Control %q", row.path, code, h.Get("Cache-Control"))
		}
		if row.size > 0 && h.Get("Content-Length") != fmt.Sprint(row.size) {
			t.Errorf("%s: %s bytes, want %d", row.path, h.Get("Content-Length"), row.size)
		}
		if row.status == 200 {
			want := map[bool]string{true: "text/plain; charset=utf-8", false: "application/octet-stream"}[row.path == "/checkpoint"]
			if h.Get("Content-Type") != want {
				t.Errorf("%s: %s", row.path, h.Get("Content-Type"))
			}
		}
	}
}
