// What the gateway asks of the index behind it: pages, files, and whether it has
// a file. Only configured hosts are ever asked, whatever a page says.

package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/registry/pypi"
)

type upstream struct {
	index    *url.URL
	hosts    []string // from which files may be fetched
	readAuth string   // Authorization of the gateway's own requests; may be ""
	maxSize  int64
	client   *http.Client
	links    linkCache
}

func newUpstream(cfg Config) *upstream {
	rt := cfg.HTTP
	if rt == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
		t.ResponseHeaderTimeout = 2 * time.Minute
		t.MaxResponseHeaderBytes = 64 << 10
		t.MaxIdleConnsPerHost = 32
		rt = t
	}
	u := &upstream{index: cfg.Index, hosts: append([]string{cfg.Index.Host}, cfg.FileHosts...), maxSize: cfg.MaxSize}
	u.client = &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if cfg.ReadUser != "" {
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth(cfg.ReadUser, cfg.ReadPassword)
		u.readAuth = r.Header.Get("Authorization")
	}
	return u
}

// A statusError is an answer of the index that is not a page or file.
type statusError struct {
	status int
	reason string // the reason phrase
}

func (e *statusError) Error() string {
	if e.status >= 300 && e.status < 400 && e.status != http.StatusNotModified {
		return fmt.Sprintf("the index answers with a redirect (%d), and none is followed: it must serve pages and files itself, not from object storage", e.status)
	}
	return fmt.Sprintf("the index answers %d %s", e.status, e.reason)
}

func newStatusError(resp *http.Response) *statusError {
	return &statusError{resp.StatusCode, reasonPhrase(resp)}
}

// reasonPhrase is the text after the number in the status line.
func reasonPhrase(resp *http.Response) string {
	_, reason, _ := strings.Cut(resp.Status, " ")
	return reason
}

// page fetches the bytes of a page with the given Authorization. At is its URL.
func (u *upstream) page(ctx context.Context, auth string, path ...string) (contentType string, body []byte, at *url.URL, err error) {
	at = u.index
	if len(path) > 0 {
		at = u.index.JoinPath(path...)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	resp, err := u.get(ctx, at, http.Header{"Accept": {pypi.Accept}}, auth)
	if err != nil {
		return "", nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", nil, nil, newStatusError(resp)
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, pypi.MaxPage+1))
	if err != nil {
		return "", nil, nil, err
	}
	if len(body) > pypi.MaxPage {
		return "", nil, nil, fmt.Errorf("the page %s is larger than %d bytes", at, pypi.MaxPage)
	}
	return resp.Header.Get("Content-Type"), body, at, nil
}

// project fetches and parses the page of a project.
func (u *upstream) project(ctx context.Context, auth, project string) (*pypi.Page, error) {
	contentType, body, at, err := u.page(ctx, auth, project, "/")
	if err != nil {
		return nil, err
	}
	return pypi.Parse(contentType, body, at)
}

// get asks an allowed host. The credentials go to the index alone, and only over
// the scheme it is configured with.
func (u *upstream) get(ctx context.Context, at *url.URL, header http.Header, auth string) (*http.Response, error) {
	if err := u.allowed(at); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if auth != "" && at.Host == u.index.Host && at.Scheme == u.index.Scheme {
		req.Header.Set("Authorization", auth)
	}
	req.Header.Set("User-Agent", "portbook-gateway")
	return u.client.Do(req)
}

var errFileHost = errors.New("a host that is not allowed")

func (u *upstream) allowed(at *url.URL) error {
	if at.Scheme != "http" && at.Scheme != "https" || at.User != nil || !slices.Contains(u.hosts, at.Host) {
		return fmt.Errorf("the index points to %s://%s, %w: name it with --file-host if it keeps files of the index", at.Scheme, at.Host, errFileHost)
	}
	return nil
}

// What the index has under the name of a file.
type having int

const (
	hasNot   having = iota // the project's page does not list the name
	hasOther               // other bytes
	hasIt                  // these bytes
)

// has asks whether the index lists and serves the file of e. A digest on the page
// that is e's is believed; with none, or another, the bytes decide.
func (u *upstream) has(ctx context.Context, e *entry.Entry, auth string) (having, error) {
	f, err := u.find(ctx, auth, e.Project, e.File)
	if err != nil || f == nil {
		return hasNot, err
	}
	if f.Hashes["sha256"] == e.SHA256 {
		return hasIt, nil
	}
	at, err := url.Parse(f.URL)
	if err != nil {
		return hasNot, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	resp, err := u.get(ctx, at, http.Header{"Accept-Encoding": {"identity"}}, auth)
	if err != nil {
		return hasNot, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return hasNot, newStatusError(resp)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(resp.Body, u.maxSize+1)); err != nil {
		return hasNot, err
	}
	if hex.EncodeToString(h.Sum(nil)) == e.SHA256 {
		return hasIt, nil
	}
	return hasOther, nil
}

// find looks a file up on the page of its project; nil if it is not there.
func (u *upstream) find(ctx context.Context, auth, project, name string) (*pypi.File, error) {
	page, err := u.project(ctx, auth, project)
	var status *statusError
	if errors.As(err, &status) && status.status == http.StatusNotFound {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	for _, f := range page.Files {
		if f.Name == name {
			return f, nil
		}
	}
	return nil, nil
}

// listed tells what the page says of a file's name before it is uploaded. Where
// nobody can tell, the name counts as new: a new file is withheld.
func (u *upstream) listed(ctx context.Context, e *entry.Entry) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	f, err := u.find(ctx, u.readAuth, e.Project, e.File)
	switch {
	case err != nil || f == nil:
		return listedNo
	case f.Hashes["sha256"] == e.SHA256:
		return listedSame
	}
	return listedOther
}

// A link is where a page says that a file is, and what it says its digest is.
type link struct{ url, sha256 string }

// linkCache remembers for a moment where files are, so that installing ten files
// of a project does not fetch its page ten times. Whether a file may be served is
// never remembered.
type linkCache struct {
	mu    sync.Mutex
	pages map[linkKey]linkPage
}

type linkKey struct {
	auth    [32]byte // one reader's pages are not another's
	project string
}

type linkPage struct {
	links   map[string]link
	expires time.Time
}

const (
	linksFor      = 10 * time.Second
	maxLinkPages  = 256
	maxLinksAPage = 4096
)

// link finds a file on the page of its project; fresh asks the index anew.
func (u *upstream) link(ctx context.Context, auth, project, name string, fresh bool) (link, error) {
	key := linkKey{sha256.Sum256([]byte(auth)), project}
	u.links.mu.Lock()
	cached, ok := u.links.pages[key]
	u.links.mu.Unlock()
	if l, found := cached.links[name]; ok && found && !fresh && time.Now().Before(cached.expires) {
		return l, nil
	}
	page, err := u.project(ctx, auth, project)
	if err != nil {
		return link{}, err
	}
	links := make(map[string]link, len(page.Files))
	for _, f := range page.Files {
		if _, twice := links[f.Name]; !twice {
			links[f.Name] = link{f.URL, f.Hashes["sha256"]}
		}
	}
	if len(links) <= maxLinksAPage {
		u.links.mu.Lock()
		if u.links.pages == nil || len(u.links.pages) >= maxLinkPages {
			u.links.pages = map[linkKey]linkPage{}
		}
		u.links.pages[key] = linkPage{links, time.Now().Add(linksFor)}
		u.links.mu.Unlock()
	}
	l, found := links[name]
	if !found {
		return link{}, &statusError{http.StatusNotFound, "Not Found"}
	}
	return l, nil
}
