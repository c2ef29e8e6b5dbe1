package client

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// TestProofsFromTiles: at all the sizes where tiles begin and end, proofs built
// from tiles verify against the roots.
func TestProofsFromTiles(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, "log.example/packages")
	l.fill(600, "log")
	r := l.reader()
	sizes := []int{1, 2, 3, 7, 8, 255, 256, 257, 511, 512, 513, 600}
	for _, size := range sizes {
		head := l.checkpoint(size)
		for _, index := range []int{0, 1, size / 2, size - 1} {
			if index >= size {
				continue
			}
			p, err := r.Inclusion(ctx, uint64(index), uint64(size))
			if err != nil {
				t.Fatalf("inclusion %d in %d: %v", index, size, err)
			}
			if err := c2sp.VerifyInclusion(uint64(index), uint64(size), entry.LeafHash(l.leaves[index]), p, head.Root); err != nil {
				t.Error(err)
			}
		}
		for _, old := range append([]int{0}, sizes...) {
			if old > size {
				continue
			}
			p, err := r.Consistency(ctx, uint64(old), uint64(size))
			if err != nil {
				t.Fatalf("consistency %d to %d: %v", old, size, err)
			}
			if err := c2sp.VerifyConsistency(uint64(old), uint64(size), p, l.checkpoint(old).Root, head.Root); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := r.Inclusion(ctx, 7, 7); err == nil {
		t.Error("a proof of an index beyond the tree")
	}
	if _, err := r.Consistency(ctx, 8, 7); err == nil {
		t.Error("a proof of shrinking")
	}
}

// TestPrefixRoots: the hashes that comparing rests on give both roots, for all
// pairs of sizes of a small tree.
func TestPrefixRoots(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, "log.example/packages")
	l.fill(300, "log")
	r := l.reader()
	for _, size := range []int{1, 2, 3, 5, 8, 13, 64, 255, 256, 257, 300} {
		for old := range size {
			if size > 64 && old%37 > 1 && old < size-2 {
				continue
			}
			h, err := prefixHashes(ctx, r, uint64(old), uint64(size))
			if err != nil {
				t.Fatal(err)
			}
			a, b, err := c2sp.PrefixRoots(uint64(old), uint64(size), h)
			if err != nil || a != l.checkpoint(old).Root || b != l.checkpoint(size).Root {
				t.Errorf("%d in %d: wrong roots, %v", old, size, err)
			}
			if _, _, err := c2sp.PrefixRoots(uint64(old), uint64(size), h[1:]); err == nil {
				t.Errorf("%d in %d: a hash missing, and no error", old, size)
			}
		}
	}
}

func TestReaderReadsPartialFromFull(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, "log.example/packages")
	l.fill(300, "log")
	l.noPartial = true
	r := l.reader()
	want := l.tile(c2sp.Tile{Level: 0, Index: 0, Width: 200})
	if b, err := r.Tile(ctx, 0, 0, 200); err != nil || !bytes.Equal(b, want) || cap(b) != len(b) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if e, err := r.Bundle(ctx, 0, 200); err != nil || len(e) != 200 || string(e[199]) != "leaf 199 of log" {
		t.Errorf("%d entries, %v", len(e), err)
	}
	if e, err := r.Bundle(ctx, 1, 44); err != nil || len(e) != 44 {
		t.Errorf("%d entries, %v", len(e), err)
	}
	// A full tile that is too short is not cut from.
	l.intercept = func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path == "/tile/0/000" {
			w.Write(want)
			return true
		}
		return false
	}
	_, err := r.Tile(ctx, 0, 0, 200)
	wantCannot(t, err, CodeBadAnswer)
}

func TestReaderUndoesGzip(t *testing.T) {
	l := newTestLog(t, "log.example/packages")
	l.fill(300, "log")
	l.gzip = true
	srv := httptest.NewServer(l)
	defer srv.Close()
	for name, hc := range map[string]*http.Client{"own client": nil, "no compression asked for": {Transport: &http.Transport{DisableCompression: true}}} {
		r := must(NewReader(srv.URL, hc))
		if e, err := r.Bundle(context.Background(), 0, 256); err != nil || len(e) != 256 {
			t.Errorf("%s: %d entries, %v", name, len(e), err)
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	ctx := context.Background()
	bomb := func() []byte {
		var z bytes.Buffer
		zw := must(gzip.NewWriterLevel(&z, gzip.BestCompression))
		zeros := make([]byte, 1<<20)
		for range 64 {
			zw.Write(zeros)
		}
		zw.Close()
		return z.Bytes()
	}()
	endless := func(w http.ResponseWriter) {
		chunk := bytes.Repeat([]byte("x"), 64<<10)
		for range 1 << 14 { // 1 GiB, if it is read
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	for _, tc := range []struct {
		name, code string
		answer     func(w http.ResponseWriter, r *http.Request)
	}{
		{"not found", CodeMissing, func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }},
		{"gone", CodeMissing, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(410) }},
		{"500", CodeUnreachable, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) }},
		{"503 with a Retry-After of ten years", CodeUnreachable, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "315360000")
			w.WriteHeader(503)
		}},
		{"429", CodeUnreachable, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(429) }},
		{"403", CodeBadAnswer, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(403) }},
		{"204", CodeBadAnswer, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }},
		{"206", CodeBadAnswer, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(206) }},
		{"redirect", CodeBadAnswer, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere"+r.URL.Path, http.StatusFound)
		}},
		{"redirect to itself", CodeBadAnswer, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}},
		{"endless", CodeBadAnswer, func(w http.ResponseWriter, r *http.Request) { endless(w) }},
		{"gzip bomb", CodeBadAnswer, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb)
		}},
		{"not the gzip it says", CodeUnreachable, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write([]byte("hello"))
		}},
		{"unknown encoding", CodeBadAnswer, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			w.Write([]byte("hello"))
		}},
		{"connection cut in the body", CodeUnreachable, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "4096")
			w.Write([]byte("hello"))
		}},
		{"trickling", CodeUnreachable, func(w http.ResponseWriter, r *http.Request) {
			for range 100 {
				w.Write([]byte("x"))
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		}},
		{"silent", CodeUnreachable, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
		}},
		{"64 KiB of headers", CodeUnreachable, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 80<<10))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/elsewhere") {
					t.Error("followed a redirect")
				}
				tc.answer(w, r)
			}))
			defer srv.Close()
			r := must(NewReader(srv.URL, &http.Client{Timeout: 700 * time.Millisecond}))
			_, err := r.Checkpoint(ctx)
			wantCannot(t, err, tc.code)
			_, err = r.Tile(ctx, 0, 0, 256)
			wantCannot(t, err, tc.code)
			_, err = r.Tile(ctx, 0, 0, 8)
			wantCannot(t, err, tc.code)
			_, err = r.Bundle(ctx, 0, 3)
			wantCannot(t, err, tc.code)
		})
	}

	t.Run("nobody there", func(t *testing.T) {
		srv := httptest.NewServer(nil)
		srv.Close()
		_, err := must(NewReader(srv.URL, nil)).Checkpoint(ctx)
		wantCannot(t, err, CodeUnreachable)
	})

	// Tiles and bundles of the wrong length.
	for name, body := range map[string]string{
		"nothing": "", "a hash short": strings.Repeat("x", 31*8), "a byte short": strings.Repeat("x", 255), "a byte long": strings.Repeat("x", 257),
		"a full tile for a partial one": strings.Repeat("x", 8192),
	} {
		t.Run("tile: "+name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, body) }))
			defer srv.Close()
			_, err := must(NewReader(srv.URL, nil)).Tile(ctx, 0, 0, 8)
			wantCannot(t, err, CodeBadAnswer)
		})
	}
	for name, body := range map[string]string{
		"nothing": "", "one entry short": "\x00\x01a", "cut off": "\x00\x01a\x00\x02b", "an entry too many": "\x00\x01a\x00\x01b\x00\x01c", "web page": "<html>hello</html>",
	} {
		t.Run("bundle: "+name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, body) }))
			defer srv.Close()
			_, err := must(NewReader(srv.URL, nil)).Bundle(ctx, 0, 2)
			wantCannot(t, err, CodeBadAnswer)
		})
	}
}

func TestNewReaderRefusesURLs(t *testing.T) {
	for _, u := range []string{"", "log.example", "/log", "ftp://log.example/", "file:///etc/passwd", "http://", "https://log.example/?x=1", "https://log.example/?", "https://log.example/#x", "http://[::1"} {
		if _, err := NewReader(u, nil); err == nil {
			t.Errorf("made a reader of %q", u)
		}
	}
	for _, u := range []string{"https://log.example", "https://log.example/", "http://127.0.0.1:8080/a/b//"} {
		if r, err := NewReader(u, nil); err != nil || strings.HasSuffix(r.base, "/") {
			t.Errorf("%q: %v", u, err)
		}
	}
	if r := must(NewReader("http://log.example", &http.Client{})); r.hc.Timeout != readTimeout {
		t.Errorf("a request may take %v", r.hc.Timeout)
	}
	if r := must(NewReader("http://log.example", nil)); r.hc.Timeout != readTimeout || r.hc == http.DefaultClient {
		t.Errorf("a request may take %v", r.hc.Timeout)
	}
	r := must(NewReader("http://log.example", nil))
	for _, bad := range [][2]int{{-1, 1}, {64, 1}, {0, 0}, {0, 257}, {0, -1}} {
		if _, err := r.Tile(context.Background(), bad[0], 0, bad[1]); err == nil {
			t.Errorf("asked for level %d, width %d", bad[0], bad[1])
		}
	}
}
