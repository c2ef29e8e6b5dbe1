// Pages and files: those of the index behind, less what is not proven.

package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/registry/pypi"
)

const proofSuffix = ".tlog-proof"

func (g *Gateway) serveProjects(w http.ResponseWriter, r *http.Request) {
	contentType, body, _, err := g.index.page(r.Context(), r.Header.Get("Authorization"))
	var list *pypi.List
	if err == nil {
		list, err = pypi.ParseList(contentType, body)
	}
	if err != nil {
		g.indexFailed(w, r, err)
		return
	}
	m, _ := pypi.Negotiate(r.Header.Values("Accept")...)
	sendPage(w, r, m, list.Render(m))
}

func (g *Gateway) serveProject(w http.ResponseWriter, r *http.Request, path string) {
	name, slash := strings.CutSuffix(path, "/")
	project, err := pypi.NormalProject(name)
	if err != nil {
		answer(w, r, http.StatusNotFound, "Not found: "+err.Error(), nil)
		return
	}
	if !slash || project != name {
		// Relative, so that it holds behind any prefix. A normal name is safe in it.
		to := "../" + project + "/"
		if !slash {
			to = project + "/"
		}
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusMovedPermanently)
		return
	}
	page, err := g.visiblePage(r.Context(), r.Header.Get("Authorization"), project)
	if err != nil {
		g.indexFailed(w, r, err)
		return
	}
	page.MapURLs(func(f *pypi.File) string { return "../../files/" + project + "/" + url.PathEscape(f.Name) })
	m, _ := pypi.Negotiate(r.Header.Values("Accept")...)
	body, err := page.Render(m)
	if err != nil {
		g.indexFailed(w, r, err)
		return
	}
	sendPage(w, r, m, body)
}

// visiblePage is the index's page of a project without the files that are
// withheld. File names that an entry could not carry are withheld too: they could
// not be asked for here.
func (g *Gateway) visiblePage(ctx context.Context, auth, project string) (*pypi.Page, error) {
	page, err := g.index.project(ctx, auth, project)
	if err != nil {
		return nil, err
	}
	// Read after the page: what the index lists was noted before it could list it.
	s, err := g.shelf(ctx, project)
	if err != nil {
		return nil, err
	}
	page.Keep(func(f *pypi.File) bool {
		return entry.CheckFile(entry.PyPI, f.Name) == nil && s.visible(f.Name, f.Hashes["sha256"])
	})
	return page, nil
}

// A shelf is what the outbox knows of one project's files.
type shelf struct {
	files        map[string][]shelved // by name, the latest accepted last
	attempts     map[string][]shelved // in forwarding
	hideUnlogged bool
}

// A shelved is one content of a file name.
type shelved struct {
	sha256, listed string
	state          State
}

func (g *Gateway) shelf(ctx context.Context, project string) (*shelf, error) {
	files, attempts, err := g.outbox.shelf(ctx, project)
	return &shelf{files, attempts, g.cfg.HideUnlogged}, err
}

// visible decides whether a file that the index lists, with this digest or with
// none, is on our page. An upload that the index may yet refuse never takes down
// what was there before it; a proven file stays listed even when the index shows
// another digest for it, so that clients refuse it loudly instead of silently
// installing something older.
func (s *shelf) visible(name, digest string) bool {
	files, attempts := s.files[name], s.attempts[name]
	for _, f := range files {
		if f.sha256 == digest {
			return f.visible()
		}
	}
	for _, a := range attempts {
		if a.sha256 == digest && a.listed != listedSame {
			return false
		}
	}
	if n := len(files); n > 0 {
		return files[n-1].visible()
	}
	for _, a := range attempts {
		if a.listed == listedNo {
			return false
		}
	}
	return !s.hideUnlogged
}

// visible: proven, or not yet proven but already on the page before it came
// through the gateway.
func (f shelved) visible() bool {
	return f.state == Proven || f.listed == listedSame && f.state != Conflict
}

// serveFile serves <project>/<file>, its .metadata, and its .tlog-proof.
func (g *Gateway) serveFile(w http.ResponseWriter, r *http.Request, path string) {
	project, name, ok := strings.Cut(path, "/")
	if !ok || entry.CheckProject(entry.PyPI, project) != nil || entry.CheckFile(entry.PyPI, name) != nil {
		answer(w, r, http.StatusNotFound, "Not found: files are at /files/<project>/<file>", nil)
		return
	}
	if base, ok := strings.CutSuffix(name, proofSuffix); ok {
		g.serveProof(w, r, project, base)
		return
	}
	base, metadata := strings.CutSuffix(name, ".metadata")
	at, err := g.locate(r.Context(), r.Header.Get("Authorization"), project, base)
	switch {
	case errors.Is(err, errWithheld):
		answer(w, r, http.StatusForbidden, "Portbook: "+base+" is withheld: it has no proof of being logged yet", nil)
		return
	case err != nil:
		g.indexFailed(w, r, err)
		return
	}
	if metadata {
		at = at.JoinPath() // a copy
		at.Path, at.RawPath = at.Path+".metadata", ""
	}
	header := http.Header{"Accept-Encoding": {"identity"}}
	for _, k := range []string{"Range", "If-Range", "If-None-Match", "If-Modified-Since"} {
		if v := r.Header.Get(k); v != "" {
			header.Set(k, v)
		}
	}
	resp, err := g.index.get(r.Context(), at, header, r.Header.Get("Authorization"))
	if err != nil {
		g.indexFailed(w, r, err)
		return
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusNotModified, http.StatusRequestedRangeNotSatisfiable:
	default:
		g.indexFailed(w, r, newStatusError(resp))
		return
	}
	for _, k := range []string{"Content-Type", "Content-Length", "Content-Range", "Accept-Ranges", "ETag", "Last-Modified", "Cache-Control"} {
		if v := resp.Header.Get(k); v != "" {
			w.Header().Set(k, v)
		}
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(resp.StatusCode)
	if r.Method != http.MethodHead {
		if _, err := io.Copy(w, resp.Body); err != nil {
			panic(http.ErrAbortHandler) // half a file must not look like a whole one
		}
	}
}

func (g *Gateway) serveProof(w http.ResponseWriter, r *http.Request, project, name string) {
	proof, err := g.outbox.proof(r.Context(), project, name)
	switch {
	case err != nil:
		g.log.Error("cannot read a proof", "project", project, "file", name, "err", err)
		answer(w, r, http.StatusServiceUnavailable, "Portbook gateway: cannot read the proof now", nil)
	case proof == nil:
		answer(w, r, http.StatusNotFound, "Portbook: "+name+" has no proof: it did not come through this gateway, or is not logged yet", nil)
	default:
		sum := sha256.Sum256(proof)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:16])+`"`)
		w.Header().Set("Cache-Control", "no-cache")
		if r.Method != http.MethodHead {
			w.Write(proof)
		}
	}
}

var errWithheld = errors.New("withheld")

// locate finds where the index keeps a file that may be served.
func (g *Gateway) locate(ctx context.Context, auth, project, name string) (*url.URL, error) {
	for _, fresh := range []bool{false, true} {
		l, err := g.index.link(ctx, auth, project, name, fresh)
		if err != nil {
			return nil, err
		}
		s, err := g.shelf(ctx, project)
		if err != nil {
			return nil, err
		}
		if s.visible(name, l.sha256) {
			return url.Parse(l.url)
		}
		// It may be that the page is another by now.
	}
	return nil, errWithheld
}

// indexFailed answers for an index that gave no page or file.
func (g *Gateway) indexFailed(w http.ResponseWriter, r *http.Request, err error) {
	var status *statusError
	switch {
	case r.Context().Err() != nil:
		return // nobody listens
	case errors.As(err, &status) && status.status == http.StatusNotFound:
		answer(w, r, http.StatusNotFound, "Not found", nil)
	case errors.As(err, &status) && (status.status == http.StatusUnauthorized || status.status == http.StatusForbidden):
		h := http.Header{}
		if status.status == http.StatusUnauthorized {
			h.Set("WWW-Authenticate", `Basic realm="package index"`)
		}
		answer(w, r, status.status, status.reason, h)
	case errors.Is(err, errFileHost):
		g.log.Error("file not served", "path", r.URL.Path, "err", err)
		answer(w, r, http.StatusForbidden, "Portbook gateway: "+err.Error(), nil)
	case errors.As(err, &status) && status.status >= 300 && status.status < 400:
		g.log.Warn("the index redirects", "path", r.URL.Path, "err", err)
		answer(w, r, http.StatusBadGateway, "Portbook gateway: "+err.Error(), nil)
	default:
		g.log.Warn("the index gave no answer", "path", r.URL.Path, "err", err)
		answer(w, r, http.StatusBadGateway, "Portbook gateway: the index behind it gives no answer", nil)
	}
}

// sendPage sends a page that clients may keep, but not use without asking.
func sendPage(w http.ResponseWriter, r *http.Request, m pypi.MediaType, body []byte) {
	sum := sha256.Sum256(append([]byte(m+"\n"), body...))
	etag := `"` + hex.EncodeToString(sum[:16]) + `"`
	h := w.Header()
	h.Set("Content-Type", m.ContentType())
	h.Set("ETag", etag)
	h.Set("Cache-Control", "no-cache")
	h.Set("Vary", "Accept, Authorization")
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}
