package evillog_test

// The readers: each learns the honest log, is lied to, looks again, and says in
// a few words what came of it. Whatever must hold for every lie (nothing
// installed, nothing remembered, evidence that verifies) is checked here.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/monitor"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/portbook/portbook/registry/proxy"
	"github.com/portbook/portbook/witness"
)

// patience is how long a cell may take.
const patience = slower * 10 * time.Second

// readState is a client that remembers, and looks at the log's newest checkpoint.
//
//	accepted    the checkpoint is now what is remembered
//	kept        no objection, and nothing newer
//	PBnnn       refused (PB2xx) or cannot check (PB3xx); nothing is remembered
func readState(s *stage, lie func(*stage)) string {
	dir := s.t.TempDir()
	state := must(client.OpenState(filepath.Join(dir, "state")))
	r := s.reader()
	look := func() error { return state.Latest(s.ctx, s.policy, r) }
	if !s.fresh {
		if err := look(); err != nil {
			s.t.Fatalf("the honest log: %v", err)
		}
	}
	s.read = func() {
		if err := look(); err != nil {
			s.t.Errorf("the first look: %v", err)
		}
	}
	s.lie(lie)
	before, _, _ := state.Newest(origin)
	err := look()
	after, _, _ := must(client.OpenState(filepath.Join(dir, "state"))).Newest(origin)

	out := codeOf(s, err)
	switch {
	case err != nil && !bytes.Equal(before.Note, after.Note):
		s.t.Errorf("refused, and remembered all the same: %s", after.Note)
	case err == nil && bytes.Equal(before.Note, after.Note):
		out = "kept"
	case err == nil:
		out = "accepted"
	}
	out += evidence(s, filepath.Join(dir, "evidence"), err)
	if f := state.Freshness(origin, s.clock.Now()); f.Kind != client.Fresh {
		out += ", " + string(f.Kind)
	}
	return out
}

// codeOf is the code of a refusal or of what cannot be checked, which must be
// explained, and whose words must be those of its kind.
func codeOf(s *stage, err error) string {
	if err == nil {
		return ""
	}
	var refusal *client.Refusal
	var cannot *client.CannotCheck
	code := ""
	switch {
	case errors.As(err, &refusal):
		code = refusal.Code
		if !strings.HasPrefix(code, "PB1") && !strings.HasPrefix(code, "PB2") || refusal.Check == "" || refusal.Detail == "" {
			s.t.Errorf("a refusal that says too little: %#v", refusal)
		}
	case errors.As(err, &cannot):
		code = cannot.Code
		if !strings.HasPrefix(code, "PB3") || cannot.Reason == "" || !strings.Contains(err.Error(), "cannot check") {
			s.t.Errorf("what cannot be checked must say so: %#v", cannot)
		}
	default:
		s.t.Errorf("an error of no class: %v", err)
		return "?"
	}
	if _, ok := client.Explain(code); !ok {
		s.t.Errorf("%s is not explained", code)
	}
	if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f }) {
		s.t.Errorf("the log speaks through our terminal: %q", err.Error())
	}
	return code
}

// evidence checks what is in an evidence directory: one file, named by the
// refusal if there is one, that convinces whoever has the policy; or none.
func evidence(s *stage, dir string, err error) string {
	files := must(filepath.Glob(filepath.Join(dir, "*")))
	var refusal *client.Refusal
	if errors.As(err, &refusal) && refusal.Evidence != "" && !slices.Equal(files, []string{refusal.Evidence}) {
		s.t.Errorf("the refusal names %s, there are %q", refusal.Evidence, files)
	}
	if len(files) == 0 {
		return ""
	}
	if len(files) > 1 {
		s.t.Errorf("one fork left %d files", len(files))
	}
	if err := client.VerifyEvidence(must(os.ReadFile(files[0])), s.policy); err != nil {
		s.t.Errorf("the evidence convinces nobody: %v", err)
	}
	return "+evidence"
}

// readProof is a client without memory or network, that has the file and a proof.
//
//	verified    the proof stands
//	PB1nn       refused
func readProof(s *stage, lie func(*stage)) string {
	s.lie(lie)
	_, err := client.Verify(s.policy, s.file(), s.proof())
	if err == nil {
		return "verified"
	}
	var refusal *client.Refusal
	if !errors.As(err, &refusal) || refusal.Tampering() {
		s.t.Errorf("offline, all that can be wrong is wrong with the file: %v", err)
	}
	return codeOf(s, err)
}

// readProxy is an installer behind a proxy that knows the log.
//
//	served           the file, whole; ", warned" if it came with a warning
//	PBnnn            403 with this code and not a byte of the file
func readProxy(s *stage, lie func(*stage)) string {
	dir := s.t.TempDir()
	state := must(client.OpenState(filepath.Join(dir, "state")))
	index := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/simple/demo/":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, `<!DOCTYPE html><html><body><a href="../../f/%s#sha256=%x">%s</a></body></html>`, file, sha256.Sum256(s.content), file)
		case "/f/" + file:
			w.Write(s.content)
		case "/f/" + file + ".tlog-proof":
			if s.trickle {
				for r.Context().Err() == nil {
					w.Write([]byte("c"))
					http.NewResponseController(w).Flush()
					time.Sleep(100 * time.Millisecond)
				}
				return
			}
			if s.beside {
				w.Write(s.proof())
				return
			}
			fallthrough
		default:
			http.NotFound(w, r)
		}
	}))
	s.t.Cleanup(index.Close)
	p, err := proxy.New(proxy.Config{Index: index.URL + "/simple/", Registry: registry, Policy: s.policy, State: state,
		Log: s.srv.URL, TempDir: dir, Now: s.clock.Now, Transport: s.transport()})
	if err != nil {
		s.t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(p)
	srv.Config = p.Server()
	srv.Start()
	s.t.Cleanup(srv.Close)

	if !s.fresh {
		p.Refresh(s.ctx)
	}
	if r := p.Report(); r.LogRefused != "" || len(r.Warnings) > 0 {
		s.t.Fatalf("the honest log: %+v", r)
	}
	s.read = func() { p.Refresh(s.ctx) }
	s.lie(lie)
	p.Refresh(s.ctx)

	_, _, page := get(s, srv.URL+"/simple/demo/")
	_, rest, _ := strings.Cut(string(page), `href="`)
	ref, _, ok := strings.Cut(rest, `"`)
	if !ok {
		s.t.Fatalf("no link on the page: %s", page)
	}
	link := must(must(url.Parse(srv.URL + "/simple/demo/")).Parse(ref))
	link.Fragment = ""
	line, header, body := get(s, link.String())
	out := header.Get("Portbook-Code")
	report := p.Report()
	switch {
	case strings.HasPrefix(line, "200"):
		if !bytes.Equal(body, s.content) || report.Verified != 1 || report.Refused+report.CannotCheck > 0 {
			s.t.Errorf("served %q: %+v", body, report)
		}
		out = "served"
		if header.Get("Portbook-Warning") != "" {
			out += ", warned"
		}
	case strings.HasPrefix(line, "403"):
		word := "403 PORTBOOK REFUSED (" + out + "): "
		if strings.HasPrefix(out, "PB3") {
			word = "403 PORTBOOK CANNOT CHECK (" + out + "): "
			if !strings.Contains(line, "not evidence of tampering") {
				s.t.Errorf("an outage worded like an attack: %s", line)
			}
		}
		var problem struct{ Code string }
		if !strings.HasPrefix(line, word) || json.Unmarshal(body, &problem) != nil || problem.Code != out {
			s.t.Errorf("%s: %s", line, body)
		}
		if _, ok := proxy.Explain(out); !ok {
			s.t.Errorf("%s is not explained", out)
		}
		if bytes.Contains(body, s.content) || report.Verified > 0 || report.Refused+report.CannotCheck != 1 {
			s.t.Errorf("refused, and yet: %q %+v", body, report)
		}
	default:
		s.t.Errorf("neither served nor refused: %s", line)
	}
	return out + evidence(s, filepath.Join(dir, "evidence"), nil)
}

func get(s *stage, url string) (line string, h http.Header, body []byte) {
	req := must(http.NewRequestWithContext(s.ctx, http.MethodGet, url, nil))
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		s.t.Fatal(err)
	}
	return resp.Status, resp.Header, body
}

// A mailbox takes alerts.
type mailbox struct {
	mu  sync.Mutex
	got []alert.Alert
}

func (m *mailbox) Notify(_ context.Context, _ alert.Receiver, n alert.Notice) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.got = append(m.got, n.Alerts...)
	return false, nil
}

// take returns what has come, in words.
func (m *mailbox) take(s *stage) (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.got {
		word := string(a.Severity) + "/" + a.Kind
		if a.Evidence != "" {
			if err := client.VerifyEvidence([]byte(a.Evidence), s.policy); err != nil {
				s.t.Errorf("the alert's evidence convinces nobody: %v", err)
			}
			word += "+evidence"
		}
		if a.Severity == alert.Infrastructure && strings.Contains(a.Title+a.What, "tamper") {
			s.t.Errorf("an outage worded like an attack: %s %s", a.Title, a.What)
		}
		out = append(out, word)
	}
	m.got = nil
	slices.Sort(out)
	return out
}

// readMonitor watches the log for an operator.
//
//	indexed               every entry up to the log's newest checkpoint was recorded
//	held                  none was
//	<severity>/<kind>     and what the operator was told, at once, or (after 16
//	                      minutes of the same) if nothing was told at once
func readMonitor(s *stage, lie func(*stage)) string {
	dir := s.t.TempDir()
	db := filepath.Join(dir, "monitor.db")
	if err := monitor.Begin(s.t.Context(), db, origin, 0); err != nil {
		s.t.Fatal(err)
	}
	store, err := monitor.OpenStore(s.t.Context(), db, s.clock.Now)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { store.Close() })
	subs, err := monitor.ParseSubscriptions([]byte("operator: {notify: [{email: operator@log.test}]}\n"), dir)
	if err != nil {
		s.t.Fatal(err)
	}
	box := &mailbox{}
	channels := map[string]alert.Channel{alert.Email: box}
	m, err := monitor.New(s.t.Context(), monitor.Config{Store: store, Source: s.reader(), Policy: s.policy, Origin: origin, Subscriptions: subs,
		Channels: channels, Confirm: time.Millisecond, Now: s.clock.Now})
	if err != nil {
		s.t.Fatal(err)
	}
	look := func() []string {
		if err := m.Round(s.ctx); err != nil {
			s.t.Fatalf("whatever the log does is a finding, not an error of the monitor: %v", err)
		}
		deliver(s, store, channels)
		return box.take(s)
	}
	health := func() *monitor.Health { return must(store.Health(s.t.Context(), origin)) }
	if !s.fresh {
		if got := look(); got != nil || health().Verified != known {
			s.t.Fatalf("the honest log: %q, %+v", got, health())
		}
	}
	s.read = func() { look() }
	s.lie(lie)
	was := health()
	told := look()
	now := health()
	out := "held"
	if now.Verified == s.log.Size() && now.Verified > was.Verified {
		out = "indexed"
	} else if now.Verified != was.Verified {
		s.t.Errorf("the cursor went from %d to %d", was.Verified, now.Verified)
	}
	later := false
	if told == nil {
		s.clock.Add(16 * time.Minute)
		s.log.Publish()
		later = true
		told = look()
	}
	if files := must(filepath.Glob(filepath.Join(m.EvidenceDir(), "*"))); len(files) > 0 {
		if err := client.VerifyEvidence(must(os.ReadFile(files[0])), s.policy); err != nil || len(files) > 1 || !strings.Contains(strings.Join(told, " "), "+evidence") {
			s.t.Errorf("evidence files %q (%v), told %q", files, err, told)
		}
	}
	if len(told) > 0 {
		out += ", " + strings.Join(told, " ")
		if later {
			out += " later"
		}
	}
	return out
}

// deliver empties the outbox.
func deliver(s *stage, store *monitor.Store, channels map[string]alert.Channel) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	due := func() int { return len(must(store.Due(s.t.Context(), s.clock.Now(), nil, 1000))) }
	if due() == 0 {
		return
	}
	o := alert.NewOutbox(alert.OutboxConfig{Queue: store, Channels: channels, Now: s.clock.Now})
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	for due() > 0 && ctx.Err() == nil {
		o.Wake()
		time.Sleep(2 * time.Millisecond)
	}
	cancel()
	<-done
}

// readWitness is asked to cosign.
//
//	200    cosigned, and served by the read API
//	4xx    not cosigned; what the read API serves is what it was
func readWitness(s *stage, lie func(*stage)) string {
	signer := keys().witnesses[0]
	wit := newWitness(s.t, signer, s.clock)
	srv := httptest.NewServer(wit.Handler())
	s.t.Cleanup(srv.Close)
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, ExpectContinueTimeout: patience}, Timeout: patience}
	post := func(body []byte) (int, []byte) {
		req := must(http.NewRequestWithContext(s.ctx, http.MethodPost, srv.URL+"/add-checkpoint", bytes.NewReader(body)))
		if len(body) > witness.MaxBody {
			req.Header.Set("Expect", "100-continue") // else the answer can be lost when the witness hangs up
		}
		resp, err := hc.Do(req)
		if err != nil {
			s.t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode, must(io.ReadAll(io.LimitReader(resp.Body, 1<<20)))
	}
	cosigned := func() []byte {
		resp := must(hc.Get(srv.URL + "/" + c2sp.OriginHash(origin) + "/checkpoint"))
		defer resp.Body.Close()
		return must(io.ReadAll(resp.Body))
	}
	size := uint64(0)
	ask := func() int {
		status, _ := post(s.log.AddCheckpoint(min(size, s.log.Size())))
		return status
	}
	if !s.fresh {
		if status := ask(); status != http.StatusOK {
			s.t.Fatalf("the honest log: %d", status)
		}
		size = known
	}
	s.read = func() {
		if status := ask(); status != http.StatusOK {
			s.t.Errorf("the first look: %d", status)
		}
		size = s.log.Size()
	}
	s.lie(lie)
	before := cosigned()
	body := s.log.AddCheckpoint(min(size, s.log.Size()))
	status, answer := post(body)
	after := cosigned()
	out := strconv.Itoa(status)
	if status != http.StatusOK {
		if !bytes.Equal(before, after) {
			s.t.Errorf("answered %d, and cosigned all the same:\n%s", status, after)
		}
		if bytes.Contains(answer, []byte("— ")) {
			s.t.Errorf("answered %d with a signature: %s", status, answer)
		}
	} else {
		a := must(c2sp.ParseAddCheckpoint(body))
		note := must(c2sp.ParseNote(a.Checkpoint))
		sigs, err := c2sp.ParseSignatureLines(answer)
		if err != nil || len(sigs) != 1 {
			s.t.Fatalf("%v: %s", err, answer)
		}
		if _, err := signer.Key().VerifyNote(note.Text, sigs[0]); err != nil {
			s.t.Error(err)
		}
		if served := must(c2sp.ParseNote(after)); served.Text != note.Text || len(served.Sigs) != 2 {
			s.t.Errorf("the read API serves what was not asked for, or lines that nobody verified: %s", after)
		}
	}
	return out + forks(s, wit.store)
}

// forks checks the forks that a witness kept: each convinces whoever has the
// policy.
func forks(s *stage, store *witness.Store) string {
	list := must(store.Forks(s.t.Context(), origin))
	for _, f := range list {
		if err := client.VerifyEvidence(f.Evidence(nil).Bytes(), s.policy); err != nil {
			s.t.Errorf("the witness's evidence convinces nobody: %v", err)
		}
	}
	if len(list) > 0 {
		return "+evidence"
	}
	return ""
}
