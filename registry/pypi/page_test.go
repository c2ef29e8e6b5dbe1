package pypi

import (
	"encoding/json"
	"errors"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

func at(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

const sum64 = "d9f5ba91b3866f3845930531e0870436e2dd6e919787f627c0f1c16b97219a5f"

const htmlPage = `<!DOCTYPE html>
<html><head><meta name="pypi:repository-version" content="1.3">
<meta name="pypi:project-status" content="archived"><meta http-equiv="refresh" content="0;url=http://evil/">
<title>Links for x &amp; y</title></head><body>
<a href="../../packages/x-1.0.tar.gz#sha256=` + sum64 + `" data-requires-python="&gt;=3.8" data-vendor="a&quot;b">x-1.0.tar.gz</a><br/>
<a href="https://files.example/x-1.0-py3-none-any.whl" data-yanked data-dist-info-metadata="sha256=ab" data-core-metadata="sha256=cd" rel="internal" onclick="x()">x-1.0-py3-none-any.whl</a>
<a name="anchor">not a link</a>
<!-- <a href="hidden-1.whl">hidden</a> -->
</body></html>`

func TestHTMLPage(t *testing.T) {
	p, err := Parse("text/html; charset=UTF-8", []byte(htmlPage), at(t, "http://h:8080/simple/x/"))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Files) != 2 {
		t.Fatalf("%d files", len(p.Files))
	}
	a, b := p.Files[0], p.Files[1]
	if a.URL != "http://h:8080/packages/x-1.0.tar.gz" || a.Name != "x-1.0.tar.gz" || a.Hashes["sha256"] != sum64 || a.RequiresPython != ">=3.8" {
		t.Errorf("first file: %+v", a)
	}
	if b.Yanked == nil || *b.Yanked != "" || b.Metadata["sha256"] != "cd" || len(b.Hashes) != 0 {
		t.Errorf("second file: %+v", b)
	}
	if p.Status != "archived" {
		t.Errorf("status %q", p.Status)
	}
	p.MapURLs(func(f *File) string { return "../../files/" + f.Name })
	out, err := p.Render(MediaLegacyHTML)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`<a href="../../files/x-1.0.tar.gz#sha256=` + sum64 + `" data-requires-python="&gt;=3.8" data-vendor="a&#34;b">x-1.0.tar.gz</a>`,
		`data-yanked=""`, `rel="internal"`, `data-dist-info-metadata="sha256=ab"`, `data-core-metadata="sha256=cd"`,
		`<meta name="pypi:repository-version" content="1.3">`, `content="archived"`, `Links for x &amp; y`,
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("rendered page lacks %s:\n%s", want, out)
		}
	}
	for _, not := range []string{"onclick", "hidden", "refresh", "anchor"} {
		if strings.Contains(string(out), not) {
			t.Errorf("rendered page has %q", not)
		}
	}
}

// What one HTML reader takes for a comment or a script another takes for an
// anchor. Only what was understood may come out.
func TestHTMLNothingOverlooked(t *testing.T) {
	for _, in := range []string{
		`<!--><a href="http://evil/x-9.whl">x</a>-->`,
		`<script><a href="http://evil/x-9.whl">x</a></script>`,
		`<![CDATA[<a href="http://evil/x-9.whl">x</a>]]>`,
		`<textarea><a href="http://evil/x-9.whl">x</a>`,
		`<title><a href="http://evil/x-9.whl">x</a>`,
		`<meta name="a" content="<a href='http://evil/x-9.whl'>">`,
		"<a data-x=\"\x00<a href='http://evil/x-9.whl'>\" href=x-1.whl>",
		`<a href="x-1.whl"><a href="http://evil/x-9.whl">x</a></a>`,
		`<a href=x-1.whl>&lt;a href="http://evil/x-9.whl"&gt;</a>`,
	} {
		p, err := Parse("text/html", []byte(in), at(t, "http://h/simple/x/"))
		if err != nil {
			continue
		}
		p.MapURLs(func(*File) string { return "ours" })
		out, _ := p.Render(MediaHTML)
		if strings.Contains(string(out), `href="http://evil`) || strings.Contains(string(out), `href='http://evil`) && !strings.Contains(string(out), "&#39;") {
			t.Errorf("%s\nbecame\n%s", in, out)
		}
	}
}

func TestHTMLBaseElement(t *testing.T) {
	p, err := Parse("text/html", []byte(`<base href="/other/"><base href="http://second/"><a href="x-1.whl">`), at(t, "http://h/simple/x/"))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Files[0].URL; got != "http://h/other/x-1.whl" {
		t.Error(got)
	}
	out, _ := p.Render(MediaHTML)
	if strings.Contains(string(out), "base") {
		t.Errorf("base element survives although URLs are absolute now: %s", out)
	}
}

func TestFragmentKeepsOnlyDigest(t *testing.T) {
	p, err := Parse("text/html", []byte(`<a href="git+https://e/x.git#egg=x-9.9&sha256=AB&subdirectory=s">x`), at(t, "http://h/simple/x/"))
	if err != nil {
		t.Fatal(err)
	}
	if f := p.Files[0]; f.URL != "git+https://e/x.git" || f.Hashes["sha256"] != "ab" {
		t.Errorf("%+v", f)
	}
	out, _ := p.Render(MediaHTML)
	if strings.Contains(string(out), "egg=") {
		t.Errorf("%s", out)
	}
}

const jsonPage = `{"meta":{"api-version":"1.4","_last-serial":7,"tracks":["https://pypi.org/simple/x/"]},"name":"x",
"project-status":{"status":"quarantined","reason":"malware"},
"files":[
 {"filename":"x-1.0.tar.gz","url":"/p/x-1.0.tar.gz","hashes":{"sha256":"` + sum64 + `"},"requires-python":">=3.8","size":12,"upload-time":"2026-01-02T03:04:05.678Z","yanked":false,"provenance":null,"x-vendor":{"deep":[1,2.50,"<&>"]}},
 {"filename":"x-2.0-py3-none-any.whl","url":"https://f.example/x-2.0-py3-none-any.whl","hashes":{},"core-metadata":{"sha256":"ab"},"data-dist-info-metadata":true,"yanked":"broken","gpg-sig":false,"provenance":"/integrity/x"}
],"versions":["1.0","2.0"],"alternate-locations":[]}`

func TestJSONPage(t *testing.T) {
	p, err := Parse(string(MediaJSON), []byte(jsonPage), at(t, "https://h/simple/x/"))
	if err != nil {
		t.Fatal(err)
	}
	a, b := p.Files[0], p.Files[1]
	if a.URL != "https://h/p/x-1.0.tar.gz" || *a.Size != 12 || a.Yanked != nil || a.UploadTime != "2026-01-02T03:04:05.678Z" || a.Metadata != nil {
		t.Errorf("first: %+v", a)
	}
	if b.Yanked == nil || *b.Yanked != "broken" || b.Metadata["sha256"] != "ab" || b.Signed == nil || *b.Signed || b.Provenance != "https://h/integrity/x" {
		t.Errorf("second: %+v", b)
	}
	if p.Status != "quarantined" || p.StatusReason != "malware" {
		t.Errorf("status %q %q", p.Status, p.StatusReason)
	}
	p.MapURLs(func(f *File) string { return "../../files/" + f.Name })
	out, err := p.Render(MediaJSON)
	if err != nil {
		t.Fatal(err)
	}
	// The same document but for the URLs.
	want := strings.NewReplacer(`"/p/x-1.0.tar.gz"`, `"../../files/x-1.0.tar.gz"`,
		`"https://f.example/x-2.0-py3-none-any.whl"`, `"../../files/x-2.0-py3-none-any.whl"`,
		`"/integrity/x"`, `"https://h/integrity/x"`).Replace(jsonPage)
	var x, y any
	if json.Unmarshal(out, &x) != nil || json.Unmarshal([]byte(want), &y) != nil || !reflect.DeepEqual(x, y) {
		t.Errorf("got  %s\nwant %s", out, want)
	}
	if !strings.Contains(string(out), "2.50") {
		t.Error("an unknown number was rewritten")
	}
}

func TestKeep(t *testing.T) {
	for _, ct := range []MediaType{MediaJSON, MediaHTML} {
		p, err := Parse(string(MediaJSON), []byte(jsonPage), at(t, "https://h/simple/x/"))
		if err != nil {
			t.Fatal(err)
		}
		p.Keep(func(f *File) bool { return f.Name != "x-2.0-py3-none-any.whl" })
		out, err := p.Render(ct)
		if err != nil {
			t.Fatal(err)
		}
		if s := string(out); strings.Contains(s, "x-2.0") || strings.Contains(s, `"2.0"`) || !strings.Contains(s, "x-1.0.tar.gz") {
			t.Errorf("%s: %s", ct, s)
		}
	}
}

// Rendered to the other serialisation a page keeps what the model says.
func TestCrossRender(t *testing.T) {
	p, err := Parse(string(MediaJSON), []byte(jsonPage), at(t, "https://h/simple/x/"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := p.Render(MediaHTML)
	if err != nil {
		t.Fatal(err)
	}
	q, err := Parse(string(MediaHTML), h, at(t, "https://h/simple/x/"))
	if err != nil {
		t.Fatal(err)
	}
	j, err := q.Render(MediaJSON)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Parse(string(MediaJSON), j, at(t, "https://h/simple/x/"))
	if err != nil {
		t.Fatalf("%v\n%s", err, j)
	}
	if r.Name != "x" || r.Status != "quarantined" || r.StatusReason != "malware" || len(r.Files) != 2 {
		t.Errorf("%+v", r)
	}
	for i, f := range r.Files {
		g := p.Files[i]
		if f.Name != g.Name || f.URL != g.URL || !reflect.DeepEqual(f.Hashes, g.Hashes) || f.RequiresPython != g.RequiresPython ||
			!reflect.DeepEqual(f.Yanked, g.Yanked) || !reflect.DeepEqual(f.Metadata, g.Metadata) || f.Provenance != g.Provenance {
			t.Errorf("file %d: %+v, was %+v", i, f, g)
		}
	}
}

func TestPageRefused(t *testing.T) {
	big := strings.Repeat("a", 2<<20)
	for _, c := range []struct{ name, ct, body, want string }{
		{"not a page", "application/json", `{}`, "not a media type"},
		{"no content type", "", `<a>`, "not a media type"},
		{"charset", "text/html; charset=utf-16", `<a>`, "charset"},
		{"HTML major version", "text/html", `<meta name="pypi:repository-version" content="2.0">`, "unknown major version"},
		{"too many files", "text/html", strings.Repeat("<a href=x>", maxFiles+1), "more than"},
		{"too many files in JSON", string(MediaJSON), `{"meta":{"api-version":"1.0"},"files":[` + strings.Repeat("{},", maxFiles) + `{}]}`, "more than"},
		{"endless tag", "text/html", `<a href="` + big, "HTML"},
		{"JSON major version", string(MediaJSON), `{"meta":{"api-version":"2.0"},"name":"x","files":[]}`, "unknown major version"},
		{"JSON without version", string(MediaJSON), `{"meta":{},"files":[]}`, "meta.api-version: missing"},
		{"JSON without files", string(MediaJSON), `{"meta":{"api-version":"1.0"}}`, "files: missing"},
		{"JSON list", string(MediaJSON), `[]`, "not a JSON object"},
		{"JSON twice a url", string(MediaJSON), `{"meta":{"api-version":"1.0"},"files":[{"filename":"a","url":"b","url":"c","hashes":{}}]}`, `"url" stands twice`},
		{"JSON twice files", string(MediaJSON), `{"meta":{"api-version":"1.0"},"files":[],"files":[]}`, `"files" stands twice`},
		{"JSON hash", string(MediaJSON), `{"meta":{"api-version":"1.0"},"files":[{"filename":"a","url":"b","hashes":{"sha256":"zz"}}]}`, "not hex"},
		{"JSON no filename", string(MediaJSON), `{"meta":{"api-version":"1.0"},"files":[{"url":"b","hashes":{}}]}`, "filename: missing"},
		{"JSON trailing", string(MediaJSON), `{"meta":{"api-version":"1.0"},"files":[]} {}`, "follows"},
		{"JSON not UTF-8", string(MediaJSON), "{\"meta\":{\"api-version\":\"1.0\"},\"files\":[],\"x\":\"\xff\"}", "UTF-8"},
	} {
		_, err := Parse(c.ct, []byte(c.body), at(t, "http://h/simple/x/"))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want …%s…", c.name, err, c.want)
		}
	}
	_, err := Parse(string(MediaJSON), []byte(`{"meta":{"api-version":"2.0"},"files":[]}`), nil)
	if !errors.Is(err, ErrAPIVersion) {
		t.Error(err)
	}
}

func TestList(t *testing.T) {
	l, err := ParseList("text/html", []byte(`<a href="/simple/foo-bar/">Foo.Bar</a><a href="../">../</a><a href="baz/">baz</a>`))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(l.Projects, []string{"Foo.Bar", "baz"}) {
		t.Errorf("%q", l.Projects)
	}
	if s := string(l.Render(MediaHTML)); !strings.Contains(s, `<a href="foo-bar/">Foo.Bar</a>`) || strings.Contains(s, "../") {
		t.Error(s)
	}
	l, err = ParseList(string(MediaJSON), l.Render(MediaJSON))
	if err != nil || len(l.Projects) != 2 {
		t.Fatal(err, l)
	}
	in := `{"meta":{"_last-serial":9,"api-version":"1.1"},"projects":[{"_last-serial":8,"name":"a"}]}`
	l, err = ParseList(string(MediaJSON), []byte(in))
	if err != nil || string(l.Render(MediaJSON)) != in {
		t.Errorf("%v %s", err, l.Render(MediaJSON))
	}
	for _, bad := range []string{`{}`, `{"meta":{"api-version":"1.0"}}`, `{"meta":{"api-version":"3.0"},"projects":[]}`} {
		if _, err := ParseList(string(MediaJSON), []byte(bad)); err == nil {
			t.Errorf("taken: %s", bad)
		}
	}
}

func TestNegotiate(t *testing.T) {
	for _, c := range []struct {
		accept string
		want   MediaType
		ok     bool
	}{
		{"", MediaLegacyHTML, true},
		{"text/html", MediaLegacyHTML, true}, // pip < 22.2
		{"*/*", MediaLegacyHTML, true},
		{"application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01", MediaJSON, true}, // pip
		{"application/vnd.pypi.simple.v1+html", MediaHTML, true},
		{"application/vnd.pypi.simple.latest+json", MediaJSON, true},
		{"application/vnd.pypi.simple.v1+json;q=0.2, text/html", MediaLegacyHTML, true},
		{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", MediaLegacyHTML, true}, // a browser
		{"application/vnd.pypi.simple.v1+json, */*", MediaJSON, true},
		{"application/vnd.pypi.simple.v1+json;q=0", MediaLegacyHTML, false},
		{"application/vnd.pypi.simple.v2+json", MediaLegacyHTML, false},
		{"application/vnd.pypi.simple.v1+json;q=NaN", MediaLegacyHTML, false},
	} {
		if m, ok := Negotiate(c.accept); m != c.want || ok != c.ok {
			t.Errorf("%q: %s %v", c.accept, m, ok)
		}
	}
}

func TestNegotiateFor(t *testing.T) {
	const pip = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01"
	for _, c := range []struct {
		have   MediaType
		accept string
		want   MediaType
	}{
		{MediaHTML, pip, MediaHTML}, {MediaJSON, pip, MediaJSON}, {MediaHTML, "text/html", MediaLegacyHTML}, {MediaJSON, "text/html", MediaLegacyHTML},
		{MediaHTML, "application/vnd.pypi.simple.v1+json", MediaJSON}, {MediaJSON, "", MediaLegacyHTML}, {MediaHTML, "", MediaLegacyHTML},
		{MediaJSON, "*/*", MediaLegacyHTML}, {MediaHTML, "application/vnd.pypi.simple.v1+json, text/html;q=0", MediaJSON},
	} {
		if m, ok := NegotiateFor(c.have, c.accept); m != c.want || !ok {
			t.Errorf("%s, %q: %s %v", c.have, c.accept, m, ok)
		}
	}
}

func FuzzHTML(f *testing.F) {
	f.Add(htmlPage)
	f.Add(`<base href="//x"><a href="%zz">`)
	f.Add(`<a href="http://[::1]:80/x-1.whl?q#sha256=00" data-yanked>`)
	base := &url.URL{Scheme: "http", Host: "h", Path: "/simple/x/"}
	f.Fuzz(func(t *testing.T, in string) {
		p, err := Parse("text/html", []byte(in), base)
		if err != nil {
			return
		}
		p.MapURLs(func(f *File) string { return "ours" })
		out, err := p.Render(MediaHTML)
		if err != nil {
			t.Fatal(err)
		}
		q, err := Parse("text/html", out, base)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if len(q.Files) != len(p.Files) {
			t.Fatalf("%d files became %d: %s", len(p.Files), len(q.Files), out)
		}
		for i, f := range q.Files {
			if f.URL != "http://h/simple/x/ours" {
				t.Fatalf("a URL that was not rewritten: %q", f.URL)
			}
			if !reflect.DeepEqual(f.Yanked, p.Files[i].Yanked) || f.RequiresPython != p.Files[i].RequiresPython {
				t.Fatalf("%+v became %+v", p.Files[i], f)
			}
		}
		if j, err := p.Render(MediaJSON); err != nil || !json.Valid(j) {
			t.Fatalf("%v: %s", err, j)
		}
	})
}

func FuzzJSON(f *testing.F) {
	f.Add(jsonPage)
	f.Add(`{"meta":{"api-version":"1.0"},"files":[{"filename":"a","url":"b","hashes":{},"yanked":null}]}`)
	base := &url.URL{Scheme: "http", Host: "h", Path: "/simple/x/"}
	f.Fuzz(func(t *testing.T, in string) {
		p, err := Parse(string(MediaJSON), []byte(in), base)
		if err != nil {
			return
		}
		p.MapURLs(func(f *File) string { return "ours" })
		out, err := p.Render(MediaJSON)
		if err != nil || !json.Valid(out) {
			t.Fatalf("%v\n%s", err, out)
		}
		q, err := Parse(string(MediaJSON), out, base)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, f := range q.Files {
			if f.URL != "http://h/simple/x/ours" {
				t.Fatalf("a URL that was not rewritten: %q", f.URL)
			}
		}
		again, _ := func() ([]byte, error) { q.MapURLs(func(*File) string { return "ours" }); return q.Render(MediaJSON) }()
		if len(p.Skipped) == 0 && string(again) != string(out) {
			t.Fatalf("not stable:\n%s\n%s", out, again)
		}
		if _, err := p.Render(MediaHTML); err != nil {
			t.Fatal(err)
		}
	})
}
