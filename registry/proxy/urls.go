package proxy

// File URLs: there and back. https://files.example/a/x-1.whl?k=v stands on our
// pages as ../../files/https/files.example/a/x-1.whl?k=v, from which the
// original can be read off, by people and by tools that restore lock files.

import (
	"net/url"
	"strings"
)

// forward returns how u is written on our page of a project. ok is false for
// what cannot be a file to fetch.
func forward(u *url.URL) (ref string, ok bool) {
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "" {
		return "", false
	}
	path := u.EscapedPath()
	if !strings.HasPrefix(path, "/") || hasDots(u.Path) {
		return "", false
	}
	ref = "../../files/" + u.Scheme + "/" + url.PathEscape(u.Host) + path
	if u.RawQuery != "" {
		ref += "?" + u.RawQuery
	}
	return ref, true
}

// backward is the inverse of forward, from the escaped path of a request
// (which begins with /files/) and its query. Clients escape in their own ways
// (pip writes the colon before a port as %3A), so one URL may come back in
// several spellings; see key.
func backward(path, query string) (*url.URL, bool) {
	rest := strings.TrimPrefix(path, "/files/")
	scheme, rest, _ := strings.Cut(rest, "/")
	host, rest, found := strings.Cut(rest, "/")
	host, err := url.PathUnescape(host)
	if !found || err != nil || strings.ContainsAny(host, "@/\\?# ") {
		return nil, false
	}
	raw := scheme + "://" + host + "/" + rest
	if query != "" {
		raw += "?" + query
	}
	u, err := url.Parse(raw)
	if err != nil || u.Fragment != "" || u.User != nil {
		return nil, false
	}
	if _, ok := forward(u); !ok {
		return nil, false
	}
	return u, true
}

// hasDots tells whether a path has a segment "." or "..", which clients and
// servers resolve each in their own way.
func hasDots(path string) bool {
	for _, s := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		if s == "." || s == ".." {
			return true
		}
	}
	return false
}

// origin returns scheme, lower-case host and explicit port.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port
}

// key identifies a file URL whatever the spelling of its escapes: clients
// write %2b as %2B and %7E as ~.
func key(u *url.URL) string { return origin(u) + u.Path + "?" + u.RawQuery }

// shown is a URL as people and reports get to see it: without user info, and
// without the query, which on some indexes is a signature that opens the file.
func shown(u *url.URL) string {
	c := *u
	c.User, c.RawQuery, c.ForceQuery, c.Fragment = nil, "", false, ""
	return c.String()
}
