// The guard against server-side request forgery: a webhook URL comes from
// somebody else, so it may name only public https addresses. The name is
// resolved, the address is checked, and that very address is dialled: a name
// that changes between check and use gains nothing.

package alert

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// ErrNotPublic is wrapped by every refusal of an address that is not public.
var ErrNotPublic = errors.New("not a public address")

// notPublic lists what IANA's special-purpose registries (RFC 6890 and later)
// set aside, beyond what netip can tell by itself.
var notPublic = func() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16",
		"192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32",
		"2002::/16", "2620:4f:8000::/48", "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}()

// CheckPublic refuses every address that is not globally routable unicast:
// private, loopback, link-local, ULA, CGNAT, NAT64 (RFC 6052, 8215), 6to4,
// Teredo, multicast, documentation, unspecified. An IPv4 address inside IPv6
// is refused in every form.
func CheckPublic(a netip.Addr) error {
	if !a.IsValid() || a.Zone() != "" || !a.IsGlobalUnicast() || a.IsPrivate() || a.Is4In6() {
		return fmt.Errorf("%s: %w", a, ErrNotPublic)
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return fmt.Errorf("%s (in %s): %w", a, p, ErrNotPublic)
		}
	}
	if a.Is6() && !netip.MustParsePrefix("2000::/3").Contains(a) {
		return fmt.Errorf("%s (outside 2000::/3): %w", a, ErrNotPublic)
	}
	return nil
}

// CheckURL refuses a webhook URL that could not be delivered to safely: https
// only, a host, no user info, no fragment, at most 2 048 bytes. With
// allowPrivate http is accepted too. The address is checked when dialling.
func CheckURL(raw string, allowPrivate bool) error {
	if len(raw) > 2048 {
		return fmt.Errorf("webhook URL: longer than 2048 bytes")
	}
	if OneLine(raw) != raw || strings.ContainsAny(raw, " \\") {
		return fmt.Errorf("webhook URL: contains spaces, backslashes or characters that are not printable ASCII")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("webhook URL: cannot be parsed") // the error would repeat a URL that may hold a secret
	}
	switch {
	case u.Scheme != "https" && !(allowPrivate && u.Scheme == "http"):
		return fmt.Errorf("webhook URL: scheme must be https, not %q", u.Scheme)
	case u.Opaque != "" || u.Hostname() == "":
		return fmt.Errorf("webhook URL: has no host")
	case u.User != nil:
		return fmt.Errorf("webhook URL: must not hold a user name or password")
	case u.Fragment != "" || strings.Contains(raw, "#"):
		return fmt.Errorf("webhook URL: must not have a fragment")
	}
	if !allowPrivate {
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			if err := CheckPublic(a); err != nil {
				return fmt.Errorf("webhook URL: %w", err)
			}
		}
	}
	return nil
}

// guard dials only what CheckPublic accepts.
type guard struct {
	allowPrivate bool
	lookup       func(ctx context.Context, host string) ([]netip.Addr, error)
	dial         func(ctx context.Context, network, address string) (net.Conn, error)
}

func newGuard(allowPrivate bool) *guard {
	d := &net.Dialer{Timeout: 5 * time.Second}
	return &guard{
		allowPrivate: allowPrivate,
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
		dial: d.DialContext,
	}
}

// DialContext resolves the host, keeps the acceptable addresses, at most four,
// and dials them in turn.
func (g *guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{a}
	} else if addrs, err = g.lookup(ctx, host); err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	var refused error
	tried := 0
	for _, a := range addrs {
		if a.Is4In6() {
			a = a.Unmap() // what the resolver calls an IPv4 answer
		}
		if !g.allowPrivate {
			if err := CheckPublic(a); err != nil {
				refused = fmt.Errorf("%s resolves to %w", host, err)
				continue
			}
		}
		if tried++; tried > 4 {
			break
		}
		c, err := g.dial(ctx, network, net.JoinHostPort(a.String(), port))
		if err == nil {
			return c, nil
		}
		refused = err
	}
	if refused == nil {
		refused = fmt.Errorf("%s has no address", host)
	}
	return nil, refused
}
