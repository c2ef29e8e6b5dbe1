// The name of a registry: host[:port][/path]. FORMAT.md section 7.1.

package entry

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// CheckRegistry reports whether s names a registry: a lower-case host, a port
// other than 80 and 443 if any, path segments of letters, digits and . _ ~ -,
// no scheme, no trailing slash, at most 255 bytes. The error is a *FieldError.
func CheckRegistry(s string) error {
	if reason := refuseRegistry(s); reason != "" {
		return &FieldError{"registry", reason}
	}
	return nil
}

// RegistryFromURL names the registry at an http or https URL: the scheme, its
// default port and one trailing slash are dropped, the host is put in lower
// case. User info, query, fragment and escapes have no place in a name and
// are refused, and so is port 443 of http and port 80 of https. The error is a
// *FieldError; it does not repeat a URL that may hold a password or a token.
func RegistryFromURL(u string) (string, error) {
	refuse := func(why string) (string, error) {
		return "", &FieldError{"registry", fmt.Sprintf("%s: %s", quote(u), why)}
	}
	switch {
	case strings.Contains(u, "@"):
		return "", &FieldError{"registry", "URL with a user name: a registry has none"}
	case strings.ContainsAny(u, "?#"):
		return "", &FieldError{"registry", "URL with a query or fragment: a registry has none"}
	}
	scheme, rest, ok := strings.Cut(u, "://")
	defaultPort := map[string]string{"http": "80", "https": "443"}[asciiLower(scheme)]
	if !ok || defaultPort == "" {
		return refuse("not an http or https URL")
	}
	authority, path, slash := strings.Cut(rest, "/")
	host, port := splitPort(authority)
	host = asciiLower(host)
	if in, ok := strings.CutPrefix(host, "["); ok {
		if a, err := netip.ParseAddr(strings.TrimSuffix(in, "]")); err == nil {
			host = "[" + a.String() + "]"
		}
	}
	name := host
	if p := strings.TrimPrefix(port, ":"); p != "" && p != defaultPort {
		name += ":" + p
	}
	if slash && path != "" {
		name += "/" + strings.TrimSuffix(path, "/")
	}
	if reason := refuseRegistry(name); reason != "" {
		return refuse("cannot be named: " + reason)
	}
	return name, nil
}

func refuseRegistry(s string) string {
	if s == "" || len(s) > maxFile {
		return fmt.Sprintf("%s: length is not 1 to %d", quote(s), maxFile)
	}
	authority, path, slash := strings.Cut(s, "/")
	host, port := splitPort(authority)
	if reason := refuseHost(host); reason != "" {
		return fmt.Sprintf("%s: %s", quote(s), reason)
	}
	if port != "" {
		n, err := strconv.ParseUint(port[1:], 10, 16) // digits alone: no sign, no _
		switch {
		case err != nil || port[1] == '0':
			return fmt.Sprintf("%s: port is not 1 to 65535 without leading zeros", quote(s))
		case n == 80 || n == 443:
			return fmt.Sprintf("%s: default ports 80 and 443 are not written", quote(s))
		}
	}
	if slash {
		if _, reason := refuseSegments(path, classURL); reason != "" {
			return fmt.Sprintf("path of %s: %s", quote(s), reason)
		}
	}
	return ""
}

// splitPort cuts host[:port] before the colon; a bracketed host keeps its
// colons.
func splitPort(authority string) (host, port string) {
	from := 0
	if strings.HasPrefix(authority, "[") {
		from = strings.IndexByte(authority, ']') + 1
	}
	if i := strings.IndexByte(authority[from:], ':'); i >= 0 {
		return authority[:from+i], authority[from+i:]
	}
	return authority, ""
}

// refuseHost wants a DNS name of lower-case labels, a dotted IPv4 address or a
// canonical IPv6 address (RFC 5952) in brackets.
func refuseHost(h string) string {
	if strings.HasPrefix(h, "[") {
		a, _ := netip.ParseAddr(strings.TrimSuffix(h[1:], "]")) // on error of neither family
		if !a.Is6() || a.Is4In6() || a.Zone() != "" || "["+a.String()+"]" != h {
			return "not a canonical IPv6 address without zone in brackets"
		}
		return ""
	}
	if h == "" || len(h) > 253 {
		return "host length is not 1 to 253"
	}
	start := 0
	for i := 0; i <= len(h); i++ {
		if i < len(h) && h[i] != '.' {
			if class[h[i]]&classLDH == 0 {
				return "host: " + badByte(h, i)
			}
			continue
		}
		label := h[start:i]
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "host: a label is empty, longer than 63, or has - at an end"
		}
		if i == len(h) && '0' <= label[0] && label[0] <= '9' {
			// A last label that starts with a digit is no top-level domain; some
			// readers take it for a number of an address.
			if a, _ := netip.ParseAddr(h); !a.Is4() {
				return "host: neither a name nor a dotted IPv4 address"
			}
		}
		start = i + 1
	}
	return ""
}
