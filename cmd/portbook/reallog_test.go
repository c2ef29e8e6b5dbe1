package main

// A real log with real witnesses, for the scripts that submit.

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/witness"
	"github.com/rogpeppe/go-internal/testscript"
)

// scriptDown is under which a script keeps whether its witnesses are away.
type scriptDown struct{}

// reallog [registry=R] [claim=C]: starts a log with three witnesses, of which
// two must cosign. It sets $TARGET (submissions) and $LOGURL (tiles), and writes
// the files policy and token.
func reallog(ts *testscript.TestScript, _ bool, args []string) {
	o := options(ts, args, map[string]string{"registry": "pypi.example", "claim": "index"})
	ctx, cancel := context.WithCancel(context.Background())
	dir := filepath.Join(ts.MkAbs("."), ".reallog")
	ts.Check(os.MkdirAll(dir, 0o700))
	key, err := c2sp.GenerateSigner("log.example/real", c2sp.AlgEd25519)
	ts.Check(err)
	logDir := filepath.Join(dir, "log")
	ts.Check(logserver.Init(ctx, logDir, filepath.Join(dir, "anchor"), key.Key()))

	down := ts.Value(scriptDown{}).(*atomic.Bool)
	policy := fmt.Sprintf("log %s\n", key.Key())
	var names []string
	for i := range 3 {
		name := fmt.Sprintf("w%d", i+1)
		d, err := witness.CreateDir(ctx, filepath.Join(dir, name), fmt.Sprintf("witness%d.example/w", i+1), time.Now())
		ts.Check(err)
		_, err = d.Store.AddLog(ctx, key.Key().Name(), []*c2sp.Key{key.Key()})
		ts.Check(err)
		w, err := witness.New(witness.Config{Signer: d.Signer, Store: d.Store})
		ts.Check(err)
		h := w.Handler()
		srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if down.Load() {
				http.Error(rw, "down", http.StatusServiceUnavailable)
				return
			}
			h.ServeHTTP(rw, r)
		}))
		ts.Defer(func() { srv.Close(); d.Close() })
		policy += fmt.Sprintf("witness %s %s %s\n", name, d.Signer.Key(), srv.URL)
		names = append(names, name)
	}
	policy += "group g 2 " + strings.Join(names, " ") + "\nquorum g\n"
	ts.Check(os.WriteFile(ts.MkAbs("policy"), []byte(policy), 0o644))
	p, err := c2sp.ParsePolicy([]byte(policy))
	ts.Check(err)

	log, err := logserver.Open(ctx, logserver.Config{
		Dir: logDir, Signer: key, Policy: p, Logger: slog.New(slog.DiscardHandler), AnchorBeside: true,
		Interval: 5 * time.Millisecond, RoundLimit: time.Second, MaxWait: time.Second,
	})
	ts.Check(err)
	_, token, err := log.Tokens.Create(logserver.Token{Registry: o["registry"], Claim: entry.Claim(o["claim"]), Kinds: []entry.Kind{entry.KindUpload}})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("token"), []byte(token+"\n"), 0o600))
	grpcLis, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	httpLis, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ended := make(chan error, 1)
	go func() { ended <- log.Serve(ctx, grpcLis, httpLis, nil) }()
	ts.Defer(func() {
		cancel()
		if err := <-ended; err != nil {
			ts.Logf("log: %v", err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); !log.Status().Writable; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("the log does not come up: %v", log.Status().Reason)
		}
	}
	ts.Setenv("W4", witnessSigner("w4").Key().String()) // a witness this log does not have
	ts.Setenv("TARGET", "http://"+grpcLis.Addr().String())
	ts.Setenv("LOGURL", "http://"+httpLis.Addr().String())
}

// switchWitnesses down|up: takes them away, or brings them back.
func switchWitnesses(ts *testscript.TestScript, _ bool, args []string) {
	ts.Value(scriptDown{}).(*atomic.Bool).Store(args[0] == "down")
}

// mirror exports the real log to the directory mirror, and serves it at $MIRROR
// with nothing but a file server.
func mirror(ts *testscript.TestScript, _ bool, _ []string) {
	to := ts.MkAbs("mirror")
	report, err := logserver.Export(context.Background(), logserver.ExportConfig{Dir: filepath.Join(ts.MkAbs("."), ".reallog", "log"), To: to})
	ts.Check(err)
	if report.Proofs == 0 {
		ts.Fatalf("no proof was exported: %+v", report)
	}
	srv := httptest.NewServer(http.FileServer(http.Dir(to)))
	ts.Defer(srv.Close)
	ts.Setenv("MIRROR", srv.URL)
}
