package proxy

// Pages: fetched, understood, remembered, written anew with our file URLs.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/registry/pypi"
)

func (p *Proxy) serveList(w http.ResponseWriter, r *http.Request) {
	resp, body, ok := p.fetchPage(w, r, p.index)
	if !ok {
		return
	}
	list, err := pypi.ParseList(resp.Header.Get("Content-Type"), body)
	if err != nil {
		p.badPage(w, r, p.index, err)
		return
	}
	m, _ := pypi.NegotiateFor(list.From(), r.Header.Values("Accept")...)
	p.sendPage(w, r, resp, m, list.Render(m))
}

func (p *Proxy) servePage(w http.ResponseWriter, r *http.Request, rest string) {
	name, slash := strings.CutSuffix(rest, "/")
	project, err := pypi.NormalProject(name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	if !slash || project != name {
		http.Redirect(w, r, "/simple/"+project+"/", http.StatusMovedPermanently)
		return
	}
	u := p.index.JoinPath(project, "/")
	resp, body, ok := p.fetchPage(w, r, u)
	if !ok {
		return
	}
	found := u
	if resp.Request != nil && resp.Request.URL != nil {
		found = resp.Request.URL // after redirects
	}
	page, err := pypi.Parse(resp.Header.Get("Content-Type"), body, found)
	if err != nil {
		p.badPage(w, r, u, err)
		return
	}
	for _, ref := range page.Skipped {
		p.cfg.Logger.Warn("page: left out what is no URL", "project", project, "reference", clip(printable(ref), 200))
	}
	files := p.rewrite(project, page)
	m, _ := pypi.NegotiateFor(page.From(), r.Header.Values("Accept")...)
	out, err := page.Render(m)
	if err != nil {
		p.badPage(w, r, u, err)
		return
	}
	p.seen.page(project, files)
	p.sendPage(w, r, resp, m, out)
}

// rewrite replaces the file URLs of a page by ours and returns what the page
// told about each. A link that is no file (to a parent directory, say) goes;
// a file that cannot be fetched through us stays listed, since an installer
// would otherwise quietly take an older one.
func (p *Proxy) rewrite(project string, page *pypi.Page) map[string]*told {
	files := make(map[string]*told, len(page.Files))
	page.Keep(func(f *pypi.File) bool { return f.Name != "" })
	page.MapURLs(func(f *pypi.File) string {
		u, err := url.Parse(f.URL)
		if err != nil {
			return "../../refused/" + CodeFileHost + "/" + url.PathEscape(f.Name)
		}
		if pypi.LastSegment(u) != f.Name {
			return "../../refused/" + CodePageName + "/" + url.PathEscape(f.Name)
		}
		if origin(u) == origin(p.index) {
			u.User = nil
		}
		ref, ok := forward(u)
		if !ok || u.User != nil {
			return "../../refused/" + CodeFileHost + "/" + url.PathEscape(f.Name)
		}
		files[key(u)] = &told{project: project, sha256: digest(f.Hashes), metadata: digest(f.Metadata)}
		return ref
	})
	return files
}

func digest(hashes map[string]string) *[32]byte {
	b, err := hex.DecodeString(hashes["sha256"])
	if err != nil || len(b) != sha256.Size {
		return nil
	}
	return (*[32]byte)(b)
}

// fetchPage gets a page of the index. ok is false when the answer has been
// given.
func (p *Proxy) fetchPage(w http.ResponseWriter, r *http.Request, u *url.URL) (resp *http.Response, body []byte, ok bool) {
	ctx, cancel := context.WithTimeout(r.Context(), pageTimeout)
	defer cancel()
	resp, err := p.up.get(ctx, u, http.Header{"Accept": {pypi.Accept}, "Accept-Encoding": {"gzip"}}, r.Header.Get("Authorization"))
	if err != nil {
		p.badPage(w, r, u, err)
		return nil, nil, false
	}
	defer resp.Body.Close()
	if resp.Request.URL != nil && origin(resp.Request.URL) != origin(p.index) {
		p.badPage(w, r, u, errors.New("redirects to another host"))
		return nil, nil, false
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized:
		for _, v := range resp.Header.Values("WWW-Authenticate") {
			w.Header().Add("WWW-Authenticate", v)
		}
		fallthrough
	case http.StatusNotFound, http.StatusGone, http.StatusForbidden:
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, fmt.Sprintf("the index answered %d", resp.StatusCode), resp.StatusCode)
		return nil, nil, false
	default:
		p.badPage(w, r, u, fmt.Errorf("answered %d", resp.StatusCode))
		return nil, nil, false
	}
	body, err = readPage(resp, pypi.MaxPage)
	if err != nil {
		p.badPage(w, r, u, err)
		return nil, nil, false
	}
	return resp, body, true
}

// badPage answers for a page that could not be had. Installers hide the reason
// ("No matching distribution found"), so it is also logged and counted.
func (p *Proxy) badPage(w http.ResponseWriter, r *http.Request, u *url.URL, err error) {
	if r.Context().Err() != nil {
		return // the client has gone
	}
	code, detail := CodeIndexAnswer, "the page: "+printable(err.Error())
	var c *client.CannotCheck
	if errors.As(err, &c) {
		code, detail = c.Code, c.Reason
	}
	p.counts.add(shown(u), CannotCheck, code, detail)
	p.cfg.Logger.Warn("cannot check", "page", shown(u), "code", code, "reason", err.Error())
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, "PORTBOOK CANNOT CHECK ("+code+"): "+detail, http.StatusBadGateway)
}

func (p *Proxy) sendPage(w http.ResponseWriter, r *http.Request, up *http.Response, m pypi.MediaType, body []byte) {
	h := w.Header()
	sum := sha256.Sum256(body)
	etag := `"` + hex.EncodeToString(sum[:16]) + `"`
	h.Set("ETag", etag)
	h.Set("Cache-Control", "no-cache")
	h.Set("Vary", "Accept")
	h.Set("Content-Type", m.ContentType())
	h.Set("X-Content-Type-Options", "nosniff")
	if v := up.Header.Get("X-PyPI-Last-Serial"); v != "" {
		h.Set("X-PyPI-Last-Serial", v)
	}
	p.fresh.header(h)
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Length", fmt.Sprint(len(body)))
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}
