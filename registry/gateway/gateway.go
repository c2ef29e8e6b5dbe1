// Package gateway stands in front of a package index and logs what the index
// accepts. It takes uploads by the legacy API (what twine, flit, hatch, poetry and
// uv send), hands them to the index, which alone knows who may upload, logs each
// accepted file, and leaves it off the pages until its proof is stored. The proof
// is served beside the file, as <file>.tlog-proof.
//
//	uploader ─▶ spool + hash ─▶ outbox: received ─▶ forwarding ─▶ index
//	    index refused ─▶ nothing is kept, nothing logged
//	    index accepted ─▶ outbox: accepted ─▶ submitted ─▶ log
//	        log says Conflict ─▶ conflict: withheld, an operator looks
//	        log away          ─▶ held: tried again, with growing pauses
//	        proof verified    ─▶ proven: on the pages
//
// Each arrow into the outbox is one durable transaction, made before what follows
// it. A process that dies in received forgets the upload: the index never heard of
// it. One that dies in forwarding asks the index, at its next start, whether it
// lists the file, and believes only bytes that hash to what was uploaded. From
// accepted on, logging is repeated until it is done; the log gives the same entry
// the same index however often it is submitted.
//
// Identities: who uploaded (publisher, pseudonym, kind of credential) is logged
// only when the index itself said yes to that very request. Where the answer was
// lost and the file found on the page afterwards, the entry names nobody.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
)

// A Log takes entries. *submit.Client is one.
type Log interface {
	// Submit logs e and waits for its proof. The same file again is not a new
	// entry. A *submit.Conflict says that the name is logged with other bytes, a
	// *submit.Frozen that this log takes nothing any more; after every other
	// error the same entry may be submitted again.
	Submit(ctx context.Context, e *entry.Entry) (*submit.Ack, error)
	// Ready tells whether the log takes entries now.
	Ready(ctx context.Context) error
}

// Config says what a Gateway stands in front of and how it behaves.
type Config struct {
	// Registry names the index in the log (entry.CheckRegistry). It must be what
	// clients call it, and stays the same for the life of Dir.
	Registry string
	// Index is the URL of the index's simple pages: https://host/simple/.
	Index *url.URL
	// Upload is the URL of its legacy upload API: https://host/legacy/.
	Upload *url.URL
	// FileHosts are further hosts (host or host:port) from which files may be
	// fetched; the host of Index always may. A page cannot make the gateway
	// fetch from anywhere else.
	FileHosts []string
	// ReadUser and ReadPassword are the gateway's own account on a private
	// index, for asking what became of an upload. Requests of others carry
	// their own credentials.
	ReadUser, ReadPassword string
	// Dir holds the outbox and the spool. Losing it loses proofs not yet fetched
	// elsewhere and holds of files not yet proven; nobody else may write it.
	Dir string

	Log    Log
	Policy *c2sp.Policy // a file is proven when its proof verifies under this

	// Refuse turns uploads away while the log is out (503), instead of taking
	// them and holding the files off the pages until they are proven.
	Refuse bool
	// HideUnlogged leaves files off the pages that did not come through this
	// gateway. They are passed through otherwise, without a proof.
	HideUnlogged bool
	// Accounts says what to log of uploads by an account, beside its pseudonym.
	Accounts map[string]Account

	MaxSize    int64         // bytes of one file; 0 means DefaultMaxSize
	MaxUploads int           // at a time, further ones get 503; 0 means 32
	ProofWait  time.Duration // how long an uploader waits for the proof; 0 means 15 s

	HTTP   http.RoundTripper // to the index; nil means a transport of its own
	Now    func() time.Time  // nil means time.Now
	Logger *slog.Logger      // nil discards
}

// DefaultMaxSize is PyPI's limit times ten.
const DefaultMaxSize = 1 << 30

// An Account is what the operator of the index knows of one of its accounts.
type Account struct {
	// Publisher is the workload identity behind the account, if it is one.
	Publisher *entry.Publisher
	// Auth replaces what is told from the Authorization header: trusted-publisher,
	// token, password or other.
	Auth string
}

// A Gateway is an http.Handler: pages at /simple/, files and their proofs at
// /files/, uploads at /legacy/. Run must be running beside it.
type Gateway struct {
	cfg    Config
	outbox *outbox
	spool  string
	index  *upstream
	log    *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // what runs under ctx
	slots  chan struct{}  // uploads in progress
	tries  chan struct{}  // submissions in progress
	asking chan struct{}  // questions to the index in progress

	frozen atomic.Pointer[submit.Frozen] // the log said so; for the life of this process

	mu       sync.Mutex
	flying   map[int64]chan struct{} // files being submitted, by seq
	live     map[int64]bool          // attempts that someone is working on
	absent   map[int64]absence       // by attempt
	logError time.Time               // when the log last failed us; zero if it works

	// crashForTest is called with the name of each point at which a process may
	// die. See TestKilledAnywhere.
	crashForTest func(point string)
}

// New opens the outbox and cleans up after a process that died.
func New(ctx context.Context, cfg Config) (*Gateway, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	o, err := openOutbox(ctx, cfg.Dir, cfg.Registry)
	if err != nil {
		return nil, err
	}
	g := &Gateway{
		cfg: cfg, outbox: o, spool: filepath.Join(cfg.Dir, "spool"), index: newUpstream(cfg), log: cfg.Logger,
		slots: make(chan struct{}, cfg.MaxUploads), tries: make(chan struct{}, 64), asking: make(chan struct{}, 4),
		flying: map[int64]chan struct{}{}, live: map[int64]bool{}, absent: map[int64]absence{},
		crashForTest: func(string) {},
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	// Spooled bytes are never needed again: an upload that the index took is told
	// by its digest, one that it did not take is the uploader's to repeat.
	err = errors.Join(os.RemoveAll(g.spool), os.MkdirAll(g.spool, 0o700), o.dropReceived(ctx))
	if err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// Check finds what is missing or wrong, and fills in the defaults. New calls it.
func (c *Config) Check() error {
	if err := entry.CheckRegistry(c.Registry); err != nil {
		return err
	}
	for _, x := range []struct {
		what string
		u    *url.URL
	}{{"index", c.Index}, {"upload", c.Upload}} {
		if u := x.u; u == nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("%s URL %s: want http(s)://host/path/, without user, query or fragment", x.what, u.Redacted())
		}
	}
	if !strings.HasSuffix(c.Index.Path, "/") {
		c.Index = c.Index.JoinPath("/")
	}
	switch {
	case c.Dir == "":
		return errors.New("no directory for the outbox")
	case c.Log == nil:
		return errors.New("no log to submit to")
	case c.Policy == nil:
		return errors.New("no policy by which proofs are verified")
	}
	for name, a := range c.Accounts {
		if err := a.check(c.Registry); err != nil {
			return fmt.Errorf("account %q: %w", name, err)
		}
	}
	if c.MaxSize <= 0 {
		c.MaxSize = DefaultMaxSize
	}
	if c.MaxUploads <= 0 {
		c.MaxUploads = 32
	}
	if c.ProofWait <= 0 {
		c.ProofWait = 15 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// check finds out at the start what the entry format would refuse later.
func (a Account) check(registry string) error {
	e := entry.Entry{
		Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: registry, Ecosystem: entry.PyPI,
		Project: "a", Version: "1", File: "a-1.tar.gz", Size: entry.Uint(1), SHA256: strings.Repeat("0", 64), Time: "2026-01-01T00:00:00Z",
		Publisher: a.Publisher, Auth: a.Auth,
	}
	return e.Validate()
}

// Run repairs what a crash left behind and retries what the log would not take,
// until ctx ends.
func (g *Gateway) Run(ctx context.Context) error {
	// The log may be another one than before.
	if err := g.outbox.hurry(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := g.repair(ctx); err != nil && ctx.Err() == nil {
			g.log.Error("repair failed, will be tried again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Close ends what is in progress and closes the outbox. Uploads whose outcome is
// open are found out about at the next start.
func (g *Gateway) Close() error {
	g.cancel()
	g.wg.Wait()
	return g.outbox.Close()
}

// ServeHTTP routes a request.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := r.URL.Path
	switch {
	case p == "/legacy/" || p == "/legacy":
		if r.Method != http.MethodPost {
			answer(w, r, http.StatusMethodNotAllowed, "Uploads are sent by POST", nil)
			return
		}
		g.serveUpload(w, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		answer(w, r, http.StatusMethodNotAllowed, "Method not allowed", nil)
	case p == "/healthz":
		w.Write([]byte("ok\n"))
	case p == "/simple/":
		g.serveProjects(w, r)
	case strings.HasPrefix(p, "/simple/"):
		g.serveProject(w, r, strings.TrimPrefix(p, "/simple/"))
	case strings.HasPrefix(p, "/files/"):
		g.serveFile(w, r, strings.TrimPrefix(p, "/files/"))
	default:
		answer(w, r, http.StatusNotFound, "Not found: pages are at /simple/, uploads at /legacy/", nil)
	}
}
