package witness

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestStatusPage: one look tells which logs there are, how fresh they are, what
// was refused, and a fork; and names from strangers are shown, not obeyed.
func TestStatusPage(t *testing.T) {
	r := newRig(t)
	page := func() string {
		t.Helper()
		a := r.must(r.do("GET", "/", nil), 200)
		if a.header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.Contains(a.header.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("headers %v", a.header)
		}
		return a.body
	}
	want := func(what string, there bool) {
		t.Helper()
		if strings.Contains(page(), what) != there {
			t.Errorf("%q on the page: %v, want %v", what, !there, there)
		}
	}
	want("1 in all", true)
	want("never", true)
	r.must(r.post(r.log.request(0, 5)), 200)
	r.must(r.post(r.log.request(0, 6)), 409)
	r.must(r.post([]byte("nonsense")), 400)
	want(`<td class="n">5</td>`, true)
	want("0 s ago", true)
	want("409 the log has to start from another size", true)
	want("400 not in the grammar", true)
	want("Fork", false)
	r.clock.set(noon.Add(50 * time.Hour))
	want("2 days ago", true)
	want("0 cosigned within a day", true)
	r.must(r.post(r.log.evil(3).request(5, 5)), 422)
	want("<strong>Fork.</strong> <code>example.com/log</code>", true)
	want("422 not shown to be consistent, or a fork", true)

	evil := newLog(t, `<script>alert(1)</script>"'>`)
	if _, err := r.dir.Store.AddLog(context.Background(), evil.origin, nil); err == nil {
		t.Fatal("a log without a key was added")
	}
	r.trust(evil)
	r.must(r.do("POST", "/add-checkpoint", evil.request(0, 1)), 200)
	want("<script>", false)
	want("&lt;script&gt;", true)
	turned := newLog(t, "log.example/\u202egro.live\u009b2J\u200b")
	r.trust(turned)
	r.must(r.do("POST", "/add-checkpoint", turned.request(0, 1)), 200)
	want("log.example/\\u{202e}gro.live\\u{009b}2J\\u{200b}", true)
	want("\u202e", false)

	for _, m := range []string{"POST", "PUT", "HEAD"} {
		if a := r.do(m, "/", nil); a.status != 405 {
			t.Errorf("%s /: %d", m, a.status)
		}
	}
	r.must(r.do("GET", "/nothing", nil), 404)
}

// TestMetrics: requests by log and status, sizes, times, forks.
func TestMetrics(t *testing.T) {
	r := newRig(t)
	scrape := func() string {
		w := httptest.NewRecorder()
		r.w.Metrics().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		return w.Body.String()
	}
	r.must(r.post(r.log.request(0, 5)), 200)
	r.must(r.post(r.log.request(0, 6)), 409)
	r.must(r.post(r.log.evil(3).request(5, 5)), 422)
	stranger := newLog(t, "stranger.example/log")
	r.must(r.post(stranger.request(0, 5)), 404)
	r.must(r.post([]byte("nonsense")), 400)
	have := scrape()
	for _, line := range []string{
		`portbook_witness_requests_total{log="example.com/log",status="200"} 1`,
		`portbook_witness_requests_total{log="example.com/log",status="409"} 1`,
		`portbook_witness_requests_total{log="example.com/log",status="422"} 1`,
		`portbook_witness_requests_total{log="",status="404"} 1`,
		`portbook_witness_requests_total{log="",status="400"} 1`,
		`portbook_witness_cosigned_size{log="example.com/log"} 5`,
		`portbook_witness_forks{log="example.com/log"} 1`,
		"portbook_witness_signing_seconds_count 1",
		"portbook_witness_commit_seconds_count 1",
		"portbook_witness_database_up 1",
	} {
		if !strings.Contains(have, line+"\n") {
			t.Errorf("no %s", line)
		}
	}
	if strings.Contains(have, "stranger") {
		t.Error("a stranger can name a series")
	}
	if err := r.dir.Store.Close(); err != nil {
		t.Fatal(err)
	}
	if have := scrape(); !strings.Contains(have, "portbook_witness_database_up 0\n") {
		t.Error("a database that is gone does not show")
	}
}
