package logserver

// The static files as HTTP has them: conditions, ranges, HEAD, encodings,
// methods, and what is never served. One row a rule.

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// plainClient asks for no encoding by itself and follows no redirect.
var plainClient = &http.Client{
	Timeout:       5 * time.Second,
	Transport:     &http.Transport{DisableCompression: true, DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// ask makes one request; headers are name, value, name, value.
func ask(t testing.TB, method, url string, headers ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	res, err := plainClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, body
}

func unzip(t *testing.T, b []byte) []byte {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestStaticFiles(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	s.bulk(s.log, 0, 300)
	s.must(s.log, nth(0))
	paths := []string{"/checkpoint", "/tile/0/000", "/tile/0/001.p/44", "/tile/0/000.p/7", "/tile/1/000.p/1",
		"/tile/entries/000", "/tile/entries/001.p/44", "/tile/entries/000.p/5"}
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			bundle, checkpoint := strings.Contains(path, "entries"), path == "/checkpoint"
			res, whole := ask(t, "GET", s.url+path)
			again, body := ask(t, "GET", s.url+path) // the second from what is remembered
			etag := res.Header.Get("ETag")
			if res.StatusCode != 200 || !bytes.Equal(whole, body) || again.Header.Get("ETag") != etag || etag != strongTag(whole) {
				t.Fatalf("%d, %d bytes and then %d, ETag %s and then %s", res.StatusCode, len(whole), len(body), etag, again.Header.Get("ETag"))
			}
			if res.ContentLength != int64(len(whole)) || res.Header.Get("Accept-Ranges") != "bytes" || res.Header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("headers: %v", res.Header)
			}
			if res.Header.Get("Last-Modified") != "" {
				t.Error("Last-Modified: no file time is the truth")
			}
			if got := res.Header.Get("Vary"); (got == "Accept-Encoding") != bundle {
				t.Errorf("Vary %q", got)
			}

			// HEAD
			res, body = ask(t, "HEAD", s.url+path)
			if res.StatusCode != 200 || len(body) != 0 || res.ContentLength != int64(len(whole)) || res.Header.Get("ETag") != etag {
				t.Errorf("HEAD: %d, length %d, %v", res.StatusCode, res.ContentLength, res.Header)
			}

			// Conditions
			for _, row := range []struct {
				header, value string
				status        int
			}{
				{"If-None-Match", etag, 304}, {"If-None-Match", "W/" + etag, 304}, {"If-None-Match", `"x", ` + etag, 304}, {"If-None-Match", "*", 304},
				{"If-None-Match", `"x"`, 200}, {"If-Match", etag, 200}, {"If-Match", `"x"`, 412},
				{"If-Modified-Since", "Mon, 01 Jan 2035 00:00:00 GMT", 200},
			} {
				for _, method := range []string{"GET", "HEAD"} {
					res, body := ask(t, method, s.url+path, row.header, row.value)
					if res.StatusCode != row.status || row.status != 200 && len(body) > 0 {
						t.Errorf("%s with %s: %s: %d, want %d", method, row.header, row.value, res.StatusCode, row.status)
					}
					if row.status == 304 && (res.Header.Get("ETag") != etag || res.Header.Get("Cache-Control") == "") {
						t.Errorf("304 without ETag or Cache-Control: %v", res.Header)
					}
				}
			}

			// Ranges
			n := len(whole)
			for _, row := range []struct {
				r       string
				status  int
				from, n int
			}{
				{"bytes=0-0", 206, 0, 1}, {"bytes=3-9", 206, 3, 7}, {"bytes=5-", 206, 5, n - 5}, {"bytes=-4", 206, n - 4, 4},
				{fmt.Sprintf("bytes=1-%d", n+100), 206, 1, n - 1}, {"bytes=-100000000", 206, 0, n},
				{fmt.Sprintf("bytes=%d-", n), 416, 0, 0}, {"bytes=9-3", 416, 0, 0}, {"bytes=x", 416, 0, 0}, {"lines=1-2", 200, 0, n},
				{"bytes=0-1,3-4", 200, 0, n}, // several: the whole
			} {
				res, body := ask(t, "GET", s.url+path, "Range", row.r)
				if res.StatusCode != row.status {
					t.Errorf("%s: %d, want %d", row.r, res.StatusCode, row.status)
					continue
				}
				if row.status == 416 {
					if res.Header.Get("Content-Type") != "application/problem+json" || res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("ETag") != "" {
						t.Errorf("%s: %v", row.r, res.Header)
					}
					continue
				}
				if !bytes.Equal(body, whole[row.from:row.from+row.n]) || res.ContentLength != int64(row.n) {
					t.Errorf("%s: %d bytes, want %d from %d", row.r, len(body), row.n, row.from)
				}
			}
			if res, _ := ask(t, "GET", s.url+path, "Range", "bytes=0-1", "If-Range", `"x"`); res.StatusCode != 200 {
				t.Errorf("If-Range of another file: %d", res.StatusCode)
			}
			if res, _ := ask(t, "GET", s.url+path, "Range", "bytes=0-1", "If-Range", etag); res.StatusCode != 206 {
				t.Errorf("If-Range: %d", res.StatusCode)
			}

			// Methods
			for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} {
				res, _ := ask(t, method, s.url+path)
				if res.StatusCode != 405 || res.Header.Get("Allow") != "GET, HEAD" {
					t.Errorf("%s: %d, Allow %q", method, res.StatusCode, res.Header.Get("Allow"))
				}
			}

			// Encodings
			for _, row := range []struct {
				accept string
				zip    bool
				status int
			}{
				{"gzip", true, 200}, {"GZIP", true, 200}, {"x-gzip", true, 200}, {"deflate, gzip;q=1.0, *;q=0.5", true, 200}, {"*", true, 200},
				{"gzip;q=0.5", true, 200}, {"identity;q=0.5, gzip;q=0.8", true, 200}, {"identity;q=0, gzip;q=0.001", true, 200},
				{"", false, 200}, {"identity", false, 200}, {"gzip;q=0", false, 200}, {"br", false, 200}, {"gzip;q=0.2, identity;q=0.9", false, 200},
				{"gzip;q=2", false, 200}, {"gzip;level=9", false, 200}, {"gzip;q=0.1234", false, 200}, {"gzip, *;q=0", true, 200},
				{"identity;q=0", false, 406}, {"*;q=0", false, 406}, {"br, *;q=0.0", false, 406},
			} {
				res, body := ask(t, "GET", s.url+path, "Accept-Encoding", row.accept)
				zip, want := row.zip && bundle, row.status
				if !bundle && strings.Contains(row.accept, "identity;q=0,") || !bundle && row.accept == "gzip, *;q=0" {
					want = 406 // there is no other form of it
				}
				if res.StatusCode != want || want == 200 && (res.Header.Get("Content-Encoding") == "gzip") != zip {
					t.Errorf("Accept-Encoding %q: %d, Content-Encoding %q", row.accept, res.StatusCode, res.Header.Get("Content-Encoding"))
					continue
				}
				if want != 200 {
					continue
				}
				if (res.Header.Get("ETag") == etag) == zip || res.ContentLength != int64(len(body)) || res.Header.Get("ETag") != strongTag(body) {
					t.Errorf("Accept-Encoding %q: ETag %s, length %d of %d", row.accept, res.Header.Get("ETag"), res.ContentLength, len(body))
				}
				if zip {
					body = unzip(t, body)
				}
				if !bytes.Equal(body, whole) {
					t.Errorf("Accept-Encoding %q: other bytes", row.accept)
				}
			}
			if checkpoint || !bundle {
				return
			}

			// The compressed form is a representation of its own, with its ETag and
			// its ranges.
			res, zipped := ask(t, "GET", s.url+path, "Accept-Encoding", "gzip")
			ztag := res.Header.Get("ETag")
			if res, body := ask(t, "HEAD", s.url+path, "Accept-Encoding", "gzip"); res.ContentLength != int64(len(zipped)) || len(body) != 0 || res.Header.Get("ETag") != ztag {
				t.Errorf("HEAD with gzip: %v", res.Header)
			}
			if res, _ := ask(t, "GET", s.url+path, "Accept-Encoding", "gzip", "If-None-Match", ztag); res.StatusCode != 304 {
				t.Errorf("304 with gzip: %d", res.StatusCode)
			}
			if res, _ := ask(t, "GET", s.url+path, "Accept-Encoding", "gzip", "If-None-Match", etag); res.StatusCode != 200 {
				t.Errorf("the ETag of the other form: %d", res.StatusCode)
			}
			res, body = ask(t, "GET", s.url+path, "Accept-Encoding", "gzip", "Range", "bytes=10-29")
			if res.StatusCode != 206 || res.Header.Get("Content-Encoding") != "gzip" || !bytes.Equal(body, zipped[10:30]) ||
				res.Header.Get("Content-Range") != fmt.Sprintf("bytes 10-29/%d", len(zipped)) || res.Header.Get("ETag") != ztag {
				t.Errorf("range of the compressed form: %d %v", res.StatusCode, res.Header)
			}
			// Begun with one form and gone on with in the other: all of it anew.
			if res, body := ask(t, "GET", s.url+path, "Accept-Encoding", "identity", "Range", "bytes=10-", "If-Range", ztag); res.StatusCode != 200 || !bytes.Equal(body, whole) {
				t.Errorf("gone on with in another form: %d", res.StatusCode)
			}
			if res, _ := ask(t, "GET", s.url+path, "Accept-Encoding", "gzip", "Range", fmt.Sprintf("bytes=%d-", len(whole)+1)); res.StatusCode != 416 || res.Header.Get("Content-Encoding") != "" {
				t.Errorf("range beyond the compressed form: %d %v", res.StatusCode, res.Header)
			}
		})
	}
}

// TestNeverUnpublished: what is integrated and not published is not served, in
// no form, though its files are there.
func TestNeverUnpublished(t *testing.T) {
	r := filled(t, 300)
	r.addBeneath(300, 30)
	s := r.serve(func(c *Config) { c.RoundLimit = 300 * time.Millisecond })
	waitFor(t, "what was there", func() bool { return s.log.Published().Size == 330 })
	s.witnesses[0].down()
	s.witnesses[1].down()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.log.Submit(ctx, s.token, nth(900), Cosigned); err == nil {
		t.Fatal("acknowledged without a quorum")
	}
	if _, err := os.Stat(filepath.Join(r.dir, engineDir, "tile/0/001.p/75")); err != nil {
		t.Fatalf("the tile that is not to be served is not there: %v", err)
	}
	for _, path := range []string{"/tile/0/001.p/75", "/tile/entries/001.p/75"} {
		for _, header := range [][]string{nil, {"Range", "bytes=0-1"}, {"Accept-Encoding", "gzip"}, {"If-None-Match", "*"}} {
			for _, method := range []string{"GET", "HEAD"} {
				if res, _ := ask(t, method, s.url+path, header...); res.StatusCode != 404 || res.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("%s %s %v: %d", method, path, header, res.StatusCode)
				}
			}
		}
	}
	if res, _ := ask(t, "GET", s.url+"/tile/0/001.p/74"); res.StatusCode != 200 {
		t.Errorf("what is published: %d", res.StatusCode)
	}
	if code, _, out := s.rest("GET", "/v1/proof?index=330", "", nil); code != 404 {
		t.Errorf("proof of an unpublished entry: %d %v", code, out)
	}
	if code, _, out := s.rest("GET", "/v1/entries:stream?from=329&to=331", "", nil); code != 400 || out["reason"] != "OUT_OF_RANGE" {
		t.Errorf("stream of an unpublished entry: %d %v", code, out)
	}
}

// TestDamagedTileIsNotServed: short and missing files are trouble of ours, and a
// file that is mended has its old name for caches.
func TestDamagedTileIsNotServed(t *testing.T) {
	s := newRig(t, 1, 1).serve()
	s.bulk(s.log, 0, 260)
	s.must(s.log, nth(0))
	for _, path := range []string{"/tile/0/000", "/tile/entries/000"} {
		file := filepath.Join(s.dir, engineDir, path)
		good := []byte(readFile(t, file))
		res, _ := ask(t, "GET", s.url+path)
		if err := os.WriteFile(file, good[:len(good)-1], 0o644); err != nil {
			t.Fatal(err)
		}
		for _, accept := range []string{"identity", "gzip"} {
			if res, _ := ask(t, "GET", s.url+path, "Accept-Encoding", accept); res.StatusCode != 503 || res.Header.Get("Cache-Control") != "no-store" || res.Header.Get("Retry-After") == "" {
				t.Errorf("%s, cut short: %d %v", path, res.StatusCode, res.Header)
			}
		}
		if err := os.WriteFile(file, append(bytes.Clone(good), "rest"...), 0o644); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if res, body := ask(t, "GET", s.url+path); res.StatusCode != 200 || !bytes.Equal(body, good) {
				t.Errorf("%s, with leftovers: %d, %d bytes", path, res.StatusCode, len(body))
			}
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if res, _ := ask(t, "GET", s.url+path); res.StatusCode != 404 {
			t.Errorf("%s, gone: %d", path, res.StatusCode)
		}
		if err := os.WriteFile(file, good, 0o644); err != nil {
			t.Fatal(err)
		}
		if again, body := ask(t, "GET", s.url+path); again.StatusCode != 200 || !bytes.Equal(body, good) || again.Header.Get("ETag") != res.Header.Get("ETag") {
			t.Errorf("%s, mended: %d", path, again.StatusCode)
		}
	}
}

// TestPackedIsBounded: the cache of compressed bundles forgets.
func TestPackedIsBounded(t *testing.T) {
	g := generations[int, packed]{limit: 1000}
	for n := range 10_000 {
		g.put(n, packed{bytes: make([]byte, 90)}, 90)
		held := 0
		for _, m := range []map[int]packed{g.now, g.before} {
			for _, p := range m {
				held += len(p.bytes)
			}
		}
		if held > 2000 {
			t.Fatalf("holds %d bytes after %d", held, n)
		}
	}
	weigh := func(p packed) int { return len(p.bytes) }
	if _, ok := g.get(9_999, weigh); !ok {
		t.Error("forgot the newest")
	}
	if _, ok := g.get(0, weigh); ok {
		t.Error("forgot nothing")
	}
}

func FuzzAccepts(f *testing.F) {
	for _, s := range []string{"", "gzip", "gzip;q=0.5, identity;q=0", "*;q=0", "a,,;q=;q=1", "gzip;q=1.001"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		zip, identity := accepts(http.Header{"Accept-Encoding": {s}})
		if zip && !strings.Contains(strings.ToLower(s), "gzip") && !strings.Contains(s, "*") {
			t.Errorf("%q: gzip that nobody asked for", s)
		}
		if !identity && !strings.Contains(s, "0") {
			t.Errorf("%q: refuses identity without q=0", s)
		}
	})
}

// BenchmarkTileGet compares a tile by us with the same file by net/http's file
// server, over one kept connection each. cmd/bench has the row that counts.
func BenchmarkTileGet(b *testing.B) {
	r := newRig(b, 0, 0)
	l := r.ready()
	r.bulk(l, 0, 300)
	h, err := l.Handler(nil)
	if err != nil {
		b.Fatal(err)
	}
	for name, handler := range map[string]http.Handler{"portbook": h, "fileserver": http.FileServer(http.Dir(filepath.Join(r.dir, engineDir)))} {
		for _, path := range []string{"/tile/0/000", "/tile/entries/000"} {
			b.Run(name+path, func(b *testing.B) {
				lis, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					b.Fatal(err)
				}
				srv := &http.Server{Handler: handler}
				go srv.Serve(lis)
				defer srv.Close()
				client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
				for b.Loop() {
					res, err := client.Get("http://" + lis.Addr().String() + path)
					if err != nil {
						b.Fatal(err)
					}
					if n, err := io.Copy(io.Discard, res.Body); err != nil || n < 32 || res.StatusCode != 200 {
						b.Fatal(res.Status, n, err)
					}
					res.Body.Close()
				}
			})
		}
	}
}
