// Package world is a whole Portbook system on loopback, in temporary
// directories, for the demo, the benchmarks and tests: a log with its
// witnesses, and a small real package index that can misbehave.
//
// Everything in it is the real thing but the index.
package world

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/witness"
)

// Options say how large a world is.
type Options struct {
	Witnesses int
	Quorum    int // 0: none
	Auditors  int // that the log pushes to; let one Follow, or not
	Logger    *slog.Logger
	Change    func(*logserver.Config) // last word on the log's configuration
}

// World is a log and its witnesses.
type World struct {
	Dir       string
	LogKey    *c2sp.Signer
	Witnesses []*Witness
	Auditors  []*Auditor
	Log       *Log
	// Policy is what clients, monitors and the log believe: the log's key, the
	// witnesses with their URLs, and the quorum.
	Policy []byte
	opts   Options
}

// New starts a world in dir, which must be empty.
func New(ctx context.Context, dir string, opts Options) (*World, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	w := &World{Dir: dir, opts: opts}
	if err := w.start(ctx); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (w *World) start(ctx context.Context) (err error) {
	if w.LogKey, err = c2sp.GenerateSigner("log.portbook.example/demo", c2sp.AlgEd25519); err != nil {
		return err
	}
	logDir, anchor := filepath.Join(w.Dir, "log"), filepath.Join(w.Dir, "anchor")
	if err := logserver.Init(ctx, logDir, anchor, w.LogKey.Key()); err != nil {
		return err
	}
	lines := []string{"log " + w.LogKey.Key().String()}
	var names []string
	for i := range w.opts.Witnesses {
		wit, err := newWitness(ctx, w.Dir, fmt.Sprintf("w%d", i+1), w.LogKey.Key(), w.opts.Logger)
		if err != nil {
			return err
		}
		w.Witnesses = append(w.Witnesses, wit)
		if err := wit.Start(); err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("witness %s %s http://%s", wit.Name, wit.Key, wit.Address))
		names = append(names, wit.Name)
	}
	for i := range w.opts.Auditors {
		a, err := w.newAuditor(ctx, fmt.Sprintf("a%d", i+1))
		if err != nil {
			return err
		}
		w.Auditors = append(w.Auditors, a)
		if err := a.Start(); err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("auditor %s %s http://%s", a.Name, a.Key, a.Address))
	}
	if w.opts.Quorum == 0 {
		lines = append(lines, "quorum none")
	} else {
		lines = append(lines, fmt.Sprintf("group witnesses %d %s", w.opts.Quorum, strings.Join(names, " ")), "quorum witnesses")
	}
	w.Policy = []byte(strings.Join(lines, "\n") + "\n")
	if err := os.WriteFile(filepath.Join(w.Dir, "policy"), w.Policy, 0o644); err != nil {
		return err
	}
	w.Log = &Log{world: w, dir: logDir}
	return w.Log.Start(ctx)
}

// ParsedPolicy is Policy, parsed: a copy that its holder may change.
func (w *World) ParsedPolicy() *c2sp.Policy {
	p, err := c2sp.ParsePolicy(w.Policy)
	if err != nil {
		panic(err) // this package wrote it
	}
	return p
}

// AuditedPolicy is what a client believes that asks for the quorum and for every
// auditor.
func (w *World) AuditedPolicy() *c2sp.Policy {
	p := w.ParsedPolicy()
	group := c2sp.PolicyGroup{Name: "audited", Members: []string{p.Quorum}}
	for _, a := range w.Auditors {
		group.Members = append(group.Members, a.Name)
	}
	group.K = len(group.Members)
	p.Groups, p.Quorum = append(p.Groups, group), group.Name
	again, err := c2sp.ParsePolicy(p.Bytes())
	if err != nil {
		panic(err) // this package wrote it
	}
	return again
}

// Close stops everything.
func (w *World) Close() error {
	var err error
	if w.Log != nil {
		err = w.Log.Stop()
	}
	for _, wit := range w.Witnesses {
		err = errors.Join(err, wit.Stop(), wit.store.Close())
	}
	for _, a := range w.Auditors {
		err = errors.Join(err, a.close())
	}
	return err
}

// Witness is a real witness at an address of its own, which can be stopped and
// started.
type Witness struct {
	Name    string
	Key     *c2sp.Key
	Address string // host:port, the same for life
	handler http.Handler
	store   *witness.Store

	mu     sync.Mutex
	server *http.Server // guarded by mu; nil while stopped
}

func newWitness(ctx context.Context, dir, name string, log *c2sp.Key, logger *slog.Logger) (*Witness, error) {
	signer, err := c2sp.GenerateSigner("witness.portbook.example/"+name, c2sp.AlgEd25519Cosig)
	if err != nil {
		return nil, err
	}
	store, err := witness.CreateStore(ctx, filepath.Join(dir, "witness-"+name+".db"), []*c2sp.Key{signer.Key()}, time.Now())
	if err != nil {
		return nil, err
	}
	if _, err := store.AddLog(ctx, log.Name(), []*c2sp.Key{log}); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	wit, err := witness.New(witness.Config{Signer: signer, Store: store, Logger: logger})
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &Witness{Name: name, Key: signer.Key(), Address: "127.0.0.1:0", handler: wit.Handler(), store: store}, nil
}

// Start makes the witness reachable.
func (w *Witness) Start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.server != nil {
		return nil
	}
	lis, err := net.Listen("tcp", w.Address)
	if err != nil {
		return err
	}
	w.Address = lis.Addr().String()
	w.server = witness.NewServer(w.handler)
	go w.server.Serve(lis) // ends with Stop
	return nil
}

// Stop makes the witness unreachable.
func (w *Witness) Stop() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.server == nil {
		return nil
	}
	err := w.server.Close()
	w.server = nil
	return err
}

// Forks are the forks the witness has refused and kept.
func (w *Witness) Forks(ctx context.Context, origin string) ([]*witness.Fork, error) {
	return w.store.Forks(ctx, origin)
}

// Log is a log server at addresses of its own.
type Log struct {
	URL    string // of tiles, checkpoint and REST
	Target string // of gRPC, for submit.Dial
	world  *World
	dir    string
	key    *c2sp.Signer // nil: the world's
	log    *logserver.Log
	stop   context.CancelFunc
	done   chan error
}

// Start serves the log and waits until it takes submissions.
func (l *Log) Start(ctx context.Context) error {
	httpLis, err := net.Listen("tcp", listenAgain(l.URL))
	if err != nil {
		return err
	}
	grpcLis, err := net.Listen("tcp", listenAgain(l.Target))
	if err != nil {
		return errors.Join(err, httpLis.Close())
	}
	cfg := logserver.Config{
		Dir: l.dir, Signer: l.world.LogKey, Policy: l.world.ParsedPolicy(), Logger: l.world.opts.Logger, AnchorBeside: true,
	}
	if l.key != nil {
		cfg.Signer, cfg.Policy.Logs = l.key, nil
	}
	if l.world.opts.Change != nil {
		l.world.opts.Change(&cfg)
	}
	if l.log, err = logserver.Open(ctx, cfg); err != nil {
		return errors.Join(err, httpLis.Close(), grpcLis.Close())
	}
	l.URL, l.Target = "http://"+httpLis.Addr().String(), "http://"+grpcLis.Addr().String()
	serveCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop, l.done = stop, make(chan error, 1)
	go func() { l.done <- l.log.Serve(serveCtx, grpcLis, httpLis, nil) }()
	for deadline := time.Now().Add(15 * time.Second); !l.log.Status().Writable; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.Join(fmt.Errorf("the log does not take submissions: %w", l.log.Status().Reason), l.Stop())
		}
	}
	return nil
}

// listenAgain is the address of a URL, or any free one on loopback.
func listenAgain(url string) string {
	if url == "" {
		return "127.0.0.1:0"
	}
	return strings.TrimPrefix(url, "http://")
}

// Stop shuts the log down gracefully.
func (l *Log) Stop() error {
	if l.stop == nil {
		return nil
	}
	l.stop()
	l.stop = nil
	return <-l.done
}

// Published is the newest published checkpoint.
func (l *Log) Published() logserver.Published { return l.log.Published() }

// Token makes a token for registry with claim index and all its kinds.
func (l *Log) Token(registry string) (string, error) {
	t := logserver.Token{Registry: registry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload, entry.KindReject}}
	_, secret, err := l.log.Tokens.Create(t)
	return secret, err
}

// Submitter is a client that submits for registry.
func (l *Log) Submitter(registry string) (*submit.Client, error) {
	token, err := l.Token(registry)
	if err != nil {
		return nil, err
	}
	return submit.Dial(l.Target, token)
}
