// Package web is the monitor's page: search, a project's timeline, an entry
// with its proof, and the health of the log and of the monitor itself.
//
// It is rendered on the server and needs no script. Every name in it comes from
// strangers: html/template escapes each where it stands, and a strict
// Content-Security-Policy is behind that. It changes nothing: every address
// answers GET and HEAD only, and none has a side effect.
package web

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor"
	"github.com/portbook/portbook/monitor/alert"
)

//go:embed page/*.html page/style.css page/icon.svg
var files embed.FS

// Config configures [New].
type Config struct {
	Monitor    *monitor.Monitor
	Policy     *c2sp.Policy
	LogURL     string           // where the log is read, shown to people; may be empty
	StaleAfter time.Duration    // default 15 min: older than this is not ready
	Now        func() time.Time // default time.Now
	Logger     *slog.Logger
}

type site struct {
	cfg    Config
	pages  map[string]*template.Template
	proofs chan struct{} // bounds how many proofs are built at once
}

// timelineLength is how many entries of a project are on one page;
// compareLength how many are read to know which publishers are new there.
const (
	timelineLength = 100
	compareLength  = 1000
)

// New returns the handler of the page.
func New(c Config) (http.Handler, error) {
	if c.Monitor == nil || c.Policy == nil {
		return nil, errors.New("monitor/web: Monitor and Policy are needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.StaleAfter <= 0 {
		c.StaleAfter = 15 * time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &site{cfg: c, pages: map[string]*template.Template{}, proofs: make(chan struct{}, 4)}
	for _, name := range []string{"home", "project", "entry", "message"} {
		t, err := template.New("layout.html").Funcs(s.funcs()).ParseFS(files, "page/layout.html", "page/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("monitor/web: %w", err)
		}
		s.pages[name] = t
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("GET /project/{registry...}", s.project)
	mux.HandleFunc("GET /entry/{index}", s.entry)
	mux.HandleFunc("GET /entry/{index}/proof", s.proof)
	mux.HandleFunc("GET /evidence/{name}", s.evidence)
	mux.HandleFunc("GET /checkpoint", s.checkpoint)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { plain(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.HandleFunc("GET /style.css", s.static("page/style.css", "text/css; charset=utf-8"))
	mux.HandleFunc("GET /icon.svg", s.static("page/icon.svg", "image/svg+xml"))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			s.message(w, r, http.StatusMethodNotAllowed, "Nothing to change here", "This page only shows what the log says.")
			return
		}
		s.message(w, r, http.StatusNotFound, "Not here", "There is no such page. Search for a project instead.")
	})
	return secure(mux), nil
}

// secure sets what every answer has. The policy allows our own style sheet and
// icon, our own form, and nothing else.
func secure(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for k, v := range map[string]string{
			"Content-Security-Policy":      "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
			"X-Content-Type-Options":       "nosniff",
			"Referrer-Policy":              "no-referrer",
			"Cross-Origin-Opener-Policy":   "same-origin",
			"Cross-Origin-Resource-Policy": "same-origin",
			"Permissions-Policy":           "camera=(), geolocation=(), microphone=()",
			"Cache-Control":                "no-cache",
		} {
			w.Header().Set(k, v)
		}
		r.Body = http.MaxBytesReader(w, r.Body, 1<<10)
		h.ServeHTTP(w, r)
	})
}

func (s *site) static(name, kind string) http.HandlerFunc {
	b, err := files.ReadFile(name)
	if err != nil {
		panic(err) // embedded
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Cache-Control", "max-age=300")
		_, _ = w.Write(b)
	}
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text))
}

// render executes a page into memory first: half a page is never sent.
func (s *site) render(w http.ResponseWriter, status int, page string, data any) {
	var b bytes.Buffer
	if err := s.pages[page].Execute(&b, data); err != nil {
		s.cfg.Logger.Error("page", "page", page, "err", err)
		plain(w, http.StatusInternalServerError, "The page could not be made.\n")
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// frame is what every page has.
type frame struct {
	Title, Query, Origin string
}

func (s *site) frame(title string) frame { return frame{Title: title, Origin: s.cfg.Monitor.Origin()} }

func (s *site) message(w http.ResponseWriter, r *http.Request, status int, title, text string) {
	s.render(w, status, "message", struct {
		frame
		Text string
	}{s.frame(title), text})
}

func (s *site) broken(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return
	}
	s.cfg.Logger.Error("page", "path", r.URL.Path, "err", err)
	s.message(w, r, http.StatusInternalServerError, "The monitor could not read its index", "This is a fault of this monitor, not a sign of tampering. Try again; its operator finds the cause in its log.")
}

// A witness as the home page shows it.
type witness struct {
	Name, Key string
	Time      time.Time // of its cosignature; zero: none
}

// health is monitor.Health and what follows from it.
type health struct {
	*monitor.Health
	State     string // good, wait, bad: chooses colour and mark, never alone
	Words     string
	Age       time.Duration
	Witnesses []witness
	Evidence  []string
}

func (s *site) health(ctx context.Context) (*health, error) {
	h, err := s.cfg.Monitor.Store().Health(ctx, s.cfg.Monitor.Origin())
	if err != nil {
		return nil, err
	}
	out := &health{Health: h}
	if h.Checkpoint != nil && len(h.Checkpoint) > 0 {
		if v, err := s.cfg.Monitor.Policy().Verify(h.Checkpoint); err == nil {
			at := map[string]time.Time{}
			for _, c := range v.Cosignatures {
				at[c.Witness] = c.Time
			}
			for _, pw := range s.cfg.Monitor.Policy().Witnesses {
				out.Witnesses = append(out.Witnesses, witness{pw.Name, pw.Key.Name(), at[pw.Name]})
			}
		}
	}
	if !h.Quorum.IsZero() {
		out.Age = s.cfg.Now().Sub(h.Quorum)
	}
	if out.Evidence, err = s.cfg.Monitor.ReadEvidence(); err != nil {
		return nil, err
	}
	switch {
	case h.Tampering != "":
		out.State, out.Words = "bad", "Tampering: "+h.Tampering
	case len(h.Checkpoint) == 0:
		out.State, out.Words = "wait", "The log has not been read yet"
	case !h.Quorum.IsZero() && out.Age > s.cfg.StaleAfter:
		out.State, out.Words = "wait", "Nothing new from the log for "+duration(out.Age)
	case h.Behind() > 0:
		out.State, out.Words = "wait", fmt.Sprintf("Catching up: %s entries to go", group(h.Behind()))
	default:
		out.State, out.Words = "good", "Every entry is verified"
	}
	return out, nil
}

func (s *site) home(w http.ResponseWriter, r *http.Request) {
	h, err := s.health(r.Context())
	if err != nil {
		s.broken(w, r, err)
		return
	}
	store, origin := s.cfg.Monitor.Store(), s.cfg.Monitor.Origin()
	d := struct {
		frame
		Health   *health
		LogURL   string
		Projects []monitor.ProjectRow
		Files    []monitor.Record
		Newest   []monitor.Record
		Lies     []alert.Alert
		Now      time.Time
	}{frame: s.frame("Monitor"), Health: h, LogURL: cmp.Or(s.cfg.Monitor.LogURL(), s.cfg.LogURL), Now: s.cfg.Now()}
	d.Query = r.URL.Query().Get("q")
	if d.Query != "" {
		d.Title = "Search"
		if d.Projects, d.Files, err = store.Search(r.Context(), origin, d.Query, 50); err != nil {
			s.broken(w, r, err)
			return
		}
	} else {
		if d.Newest, err = store.Newest(r.Context(), origin, 12); err != nil {
			s.broken(w, r, err)
			return
		}
		if d.Lies, err = store.Tampering(r.Context(), 10); err != nil {
			s.broken(w, r, err)
			return
		}
	}
	s.render(w, http.StatusOK, "home", d)
}

func (s *site) project(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	p := monitor.Watch{Registry: r.PathValue("registry"), Ecosystem: q.Get("ecosystem"), Project: q.Get("name")}
	before := uint64(1 << 62)
	if b := q.Get("before"); b != "" {
		n, err := strconv.ParseUint(b, 10, 62)
		if err != nil {
			s.message(w, r, http.StatusBadRequest, "Not a place in the timeline", "before must be an index in the log.")
			return
		}
		before = n
	}
	name, err := entry.NormalProject(p.Ecosystem, p.Project)
	if err != nil || entry.CheckRegistry(p.Registry) != nil {
		s.message(w, r, http.StatusNotFound, "Not a project", "A project's address needs a registry, an ecosystem and a name that can exist.")
		return
	}
	p.Project = name
	records, err := s.cfg.Monitor.Store().Timeline(r.Context(), s.cfg.Monitor.Origin(), p, before, compareLength)
	if err != nil {
		s.broken(w, r, err)
		return
	}
	status := http.StatusOK
	if len(records) == 0 && before == 1<<62 {
		status = http.StatusNotFound
	}
	d := struct {
		frame
		Project    monitor.Watch
		Records    []timelineRow
		Publishers []publisherRow
		Older      bool // not the newest page
		More       uint64
		HasMore    bool
	}{frame: s.frame(p.Project), Project: p, Older: before != 1<<62}
	d.Records, d.Publishers = compare(records)
	if len(d.Records) > timelineLength {
		d.Records, d.HasMore = d.Records[:timelineLength], true
		d.More = d.Records[timelineLength-1].Index
	}
	s.render(w, status, "project", d)
}

// record reads the entry that a request names, or answers it.
func (s *site) record(w http.ResponseWriter, r *http.Request) *monitor.Record {
	text := r.PathValue("index")
	index, err := strconv.ParseUint(text, 10, 62)
	if err != nil || strconv.FormatUint(index, 10) != text {
		s.message(w, r, http.StatusNotFound, "Not an entry", "An entry's address ends in its number in the log.")
		return nil
	}
	rec, err := s.cfg.Monitor.Store().Record(r.Context(), s.cfg.Monitor.Origin(), index)
	if err != nil {
		s.broken(w, r, err)
		return nil
	}
	if rec == nil {
		s.message(w, r, http.StatusNotFound, "Not verified here (yet)", fmt.Sprintf("This monitor has not verified an entry %d.", index))
		return nil
	}
	return rec
}

// buildProof asks the log for the hashes; a busy page waits its turn.
func (s *site) buildProof(ctx context.Context, rec *monitor.Record) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	select {
	case s.proofs <- struct{}{}:
		defer func() { <-s.proofs }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return s.cfg.Monitor.Proof(ctx, rec.Index, rec.Leaf)
}

func (s *site) entry(w http.ResponseWriter, r *http.Request) {
	rec := s.record(w, r)
	if rec == nil {
		return
	}
	d := struct {
		frame
		Record  *monitor.Record
		Fields  []field
		Leaf    string
		Proof   string
		Missing bool
		Command string
		Project *monitor.Watch
		Name    string
		Told    monitor.Told
	}{frame: s.frame(fmt.Sprintf("Entry %d", rec.Index)), Record: rec, Leaf: alert.OneLine(string(rec.Leaf)), Name: proofFile(rec)}
	if e := rec.Entry; e != nil {
		d.Fields = fields(e)
		if e.Project != "" {
			d.Project = &monitor.Watch{Registry: e.Registry, Ecosystem: e.Ecosystem, Project: e.Project}
		}
		if e.Kind == entry.KindUpload {
			d.Command = monitor.VerifyCommandLines(e)
		}
	}
	var err error
	if d.Told, err = s.cfg.Monitor.Store().Told(r.Context(), s.cfg.Monitor.Origin(), rec); err != nil {
		s.broken(w, r, err)
		return
	}
	proof, err := s.buildProof(r.Context(), rec)
	if err != nil {
		s.cfg.Logger.Warn("no proof for a page", "index", rec.Index, "err", err)
		d.Missing = true
	}
	d.Proof = string(proof)
	s.render(w, http.StatusOK, "entry", d)
}

var notInName = regexp.MustCompile(`[^A-Za-z0-9._+@-]`)

func proofFile(rec *monitor.Record) string {
	name := fmt.Sprintf("entry-%d", rec.Index)
	if rec.Entry != nil && rec.Entry.File != "" {
		f := rec.Entry.File
		name = strings.TrimLeft(notInName.ReplaceAllString(f[strings.LastIndexByte(f, '/')+1:], "_"), ".")
	}
	return name + ".tlog-proof"
}

func (s *site) proof(w http.ResponseWriter, r *http.Request) {
	rec := s.record(w, r)
	if rec == nil {
		return
	}
	proof, err := s.buildProof(r.Context(), rec)
	if err != nil {
		s.cfg.Logger.Warn("no proof", "index", rec.Index, "err", err)
		s.message(w, r, http.StatusBadGateway, "The log did not yield the proof", "This says nothing about the entry, which was verified here. Try again.")
		return
	}
	w.Header().Set("Content-Disposition", `attachment; filename="`+proofFile(rec)+`"`)
	plain(w, http.StatusOK, string(proof))
}

var evidenceName = regexp.MustCompile(`^portbook-evidence-[0-9a-f]{16}\.txt$`)

func (s *site) evidence(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !evidenceName.MatchString(name) {
		s.message(w, r, http.StatusNotFound, "No such evidence", "Evidence files are listed on the first page, where there are any.")
		return
	}
	b, err := os.ReadFile(filepath.Join(s.cfg.Monitor.EvidenceDir(), name))
	if errors.Is(err, os.ErrNotExist) {
		s.message(w, r, http.StatusNotFound, "No such evidence", "Evidence files are listed on the first page, where there are any.")
		return
	}
	if err != nil {
		s.broken(w, r, err)
		return
	}
	w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
	plain(w, http.StatusOK, string(b))
}

// checkpoint serves the newest accepted checkpoint, for who compares.
func (s *site) checkpoint(w http.ResponseWriter, r *http.Request) {
	h, err := s.cfg.Monitor.Store().Health(r.Context(), s.cfg.Monitor.Origin())
	if err != nil {
		s.broken(w, r, err)
		return
	}
	if len(h.Checkpoint) == 0 {
		s.message(w, r, http.StatusNotFound, "No checkpoint yet", "The log has not been read yet.")
		return
	}
	plain(w, http.StatusOK, string(h.Checkpoint))
}

// readyz says how far behind the monitor is: 200 where every entry of a fresh
// checkpoint is verified and nothing stands still, else 503.
func (s *site) readyz(w http.ResponseWriter, r *http.Request) {
	h, err := s.health(r.Context())
	if err != nil {
		s.cfg.Logger.Error("readyz", "err", err)
		plain(w, http.StatusServiceUnavailable, "the index cannot be read\n")
		return
	}
	status := http.StatusOK
	if h.State != "good" {
		status = http.StatusServiceUnavailable
	}
	b, err := json.Marshal(struct {
		Ready      bool   `json:"ready"`
		Why        string `json:"why"`
		Origin     string `json:"origin"`
		Size       uint64 `json:"size"`
		Verified   uint64 `json:"verified"`
		Behind     uint64 `json:"behind"`
		Age        int64  `json:"checkpoint_age_seconds"`
		Deliveries int    `json:"deliveries_pending"`
		Failed     int    `json:"deliveries_failed"`
		Tampering  string `json:"tampering,omitempty"`
	}{status == http.StatusOK, h.Words, h.Origin, h.Size, h.Verified, h.Behind(), int64(h.Age.Seconds()), h.Owed, h.Failed, h.Tampering})
	if err != nil {
		plain(w, http.StatusInternalServerError, "the answer cannot be encoded\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}
