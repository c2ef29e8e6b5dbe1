package client

// Read tokens of private logs. A token goes to the one log it is for, over https
// or to this machine, and into no error.

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// ReadToken returns a transport that shows a private log's read token to the log
// at baseURL, and to nobody else: requests to other hosts, or outside the log's
// prefix, go out without it. next carries the requests; nil means a transport as
// NewReader's own. Use it as
//
//	NewReader(baseURL, &http.Client{Transport: transport})
//
// It refuses a log that is asked in the clear over a network. Errors never
// contain the token. See TestReadToken.
func ReadToken(baseURL, token string, next http.RoundTripper) (http.RoundTripper, error) {
	u, err := url.Parse(baseURL)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("log URL %q: want http or https and a host", baseURL)
	}
	if u.Scheme != "https" && !(u.Scheme == "http" && onThisMachine(u.Hostname())) {
		return nil, fmt.Errorf("log URL %q: a read token goes over https, or to this machine", baseURL)
	}
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the read token is empty, or holds what no token has")
	}
	if next == nil {
		next = ownTransport()
	}
	return &tokenTransport{u.Scheme, u.Host, strings.TrimRight(u.Path, "/") + "/", token, next}, nil
}

func onThisMachine(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

type tokenTransport struct {
	scheme, host, prefix string
	token                string
	next                 http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *tokenTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == t.scheme && r.URL.Host == t.host && strings.HasPrefix(r.URL.Path, t.prefix) {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+t.token)
	}
	return t.next.RoundTrip(r)
}

// CloseIdleConnections is for http.Client.
func (t *tokenTransport) CloseIdleConnections() {
	if c, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// String and GoString keep the token out of what is printed.
func (t *tokenTransport) String() string   { return "read token for " + t.host }
func (t *tokenTransport) GoString() string { return t.String() }
