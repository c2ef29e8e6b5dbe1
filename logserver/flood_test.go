package logserver

// FAULTS h2: who is connected and means no good. A submitter is served all the
// time, and memory stays bounded.

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// heap is what is in use after a collection, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

func TestHostileConnections(t *testing.T) {
	const slow = 500 // connections to each listener
	s := newRig(t, 1, 1).serve()
	s.must(s.log, nth(0))
	web, rpc := strings.TrimPrefix(s.url, "http://"), s.grpcAddress
	dial := func(address string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(30 * time.Second))
		return c
	}
	before, n := heap(), 1
	healthy := func(during string) {
		t.Helper()
		if code, _, out := s.rest("POST", "/v1/entries", s.bearer, restEntry(nth(n))); code != 200 {
			t.Errorf("%s: a submission over REST: %d %v", during, code, out)
		}
		s.must(s.log, nth(n))
		n++
		if grown := heap() - before; grown > 64<<20 {
			t.Errorf("%s: %d MiB more are in use", during, grown>>20)
		}
	}

	for range slow {
		io.WriteString(dial(web), "GET /checkpoint HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		io.WriteString(dial(rpc), "PRI * HTTP/2.0")
	}
	healthy("slow connections")

	// Bodies without an end, with and without a token.
	for _, bearer := range []string{s.bearer, "nonsense"} {
		for _, path := range []string{"/v1/entries", "/v1/proofs", "/checkpoint"} {
			sent := &endless{limit: 1 << 30}
			req, err := http.NewRequest("POST", s.url+path, sent)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+bearer)
			req.Header.Set("Content-Type", "application/json")
			res, err := http.DefaultTransport.RoundTrip(req)
			if err == nil {
				if res.StatusCode < 400 || res.StatusCode >= 500 {
					t.Errorf("an endless body to %s: %d", path, res.StatusCode)
				}
				res.Body.Close()
			}
			if read := sent.total(); read > 32<<20 {
				t.Errorf("%d MiB of an endless body to %s were read", read>>20, path)
			}
		}
	}
	healthy("endless bodies")

	// Headers.
	c := dial(web)
	fmt.Fprintf(c, "GET /checkpoint HTTP/1.1\r\nHost: x\r\nX-Large: %s\r\n\r\n", strings.Repeat("a", 64<<10))
	answer := make([]byte, 64)
	if got, err := io.ReadAtLeast(c, answer, 12); err == nil && !strings.Contains(string(answer[:got]), " 431 ") {
		t.Errorf("64 KiB of headers: %q", answer[:got])
	} else if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
		t.Errorf("64 KiB of headers: %v", err)
	}
	healthy("large headers")

	// A body that unpacks to a gigabyte is not unpacked.
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range 64 {
		z.Write(make([]byte, 1<<20))
	}
	z.Close()
	req, err := http.NewRequest("POST", s.url+"/v1/entries", &bomb)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Encoding", "gzip")
	req.Header.Set("Authorization", "Bearer "+s.bearer)
	if res, err := http.DefaultTransport.RoundTrip(req); err != nil || res.StatusCode < 400 || res.StatusCode >= 500 {
		t.Errorf("a gzip bomb: %v, %v", res, err)
	}
	healthy("a gzip bomb")

	// HTTP/2 streams that are reset as soon as they are begun.
	c = dial(rpc)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, c)
	framer := http2.NewFramer(c, nil)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	began := 0
	for id := uint32(1); id < 20_000; id += 2 {
		block.Reset()
		for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/portbook.v1.Log/Submit"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
			enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		if framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}) != nil ||
			framer.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break // it was cut off, which is well
		}
		began++
	}
	if began < 100 {
		t.Errorf("%d streams were begun: this tests nothing", began)
	}
	healthy("rapid resets")
	if s.log.admission.count() != 0 {
		t.Errorf("%d submissions are in flight", s.log.admission.count())
	}
}

// endless is a body of zeros.
type endless struct {
	mu    sync.Mutex
	read  int64
	limit int64
}

func (e *endless) Read(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.read += int64(len(p)); e.read > e.limit {
		return 0, io.EOF
	}
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func (e *endless) total() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.read
}

// TestConnectionsAreBounded: descriptors are left to the log.
func TestConnectionsAreBounded(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if n := maxConnections(); n < 16 || 2*uint64(n) >= limit.Cur && limit.Cur > 64 {
		t.Errorf("%d connections on each listener, of %d descriptors", n, limit.Cur)
	}
}
