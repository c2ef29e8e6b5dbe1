package main

// serve: flags, open, wire, run, shut.

import (
	"context"
	"crypto/tls"
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

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/internal/telemetry"
	"github.com/portbook/portbook/logserver"
	"github.com/spf13/cobra"
)

func serveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve --dir DIRECTORY --policy FILE",
		Short: "Serve a log: submissions over gRPC and REST, tiles over HTTP",
		Long: `serve takes submissions and publishes checkpoints that the policy's quorum of
witnesses has cosigned. Below the quorum nothing is published: submissions wait,
then fail as unavailable, and the same submission later gets the same index.

If the log's storage is behind what its anchor or any witness shows, serve
signs nothing and goes on serving reads; /readyz says why.

With --read-only it serves what another process writes: a log's directory, a
mirror made by export, or a bucket. Any number of them run beside the writer,
each with a --state directory of its own. A checkpoint that the log did not
sign, or that goes back, is not served; /readyz says so. With --policy (an accept
policy, as clients have) neither is one that lacks its quorum. Without, the
cosignatures are not looked at: what the log's key alone has signed is served, and
its readers must judge the quorum, as clients and monitors do.

` + sharedHelp + `
Any number of servers run so, each with a directory of its own that may be lost.
One that has the key stands for election: one at a time publishes.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	f := cmd.Flags()
	policy := f.String("policy", "", "publish policy `FILE` (c2sp.org/tlog-policy): the witnesses, their URLs and the quorum; with --read-only an accept policy, and optional")
	keys := f.StringArray("key", nil, "`KEY` of the log, once for each that signs: see portbook-log key --help; default: log.key in the directory")
	secrets := secretFlags(cmd)
	httpAddr := f.String("http", "127.0.0.1:8080", "`ADDRESS` for tiles, checkpoint, REST and health")
	grpcAddr := f.String("grpc", "127.0.0.1:8081", "`ADDRESS` for gRPC submissions")
	cert := f.String("tls-cert", "", "certificate `FILE` (PEM), for both addresses; read again when it is renewed")
	certKey := f.String("tls-key", "", "`FILE` of the certificate's private key")
	clientCA := f.String("client-ca", "", "`FILE` with the authorities of client certificates (PEM), for credentials made by token create --client-cert or --client-cert-ca")
	plaintext := f.Bool("plaintext", false, "allow addresses other than loopback without TLS: only behind a proxy that adds it, since tokens pass")
	beside := f.Bool("anchor-beside", false, "allow the anchor on the log's own file system: then a restored backup can make the log sign a second history, which only the witnesses would refuse")
	interval := f.Duration("publish-interval", 100*time.Millisecond, "least time between two checkpoints")
	republish := f.Duration("republish", 10*time.Minute, "have an unchanged tree cosigned anew after this time, so that its freshness can be judged")
	maxWait := f.Duration("max-wait", 30*time.Second, "longest that one submission waits for its quorum")
	maxInFlight := f.Int("max-in-flight", 32768, "most submissions at once; more are refused with a hint to retry, and one token has at most half of them")
	maxRate := f.Int("max-rate", 100_000, "most submissions a second, of all tokens, at this server: a stream is slowed down, a single call refused with a hint to retry")
	maxReads := f.Int("max-reads", 64, "most lookups and proofs at once over the API, which need no token; tiles are not counted")
	minFree := f.Float64("min-free", 5, "`PERCENT` of the disk's space and inodes, the log's and the anchor's, below which no submissions are taken; reads go on, and it goes on by itself when there is room. 0: none")
	private := f.Bool("private", false, "a private log: tiles, checkpoint, proofs and lookups only with a token made by token create --read; /healthz and /readyz stay open. The log's log.json remembers it")
	adminAddr := f.String("admin", "", "private `ADDRESS` for Prometheus metrics (/metrics) and profiles (/debug/pprof); default: none")
	shared := sharedFlagsOf(cmd)
	frontendOnly := f.Bool("frontend-only", false, "with --storage trillian: have no key, never publish")
	exitOnGuard := f.Bool("exit-on-guard", false, "end the process (exit code 3) when a guard fails, instead of going on to serve reads")
	readOnly := addReadOnlyFlags(cmd)
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if on, err := readOnly.given(cmd); err != nil {
			return err
		} else if on {
			return readOnly.serve(cmd, *dir, *policy, wiring{httpAddr, grpcAddr, adminAddr, cert, certKey, clientCA, plaintext, private, maxReads, maxWait},
				slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
		}
		if *maxInFlight < 1 || *maxRate < 1 || *maxReads < 1 {
			return cli.Usagef("--max-in-flight, --max-rate and --max-reads: want 1 or more")
		}
		if *minFree < 0 || *minFree >= 100 {
			return cli.Usagef("--min-free: want a percentage, 0 to 99")
		}
		logger := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		isShared, err := shared.asked(true)
		if err != nil {
			return err
		}
		if *frontendOnly && (!isShared || len(*keys) > 0) {
			return cli.Usagef("--frontend-only: goes with --storage trillian, and without --key")
		}
		var id logserver.Identity
		if isShared {
			id, err = logserver.ReadSharedIdentity(cmd.Context(), *shared.postgres)
		} else {
			id, err = logserver.ReadIdentity(*dir)
		}
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		key, err := c2sp.ParseVKey(id.VKey)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		cfg := logserver.Config{Dir: *dir, Logger: logger, AnchorBeside: *beside,
			Interval: *interval, Republish: *republish, MaxWait: *maxWait, MaxInFlight: *maxInFlight, MaxRate: *maxRate, MaxReads: *maxReads, Private: *private, MinFree: *minFree / 100}
		if !*frontendOnly {
			signers, closeKeys, err := secrets.openKeys(cmd, *dir, id.Origin, *keys)
			if err != nil {
				if _, next, eerr := logserver.Ended(*dir); eerr == nil && next != nil && !isShared {
					err = fmt.Errorf("%w; this log has ended and signs nothing more: without its key, serve it with --read-only", err)
				}
				return err
			}
			defer closeKeys()
			key, cfg.Signer, cfg.Also = signers[0].Key(), signers[0], signers[1:]
		}
		p, err := readPolicy(*policy, key, logger)
		if err != nil {
			return cli.Usage(err)
		}
		cfg.Policy = p
		tlsConfig, err := tlsFiles(logserver.TLSFiles{Cert: *cert, Key: *certKey, ClientCA: *clientCA}, logger)
		if err != nil {
			return cli.Usage(err)
		}
		if tlsConfig == nil && !*plaintext {
			for _, a := range []string{*httpAddr, *grpcAddr} {
				if !isLoopback(a) {
					return cli.Usagef("%s is not a loopback address: give --tls-cert and --tls-key, or --plaintext behind a proxy that adds TLS", a)
				}
			}
		}
		// The log before its addresses: a second server is told who has the log,
		// not that a port is taken.
		if isShared {
			if cfg.Shared, err = shared.open(cmd.Context(), logger); err != nil {
				return err
			}
		}
		log, err := logserver.Open(cmd.Context(), cfg)
		if err != nil {
			return notOpened(*dir, err)
		}
		httpLis, err := listen("http", *httpAddr)
		if err != nil {
			return errors.Join(err, log.Close())
		}
		grpcLis, err := listen("grpc", *grpcAddr)
		if err != nil {
			return errors.Join(err, httpLis.Close(), log.Close())
		}
		if *adminAddr != "" {
			admin, err := serveAdmin(*adminAddr, log, logger)
			if err != nil {
				return errors.Join(err, httpLis.Close(), grpcLis.Close(), log.Close())
			}
			defer admin.Close()
		}
		stopTracing, err := telemetry.Setup(cmd.Context(), "portbook-log", logger)
		if err != nil {
			return cli.Usage(errors.Join(err, httpLis.Close(), grpcLis.Close(), log.Close()))
		}
		defer stopTracing()
		logger.Info("serving", "origin", log.Origin(), "http", httpLis.Addr(), "grpc", grpcLis.Addr())
		ctx, stop := context.WithCancelCause(cmd.Context())
		defer stop(nil)
		defer onHangup(func() {
			p, err := readPolicy(*policy, key, logger)
			if err == nil {
				err = log.SetPolicy(p)
			}
			err = errors.Join(err, log.Tokens.Reload())
			if err != nil {
				logger.Error("SIGHUP: not everything was read again; what could not be read stays as it was", "err", err)
				return
			}
			logger.Info("SIGHUP: policy and credentials are read again")
		})()
		if *exitOnGuard {
			go func() {
				select {
				case <-log.Guard():
					stop(log.Status().Reason)
				case <-ctx.Done():
				}
			}()
		}
		defer context.AfterFunc(ctx, func() { logger.Info("stopping: what is under way is answered first") })()
		err = log.Serve(ctx, grpcLis, httpLis, tlsConfig)
		if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
			err = fmt.Errorf("stopped by --exit-on-guard: %w", cause)
		}
		if err == nil {
			logger.Info("stopped", "origin", log.Origin(), "size", log.Published().Size)
		}
		return err
	}
	return cmd
}

// notOpened gives the error of a log that does not open its exit code: what a
// disk cannot do now is no refusal.
func notOpened(dir string, err error) error {
	var locked *logserver.LockedError
	var errno syscall.Errno
	switch {
	case errors.As(err, &locked):
		return cli.Exit(cli.Refused, fmt.Errorf("%s: another server has it: %w", dir, err))
	case errors.Is(err, logserver.ErrStorage), errors.As(err, &errno) && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return cli.Exit(cli.Refused, err)
}

// listen listens on the address that a flag gives.
func listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	var bad *net.AddrError
	var host *net.DNSError
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("--%s %s: another program listens there: stop it, or give another address", flag, address)
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.As(err, &bad), errors.As(err, &host):
		return nil, cli.Usagef("--%s %s: not an address of this machine: %w", flag, address, err)
	case errors.Is(err, syscall.EACCES):
		return nil, cli.Usagef("--%s %s: this user may not listen there: take a port above 1023, or let a web server in front do it", flag, address)
	case err != nil:
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return l, nil
}

// readPolicy reads a publish policy, which need not name its log.
func readPolicy(path string, key *c2sp.Key, logger *slog.Logger) (*c2sp.Policy, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	p, err := c2sp.ParsePolicy(raw)
	if err != nil {
		return nil, fmt.Errorf("policy %s: %w", path, err)
	}
	if len(p.Logs) == 0 {
		p.Logs = []c2sp.PolicyLog{{Key: key}}
	}
	for _, line := range p.Explain() {
		level := slog.LevelInfo
		if strings.HasPrefix(line, "Warning: ") {
			level = slog.LevelWarn
		}
		logger.Log(context.Background(), level, "publish policy: "+line)
	}
	return p, nil
}

// serveAdmin serves metrics and profiles on a loopback or private address.
func serveAdmin(address string, log *logserver.Log, logger *slog.Logger) (*http.Server, error) {
	if !isPrivate(address) {
		return nil, cli.Usagef("--admin %s: profiles show the process's memory: want a loopback or private IP address", address)
	}
	l, err := listen("admin", address)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: log.Admin(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			logger.Error("metrics are not served any more", "err", err)
		}
	}()
	logger.Info("metrics", "url", "http://"+l.Addr().String()+"/metrics")
	return server, nil
}

// onHangup runs do at each SIGHUP until stop is called.
func onHangup(do func()) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		for range signals {
			do()
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
	}
}

// tlsFiles is the TLS that the flags ask for; nil for none.
func tlsFiles(f logserver.TLSFiles, logger *slog.Logger) (*tls.Config, error) {
	switch {
	case f == logserver.TLSFiles{}:
		return nil, nil
	case f.Cert == "" || f.Key == "":
		return nil, errors.New("--tls-cert and --tls-key go together, and --client-ca needs both")
	}
	return f.Config(logger)
}

// isPrivate reports whether an address to listen on is reached from this host
// or a private network alone.
func isPrivate(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsPrivate())
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
