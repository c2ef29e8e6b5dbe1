package pypi

// Media types and content negotiation of the simple API (PEP 691).

import (
	"errors"
	"fmt"
	"mime"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A MediaType is one of the three in which a simple page is served.
type MediaType string

const (
	MediaJSON       MediaType = "application/vnd.pypi.simple.v1+json"
	MediaHTML       MediaType = "application/vnd.pypi.simple.v1+html"
	MediaLegacyHTML MediaType = "text/html" // all that pip before 22.2 asks for
)

// Accept is what to ask an index for: JSON preferred, HTML taken.
const Accept = string(MediaJSON) + ", " + string(MediaHTML) + ";q=0.2, " + string(MediaLegacyHTML) + ";q=0.01"

// ErrMediaType: the page was served as something that is no simple page.
var ErrMediaType = errors.New("not a media type of the simple API")

// ContentType is the value of the header when a page is served as m.
func (m MediaType) ContentType() string {
	if m == MediaLegacyHTML {
		return "text/html; charset=utf-8"
	}
	return string(m)
}

// JSON tells which of the two serialisations m is.
func (m MediaType) JSON() bool { return m == MediaJSON }

// Negotiate chooses the media type to answer with from the request's Accept
// values. Absent, "*/*" and "text/*" mean text/html, since old clients send
// them and read nothing else. ok is false when the client accepts none of the
// three (406); PEP 691 lets a server answer text/html even then.
func Negotiate(accept ...string) (m MediaType, ok bool) {
	if strings.TrimSpace(strings.Join(accept, "")) == "" {
		return MediaLegacyHTML, true
	}
	best, bestQ, bestSpec := MediaLegacyHTML, 0.0, -1
	for _, part := range strings.Split(strings.Join(accept, ","), ",") {
		typ, params, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err != nil {
			continue
		}
		var t MediaType
		spec := 2 // how specific: an exact type beats a wildcard
		switch typ {
		case string(MediaJSON), "application/vnd.pypi.simple.latest+json":
			t = MediaJSON
		case string(MediaHTML), "application/vnd.pypi.simple.latest+html":
			t = MediaHTML
		case "text/html", "application/xhtml+xml":
			t = MediaLegacyHTML
		case "text/*":
			t, spec = MediaLegacyHTML, 1
		case "*/*":
			t, spec = MediaLegacyHTML, 0
		default:
			continue
		}
		q := 1.0
		if s, has := params["q"]; has {
			if q, err = strconv.ParseFloat(s, 64); err != nil || !(q >= 0 && q <= 1) {
				continue
			}
		}
		if q > bestQ || q == bestQ && q > 0 && (spec > bestSpec || spec == bestSpec && t == MediaJSON) {
			best, bestQ, bestSpec = t, q, spec
		}
	}
	return best, bestQ > 0
}

// NegotiateFor is Negotiate for a page that is at hand in the serialisation of
// have: if the client takes that at all it gets it, since only so nothing on
// the page is lost.
func NegotiateFor(have MediaType, accept ...string) (m MediaType, ok bool) {
	var same []string
	for _, part := range strings.Split(strings.Join(accept, ","), ",") {
		typ, _, _ := mime.ParseMediaType(strings.TrimSpace(part))
		if strings.HasSuffix(typ, "+json") == have.JSON() {
			same = append(same, part)
		}
	}
	if m, ok := Negotiate(same...); ok && len(same) > 0 && m.JSON() == have.JSON() {
		return m, true
	}
	return Negotiate(accept...)
}

// parseContentType returns MediaJSON or MediaHTML and the charset, if said.
func parseContentType(s string) (m MediaType, charset string, err error) {
	typ, params, err := mime.ParseMediaType(s)
	if err != nil {
		return "", "", fmt.Errorf("%w: %q", ErrMediaType, s)
	}
	switch typ {
	case string(MediaJSON):
		return MediaJSON, "", nil
	case string(MediaHTML), "text/html", "application/xhtml+xml":
		return MediaHTML, strings.ToLower(params["charset"]), nil
	}
	return "", "", fmt.Errorf("%w: %q", ErrMediaType, s)
}

func decodeText(charset string, b []byte) (string, error) {
	switch charset {
	case "", "utf-8", "utf8", "us-ascii", "ascii":
		return strings.ToValidUTF8(string(b), string(utf8.RuneError)), nil
	case "iso-8859-1", "latin-1", "latin1":
		r := make([]rune, len(b))
		for i, c := range b {
			r[i] = rune(c)
		}
		return string(r), nil
	}
	return "", &Error{What: "charset", Reason: fmt.Sprintf("%q is not read here; serve UTF-8", charset)}
}
