package witness

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// serve runs the rig's witness behind a real listener.
func serve(t testing.TB, r *rig, change func(*http.Server)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(r.h)
	if change != nil {
		change(srv)
	}
	done := make(chan struct{})
	go func() { srv.Serve(l); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return l.Addr().String()
}

func TestBodyIsBounded(t *testing.T) {
	r := newRig(t)
	addr := serve(t, r, nil)
	hc := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	defer hc.CloseIdleConnections()
	post := func(body io.Reader) (int, string) {
		res, err := hc.Post("http://"+addr+"/add-checkpoint", "", body)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	// The largest note there is room for is taken, and what is then served is
	// within the bound of those who read it.
	big := func(size int) []byte {
		cp := r.log.checkpoint(5)
		cp.Extensions = []string{"x"}
		cp.Extensions[0] = strings.Repeat("x", 1+size-len(body(0, nil, r.log.note(cp))))
		return body(0, nil, r.log.note(cp))
	}
	if b := big(MaxBody); len(b) != MaxBody {
		t.Fatal(len(b))
	} else if status, text := post(bytes.NewReader(b)); status != 200 {
		t.Errorf("%d %s", status, text)
	}
	if n := r.audit(r.log.origin); len(n.Bytes()) > c2sp.MaxNote {
		t.Errorf("the read API serves %d bytes", len(n.Bytes()))
	}
	if status, text := post(bytes.NewReader(big(MaxBody + 1))); status != 413 || !strings.Contains(text, "more than") {
		t.Errorf("announced: %d %s", status, text)
	}
	endless := io.MultiReader(bytes.NewReader(big(MaxBody)), strings.NewReader("x"))
	if status, text := post(endless); status != 413 {
		t.Errorf("chunked: %d %s", status, text)
	}
}

// Large bodies are few at a time; small ones, which all honest logs send, go by.
func TestLargeBodiesAreFewAtATime(t *testing.T) {
	r := newRig(t)
	cp := r.log.checkpoint(5)
	cp.Extensions = []string{strings.Repeat("x", 2*smallBody)}
	large := body(0, nil, r.log.note(cp))
	for range bigBodies {
		r.w.big <- struct{}{}
	}
	if a := r.must(r.post(large), 503); a.header.Get("Retry-After") != "1" {
		t.Errorf("%v", a.header)
	}
	r.must(r.post(r.log.request(0, 4)), 200)
	<-r.w.big
	for range 3 { // the place is given back each time
		r.must(r.post(large), 409)
	}
	if len(r.w.big) != bigBodies-1 {
		t.Errorf("%d places are taken", len(r.w.big))
	}
}

// A body that is announced too large is not waited for.
func TestHugeBodyIsRefusedUnread(t *testing.T) {
	r := newRig(t)
	c, err := net.Dial("tcp", serve(t, r, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	fmt.Fprintf(c, "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n", 1<<40)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != 413 || !res.Close {
		t.Errorf("%+v %v", res, err)
	}
}

func TestSlowClientsAreCut(t *testing.T) {
	r := newRig(t)
	if s := NewServer(r.h); s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.WriteTimeout <= 0 || s.IdleTimeout <= 0 || s.MaxHeaderBytes <= 0 {
		t.Errorf("a limit is missing: %+v", s)
	}
	addr := serve(t, r, func(s *http.Server) {
		s.ReadHeaderTimeout, s.ReadTimeout, s.IdleTimeout = 100*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
	})
	for name, start := range map[string]string{
		"says nothing":        "",
		"half a header":       "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nX-Slow: ",
		"half a body":         "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: 100\r\n\r\nold 5",
		"a chunk of a body":   "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nold\r\n",
		"a header of 64 KiB":  "GET / HTTP/1.1\r\nHost: w\r\nX-Big: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
		"stays after a reply": "GET /nothing HTTP/1.1\r\nHost: w\r\n\r\n",
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(c, start)
		begin := time.Now()
		b, err := io.ReadAll(c) // ends when the server hangs up
		var late net.Error
		if ne, ok := err.(net.Error); ok {
			late = ne
		}
		if late != nil && late.Timeout() {
			t.Errorf("%s: still connected after %v, with %q", name, time.Since(begin), b)
		}
		if bytes.Contains(b, []byte(" 200 ")) {
			t.Errorf("%s: %q", name, b)
		}
		c.Close()
	}
}

// A log keeps its connection: "witnesses SHOULD support HTTP keep-alive".
func TestKeepAlive(t *testing.T) {
	r := newRig(t)
	c, err := net.Dial("tcp", serve(t, r, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for i, want := range []int{409, 200, 200, 404} {
		b := [][]byte{r.log.request(1, 2), r.log.request(0, 3), r.log.request(3, 7), newLog(t, "x").request(0, 1)}[i]
		fmt.Fprintf(c, "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != want || res.Close {
			t.Errorf("request %d: %d, close %v", i, res.StatusCode, res.Close)
		}
	}
}

// Every refusal but the conflict is a problem document that says what was wrong.
func TestRefusalsAreProblemDocuments(t *testing.T) {
	r := newRig(t)
	r.must(r.post(r.log.request(0, 5)), 200)
	for _, p := range []struct {
		a      answer
		status int
		detail string
	}{
		{r.post([]byte("old 05\n")), 400, "leading zeros"},
		{r.post(body(9, nil, r.log.note(r.log.checkpoint(8)))), 400, "old size 9 is above the checkpoint's size 8"},
		{r.post(newLog(t, "example.com/<other>\u202e").request(0, 5)), 404, `unknown log "example.com/<other>\u202e"`},
		{r.post(newLog(t, r.log.origin).request(5, 8)), 403, "no signature by a trusted key"},
		{r.post(r.log.evil(2).request(5, 8)), 422, "does not begin with the tree of size 5"},
		{r.post(r.log.evil(2).request(5, 5)), 422, "two different trees of size 5"},
		{r.do("GET", "/add-checkpoint", nil), 405, "only POST"},
		{r.do("GET", "/nothing", nil), 404, "tlog-witness"},
	} {
		var doc struct {
			Title, Detail string
			Status        int
		}
		if err := json.Unmarshal([]byte(p.a.body), &doc); err != nil || p.a.status != p.status || doc.Status != p.status ||
			p.a.header.Get("Content-Type") != "application/problem+json" || !strings.Contains(doc.Detail, p.detail) {
			t.Errorf("want %d %q, got %d %s (%v)", p.status, p.detail, p.a.status, p.a.body, err)
		}
	}
}

// A client that hangs up leaves the state as it would be had it stayed.
func TestClientHangsUp(t *testing.T) {
	r := newRig(t)
	addr := serve(t, r, nil)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	arrived, hungUp, written := make(chan struct{}), make(chan struct{}), make(chan struct{})
	r.w.testBeforeAdvance = func() { close(arrived); <-hungUp; time.Sleep(50 * time.Millisecond); close(written) }
	b := r.log.request(0, 5)
	fmt.Fprintf(c, "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
	<-arrived
	c.Close()
	close(hungUp)
	<-written
	for range 100 {
		if h := r.head(r.log.origin); h != nil {
			if h.Size != 5 {
				t.Errorf("%+v", h)
			}
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the request was dropped half way")
}
