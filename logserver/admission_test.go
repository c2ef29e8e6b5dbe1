package logserver

// FAULTS rule 10: what is refused because it is too much, as callers see it
// over gRPC and REST, and who gets in all the same.

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func (l *Log) inFlightNow() int {
	l.admission.mu.Lock()
	defer l.admission.mu.Unlock()
	return l.admission.all
}

// overGRPC submits e with a token's secret.
func (s *served) overGRPC(secret string, e *entry.Entry) error {
	ctx := metadata.AppendToOutgoingContext(s.t.Context(), "authorization", "Bearer "+secret)
	_, err := s.client.Submit(ctx, &pb.SubmitRequest{Entry: pbEntry(e)})
	return err
}

// newToken makes a token that uploads, with a rate of its own or none.
func (s *served) newToken(rate int) string {
	s.t.Helper()
	_, secret, err := s.log.Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}, Rate: rate})
	if err != nil {
		s.t.Fatal(err)
	}
	return secret
}

// occupy puts n submissions in flight that nobody publishes, by a token of each name.
func (s *served) occupy(n int, names ...string) {
	s.t.Helper()
	for _, name := range names {
		by := s.token
		by.ID = name
		for range n {
			t, err := s.log.queue(context.Background(), by, nth(1))
			if err != nil {
				s.t.Fatal(err)
			}
			s.t.Cleanup(t.abandon)
		}
	}
}

func TestTooMuchIsRefused(t *testing.T) {
	submission := func(s *served, secret string) (error, func() (int, http.Header, map[string]any)) {
		return s.overGRPC(secret, nth(2)), func() (int, http.Header, map[string]any) {
			return s.rest("POST", "/v1/entries", secret, restEntry(nth(2)))
		}
	}
	holdReads := func(s *served) { // two reads that do not end before the test
		release, entered := make(chan struct{}), make(chan struct{}, 2)
		s.log.testReading = func() {
			entered <- struct{}{}
			<-release
		}
		ended := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := s.client.GetProof(context.Background(), &pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: 0}})
				ended <- err
			}()
			<-entered
		}
		s.t.Cleanup(func() {
			close(release)
			for range 2 {
				if err := <-ended; err != nil {
					s.t.Errorf("a read that was admitted: %v", err)
				}
			}
		})
	}
	for _, row := range []struct {
		name   string
		config func(*Config)
		setup  func(s *served)
		try    func(s *served) (error, func() (int, http.Header, map[string]any))
		admits func(s *served) error // what gets in at the same time; nil: nothing
	}{
		{"in flight, of all", func(c *Config) { c.MaxInFlight = 4 }, func(s *served) { s.occupy(2, "a", "b") },
			func(s *served) (error, func() (int, http.Header, map[string]any)) { return submission(s, s.bearer) }, nil},
		{"in flight, of one token", func(c *Config) { c.MaxInFlight = 4 }, func(s *served) { s.occupy(2, strings.Split(s.bearer, "_")[1]) },
			func(s *served) (error, func() (int, http.Header, map[string]any)) { return submission(s, s.bearer) },
			func(s *served) error { return s.overGRPC(s.newToken(0), nth(3)) }},
		{"rate, of one token", func(*Config) {}, func(s *served) {
			s.bearer = s.newToken(2)
			for range 2 {
				if err := s.overGRPC(s.bearer, nth(0)); err != nil {
					s.t.Fatal(err)
				}
			}
			// Spent for longer than the test takes.
			s.log.rates.mu.Lock()
			defer s.log.rates.mu.Unlock()
			for _, limiter := range s.log.rates.byKey { // of that token: others have no rate
				for range 5 {
					limiter.ReserveN(time.Now(), 2)
				}
			}
		}, func(s *served) (error, func() (int, http.Header, map[string]any)) { return submission(s, s.bearer) },
			func(s *served) error { return s.overGRPC(s.newToken(0), nth(3)) }},
		{"rate, of all", func(c *Config) { c.MaxRate = 10 }, func(s *served) {
			for range 3 {
				s.log.rate.ReserveN(time.Now(), 10)
			}
		}, func(s *served) (error, func() (int, http.Header, map[string]any)) { return submission(s, s.bearer) }, nil},
		{"proofs at once", func(c *Config) { c.MaxReads = 2 }, holdReads, func(s *served) (error, func() (int, http.Header, map[string]any)) {
			_, err := s.client.GetProof(s.t.Context(), &pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: 0}})
			return err, func() (int, http.Header, map[string]any) { return s.rest("GET", "/v1/proof?index=0", "", nil) }
		}, func(s *served) error { return s.overGRPC(s.bearer, nth(3)) }},
		{"lookups at once", func(c *Config) { c.MaxReads = 2 }, holdReads, func(s *served) (error, func() (int, http.Header, map[string]any)) {
			_, err := s.client.Lookup(s.t.Context(), &pb.LookupRequest{Registry: testRegistry, Ecosystem: "pypi", Project: "p0"})
			return err, func() (int, http.Header, map[string]any) {
				return s.rest("GET", "/v1/entries?registry="+testRegistry+"&ecosystem=pypi&project=p0", "", nil)
			}
		}, func(s *served) error { return s.overGRPC(s.bearer, nth(3)) }},
		{"bulk proofs at once", func(c *Config) { c.MaxReads = 2 }, holdReads, func(s *served) (error, func() (int, http.Header, map[string]any)) {
			q := &pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: 0}}
			_, err := s.client.GetProofs(s.t.Context(), &pb.GetProofsRequest{Queries: []*pb.GetProofRequest{q}})
			return err, func() (int, http.Header, map[string]any) {
				return s.rest("POST", "/v1/proofs", "", `{"queries": [{"index": "0"}]}`)
			}
		}, func(s *served) error { return s.overGRPC(s.bearer, nth(3)) }},
		{"streams of entries at once", func(c *Config) { c.MaxReads = 2 }, holdReads, func(s *served) (error, func() (int, http.Header, map[string]any)) {
			_, err := s.entries(&pb.EntriesRequest{})
			return err, func() (int, http.Header, map[string]any) { return s.rest("GET", "/v1/entries:stream", "", nil) }
		}, func(s *served) error { return s.overGRPC(s.bearer, nth(3)) }},
		{"streams of entries, their half", func(c *Config) { c.MaxReads = 2 }, func(s *served) { s.log.readStreams.Add(1) },
			func(s *served) (error, func() (int, http.Header, map[string]any)) {
				_, err := s.entries(&pb.EntriesRequest{})
				return err, func() (int, http.Header, map[string]any) { return s.rest("GET", "/v1/entries:stream", "", nil) }
			}, func(s *served) error {
				_, err := s.client.GetProof(s.t.Context(), &pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: 0}})
				return err
			}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, 1, 1)
			s := r.serve(row.config)
			r.must(s.log, nth(0))
			row.setup(s)
			start := time.Now()
			err, rest := row.try(s)
			st := status.Convert(err)
			var reason string
			var retry time.Duration
			for _, d := range st.Details() {
				switch d := d.(type) {
				case *errdetails.ErrorInfo:
					reason = d.Reason
				case *errdetails.RetryInfo:
					retry = d.RetryDelay.AsDuration()
				}
			}
			if st.Code() != codes.ResourceExhausted || reason != "OVERLOADED" || retry <= 0 {
				t.Errorf("gRPC: %v, reason %q, retry after %v", err, reason, retry)
			}
			code, h, out := rest()
			if code != 429 || h.Get("Retry-After") == "" || out["reason"] != "OVERLOADED" {
				t.Errorf("REST: %d, Retry-After %q, %v", code, h.Get("Retry-After"), out)
			}
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("refused after %v", d)
			}
			if row.admits != nil {
				if err := row.admits(s); err != nil {
					t.Errorf("what should get in beside it: %v", err)
				}
			}
		})
	}
}

// TestStreamIsSlowed: a stream beyond the log's rate and its token's share is
// answered whole, and later.
func TestStreamIsSlowed(t *testing.T) {
	s := newRig(t, 1, 1).serve(func(c *Config) { c.MaxRate, c.MaxInFlight = 50, 20 })
	stream, err := s.client.SubmitStream(s.auth())
	if err != nil {
		t.Fatal(err)
	}
	const n = 80 // 50 at once, 30 more take 0.6 s
	start := time.Now()
	go func() {
		for i := range n {
			stream.Send(&pb.SubmitStreamRequest{Entries: []*pb.Entry{pbEntry(nth(i))}})
		}
		stream.CloseSend()
	}()
	for i := range n {
		res, err := stream.Recv()
		if err != nil || len(res.Results) != 1 || res.Results[0].Error != nil {
			t.Fatalf("answer %d: %v, %v", i, res, err)
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v", err)
	}
	if d := time.Since(start); d < 500*time.Millisecond {
		t.Errorf("80 entries took %v at 50 a second", d)
	}
	waitFor(t, "nothing in flight", func() bool { return s.log.inFlightNow() == 0 })
}
