package proxy

import (
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestForwardBackward(t *testing.T) {
	for _, s := range []string{
		"https://files.pythonhosted.org/packages/ab/cd/x-1.0.tar.gz", "http://127.0.0.1:8080/f/x%2B1.whl", "http://[::1]:80/x-1.whl",
		"https://h/a//b/x-1.whl", "https://h/x-1.whl?sig=a%2Fb&x", "https://h/%E2%82%AC/x-1.whl", "https://h/a;b=1/x,y.whl", "https://h/a%2Fb.whl", "https://h/http:/x.whl",
	} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		ref, ok := forward(u)
		if !ok {
			t.Errorf("%s: not forwarded", s)
			continue
		}
		page, _ := url.Parse("http://p:1/simple/x/")
		v, err := page.Parse(ref)
		if err != nil {
			t.Fatal(err)
		}
		back, ok := backward(v.EscapedPath(), v.RawQuery)
		if !ok || back.String() != s {
			t.Errorf("%s → %s → %v %v", s, ref, back, ok)
		}
	}
	if u, ok := backward("/files/http/127.0.0.1%3A8080/f/x%2b1.whl", ""); !ok || u.String() != "http://127.0.0.1:8080/f/x%2b1.whl" || key(u) != "http://127.0.0.1:8080/f/x+1.whl?" {
		t.Errorf("escaped by a client: %v %v", u, ok)
	}
	for _, s := range []string{"ftp://h/x.whl", "git+https://h/x", "https:///x.whl", "https:x.whl", "/x.whl", "https://h/a/../x.whl", "https://h/a/%2e%2E/x.whl", `https://h/a/..%5Cx.whl`, "https://h"} {
		u, err := url.Parse(s)
		if err != nil {
			continue
		}
		if ref, ok := forward(u); ok {
			t.Errorf("%s forwarded as %s", s, ref)
		}
	}
}

func FuzzForwardBackward(f *testing.F) {
	f.Add("https://h/x-1.whl?a", "/files/http/h/x")
	f.Add("http://[::1]:80/%2f/x", "/files/https/h%3A80/a//b")
	f.Fuzz(func(t *testing.T, s, path string) {
		if u, ok := backward(path, ""); ok {
			ref, ok := forward(u)
			if !ok {
				t.Fatalf("%q → %s, which does not go forward", path, u)
			}
			p, q, _ := strings.Cut(strings.TrimPrefix(ref, "../.."), "?")
			if v, ok := backward(p, q); !ok || key(v) != key(u) {
				t.Fatalf("%q → %s → %q → %v", path, u, ref, v)
			}
			if u.User != nil || u.Scheme != "http" && u.Scheme != "https" {
				t.Fatalf("%q → %s", path, u)
			}
		}
		u, err := url.Parse(s)
		if err != nil || u.User != nil || u.Fragment != "" || u.ForceQuery {
			return
		}
		ref, ok := forward(u)
		if !ok {
			return
		}
		p, q, _ := strings.Cut(strings.TrimPrefix(ref, "../.."), "?")
		back, ok := backward(p, q)
		if ok && (key(back) != key(u) || back.Host != u.Host) {
			t.Fatalf("%q → %q → %q", s, ref, back)
		}
	})
}

func TestPublicOnly(t *testing.T) {
	for _, a := range []string{"127.0.0.1:80", "10.1.2.3:80", "172.16.0.1:80", "192.168.1.1:80", "169.254.169.254:80", "100.64.0.1:80", "0.0.0.0:80", "224.0.0.1:80", "255.255.255.255:80",
		"[::1]:80", "[fe80::1]:80", "[fc00::1]:80", "[::ffff:127.0.0.1]:80", "[64:ff9b::7f00:1]:80", "[2002:7f00:1::]:80", "[::]:80", "nonsense"} {
		if publicOnly("tcp", a, nil) == nil {
			t.Errorf("%s taken for public", a)
		}
	}
	for _, a := range []string{"151.101.0.223:443", "[2a04:4e42::223]:443"} {
		if err := publicOnly("tcp", a, nil); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
}

func TestSeenIsBounded(t *testing.T) {
	s := newSeen(10)
	for i := range 20 {
		files, project := map[string]*told{}, string(rune('a'+i))
		for j := range 3 {
			files[project+string(rune('0'+j))] = &told{project: project}
		}
		s.page(project, files)
		if len(s.files) > 10 {
			t.Fatalf("%d files", len(s.files))
		}
	}
	if s.file("t0") == nil || s.file("a0") != nil || len(s.pages) != s.order.Len() {
		t.Error("the wrong pages were forgotten")
	}
	one, two := &told{project: "q", sha256: &[32]byte{1}}, &told{project: "q", sha256: &[32]byte{2}}
	s.page("q", map[string]*told{"f": one})
	s.page("q", map[string]*told{"f": {project: "q", sha256: &[32]byte{1}}})
	if s.file("f") != one {
		t.Error("an unchanged file lost its proof")
	}
	s.page("q", map[string]*told{"f": two})
	if s.file("f") != two {
		t.Error("a changed digest was not taken")
	}
	now := time.Now()
	for i := range 2000 {
		s.refuse(string(rune(i)), nil, now)
	}
	if len(s.refused) > 1000 {
		t.Error("refusals are not bounded")
	}
}

func TestShown(t *testing.T) {
	u, err := url.Parse("https://user:secret@files.example/a/x-1.0.whl?X-Amz-Signature=S3CRET#sha256=00")
	if err != nil {
		t.Fatal(err)
	}
	if got := shown(u); got != "https://files.example/a/x-1.0.whl" {
		t.Error(got)
	}
}
