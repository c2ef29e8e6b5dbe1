package pypi

// PEP 503 pages: HTML with one anchor a file.

import (
	"html"
	"io"
	"net/url"
	"strings"

	xhtml "golang.org/x/net/html"
)

func parseHTML(text string, pageURL *url.URL) (*Page, error) {
	p := &Page{from: MediaHTML}
	base := pageURL
	if pageURL != nil {
		p.URL = pageURL.String()
	}
	var err error
	err = walkHTML(text, func(name string, attrs []attr, inner string) error {
		switch name {
		case "base":
			if ref, ok := get(attrs, "href"); ok && base == pageURL {
				u, err := parseLoose(ref)
				if err != nil {
					return &Error{What: "base element", Reason: "its href is not a URL"}
				}
				if pageURL != nil {
					u = pageURL.ResolveReference(u)
				}
				base = u
			}
		case "title":
			p.title = inner
		case "meta":
			p.addMeta(attrs)
			if n, _ := get(attrs, "name"); strings.EqualFold(n, "pypi:repository-version") {
				v, _ := get(attrs, "content")
				return checkAPIVersion(v)
			}
		case "a":
			ref, ok := get(attrs, "href")
			if !ok {
				return nil
			}
			f := &File{text: inner}
			u, name, hashes, ok := resolveFile(base, ref)
			if !ok {
				p.Skipped = append(p.Skipped, ref)
				return nil
			}
			f.URL, f.Name, f.Hashes = u.String(), name, hashes
			f.readAttrs(attrs, base)
			if p.Files = append(p.Files, f); len(p.Files) > maxFiles {
				return tooMany()
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// addMeta keeps a meta element, unless it describes the encoding or plays an
// HTTP header: a refresh would take the reader elsewhere.
func (p *Page) addMeta(attrs []attr) {
	if _, ok := get(attrs, "http-equiv"); ok {
		return
	}
	if _, ok := get(attrs, "charset"); ok {
		return
	}
	name, _ := get(attrs, "name")
	content, _ := get(attrs, "content")
	switch strings.ToLower(name) {
	case "pypi:project-status":
		p.Status = content
	case "pypi:project-status-reason":
		p.StatusReason = content
	}
	p.metas = append(p.metas, attrs)
}

func (f *File) readAttrs(attrs []attr, base *url.URL) {
	for _, a := range attrs {
		switch a.key {
		case "href":
			continue
		case "data-requires-python":
			f.RequiresPython = a.val
		case "data-yanked":
			reason := a.val
			f.Yanked = &reason
		case "data-core-metadata", "data-dist-info-metadata":
			// PEP 714: the new name wins over the old.
			if f.Metadata == nil || a.key == "data-core-metadata" {
				f.Metadata = htmlMetadata(a.val)
			}
		case "data-gpg-sig":
			signed := strings.EqualFold(a.val, "true")
			f.Signed = &signed
		case "data-provenance":
			if u, err := parseLoose(a.val); err == nil {
				if base != nil {
					u = base.ResolveReference(u)
				}
				f.Provenance = u.String()
				a.val = f.Provenance
			}
		}
		f.attrs = append(f.attrs, a)
	}
}

// htmlMetadata reads "sha256=hex" or "true". "false" is not in PEP 658, but
// its JSON sibling has it.
func htmlMetadata(v string) map[string]string {
	if strings.EqualFold(v, "false") {
		return nil
	}
	m := map[string]string{}
	if alg, hex, ok := strings.Cut(v, "="); ok && isHashName(alg) && isHex(hex) {
		m[strings.ToLower(alg)] = strings.ToLower(hex)
	}
	return m
}

func (p *Page) renderHTML() ([]byte, error) {
	var b strings.Builder
	b.WriteString("<!DOCTYPE html>\n<html>\n  <head>\n")
	for _, m := range p.htmlMetas() {
		b.WriteString("    <meta")
		writeAttrs(&b, m)
		b.WriteString(">\n")
	}
	title := p.title
	if title == "" && p.Name != "" {
		title = "Links for " + p.Name
	}
	if title != "" {
		b.WriteString("    <title>" + html.EscapeString(title) + "</title>\n")
	}
	b.WriteString("  </head>\n  <body>\n")
	if title != "" {
		b.WriteString("    <h1>" + html.EscapeString(title) + "</h1>\n")
	}
	for _, f := range p.Files {
		href := f.URL
		if h := bestHash(f.Hashes); h != "" {
			href += "#" + h
		}
		b.WriteString(`    <a href="` + html.EscapeString(href) + `"`)
		writeAttrs(&b, f.htmlAttrs(p.from))
		text := f.text
		if text == "" {
			text = f.Name
		}
		b.WriteString(">" + html.EscapeString(text) + "</a><br>\n")
	}
	b.WriteString("  </body>\n</html>\n")
	return []byte(b.String()), nil
}

func (p *Page) htmlMetas() [][]attr {
	if p.from != MediaJSON {
		return p.metas
	}
	metas := [][]attr{{{"name", "pypi:repository-version"}, {"content", "1.0"}}}
	if p.Status != "" {
		metas = append(metas, []attr{{"name", "pypi:project-status"}, {"content", p.Status}})
	}
	if p.StatusReason != "" {
		metas = append(metas, []attr{{"name", "pypi:project-status-reason"}, {"content", p.StatusReason}})
	}
	return metas
}

func (f *File) htmlAttrs(from MediaType) []attr {
	if from != MediaJSON {
		return f.attrs
	}
	var as []attr
	if f.RequiresPython != "" {
		as = append(as, attr{"data-requires-python", f.RequiresPython})
	}
	if f.Metadata != nil {
		v := bestHash(f.Metadata)
		if v == "" {
			v = "true"
		}
		as = append(as, attr{"data-dist-info-metadata", v}, attr{"data-core-metadata", v})
	}
	if f.Signed != nil {
		v := "false"
		if *f.Signed {
			v = "true"
		}
		as = append(as, attr{"data-gpg-sig", v})
	}
	if f.Provenance != "" {
		as = append(as, attr{"data-provenance", f.Provenance})
	}
	if f.Yanked != nil {
		as = append(as, attr{"data-yanked", *f.Yanked})
	}
	return as
}

func writeAttrs(b *strings.Builder, as []attr) {
	for _, a := range as {
		b.WriteString(" " + a.key + `="` + html.EscapeString(a.val) + `"`)
	}
}

func get(as []attr, key string) (string, bool) {
	for _, a := range as {
		if a.key == key {
			return a.val, true
		}
	}
	return "", false
}

// walkHTML calls f for each base, meta, title and a element. inner is the text
// inside title and a. Attribute names that could not be written back are
// dropped; of two attributes with one name the first counts, as in HTML.
func walkHTML(text string, f func(name string, attrs []attr, inner string) error) error {
	z := xhtml.NewTokenizer(strings.NewReader(text))
	z.SetMaxBuf(1 << 20)
	var open string // "a" or "title" while inside one
	var openAttrs []attr
	var inner strings.Builder
	flush := func() error {
		if open == "" {
			return nil
		}
		name := open
		open = ""
		err := f(name, openAttrs, strings.Join(strings.Fields(inner.String()), " "))
		inner.Reset()
		return err
	}
	for {
		switch z.Next() {
		case xhtml.ErrorToken:
			if err := z.Err(); err != io.EOF {
				return &Error{What: "HTML", Reason: err.Error()}
			}
			return flush()
		case xhtml.TextToken:
			if open != "" {
				inner.Write(z.Text())
			}
		case xhtml.EndTagToken:
			if name, _ := z.TagName(); string(name) == open {
				if err := flush(); err != nil {
					return err
				}
			}
		case xhtml.StartTagToken, xhtml.SelfClosingTagToken:
			tag, more := z.TagName()
			name := string(tag)
			switch name {
			case "a", "title", "meta", "base":
			default:
				continue
			}
			if err := flush(); err != nil { // an anchor left open
				return err
			}
			var attrs []attr
			for more {
				var k, v []byte
				k, v, more = z.TagAttr()
				if _, dup := get(attrs, string(k)); !dup && isAttrName(string(k)) {
					attrs = append(attrs, attr{string(k), string(v)})
				}
			}
			if name == "a" || name == "title" {
				open, openAttrs = name, attrs
			} else if err := f(name, attrs, ""); err != nil {
				return err
			}
		}
	}
}

// isAttrName tells whether an attribute may be written back. Event handlers
// may not: a page is also looked at in browsers, under the proxy's origin.
func isAttrName(s string) bool {
	if s == "" || strings.HasPrefix(s, "on") || s == "style" || s == "ping" || s == "target" {
		return false
	}
	for i, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || i > 0 && (c >= '0' && c <= '9' || c == '-' || c == '_' || c == ':' || c == '.')) {
			return false
		}
	}
	return true
}
