package proxy_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/registry/proxy"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestVerifiedFilePasses(t *testing.T) {
	s := newStand(t, nil)
	for name, content := range map[string][]byte{
		"small-1.0.tar.gz": []byte("content"), "empty-1.0.tar.gz": {}, "chunk-1.0.tar.gz": random(64 << 10),
		"long-1.0.tar.gz": random(9 << 20), "held-1.0.tar.gz": random(8 << 20),
	} {
		if len(content) == 0 {
			content = make([]byte, 0, 1)
		}
		s.good(name, content)
		body, urls := s.page(project(name))
		if len(urls) != 1 || !strings.HasPrefix(urls[0], s.srv.URL+"/files/http/"+hostOf(t, s.index.srv.URL)+"/f/"+name) {
			t.Fatalf("page: %s", body)
		}
		if sum := sha256.Sum256(content); !strings.Contains(body, "#sha256="+hex.EncodeToString(sum[:])) {
			t.Errorf("the page lost its digest: %s", body)
		}
		a := get(t, urls[0])
		a.passed(t, name, content)
		if a.header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(a.header.Get("Portbook-Verified"), "log.test/one ") {
			t.Errorf("%s: headers %v", name, a.header)
		}
		get(t, urls[0], "Range", "bytes=1-2").passed(t, name+" in part is given whole", content)
		h := request(t, http.MethodHead, urls[0])
		if h.code != 200 || len(h.body) != 0 || h.header.Get("Content-Length") != fmt.Sprint(len(content)) || h.header.Get("Accept-Ranges") != "none" {
			t.Errorf("HEAD %s: %s %v", name, h.line, h.header)
		}
	}
	s.counted(5, 0, 0)
}

// Every way in which a file may be unproven, and the code that says so.
func TestRefusals(t *testing.T) {
	content := []byte("the real content")
	for _, c := range []struct {
		name, code string
		arrange    func(s *stand)
	}{
		{"no proof", client.CodeNoProof, func(s *stand) { s.index.put("x-1.0.tar.gz", content, nil) }},
		{"garbage instead of a proof", client.CodeProofMalformed, func(s *stand) { s.index.put("x-1.0.tar.gz", content, []byte("<html>not found</html>")) }},
		{"too few witnesses", client.CodeQuorum, func(s *stand) {
			s.index.put("x-1.0.tar.gz", content, s.log.prove(s.log.add(upload("x", "x-1.0.tar.gz", content)), 1))
		}},
		{"another log", client.CodeUnknownLog, func(s *stand) {
			other := newLog(t)
			p := other.prove(other.add(upload("x", "x-1.0.tar.gz", content)), 2)
			s.index.put("x-1.0.tar.gz", content, bytes.ReplaceAll(p, []byte("log.test/one"), []byte("log.test/two")))
		}},
		{"another log under the same name", client.CodeNoLogSignature, func(s *stand) {
			other := newLog(t)
			s.index.put("x-1.0.tar.gz", content, other.prove(other.add(upload("x", "x-1.0.tar.gz", content)), 2))
		}},
		{"changed entry", client.CodeInclusion, func(s *stand) {
			p := s.log.prove(s.log.add(upload("x", "x-1.0.tar.gz", content)), 2)
			e := upload("x", "x-1.0.tar.gz", []byte("evil"))
			leaf, _ := e.Marshal()
			lines := bytes.SplitN(p, []byte("\n"), 3)
			lines[1] = []byte("extra " + base64.StdEncoding.EncodeToString(leaf))
			s.index.put("x-1.0.tar.gz", []byte("evil"), bytes.Join(lines, []byte("\n")))
		}},
		{"another registry", client.CodeRegistry, func(s *stand) {
			e := upload("x", "x-1.0.tar.gz", content)
			e.Registry = "pypi.org"
			s.index.put("x-1.0.tar.gz", content, s.log.prove(s.log.add(e), 2))
		}},
		{"another project", client.CodeProject, func(s *stand) {
			s.index.put("x-1.0.tar.gz", content, s.log.prove(s.log.add(upload("y", "x-1.0.tar.gz", content)), 2))
		}},
		{"another file of the project", client.CodeFileName, func(s *stand) {
			s.index.put("x-1.0.tar.gz", content, s.log.prove(s.log.add(upload("x", "x-0.9.tar.gz", content)), 2))
		}},
		{"page tells another digest", client.CodeDigest, func(s *stand) {
			s.index.put("x-1.0.tar.gz", []byte("evil"), s.log.prove(s.log.add(upload("x", "x-1.0.tar.gz", content)), 2))
		}},
		{"swapped, page tells the old digest, same size", client.CodeDigest, func(s *stand) {
			s.good("x-1.0.tar.gz", content)
			s.index.files.set("/f/x-1.0.tar.gz", []byte("the evil content"))
		}},
		{"swapped, page tells the old digest, shorter", client.CodeDigest, func(s *stand) {
			s.good("x-1.0.tar.gz", content)
			s.index.files.set("/f/x-1.0.tar.gz", []byte("evil"))
		}},
		{"swapped, page tells no digest", client.CodeDigest, func(s *stand) {
			s.good("x-1.0.tar.gz", content)
			s.index.files.set("/f/x-1.0.tar.gz", []byte("the evil content"))
			s.index.pages.set("x", `<a href="/f/x-1.0.tar.gz">x-1.0.tar.gz</a>`)
		}},
		{"swapped, longer without saying so", client.CodeDigest, func(s *stand) {
			s.good("x-1.0.tar.gz", content)
			s.index.routes.set("/f/x-1.0.tar.gz", func(w http.ResponseWriter, r *http.Request) {
				w.(http.Flusher).Flush()
				w.Write(bytes.Repeat([]byte("evil"), 1<<18))
			})
		}},
		{"a removal is no upload", client.CodeNotUpload, func(s *stand) {
			e := upload("x", "x-1.0.tar.gz", content)
			e.Kind, e.Size, e.ID = "remove", nil, strings.Repeat("ab", 16)
			s.index.put("x-1.0.tar.gz", content, s.log.prove(s.log.add(e), 2))
		}},
		{"proof too long", proxy.CodeIndexAnswer, func(s *stand) {
			s.good("x-1.0.tar.gz", content)
			s.index.files.set("/f/x-1.0.tar.gz.tlog-proof", make([]byte, 513<<10))
		}},
		{"index fails on the proof", proxy.CodeIndexAnswer, func(s *stand) {
			s.good("x-1.0.tar.gz", content)
			s.index.routes.set("/f/x-1.0.tar.gz.tlog-proof", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
		}},
		{"index fails on the file", proxy.CodeIndexAnswer, func(s *stand) {
			s.good("x-1.0.tar.gz", content)
			s.index.routes.set("/f/x-1.0.tar.gz", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) })
		}},
		{"index drops the connection", proxy.CodeIndexUnreachable, func(s *stand) {
			s.good("x-1.0.tar.gz", content)
			s.index.routes.set("/f/x-1.0.tar.gz", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
		}},
		{"file breaks off", proxy.CodeIndexUnreachable, func(s *stand) {
			s.good("x-1.0.tar.gz", content)
			s.index.routes.set("/f/x-1.0.tar.gz", func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(len(content)))
				w.Write(content[:3])
				panic(http.ErrAbortHandler)
			})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, nil)
			c.arrange(s)
			_, urls := s.page("x")
			if len(urls) != 1 {
				t.Fatal("the file is not listed any more: an installer would quietly take another")
			}
			a := get(t, urls[0])
			a.refused(t, "GET", c.code)
			if strings.HasPrefix(c.code, "PB1") {
				s.counted(0, 1, 0)
				get(t, urls[0]).refused(t, "again", c.code)
				s.counted(0, 1, 0)
			} else {
				s.counted(0, 0, 1)
			}
			if bytes.Contains(a.body, []byte("evil content")) {
				t.Error("content in the answer")
			}
		})
	}
}

// A long file is on its way before the swap shows. Nobody may take what has
// arrived for the whole, whichever way they read it; the next request is told
// why.
func TestSwappedLongFile(t *testing.T) {
	content := random(3 << 20)
	evil := bytes.Clone(content)
	evil[10]++
	for _, digestOnPage := range []bool{true, false} {
		s := newStand(t, func(_ *stand, c *proxy.Config) { c.Hold = 1 << 20 })
		s.good("x-1.0.tar.gz", content)
		s.index.files.set("/f/x-1.0.tar.gz", evil)
		if !digestOnPage {
			s.index.pages.set("x", `<a href="/f/x-1.0.tar.gz">x-1.0.tar.gz</a>`)
		}
		_, urls := s.page("x")
		a := get(t, urls[0])
		if a.code != 200 || a.err == nil || len(a.body) >= len(evil) {
			t.Errorf("digest on page %v: %s, err %v, %d bytes", digestOnPage, a.line, a.err, len(a.body))
		}
		if a.header.Get("Content-Length") != "" && !digestOnPage {
			t.Error("a length was announced to a client that compares no digest")
		}
		get(t, urls[0]).refused(t, "the retry", client.CodeDigest)
		s.counted(0, 1, 0)
	}
}

func TestHTTP10GetsWholeFilesOnly(t *testing.T) {
	content := random(3 << 20)
	s := newStand(t, func(_ *stand, c *proxy.Config) { c.Hold = 1 << 20 })
	s.good("x-1.0.tar.gz", content)
	_, urls := s.page("x")
	path := strings.TrimPrefix(urls[0], s.srv.URL)
	out := raw(t, hostOf(t, s.srv.URL), "GET "+path+" HTTP/1.0\r\n\r\n")
	if !strings.HasPrefix(out, "HTTP/1.0 200") || !strings.HasSuffix(out, string(content)) {
		t.Errorf("%.100q", out)
	}
	s.index.files.set("/f/x-1.0.tar.gz", random(3<<20 + 1)[1:])
	if out := raw(t, hostOf(t, s.srv.URL), "GET "+path+" HTTP/1.0\r\n\r\n"); !strings.Contains(out, "403 PORTBOOK REFUSED (PB115)") {
		t.Errorf("%.100q", out)
	}
}

func TestProofFromLog(t *testing.T) {
	content := random(100)
	withLog := func(s *stand, c *proxy.Config) { c.Log = s.log.srv.URL }
	t.Run("digest on page", func(t *testing.T) {
		s := newStand(t, withLog)
		s.log.add(upload("x", "x-1.0.tar.gz", content))
		s.index.put("x-1.0.tar.gz", content, nil)
		_, urls := s.page("x")
		get(t, urls[0]).passed(t, "file", content)
		get(t, urls[0]).passed(t, "again", content)
		if n := s.log.proofsAsked(); n != 1 {
			t.Errorf("the log was asked %d times", n)
		}
		s.counted(1, 0, 0)
	})
	t.Run("no digest on page", func(t *testing.T) {
		s := newStand(t, withLog)
		s.log.add(upload("x", "x-1.0.tar.gz", content))
		s.index.put("x-1.0.tar.gz", content, nil)
		s.index.pages.set("x", `<a href="/f/x-1.0.tar.gz">x-1.0.tar.gz</a>`)
		_, urls := s.page("x")
		get(t, urls[0]).passed(t, "file", content)
		if h := request(t, http.MethodHead, urls[0]); h.code != 200 {
			t.Errorf("HEAD: %s", h.line)
		}
		s.index.files.set("/f/x-1.0.tar.gz", random(101)[1:])
		get(t, urls[0]).refused(t, "swapped", client.CodeDigest)
	})
	t.Run("garbage beside, truth in the log", func(t *testing.T) {
		s := newStand(t, withLog)
		s.log.add(upload("x", "x-1.0.tar.gz", content))
		s.index.put("x-1.0.tar.gz", content, []byte("<html>"))
		_, urls := s.page("x")
		get(t, urls[0]).passed(t, "file", content)
	})
	t.Run("same bytes logged for several files", func(t *testing.T) {
		s := newStand(t, withLog)
		s.log.add(upload("y", "y-1.0.tar.gz", content))
		s.log.add(upload("x", "x-1.0.tar.gz", content))
		s.index.put("x-1.0.tar.gz", content, nil)
		_, urls := s.page("x")
		get(t, urls[0]).passed(t, "file", content)
	})
	t.Run("logged for another file only", func(t *testing.T) {
		s := newStand(t, withLog)
		s.log.add(upload("y", "y-1.0.tar.gz", content))
		s.index.put("x-1.0.tar.gz", content, nil)
		_, urls := s.page("x")
		get(t, urls[0]).refused(t, "file", client.CodeProject)
	})
	t.Run("not in the log", func(t *testing.T) {
		s := newStand(t, withLog)
		s.index.put("x-1.0.tar.gz", content, nil)
		_, urls := s.page("x")
		get(t, urls[0]).refused(t, "file", client.CodeNoProof)
	})
	t.Run("log out", func(t *testing.T) {
		s := newStand(t, withLog)
		s.log.srv.Close()
		s.index.put("x-1.0.tar.gz", content, nil)
		s.good("proven-1.0.tar.gz", content)
		_, urls := s.page("x")
		get(t, urls[0]).refused(t, "file without proof", client.CodeUnreachable)
		_, urls = s.page("proven")
		get(t, urls[0]).passed(t, "what is proven installs", content)
		s.counted(1, 0, 1)
	})
	t.Run("log answers nonsense", func(t *testing.T) {
		s := newStand(t, withLog)
		s.log.answer(200) // with an empty body
		s.index.put("x-1.0.tar.gz", content, nil)
		_, urls := s.page("x")
		get(t, urls[0]).refused(t, "file", client.CodeBadAnswer)
	})
}

// Metadata decides what is asked for next; it is bound to the entry where the
// entry binds it, and never served for a file that is not proven.
func TestMetadata(t *testing.T) {
	wheel, meta := random(200), []byte("Metadata-Version: 2.1\n")
	const file = "x-1.0-py3-none-any.whl"
	sum := sha256.Sum256(meta)
	for _, c := range []struct {
		name          string
		inEntry, page bool
		served        []byte
		code, bound   string
	}{
		{"bound by the entry", true, false, meta, "", "log"},
		{"swapped, bound by the entry", true, true, []byte("evil"), proxy.CodeMetadata, ""},
		{"bound by the page", false, true, meta, "", "page"},
		{"swapped, bound by the page", false, true, []byte("evil"), proxy.CodeMetadata, ""},
		{"bound by nothing", false, false, meta, "", "none"},
		{"too long", false, false, make([]byte, 17<<20), proxy.CodeIndexAnswer, ""},
	} {
		s := newStand(t, nil)
		e := upload("x", file, wheel)
		if c.inEntry {
			e.MetadataSHA256 = hex.EncodeToString(sum[:])
		}
		s.index.put(file, wheel, s.log.prove(s.log.add(e), 2))
		attr := ` data-core-metadata="true"`
		if c.page {
			attr = fmt.Sprintf(` data-core-metadata="sha256=%x"`, sum)
		}
		s.index.pages.set("x", strings.Replace(s.index.pages.get("x"), "<a", "<a"+attr, 1))
		s.index.files.set("/f/"+file+".metadata", c.served)
		_, urls := s.page("x")
		a := get(t, urls[0]+".metadata")
		if c.code != "" {
			a.refused(t, c.name, c.code)
			continue
		}
		a.passed(t, c.name, meta)
		if got := a.header.Get("Portbook-Metadata"); got != c.bound {
			t.Errorf("%s: bound by %q", c.name, got)
		}
		s.counted(0, 0, 0) // metadata is no file
		get(t, urls[0]).passed(t, c.name+": the wheel", wheel)
		s.counted(1, 0, 0)
	}
	s := newStand(t, nil)
	s.index.put(file, wheel, nil)
	s.index.files.set("/f/"+file+".metadata", meta)
	_, urls := s.page("x")
	get(t, urls[0]+".metadata").refused(t, "metadata of an unproven wheel", client.CodeNoProof)
	s.counted(0, 1, 0)
}

func TestProofPassedOn(t *testing.T) {
	s := newStand(t, nil)
	s.good("x-1.0.tar.gz", []byte("x"))
	_, urls := s.page("x")
	get(t, urls[0]+".tlog-proof").passed(t, "proof", s.index.files.get("/f/x-1.0.tar.gz.tlog-proof"))
	s.index.put("y-1.0.tar.gz", []byte("y"), nil)
	_, urls = s.page("y")
	if a := get(t, urls[0]+".tlog-proof"); a.code != 404 {
		t.Error(a.line)
	}
	if a := get(t, urls[0][:len(urls[0])-6]); a.code == 200 {
		t.Error(a.line)
	}
}

// The proxy is for the files of one index, not for whatever anyone asks.
func TestNoOpenProxy(t *testing.T) {
	secret := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Errorf("asked: %s", r.URL); w.Write([]byte("secret")) }))
	defer secret.Close()
	s := newStand(t, nil)
	host := hostOf(t, secret.URL)
	get(t, s.srv.URL+"/files/http/"+host+"/x-1.0.tar.gz").refused(t, "a host no page has named", proxy.CodeFileHost)

	// A page may name a host, but not make us ask our own network.
	s.index.pages.set("x", `<a href="http://`+host+`/x-1.0.tar.gz">x</a>`)
	_, urls := s.page("x")
	get(t, urls[0]).refused(t, "a private address on a page", proxy.CodeFileHost)

	// Nor may a redirect.
	s.good("y-1.0.tar.gz", []byte("y"))
	s.index.routes.set("/f/y-1.0.tar.gz", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, secret.URL+"/y-1.0.tar.gz", 302) })
	_, urls = s.page("y")
	get(t, urls[0]).refused(t, "a redirect to a private address", proxy.CodeFileHost)

	for _, path := range []string{"/files/", "/files/http/", "/files/http/h", "/files/file/h/etc/passwd", "/files/http/a@b/x-1.0.tar.gz", "/files/ftp/h/x-1.0.tar.gz",
		"/files/http/h/a/%2e%2e/x-1.0.tar.gz", "/files/http/h%2Fa/x-1.0.tar.gz", "/files/http/h/dir/", "/other", "/refused/PB999/x", "/refused/PB151"} {
		if a := get(t, s.srv.URL+path); a.code != 404 {
			t.Errorf("%s: %s", path, a.line)
		}
	}
	if a := request(t, http.MethodPost, s.srv.URL+"/simple/"); a.code != 405 {
		t.Errorf("POST: %s", a.line)
	}
}

func TestFileHost(t *testing.T) {
	content := []byte("on another host")
	other := newIndex(t)
	s := newStand(t, func(_ *stand, c *proxy.Config) { c.FileHosts = []string{hostOf(t, other.srv.URL)} })
	other.put("x-1.0.tar.gz", content, s.log.prove(s.log.add(upload("x", "x-1.0.tar.gz", content)), 2))
	s.index.pages.set("x", `<a href="`+other.srv.URL+`/f/x-1.0.tar.gz?key=v%2Fw">x</a>`)
	// A lock file may ask without having seen the page.
	get(t, s.srv.URL+"/files/http/"+hostOf(t, other.srv.URL)+"/f/x-1.0.tar.gz").passed(t, "unseen", content)
	_, urls := s.page("x")
	if !strings.HasSuffix(urls[0], "?key=v%2Fw") {
		t.Error(urls[0])
	}
	get(t, urls[0]).passed(t, "with query", content)
	s.index.routes.set("/f/y-1.0.tar.gz", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.srv.URL+"/f/x-1.0.tar.gz", http.StatusFound)
	})
	s.index.put("y-1.0.tar.gz", content, s.log.prove(s.log.add(upload("y", "y-1.0.tar.gz", content)), 2))
	_, urls = s.page("y")
	get(t, urls[0]).passed(t, "redirect to a known host", content)
}

// "portbook run" makes pip send everything here: what is not of the index is
// refused and counted.
func TestUsedAsHTTPProxy(t *testing.T) {
	s := newStand(t, nil)
	s.good("x-1.0.tar.gz", []byte("x"))
	_, urls := s.page("x")
	addr := hostOf(t, s.srv.URL)
	if out := raw(t, addr, "GET "+urls[0]+" HTTP/1.1\r\nHost: "+addr+"\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(out, "HTTP/1.1 200") {
		t.Errorf("absolute form of our own URL: %q", out)
	}
	for _, req := range []string{"GET http://evil.example/x-1.0.tar.gz HTTP/1.1\r\nHost: evil.example\r\n\r\n", "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n"} {
		if out := raw(t, addr, req); !strings.HasPrefix(out, "HTTP/1.1 403 PORTBOOK REFUSED (PB151): a direct URL") {
			t.Errorf("%q: %q", req, out)
		}
	}
	s.counted(1, 2, 0)
}

func TestStatusLineCannotBeSplit(t *testing.T) {
	s := newStand(t, nil)
	s.index.pages.set("x", `{"meta":{"api-version":"1.0"},"name":"x","files":[{"filename":"x-1.0.tar.gz\r\nSet-Cookie: a=b","url":"/f/other.tar.gz","hashes":{}}]}`)
	body, _ := s.page("x")
	_, rest, _ := strings.Cut(body, `../../refused/PB153/`)
	name, _, _ := strings.Cut(rest, `"`)
	a := get(t, s.srv.URL+"/refused/PB153/"+name)
	a.refused(t, "page and link disagree", proxy.CodePageName)
	if a.header.Get("Set-Cookie") != "" {
		t.Error("a header was injected")
	}
}

func TestPages(t *testing.T) {
	s := newStand(t, nil)
	s.good("x-1.0.tar.gz", []byte("x"))
	s.index.pages.set("x", s.index.pages.get("x")+`<a href="../">parent</a><a href="git+https://e/x#egg=x-9">vcs</a><a href="ftp://e/x-2.0.tar.gz">ftp</a>`)
	body, urls := s.page("x")
	if len(urls) != 3 || strings.Contains(body, "egg=") || strings.Contains(body, "ftp://") || strings.Contains(body, "git+") {
		t.Errorf("%s", body)
	}
	for _, u := range urls[1:] {
		get(t, u).refused(t, u, proxy.CodeFileHost)
	}

	a := get(t, s.srv.URL+"/simple/x/", "Accept", "application/vnd.pypi.simple.v1+json")
	if a.header.Get("Content-Type") != "application/vnd.pypi.simple.v1+json" || !bytes.Contains(a.body, []byte(`"filename":"x-1.0.tar.gz"`)) || a.header.Get("Cache-Control") != "no-cache" {
		t.Errorf("JSON made of HTML: %s %s", a.header, a.body)
	}
	if b := get(t, s.srv.URL+"/simple/x/", "Accept", "application/vnd.pypi.simple.v1+json", "If-None-Match", a.header.Get("ETag")); b.code != 304 || len(b.body) != 0 {
		t.Errorf("revalidation: %s", b.line)
	}
	if a := get(t, s.srv.URL+"/simple/X"); a.code != 301 || a.header.Get("Location") != "/simple/x/" {
		t.Errorf("%s %s", a.line, a.header)
	}
	for path, code := range map[string]int{"/simple/absent/": 404, "/simple/-/": 404, "/simple/a/b/": 404, "/simple": 302, "/healthz": 200} {
		if a := get(t, s.srv.URL+path); a.code != code {
			t.Errorf("%s: %s", path, a.line)
		}
	}
	s.index.routes.set("/simple/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, `<a href="/simple/x/">X</a>`)
	})
	if a := get(t, s.srv.URL+"/simple/"); a.code != 200 || !bytes.Contains(a.body, []byte(`<a href="x/">X</a>`)) {
		t.Errorf("list: %s %s", a.line, a.body)
	}
	s.counted(0, 2, 0)

	for name, route := range map[string]http.HandlerFunc{
		"nopage": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Write([]byte("x"))
		},
		"error":  func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) },
		"teapot": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(418) },
		"gone":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, s.log.srv.URL+"/simple/x/", 302) },
		"circle": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/simple/circle/", 302) },
		"nextmaj": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.Write([]byte(`<meta name="pypi:repository-version" content="2.0">`))
		},
		"brokenof": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "9")
			w.Write([]byte("x"))
			panic(http.ErrAbortHandler)
		},
	} {
		s.index.routes.set("/simple/"+name+"/", route)
		if a := get(t, s.srv.URL+"/simple/"+name+"/"); a.code != 502 || !bytes.Contains(a.body, []byte("PORTBOOK CANNOT CHECK (PB35")) {
			t.Errorf("%s: %s %s", name, a.line, a.body)
		}
	}
	s.counted(0, 2, 7)
	s.index.routes.set("/simple/private/", func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "pw" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return
		}
		w.Header().Set("Content-Type", "text/html")
	})
	if a := get(t, s.srv.URL+"/simple/private/"); a.code != 401 || a.header.Get("WWW-Authenticate") == "" {
		t.Errorf("%s", a.line)
	}
	if a := get(t, s.srv.URL+"/simple/private/", "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("me:pw"))); a.code != 200 {
		t.Errorf("%s", a.line)
	}
}

// Credentials of the index go to the index's origin and nowhere else.
func TestCredentialsStayAtHome(t *testing.T) {
	other := newIndex(t)
	content := []byte("x")
	var got string
	other.routes.set("/x-1.0.tar.gz", func(w http.ResponseWriter, r *http.Request) { got = r.Header.Get("Authorization"); w.Write(content) })
	s := newStand(t, func(s *stand, c *proxy.Config) {
		c.Index = strings.Replace(c.Index, "http://", "http://me:pw@", 1)
		c.FileHosts = []string{hostOf(t, other.srv.URL)}
	})
	var home string
	s.index.routes.set("/simple/x/", func(w http.ResponseWriter, r *http.Request) {
		home = r.Header.Get("Authorization")
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, `<a href="`+other.srv.URL+`/x-1.0.tar.gz">x</a>`)
	})
	other.files.set("/x-1.0.tar.gz.tlog-proof", s.log.prove(s.log.add(upload("x", "x-1.0.tar.gz", content)), 2))
	body, urls := s.page("x")
	get(t, urls[0], "Authorization", "Bearer client").passed(t, "file", content)
	if home == "" || got != "" || strings.Contains(body, "pw") {
		t.Errorf("at home %q, elsewhere %q, page %s", home, got, body)
	}
}

func TestFreshness(t *testing.T) {
	now := day0.Add(time.Hour)
	var state *client.State
	s := newStand(t, func(s *stand, c *proxy.Config) {
		var err error
		if state, err = client.OpenState(filepath.Join(t.TempDir(), "state")); err != nil {
			t.Fatal(err)
		}
		c.State, c.Log, c.Now = state, s.log.srv.URL, func() time.Time { return now }
	})
	s.good("x-1.0.tar.gz", []byte("x"))
	_, urls := s.page("x")
	s.proxy.Refresh(ctx)
	if w := s.proxy.Report().Warnings; len(w) != 0 {
		t.Errorf("fresh: %q", w)
	}
	now = day0.Add(30 * time.Hour)
	s.proxy.Refresh(ctx)
	if a := get(t, urls[0]); a.code != 200 || !strings.Contains(a.header.Get("Portbook-Warning"), "old") || len(s.proxy.Report().Warnings) != 1 {
		t.Errorf("old: %s %q %q", a.line, a.header.Get("Portbook-Warning"), s.proxy.Report().Warnings)
	}
	s.log.answer(500) // the log is out: warned about, nothing else
	s.proxy.Refresh(ctx)
	get(t, urls[0]).passed(t, "log out", []byte("x"))
	s.log.answer(0)

	// Two trees of one size: nothing of this log is believed any more.
	s.log.mu.Lock()
	s.log.leaves[0] = []byte(strings.Replace(string(s.log.leaves[0]), "x-1.0", "y-1.0", 1))
	s.log.mu.Unlock()
	s.proxy.Refresh(ctx)
	get(t, urls[0]).refused(t, "after a fork", client.CodeForkSameSize)
	s.counted(0, 1, 0)
}

// A proof that contradicts what is remembered of its log is a fork, whoever
// cosigned it.
func TestForkInProof(t *testing.T) {
	s := newStand(t, func(s *stand, c *proxy.Config) {
		state, err := client.OpenState(filepath.Join(t.TempDir(), "state"))
		if err != nil {
			t.Fatal(err)
		}
		c.State, c.Log = state, s.log.srv.URL
	})
	s.good("x-1.0.tar.gz", []byte("x"))
	s.proxy.Refresh(ctx)
	s.log.forget() // a second history
	s.good("y-1.0.tar.gz", []byte("y"))
	_, urls := s.page("y")
	get(t, urls[0]).refused(t, "fork", client.CodeForkSameSize)
}

func TestNewRefuses(t *testing.T) {
	l := newLog(t)
	good := proxy.Config{Index: "http://h/simple/", Registry: registry, Policy: l.policy}
	for name, change := range map[string]func(*proxy.Config){
		"no policy": func(c *proxy.Config) { c.Policy = nil }, "no registry": func(c *proxy.Config) { c.Registry = "" },
		"registry with scheme": func(c *proxy.Config) { c.Registry = "https://pypi.org" }, "no index": func(c *proxy.Config) { c.Index = "" },
		"index scheme": func(c *proxy.Config) { c.Index = "file:///x" }, "index query": func(c *proxy.Config) { c.Index = "http://h/?x" },
		"log": func(c *proxy.Config) { c.Log = "ftp://x" },
	} {
		c := good
		change(&c)
		if _, err := proxy.New(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := proxy.New(good); err != nil {
		t.Error(err)
	}
}

// A file that comes slowly begins to go out before it is all there; one that
// stops coming is broken off, and is no evidence of anything.
func TestSlowFiles(t *testing.T) {
	content := random(200 << 10)
	s := newStand(t, nil)
	s.proxy.Hurry(50*time.Millisecond, 250*time.Millisecond)
	s.good("slow-1.0.tar.gz", content)
	s.index.routes.set("/f/slow-1.0.tar.gz", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		for rest := content; len(rest) > 0; rest = rest[20<<10:] {
			w.Write(rest[:20<<10])
			w.(http.Flusher).Flush()
			time.Sleep(20 * time.Millisecond)
		}
	})
	_, urls := s.page("slow")
	get(t, urls[0]).passed(t, "slow", content)
	for _, first := range []int{100, 100 << 10} { // before and after the answer began
		file := fmt.Sprintf("stop%d-1.0.tar.gz", first)
		s.good(file, content)
		s.index.routes.set("/f/"+file, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Write(content[:first])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		_, urls := s.page(project(file))
		if a := get(t, urls[0]); a.code == 200 && a.err == nil {
			t.Errorf("%s: taken for whole: %s, %d bytes", file, a.line, len(a.body))
		}
	}
	s.counted(1, 0, 2)
}

func TestCompressedPages(t *testing.T) {
	s := newStand(t, nil)
	zip := func(b []byte) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		z.Write(b)
		z.Close()
		return out.Bytes()
	}
	for name, c := range map[string]struct {
		encoding string
		body     []byte
		code     int
	}{
		"gzip":     {"gzip", zip([]byte(`<a href="/f/gzip-1.0.tar.gz">x</a>`)), 200},
		"bomb":     {"gzip", zip(make([]byte, 80<<20)), 502},
		"notgzip":  {"gzip", []byte("<a>"), 502},
		"brotli":   {"br", []byte("<a>"), 502},
		"cut":      {"gzip", zip(bytes.Repeat([]byte("<a href=x>"), 1000))[:30], 502},
		"identity": {"identity", []byte(`<a href="/f/x-1.0.tar.gz">x</a>`), 200},
	} {
		s.index.routes.set("/simple/"+name+"/", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.Header().Set("Content-Encoding", c.encoding)
			w.Write(c.body)
		})
		if a := get(t, s.srv.URL+"/simple/"+name+"/"); a.code != c.code || a.code == 200 && !bytes.Contains(a.body, []byte("-1.0.tar.gz")) {
			t.Errorf("%s: %s %.200s", name, a.line, a.body)
		}
	}
}

// A web page whose name is made to resolve to 127.0.0.1 must not read a private
// index through its visitor's proxy.
func TestDNSRebinding(t *testing.T) {
	s := newStand(t, func(_ *stand, c *proxy.Config) { c.Hosts = []string{"pkg.team.example"} })
	s.good("x-1.0.tar.gz", []byte("x"))
	addr := hostOf(t, s.srv.URL)
	_, port, _ := strings.Cut(addr, ":")
	for host, ok := range map[string]bool{addr: true, "localhost:" + port: true, "LOCALHOST.": true, "[::1]:" + port: true, "pkg.team.example": true, "evil.example:" + port: false, "127.0.0.1.evil.example": false} {
		out := raw(t, addr, "GET /simple/x/ HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if strings.HasPrefix(out, "HTTP/1.1 200 ") != ok || !ok && !strings.HasPrefix(out, "HTTP/1.1 421 ") {
			t.Errorf("%s: %.60q", host, out)
		}
	}
}

// The page and the proof contradict each other: nobody needs the bytes to know.
func TestPageContradictsProof(t *testing.T) {
	content := []byte("content")
	s := newStand(t, nil)
	s.good("x-1.0.tar.gz", content)
	asked := false
	s.index.routes.set("/f/x-1.0.tar.gz", func(w http.ResponseWriter, r *http.Request) { asked = true; w.Write(content) })
	s.index.pages.set("x", fmt.Sprintf(`<a href="/f/x-1.0.tar.gz#sha256=%064d">x</a>`, 7))
	_, urls := s.page("x")
	get(t, urls[0]).refused(t, "file", client.CodeDigest)
	if asked {
		t.Error("the file was fetched")
	}
	// Once refused it stays counted as refused, whatever the index says next.
	s.index.pages.set("x", `<a href="/f/x-1.0.tar.gz">x</a>`)
	s.page("x")
	get(t, urls[0]).passed(t, "file", content)
	s.counted(0, 1, 0)
}

// Behind a company's HTTP proxy the address that is dialled says nothing, so
// what may be asked for must have been decided before.
func TestBehindHTTPProxy(t *testing.T) {
	var asked []string
	content := []byte("content")
	var proof []byte
	company := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String())
		if strings.HasSuffix(r.URL.Path, ".tlog-proof") {
			w.Write(proof)
		} else {
			w.Write(content)
		}
	}))
	defer company.Close()
	s := newStand(t, func(s *stand, c *proxy.Config) {
		c.Transport = &http.Transport{Proxy: func(r *http.Request) (*url.URL, error) {
			if r.URL.Host == hostOf(t, s.index.srv.URL) {
				return nil, nil
			}
			return url.Parse(company.URL)
		}}
	})
	proof = s.log.prove(s.log.add(upload("x", "x-1.0.tar.gz", content)), 2)
	get(t, s.srv.URL+"/files/http/files.example/x-1.0.tar.gz").refused(t, "a host no page has named", proxy.CodeFileHost)
	if len(asked) != 0 {
		t.Fatalf("asked %q", asked)
	}
	s.index.pages.set("x", `<a href="http://files.example/x-1.0.tar.gz">x</a>`)
	_, urls := s.page("x")
	get(t, urls[0]).passed(t, "a host the page has named", content)
}

func TestRedirects(t *testing.T) {
	content := []byte("content")
	other := newIndex(t)
	other.put("x-1.0.tar.gz", content, nil)
	other.pages.set("y", "<a href=y-1.0.tar.gz>")
	s := newStand(t, func(_ *stand, c *proxy.Config) { c.FileHosts = []string{hostOf(t, other.srv.URL)} })
	s.good("x-1.0.tar.gz", content)
	_, urls := s.page("x")
	for name, c := range map[string]struct{ to, code string }{
		"known host":    {other.srv.URL + "/f/x-1.0.tar.gz", ""},
		"other scheme":  {"ftp://h/x-1.0.tar.gz", proxy.CodeIndexAnswer},
		"no location":   {"", proxy.CodeIndexAnswer},
		"not a URL":     {"http://[", proxy.CodeIndexAnswer},
		"without end":   {"/f/x-1.0.tar.gz", proxy.CodeIndexAnswer},
		"private host":  {s.log.srv.URL + "/x", proxy.CodeFileHost},
		"with password": {strings.Replace(other.srv.URL, "http://", "http://u:p@", 1) + "/f/x-1.0.tar.gz", ""},
	} {
		s.index.routes.set("/f/x-1.0.tar.gz", func(w http.ResponseWriter, r *http.Request) {
			if c.to != "" {
				w.Header().Set("Location", c.to)
			}
			w.WriteHeader(http.StatusFound)
		})
		if a := get(t, urls[0]); c.code == "" {
			a.passed(t, name, content)
		} else {
			a.refused(t, name, c.code)
		}
	}
	// A page is the index's own word: from nowhere else, known or not.
	s.index.routes.set("/simple/y/", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.srv.URL+"/simple/y/", http.StatusFound)
	})
	if a := get(t, s.srv.URL+"/simple/y/"); a.code != 502 {
		t.Errorf("page from another host: %s", a.line)
	}
	// And from https there is no way back.
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.srv.URL+"/f/x-1.0.tar.gz", http.StatusFound)
	}))
	defer secure.Close()
	d := newStand(t, func(_ *stand, c *proxy.Config) {
		c.Index, c.FileHosts = secure.URL+"/simple/", []string{hostOf(t, other.srv.URL)}
		c.Transport = secure.Client().Transport.(*http.Transport)
	})
	get(t, d.srv.URL+"/files/https/"+hostOf(t, secure.URL)+"/f/x-1.0.tar.gz").refused(t, "https to http", proxy.CodeIndexAnswer)
}

// Over TLS the reason must be seen too: no version of HTTP without reason
// phrases is offered.
func TestReasonOverTLS(t *testing.T) {
	donor := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	defer donor.Close()
	s := newStand(t, nil)
	s.index.put("x-1.0.tar.gz", []byte("x"), nil)
	_, urls := s.page("x")
	srv := s.proxy.Server()
	srv.TLSConfig = &tls.Config{Certificates: donor.TLS.Certificates}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	go srv.ServeTLS(l, "", "")
	tr := donor.Client().Transport.(*http.Transport).Clone()
	tr.ForceAttemptHTTP2 = true
	resp, err := (&http.Client{Transport: tr}).Get(strings.Replace(urls[0], s.srv.URL, "https://"+l.Addr().String(), 1))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.ProtoMajor != 1 || !strings.HasPrefix(resp.Status, "403 PORTBOOK REFUSED (PB117): ") {
		t.Errorf("%s %s", resp.Proto, resp.Status)
	}
}
