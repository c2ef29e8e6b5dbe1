package world

// A package index with Portbook around it: the gateway before it, the proxy
// that people install through, and a monitor with its page and a mailbox.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/mail"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/monitor"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/portbook/portbook/monitor/web"
	"github.com/portbook/portbook/registry/gateway"
	"github.com/portbook/portbook/registry/proxy"
)

// SiteOptions describe a site.
type SiteOptions struct {
	Registry string                     // what its files are logged as
	Accounts map[string]string          // of the index: user → password
	Known    map[string]gateway.Account // what the gateway knows of them
	// Subscriptions is a subscriptions file of the monitor, in which MAILBOX and
	// WEBHOOK stand for an address and a URL of this site.
	Subscriptions string
}

// Site is a running site.
type Site struct {
	Index      *Index
	IndexURL   string // of the bare index, without Portbook: <IndexURL>/simple/
	GatewayURL string // <GatewayURL>/simple/, <GatewayURL>/legacy/
	ProxyURL   string // <ProxyURL>/simple/
	MonitorURL string
	Mail       *Mailbox
	Hook       *Webhook
	Proxy      *proxy.Proxy
	Monitor    *monitor.Monitor

	stop    context.CancelFunc
	working sync.WaitGroup
	closers []func() error
}

// mailAddress is where a site's alerts go; the mailbox takes any.
const mailAddress = "maintainer@portbook.example"

// NewSite starts a site that logs to w.
func (w *World) NewSite(ctx context.Context, o SiteOptions) (*Site, error) {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &Site{stop: stop}
	if err := s.start(ctx, w, o); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Site) start(ctx context.Context, w *World, o SiteOptions) (err error) {
	dir := filepath.Join(w.Dir, "site")
	if s.Index, err = NewIndex(filepath.Join(dir, "index"), IndexOptions{Accounts: o.Accounts}); err != nil {
		return err
	}
	if s.IndexURL, err = s.serve(s.Index); err != nil {
		return err
	}
	token, err := w.Log.Token(o.Registry)
	if err != nil {
		return err
	}
	log, err := submit.Dial(w.Log.Target, token)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, log.Close)
	if err := s.startGateway(ctx, w, o, log, dir); err != nil {
		return err
	}
	if err := s.startProxy(ctx, w, o, dir); err != nil {
		return err
	}
	return s.startMonitor(ctx, w, o, dir)
}

func (s *Site) startGateway(ctx context.Context, w *World, o SiteOptions, log *submit.Client, dir string) error {
	pages, err := url.Parse(s.IndexURL + "/simple/")
	if err != nil {
		return err
	}
	uploads, err := url.Parse(s.IndexURL + "/legacy/")
	if err != nil {
		return err
	}
	g, err := gateway.New(ctx, gateway.Config{
		Registry: o.Registry, Index: pages, Upload: uploads, Dir: filepath.Join(dir, "gateway"), Log: log, Policy: w.ParsedPolicy(),
		Accounts: o.Known, ProofWait: 3 * time.Second, Logger: w.opts.Logger,
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, g.Close)
	s.working.Go(func() {
		if err := g.Run(ctx); err != nil && ctx.Err() == nil {
			w.opts.Logger.Error("gateway", "err", err)
		}
	})
	s.GatewayURL, err = s.serve(g)
	return err
}

func (s *Site) startProxy(ctx context.Context, w *World, o SiteOptions, dir string) error {
	state, err := client.OpenState(filepath.Join(dir, "proxy-state"))
	if err != nil {
		return err
	}
	s.Proxy, err = proxy.New(proxy.Config{
		Index: s.GatewayURL + "/simple/", Registry: o.Registry, Policy: w.ParsedPolicy(), State: state, Log: w.Log.URL, Logger: w.opts.Logger,
		Transport: &http.Transport{},
	})
	if err != nil {
		return err
	}
	srv := s.Proxy.Server()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.ProxyURL = "http://" + lis.Addr().String()
	s.closers = append(s.closers, srv.Close)
	go srv.Serve(lis) // ends with Close
	return nil
}

func (s *Site) startMonitor(ctx context.Context, w *World, o SiteOptions, dir string) error {
	var err error
	if s.Mail, err = newMailbox(); err != nil {
		return err
	}
	s.closers = append(s.closers, s.Mail.server.Close)
	s.Hook = &Webhook{}
	hookURL, err := s.serve(s.Hook)
	if err != nil {
		return err
	}
	subs, err := monitor.ParseSubscriptions([]byte(strings.NewReplacer("MAILBOX", mailAddress, "WEBHOOK", hookURL).Replace(o.Subscriptions)), dir)
	if err != nil {
		return err
	}
	emails, err := alert.NewEmails(alert.EmailConfig{Server: s.Mail.address, TLS: alert.TLSNone, From: "Portbook <monitor@portbook.example>", HELO: "localhost"})
	if err != nil {
		return err
	}
	db := filepath.Join(dir, "monitor.db")
	if err := monitor.Begin(ctx, db, w.LogKey.Key().Name(), 0); err != nil {
		return err
	}
	store, err := monitor.OpenStore(ctx, db, nil)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, store.Close)
	reader, err := client.NewReader(w.Log.URL, nil)
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.MonitorURL = "http://" + lis.Addr().String()
	s.Monitor, err = monitor.New(ctx, monitor.Config{
		Store: store, Source: reader, Policy: w.ParsedPolicy(), Subscriptions: subs, Poll: 100 * time.Millisecond, PageURL: s.MonitorURL,
		Channels: map[string]alert.Channel{alert.Email: emails, alert.Webhook: alert.NewWebhooks(alert.WebhookConfig{AllowPrivate: true})},
		Logger:   w.opts.Logger,
	})
	if err != nil {
		return errors.Join(err, lis.Close())
	}
	page, err := web.New(web.Config{Monitor: s.Monitor, Policy: w.ParsedPolicy(), LogURL: w.Log.URL, Logger: w.opts.Logger})
	if err != nil {
		return errors.Join(err, lis.Close())
	}
	s.serveOn(lis, page)
	s.working.Go(func() {
		if err := s.Monitor.Run(ctx); err != nil && ctx.Err() == nil {
			w.opts.Logger.Error("monitor", "err", err)
		}
	})
	return nil
}

func (s *Site) serve(h http.Handler) (string, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s.serveOn(lis, h)
	return "http://" + lis.Addr().String(), nil
}

func (s *Site) serveOn(lis net.Listener, h http.Handler) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	s.closers = append(s.closers, srv.Close)
	go srv.Serve(lis) // ends with Close
}

// Close stops everything of the site.
func (s *Site) Close() error {
	s.stop()
	s.working.Wait()
	var err error
	for i := len(s.closers) - 1; i >= 0; i-- {
		err = errors.Join(err, s.closers[i]())
	}
	return err
}

// Message is one mail that arrived.
type Message struct {
	To, Subject, Body string
	At                time.Time
}

// Mailbox is a mail server that keeps what it is sent.
type Mailbox struct {
	address string
	server  *smtp.Server

	mu       sync.Mutex
	messages []Message // guarded by mu
}

func newMailbox() (*Mailbox, error) {
	m := &Mailbox{}
	m.server = smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return &mailSession{box: m}, nil }))
	m.server.Domain, m.server.MaxMessageBytes = "localhost", 1<<20
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m.address = lis.Addr().String()
	go m.server.Serve(lis) // ends with Close
	return m, nil
}

// Messages are the mails so far.
func (m *Mailbox) Messages() []Message {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Message(nil), m.messages...)
}

type mailSession struct {
	box *Mailbox
	to  string
}

func (s *mailSession) Mail(string, *smtp.MailOptions) error      { return nil }
func (s *mailSession) Rcpt(to string, _ *smtp.RcptOptions) error { s.to = to; return nil }
func (s *mailSession) Reset()                                    {}
func (s *mailSession) Logout() error                             { return nil }

func (s *mailSession) Data(r io.Reader) error {
	msg, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(msg.Body)
	if err != nil {
		return err
	}
	s.box.mu.Lock()
	defer s.box.mu.Unlock()
	s.box.messages = append(s.box.messages, Message{To: s.to, Subject: msg.Header.Get("Subject"), Body: string(body), At: time.Now()})
	return nil
}

// Webhook keeps what it is sent.
type Webhook struct {
	mu     sync.Mutex
	bodies []string // guarded by mu
}

// ServeHTTP takes one delivery.
func (h *Webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
	if err != nil || r.Header.Get("webhook-signature") == "" {
		http.Error(w, fmt.Sprint("not a signed delivery: ", err), http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bodies = append(h.bodies, string(body))
}

// Bodies are the deliveries so far.
func (h *Webhook) Bodies() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.bodies...)
}
