package proxy_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
)

// BenchmarkLargeFile: a proven file of 64 MiB through the verifying proxy, and
// through a plain reverse proxy as the yardstick.
func BenchmarkLargeFile(b *testing.B) {
	content := random(64 << 20)
	s := newStand(b, nil)
	s.good("x-1.0.tar.gz", content)
	_, urls := s.page("x")
	target, err := url.Parse(s.index.srv.URL)
	if err != nil {
		b.Fatal(err)
	}
	plain := httptest.NewServer(httputil.NewSingleHostReverseProxy(target))
	defer plain.Close()
	for name, u := range map[string]string{"verified": urls[0], "plain": plain.URL + "/f/x-1.0.tar.gz"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			for b.Loop() {
				resp, err := http.Get(u)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != int64(len(content)) {
					b.Fatal(n, err)
				}
				resp.Body.Close()
			}
		})
	}
}
