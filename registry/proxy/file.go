package proxy

// Files: proven, then streamed while they are hashed. The last bytes leave only
// when the digest is the proven one.
//
// Withholding the end alone would not do. pip (23.0 and others built on
// urllib3 1.26) takes a body that ends before its Content-Length for complete,
// and Python's zipfile finds the directory of a ZIP file up to 64 KiB before
// its end: a swapped wheel with padding behind it would be installed from what
// had passed already. So a file that fits is held whole before the answer
// begins; a longer one goes out in chunks (RFC 9112, 7.1), whose end no client
// overlooks, unless the client was told the proven digest by the page and so
// checks it itself; and a broken answer ends with a reset. See
// TestSwappedPaddedWheel.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/registry/pypi"
)

const (
	refusedFor  = 10 * time.Minute
	minHold     = 64 << 10
	maxMetadata = 16 << 20
	maxFile     = 64 << 30 // when the entry does not say the size
)

func lastSegment(u *url.URL) string { return pypi.LastSegment(u) }

// serveFile answers /files/<scheme>/<host>/<path>: a file, the metadata or the
// proof beside one.
func (p *Proxy) serveFile(w http.ResponseWriter, r *http.Request) {
	u, ok := backward(r.URL.EscapedPath(), r.URL.RawQuery)
	if !ok || lastSegment(u) == "" {
		http.NotFound(w, r)
		return
	}
	file, beside := splitBeside(u)
	t := p.seen.file(key(file))
	if t == nil && !p.up.knownHost(file) {
		p.refuse(w, r, shown(file), &client.Refusal{Code: CodeFileHost, Check: "the file's host",
			Detail: fmt.Sprintf("no page of the index has linked to this file on %s since the proxy started", printable(file.Host))})
		return
	}
	if bad := p.seen.wasRefused(key(file), p.cfg.Now()); bad != nil {
		p.refuse(w, r, shown(file), bad)
		return
	}
	switch beside {
	case ".tlog-proof":
		p.serveProof(w, r, file)
	case ".metadata":
		p.serveMetadata(w, r, file, t)
	default:
		p.serveContent(w, r, file, t)
	}
}

// splitBeside takes .metadata or .tlog-proof off the URL of what lies beside a
// file.
func splitBeside(u *url.URL) (file *url.URL, suffix string) {
	for _, s := range []string{".metadata", ".tlog-proof"} {
		if strings.HasSuffix(u.Path, s) && pypi.IsDistribution(strings.TrimSuffix(lastSegment(u), s)) {
			v := *u
			v.Path = strings.TrimSuffix(v.Path, s)
			v.RawPath = strings.TrimSuffix(v.RawPath, s)
			return &v, s
		}
	}
	return u, ""
}

// serveProof passes the proof beside a file on, unverified: whoever wants it
// verifies it.
func (p *Proxy) serveProof(w http.ResponseWriter, r *http.Request, file *url.URL) {
	ctx, cancel := context.WithTimeout(r.Context(), proofTimeout)
	defer cancel()
	b, err := p.fetchProof(ctx, file, r.Header.Get("Authorization"))
	switch {
	case err != nil:
		p.refuse(w, r, shown(file), err)
	case b == nil:
		http.NotFound(w, r)
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-cache")
		w.Write(b)
	}
}

// serveMetadata answers <file>.metadata (PEP 658). It is served only when the
// file itself is proven. Where the entry has a digest of the metadata, it must
// fit; where not, what the page told must. Metadata that neither binds can
// mislead a resolver about what to ask for next, and each answer to that is
// proven again; it cannot make an installer take an unproven file.
func (p *Proxy) serveMetadata(w http.ResponseWriter, r *http.Request, file *url.URL, t *told) {
	v, spool, err := p.proveFile(r, file, t)
	spool.discard()
	if err != nil {
		p.fail(w, r, file, err)
		return
	}
	mu := *file
	mu.Path += ".metadata"
	if mu.RawPath != "" {
		mu.RawPath += ".metadata"
	}
	ctx, cancel := context.WithTimeout(r.Context(), pageTimeout)
	defer cancel()
	resp, err := p.up.get(ctx, &mu, nil, r.Header.Get("Authorization"))
	if err != nil {
		p.fail(w, r, file, err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		p.fail(w, r, file, statusError{resp.StatusCode})
		return
	}
	b, err := readAll(resp.Body, maxMetadata)
	if err != nil {
		p.fail(w, r, file, err)
		return
	}
	sum := sha256.Sum256(b)
	bound := "log"
	if want := v.Entry.MetadataSHA256; want != "" {
		if got := hex.EncodeToString(sum[:]); got != want {
			p.fail(w, r, file, &client.Refusal{Code: CodeMetadata, Check: "the metadata's digest", Detail: fmt.Sprintf("logged was sha256 %s, served is %s", want, got)})
			return
		}
	} else if t != nil && t.metadata != nil {
		bound = "page"
		if sum != *t.metadata {
			p.fail(w, r, file, &client.Refusal{Code: CodeMetadata, Check: "the metadata's digest", Detail: fmt.Sprintf("the page told sha256 %x, served is %x", *t.metadata, sum)})
			return
		}
	} else {
		bound = "none"
	}
	h := w.Header()
	h.Set("Portbook-Metadata", bound)
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Length", fmt.Sprint(len(b)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodHead {
		w.Write(b)
	}
}

// A statusError is an answer of the index that is the client's business.
type statusError struct{ status int }

func (e statusError) Error() string { return fmt.Sprintf("the index answered %d", e.status) }

// fail gives the answer for err: what the index said about a missing file, or
// a refusal.
func (p *Proxy) fail(w http.ResponseWriter, r *http.Request, file *url.URL, err error) {
	if r.Context().Err() != nil {
		return // the client has gone
	}
	var st statusError
	if errors.As(err, &st) && (st.status == http.StatusNotFound || st.status == http.StatusGone || st.status == http.StatusUnauthorized) {
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, st.Error(), st.status)
		return
	}
	if errors.As(err, &st) {
		err = &client.CannotCheck{Code: CodeIndexAnswer, Reason: st.Error(), Err: err}
	}
	p.refuse(w, r, shown(file), err)
}

// proveFile is prove; where the log must be asked and nobody told the digest,
// the file is fetched first. spool, which may be nil, then holds it.
func (p *Proxy) proveFile(r *http.Request, file *url.URL, t *told) (v *client.Verified, spool *spool, err error) {
	auth := r.Header.Get("Authorization")
	v, err = p.prove(r.Context(), file, t, nil, auth)
	if !errors.Is(err, errNeedDigest) {
		return v, nil, err
	}
	if spool, err = p.fetchSpool(r, file, maxFile); err != nil {
		return nil, nil, err
	}
	v, err = p.prove(r.Context(), file, t, &spool.sum, auth)
	return v, spool, err
}

func (p *Proxy) serveContent(w http.ResponseWriter, r *http.Request, file *url.URL, t *told) {
	v, spool, err := p.proveFile(r, file, t)
	defer func() { spool.discard() }()
	if err != nil {
		p.fail(w, r, file, err)
		return
	}
	// Before HTTP/1.1 the end of a body without a length cannot be told from a
	// break, so the file must be whole before the answer begins.
	if spool == nil && !r.ProtoAtLeast(1, 1) && r.Method == http.MethodGet {
		if spool, err = p.fetchSpool(r, file, size(v)); err == nil {
			err = p.check(v, lastSegment(file), t, &spool.sum)
		}
		if err != nil {
			p.fail(w, r, file, err)
			return
		}
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Accept-Ranges", "none") // part of a file proves nothing
	h.Set("Portbook-Verified", fmt.Sprintf("%s %d %s", printable(v.Checkpoint.Origin), v.Index, v.Entry.Claim))
	p.fresh.header(h)
	switch {
	case r.Method == http.MethodHead:
		if v.Entry.Size != nil {
			h.Set("Content-Length", fmt.Sprint(*v.Entry.Size))
		}
	case spool != nil:
		h.Set("Content-Length", fmt.Sprint(spool.size))
		p.counts.add(shown(file), Verified, "", "")
		io.Copy(w, spool.f)
	default:
		p.stream(w, r, file, t, v)
	}
}

// size is how many bytes the proven file may have.
func size(v *client.Verified) int64 {
	if v.Entry.Size != nil {
		return int64(*v.Entry.Size)
	}
	return maxFile
}

// open starts the download of a file. The body must be closed.
func (p *Proxy) open(ctx context.Context, file *url.URL, auth string) (*http.Response, error) {
	ctx, cancel := context.WithCancel(ctx)
	resp, err := p.up.get(ctx, file, nil, auth)
	if err != nil {
		cancel()
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		cancel()
		return nil, statusError{resp.StatusCode}
	}
	resp.Body = newStallReader(resp.Body, cancel, p.stall)
	return resp, nil
}

// stream sends the file that v proves while hashing it.
func (p *Proxy) stream(w http.ResponseWriter, r *http.Request, file *url.URL, t *told, v *client.Verified) {
	var first []byte
	var d *download
	var err error
	for i := 0; ; i++ { // until something has been sent, a broken download can begin again
		if d, first, err = p.begin(r, file, v); err == nil {
			break
		}
		var b brokenOff
		if !errors.As(err, &b) || i == len(tries) || r.Context().Err() != nil {
			p.fail(w, r, file, err)
			return
		}
		time.Sleep(tries[i])
	}
	defer d.close()
	if d.ended {
		if err := p.check(v, lastSegment(file), t, d.digest()); err != nil {
			p.fail(w, r, file, err)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(first)))
		p.counts.add(shown(file), Verified, "", "")
		w.Write(first)
		return
	}
	if t != nil && t.sha256 != nil && d.length >= 0 { // the client compares too
		w.Header().Set("Content-Length", fmt.Sprint(d.length))
	}
	if _, err := w.Write(first); err != nil {
		return
	}
	// One chunk is always kept back; it goes when the next is there, or when
	// the file has ended and is the proven one.
	kept, next := make([]byte, 0, minHold), make([]byte, minHold)
	for {
		n, err := d.read(next)
		if n > 0 {
			if len(kept) > 0 {
				if _, err := w.Write(kept); err != nil {
					return // the client has gone; nothing was decided
				}
			}
			kept, next = next[:n], kept[:cap(kept)]
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			p.abort(w, r, file, err)
			return
		}
	}
	if err := p.check(v, lastSegment(file), t, d.digest()); err != nil {
		p.abort(w, r, file, err)
		return
	}
	p.counts.add(shown(file), Verified, "", "")
	w.Write(kept)
}

// abort ends an answer that has begun so that nobody can take it for whole: no
// last chunk, and a reset instead of an orderly end.
func (p *Proxy) abort(w http.ResponseWriter, r *http.Request, file *url.URL, err error) {
	var refusal *client.Refusal
	var cannot *client.CannotCheck
	switch {
	case r.Context().Err() != nil:
	case errors.As(err, &refusal):
		p.seen.refuse(key(file), refusal, p.cfg.Now())
		p.counts.add(shown(file), Refused, refusal.Code, refusal.Check+": "+refusal.Detail)
		p.cfg.Logger.Warn("refused while sending", "file", shown(file), "code", refusal.Code, "detail", refusal.Detail)
	case errors.As(err, &cannot):
		p.counts.add(shown(file), CannotCheck, cannot.Code, cannot.Reason)
		p.cfg.Logger.Warn("broken off", "file", shown(file), "code", cannot.Code, "reason", cannot.Reason)
	}
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		conn.Close()
		return
	}
	panic(http.ErrAbortHandler)
}

// A download is a file on its way, being hashed.
type download struct {
	body    io.ReadCloser
	hash    hash.Hash
	length  int64 // as announced; -1 if not
	got     int64
	max     int64
	ended   bool
	release func()
}

// begin opens the download and reads its beginning: all of it where it fits in
// what may be held and comes soon.
func (p *Proxy) begin(r *http.Request, file *url.URL, v *client.Verified) (*download, []byte, error) {
	resp, err := p.open(r.Context(), file, r.Header.Get("Authorization"))
	if err != nil {
		return nil, nil, err
	}
	d := &download{body: resp.Body, hash: sha256.New(), length: resp.ContentLength, max: size(v), release: func() {}}
	if v.Entry.Size != nil && d.length >= 0 && d.length != d.max {
		d.close()
		return nil, nil, &client.Refusal{Code: client.CodeDigest, Check: "size", Detail: fmt.Sprintf("logged was a file of %d bytes, the index hands out %d", d.max, d.length)}
	}
	hold := int64(minHold)
	if want := int64(p.cfg.Hold); want > hold {
		if d.max < want {
			want = max(d.max+1, hold) // one more byte shows the end
		}
		if p.holding.TryAcquire(want) {
			hold = want
			d.release = func() { p.holding.Release(want) }
		}
	}
	first := make([]byte, 0, min(hold, 256<<10))
	deadline := time.Now().Add(p.holdFor)
	buf := make([]byte, 64<<10)
	for int64(len(first)) < hold && time.Now().Before(deadline) {
		n, err := d.read(buf[:min(int64(len(buf)), hold-int64(len(first)))])
		first = append(first, buf[:n]...)
		if err == io.EOF {
			return d, first, nil
		}
		if err != nil {
			d.close()
			return nil, nil, err
		}
	}
	return d, first, nil
}

// brokenOff is a *client.CannotCheck in the middle of a download.
type brokenOff struct{ error }

func (b brokenOff) Unwrap() error { return b.error }

// read reads and hashes. Errors but io.EOF are *client.Refusal (too long) or
// brokenOff.
func (d *download) read(b []byte) (int, error) {
	n, err := d.body.Read(b)
	d.hash.Write(b[:n])
	d.got += int64(n)
	if d.got > d.max {
		return 0, &client.Refusal{Code: client.CodeDigest, Check: "size", Detail: fmt.Sprintf("the index hands out more than the %d bytes that were logged", d.max)}
	}
	switch {
	case err == io.EOF:
		d.ended = true
	case err != nil:
		return n, brokenOff{&client.CannotCheck{Code: CodeIndexUnreachable, Reason: "the download broke off: " + printable(rootCause(err)), Err: err}}
	}
	return n, err
}

func (d *download) digest() *[32]byte { return (*[32]byte)(d.hash.Sum(nil)) }

func (d *download) close() {
	d.body.Close()
	d.release()
}

// A spool is a whole file, hashed, in a temporary file.
type spool struct {
	f    *os.File
	size int64
	sum  [32]byte
}

func (s *spool) discard() {
	if s != nil {
		s.f.Close()
	}
}

// fetchSpool downloads a file of at most limit bytes. The temporary file has no
// name any more when it returns.
func (p *Proxy) fetchSpool(r *http.Request, file *url.URL, limit int64) (*spool, error) {
	resp, err := p.open(r.Context(), file, r.Header.Get("Authorization"))
	if err != nil {
		return nil, err
	}
	d := &download{body: resp.Body, hash: sha256.New(), max: limit, release: func() {}}
	defer d.close()
	f, err := os.CreateTemp(p.cfg.TempDir, "portbook-*")
	if err != nil {
		return nil, &client.CannotCheck{Code: CodeIndexUnreachable, Reason: "no temporary file: " + rootCause(err), Err: err}
	}
	os.Remove(f.Name())
	buf := make([]byte, 64<<10)
	for !d.ended {
		n, err := d.read(buf)
		if err == nil || err == io.EOF {
			if _, werr := f.Write(buf[:n]); werr != nil {
				err = &client.CannotCheck{Code: CodeIndexUnreachable, Reason: "temporary file: " + rootCause(werr), Err: werr}
			}
		}
		if err != nil && err != io.EOF {
			f.Close()
			return nil, err
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, &client.CannotCheck{Code: CodeIndexUnreachable, Reason: "temporary file: " + rootCause(err), Err: err}
	}
	return &spool{f, d.got, *d.digest()}, nil
}
