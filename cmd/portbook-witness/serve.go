package main

// serve: the HTTP side.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/portbook/portbook/internal/cli"
	"github.com/portbook/portbook/internal/telemetry"
	"github.com/portbook/portbook/witness"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
)

// shutdownTimeout is how long requests in progress may take once the process
// was asked to stop.
const shutdownTimeout = 10 * time.Second

func serveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve --dir DIRECTORY",
		Short: "Answer the logs, until SIGTERM",
		Long: `serve answers logs over HTTP: POST /add-checkpoint and GET /<origin hash>/checkpoint
(c2sp.org/tlog-witness), and GET /healthz for your own monitoring.

Give it a certificate (--tls-cert, --tls-key; it is read again when it is renewed,
and on SIGHUP), or put a web server with TLS in front of it. It journals to standard error; a line
with FORK means that a log has signed two histories: keep it, and tell people.

It refuses to start without the database that init made with its keys, or with
an older copy of it than the mark remembers. It never makes a new one.

Without a mark on another file system it can ask other witnesses of the same logs
instead (--peer, better several): each log waits until all of them were heard, and
is cosigned again once it is proven to contain what they and this witness have
cosigned. They know less than a mark: see docs/witness.md.`,
		Args: cobra.NoArgs,
	}
	dir := dirFlag(cmd)
	mark := markFlag(cmd)
	beside := cmd.Flags().Bool("mark-beside", false, "allow the mark on the directory's own file system, where a restored snapshot brings both back")
	peerLines := cmd.Flags().StringArray("peer", nil, "`'VKEY URL'` of another witness of the same logs, as in its policy line; may be given several times")
	listen := cmd.Flags().String("listen", "127.0.0.1:7380", "`ADDRESS` to listen on")
	cert := cmd.Flags().String("tls-cert", "", "certificate `FILE` (PEM) to serve https with; read again when it is renewed")
	key := cmd.Flags().String("tls-key", "", "its private key: `FILE` (PEM), mode 0600, or credential:NAME (systemd LoadCredential=)")
	perLog := cmd.Flags().Float64("per-log", 200, "most new checkpoints a second of one log; more are asked to come again")
	perClient := cmd.Flags().Float64("per-client", 1000, "most requests a second of one address; behind a web server everybody has its address, which should have limits of its own")
	bastion := cmd.Flags().String("bastion", "", "`HOST:PORT` of a bastion (c2sp.org/https-bastion) through which logs reach the witness as well; see bastion-key")
	bastionCA := cmd.Flags().String("bastion-ca", "", "`FILE` of the certificates that vouch for the bastion (PEM); default: the system's")
	admin := cmd.Flags().String("admin", "", "private `ADDRESS` for Prometheus metrics (/metrics); default: none")
	cli.Config(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(40) // a witness is to fit beside other things: 64 MiB with 10,000 logs (cmd/bench, witness-rss-10000-logs)
		}
		if !(*perLog > 0 && *perLog <= 1e6 && *perClient > 0 && *perClient <= 1e6) { // so that NaN is refused
			return cli.Usagef("--per-log and --per-client: want more than 0, and at most 1000000")
		}
		behind, err := bastionOf(*dir, *bastion, *bastionCA)
		if err != nil {
			return cli.Usage(err)
		}
		var peers []witness.Peer
		for _, line := range *peerLines {
			p, err := witness.ParsePeer(line)
			if err != nil {
				return cli.Usagef("--peer: %w", err)
			}
			peers = append(peers, p)
		}
		journal := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
		pair, err := openCertificate(*cert, *key, journal)
		if err != nil {
			return err
		}
		d, err := witness.OpenDir(*dir)
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		defer d.Close()
		err = useMark(cmd.Context(), d.Store, markPath(*mark, *dir), *beside || len(peers) > 0)
		if errors.Is(err, fs.ErrNotExist) && *mark == "" && len(peers) > 0 && !d.Store.Shared() {
			err = nil // its peers alone vouch for it
		}
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		w, err := witness.New(witness.Config{Signer: d.Signer, MLDSA: d.MLDSA, Store: d.Store, Logger: journal, Peers: peers,
			PerLog: witness.Rate{PerSecond: *perLog, Burst: int(5**perLog) + 1}, PerClient: witness.Rate{PerSecond: *perClient, Burst: int(5**perClient) + 1}})
		if err != nil {
			return cli.Exit(cli.Refused, err)
		}
		logs, err := d.Store.CountLogs(cmd.Context())
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", *listen)
		if err != nil {
			return err
		}
		if *admin != "" {
			a, err := net.Listen("tcp", *admin)
			if err != nil {
				return errors.Join(err, l.Close())
			}
			mux := http.NewServeMux()
			mux.Handle("GET /metrics", w.Metrics())
			srv := witness.NewServer(mux)
			defer srv.Close()
			go srv.Serve(a)
			journal.Info("metrics", "url", "http://"+a.Addr().String()+"/metrics")
		}
		stopTracing, err := telemetry.Setup(cmd.Context(), "portbook-witness", journal)
		if err != nil {
			return cli.Usage(errors.Join(err, l.Close()))
		}
		defer stopTracing()
		scheme := "http"
		if pair != nil {
			scheme = "https"
		}
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
		fmt.Fprintf(cmd.OutOrStdout(), "%s on %s://%s/, logs: %d\n", w.Keys()[0].Name(), scheme, l.Addr(), logs)
		h := otelhttp.NewHandler(handler(w, d.Store), "witness")
		hearing, deaf := context.WithCancel(cmd.Context())
		heard := make(chan struct{})
		go func() { defer close(heard); w.HearPeers(hearing) }()
		defer func() { deaf(); <-heard }()
		if behind != nil {
			ctx, cancel := context.WithCancel(cmd.Context())
			ended := make(chan struct{})
			behind.Logger = journal
			go func() { defer close(ended); behind.Run(ctx, h) }()
			defer func() { cancel(); <-ended }()
		}
		return run(cmd.Context(), l, h, pair, hup, journal)
	}
	return cmd
}

// useMark takes the witness's mark.
func useMark(ctx context.Context, s *witness.Store, path string, beside bool) error {
	if err := s.UseMark(ctx, path); err != nil {
		return err
	}
	same, err := s.MarkIsBeside(path)
	if err == nil && same && !beside {
		err = fmt.Errorf("the mark %s is on the database's own file system: a restored backup would bring both back, and the witness would sign backwards; "+
			"move it to another one (--mark FILE), name other witnesses that tell it (--peer), or allow it with --mark-beside", path)
	}
	return err
}

// markTrouble is what /healthz says of a mark that cannot be written; empty: it can.
func markTrouble(err error) string {
	if errors.Is(err, witness.ErrMarkFails) {
		return witness.ErrMarkFails.Error() // where it is, is for its operator
	}
	return ""
}

// handler is the witness with /healthz beside it.
func handler(w *witness.Witness, s *witness.Store) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", w.Handler())
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, r *http.Request) {
		if err := s.Ping(r.Context()); err != nil {
			http.Error(rw, cmp.Or(markTrouble(err), "the database does not answer"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(rw, "ok")
	})
	return mux
}

// run serves until ctx ends, then lets the requests in progress finish. On hup
// it reads the certificate again; logs need no reload, they are read for each
// request.
func run(ctx context.Context, l net.Listener, h http.Handler, pair *certificate, hup <-chan os.Signal, journal *slog.Logger) error {
	srv := witness.NewServer(h)
	srv.ErrorLog = slog.NewLogLogger(journal.Handler(), slog.LevelDebug)
	failed := make(chan error, 1)
	go func() {
		if pair == nil {
			failed <- srv.Serve(l)
			return
		}
		srv.TLSConfig = pair.config()
		failed <- srv.ServeTLS(l, "", "")
	}()
	for ctx.Err() == nil {
		select {
		case err := <-failed:
			return err
		case <-hup:
			pair.reload()
		case <-ctx.Done():
		}
	}
	late, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(late); err != nil {
		srv.Close()
		return fmt.Errorf("stopping: requests were still in progress after %v: %w", shutdownTimeout, err)
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
