package pypi

// The model of one project page and of the project list, common to both
// serialisations: PEP 503, 592 (yanked), 629 (version), 658/714 (metadata),
// 691 (JSON), 700 (size, upload-time, versions), 740 (provenance),
// 792 (status).

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
)

// MaxPage is how many bytes of a simple page are worth reading. The largest
// project page on pypi.org is about a quarter of it.
const MaxPage = 64 << 20

// maxFiles bounds the files of one page; the largest project of pypi.org has
// about a tenth.
const maxFiles = 200_000

func tooMany() error {
	return &Error{What: "files", Reason: fmt.Sprintf("more than %d on one page", maxFiles)}
}

// A Page is one project's page.
//
// A Page remembers which serialisation it came from. Rendered to the same one
// it keeps everything that was on it; rendered to the other it keeps what the
// fields below say.
type Page struct {
	// Name is the project as the page says it; "" on an HTML page.
	Name string
	// URL is where the page was found; relative references were resolved
	// against it (or against the page's own base element).
	URL string
	// Files in the order of the page.
	Files []*File
	// Versions is PEP 700's list; nil when the page has none.
	Versions []string
	// Status and StatusReason are PEP 792's project status.
	Status, StatusReason string
	// Skipped holds references that are not URLs at all and were left out.
	Skipped []string

	title   string    // HTML: text of the title element
	metas   [][]attr  // HTML: meta elements, without http-equiv and charset
	members []member  // JSON: top-level members, raw
	from    MediaType // MediaHTML or MediaJSON
}

// A File is one file on a project page.
type File struct {
	// Name is the file's name. On an HTML page it is the last segment of the
	// URL's path, which is what installers go by.
	Name string
	// URL is absolute and has no fragment. Set it to anything that should
	// stand on the rendered page instead, relative references included.
	URL string
	// Hashes by algorithm, in lower-case hex. Empty when the page tells none.
	Hashes map[string]string
	// RequiresPython is PEP 345's version specifier, unescaped.
	RequiresPython string
	// Yanked is nil, or points to the reason (possibly empty).
	Yanked *string
	// Metadata is nil unless core metadata is served beside the file
	// (PEP 658); then it holds the hashes the page tells, possibly none.
	Metadata map[string]string
	// Size in bytes; nil when the page does not tell.
	Size *uint64
	// UploadTime as written on the page; "" when it does not tell.
	UploadTime string
	// Provenance is the absolute URL of PEP 740 provenance, or "".
	Provenance string
	// Signed tells whether the page says there is a PGP signature beside the
	// file; nil when it does not tell.
	Signed *bool

	text    string   // HTML: text of the anchor
	attrs   []attr   // HTML: all attributes but href, as on the page
	members []member // JSON: all members, raw
}

type attr struct{ key, val string }

// An Error says that a page is not a simple index page, and why.
type Error struct {
	What   string // the element or key
	Reason string
}

func (e *Error) Error() string { return "simple page: " + e.What + ": " + e.Reason }

// ErrAPIVersion: the page speaks a major version of the simple API that is
// unknown here. PEP 629 asks clients to stop then.
var ErrAPIVersion = errors.New("simple page: unknown major version of the simple API")

// Parse reads a project page that was served with contentType at pageURL.
// Errors are *[Error], or wrap [ErrAPIVersion] or [ErrMediaType].
func Parse(contentType string, body []byte, pageURL *url.URL) (*Page, error) {
	m, charset, err := parseContentType(contentType)
	if err != nil {
		return nil, err
	}
	if m == MediaJSON {
		return parseJSON(body, pageURL)
	}
	text, err := decodeText(charset, body)
	if err != nil {
		return nil, err
	}
	return parseHTML(text, pageURL)
}

// Render writes the page as the media type asks. MediaHTML and MediaLegacyHTML
// have the same body.
func (p *Page) Render(m MediaType) ([]byte, error) {
	if m == MediaJSON {
		return p.renderJSON()
	}
	return p.renderHTML()
}

// From is the serialisation that the page came in: MediaJSON or MediaHTML.
func (p *Page) From() MediaType { return p.from }

// MapURLs replaces the URL of each file by what f returns for it.
func (p *Page) MapURLs(f func(*File) string) {
	for _, file := range p.Files {
		file.URL = f(file)
	}
}

// Keep removes the files for which keep returns false. A version that loses
// its last file that way disappears from Versions too.
func (p *Page) Keep(keep func(*File) bool) {
	lost := make(map[string]bool) // canonical versions that lost a file
	left := p.Files[:0:0]
	for _, f := range p.Files {
		if keep(f) {
			left = append(left, f)
		} else if v, ok := p.version(f); ok {
			lost[v] = true
		}
	}
	p.Files = left
	if len(lost) == 0 || p.Versions == nil {
		return
	}
	for _, f := range left {
		if v, ok := p.version(f); ok {
			delete(lost, v)
		}
	}
	versions := p.Versions[:0:0]
	for _, v := range p.Versions {
		c, ok := CanonicalVersion(v)
		if !ok {
			c = v
		}
		if !lost[c] {
			versions = append(versions, v)
		}
	}
	p.Versions = versions
}

func (p *Page) version(f *File) (string, bool) {
	_, v, err := ParseFileName(f.Name)
	if err != nil {
		return "", false
	}
	if c, ok := CanonicalVersion(v); ok {
		return c, true
	}
	return v, true
}

// resolveFile makes ref absolute against base and splits it into the URL
// without its fragment, the file name, and the digest in the fragment.
// ok is false when ref is no URL even with generous escaping.
func resolveFile(base *url.URL, ref string) (u *url.URL, name string, hashes map[string]string, ok bool) {
	u, err := parseLoose(ref)
	if err != nil {
		return nil, "", nil, false
	}
	if base != nil {
		u = base.ResolveReference(u)
	}
	hashes = map[string]string{}
	// Only a digest may stand in the fragment: pip would read "egg=" as a
	// project name and a version of its own.
	for _, part := range strings.Split(u.Fragment, "&") {
		if alg, hex, found := strings.Cut(part, "="); found && isHashName(alg) && isHex(hex) {
			hashes[strings.ToLower(alg)] = strings.ToLower(hex)
		}
	}
	u.Fragment, u.RawFragment = "", ""
	return u, LastSegment(u), hashes, true
}

// LastSegment returns the last segment of the URL's path, unescaped: the file
// name that installers take. "" when the path ends in a slash.
func LastSegment(u *url.URL) string {
	if u.Path == "" || strings.HasSuffix(u.Path, "/") {
		return ""
	}
	return path.Base(u.Path)
}

// parseLoose parses a reference the way browsers and pip do: what may not
// stand in a URL is escaped rather than refused.
func parseLoose(ref string) (*url.URL, error) {
	ref = strings.Trim(ref, " \t\r\n\f")
	ref = strings.NewReplacer("\t", "", "\r", "", "\n", "").Replace(ref)
	if u, err := url.Parse(ref); err == nil {
		return u, nil
	}
	var b strings.Builder
	for i := 0; i < len(ref); i++ {
		c := ref[i]
		switch {
		case c <= ' ' || c == 0x7f || c == '"' || c == '<' || c == '>' || c == '\\' || c == '^' || c == '`' || c == '{' || c == '|' || c == '}',
			c == '%' && !(i+2 < len(ref) && isHex(ref[i+1:i+3])):
			fmt.Fprintf(&b, "%%%02X", c)
		default:
			b.WriteByte(c)
		}
	}
	return url.Parse(b.String())
}

func isHashName(s string) bool {
	switch strings.ToLower(s) {
	case "md5", "sha1", "sha224", "sha256", "sha384", "sha512", "blake2b", "blake2s", "blake2_256",
		"sha3_224", "sha3_256", "sha3_384", "sha3_512":
		return true
	}
	return false
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F') {
			return false
		}
	}
	return s != ""
}

// checkAPIVersion keeps PEP 629: an unknown major version must stop a client.
func checkAPIVersion(v string) error {
	major, _, ok := strings.Cut(v, ".")
	if !ok || major == "" {
		return &Error{What: "version", Reason: fmt.Sprintf("%q is not major.minor", v)}
	}
	if major != "1" {
		return fmt.Errorf("%w: %q", ErrAPIVersion, v)
	}
	return nil
}

// bestHash returns the strongest digest for an HTML fragment, "" if none.
func bestHash(h map[string]string) string {
	for _, alg := range []string{"sha256", "sha512", "sha384", "blake2b", "sha224", "sha1", "md5"} {
		if v := h[alg]; v != "" {
			return alg + "=" + v
		}
	}
	return ""
}
