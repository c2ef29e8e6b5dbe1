// The legacy upload API, from the uploader to the index and back.

package gateway

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/registry/pypi"
)

const (
	fieldBytes    = 16 << 20         // of the form beside the file
	idleTimeout   = time.Minute      // of an uploader
	uploadTimeout = time.Hour        // for one upload
	drainTimeout  = time.Minute      // to send the rest of one that is refused
	indexTimeout  = 30 * time.Minute // for the index to take an upload
	maxAnswer     = 64 << 10         // of the index's answer that is passed on
	retrySeconds  = "30"
)

// A refusal ends an upload with an answer of our own.
type refusal struct {
	status int
	reason string
	err    error // for the log, if there is more to say
}

func (e *refusal) Error() string { return e.reason }
func (e *refusal) Unwrap() error { return e.err }

func (g *Gateway) serveUpload(w http.ResponseWriter, r *http.Request) {
	body := &patientBody{rc: http.NewResponseController(w), body: r.Body, end: time.Now().Add(uploadTimeout)}
	r.Body = body
	ans, seq, err := g.take(r)
	if err == nil {
		g.finish(w, r, ans, seq)
		return
	}
	var ref *refusal
	if !errors.As(err, &ref) {
		ref = storageRefusal(err)
	}
	body.end = time.Now().Add(drainTimeout)
	g.refuse(w, r, ref)
}

// take brings an upload to the index and returns its answer. The error is a
// *refusal, or one of our own storage. The spool is free again when it returns.
func (g *Gateway) take(r *http.Request) (*indexAnswer, int64, error) {
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	default:
		return nil, 0, &refusal{status: http.StatusServiceUnavailable, reason: "Portbook gateway: too many uploads at a time, try again"}
	}
	if g.cfg.Refuse {
		if err := g.logOut(r.Context()); err != nil {
			return nil, 0, &refusal{http.StatusServiceUnavailable, "Portbook: the transparency log is out and this index takes no uploads meanwhile; nothing was uploaded, try again later", err}
		}
	}
	up, err := g.receive(r)
	defer up.remove()
	if err != nil {
		return nil, 0, err
	}
	return g.hand(r, up)
}

// storageRefusal is what an uploader hears when our own disk fails.
func storageRefusal(err error) *refusal {
	if isFull(err) {
		return &refusal{http.StatusInsufficientStorage, "Portbook gateway: no space left for uploads; nothing was uploaded, try again later", err}
	}
	return &refusal{http.StatusServiceUnavailable, "Portbook gateway: cannot record the upload; nothing was uploaded, try again later", err}
}

// refuse answers an upload that ends here. What the uploader still sends is read
// first, within bounds: a closed connection would hide the reason.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, ref *refusal) {
	header := http.Header{}
	if ref.status >= 500 {
		header.Set("Retry-After", retrySeconds)
		g.log.Warn("upload refused", "status", ref.status, "reason", ref.reason, "err", ref.err)
	} else {
		g.log.Info("upload refused", "status", ref.status, "reason", ref.reason)
	}
	io.Copy(io.Discard, io.LimitReader(r.Body, g.cfg.MaxSize+fieldBytes))
	answer(w, r, ref.status, ref.reason, header)
}

// patientBody ends a body whose sender goes silent, or never ends.
type patientBody struct {
	rc   *http.ResponseController
	body io.ReadCloser
	end  time.Time
}

func (b *patientBody) Read(p []byte) (int, error) {
	now := time.Now()
	if now.After(b.end) {
		return 0, os.ErrDeadlineExceeded
	}
	b.rc.SetReadDeadline(now.Add(idleTimeout)) // where it is not supported there is no deadline
	n, err := b.body.Read(p)
	if err != nil {
		// Who has sent everything may wait for our answer as long as it takes.
		b.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (b *patientBody) Close() error { return b.body.Close() }

// An upload is a form whose content waits in the spool.
type upload struct {
	form   *pypi.Upload
	spool  *os.File
	sha512 hash.Hash
	e      *entry.Entry // without time and without who uploaded
}

// remove takes the content out of the spool.
func (u *upload) remove() {
	if u.spool != nil {
		u.spool.Close()
		os.Remove(u.spool.Name())
		u.spool = nil
	}
}

// spoolError is an error of our disk, not of the uploader's form.
type spoolError struct{ err error }

func (e *spoolError) Error() string { return "spool: " + e.err.Error() }
func (e *spoolError) Unwrap() error { return e.err }

type spoolWriter struct{ w io.Writer }

func (s spoolWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		err = &spoolError{err}
	}
	return n, err
}

// receive reads the form to its end, hashes the file into the spool, and refuses
// what could not be logged before the index hears of it. The upload is never nil.
func (g *Gateway) receive(r *http.Request) (*upload, error) {
	u := &upload{sha512: sha512.New()}
	body := http.MaxBytesReader(nil, r.Body, g.cfg.MaxSize+fieldBytes+1<<20)
	form, err := pypi.ParseUpload(r.Header.Get("Content-Type"), body, pypi.UploadLimits{Content: g.cfg.MaxSize, FieldsBytes: fieldBytes},
		func(*pypi.Upload) (io.Writer, error) {
			f, err := os.CreateTemp(g.spool, "upload-")
			if err != nil {
				return nil, &spoolError{err}
			}
			u.spool = f
			return io.MultiWriter(spoolWriter{f}, u.sha512), nil
		})
	if err == nil {
		err = form.Check()
	}
	var bad *pypi.UploadError
	var disk *spoolError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &bad) && bad.TooLarge, errors.As(err, &large):
		return u, &refusal{http.StatusRequestEntityTooLarge, "Portbook gateway: " + err.Error(), err}
	case errors.As(err, &bad):
		return u, &refusal{http.StatusBadRequest, "Portbook gateway: " + err.Error(), err}
	case errors.As(err, &disk):
		return u, err
	case err != nil:
		return u, &refusal{http.StatusBadRequest, "Portbook gateway: the upload broke off", err}
	}
	u.form = form
	project, err := entry.NormalProject(entry.PyPI, form.Get("name"))
	if err != nil {
		return u, &refusal{http.StatusBadRequest, "Portbook gateway: " + err.Error(), err}
	}
	u.e = &entry.Entry{
		Kind: entry.KindUpload, Claim: entry.ClaimIndex, Time: g.cfg.Now().UTC().Format(entry.TimeFormat),
		Registry: g.cfg.Registry, Ecosystem: entry.PyPI, Project: project, Version: form.Get("version"), File: form.File,
		Size: entry.Uint(form.Size), SHA256: hex.EncodeToString(form.SHA256[:]), SHA512: hex.EncodeToString(u.sha512.Sum(nil)),
		MetadataSHA256: metadataSHA256(u.spool, int64(form.Size), form.File),
	}
	if err := u.e.Validate(); err != nil {
		return u, &refusal{http.StatusBadRequest, "Portbook gateway: this upload cannot be logged: " + err.Error(), err}
	}
	return u, nil
}

// An indexAnswer is what the index said to an upload.
type indexAnswer struct {
	status      int
	reason      string
	contentType string
	body        []byte
}

// hand gives the upload to the index, between two durable notes, and returns what
// the index said. Seq is the file to be proven, 0 if the index did not take it.
func (g *Gateway) hand(r *http.Request, u *upload) (ans *indexAnswer, seq int64, err error) {
	ctx := r.Context()
	listed := g.index.listed(ctx, u.e)
	id, err := g.outbox.receive(ctx, u.e, listed, g.cfg.Now())
	if err != nil {
		return nil, 0, err
	}
	g.setLive(id, true)
	defer g.setLive(id, false)
	g.crashForTest("received")
	if err := g.outbox.forwarding(ctx, id); err != nil {
		return nil, 0, errors.Join(err, g.outbox.drop(context.WithoutCancel(ctx), id))
	}
	g.crashForTest("forwarding")

	// From here on the uploader's going away changes nothing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), indexTimeout)
	defer cancel()
	ans, err = g.forward(ctx, r, u)
	var dial *net.OpError
	switch {
	case errors.As(err, &dial) && dial.Op == "dial":
		return nil, 0, errors.Join(&refusal{http.StatusBadGateway, "Portbook gateway: the index cannot be reached; nothing was uploaded, try again later", err}, g.outbox.drop(ctx, id))
	case err != nil:
		return nil, 0, &refusal{http.StatusBadGateway, "Portbook gateway: the index broke off without saying whether it took the file; try again, or look at its page in a minute", err}
	case ans.status >= 500 || ans.status == http.StatusRequestTimeout:
		// It may have taken the file all the same: the attempt stays, and Run asks.
		g.log.Warn("the index answered an upload with an error; asking later whether it took the file", "project", u.e.Project, "file", u.e.File, "status", ans.status, "reason", ans.reason)
		return ans, 0, nil
	case ans.status < 200 || ans.status > 299:
		g.crashForTest("refused")
		g.log.Info("the index refused an upload", "project", u.e.Project, "file", u.e.File, "status", ans.status, "reason", ans.reason)
		if err := g.outbox.drop(ctx, id); err != nil {
			return nil, 0, err
		}
		if ans.status < 400 {
			return nil, 0, &refusal{status: http.StatusBadGateway, reason: fmt.Sprintf("Portbook gateway: the index answers an upload with %d, which is no answer to one: is its upload URL right?", ans.status)}
		}
		return ans, 0, nil
	}
	g.crashForTest("index-accepted")
	// A yes is not enough: a login page says 200 too. What the index took, it
	// shows; what it does not show by now, Run goes on asking for.
	if err := g.shown(ctx, u.e, r.Header.Get("Authorization")); err != nil {
		g.log.Warn("the index said yes to an upload, but does not list it: not logged until it does", "project", u.e.Project, "file", u.e.File, "status", ans.status, "err", err)
		if ans.isWebPage() {
			return nil, 0, &refusal{http.StatusBadGateway, fmt.Sprintf("Portbook gateway: the index answers %d with a web page and does not list the file: is its upload URL right, is a login in front of it? The file is held until the index lists it", ans.status), err}
		}
		return ans, 0, nil
	}
	if listed != listedSame { // else this yes may have changed nothing, and names nobody
		if err := g.attribute(ctx, r, u.e); err != nil {
			return nil, 0, recordLater(err)
		}
	}
	seq, state, err := g.outbox.accept(ctx, id, u.e, listed, g.cfg.Now())
	if err != nil {
		return nil, 0, recordLater(err)
	}
	g.crashForTest("accepted")
	g.log.Info("the index accepted an upload", "project", u.e.Project, "file", u.e.File, "sha256", u.e.SHA256, "state", state)
	return ans, seq, nil
}

// isWebPage tells an answer for people: no index gives one to an upload.
func (a *indexAnswer) isWebPage() bool {
	return strings.HasPrefix(a.contentType, "text/html") && bytes.HasPrefix(bytes.TrimSpace(a.body), []byte("<"))
}

// shown asks whether the index lists what it has just said yes to, for as long
// as a page may lag behind; nil if it does. Where the gateway has no account of
// its own, it asks with the uploader's, if they were meant for the same host.
func (g *Gateway) shown(ctx context.Context, e *entry.Entry, auth string) error {
	if up, at := g.cfg.Upload, g.cfg.Index; g.index.readAuth != "" || up.Host != at.Host || up.Scheme != at.Scheme {
		auth = g.index.readAuth
	}
	var reason error
	for _, pause := range []time.Duration{0, 100 * time.Millisecond, 400 * time.Millisecond, time.Second} {
		select {
		case <-time.After(pause):
		case <-g.ctx.Done():
			return g.ctx.Err()
		}
		has, err := g.index.has(ctx, e, auth)
		switch {
		case err != nil:
			reason = err
		case has == hasIt:
			return nil
		case has == hasOther:
			reason = errors.New("its page lists other bytes")
		default:
			reason = errors.New("its page does not list the file")
		}
	}
	return reason
}

// recordLater: the index took the file and our disk failed. The attempt is still
// there, so Run will find out.
func recordLater(err error) *refusal {
	return &refusal{http.StatusServiceUnavailable, "Portbook gateway: the index took the file, but that cannot be recorded now; it stays off the pages until it is", err}
}

// forward sends the form to the index, written anew from what was understood: the
// index must not be able to read another file or name in it than we did. The
// credentials are the uploader's own.
func (g *Gateway) forward(ctx context.Context, r *http.Request, u *upload) (*indexAnswer, error) {
	var head bytes.Buffer
	form := multipart.NewWriter(&head)
	names := make([]string, 0, len(u.form.Fields))
	for name := range u.form.Fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, value := range u.form.Fields[name] {
			if err := form.WriteField(name, value); err != nil {
				return nil, err
			}
		}
	}
	if _, err := form.CreateFormFile("content", u.form.File); err != nil {
		return nil, err
	}
	n := head.Len()
	if err := form.Close(); err != nil {
		return nil, err
	}
	if _, err := u.spool.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	size := int64(u.form.Size)
	body := io.MultiReader(bytes.NewReader(head.Bytes()[:n]), io.LimitReader(u.spool, size), bytes.NewReader(head.Bytes()[n:]))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.cfg.Upload.String(), io.NopCloser(body))
	if err != nil {
		return nil, err
	}
	req.ContentLength = int64(head.Len()) + size
	req.Header.Set("Content-Type", form.FormDataContentType())
	for _, k := range []string{"Authorization", "User-Agent"} {
		if v := r.Header.Get(k); v != "" {
			req.Header.Set(k, v)
		}
	}
	resp, err := g.index.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	ans := &indexAnswer{status: resp.StatusCode, reason: reasonPhrase(resp), contentType: resp.Header.Get("Content-Type")}
	ans.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil && ans.status < 400 {
		return nil, err
	}
	return ans, nil
}

// attribute says who uploaded, once the index has said yes to them.
func (g *Gateway) attribute(ctx context.Context, r *http.Request, e *entry.Entry) error {
	e.Time = g.cfg.Now().UTC().Format(entry.TimeFormat)
	user, password, basic := r.BasicAuth()
	switch {
	case !basic && r.Header.Get("Authorization") == "":
		return nil
	case !basic:
		e.Auth = "token"
		return nil
	case user == "__token__" || user == "" || password == "" || password == "x-oauth-basic":
		// The account behind a token is known to the index alone. Some indexes take
		// the token as the user name: it must not be kept as one.
		e.Auth = "token"
		return nil
	}
	e.Auth = "password"
	if a, ok := g.cfg.Accounts[user]; ok {
		e.Publisher = a.Publisher
		if a.Auth != "" {
			e.Auth = a.Auth
		}
	}
	var err error
	e.Uploader, err = g.outbox.pseudonym(ctx, e.Project, user)
	return err
}

// finish waits a while for the proof and gives the uploader the index's answer,
// and what became of the file, in the header Portbook-State.
func (g *Gateway) finish(w http.ResponseWriter, r *http.Request, ans *indexAnswer, seq int64) {
	header := http.Header{}
	if ans.contentType != "" {
		header.Set("Content-Type", ans.contentType)
	}
	if seq != 0 {
		state, f := g.awaitProof(r.Context(), seq)
		switch {
		case state == Conflict:
			answer(w, r, http.StatusConflict, fmt.Sprintf("Portbook: the log holds %s with other bytes; the index took the upload, but it stays off the pages", f.e.File), nil)
			return
		case state == Proven:
			header.Set("Portbook-State", fmt.Sprintf("proven; index=%d", f.logIndex))
		default:
			header.Set("Portbook-State", "held")
			if g.cfg.Refuse {
				g.log.Warn("the log went out after the index accepted an upload: held off the pages until it is proven", "seq", seq)
			}
		}
	}
	if seq == 0 && ans.status < 300 {
		header.Set("Portbook-State", "held")
	}
	answerRaw(w, r, ans.status, ans.reason, header, ans.body)
}

func (g *Gateway) awaitProof(ctx context.Context, seq int64) (State, *file) {
	over := g.prove(seq)
	wait := time.NewTimer(g.cfg.ProofWait)
	defer wait.Stop()
	select {
	case <-over:
	case <-wait.C:
	case <-ctx.Done():
	case <-g.ctx.Done():
	}
	f, err := g.outbox.file(context.WithoutCancel(ctx), seq)
	if err != nil {
		g.log.Error("cannot read the state of an accepted file", "seq", seq, "err", err)
		return Accepted, nil
	}
	return f.state, f
}

// isWheel tells a wheel by its name.
func isWheel(name string) bool { return strings.HasSuffix(strings.ToLower(name), ".whl") }
