package logserver

// Ten times as much as the log takes, offered to a server in a process of its own.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// anonymous is how much memory of its own a process has, in bytes.
func anonymous(t *testing.T, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skipf("no /proc to read a process's memory from: %v", err)
	}
	for line := range strings.Lines(string(raw)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// TestTenTimesTooMuch: the log goes on at its limit, the rest is refused at once
// with when to try again (a stream is read from no faster), reads are answered,
// and memory stays where it was.
func TestTenTimesTooMuch(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: the race detector's own memory is what it would measure")
	}
	const (
		limit   = 100 // entries a second
		offered = 10 * limit
		callers = 40
		warm    = 900 * time.Millisecond // the limit's burst is used up
		measure = 2 * time.Second
		growth  = 96 << 20
	)
	r := newRig(t, 1, 1)
	l := r.ready()
	var tokens [4]string
	for i := range tokens {
		var err error
		if _, tokens[i], err = l.Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}}); err != nil {
			t.Fatal(err)
		}
	}
	r.must(l, nth(0))
	l.Close()
	t.Setenv(limitsEnv, fmt.Sprintf("%d %d", limit, 4*limit))
	c, err := r.spawn()
	if err != nil {
		t.Fatal(err)
	}
	defer c.kill()
	conn, err := grpc.NewClient("passthrough:///"+c.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := pb.NewLogClient(conn)
	web := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}, Timeout: 20 * time.Second}
	defer web.CloseIdleConnections()
	as := func(ctx context.Context, caller int) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+tokens[caller%len(tokens)])
	}
	var serial atomic.Int64
	next := func() *entry.Entry { return nth(int(serial.Add(1))) }
	waitFor(t, "the log to take submissions", func() bool {
		_, err := client.Submit(as(t.Context(), 0), &pb.SubmitRequest{Entry: pbEntry(nth(0))})
		return err == nil
	})

	// What one call became: logged, or refused with when to try again, or an error.
	overGRPC := func(ctx context.Context, caller int) (bool, error) {
		_, err := client.Submit(as(ctx, caller), &pb.SubmitRequest{Entry: pbEntry(next())})
		if err == nil {
			return true, nil
		}
		if s := status.Convert(err); s.Code() == codes.ResourceExhausted {
			for _, d := range s.Details() {
				if after, ok := d.(*errdetails.RetryInfo); ok && after.RetryDelay.AsDuration() > 0 {
					return false, nil
				}
			}
		}
		return false, err
	}
	overREST := func(ctx context.Context, caller int) (bool, error) {
		e := next()
		body := fmt.Sprintf(`{"entry": {"kind": "upload", "ecosystem": %q, "project": %q, "version": %q, "file": %q, "size": "%d", "sha256": %q, "time": %q}}`,
			e.Ecosystem, e.Project, e.Version, e.File, *e.Size, e.SHA256, e.Time)
		req, err := http.NewRequestWithContext(ctx, "POST", "http://"+c.http+"/v1/entries", strings.NewReader(body))
		if err != nil {
			return false, err
		}
		req.Header.Set("Authorization", "Bearer "+tokens[caller%len(tokens)])
		res, err := web.Do(req)
		if err != nil {
			return false, err
		}
		res.Body.Close()
		switch {
		case res.StatusCode == http.StatusOK:
			return true, nil
		case res.StatusCode == http.StatusTooManyRequests && res.Header.Get("Retry-After") != "":
			return false, nil
		}
		return false, fmt.Errorf("%s, Retry-After %q", res.Status, res.Header.Get("Retry-After"))
	}

	base := anonymous(t, c.cmd.Process.Pid)
	for _, row := range []struct {
		name string
		call func(context.Context, int) (logged bool, err error) // nil: streams
	}{{"gRPC", overGRPC}, {"REST", overREST}, {"streams", nil}} {
		t.Run(row.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			start := time.Now()
			end := start.Add(warm + measure)
			var logged, asked, reads atomic.Int64 // in the time that is measured
			during := func() bool { now := time.Now(); return now.After(start.Add(warm)) && now.Before(end) }
			var mu sync.Mutex
			var refusals []time.Duration // guarded by mu
			var wg sync.WaitGroup
			for caller := range callers {
				if row.call == nil {
					break
				}
				wg.Go(func() {
					every := time.NewTicker(time.Second * callers / offered)
					defer every.Stop()
					for time.Now().Before(end) {
						<-every.C
						at := time.Now()
						ok, err := row.call(ctx, caller)
						took := time.Since(at)
						switch {
						case err != nil:
							t.Errorf("neither logged nor refused as it should: %v", err)
							return
						case !during():
							continue
						case ok:
							logged.Add(1)
						default:
							mu.Lock()
							refusals = append(refusals, took)
							mu.Unlock()
						}
						asked.Add(1)
					}
				})
			}
			for caller := range 8 { // streams offer as much as they can get rid of
				if row.call != nil {
					break
				}
				stream, err := client.SubmitStream(as(ctx, caller))
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() {
					for {
						var some []*pb.Entry
						for range 50 {
							some = append(some, pbEntry(next()))
						}
						if stream.Send(&pb.SubmitStreamRequest{Entries: some}) != nil {
							return
						}
						if during() {
							asked.Add(50)
						}
					}
				})
				wg.Go(func() {
					for {
						res, err := stream.Recv()
						if err != nil {
							if ctx.Err() == nil {
								t.Errorf("a stream ended: %v", err)
							}
							return
						}
						for _, x := range res.Results {
							if x.Error != nil {
								t.Errorf("an entry of a stream was refused: %v", x.Error)
							}
						}
						if during() {
							logged.Add(int64(len(res.Results)))
						}
					}
				})
			}
			wg.Go(func() { // a reader
				for time.Now().Before(end) {
					_, err := client.GetProof(ctx, &pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: 0}})
					if fetch("http://"+c.http+"/checkpoint") == nil {
						err = errors.Join(err, errors.New("no checkpoint"))
					}
					if err != nil {
						t.Errorf("a read: %v", err)
						return
					}
					reads.Add(1)
					time.Sleep(20 * time.Millisecond)
				}
			})
			peak := int64(0)
			for time.Now().Before(end) {
				peak = max(peak, anonymous(t, c.cmd.Process.Pid))
				time.Sleep(20 * time.Millisecond)
			}
			if row.call == nil {
				cancel()
			}
			wg.Wait()
			took := measure.Seconds()
			good := float64(logged.Load()) / took
			var median time.Duration
			if slices.Sort(refusals); len(refusals) > 0 {
				median = refusals[len(refusals)/2]
			}
			t.Logf("%.0f a second offered, %.0f logged of %d; %d refused, after %v in the median; %d reads; memory %d KiB, at most %d",
				float64(asked.Load())/took, good, limit, len(refusals), median, reads.Load(), base>>10, peak>>10)
			if good < 0.8*limit || good > 1.5*limit {
				t.Errorf("%.0f entries a second were logged; the limit is %d", good, limit)
			}
			if row.call != nil && (len(refusals) < 3*limit*int(took) || median > 50*time.Millisecond) {
				t.Errorf("%d were refused, after %v in the median", len(refusals), median)
			}
			if reads.Load() < 10 {
				t.Errorf("%d reads were answered", reads.Load())
			}
			if peak > base+growth {
				t.Errorf("memory grew from %d to %d bytes", base, peak)
			}
		})
	}
}
