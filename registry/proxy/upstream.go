package proxy

// Reaching the index and the hosts that keep its files: bounded, patient for a
// few seconds, and never tricked into asking other machines.

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/portbook/portbook/client"
)

const (
	headerTimeout = 10 * time.Second // until an answer begins
	logTimeout    = 8 * time.Second
	pageTimeout   = time.Minute
	maxRedirects  = 5
)

// tries are the pauses between attempts. pip gives a silent server 15 s.
var tries = []time.Duration{150 * time.Millisecond, 500 * time.Millisecond}

type upstream struct {
	index    *url.URL
	userinfo *url.Userinfo
	hosts    map[string]bool   // host or host:port, lower case, from --file-host
	trusted  http.RoundTripper // for the index's origin and hosts
	guarded  http.RoundTripper // for all others: public addresses only
	proxyFor func(*http.Request) (*url.URL, error)
}

func transportOf(t *http.Transport) *http.Transport {
	if t != nil {
		t = t.Clone()
	} else {
		t = http.DefaultTransport.(*http.Transport).Clone()
	}
	t.DisableCompression = true // what is hashed is what is sent
	t.ResponseHeaderTimeout = headerTimeout
	t.MaxResponseHeaderBytes = 64 << 10
	return t
}

func newUpstream(t *http.Transport, index *url.URL, userinfo *url.Userinfo, hosts []string) *upstream {
	u := &upstream{index: index, userinfo: userinfo, hosts: map[string]bool{}, trusted: t, proxyFor: t.Proxy}
	for _, h := range hosts {
		u.hosts[strings.ToLower(h)] = true
	}
	g := t.Clone()
	d := &net.Dialer{Timeout: 10 * time.Second, Control: publicOnly}
	g.DialContext = d.DialContext
	u.guarded = g
	return u
}

// errPrivate: a page of the index points to a machine that is not for us to
// ask.
var errPrivate = errors.New("the address is not a public one")

// publicOnly is called with the address that is about to be dialled, so that a
// name cannot resolve to something else in between.
func publicOnly(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return errPrivate
	}
	if !client.PublicAddress(ap.Addr()) {
		return errPrivate
	}
	return nil
}

// knownHost tells whether u lies on the index's own origin or on a host that
// was configured.
func (up *upstream) knownHost(u *url.URL) bool {
	return origin(u) == origin(up.index) || up.hosts[strings.ToLower(u.Host)] || up.hosts[strings.ToLower(u.Hostname())]
}

// do makes one request, following redirects itself. auth is the client's own
// Authorization header; like the index's user info it goes to the index's
// origin only. The body of the answer must be closed.
func (up *upstream) do(ctx context.Context, method string, u *url.URL, header http.Header, auth string) (*http.Response, error) {
	for range maxRedirects + 1 {
		req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
		if err != nil {
			return nil, err
		}
		for k, v := range header {
			req.Header[k] = v
		}
		req.Header.Set("User-Agent", "portbook")
		if req.Header.Get("Accept-Encoding") == "" {
			req.Header.Set("Accept-Encoding", "identity")
		}
		if origin(u) == origin(up.index) {
			if up.userinfo != nil {
				password, _ := up.userinfo.Password()
				req.SetBasicAuth(up.userinfo.Username(), password)
			} else if auth != "" {
				req.Header.Set("Authorization", auth)
			}
		}
		rt := up.trusted
		if !up.knownHost(u) && !up.viaProxy(req) {
			rt = up.guarded
		}
		resp, err := rt.RoundTrip(req)
		if errors.Is(err, errPrivate) {
			return nil, &client.Refusal{Code: CodeFileHost, Check: "the file's host",
				Detail: fmt.Sprintf("%s has a private address and is not the index's own host", printable(u.Host)), Err: err}
		}
		if err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		resp.Body.Close()
		next, err := u.Parse(resp.Header.Get("Location"))
		if err != nil || resp.Header.Get("Location") == "" || next.Host == "" ||
			next.Scheme != "https" && (next.Scheme != "http" || u.Scheme == "https") {
			return nil, &client.CannotCheck{Code: CodeIndexAnswer, Reason: fmt.Sprintf("%s redirects to where it may not", printable(u.Host)), Err: err}
		}
		next.User = nil
		u = next
	}
	return nil, &client.CannotCheck{Code: CodeIndexAnswer, Reason: fmt.Sprintf("%s redirects more than %d times", printable(u.Host), maxRedirects)}
}

// viaProxy tells whether an HTTP proxy will make the connection: then the
// address is the proxy's and says nothing about the host.
func (up *upstream) viaProxy(req *http.Request) bool {
	if up.proxyFor == nil {
		return false
	}
	pu, err := up.proxyFor(req)
	return err == nil && pu != nil
}

// get is do with a few attempts: again after a broken connection, 429 and 5xx.
// An answer that is still one of those is a *client.CannotCheck. Any other
// status is the caller's to judge.
func (up *upstream) get(ctx context.Context, u *url.URL, header http.Header, auth string) (*http.Response, error) {
	for i := 0; ; i++ {
		resp, err := up.do(ctx, http.MethodGet, u, header, auth)
		var refusal *client.Refusal
		var cannot *client.CannotCheck
		switch {
		case err == nil && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode < 500:
			return resp, nil
		case err == nil:
			resp.Body.Close()
			err = &client.CannotCheck{Code: CodeIndexAnswer, Reason: fmt.Sprintf("%s answered %d", printable(u.Host), resp.StatusCode)}
		case errors.As(err, &refusal), errors.As(err, &cannot):
			return nil, err
		default:
			err = &client.CannotCheck{Code: CodeIndexUnreachable, Reason: fmt.Sprintf("%s: %s", printable(u.Host), printable(rootCause(err))), Err: err}
		}
		if i == len(tries) || ctx.Err() != nil {
			return nil, err
		}
		select {
		case <-time.After(tries[i]):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// rootCause leaves the URL out: it may carry a signature.
func rootCause(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}

// readPage is readAll of a body that may be compressed; the bound is for what
// comes out.
func readPage(resp *http.Response, max int64) ([]byte, error) {
	switch e := resp.Header.Get("Content-Encoding"); e {
	case "", "identity":
		return readAll(resp.Body, max)
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(resp.Body)
		if err != nil {
			return nil, &client.CannotCheck{Code: CodeIndexAnswer, Reason: "an answer that is not gzip although it says so", Err: err}
		}
		return readAll(z, max)
	default:
		return nil, &client.CannotCheck{Code: CodeIndexAnswer, Reason: "an answer in an encoding nobody asked for: " + clip(printable(e), 50)}
	}
}

// readAll reads a body of at most max bytes.
func readAll(r io.Reader, max int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, max+1))
	if err != nil {
		return nil, &client.CannotCheck{Code: CodeIndexUnreachable, Reason: "the connection broke: " + printable(rootCause(err)), Err: err}
	}
	if int64(len(b)) > max {
		return nil, &client.CannotCheck{Code: CodeIndexAnswer, Reason: fmt.Sprintf("an answer of more than %d bytes", max)}
	}
	return b, nil
}

// A stallReader gives up when nothing comes for a while.
type stallReader struct {
	r      io.ReadCloser
	timer  *time.Timer
	after  time.Duration
	cancel context.CancelFunc
}

func newStallReader(body io.ReadCloser, cancel context.CancelFunc, after time.Duration) *stallReader {
	return &stallReader{body, time.AfterFunc(after, cancel), after, cancel}
}

func (s *stallReader) Read(b []byte) (int, error) {
	s.timer.Reset(s.after)
	return s.r.Read(b)
}

func (s *stallReader) Close() error {
	s.timer.Stop()
	s.cancel()
	return s.r.Close()
}
