// The words of an alert: plain text first, for a terminal mail reader at 3 a.m.

package alert

import (
	"fmt"
	"strings"
)

// severityWord opens the subject, so that a mail rule can tell the three apart.
func severityWord(s Severity) string {
	switch s {
	case Tampering:
		return "TAMPERING"
	case Unexpected:
		return "unexpected"
	default:
		return "infrastructure"
	}
}

// Subject is the one-line summary of a notice: printable ASCII, at most 150 bytes.
func Subject(n Notice) string {
	title := "alert"
	if len(n.Alerts) > 0 {
		title = n.Alerts[0].Title
	}
	if more := len(n.Alerts) - 1; more == 1 {
		title += " (and 1 more file)"
	} else if more > 1 {
		title += fmt.Sprintf(" (and %d more files)", more)
	}
	s := OneLine("[portbook " + severityWord(n.Severity) + "] " + title)
	if len(s) > 150 {
		s = s[:147] + "..."
	}
	return s
}

// OneLine makes any string safe for a header or a terminal: whatever is not
// printable ASCII becomes '?'.
func OneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
}

// Text is the body of a notice in plain ASCII text.
func Text(n Notice) string {
	var b strings.Builder
	for i, a := range n.Alerts {
		if i > 0 {
			b.WriteString("\n" + strings.Repeat("-", 70) + "\n\n")
		}
		if i == 0 || !sameStory(n.Alerts[0], a) {
			para(&b, "What happened", a.What)
			para(&b, "Why you hear of it", a.Why)
			if len(a.Next) > 0 {
				b.WriteString("What to do next\n")
				for j, s := range a.Next {
					b.WriteString(wrap(fmt.Sprintf("%d. %s", j+1, s), "  ", "     "))
				}
				b.WriteString("\n")
			}
		} else {
			para(&b, "Also", a.What)
		}
		if len(a.Entry) > 0 {
			b.WriteString("The entry in the log\n")
			line(&b, "log", a.Log)
			if a.Index != nil {
				line(&b, "index", fmt.Sprint(*a.Index))
			}
			line(&b, "leaf", string(a.Entry))
			if a.Page != "" {
				line(&b, "page", a.Page)
			}
			b.WriteString("\n")
		} else if a.Log != "" {
			line(&b, "log", a.Log)
			if a.Page != "" {
				line(&b, "page", a.Page)
			}
			b.WriteString("\n")
		}
		switch {
		case a.Proof != "" && a.Check != "":
			fmt.Fprintf(&b, "Check it yourself (the proof is attached as %s)\n  %s\n\n", OneLine(proofName(a, i)), OneLine(a.Check))
		case a.Proof != "":
			fmt.Fprintf(&b, "The proof that this entry is in the log is attached as %s.\n\n", OneLine(proofName(a, i)))
		case a.ProofMissing != "":
			para(&b, "No proof attached", a.ProofMissing)
		}
		if a.Evidence != "" {
			b.WriteString("The evidence is attached; anyone with the log's public key can check it.\n\n")
		}
	}
	b.WriteString("-- \n")
	if n.Subscription != "" {
		line(&b, "subscription", n.Subscription)
	}
	line(&b, "alert", n.ID)
	b.WriteString("  The same alert always has the same ID; a repeated mail is not a new event.\n")
	return b.String()
}

// sameStory reports whether b needs only its file named, since a told the rest.
func sameStory(a, b Alert) bool {
	return a.Kind == b.Kind && a.Why == b.Why && a.Project == b.Project && a.Version == b.Version
}

func para(b *strings.Builder, head, text string) {
	if text == "" {
		return
	}
	b.WriteString(head + "\n" + wrap(text, "  ", "  ") + "\n")
}

func line(b *strings.Builder, name, value string) {
	fmt.Fprintf(b, "  %s: %s\n", name, OneLine(value))
}

// wrap breaks text at 76 columns; a word longer than that keeps its line.
func wrap(text, first, rest string) string {
	var b strings.Builder
	col := 0
	for i, w := range strings.Fields(OneLine(text)) {
		switch {
		case i == 0:
			b.WriteString(first + w)
			col = len(first) + len(w)
		case col+1+len(w) > 76:
			b.WriteString("\n" + rest + w)
			col = len(rest) + len(w)
		default:
			b.WriteString(" " + w)
			col += 1 + len(w)
		}
	}
	b.WriteString("\n")
	return b.String()
}

// proofName is the attachment's name: the file's own, as `portbook verify`
// looks for it, reduced to characters no mail reader stumbles over.
func proofName(a Alert, i int) string {
	base := a.File
	if j := strings.LastIndexByte(base, '/'); j >= 0 {
		base = base[j+1:]
	}
	base = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("._+-@", r):
			return r
		}
		return '_'
	}, base)
	base = strings.TrimLeft(base, ".")
	if base == "" {
		base = fmt.Sprintf("entry-%d", i)
		if a.Index != nil {
			base = fmt.Sprintf("entry-%d", *a.Index)
		}
	}
	return base + ".tlog-proof"
}
