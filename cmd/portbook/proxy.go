package main

// proxy: a verifying proxy for a package index, as a service. What it shares
// with run (which index, which policy) is here too.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/registry/proxy"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// verifyingFlags say before which index the proxy stands and whom it believes.
type verifyingFlags struct {
	logToken                            string // file
	index, registry, policy, state, log string
	fileHosts                           []string
	observed                            bool
}

func (f *verifyingFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.index, "index", "https://pypi.org/simple/", "`URL` of the index's simple API; user:password@ is sent to that host only")
	fs.StringVar(&f.registry, "registry", "", "`NAME` under which the index's files are logged (default: the index's host and path without /simple)")
	fs.StringVar(&f.policy, "policy", "", "`FILE` that says which logs and witnesses to believe (default: portbook/policy in your configuration directory)")
	fs.StringVar(&f.state, "state", "", "`FILE` that remembers each log's newest state, or none (default: portbook/state in your state directory)")
	fs.StringVar(&f.log, "log", "", "`URL` of the log, asked for proofs that are not beside the file and for its newest state, or none (default: the URL in the policy)")
	fs.StringVar(&f.logToken, "log-token-file", "", cli.LogTokenUsage)
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "index-url" { // what pip calls it
			name = "index"
		}
		return pflag.NormalizedName(name)
	})
	fs.StringSliceVar(&f.fileHosts, "file-host", nil, "`HOST[:PORT]` with a private address that the index keeps files on; may be repeated")
	observedFlag(fs, &f.observed)
}

// observedFlag is how a person says that a follower's word is enough.
func observedFlag(fs *pflag.FlagSet, observed *bool) {
	fs.BoolVar(observed, "accept-observed", false, "also believe entries of a follower that saw the index serve the file; else only the index's own")
}

// config reads what the flags name.
func (f *verifyingFlags) config(logger *slog.Logger) (proxy.Config, error) {
	cfg := proxy.Config{Index: f.index, Registry: f.registry, FileHosts: f.fileHosts, AcceptObserved: f.observed, Logger: logger}
	u, err := url.Parse(f.index)
	if err != nil || u.Host == "" {
		return cfg, cli.Usagef("--index %q is not a URL", f.index)
	}
	if cfg.Registry == "" {
		v := *u
		v.User = nil
		v.Path = strings.TrimSuffix(strings.TrimSuffix(v.Path, "/"), "/simple")
		if cfg.Registry, err = entry.RegistryFromURL(v.String()); err != nil {
			return cfg, cli.Usagef("--registry is needed: %w", err)
		}
	}
	if cfg.Registry == "pypi.org" {
		cfg.FileHosts = append(cfg.FileHosts, "files.pythonhosted.org")
	}
	file := f.policy
	if file == "" {
		dir, err := os.UserConfigDir()
		if err != nil {
			return cfg, cli.Usagef("--policy is needed: %w", err)
		}
		file = filepath.Join(dir, "portbook", "policy")
		if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
			return cfg, cli.Usagef("--policy FILE is needed: it says which logs and witnesses to believe (there is none at %s)", file)
		}
	}
	if cfg.Policy, err = client.ReadPolicy(file); err != nil {
		return cfg, cli.Usage(err)
	}
	switch f.log {
	case "none":
	case "":
		for _, l := range cfg.Policy.Logs {
			if cfg.Log == "" {
				cfg.Log = l.URL
			} else if l.URL != "" && l.URL != cfg.Log {
				return cfg, cli.Usagef("the policy names several logs: say which one to ask with --log URL, or --log none")
			}
		}
	default:
		cfg.Log = f.log
	}
	if cfg.Log != "" {
		if cfg.LogToken, err = cli.LogToken(f.logToken); err != nil {
			return cfg, err
		}
	}
	if f.state != "none" {
		file := f.state
		if file == "" {
			if file, err = defaultState(); err != nil {
				return cfg, cli.Usagef("--state FILE or --state none is needed: %w", err)
			}
		}
		if cfg.State, err = client.OpenState(file); err != nil {
			return cfg, cli.Exit(cli.CannotCheck, err)
		}
	}
	return cfg, nil
}

// defaultState is portbook/state in the XDG state directory.
func defaultState() (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(dir, "portbook", "state"), nil
}

func proxyCmd() *cobra.Command {
	var f verifyingFlags
	var listen, cert, key string
	var hosts []string
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Serve a package index, verified: nothing unproven passes",
		Long: `proxy stands between installers and a Python package index. It passes pages on
with the files' addresses changed to its own, and each file only with a valid
proof that it was logged: beside the file (<file>.tlog-proof), else from the log.
A refused file stays listed and is answered with 403; the reason is in the
status line, where pip shows it.

Make it the only index: an extra index is mixed in unverified.

    portbook proxy --policy policy --listen 127.0.0.1:8088 &
    pip install --no-cache-dir --index-url http://127.0.0.1:8088/simple/ PACKAGE

For one command, "portbook run" does all of that. The proxy serves until SIGTERM.
It asks nobody for a password: who can reach it can read what the index gives
to the user in --index.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			cfg, err := f.config(logger)
			if err != nil {
				return err
			}
			cfg.Hosts = hosts
			p, err := proxy.New(cfg)
			if err != nil {
				return cli.Usage(err)
			}
			if (cert == "") != (key == "") {
				return cli.Usagef("--tls-cert and --tls-key go together")
			}
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return cli.Exit(cli.CannotCheck, err)
			}
			return serveProxy(cmd, p, l, cfg, cert, key)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8088", "`ADDRESS` to serve on")
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "`NAME` that a web server in front passes on, when listening on loopback; may be repeated")
	cmd.Flags().StringVar(&cert, "tls-cert", "", "certificate `FILE` (PEM), to serve https")
	cmd.Flags().StringVar(&key, "tls-key", "", "private key `FILE` (PEM) of the certificate")
	cli.Config(cmd)
	return cmd
}

func serveProxy(cmd *cobra.Command, p *proxy.Proxy, l net.Listener, cfg proxy.Config, cert, key string) error {
	ctx := cmd.Context()
	srv := p.Server()
	scheme := "http"
	serve := func() error { return srv.Serve(l) }
	if cert != "" {
		scheme = "https"
		serve = func() error { return srv.ServeTLS(l, cert, key) }
	}
	done := make(chan error, 1)
	go func() { done <- serve() }()
	go p.Run(ctx)
	fmt.Fprintf(cmd.OutOrStdout(), "portbook proxy: %s://%s/simple/ (registry %s)\n", scheme, l.Addr(), cfg.Registry)
	select {
	case err := <-done:
		return cli.Exit(cli.CannotCheck, err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		srv.Close()
	}
	if err := <-done; err != nil && !errors.Is(err, http.ErrServerClosed) {
		return cli.Exit(cli.CannotCheck, err)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "portbook proxy:", countsOf(p.Report()))
	return nil
}

// countsOf is the sentence every use of the proxy ends with.
func countsOf(r proxy.Report) string {
	return fmt.Sprintf("%d verified, %d refused, %d could not be checked", r.Verified, r.Refused, r.CannotCheck)
}
