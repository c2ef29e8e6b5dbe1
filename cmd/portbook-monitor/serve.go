package main

// serve: flags, open, wire, run, shut.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/monitor"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/portbook/portbook/monitor/web"
	"github.com/spf13/cobra"
)

func serveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve --db FILE --log-url URL --policy FILE",
		Short: "Watch the log, deliver alerts and show the page",
		Long: `serve watches the log until it is stopped. It refuses to start without its
database (see init), reads the subscriptions file again on SIGHUP (a bad file is
logged, and what was loaded stays), and never moves along a history that
contradicts the one it verified: it tells that, keeps the evidence and waits.`,
		Args: cobra.NoArgs,
	}
	l := addLogFlags(cmd)
	f := cmd.Flags()
	subsFile := f.String("subscriptions", "", "subscriptions `FILE` (YAML): who watches which projects and expects what")
	httpAddr := f.String("http", "127.0.0.1:8090", "`ADDRESS` of the page, /healthz and /readyz; empty: none")
	pageURL := f.String("page-url", "", "`URL` at which people reach the page, for links in alerts")
	poll := f.Duration("poll", 2*time.Second, "pause between two looks at the log's checkpoint")
	stale := f.Duration("stale-after", 15*time.Minute, "a log without a freshly cosigned checkpoint for longer is an outage, and told")
	window := f.Duration("group-window", 45*time.Second, "alerts of one release within this time are one mail; 0: each alone. Tampering never waits")
	evidence := f.String("evidence-dir", "", "`DIRECTORY` for evidence; default: evidence beside the database")
	private := f.Bool("allow-private-webhooks", false, "deliver webhooks to private and loopback addresses too, and by plain http: who can write a subscription can then reach your network")
	smtp := f.String("smtp", "", "mail relay, `HOST:PORT`; without it no mail is sent")
	smtpTLS := f.String("smtp-tls", "required", "TLS to the relay: required (STARTTLS), implicit (port 465), opportunistic, or none")
	smtpFrom := f.String("smtp-from", "", "sender of mails, an `ADDRESS`")
	smtpUser := f.String("smtp-username", "", "user `NAME` at the relay; empty: no authentication")
	smtpPassword := f.String("smtp-password-file", "", "`FILE` that holds the password, readable by its owner alone")
	smtpHelo := f.String("smtp-helo", "", "`NAME` this machine gives itself; default: its host name")
	accept := f.Bool("accept-new-baseline", false, "begin again where there is no database, or where the log contradicts what this one holds. What the monitor knew of the log's past is forgotten; alerts are kept")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		logger := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		o, err := l.open()
		if err != nil {
			return err
		}
		for _, line := range o.policy.Explain() {
			logger.Info("policy: " + line)
		}
		load := func() (*monitor.Subscriptions, error) {
			s, err := monitor.LoadSubscriptions(*subsFile)
			if err != nil {
				return nil, err
			}
			if err := s.CheckTargets(*private); err != nil {
				return nil, err
			}
			if n := s.Targets(alert.Email); n > 0 && *smtp == "" {
				return nil, fmt.Errorf("subscriptions: %d mail addresses are to be told, but there is no --smtp to send by", n)
			}
			return s, nil
		}
		subs, err := load()
		if err != nil {
			return cli.Usage(err)
		}
		channels := map[string]alert.Channel{
			alert.Webhook: alert.NewWebhooks(alert.WebhookConfig{AllowPrivate: *private, Page: *pageURL}),
		}
		if *smtp != "" {
			password := ""
			if *smtpPassword != "" {
				if password, err = cli.ReadSecret(*smtpPassword); err != nil {
					return cli.Usagef("--smtp-password-file: %w", err)
				}
			}
			channels[alert.Email], err = alert.NewEmails(alert.EmailConfig{
				Server: *smtp, TLS: alert.TLSPolicy(*smtpTLS), From: *smtpFrom, Username: *smtpUser, Password: password, HELO: *smtpHelo,
			})
			if err != nil {
				return cli.Usage(err)
			}
		}

		if _, err := os.Stat(*l.db); errors.Is(err, fs.ErrNotExist) && *accept {
			size, err := begin(ctx, *l.db, o, false)
			if err != nil {
				return err
			}
			logger.Warn("a new baseline was accepted: there was no database", "db", *l.db, "alerts_from", size)
		}
		store, err := monitor.OpenStore(ctx, *l.db, nil)
		if errors.Is(err, monitor.ErrNoDatabase) {
			return cli.Usage(err)
		}
		if err != nil {
			return err
		}
		defer store.Close()
		m, err := monitor.New(ctx, monitor.Config{
			Store: store, Source: o.reader, Policy: o.policy, Origin: o.origin, Subscriptions: subs, Channels: channels,
			Poll: *poll, StaleAfter: *stale, GroupWindow: *window, EvidenceDir: *evidence, PageURL: strings.TrimRight(*pageURL, "/"), Logger: logger,
		})
		if errors.Is(err, monitor.ErrNotBorn) {
			return cli.Usage(err)
		}
		if err != nil {
			return err
		}
		if why := m.Standing(); why != "" {
			if *accept {
				logger.Warn("a new baseline was accepted: the history before it is forgotten", "was", why)
				if err := m.AcceptNewBaseline(ctx); err != nil {
					return err
				}
			} else {
				logger.Error("the log contradicted itself when it was last read; the monitor waits until it shows its history again", "why", why)
			}
		}
		return run(ctx, logger, m, load, *httpAddr, web.Config{Monitor: m, Policy: o.policy, LogURL: strings.TrimRight(*l.url, "/"), StaleAfter: *stale, Logger: logger})
	}
	return cmd
}

// run wires the monitor, the page and SIGHUP together until ctx ends.
func run(ctx context.Context, logger *slog.Logger, m *monitor.Monitor, load func() (*monitor.Subscriptions, error), addr string, page web.Config) error {
	g, ctx := errgroup.WithContext(ctx)
	if addr != "" {
		h, err := web.New(page)
		if err != nil {
			return err
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		srv := &http.Server{
			Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
			IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
		}
		logger.Info("serving", "origin", m.Origin(), "page", "http://"+ln.Addr().String()+"/")
		g.Go(func() error {
			if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			down, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return srv.Shutdown(down)
		})
	} else {
		logger.Info("watching", "origin", m.Origin())
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hup:
			}
			s, err := load()
			if err != nil {
				logger.Error("the subscriptions file was not loaded; what was loaded before stays", "err", err)
				continue
			}
			if err := m.SetSubscriptions(ctx, s); err != nil {
				return err
			}
			logger.Info("subscriptions loaded", "subscriptions", len(s.List), "projects", s.Projects())
		}
	})
	g.Go(func() error { return m.Run(ctx) })
	return g.Wait()
}
