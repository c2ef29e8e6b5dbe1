package logserver

// The reading calls: many proofs at once, entries in order, both digests, leaves
// that this server cannot read.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"github.com/transparency-dev/tessera"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// entries reads a stream of entries to its end.
func (s *served) entries(req *pb.EntriesRequest) ([]*pb.EntriesResponse, error) {
	stream, err := s.client.Entries(s.t.Context(), req)
	if err != nil {
		return nil, err
	}
	var out []*pb.EntriesResponse
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, m)
	}
}

func (s *served) checkProof(e *pb.LoggedEntry) {
	s.t.Helper()
	p, err := c2sp.ParseProof(e.Proof)
	if err != nil || !bytes.Equal(p.Extra, e.Leaf) {
		s.t.Fatalf("proof of entry %d: %v", e.Index, err)
	}
	s.check(&Ack{Index: e.Index, Proof: p})
}

// TestManyProofs: each query with its proofs or its own error, all against one
// checkpoint.
func TestManyProofs(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	s.bulk(s.log, 0, 300)
	e := upload("p1", "p1-both.tar.gz", "both")
	both := sha512.Sum512([]byte("both"))
	e.SHA512 = hex.EncodeToString(both[:])
	ack := s.must(s.log, e)
	leaf := entry.LeafHash(ack.Proof.Extra)
	index := func(n uint64) *pb.GetProofRequest {
		return &pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: n}}
	}
	queries := []*pb.GetProofRequest{
		index(7), index(299), index(7), index(301),
		{By: &pb.GetProofRequest_Sha256{Sha256: e.SHA256}},
		{By: &pb.GetProofRequest_Sha512{Sha512: e.SHA512}},
		{By: &pb.GetProofRequest_Sha512{Sha512: strings.Repeat("0", 128)}},
		{By: &pb.GetProofRequest_LeafHash{LeafHash: hex.EncodeToString(leaf[:])}},
		{By: &pb.GetProofRequest_LeafHash{LeafHash: "x"}},
		{},
	}
	want := []any{7, 299, 7, codes.NotFound, ack.Index, ack.Index, codes.NotFound, ack.Index, codes.InvalidArgument, codes.InvalidArgument}
	res, err := s.client.GetProofs(t.Context(), &pb.GetProofsRequest{Queries: queries})
	if err != nil || len(res.Answers) != len(queries) {
		t.Fatalf("%v, %v", res, err)
	}
	checkpoints := map[string]bool{}
	for i, a := range res.Answers {
		if code, ok := want[i].(codes.Code); ok {
			if codes.Code(a.GetError().GetCode()) != code || a.Error.Message == "" || a.Error.Reason == "" || len(a.Proofs) > 0 {
				t.Errorf("answer %d: %v, want %v", i, a, code)
			}
			continue
		}
		if a.Error != nil || len(a.Proofs) != 1 || fmt.Sprint(a.Proofs[0].Index) != fmt.Sprint(want[i]) {
			t.Errorf("answer %d: %v, want entry %v", i, a, want[i])
			continue
		}
		s.checkProof(a.Proofs[0])
		p, err := c2sp.ParseProof(a.Proofs[0].Proof)
		if err != nil {
			t.Fatal(err)
		}
		checkpoints[string(p.Checkpoint)] = true
	}
	if len(checkpoints) != 1 {
		t.Errorf("%d checkpoints in one answer", len(checkpoints))
	}

	code, h, out := s.rest("POST", "/v1/proofs", "", fmt.Sprintf(`{"queries": [{"sha512": %q}, {"index": "999"}]}`, e.SHA512))
	answers, _ := out["answers"].([]any)
	if code != 200 || len(answers) != 2 || h.Get("Access-Control-Allow-Origin") != "*" {
		t.Fatalf("REST: %d %v", code, out)
	}
	if e := answers[1].(map[string]any)["error"].(map[string]any); e["reason"] != "NOT_FOUND" {
		t.Errorf("REST: %v", e)
	}
	code, _, out = s.rest("GET", "/v1/proof?sha512="+e.SHA512, "", nil)
	if proofs, _ := out["proofs"].([]any); code != 200 || len(proofs) != 1 {
		t.Errorf("proof by sha512: %d %v", code, out)
	}
}

// TestAnswerIsBounded: what does not fit is said so, one by one, and nothing is
// left out in silence.
func TestAnswerIsBounded(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	s.bulk(s.log, 0, 10)
	v := s.log.view(t.Context())
	left := maxAnswer
	one := &pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: 3}}
	if out, err := v.proofs(one, &left); err != nil || len(out) != 1 || left >= maxAnswer {
		t.Fatalf("%v %v %d", out, err, left)
	}
	left = 100 // nearly full
	for range 2 {
		if out, err := v.proofs(one, &left); !errors.Is(err, ErrOverloaded) || len(out) != 0 {
			t.Errorf("an answer that is full: %v, %v", out, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&service{log: s.log}).GetProofs(ctx, &pb.GetProofsRequest{Queries: []*pb.GetProofRequest{one}}); status.Code(err) != codes.Canceled {
		t.Errorf("a caller that is gone: %v", err)
	}
}

// TestEntries: all entries in order, in chunks, with and without proofs, over
// gRPC and as lines of JSON.
func TestEntries(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	s.bulk(s.log, 0, 600)
	s.must(s.log, nth(0))
	for _, row := range []struct{ from, to, first, end uint64 }{
		{0, 0, 0, 600}, {0, 600, 0, 600}, {255, 257, 255, 257}, {599, 0, 599, 600}, {600, 0, 600, 600}, {10, 10, 10, 10}, {256, 512, 256, 512},
	} {
		for _, proofs := range []bool{false, true} {
			chunks, err := s.entries(&pb.EntriesRequest{From: row.from, To: row.to, Proofs: proofs})
			if err != nil {
				t.Fatalf("%v: %v", row, err)
			}
			at := row.first
			for i, c := range chunks {
				if (len(c.Checkpoint) > 0) != (i == 0) || len(c.Entries) > 256 || proofs && len(c.Entries) > proofChunk {
					t.Errorf("%v: chunk %d has %d entries, checkpoint %t", row, i, len(c.Entries), len(c.Checkpoint) > 0)
				}
				for _, e := range c.Entries {
					if e.Index != at {
						t.Fatalf("%v: entry %d where %d was due", row, e.Index, at)
					}
					at++
					if !proofs && (len(e.Proof) > 0 || len(e.Leaf) == 0) {
						t.Fatalf("%v: %v", row, e)
					}
					if proofs {
						s.checkProof(e)
					}
				}
			}
			if at != row.end || len(chunks) == 0 {
				t.Errorf("%v: ends at %d, in %d chunks", row, at, len(chunks))
			}
		}
	}
	if _, err := s.entries(&pb.EntriesRequest{From: 5, To: 4}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("backwards: %v", err)
	}
	if _, err := s.entries(&pb.EntriesRequest{From: 601}); status.Code(err) != codes.OutOfRange {
		t.Errorf("beyond the log: %v", err)
	}

	res, body := ask(t, "GET", s.url+"/v1/entries:stream?from=100&proofs=true")
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%d %v %s", res.StatusCode, res.Header, body)
	}
	at, lines := 100, bufio.NewScanner(bytes.NewReader(body))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			Result struct {
				Entries []struct{ Index, Leaf, Proof string }
			}
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		for _, e := range line.Result.Entries {
			if e.Index != fmt.Sprint(at) {
				t.Fatalf("entry %s where %d was due", e.Index, at)
			}
			leaf, err := base64.StdEncoding.DecodeString(e.Leaf)
			if err != nil {
				t.Fatal(err)
			}
			proof, err := base64.StdEncoding.DecodeString(e.Proof)
			if err != nil {
				t.Fatal(err)
			}
			s.checkProof(&pb.LoggedEntry{Index: uint64(at), Leaf: leaf, Proof: proof})
			at++
		}
	}
	if at != 600 {
		t.Errorf("ends at %d", at)
	}
	waitFor(t, "the streams to be over", func() bool { return s.log.readStreams.Load() == 0 && s.log.reads.Load() == 0 })
}

// TestStreamOfEntriesIsLetGo: a reader that stops reading holds its place no
// longer than its connection.
func TestStreamOfEntriesIsLetGo(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	s.bulk(s.log, 0, 3000)
	s.must(s.log, nth(0))
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := s.client.Entries(ctx, &pb.EntriesRequest{Proofs: true}) // more than a window holds
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if s.log.readStreams.Load() != 1 || s.log.reads.Load() != 1 {
		t.Fatalf("a stream counts as %d streams and %d reads", s.log.readStreams.Load(), s.log.reads.Load())
	}
	cancel()
	waitFor(t, "the place to be free", func() bool { return s.log.readStreams.Load() == 0 && s.log.reads.Load() == 0 })
}

// TestSlowReaderIsCut: one that takes longer than it may for a chunk.
func TestSlowReaderIsCut(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	stuck := &stuckStream{ctx: t.Context(), release: make(chan struct{})}
	defer close(stuck.release)
	if err := sendWithin(ctx, stuck, &pb.EntriesResponse{}); !errors.Is(err, errSlowReader) {
		t.Errorf("a reader that takes nothing: %v", err)
	}
	if err := (&service{}).status(errSlowReader); status.Code(err) != codes.Aborted {
		t.Errorf("%v", err)
	}
}

// TestHeadOfCalls has the length of what GET would send, and no body.
func TestHeadOfCalls(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	s.must(s.log, nth(0))
	for _, path := range []string{"/v1/proof?index=0", "/v1/proof?index=9", "/v1/entries?registry=" + testRegistry + "&ecosystem=pypi&project=p0", "/v1/openapi.json", "/healthz", "/readyz", "/nothing"} {
		get, body := ask(t, "GET", s.url+path)
		head, none := ask(t, "HEAD", s.url+path)
		if head.StatusCode != get.StatusCode || len(none) > 0 || head.ContentLength != int64(len(body)) || head.Header.Get("Content-Type") != get.Header.Get("Content-Type") {
			t.Errorf("%s: HEAD %d, length %d; GET %d, length %d", path, head.StatusCode, head.ContentLength, get.StatusCode, len(body))
		}
	}
}

// TestRESTMethods: the calls that REST knows are those of the OpenAPI file, and
// each says which methods it has.
func TestRESTMethods(t *testing.T) {
	var doc struct {
		Paths map[string]map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(pb.OpenAPI, &doc); err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(doc.Paths)), slices.Sorted(maps.Keys(restMethods)); !slices.Equal(got, want) {
		t.Errorf("OpenAPI has %v, the handler %v", got, want)
	}
	s := newRig(t, 1, 1).serve()
	for path, methods := range restMethods {
		for method := range doc.Paths[path] {
			if !slices.Contains(methods, strings.ToUpper(method)) {
				t.Errorf("%s %s is in OpenAPI and not allowed", method, path)
			}
		}
		for _, method := range []string{"PUT", "DELETE", "PATCH", "OPTIONS"} {
			if res, _ := ask(t, method, s.url+path); res.StatusCode != 405 || res.Header.Get("Allow") != strings.Join(methods, ", ") {
				t.Errorf("%s %s: %d, Allow %q", method, path, res.StatusCode, res.Header.Get("Allow"))
			}
		}
	}
	// A form or a header does not make another method of it.
	req, err := http.NewRequest("POST", s.url+"/v1/proof", strings.NewReader("index=0"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("X-HTTP-Method-Override", "GET")
	res, err := plainClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 405 {
		t.Errorf("a form: %d", res.StatusCode)
	}
	// No page of another origin gets to submit, nor is it told that it may.
	for _, header := range []string{"Access-Control-Allow-Methods", "Access-Control-Allow-Headers", "Access-Control-Allow-Credentials"} {
		res, _ := ask(t, "OPTIONS", s.url+"/v1/entries", "Origin", "https://page.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization")
		if res.Header.Get(header) != "" || res.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("a preflight is answered: %v", res.Header)
		}
	}
	if _, h, _ := s.rest("POST", "/v1/entries", s.bearer, restEntry(nth(1))); h.Get("Access-Control-Allow-Origin") != "" {
		t.Error("a submission is open to other origins")
	}
}

// publishBeneath signs what storage has, as the server that wrote it did, and
// makes it the public checkpoint.
func (r *rig) publishBeneath(size uint64) {
	r.t.Helper()
	root, err := (tree{context.Background(), directory(filepath.Join(r.dir, engineDir)), int64(size), newTileCache()}).root()
	if err != nil {
		r.t.Fatal(err)
	}
	cp := c2sp.Checkpoint{Origin: r.signer.Key().Name(), Size: size, Root: root}
	sig, err := r.signer.Sign(cp.Text())
	if err != nil {
		r.t.Fatal(err)
	}
	note := &c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}
	if err := os.WriteFile(filepath.Join(r.dir, checkpointFile), note.Bytes(), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// addRaw puts leaves of any bytes beneath a log that is not running.
func (r *rig) addRaw(leaves ...string) {
	r.t.Helper()
	e, err := openPOSIX(r.t.Context(), filepath.Join(r.dir, engineDir))
	if err != nil {
		r.t.Fatal(err)
	}
	entries := make([]*tessera.Entry, len(leaves))
	for i, leaf := range leaves {
		entries[i] = tessera.NewEntry([]byte(leaf))
	}
	if _, err := e.append(r.t.Context(), entries); err != nil {
		r.t.Fatal(err)
	}
	if err := e.close(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// TestUnknownEntryVersions: leaves that a newer server wrote stop no lookup. They
// are found by index and leaf hash, and entries around them by all the rest.
func TestUnknownEntryVersions(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	r.bulk(l, 0, 3)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	newer := `{"claim":"index","ecosystem":"pypi","file":"p0-0.tar.gz","kind":"upload","project":"p0","registry":"index.example","v":2}`
	r.addRaw(newer, "not an entry at all")
	r.addBeneath(3, 2)
	r.publishBeneath(7)

	l = r.open()
	s := r.serveOpen(l)
	waitFor(t, "the published size", func() bool { return l.Published().Size == 7 })
	hash := entry.LeafHash([]byte(newer))
	got, err := s.client.GetProof(t.Context(), &pb.GetProofRequest{By: &pb.GetProofRequest_LeafHash{LeafHash: hex.EncodeToString(hash[:])}})
	if err != nil || len(got.Proofs) != 1 || got.Proofs[0].Index != 3 || string(got.Proofs[0].Leaf) != newer {
		t.Fatalf("by leaf hash: %v, %v", got, err)
	}
	for _, n := range []int{0, 3, 4} { // before and after
		got, err := s.client.GetProof(t.Context(), &pb.GetProofRequest{By: &pb.GetProofRequest_Sha256{Sha256: nth(n).SHA256}})
		if err != nil || len(got.Proofs) != 1 {
			t.Errorf("by sha256 of %d: %v, %v", n, got, err)
		}
	}
	list, err := s.client.Lookup(t.Context(), &pb.LookupRequest{Registry: testRegistry, Ecosystem: "pypi", Project: "p0"})
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Index != 0 {
		t.Errorf("lookup: %v, %v", list, err)
	}
	chunks, err := s.entries(&pb.EntriesRequest{})
	if err != nil || len(chunks) != 1 || len(chunks[0].Entries) != 7 || string(chunks[0].Entries[3].Leaf) != newer {
		t.Errorf("entries: %v, %v", chunks, err)
	}
}

type stuckStream struct {
	pb.Log_EntriesServer
	ctx     context.Context
	release chan struct{}
}

func (s *stuckStream) Context() context.Context { return s.ctx }
func (s *stuckStream) Send(*pb.EntriesResponse) error {
	<-s.release
	return nil
}
