// The world of the monitor's tests: a fake log over HTTP, a clock that the test
// moves, a real SMTP server and a real webhook receiver.

package monitor

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/portbook/portbook/monitor/internal/fakelog"
)

const testOrigin = "log.test/one"

var testSecret = "whsec_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// A hook is a webhook receiver that keeps what it got and checks signatures.
type hook struct {
	*httptest.Server
	mu     sync.Mutex
	status int
	got    []alert.Payload
	ids    []string
	bad    []string
}

func newHook(t testing.TB) *hook {
	h := &hook{status: 204}
	wh, err := standardwebhooks.NewWebhook(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.status != 204 {
			w.WriteHeader(h.status)
			return
		}
		if err := wh.VerifyIgnoringTimestamp(b, r.Header); err != nil {
			h.bad = append(h.bad, err.Error())
		}
		var p alert.Payload
		if err := json.Unmarshal(b, &p); err != nil {
			h.bad = append(h.bad, err.Error())
		}
		if r.Header.Get("webhook-id") != p.Data.ID {
			h.bad = append(h.bad, "webhook-id is not the alert's ID")
		}
		h.got = append(h.got, p)
		h.ids = append(h.ids, p.Data.ID)
		w.WriteHeader(204)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) answer(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

func (h *hook) all(t testing.TB) []alert.Payload {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.bad) > 0 {
		t.Fatalf("webhook: %q", h.bad)
	}
	return append([]alert.Payload(nil), h.got...)
}

// A mailbox is a real SMTP server on loopback.
type mailbox struct {
	addr string
	mu   sync.Mutex
	got  []received
}

type received struct {
	to          string
	header      mail.Header
	body        string
	attachments map[string]string
}

func newMailbox(t testing.TB) *mailbox {
	mb := &mailbox{}
	s := smtp.NewServer(mb)
	s.Domain, s.AllowInsecureAuth = "localhost", true
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mb.addr = ln.Addr().String()
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return mb
}

func (mb *mailbox) NewSession(*smtp.Conn) (smtp.Session, error) { return &mailSession{mb: mb}, nil }

type mailSession struct {
	mb *mailbox
	to string
}

func (s *mailSession) Mail(string, *smtp.MailOptions) error { return nil }
func (s *mailSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	if strings.HasPrefix(to, "nobody@") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
	}
	s.to = to
	return nil
}
func (s *mailSession) Reset()        {}
func (s *mailSession) Logout() error { return nil }
func (s *mailSession) Data(r io.Reader) error {
	m, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}
	rec := received{to: s.to, header: m.Header, attachments: map[string]string{}}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	if !strings.HasPrefix(kind, "multipart/") {
		b, _ := io.ReadAll(quotedprintable.NewReader(m.Body))
		rec.body = string(b)
	} else {
		mr := multipart.NewReader(m.Body, params["boundary"])
		for {
			p, err := mr.NextPart()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			b, _ := io.ReadAll(p)
			if p.Header.Get("Content-Transfer-Encoding") == "base64" {
				if b, err = base64.StdEncoding.DecodeString(strings.NewReplacer("\r", "", "\n", "").Replace(string(b))); err != nil {
					return err
				}
			}
			if name := p.FileName(); name != "" {
				rec.attachments[name] = string(b)
			} else {
				rec.body += string(b)
			}
		}
	}
	s.mb.mu.Lock()
	defer s.mb.mu.Unlock()
	s.mb.got = append(s.mb.got, rec)
	return nil
}

func (mb *mailbox) all() []received {
	mb.mu.Lock()
	defer mb.mu.Unlock()
	return append([]received(nil), mb.got...)
}

// A world is a log, a monitor and its receivers.
type world struct {
	t     testing.TB
	clock *clock
	log   *fakelog.Log
	srv   *httptest.Server
	hook  *hook
	ops   *hook
	mail  *mailbox
	dir   string
	m     *Monitor
	store *Store
	cfg   Config
}

// newWorld starts a log and a monitor that watches it with the given
// subscriptions file, in which HOOK, OPS and SECRET are filled in.
func newWorld(t testing.TB, subs string, options ...func(*world)) *world {
	w := &world{t: t, clock: &clock{t: time.Date(2026, 11, 21, 5, 0, 0, 0, time.UTC)}, dir: t.TempDir()}
	w.log = fakelog.New(testOrigin, 3, 2, w.clock.Now)
	w.srv = httptest.NewServer(w.log)
	t.Cleanup(w.srv.Close)
	w.hook, w.ops, w.mail = newHook(t), newHook(t), newMailbox(t)
	if err := Begin(t.Context(), w.path(), testOrigin, 0); err != nil {
		t.Fatal(err)
	}
	emails, err := alert.NewEmails(alert.EmailConfig{Server: w.mail.addr, TLS: alert.TLSNone, From: "Portbook <monitor@portbook.test>", Now: w.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = Config{
		Policy: w.log.Policy, Subscriptions: w.subs(subs), Now: w.clock.Now, PageURL: "https://monitor.test", Confirm: time.Millisecond,
		Channels: map[string]alert.Channel{
			alert.Webhook: alert.NewWebhooks(alert.WebhookConfig{AllowPrivate: true, Now: w.clock.Now}),
			alert.Email:   emails,
		},
		RetryBase: time.Second,
	}
	for _, o := range options {
		o(w)
	}
	w.open()
	return w
}

func (w *world) path() string { return filepath.Join(w.dir, "monitor.db") }

func (w *world) subs(text string) *Subscriptions {
	w.t.Helper()
	s, err := ParseSubscriptions([]byte(strings.NewReplacer("HOOK", w.hook.URL, "OPS", w.ops.URL, "SECRET", testSecret).Replace(text)), w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// open opens the database and makes the monitor, as a start of the program does.
func (w *world) open() {
	w.t.Helper()
	store, err := OpenStore(w.t.Context(), w.path(), w.clock.Now)
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = store
	w.t.Cleanup(func() { store.Close() })
	r, err := client.NewReader(w.srv.URL, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.cfg.Store, w.cfg.Source = store, r
	if w.m, err = New(w.t.Context(), w.cfg); err != nil {
		w.t.Fatal(err)
	}
}

// reopen is a restart of the program.
func (w *world) reopen() {
	w.store.Close()
	w.open()
}

// round looks at the log once and delivers everything that is due.
func (w *world) round() {
	w.t.Helper()
	if err := w.m.Round(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.deliver()
}

// deliver runs the outbox until nothing is due.
func (w *world) deliver() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.m.outbox.Run(ctx) }()
	deadline := time.Now().Add(10 * time.Second)
	idle := 0
	for {
		due, err := w.store.Due(ctx, w.clock.Now(), nil, 1000)
		if err != nil {
			w.t.Fatal(err)
		}
		// Due looks for receivers first: a failure recorded in between may owe
		// something to another one, which the second look finds.
		if len(due) > 0 {
			idle = 0
		} else if idle++; idle == 2 {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("still %d deliveries due: %+v", len(due), due[0])
		}
		w.m.outbox.Wake()
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		w.t.Fatal(err)
	}
}

// verified is how far the database says the log is verified.
func (w *world) verified() uint64 {
	w.t.Helper()
	h, err := w.store.Health(w.t.Context(), testOrigin)
	if err != nil {
		w.t.Fatal(err)
	}
	return h.Verified
}

// one returns the only alert that h got, as a notice, and empties h.
func (w *world) one(h *hook) alert.Alert {
	w.t.Helper()
	got := h.all(w.t)
	if len(got) != 1 || len(got[0].Data.Alerts) != 1 {
		var titles []string
		for _, p := range got {
			titles = append(titles, p.Data.Summary)
		}
		w.t.Fatalf("got %d notices, want one with one alert: %q", len(got), titles)
	}
	h.clear()
	a := got[0].Data.Alerts[0]
	if want := "portbook.alert." + string(a.Severity); got[0].Type != want {
		w.t.Errorf("type %q, want %q", got[0].Type, want)
	}
	return a
}

func (h *hook) clear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got, h.ids = nil, nil
}

// none fails if h got anything.
func (w *world) none(h *hook) {
	w.t.Helper()
	if got := h.all(w.t); len(got) != 0 {
		w.t.Fatalf("got %q, want nothing", got[0].Data.Summary)
	}
}

// want checks one alert's severity and kind.
func (w *world) want(h *hook, s alert.Severity, kind string) alert.Alert {
	w.t.Helper()
	a := w.one(h)
	if a.Severity != s || a.Kind != kind {
		w.t.Fatalf("got %s/%s (%s), want %s/%s", a.Severity, a.Kind, a.Title, s, kind)
	}
	return a
}
