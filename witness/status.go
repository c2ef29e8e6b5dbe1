package witness

// The status page: one look says which logs, how fresh, and what was refused.
// Everything on it is public already, through the read API.

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"
	"unicode"
)

//go:embed status.html
var statusHTML string

var statusPage = template.Must(template.New("status").Funcs(template.FuncMap{
	"ago":     ago,
	"visible": Visible,
	"utc":     func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
}).Parse(statusHTML))

// Visible is s with every character that does not show, or that changes how
// others show (controls, directions of text, spaces that are none), as an escape:
// a log chooses its own name.
func Visible(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "\\u{%04x}", r)
		}
	}
	return b.String()
}

// pagePolicy is the Content-Security-Policy of pages: no script, nothing loaded.
const pagePolicy = "default-src 'none'; style-src 'unsafe-inline'"

// A summary is what the status page and the metrics say of a log.
type summary struct {
	Origin     string
	OriginHash string
	Size       uint64
	Time       time.Time // of the last cosignature; zero: none yet
	Forks      int
}

// summary lists all logs, by origin.
func (s *Store) summary(ctx context.Context) ([]summary, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT l.origin, l.origin_hash, coalesce(h.size, 0), coalesce(h.time, 0), (SELECT count(*) FROM fork f WHERE f.origin = l.origin), (SELECT n FROM generation)
		FROM log l LEFT JOIN head h ON h.origin = l.origin ORDER BY l.origin`)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	defer rows.Close()
	var out []summary
	var written uint64
	for rows.Next() {
		var one summary
		var size, at int64
		if err := rows.Scan(&one.Origin, &one.OriginHash, &size, &at, &one.Forks, &written); err != nil {
			return nil, fmt.Errorf("reading %s: %w", s.path, err)
		}
		one.Size = uint64(size)
		if at > 0 {
			one.Time = time.Unix(at, 0)
		}
		out = append(out, one)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	if err := s.covered(ctx, written); err != nil {
		return nil, err
	}
	return out, nil
}

// shownLogs is how many logs the page lists; the rest is counted.
const shownLogs = 200

func (w *Witness) serveStatus(rw http.ResponseWriter, r *http.Request) {
	list, err := w.store.summary(r.Context())
	if err != nil {
		w.log.Error("the status page failed", "error", err)
		problem(rw, http.StatusInternalServerError, "the witness failed; its operator's journal has the cause")
		return
	}
	retired, err := w.store.Retirement(r.Context())
	if err != nil {
		w.log.Error("the status page failed", "error", err)
		problem(rw, http.StatusInternalServerError, "the witness failed; its operator's journal has the cause")
		return
	}
	now := w.now()
	page := struct {
		Name                            string
		Retired                         *Retirement
		Keys                            []string
		Now, Since                      time.Time
		Logs, Forked                    []summary
		Total, More, Fresh, Never, Held int
		Answers                         []answered
	}{Name: w.keys[0].Name(), Retired: retired, Now: now, Since: w.started, Total: len(list), Held: w.peers.held(), Answers: w.metrics.answers()}
	for _, k := range w.Keys() {
		page.Keys = append(page.Keys, k.Alg().String()+", key ID "+fmt.Sprintf("%08x", k.ID()))
	}
	for _, l := range list {
		switch {
		case l.Time.IsZero():
			page.Never++
		case now.Sub(l.Time) < 24*time.Hour:
			page.Fresh++
		}
		if l.Forks > 0 {
			page.Forked = append(page.Forked, l)
		}
	}
	page.Logs = list
	if len(list) > shownLogs {
		page.Logs, page.More = list[:shownLogs], len(list)-shownLogs
	}
	h := rw.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-cache")
	if err := statusPage.Execute(rw, page); err != nil {
		w.log.Debug("the status page was not read to its end", "error", err)
	}
}

// ago says how long ago a time was, in words that fit a table.
func ago(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case d < 0:
		return "in the future"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}
