// The words and numbers of the pages.

package web

import (
	"fmt"
	"html/template"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor"
	"github.com/portbook/portbook/monitor/alert"
)

func (s *site) funcs() template.FuncMap {
	return template.FuncMap{
		"group":    group,
		"group64":  func(n int) string { return group(uint64(max(n, 0))) },
		"duration": duration,
		"ago":      func(t time.Time) string { return duration(s.cfg.Now().Sub(t)) },
		"utc":      func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
		"day":      day,
		"projectURL": func(w monitor.Watch) string {
			return "/project/" + w.Registry + "?" + url.Values{"ecosystem": {w.Ecosystem}, "name": {w.Project}}.Encode()
		},
		"watch": func(e *entry.Entry) monitor.Watch {
			return monitor.Watch{Registry: e.Registry, Ecosystem: e.Ecosystem, Project: e.Project}
		},
		"who":     who,
		"subject": subject,
		"tone":    tone,
		"told":    told,
		"oneline": alert.OneLine,
		"deref": func(n *uint64) string {
			if n == nil {
				return ""
			}
			return strconv.FormatUint(*n, 10)
		},
	}
}

// group writes 1234567 as 1 234 567, with no-break spaces.
func group(n uint64) string {
	s := strconv.FormatUint(n, 10)
	var b strings.Builder
	for i, c := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteRune('\u202f')
		}
		b.WriteRune(c)
	}
	return b.String()
}

// duration in the largest unit that says enough.
func duration(d time.Duration) string {
	unit := func(n int, name string) string {
		if n == 1 {
			return "1 " + name
		}
		return fmt.Sprintf("%d %ss", n, name)
	}
	switch {
	case d < -5*time.Second:
		return "a future time"
	case d < time.Second:
		return "a moment"
	case d < 2*time.Minute:
		return unit(int(d.Seconds()), "second")
	case d < 2*time.Hour:
		return unit(int(d.Minutes()), "minute")
	case d < 48*time.Hour:
		return unit(int(d.Hours()), "hour")
	}
	return unit(int(d.Hours()/24), "day")
}

// day is an entry's own time, shortened for a list.
func day(t string) string {
	at, err := time.Parse(entry.TimeFormat, t)
	if err != nil {
		return t
	}
	return at.Format("2006-01-02 15:04")
}

func publisherName(e *entry.Entry) string {
	if p := e.Publisher; p != nil {
		name := p.Repository
		if name == "" {
			name = p.Subject
		}
		s := p.Kind
		if name != "" {
			s += " · " + name
		}
		if p.Workflow != "" {
			s += " · " + p.Workflow
		}
		if p.Environment != "" {
			s += " · " + p.Environment
		}
		return s
	}
	switch e.Auth {
	case "":
		return "publisher not named"
	case "token":
		return "API token"
	}
	return e.Auth
}

// who is who did it, or why, in a list.
func who(e *entry.Entry) string {
	if e.Kind == entry.KindUpload || e.Publisher != nil {
		return publisherName(e)
	}
	return e.Reason
}

// subject is what an entry is about, in a list.
func subject(e *entry.Entry) string {
	switch {
	case e.File != "":
		return e.File
	case e.Tag != "":
		return e.Tag + " → " + e.Version
	case e.Project != "" && e.Version != "":
		return e.Project + " " + e.Version
	case e.Project != "":
		return e.Project
	case e.Registry != "":
		return e.Registry
	case e.Origin != "":
		return e.Origin
	}
	return ""
}

// tone chooses the colour of a kind's mark; the word itself is always there.
// Green says that nobody's expectation was against the entry.
func tone(r monitor.Record) string {
	switch {
	case r.Verdict == alert.Tampering || r.Entry == nil:
		return "odd"
	case r.Verdict == alert.Unexpected:
		return "warn"
	}
	switch r.Entry.Kind {
	case entry.KindUpload:
		return "calm"
	case entry.KindConflict, entry.KindDispute, entry.KindQuarantine, entry.KindReject:
		return "odd"
	case entry.KindCanary, entry.KindBaseline:
		return "quiet"
	}
	return "change"
}

// told says what became of the alerts about an entry, and not whose they are.
func told(t monitor.Told) string {
	many := func(n int) string {
		if n == 1 {
			return "1 alert"
		}
		return fmt.Sprintf("%d alerts", n)
	}
	var s []string
	if t.Sent > 0 {
		s = append(s, many(t.Sent)+" sent")
	}
	if t.Owed > 0 {
		s = append(s, many(t.Owed)+" to deliver")
	}
	if t.Failed > 0 {
		s = append(s, many(t.Failed)+" given up")
	}
	if s == nil {
		return "No alert was sent."
	}
	return strings.Join(s, ", ") + "."
}
