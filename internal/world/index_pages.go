// The pages of the test index: PEP 503 HTML, PEP 691 JSON, with the attributes of
// PEP 592 (yanked), 658/714 (metadata) and 700 (size, upload time, versions).

package world

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"sort"
	"strings"
)

const jsonPage = "application/vnd.pypi.simple.v1+json"

func escape(s string) string { return html.EscapeString(s) }

func (x *Index) serveProjects(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	names := map[string]bool{}
	for _, f := range x.state.Files {
		if !f.Hidden {
			names[f.Project] = true
		}
	}
	type project struct {
		Name string `json:"name"`
	}
	list := []project{}
	for n := range names {
		list = append(list, project{n})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	if x.wantsJSON(r) {
		x.sendPage(w, r, jsonPage, jsonText(map[string]any{"meta": x.meta(), "projects": list}))
		return
	}
	var b strings.Builder
	b.WriteString("<!DOCTYPE html>\n<html><head><title>Simple index</title></head><body>\n")
	for _, p := range list {
		fmt.Fprintf(&b, "<a href=\"%s/\">%[1]s</a><br/>\n", p.Name)
	}
	b.WriteString("</body></html>\n")
	x.sendPage(w, r, "text/html; charset=utf-8", b.String())
}

func (x *Index) serveProject(w http.ResponseWriter, r *http.Request, path string) {
	name, found := strings.CutSuffix(path, "/")
	if strings.Contains(name, "/") {
		indexError(w, http.StatusNotFound, "Not Found")
		return
	}
	if n := normalize(name); !found || n != name {
		http.Redirect(w, r, "/simple/"+url.PathEscape(n)+"/", http.StatusMovedPermanently)
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var files []*indexFile
	for _, f := range x.state.Files {
		if f.Project == name && !f.Hidden {
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		indexError(w, http.StatusNotFound, "Not Found")
		return
	}
	sort.Slice(files, func(i, j int) bool { return files[i].Name < files[j].Name })
	if x.wantsJSON(r) {
		x.sendPage(w, r, jsonPage, x.projectJSON(name, files))
		return
	}
	x.sendPage(w, r, "text/html; charset=utf-8", x.projectHTML(name, files))
}

// shownSHA256 is the digest the pages claim.
func (x *Index) shownSHA256(f *indexFile) string {
	if x.faults.lieAboutDigest {
		return hexSHA256([]byte("a lie about " + f.SHA256))
	}
	return f.SHA256
}

// fileURL is the URL of a file as the pages of its project give it.
func (x *Index) fileURL(f *indexFile) string {
	base := "../../files"
	if x.opts.FileBase != "" {
		base = strings.TrimSuffix(x.opts.FileBase, "/")
	}
	return base + "/" + f.Project + "/" + url.PathEscape(f.Name)
}

func (x *Index) projectJSON(name string, files []*indexFile) string {
	list, versions := []any{}, []string{}
	seen := map[string]bool{}
	for _, f := range files {
		if !seen[f.Version] {
			seen[f.Version] = true
			versions = append(versions, f.Version)
		}
		o := map[string]any{
			"filename":    f.Name,
			"url":         x.fileURL(f),
			"hashes":      map[string]string{"sha256": x.shownSHA256(f)},
			"size":        f.Size,
			"upload-time": f.Uploaded.Format("2006-01-02T15:04:05.000000Z"),
			"yanked":      false,
		}
		if f.Yanked != "" {
			o["yanked"] = f.Yanked
		}
		if f.RequiresPython != "" {
			o["requires-python"] = f.RequiresPython
		}
		if f.MetadataSHA256 != "" {
			m := map[string]string{"sha256": f.MetadataSHA256}
			o["core-metadata"], o["data-dist-info-metadata"] = m, m
		}
		list = append(list, o)
	}
	return jsonText(map[string]any{"meta": x.meta(), "name": name, "versions": versions, "files": list})
}

func (x *Index) projectHTML(name string, files []*indexFile) string {
	var b strings.Builder
	fmt.Fprintf(&b, "<!DOCTYPE html>\n<html><head><title>Links for %s</title></head><body>\n<h1>Links for %[1]s</h1>\n", escape(name))
	for _, f := range files {
		href, attrs := x.fileURL(f), ""
		if !x.faults.htmlOnly {
			href += "#sha256=" + x.shownSHA256(f)
			if f.MetadataSHA256 != "" {
				attrs += fmt.Sprintf(` data-core-metadata="sha256=%s" data-dist-info-metadata="sha256=%[1]s"`, f.MetadataSHA256)
			}
		}
		if f.RequiresPython != "" {
			attrs += fmt.Sprintf(` data-requires-python="%s"`, escape(f.RequiresPython))
		}
		if f.Yanked != "" {
			attrs += fmt.Sprintf(` data-yanked="%s"`, escape(f.Yanked))
		}
		fmt.Fprintf(&b, "<a href=\"%s\"%s>%s</a><br/>\n", escape(href), attrs, escape(f.Name))
	}
	b.WriteString("</body></html>\n")
	return b.String()
}

func (x *Index) meta() map[string]any {
	return map[string]any{"api-version": "1.1", "_last-serial": x.state.Serial}
}

func (x *Index) wantsJSON(r *http.Request) bool {
	return !x.faults.htmlOnly && strings.Contains(r.Header.Get("Accept"), jsonPage)
}

func (x *Index) sendPage(w http.ResponseWriter, r *http.Request, contentType, body string) {
	h := w.Header()
	etag := `"` + hexSHA256([]byte(body))[:32] + `"`
	h.Set("Content-Type", contentType)
	h.Set("ETag", etag)
	h.Set("Vary", "Accept")
	h.Set("Cache-Control", "no-cache")
	if !x.faults.htmlOnly {
		h.Set("X-PyPI-Last-Serial", fmt.Sprint(x.state.Serial))
	}
	if r.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Write([]byte(body))
}

func jsonText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only maps and strings are ever passed
	}
	return string(b)
}
