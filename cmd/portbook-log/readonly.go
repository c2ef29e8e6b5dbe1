package main

// serve --read-only: serve what another process writes.

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/logserver"
	"github.com/spf13/cobra"
)

// readOnlyFlags are those of serve --read-only.
type readOnlyFlags struct {
	on     *bool
	state  *string
	vkeys  *[]string
	tokens *string
}

func addReadOnlyFlags(cmd *cobra.Command) readOnlyFlags {
	f := cmd.Flags()
	return readOnlyFlags{
		on:     f.Bool("read-only", false, "serve the log, mirror or bucket (--dir s3://BUCKET/PREFIX?endpoint=https://HOST&region=REGION) that another process writes; no key, no anchor, a --policy only to judge the quorum"),
		state:  f.String("state", "", "with --read-only: `DIRECTORY` of this server's own, for its lookup index and the newest checkpoint it has seen"),
		vkeys:  f.StringArray("vkey", nil, "with --read-only: `KEY` of the log (may be repeated); default: those in the directory's log.json"),
		tokens: f.String("tokens", "", "with --read-only and --private: the log's credentials `FILE`; default: tokens.json in the directory"),
	}
}

// given refuses flags of one mode in the other.
func (r readOnlyFlags) given(cmd *cobra.Command) (bool, error) {
	not := []string{"state", "vkey", "tokens"}
	if *r.on {
		not = []string{"key", "anchor-beside", "publish-interval", "republish", "exit-on-guard", "max-in-flight", "max-rate", "min-free"}
	}
	for _, name := range not {
		if cmd.Flags().Changed(name) {
			if *r.on {
				return false, cli.Usagef("--%s: a server that only reads has no use for it", name)
			}
			return false, cli.Usagef("--%s goes with --read-only", name)
		}
	}
	if *r.on && *r.state == "" {
		return false, cli.Usagef("--read-only needs --state, a directory of its own")
	}
	if !*r.on && !cmd.Flags().Changed("policy") {
		return false, cli.Usagef("--policy is required (see %s --help)", cmd.CommandPath())
	}
	return *r.on, nil
}

// wiring is what serving has in both modes.
type wiring struct {
	http, grpc, admin, cert, certKey, clientCA *string
	plaintext, private                         *bool
	maxReads                                   *int
	maxWait                                    *time.Duration
}

func (r readOnlyFlags) serve(cmd *cobra.Command, dir, policy string, w wiring, logger *slog.Logger) error {
	if *w.maxReads < 1 {
		return cli.Usagef("--max-reads: want 1 or more")
	}
	cfg := logserver.ReadOnlyConfig{Dir: dir, State: *r.state, Tokens: *r.tokens, Private: *w.private, MaxReads: *w.maxReads, MaxWait: *w.maxWait, Logger: logger}
	for _, v := range *r.vkeys {
		k, err := c2sp.ParseVKey(v)
		if err != nil {
			return cli.Usagef("--vkey: %w", err)
		}
		cfg.VKeys = append(cfg.VKeys, k)
	}
	if policy != "" {
		p, err := client.ReadPolicy(policy)
		if err != nil {
			return cli.Usage(err)
		}
		cfg.Policy = p
	}
	if strings.Contains(dir, "://") {
		b, err := openBucket("dir", dir)
		if err != nil {
			return err
		}
		cfg.Dir, cfg.Files, cfg.Every = "", b, time.Second
	}
	tlsConfig, err := tlsFiles(logserver.TLSFiles{Cert: *w.cert, Key: *w.certKey, ClientCA: *w.clientCA}, logger)
	if err != nil {
		return cli.Usage(err)
	}
	if tlsConfig == nil && !*w.plaintext {
		for _, a := range []string{*w.http, *w.grpc} {
			if !isLoopback(a) {
				return cli.Usagef("%s is not a loopback address: give --tls-cert and --tls-key, or --plaintext behind a proxy that adds TLS", a)
			}
		}
	}
	log, err := logserver.OpenReadOnly(cmd.Context(), cfg)
	if err != nil {
		return notOpened(*r.state, err)
	}
	httpLis, err := listen("http", *w.http)
	if err != nil {
		return errors.Join(err, log.Close())
	}
	grpcLis, err := listen("grpc", *w.grpc)
	if err != nil {
		return errors.Join(err, httpLis.Close(), log.Close())
	}
	if *w.admin != "" {
		admin, err := serveAdmin(*w.admin, log, logger)
		if err != nil {
			return errors.Join(err, httpLis.Close(), grpcLis.Close(), log.Close())
		}
		defer admin.Close()
	}
	logger.Info("serving, reads only", "origin", log.Origin(), "http", httpLis.Addr(), "grpc", grpcLis.Addr(), "size", log.Published().Size)
	defer context.AfterFunc(cmd.Context(), func() { logger.Info("stopping: what is under way is answered first") })()
	return log.Serve(cmd.Context(), grpcLis, httpLis, tlsConfig)
}
