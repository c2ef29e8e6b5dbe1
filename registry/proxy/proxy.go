// Package proxy is a verifying proxy for Python package indexes: installers use
// it as their only index, and nothing unproven passes through it.
//
//	installer ── /simple/<project>/ ──▶ page of the index, file URLs rewritten to
//	          ◀── /files/<scheme>/<host>/<path> ── our own
//	          ── /files/… ──▶ proof (beside the file, else from the log) ▶ policy
//	             ▶ registry, project, file name, digest the page told ▶ bytes,
//	             hashed as they pass ▶ last bytes only if the digest is the proven one
//
// A file that is not proven stays listed and is answered with 403, its reason
// in the status line, because that is what installers show; see
// docs/decisions/0003-refusals-in-pip.md.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
)

// A Config says which index a Proxy stands before and whom it believes.
type Config struct {
	// Index is the URL of the index's simple API, "https://pypi.org/simple/".
	// User name and password in it are sent to that origin, nowhere else.
	Index string
	// Registry is the name under which the index's files are logged. It binds
	// the index: a proof for another registry is refused.
	Registry string
	// Policy says which logs and witnesses to believe.
	Policy *c2sp.Policy
	// AcceptObserved also believes entries of followers; see client.File.
	AcceptObserved bool
	// State remembers the newest checkpoint of each log; nil: nothing is
	// remembered, and freshness is not judged.
	State *client.State
	// Log is the URL of the log, asked for proofs that are not beside the file
	// and for its newest checkpoint; "": proofs come from beside the files only.
	Log string

	// LogToken is the read token of a private log; "" for a public one.
	LogToken string
	// FileHosts are hosts other than the index's ("files.example",
	// "10.0.0.5:8080") whose files may always be fetched. A host that a page of
	// the index links to needs no line here, unless its address is private.
	FileHosts []string
	// Hosts are names, besides localhost and addresses, under which clients may
	// ask a proxy that listens on loopback: those a web server in front passes
	// on. Any other name is a web page's trick to read what its visitor's
	// machine can reach (DNS rebinding).
	Hosts []string
	// Hold is how many bytes of a file are read and kept before the answer
	// begins; a file no longer than that is refused cleanly. 0 means 8 MiB.
	Hold int
	// TempDir is where a file waits whose digest must be known before its proof
	// can be found; "" is the system's.
	TempDir string
	// Logger gets one line for each refusal; nil: none.
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Transport reaches the index, the file hosts and the log; nil is a
	// transport that obeys the proxy variables of the environment.
	Transport *http.Transport
}

// A Proxy is an http.Handler.
type Proxy struct {
	cfg      Config
	index    *url.URL      // ends in a slash, without user info
	userinfo *url.Userinfo // of Index
	log      *url.URL
	reader   *client.Reader
	now      atomic.Pointer[followed]
	asks     http.RoundTripper // to the log
	up       *upstream
	seen     *seen
	counts   counts
	fresh    freshness
	holding  *semaphore.Weighted // bytes held in memory by all requests
	holdFor  time.Duration       // then an answer begins although the file is not all there
	stall    time.Duration       // between two reads of a file; then it is broken off

	following  sync.Mutex
	followedAt time.Time // guarded by following
}

const (
	defaultHold = 8 << 20
	maxHolding  = 128 << 20
)

// New checks the configuration.
func New(cfg Config) (*Proxy, error) {
	p := &Proxy{cfg: cfg, seen: newSeen(500_000), holding: semaphore.NewWeighted(maxHolding),
		holdFor: 5 * time.Second, // pip gives up after 15 s of silence
		stall:   30 * time.Second}
	if p.cfg.Logger == nil {
		p.cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if p.cfg.Now == nil {
		p.cfg.Now = time.Now
	}
	if p.cfg.Hold <= 0 {
		p.cfg.Hold = defaultHold
	}
	if p.cfg.TempDir == "" {
		p.cfg.TempDir = os.TempDir()
	}
	if cfg.Policy == nil {
		return nil, errors.New("proxy: no policy")
	}
	p.now.Store(&followed{policy: cfg.Policy})
	if cfg.State != nil {
		p.now.Store(&followed{policy: cfg.State.Policy(cfg.Policy)})
	}
	if err := entry.CheckRegistry(cfg.Registry); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	u, err := url.Parse(cfg.Index)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("proxy: index URL: want http or https, a host, no query and no fragment")
	}
	p.userinfo, u.User = u.User, nil
	if !strings.HasSuffix(u.Path, "/") {
		u = u.JoinPath("/")
	}
	p.index = u
	if cfg.Log != "" {
		var asks http.RoundTripper = transportOf(cfg.Transport)
		if cfg.LogToken != "" {
			if asks, err = client.ReadToken(cfg.Log, cfg.LogToken, asks); err != nil {
				return nil, fmt.Errorf("proxy: %w", err)
			}
		}
		p.asks = asks
		if p.reader, err = client.NewReader(cfg.Log, &http.Client{Transport: asks, Timeout: logTimeout}); err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
		if p.log, err = url.Parse(strings.TrimRight(cfg.Log, "/")); err != nil {
			return nil, fmt.Errorf("proxy: log URL: %w", err)
		}
	}
	p.up = newUpstream(transportOf(cfg.Transport), p.index, p.userinfo, cfg.FileHosts)
	return p, nil
}

// ServeHTTP routes by the escaped path: a file's URL must come back as the
// index wrote it.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if target, direct := elsewhere(r); direct {
		p.refuse(w, r, "direct "+target, &client.Refusal{Code: CodeDirect, Check: "not from the index",
			Detail: printable(target) + " was asked for by its own address, which bypasses the index"})
		return
	}
	if !p.knownName(r) {
		http.Error(w, "this proxy is not known by that name; --host allows one", http.StatusMisdirectedRequest)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	path := r.URL.EscapedPath()
	switch {
	case path == "/simple/":
		p.serveList(w, r)
	case strings.HasPrefix(path, "/simple/"):
		p.servePage(w, r, path[len("/simple/"):])
	case path == "/simple", path == "/":
		http.Redirect(w, r, "/simple/", http.StatusFound)
	case strings.HasPrefix(path, "/files/"):
		p.serveFile(w, r)
	case strings.HasPrefix(path, "/refused/"):
		p.serveRefused(w, r, path[len("/refused/"):])
	case path == "/healthz":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Write([]byte("ok\n"))
	default:
		http.NotFound(w, r)
	}
}

// elsewhere tells whether the request uses this server as an HTTP proxy for
// something else than itself: CONNECT, or a URL with another host (RFC 9112,
// 3.2.2). "portbook run" makes pip send all its requests here, so that what a
// package pulls in from elsewhere is seen and refused.
func elsewhere(r *http.Request) (target string, yes bool) {
	if r.Method == http.MethodConnect {
		return r.Host, true
	}
	if r.URL.Host == "" {
		return "", false
	}
	if addr, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && r.URL.Scheme == "http" && r.URL.Host == addr.String() {
		return "", false
	}
	return r.URL.Scheme + "://" + r.URL.Host + r.URL.Path, true
}

// knownName tells whether a proxy on loopback is asked under a name of its own.
func (p *Proxy) knownName(r *http.Request) bool {
	addr, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok || !addr.IP.IsLoopback() {
		return true
	}
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return name == "" || name == "localhost" || net.ParseIP(strings.Trim(name, "[]")) != nil ||
		slices.ContainsFunc(p.cfg.Hosts, func(h string) bool { return strings.EqualFold(h, name) })
}

// Server returns an HTTP server for p with bounded headers and no limit on how
// long a file may take. Over TLS it speaks HTTP/1.1 only: later versions have
// no reason phrase to show a person why a file was refused.
func (p *Proxy) Server() *http.Server {
	s := &http.Server{
		Handler:           p,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(p.cfg.Logger.Handler(), slog.LevelDebug),
	}
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	return s
}

// Run keeps watch on the log until ctx ends, if a log and a state are
// configured. Without Run the proxy verifies all the same, and says nothing
// about freshness.
func (p *Proxy) Run(ctx context.Context) {
	if p.reader == nil || p.cfg.State == nil {
		return
	}
	for {
		p.Refresh(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(refreshEvery):
		}
	}
}
