package client

// Where the log that takes over may be. Its address is in a leaf, so whoever
// has the old log's key chooses it: it must not make a proxy or a monitor ask
// machines that only they can reach.

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// notPublic: CGNAT, "this network", IETF, benchmarks, reserved; NAT64, 6to4
// and Teredo, which wrap an IPv4 address; documentation.
var notPublic = func() (ps []netip.Prefix) {
	for _, s := range []string{"100.64.0.0/10", "0.0.0.0/8", "192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4",
		"64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "2001:db8::/32"} {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}()

// PublicAddress reports whether an address is one of the Internet: not of this
// machine, a private network, or one that wraps such an address.
func PublicAddress(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

var errNotPublic = errors.New("its address is a private one, and the log before it is read at a public one: if that is meant, put the new log into the policy")

// stayPublic makes connections of t fail that go to a private address, unless
// the host before, of the log that named this address, has private ones alone.
// What was connected to is judged, not what a name resolved to before; nothing
// is sent first.
func stayPublic(t *http.Transport, before string) {
	guard := func(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			if to, ok := c.RemoteAddr().(*net.TCPAddr); ok && !PublicAddress(to.AddrPort().Addr()) && !private(ctx, before) {
				c.Close()
				return nil, errNotPublic
			}
			return c, nil
		}
	}
	if t.DialContext == nil {
		t.DialContext = (&net.Dialer{}).DialContext
	}
	t.DialContext = guard(t.DialContext)
	if t.DialTLSContext != nil {
		t.DialTLSContext = guard(t.DialTLSContext)
	}
}

// private reports whether all addresses of host are private ones. Of a name
// that cannot be looked up that is not known, and so it is not.
func private(ctx context.Context, host string) bool {
	if host = strings.ToLower(host); host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(list) == 0 {
		return false
	}
	for _, a := range list {
		if PublicAddress(a) {
			return false
		}
	}
	return true
}
