package main

// gateway: stands in front of a package index and logs what it accepts.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"text/tabwriter"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/internal/telemetry"
	"github.com/portbook/portbook/registry/gateway"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
)

// gatewayFlags are the settings of gateway serve, as given.
type gatewayFlags struct {
	registry, index, upload    string
	fileHosts                  []string
	readUser, readPasswordFile string
	dir, listen                string
	log, tokenFile             string
	policy, onOutage, unlogged string
	accounts                   string
	maxSize                    int64
	maxUploads                 int
	proofWait                  time.Duration
}

func gatewayCmd() *cobra.Command {
	cmd := gatewayServeCmd()
	cmd.Use = "gateway"
	cmd.Short = "Stand in front of a package index and log what it accepts"
	serve := gatewayServeCmd()
	serve.Use = "serve"
	cmd.AddCommand(serve, gatewayPendingCmd())
	return cmd
}

func gatewayServeCmd() *cobra.Command {
	var f gatewayFlags
	cmd := &cobra.Command{
		Short: "Serve uploads and pages until SIGTERM",
		Long: `The gateway takes uploads (/legacy/, as twine, flit and poetry send them), hands
them to the index behind it with the uploader's own credentials, and logs what
the index accepts. The index's pages (/simple/) show a file once it is proven;
its proof stands beside it as <file>.tlog-proof. What the index refuses is not
logged.

It speaks HTTP: put a web server with TLS in front of it, and let nobody reach
the index past it. docs/gateway.md is the operator's page.`,
		Example: `  portbook gateway --registry pkg.example.org --index http://10.0.0.2/simple/ \
    --log https://log.example.org --token-file token --policy policy --dir /var/lib/portbook-gateway`,
		Args: cobra.NoArgs,
	}
	fl := cmd.Flags()
	fl.StringVar(&f.registry, "registry", "", "the index's `NAME` in the log: what people put after https:// in their configuration, without /simple")
	fl.StringVar(&f.index, "index", "", "`URL` of the simple pages of the index behind: http://host/simple/")
	fl.StringVar(&f.upload, "upload", "", "`URL` of its upload API (default: legacy/ beside the simple pages)")
	fl.StringArrayVar(&f.fileHosts, "file-host", nil, "further `HOST[:PORT]` on which the index keeps its files; repeatable")
	fl.StringVar(&f.readUser, "read-user", "", "the gateway's own `ACCOUNT` on a private index, to ask what became of an upload")
	fl.StringVar(&f.readPasswordFile, "read-password-file", "", "`FILE` with that account's password")
	fl.StringVar(&f.dir, "dir", "", "`DIRECTORY` of the outbox and the spool; made if it is not there")
	fl.StringVar(&f.listen, "listen", "127.0.0.1:7480", "`ADDRESS` to listen on")
	fl.StringVar(&f.log, "log", "", "`URL` of the log's submission API: https://host[:port], or http:// on this machine")
	fl.StringVar(&f.tokenFile, "token-file", "", "`FILE` with the token that the log's operator gave for this registry")
	fl.StringVar(&f.policy, "policy", "", "policy `FILE` under which a proof must verify before a file is listed")
	fl.StringVar(&f.onOutage, "on-log-outage", "hold", "`hold|refuse`: while the log is out, hold uploads off the pages until they are proven, or refuse them")
	fl.StringVar(&f.unlogged, "unlogged", "pass", "`pass|hide`: files that did not come through this gateway are passed on without a proof, or hidden")
	fl.StringVar(&f.accounts, "accounts", "", "YAML `FILE` that says which account is which publisher; see docs/gateway.md")
	fl.Int64Var(&f.maxSize, "max-size", gateway.DefaultMaxSize, "largest file in `BYTES`")
	fl.IntVar(&f.maxUploads, "max-uploads", 32, "`NUMBER` of uploads at a time; more are asked to come again")
	fl.DurationVar(&f.proofWait, "proof-wait", 15*time.Second, "how long an uploader waits for the proof before hearing that the file is held")
	cli.Config(cmd)
	cli.Require(cmd, "registry", "index", "dir", "log", "policy")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return serveGateway(cmd, f) }
	return cmd
}

func serveGateway(cmd *cobra.Command, f gatewayFlags) error {
	ctx := cmd.Context()
	cfg, err := f.config()
	if err != nil {
		return cli.Usage(err)
	}
	token, err := readSecret(f.tokenFile)
	if err != nil {
		return cli.Usage(err)
	}
	log, err := submit.Dial(f.log, token)
	if err != nil {
		return cli.Usage(err)
	}
	defer log.Close()
	cfg.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	cfg.Log = log
	if err := cfg.Check(); err != nil {
		return cli.Usage(err)
	}
	g, err := gateway.New(ctx, *cfg)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", f.listen)
	if err != nil {
		return errors.Join(err, g.Close())
	}
	stopTracing, err := telemetry.Setup(ctx, "portbook-gateway", cfg.Logger)
	if err != nil {
		return cli.Usage(errors.Join(err, l.Close(), g.Close()))
	}
	defer stopTracing()
	fmt.Fprintf(cmd.OutOrStdout(), "gateway of %s on http://%s/ (pages: /simple/, uploads: /legacy/)\n", f.registry, l.Addr())
	return errors.Join(runGateway(ctx, g, l, cfg.Logger), g.Close())
}

// runGateway serves until ctx ends, then lets the requests in progress finish.
func runGateway(ctx context.Context, g *gateway.Gateway, l net.Listener, log *slog.Logger) error {
	srv := &http.Server{
		Handler: otelhttp.NewHandler(g, "gateway"), ReadHeaderTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() { ran <- g.Run(ctx) }()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		cancel()
		return errors.Join(err, <-ran)
	case <-ctx.Done():
	}
	late, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	if err := srv.Shutdown(late); err != nil {
		// What is cut off here is found out about at the next start.
		log.Warn("stopping with uploads in progress", "err", err)
		srv.Close()
	}
	return <-ran
}

// config turns the flags into what the gateway wants, all but the log.
func (f *gatewayFlags) config() (*gateway.Config, error) {
	cfg := &gateway.Config{
		Registry: f.registry, Dir: f.dir, FileHosts: f.fileHosts, ReadUser: f.readUser,
		MaxSize: f.maxSize, MaxUploads: f.maxUploads, ProofWait: f.proofWait,
	}
	var err error
	if cfg.Index, err = url.Parse(f.index); err != nil {
		return nil, fmt.Errorf("--index: %w", err)
	}
	if cfg.Upload = cfg.Index.JoinPath("../legacy/"); f.upload != "" {
		if cfg.Upload, err = url.Parse(f.upload); err != nil {
			return nil, fmt.Errorf("--upload: %w", err)
		}
	}
	switch f.onOutage {
	case "hold":
	case "refuse":
		cfg.Refuse = true
	default:
		return nil, fmt.Errorf("--on-log-outage is hold or refuse, not %q", f.onOutage)
	}
	switch f.unlogged {
	case "pass":
	case "hide":
		cfg.HideUnlogged = true
	default:
		return nil, fmt.Errorf("--unlogged is pass or hide, not %q", f.unlogged)
	}
	if f.maxSize <= 0 || f.maxUploads <= 0 || f.proofWait <= 0 {
		return nil, errors.New("--max-size, --max-uploads and --proof-wait must be more than 0")
	}
	if cfg.ReadPassword, err = readSecret(f.readPasswordFile); err != nil {
		return nil, err
	}
	if f.accounts != "" {
		if cfg.Accounts, err = gateway.ReadAccounts(f.accounts); err != nil {
			return nil, err
		}
	}
	text, err := os.ReadFile(f.policy)
	if err != nil {
		return nil, fmt.Errorf("--policy: %w", err)
	}
	if cfg.Policy, err = c2sp.ParsePolicy(text); err != nil {
		return nil, fmt.Errorf("--policy %s: %w", f.policy, err)
	}
	return cfg, nil
}

// readSecret is cli.ReadSecret; no file is no secret.
func readSecret(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	return cli.ReadSecret(file)
}

func gatewayPendingCmd() *cobra.Command {
	var dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "pending --dir DIRECTORY",
		Short: "List uploads that are not on the pages yet, and why",
		Long: `pending lists the uploads that a gateway has not finished with:

  received, forwarding   handed to the index, whose answer is not known (yet)
  accepted, submitted    accepted by the index, waiting for the log: held
  conflict               the log holds the name with other bytes: the index let
                         a file be overwritten. Withheld until you put the first
                         bytes back and upload them again

It reads the outbox beside a running gateway, or without one. Exit code 1 if
there is a conflict, else 0.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`DIRECTORY` of the gateway")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of objects with project, file, sha256, state, since, tries, next_try, last_error, first_index")
	cli.Require(cmd, "dir")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		files, err := gateway.Pending(cmd.Context(), dir)
		if err != nil {
			return err
		}
		if err := printPending(cmd.OutOrStdout(), files, asJSON); err != nil {
			return err
		}
		for _, f := range files {
			if f.State == gateway.Conflict {
				return cli.Exit(cli.Refused, nil)
			}
		}
		return nil
	}
	return cmd
}

func printPending(w io.Writer, files []gateway.PendingFile, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(files)
	}
	if len(files) == 0 {
		_, err := fmt.Fprintln(w, "nothing pending: every accepted upload is proven")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "STATE\tSINCE\tPROJECT\tFILE\tTRIES\tLAST ERROR")
	for _, f := range files {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\n", f.State, f.Since, f.Project, f.File, f.Tries, f.LastError)
	}
	return t.Flush()
}
