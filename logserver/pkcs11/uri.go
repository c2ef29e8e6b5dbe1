// Package pkcs11 signs with an Ed25519 key that is kept in a hardware security
// module (HSM) or another token with a PKCS #11 library: PKCS #11 v3.0, mechanism
// CKM_EDDSA. Tested with SoftHSM2.
//
// It is a package of its own because it needs cgo, for the library is C. Built
// without cgo, every call returns [ErrNoCgo].
package pkcs11

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// ErrNoCgo means that this program was built without cgo, and so without PKCS #11.
var ErrNoCgo = errors.New("this program was built without cgo and cannot speak PKCS #11: build it with CGO_ENABLED=1, or keep the key in a file")

// ErrPIN means that the PIN cannot be had, or that the token refuses it. Trying
// the same again would lock the token.
var ErrPIN = errors.New("PIN")

// ErrExists means that there is a key under the label already.
var ErrExists = errors.New("a key is never overwritten")

// A URI says where a key is: RFC 7512, of which it takes the attributes that
// name one key by labels. Every other attribute is refused, since one that is
// not looked at might have named another token.
type URI struct {
	Module    string // module-path: the absolute path of the token's library
	Token     string // token: its label
	Object    string // object: the label of the key
	PINSource string // pin-source: where the PIN is read, or ""; see ParseURI
}

// ParseURI reads a PKCS #11 URI:
//
//	pkcs11:token=portbook;object=log-2026?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/portbook/pin
//
// module-path, token and object are required; type, if given, is "private". A
// PIN in the URI (pin-value) and a command that prints one are refused. What
// pin-source means beyond that is the caller's business.
func ParseURI(s string) (*URI, error) {
	bad := func(format string, args ...any) (*URI, error) {
		return nil, fmt.Errorf("PKCS #11 URI: "+format, args...)
	}
	rest, ok := strings.CutPrefix(s, "pkcs11:")
	if !ok {
		return bad("it does not begin with pkcs11:")
	}
	path, query, _ := strings.Cut(rest, "?")
	u, seen := &URI{}, map[string]bool{}
	read := func(list, separator string, known map[string]*string) error {
		if list == "" {
			return nil
		}
		for attribute := range strings.SplitSeq(list, separator) {
			name, value, ok := strings.Cut(attribute, "=")
			if !ok {
				return errors.New("PKCS #11 URI: an attribute is not of the form name=value")
			}
			if name == "pin-value" { // say nothing of what it was
				return errors.New("PKCS #11 URI: pin-value would show the PIN to everyone on this machine: put it into a file and give pin-source=file:PATH")
			}
			to := known[name]
			if to == nil {
				return fmt.Errorf("PKCS #11 URI: the attribute %.40q is not supported here: token, object, type; module-path, pin-source", name)
			}
			if seen[name] {
				return fmt.Errorf("PKCS #11 URI: %s stands twice", name)
			}
			seen[name] = true
			v, err := unescape(value)
			if err != nil {
				return fmt.Errorf("PKCS #11 URI: %s: %w", name, err)
			}
			*to = v
		}
		return nil
	}
	var kind string
	if err := read(path, ";", map[string]*string{"token": &u.Token, "object": &u.Object, "type": &kind}); err != nil {
		return nil, err
	}
	if err := read(query, "&", map[string]*string{"module-path": &u.Module, "pin-source": &u.PINSource}); err != nil {
		return nil, err
	}
	switch {
	case kind != "" && kind != "private":
		return bad("type is %.40q: only a private key signs", kind)
	case u.Token == "" || u.Object == "" || u.Module == "":
		return bad("want token=LABEL and object=LABEL, then ?module-path=LIBRARY")
	case len(u.Token) > 32:
		return bad("a token's label has at most 32 bytes")
	case !filepath.IsAbs(u.Module):
		return bad("module-path %q is not an absolute path", u.Module)
	case strings.HasPrefix(u.PINSource, "|"):
		return bad("pin-source is a command: none is run; give file:PATH")
	}
	return u, nil
}

// String returns the URI, without a PIN, since it has none.
func (u *URI) String() string {
	s := "pkcs11:token=" + escape(u.Token) + ";object=" + escape(u.Object) + "?module-path=" + escape(u.Module)
	if u.PINSource != "" {
		s += "&pin-source=" + escape(u.PINSource)
	}
	return s
}

// plain reports whether c stands for itself in every attribute: RFC 3986
// unreserved, and of the reserved ones those that RFC 7512 allows and that paths have.
func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~:/", c) >= 0
}

func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if plain(s[i]) {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}

// unescape reads percent-encoding. It takes no NUL and no control characters,
// which neither a label nor a path has, and C would cut at the first.
func unescape(s string) (string, error) {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if i+2 >= len(s) || !hex(s[i+1]) || !hex(s[i+2]) {
				return "", errors.New("% is not followed by two hex digits")
			}
			var v int
			fmt.Sscanf(s[i+1:i+3], "%x", &v) // two hex digits, as was just seen
			c = byte(v)
			i += 2
		} else if !plain(c) && strings.IndexByte("[]@!$'()*+,=|&?", c) < 0 {
			return "", fmt.Errorf("%q must be percent-encoded", c)
		}
		if c < 0x20 || c == 0x7f {
			return "", errors.New("it has a control character")
		}
		b = append(b, c)
	}
	return string(b), nil
}

func hex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}
