package pypi

// The list of an index's projects: the root of the simple API.

import (
	"html"
	"strings"
)

// A List is the project list.
type List struct {
	// Projects as the index spells them, in its order.
	Projects []string

	members []member
	from    MediaType
}

// ParseList reads the project list. Errors are as of [Parse].
func ParseList(contentType string, body []byte) (*List, error) {
	m, charset, err := parseContentType(contentType)
	if err != nil {
		return nil, err
	}
	if m == MediaJSON {
		return parseJSONList(body)
	}
	text, err := decodeText(charset, body)
	if err != nil {
		return nil, err
	}
	l := &List{from: MediaHTML}
	err = walkHTML(text, func(name string, attrs []attr, inner string) error {
		switch name {
		case "meta":
			if n, _ := get(attrs, "name"); strings.EqualFold(n, "pypi:repository-version") {
				v, _ := get(attrs, "content")
				return checkAPIVersion(v)
			}
		case "a":
			if _, ok := get(attrs, "href"); !ok {
				return nil
			}
			if _, err := NormalProject(inner); err == nil {
				l.Projects = append(l.Projects, inner)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

func parseJSONList(body []byte) (*List, error) {
	ms, err := object("page", body)
	if err != nil {
		return nil, err
	}
	l := &List{from: MediaJSON, members: ms}
	var sawMeta, sawProjects bool
	for _, m := range ms {
		switch m.key {
		case "meta":
			sawMeta = true
			if err := checkMeta(m.raw); err != nil {
				return nil, err
			}
		case "projects":
			sawProjects = true
			var ps []struct {
				Name string `json:"name"`
			}
			if err := decode(m, &ps); err != nil {
				return nil, err
			}
			for _, p := range ps {
				l.Projects = append(l.Projects, p.Name)
			}
		}
	}
	if !sawMeta {
		return nil, &Error{What: "meta", Reason: "missing"}
	}
	if !sawProjects {
		return nil, &Error{What: "projects", Reason: "missing"}
	}
	return l, nil
}

// From is the serialisation that the list came in: MediaJSON or MediaHTML.
func (l *List) From() MediaType { return l.from }

// Render writes the list. The HTML form links to each project's page
// relative to the list's own URL, which must end in a slash.
func (l *List) Render(m MediaType) []byte {
	if m == MediaJSON {
		if l.from == MediaJSON {
			return writeObject(l.members)
		}
		ps := make([]string, len(l.Projects))
		for i, p := range l.Projects {
			ps[i] = `{"name":` + string(quote(p)) + `}`
		}
		return writeObject([]member{
			{"meta", []byte(`{"api-version":"1.0"}`)},
			{"projects", []byte("[" + strings.Join(ps, ",") + "]")},
		})
	}
	var b strings.Builder
	b.WriteString("<!DOCTYPE html>\n<html>\n  <head>\n    <meta name=\"pypi:repository-version\" content=\"1.0\">\n" +
		"    <title>Simple index</title>\n  </head>\n  <body>\n")
	for _, p := range l.Projects {
		if n, err := NormalProject(p); err == nil {
			b.WriteString(`    <a href="` + n + `/">` + html.EscapeString(p) + "</a><br>\n")
		}
	}
	b.WriteString("  </body>\n</html>\n")
	return []byte(b.String())
}
