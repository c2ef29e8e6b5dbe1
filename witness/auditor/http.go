package auditor

// The HTTP side of c2sp.org/tlog-mirror. Submission and monitoring prefix are
// wherever the handler is mounted:
//
//	POST /add-checkpoint             200, empty · 409 text/x.tlog.size
//	POST /add-entries                200 signature lines · 202, 409 text/x.tlog.mirror-info
//	GET  /<origin hash>/checkpoint   200 the mirror checkpoint with our cosignatures
//	GET  /<origin hash>/tile/...     200 tiles and entry bundles (c2sp.org/tlog-tiles)
//	GET  /findings, /findings/<n>    200 what was found: JSON, and each one's evidence
//	GET  /evidence/, /evidence/<n>.txt 200 what logs signed twice: JSON, and each file
//	GET  /                           200 a page for people
//
// sign-subtree is optional, and not offered. Every other answer is a problem
// document (RFC 9457).

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness"
)

const (
	// stepTimeout is how long a client may take for the body of a small request, or
	// until the first of an upload's.
	stepTimeout = 20 * time.Second
	// packTimeout is how long a client may take for each package of an upload.
	packTimeout = time.Minute
	// judgeTimeout is how long an add-checkpoint request may take once it has been read.
	judgeTimeout = 20 * time.Second
	// maxCheckpointBody is the most bytes of an add-checkpoint request.
	maxCheckpointBody = witness.MaxBody
)

// clients counts the requests under way of each client address.
type clients struct {
	most int
	mu   sync.Mutex
	now  map[string]int // guarded by mu
}

func newClients(most int) *clients {
	if most <= 0 {
		most = 4
	}
	return &clients{most: most, now: map[string]int{}}
}

// enter takes a place for a client; leave gives it back.
func (c *clients) enter(name string) (leave func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now[name] >= c.most {
		return nil, false
	}
	c.now[name]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.now[name]--; c.now[name] == 0 {
			delete(c.now, name)
		}
	}, true
}

// clientOf is an IPv4 address, or an IPv6 network of /64, which one client has whole.
func clientOf(r *http.Request) string {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	a := at.Addr().Unmap()
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}

// Handler returns the auditor's HTTP interface.
func (a *Auditor) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/add-checkpoint", only(a.serveAddCheckpoint, http.MethodPost))
	mux.Handle("/add-entries", only(a.serveAddEntries, http.MethodPost))
	mux.Handle("/findings", only(a.serveFindings, http.MethodGet))
	mux.Handle("/{name}/{rest...}", only(a.serveBelow, http.MethodGet, http.MethodHead))
	mux.HandleFunc("/{name}", nothing) // else the mux redirects to it with a slash
	mux.Handle("/{$}", only(a.serveStatus, http.MethodGet))
	mux.HandleFunc("/", nothing)
	return mux
}

func nothing(rw http.ResponseWriter, _ *http.Request) {
	problem(rw, http.StatusNotFound, "this is a c2sp.org/tlog-mirror: it has add-checkpoint, add-entries, <origin hash>/checkpoint and <origin hash>/tile/")
}

// serveBelow serves what is below an origin hash, and what we found.
func (a *Auditor) serveBelow(rw http.ResponseWriter, r *http.Request) {
	name, rest := r.PathValue("name"), r.PathValue("rest")
	switch {
	case name == "findings":
		a.serveFinding(rw, r, rest)
	case name == "evidence":
		a.serveForks(rw, r, rest)
	case hashDir(name) && rest == "checkpoint":
		a.serveCheckpoint(rw, r, name)
	case hashDir(name) && strings.HasPrefix(rest, "tile/"):
		a.serveTile(rw, r, name, rest)
	default:
		nothing(rw, r)
	}
}

// NewServer returns an HTTP server for h with limits that no honest client
// meets. An upload of entries may last as long as it gets on: see serveAddEntries.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: stepTimeout, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
}

func only(h http.HandlerFunc, methods ...string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		for _, m := range methods {
			if r.Method == m {
				h(rw, r)
				return
			}
		}
		rw.Header().Set("Allow", strings.Join(methods, ", "))
		problem(rw, http.StatusMethodNotAllowed, "only "+strings.Join(methods, " and ")+" is served here")
	})
}

func (a *Auditor) serveAddCheckpoint(rw http.ResponseWriter, r *http.Request) {
	leave, ok := a.clients.enter(clientOf(r))
	if !ok {
		a.refuse(rw, &BusyError{"too many requests of this address are under way", true})
		return
	}
	defer leave()
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxCheckpointBody))
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		problem(rw, http.StatusRequestEntityTooLarge, fmt.Sprintf("the request body has more than %d bytes", maxCheckpointBody))
		return
	case err != nil:
		problem(rw, http.StatusBadRequest, "the request body ended early")
		return
	}
	// A client that hangs up must not leave it open what was written, nor look
	// like a failure of ours; a disk that hangs must not collect requests.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), judgeTimeout)
	defer cancel()
	origin, err := a.AddCheckpoint(ctx, body)
	a.count("add-checkpoint", origin, err)
	if err != nil {
		a.refuse(rw, err)
		return
	}
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-store")
	rw.WriteHeader(http.StatusOK)
}

// deadline gives each package of a body its time, however many reads it takes:
// one byte now and then keeps no upload alive.
type deadline struct {
	rc    *http.ResponseController
	until time.Time // set anew with each package; zero: not yet asked for
}

func (d *deadline) next() error {
	d.until = time.Now().Add(packTimeout)
	err := errors.Join(d.rc.SetReadDeadline(d.until), d.rc.SetWriteDeadline(d.until.Add(time.Minute)))
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

func (a *Auditor) serveAddEntries(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Accept-Encoding", "gzip")
	leave, ok := a.clients.enter(clientOf(r))
	if !ok {
		a.refuse(rw, &BusyError{"too many uploads of this address are under way", true})
		return
	}
	defer leave()
	guest, ok := a.room.enter(clientOf(r))
	if !ok {
		a.refuse(rw, &BusyError{"too many uploads are under way", false})
		return
	}
	defer guest.leave()
	if r.Header.Get("Content-Type") != "application/octet-stream" {
		a.refuse(rw, &MalformedError{"its Content-Type is not application/octet-stream"})
		return
	}
	limit := &deadline{rc: http.NewResponseController(rw)}
	if err := limit.next(); err != nil {
		a.refuse(rw, err)
		return
	}
	var body io.Reader = r.Body
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip":
		zr, err := gzip.NewReader(body)
		if err != nil {
			a.refuse(rw, &MalformedError{"it is not the gzip that it claims to be"})
			return
		}
		body = zr
	default:
		problem(rw, http.StatusUnsupportedMediaType, "a Content-Encoding other than gzip is not read")
		return
	}
	// A client that hangs up must not leave it open what was written.
	ctx := context.WithoutCancel(r.Context())
	origin, lines, err := a.receive(ctx, &intake{Reader: bufio.NewReaderSize(body, 64<<10), guest: guest, next: limit.next})
	a.count("add-entries", origin, err)
	if err != nil {
		a.refuse(rw, err)
		return
	}
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	rw.Header().Set("Cache-Control", "no-store")
	rw.Write(lines)
}

// refuse is the one place where an outcome becomes a status code.
func (a *Auditor) refuse(rw http.ResponseWriter, err error) {
	status, detail := outcome(err)
	var conflict *ConflictError
	var accepted *AcceptedError
	var size *witness.ConflictError
	switch {
	case errors.As(err, &conflict):
		info(rw, status, conflict.Info)
		return
	case errors.As(err, &accepted):
		info(rw, status, accepted.Info)
		return
	case errors.As(err, &size):
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.Header().Set("Cache-Control", "no-store")
		rw.WriteHeader(status)
		io.WriteString(rw, strconv.FormatUint(size.Size, 10)+"\n")
		return
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		rw.Header().Set("Retry-After", "1")
	}
	if status >= 500 {
		a.log.Error("a request failed", "error", err)
	}
	problem(rw, status, detail)
}

// outcome is what an error is on the wire.
func outcome(err error) (status int, detail string) {
	var (
		malformed  *MalformedError
		badRequest *witness.MalformedError
		oldSize    *witness.OldSizeError
		unknown    *witness.UnknownLogError
		signature  *witness.SignatureError
		size       *witness.ConflictError
		conflict   *ConflictError
		accepted   *AcceptedError
		none       *NoPendingError
		wrong      *PackageError
		found      *FindingError
		proof      *witness.ProofError
		fork       *witness.ForkError
		clock      *witness.ClockError
		busy       *BusyError
		policy     *PolicyError
	)
	switch {
	case err == nil:
		return http.StatusOK, ""
	case errors.As(err, &policy): // before what it wraps
		return http.StatusForbidden, err.Error()
	case errors.As(err, &malformed), errors.As(err, &badRequest), errors.As(err, &oldSize):
		return http.StatusBadRequest, err.Error()
	case errors.As(err, &unknown):
		return http.StatusNotFound, err.Error()
	case errors.As(err, &signature):
		return http.StatusForbidden, err.Error()
	case errors.As(err, &size), errors.As(err, &conflict):
		return http.StatusConflict, err.Error()
	case errors.As(err, &accepted):
		return http.StatusAccepted, err.Error()
	case errors.As(err, &none), errors.As(err, &wrong), errors.As(err, &found), errors.As(err, &proof), errors.As(err, &fork):
		return http.StatusUnprocessableEntity, err.Error()
	case errors.As(err, &busy):
		if busy.Client {
			return http.StatusTooManyRequests, err.Error()
		}
		return http.StatusServiceUnavailable, err.Error()
	case errors.As(err, &clock):
		return http.StatusServiceUnavailable, err.Error()
	}
	return http.StatusInternalServerError, "the auditor failed; nothing is said about the log; its operator's journal has the cause"
}

// info answers with where the log stands (text/x.tlog.mirror-info). Its third
// line is the ticket, which is empty: what it would tell us is in our database.
func info(rw http.ResponseWriter, status int, i Info) {
	rw.Header().Set("Content-Type", "text/x.tlog.mirror-info")
	rw.Header().Set("Cache-Control", "no-store")
	rw.WriteHeader(status)
	fmt.Fprintf(rw, "%d\n%d\n\n", i.Size, i.Next)
}

// served finds the log of an origin hash, and its head; nil: there is none.
func (a *Auditor) served(ctx context.Context, originHash string) (*book, *witness.Head, error) {
	a.mu.Lock()
	var b *book
	for _, one := range a.books {
		if c2sp.OriginHash(one.origin) == originHash {
			b = one
		}
	}
	a.mu.Unlock()
	if b == nil {
		return nil, nil, nil
	}
	known, err := a.store.Log(ctx, b.origin)
	if err != nil || known.Head == nil {
		return nil, nil, err
	}
	return b, known.Head, nil
}

func (a *Auditor) serveCheckpoint(rw http.ResponseWriter, r *http.Request, originHash string) {
	_, head, err := a.served(r.Context(), originHash)
	switch {
	case err != nil:
		a.refuse(rw, err)
	case head == nil:
		problem(rw, http.StatusNotFound, "no checkpoint has been cosigned for a log with this origin hash (SHA-256 of the origin, lower-case hex)")
	default:
		content(rw, r, "text/plain; charset=utf-8", "no-cache", head.Note)
	}
}

func (a *Auditor) serveTile(rw http.ResponseWriter, r *http.Request, originHash, path string) {
	t, err := c2sp.ParseTilePath(path)
	if err != nil {
		problem(rw, http.StatusNotFound, err.Error())
		return
	}
	b, head, err := a.served(r.Context(), originHash)
	if err != nil {
		a.refuse(rw, err)
		return
	}
	if head == nil || t.Index*c2sp.TileWidth+uint64(t.Width) > head.Size>>(8*max(t.Level, 0)) {
		problem(rw, http.StatusNotFound, "the mirror checkpoint has no such tile")
		return
	}
	raw, err := b.mirror.read(t)
	if err != nil {
		a.refuse(rw, err)
		return
	}
	content(rw, r, "application/octet-stream", "public, max-age=31536000, immutable", raw)
}

// content serves bytes; entry bundles, and what else gains by it, compressed.
func content(rw http.ResponseWriter, r *http.Request, kind, cache string, raw []byte) {
	h := rw.Header()
	h.Set("Content-Type", kind)
	h.Set("Cache-Control", cache)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Vary", "Accept-Encoding")
	tag := sha256.Sum256(raw)
	h.Set("ETag", fmt.Sprintf(`"%x"`, tag[:16]))
	if strings.Contains(r.URL.Path, "/tile/entries/") && acceptsGzip(r) {
		h.Set("ETag", fmt.Sprintf(`"%x-gzip"`, tag[:16]))
		if r.Header.Get("If-None-Match") == h.Get("ETag") {
			rw.WriteHeader(http.StatusNotModified)
			return
		}
		var out bytes.Buffer
		zw := gzip.NewWriter(&out)
		zw.Write(raw)
		zw.Close()
		h.Set("Content-Encoding", "gzip")
		h.Set("Content-Length", strconv.Itoa(out.Len()))
		if r.Method != http.MethodHead {
			rw.Write(out.Bytes())
		}
		return
	}
	http.ServeContent(rw, r, "", time.Time{}, bytes.NewReader(raw))
}

func acceptsGzip(r *http.Request) bool {
	for _, f := range strings.Split(r.Header.Get("Accept-Encoding"), ",") {
		name, q, _ := strings.Cut(strings.TrimSpace(f), ";")
		if strings.TrimSpace(name) == "gzip" {
			q = strings.TrimSpace(q)
			return q != "q=0" && !strings.HasPrefix(q, "q=0.0")
		}
	}
	return false
}

// jsonFinding is a finding as it is listed.
type jsonFinding struct {
	ID     int64     `json:"id"`
	Origin string    `json:"origin"`
	Kind   string    `json:"kind"`
	Index  uint64    `json:"index"`
	First  *uint64   `json:"first_index,omitempty"`
	Reason string    `json:"reason"`
	Seen   time.Time `json:"seen"`
	Count  uint64    `json:"count"`
	Blocks bool      `json:"blocks"` // nothing beyond it is cosigned
	Ready  bool      `json:"evidence"`
}

func (a *Auditor) serveFindings(rw http.ResponseWriter, r *http.Request) {
	list, err := a.index.findings(r.Context(), 0)
	if err != nil {
		a.refuse(rw, err)
		return
	}
	out := []jsonFinding{}
	for _, f := range list {
		out = append(out, jsonFinding{f.ID, f.Origin, f.Kind, f.Index, f.First, f.Reason, f.Seen.UTC(), f.Count, f.Blocks(), f.File != nil})
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Cache-Control", "no-cache")
	json.NewEncoder(rw).Encode(out)
}

func (a *Auditor) serveFinding(rw http.ResponseWriter, r *http.Request, id string) {
	list, err := a.index.findings(r.Context(), 0)
	if err != nil {
		a.refuse(rw, err)
		return
	}
	for _, f := range list {
		if strconv.FormatInt(f.ID, 10) == id && f.File != nil {
			content(rw, r, "text/plain; charset=utf-8", "no-cache", f.File)
			return
		}
	}
	problem(rw, http.StatusNotFound, "there is no finding of this number, or the tree that holds the entry is not complete yet")
}

// serveForks lists the evidence that a log signed two histories, or serves a file
// of it, as a witness does.
func (a *Auditor) serveForks(rw http.ResponseWriter, r *http.Request, name string) {
	type listed struct {
		File       string    `json:"file"` // relative to the list
		Log        string    `json:"log"`
		Claim      string    `json:"claim"`
		FirstSize  uint64    `json:"first_size"`
		SecondSize uint64    `json:"second_size"`
		Seen       time.Time `json:"seen"`
	}
	all := []listed{}
	logs, err := a.store.Logs(r.Context())
	if err != nil {
		a.refuse(rw, err)
		return
	}
	for _, l := range logs {
		forks, err := a.store.Forks(r.Context(), l.Origin)
		if err != nil {
			a.refuse(rw, err)
			return
		}
		for _, f := range forks {
			if f.Name() == name {
				content(rw, r, "text/plain; charset=utf-8", "public, max-age=31536000, immutable", f.Evidence(l.Keys).Bytes())
				return
			}
			all = append(all, listed{f.Name(), f.Origin, f.Claim(), f.OursSize, f.Size, f.Seen.UTC()})
		}
	}
	if name != "" {
		problem(rw, http.StatusNotFound, "there is no such evidence: GET evidence/ lists what there is")
		return
	}
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Cache-Control", "no-cache")
	json.NewEncoder(rw).Encode(struct {
		Auditor  string   `json:"auditor"`
		Evidence []listed `json:"evidence"`
	}{a.signers[0].Key().Name(), all})
}

// problem answers with a problem document (RFC 9457).
func problem(rw http.ResponseWriter, status int, detail string) {
	h := rw.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	rw.WriteHeader(status)
	json.NewEncoder(rw).Encode(struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{http.StatusText(status), status, detail})
}

// Serve answers on l until ctx ends, and follows the logs meanwhile.
func (a *Auditor) Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := NewServer(h)
	failed := make(chan error, 2)
	go func() { failed <- srv.Serve(l) }()
	followed := make(chan error, 1)
	go func() { followed <- a.Run(ctx) }()
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		late, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		if err = srv.Shutdown(late); err != nil {
			err = fmt.Errorf("stopping: requests were still in progress: %w", errors.Join(err, srv.Close()))
		}
	}
	cancel()
	<-followed
	return err
}
