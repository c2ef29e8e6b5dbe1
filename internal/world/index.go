// The test index: a small real package index for tests and the demo. It serves
// PEP 503 HTML and PEP 691 JSON pages, PEP 658 metadata and files, and takes
// uploads by the legacy API (what twine speaks), with accounts and owners. It
// shares no code with what it is used to test. How it misbehaves on request is
// in index_faults.go.

package world

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// IndexOptions says how an Index behaves when it behaves. The zero value is an
// index where anyone may upload anything, with relative file URLs.
type IndexOptions struct {
	// Accounts maps user names to passwords. Nil: uploads need no account and
	// projects have no owner. Otherwise the first to upload a file of a project
	// owns the project, and nobody else may add to it.
	Accounts map[string]string
	// FileBase is the absolute URL under which files are served ("http://host/files"),
	// for an index that keeps its files on another host. "" gives relative URLs.
	FileBase string
	// HTMLOnly makes it an index like Gitea or pypiserver; see Index.HTMLOnly.
	HTMLOnly bool
	// Now is the clock behind upload times; nil means time.Now.
	Now func() time.Time
}

// Index is the test index, an http.Handler to be mounted at the root of a
// server: pages at /simple/, uploads at /legacy/, files at /files/.
type Index struct {
	dir  string
	opts IndexOptions

	mu     sync.Mutex
	state  indexState // what index.json holds
	faults faults
}

// indexState is what survives a restart, in dir/index.json.
type indexState struct {
	Serial int
	Owners map[string]string     // project → user
	Files  map[string]*indexFile // file name → what the pages say about it
}

// indexFile is one file as the pages show it; its bytes are in
// dir/files/<project>/<name>.
type indexFile struct {
	Project, Name, Version string
	RequiresPython         string
	Size                   int64
	SHA256                 string
	Uploaded               time.Time
	MetadataSHA256         string // PEP 658; "" if there is none
	Yanked                 string // reason; "" if not yanked
	Hidden                 bool
}

const maxIndexUpload = 1 << 30

// NewIndex opens the index kept in dir, or begins an empty one there.
func NewIndex(dir string, opts IndexOptions) (*Index, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	x := &Index{dir: dir, opts: opts, state: indexState{Owners: map[string]string{}, Files: map[string]*indexFile{}}}
	x.faults.htmlOnly = opts.HTMLOnly
	for _, sub := range []string{"files", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	b, err := os.ReadFile(x.statePath())
	if errors.Is(err, os.ErrNotExist) {
		return x, nil
	} else if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &x.state); err != nil {
		return nil, fmt.Errorf("%s: %w", x.statePath(), err)
	}
	return x, nil
}

func (x *Index) statePath() string { return filepath.Join(x.dir, "index.json") }

func (x *Index) filePath(f *indexFile) string {
	return filepath.Join(x.dir, "files", f.Project, f.Name)
}

// save writes the state; x.mu is held.
func (x *Index) save() error {
	x.state.Serial++
	b, err := json.MarshalIndent(x.state, "", "\t")
	if err != nil {
		return err
	}
	tmp := filepath.Join(x.dir, "tmp", "index.json")
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, x.statePath())
}

// ServeHTTP routes a request, after the faults that concern every request.
func (x *Index) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	f := x.faults
	x.mu.Unlock()
	if f.down {
		panic(http.ErrAbortHandler) // the connection drops, as when nobody is there
	}
	if f.slow > 0 {
		select {
		case <-time.After(f.slow):
		case <-r.Context().Done():
			return
		}
	}
	p := r.URL.Path
	switch {
	case r.Method == http.MethodPost && (p == "/legacy/" || p == "/legacy"):
		x.serveUpload(w, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		indexError(w, http.StatusMethodNotAllowed, "Method Not Allowed")
	case p == "/simple/":
		x.serveProjects(w, r)
	case strings.HasPrefix(p, "/simple/"):
		x.serveProject(w, r, strings.TrimPrefix(p, "/simple/"))
	case strings.HasPrefix(p, "/files/"):
		x.serveFile(w, r, strings.TrimPrefix(p, "/files/"))
	default:
		indexError(w, http.StatusNotFound, "Not Found")
	}
}

// Token gives the API token of an account, to be used as twine does: user
// __token__, this as the password.
func (x *Index) Token(user string) string {
	return "pypi-" + user + "-" + x.opts.Accounts[user]
}

// user answers who a request comes from, by basic authentication.
func (x *Index) user(r *http.Request) (string, bool) {
	name, pass, ok := r.BasicAuth()
	if !ok {
		return "", false
	}
	same := func(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
	if name == "__token__" {
		for user := range x.opts.Accounts {
			if same(pass, x.Token(user)) {
				return user, true
			}
		}
		return "", false
	}
	want, known := x.opts.Accounts[name]
	return name, known && same(pass, want)
}

// An uploadForm is a parsed upload; its content waits in a temporary file.
type uploadForm struct {
	field  map[string]string
	name   string // of the file
	tmp    string
	size   int64
	sha256 string
}

func (x *Index) serveUpload(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxIndexUpload)
	form, err := x.readForm(r)
	if form != nil && form.tmp != "" {
		defer os.Remove(form.tmp)
	}
	if err != nil {
		io.Copy(io.Discard, r.Body) // else the uploader sees a reset, not the reason
		indexError(w, http.StatusBadRequest, err.Error())
		return
	}
	user := ""
	if x.opts.Accounts != nil {
		var ok bool
		if user, ok = x.user(r); !ok {
			indexError(w, http.StatusForbidden, "Invalid or non-existent authentication information.")
			return
		}
	}
	status, reason := x.accept(user, form)
	if status >= 400 {
		indexError(w, status, reason)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
}

func (x *Index) readForm(r *http.Request) (*uploadForm, error) {
	mr, err := r.MultipartReader()
	if err != nil {
		return nil, fmt.Errorf("not an upload form: %v", err)
	}
	form := &uploadForm{field: map[string]string{}}
	for {
		p, err := mr.NextPart()
		if err == io.EOF {
			break
		} else if err != nil {
			return form, fmt.Errorf("broken upload form: %v", err)
		}
		if p.FormName() == "content" {
			err = x.readContent(form, p)
		} else {
			var b []byte
			b, err = io.ReadAll(io.LimitReader(p, 4<<20))
			form.field[p.FormName()] = string(b)
		}
		if err != nil {
			return form, fmt.Errorf("broken upload form: %v", err)
		}
	}
	switch {
	case form.field[":action"] != "file_upload":
		return form, errors.New("Unsupported :action")
	case form.name == "" || form.name != filepath.Base(form.name) || strings.HasPrefix(form.name, "."):
		return form, errors.New("Upload payload does not have a file.")
	case form.field["sha256_digest"] != "" && !strings.EqualFold(form.field["sha256_digest"], form.sha256):
		return form, errors.New("The digest supplied does not match a digest calculated from the uploaded file.")
	case !strings.HasPrefix(normalize(form.name), normalize(form.field["name"])+"-"):
		return form, fmt.Errorf("Filename %q does not belong to project %q.", form.name, form.field["name"])
	}
	return form, nil
}

func (x *Index) readContent(form *uploadForm, p *multipart.Part) error {
	form.name = p.FileName()
	f, err := os.CreateTemp(filepath.Join(x.dir, "tmp"), "upload")
	if err != nil {
		return err
	}
	defer f.Close()
	form.tmp = f.Name()
	h := sha256.New()
	form.size, err = io.Copy(io.MultiWriter(f, h), p)
	form.sha256 = hex.EncodeToString(h.Sum(nil))
	return err
}

// accept decides on an upload as the index does, and stores it. The answer is a
// status and, when it is an error, the reason phrase in PyPI's words.
func (x *Index) accept(user string, form *uploadForm) (int, string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	project := normalize(form.field["name"])
	if owner, taken := x.state.Owners[project]; taken && owner != user {
		return http.StatusForbidden, fmt.Sprintf("The user '%s' isn't allowed to upload to project '%s'.", user, project)
	}
	if x.faults.reject != "" {
		return http.StatusForbidden, x.faults.reject
	}
	if old := x.state.Files[form.name]; old != nil && !x.faults.overwrite {
		switch {
		case x.faults.htmlOnly:
			return http.StatusConflict, "File already exists"
		case old.SHA256 == form.sha256:
			return http.StatusOK, ""
		}
		return http.StatusBadRequest, "File already exists. See /help/#file-name-reuse for more information."
	}
	f := &indexFile{
		Project: project, Name: form.name, Version: form.field["version"], RequiresPython: form.field["requires_python"],
		Size: form.size, SHA256: form.sha256, Uploaded: x.opts.Now().UTC(),
	}
	if meta, err := wheelMetadata(form.tmp); err == nil {
		f.MetadataSHA256 = hexSHA256(meta)
	}
	if err := os.MkdirAll(filepath.Dir(x.filePath(f)), 0o755); err != nil {
		return http.StatusInternalServerError, err.Error()
	}
	if err := os.Rename(form.tmp, x.filePath(f)); err != nil {
		return http.StatusInternalServerError, err.Error()
	}
	if x.opts.Accounts != nil {
		x.state.Owners[project] = user
	}
	x.state.Files[f.Name] = f
	if err := x.save(); err != nil {
		return http.StatusInternalServerError, err.Error()
	}
	switch {
	case x.faults.acceptThenDrop:
		panic(http.ErrAbortHandler)
	case x.faults.acceptThen500:
		return http.StatusInternalServerError, "Internal Server Error"
	case x.faults.htmlOnly:
		return http.StatusCreated, ""
	}
	return http.StatusOK, ""
}

func (x *Index) serveFile(w http.ResponseWriter, r *http.Request, path string) {
	project, name, _ := strings.Cut(path, "/")
	base, wantMetadata := strings.CutSuffix(name, ".metadata")
	x.mu.Lock()
	f, ok := x.state.Files[base]
	ok = ok && f.Project == project && !(wantMetadata && (f.MetadataSHA256 == "" || x.faults.htmlOnly))
	x.mu.Unlock()
	if !ok {
		indexError(w, http.StatusNotFound, "Not Found")
		return
	}
	if wantMetadata {
		meta, err := wheelMetadata(x.filePath(f))
		if err != nil {
			indexError(w, http.StatusInternalServerError, err.Error())
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(meta)
		return
	}
	fd, err := os.Open(x.filePath(f))
	if err != nil {
		indexError(w, http.StatusNotFound, "Not Found")
		return
	}
	defer fd.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", f.Uploaded, fd)
}

// indexError answers like PyPI does: the reason stands in the status line, where
// twine and pip look for it, and again in the body.
func indexError(w http.ResponseWriter, status int, reason string) {
	body := fmt.Sprintf("<html><head><title>%d %s</title></head><body><h1>%d %[2]s</h1></body></html>\n", status, escape(reason), status)
	reason = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return ' '
		}
		return c
	}, reason)
	hj, ok := w.(http.Hijacker)
	if !ok {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(status)
		io.WriteString(w, body)
		return
	}
	conn, buf, err := hj.Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(buf, "HTTP/1.1 %d %s\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, reason, len(body), body)
	buf.Flush()
}

var separators = regexp.MustCompile(`[-_.]+`)

// normalize is PEP 503's normal form of a project name.
func normalize(name string) string {
	return strings.ToLower(separators.ReplaceAllString(name, "-"))
}

func hexSHA256(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// wheelMetadata reads the METADATA of the wheel at path.
func wheelMetadata(path string) ([]byte, error) {
	z, err := zip.OpenReader(path)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	for _, f := range z.File {
		if strings.HasSuffix(f.Name, ".dist-info/METADATA") && strings.Count(f.Name, "/") == 1 {
			rc, err := f.Open()
			if err != nil {
				return nil, err
			}
			defer rc.Close()
			var b bytes.Buffer
			_, err = io.Copy(&b, io.LimitReader(rc, 4<<20))
			return b.Bytes(), err
		}
	}
	return nil, errors.New("no METADATA")
}
