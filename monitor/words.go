// The words of alerts: what happened, why somebody hears of it, what to do.
// For a person who did not expect mail from a transparency log.

package monitor

import (
	"fmt"
	"strings"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
)

func describePublisher(p *entry.Publisher) string {
	if p == nil {
		return "no publisher named"
	}
	s := p.Kind
	if p.Repository != "" {
		s += " repository " + p.Repository
	}
	if p.RepositoryID != "" {
		s += " (id " + p.RepositoryID + ")"
	}
	if p.Workflow != "" {
		s += ", workflow " + p.Workflow
	}
	if p.Environment != "" {
		s += ", environment " + p.Environment
	}
	if p.Subject != "" {
		s += ", subject " + p.Subject
	}
	if p.Issuer != "" {
		s += ", issuer " + p.Issuer
	}
	return s
}

func authWords(e *entry.Entry) string {
	switch {
	case e.Publisher != nil:
		return "by " + describePublisher(e.Publisher)
	case e.Auth == "token":
		return "with an API token, by no trusted publisher"
	case e.Auth == "password":
		return "with a password, by no trusted publisher"
	case e.Auth != "":
		return "by other means (" + e.Auth + "), by no trusted publisher"
	}
	return "by a publisher the registry did not name"
}

// aboutEntry fills in what every alert about an entry has.
func (m *Monitor) aboutEntry(a alert.Alert, index uint64, leaf []byte, e *entry.Entry) alert.Alert {
	a.Log, a.Index, a.Entry = m.Origin(), &index, leaf
	if m.cfg.PageURL != "" {
		a.Page = fmt.Sprintf("%s/entry/%d", strings.TrimRight(m.cfg.PageURL, "/"), index)
	}
	if e == nil {
		a.Entry = nil // not JSON we vouch for; the page and the log have it
		return a
	}
	a.Registry, a.Ecosystem, a.Project, a.Version, a.File = e.Registry, e.Ecosystem, e.Project, e.Version, e.File
	if e.Kind == entry.KindUpload && e.Claim != entry.ClaimLog {
		a.Check = VerifyCommand(e)
	}
	return a
}

// VerifyCommand is the command that checks a file against the proof beside it.
// It is meant to be pasted into a shell, so every word from the entry is quoted
// where it holds more than plain characters: a file name is a stranger's.
func VerifyCommand(e *entry.Entry) string { return strings.Join(verifyWords(e), " ") }

// VerifyCommandLines is the same command, one flag a line.
func VerifyCommandLines(e *entry.Entry) string { return strings.Join(verifyWords(e), " \\\n  ") }

func verifyWords(e *entry.Entry) []string {
	file := e.File[strings.LastIndexByte(e.File, '/')+1:]
	if strings.HasPrefix(file, "-") {
		file = "./" + file
	}
	lines := []string{"portbook verify " + shellWord(file), "--proof " + shellWord(file+".tlog-proof"), "--policy policy.txt", "--registry " + shellWord(e.Registry)}
	if e.Ecosystem != entry.PyPI {
		lines = append(lines, "--ecosystem "+shellWord(e.Ecosystem), "--project "+shellWord(e.Project))
		if file != e.File {
			lines = append(lines, "--file "+shellWord(e.File))
		}
	}
	return lines
}

func shellWord(s string) string {
	plain := s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._+@/:=-", r))
	}) < 0
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func release(e *entry.Entry) string {
	if e.Version == "" {
		return e.Project
	}
	return e.Project + " " + e.Version
}

func uploadAlert(e *entry.Entry, why string) alert.Alert {
	return alert.Alert{
		Severity: alert.Unexpected, Kind: string(entry.KindUpload),
		Title: fmt.Sprintf("%s: unexpected upload %s", release(e), e.File),
		What: fmt.Sprintf("The file %s was uploaded to %s as %s, %s. It is logged and, unless somebody holds it back, people can install it now.",
			e.File, e.Registry, release(e), authWords(e)),
		Why: why,
		Next: []string{
			"Was this you, or your release job? Then nothing is wrong; add the publisher to the subscription's `expect` and you will not hear of the next one.",
			"If not: yank or remove the file at " + e.Registry + " now, then revoke the project's API tokens and trusted publishers, and look at who can log in.",
			"Report it to " + e.Registry + " with the attached proof: it shows what was published, and when, and cannot be denied later.",
		},
	}
}

func replacedAlert(e *entry.Entry, old uint64) alert.Alert {
	a := uploadAlert(e, fmt.Sprintf("Files under an existing name are new bytes for people who think they know them: entry %d logged other contents for %s. %s allows this by its logged policy.", old, e.File, e.Registry))
	a.Kind, a.Title = "replaced", fmt.Sprintf("%s: file %s was replaced", release(e), e.File)
	return a
}

func secondDigestAlert(e *entry.Entry, first uint64) alert.Alert {
	return alert.Alert{
		Severity: alert.Tampering, Kind: "second-digest",
		Title: fmt.Sprintf("%s: %s was logged twice with different contents", release(e), e.File),
		What: fmt.Sprintf("Entry %d says that %s at %s has one content, this entry says that it has another. One file name must stand for one file.",
			first, e.File, e.Registry),
		Why: "No policy, rejection or removal in the log allows it. Either the log accepted what it must refuse, or somebody who can write to it bypassed its rule.",
		Next: []string{
			"Do not install or mirror " + e.File + " until you know which of the two is yours: compare the sha256 of your own build with both entries.",
			"Tell the people who run the log and " + e.Registry + "; send them the attached proof and the number of the first entry.",
		},
	}
}

func servedDiffersAlert(e *entry.Entry, other uint64) alert.Alert {
	return alert.Alert{
		Severity: alert.Tampering, Kind: "served-differs",
		Title: fmt.Sprintf("%s: %s was served with other contents than were logged", release(e), e.File),
		What: fmt.Sprintf("The registry's own entry and what a follower saw it serve differ for %s at %s: entry %d has the other digest.",
			e.File, e.Registry, other),
		Why: "A registry must serve the bytes it committed to. Somebody is given another file than everybody was told.",
		Next: []string{
			"Do not install " + e.File + " from this registry without a verified proof.",
			"Tell the people who run " + e.Registry + "; send them both entries.",
		},
	}
}

func conflictAlert(e *entry.Entry) alert.Alert {
	if e.SlotClaim == entry.ClaimObserved {
		return alert.Alert{
			Severity: alert.Tampering, Kind: "served-differs",
			Title: fmt.Sprintf("%s: %s was served with two different contents", e.Project, e.File),
			What: fmt.Sprintf("A follower saw %s serve %s with contents other than those it saw before (entry %d).",
				e.Registry, e.File, *e.FirstIndex),
			Why: "The second contents were really served to somebody. One file name must stand for one file.",
			Next: []string{
				"Do not install " + e.File + " without a verified proof.",
				"Compare your own build with both digests, and tell the people who run " + e.Registry + ".",
			},
		}
	}
	return alert.Alert{
		Severity: alert.Unexpected, Kind: "conflict",
		Title: fmt.Sprintf("%s: a second, different %s was refused", e.Project, e.File),
		What: fmt.Sprintf("Somebody who may upload to %s sent other contents for %s, which entry %d had already pinned. The log refused; nobody can install the second file as verified.",
			e.Project, e.File, *e.FirstIndex),
		Why: "It is often harmless: a release job that ran twice and does not build the same bytes. It is also what replacing a release looks like.",
		Next: []string{
			"Did a job upload the same version again? Then nothing was changed, and nothing has to be done.",
			"If not, somebody else has your upload rights: revoke tokens and trusted publishers at " + e.Registry + ".",
		},
	}
}

var changeWords = map[entry.Kind]string{
	entry.KindYank: "was yanked", entry.KindUnyank: "is no longer yanked",
	entry.KindQuarantine: "was quarantined", entry.KindUnquarantine: "is no longer quarantined",
	entry.KindDeprecate: "was deprecated", entry.KindUndeprecate: "is no longer deprecated",
	entry.KindArchive: "was archived", entry.KindUnarchive: "is no longer archived",
	entry.KindRemove: "was removed", entry.KindReject: "was logged, but then not accepted by the registry",
	entry.KindDispute: "has an entry that is disputed",
}

func changeAlert(e *entry.Entry, w Watch) alert.Alert {
	subject := w.Project
	if e.Version != "" {
		subject += " " + e.Version
	}
	if e.File != "" {
		subject += " (" + e.File + ")"
	}
	a := alert.Alert{Severity: alert.Unexpected, Kind: string(e.Kind),
		Why: "Changes like this are rare, and each can be a step of an attack. The subscription does not list it under `expect: changes`.",
		Next: []string{
			"Was this you or somebody you know? Then nothing is wrong.",
			"If not: log in at " + w.Registry + ", look at who owns the project and who may publish, and revoke what you do not know.",
		},
	}
	switch e.Kind {
	case entry.KindOwnerAdd:
		a.Title = w.Project + ": an owner was added"
		a.What = fmt.Sprintf("%s gave somebody ownership of %s (pseudonym %s).", w.Registry, w.Project, short(e.Subject))
	case entry.KindOwnerRemove:
		a.Title = w.Project + ": an owner was removed"
		a.What = fmt.Sprintf("%s took ownership of %s from somebody (pseudonym %s).", w.Registry, w.Project, short(e.Subject))
	case entry.KindPublisherAdd:
		a.Title = w.Project + ": a publisher was added"
		a.What = fmt.Sprintf("From now on this publisher may upload to %s at %s without a password: %s.", w.Project, w.Registry, describePublisher(e.Publisher))
		a.Why = "Whoever controls that repository can now publish in the project's name."
	case entry.KindPublisherRemove:
		a.Title = w.Project + ": a publisher was removed"
		a.What = fmt.Sprintf("This publisher may no longer upload to %s at %s: %s.", w.Project, w.Registry, describePublisher(e.Publisher))
	case entry.KindDistTag:
		a.Title = fmt.Sprintf("%s: tag %s moved", w.Project, e.Tag)
		a.What = fmt.Sprintf("The tag %s of %s now means version %s.", e.Tag, w.Project, e.Version)
		if e.Version == "" {
			a.Title, a.What = fmt.Sprintf("%s: tag %s removed", w.Project, e.Tag), fmt.Sprintf("The tag %s of %s was removed.", e.Tag, w.Project)
		}
	case entry.KindDispute:
		a.Title = w.Project + ": an entry is disputed"
		a.What = fmt.Sprintf("%s says that entry %d of the log was made with stolen credentials.", w.Registry, *e.Index)
		a.Why = "An upload in the project's name may not be what its maintainers made."
	default:
		a.Title = subject + " " + changeWords[e.Kind]
		a.What = fmt.Sprintf("%s %s at %s.", subject, changeWords[e.Kind], w.Registry)
		if e.Reason != "" {
			a.What += " Reason given: " + e.Reason + "."
		}
	}
	return a
}

func short(pseudonym string) string {
	if len(pseudonym) > 12 {
		return pseudonym[:12] + "..."
	}
	return pseudonym
}

func registryPolicyAlert(e *entry.Entry, was string) alert.Alert {
	return alert.Alert{
		Severity: alert.Unexpected, Kind: string(entry.KindRegistryPolicy),
		Title: fmt.Sprintf("%s changed its overwrite policy to %s", e.Registry, e.Overwrite),
		What:  fmt.Sprintf("The registry's policy for files under an existing name was %q and is now %q.", was, e.Overwrite),
		Why:   "A looser policy lets a published file be replaced.",
		Next:  []string{"Ask the people who run " + e.Registry + " whether they meant it."},
	}
}

func unreadableAlert(index uint64, err error, version bool) alert.Alert {
	a := alert.Alert{
		Severity: alert.Infrastructure, Kind: "unreadable",
		Title: fmt.Sprintf("entry %d of the log cannot be read", index),
		What:  fmt.Sprintf("Entry %d is in the log (its hash is proven), but it is not an entry this monitor understands: %v. The monitor goes on with the entries after it; more of the same kind are recorded, not sent, for a day.", index, err),
		Why:   "What is in it, and whether it concerns a watched project, is not known.",
		Next:  []string{"Ask the people who run the log what it is: their server should have refused it."},
	}
	if version {
		a.Why = "It is of a newer version of the entry format. What is in it is not known here."
		a.Next = []string{"Update portbook-monitor, then rebuild its index."}
	}
	return a
}

func successorAlert(e *entry.Entry) alert.Alert {
	return alert.Alert{
		Severity: alert.Infrastructure, Kind: string(entry.KindSuccessor),
		Title: "the log ends here; it says that it goes on as " + e.Origin,
		What:  fmt.Sprintf("The log says that this is its last entry and that %s, read at %s, takes over.", e.Origin, e.URL),
		Why:   "From now on uploads are logged there. This monitor goes on there by itself as soon as that log has proven it, under the same quorum of witnesses; then you hear of it. Until then nothing new is seen.",
		Next: []string{
			"Nothing has to be done if the log's operators announced it.",
			"If they did not, ask them: somebody else may have their key. It does not lead this monitor, or anyone with a quorum in the policy, to another log without your witnesses.",
		},
	}
}

func rotatedAlert(f *client.Followed) alert.Alert {
	return alert.Alert{
		Severity: alert.Infrastructure, Kind: "rotated",
		Title: "the log was rotated: it goes on as " + f.To,
		What:  fmt.Sprintf("The log ended with %d entries, and %s, read at %s, took over. Both logs say so, and the quorum of witnesses has cosigned both. This monitor watches the new one now.", f.From.Size, f.To, f.URL),
		Why:   "You hear of uploads as before. What was logged stays proven.",
		Next:  []string{"Nothing has to be done. Put the new log into your policy when its operators send you its key by a way you trust."},
	}
}

func badSuccessorAlert(detail string) alert.Alert {
	return alert.Alert{
		Severity: alert.Tampering, Kind: "bad-successor",
		Title: "the log names a successor that contradicts it",
		What:  "The log says that it has ended and that another one takes over, but: " + detail + ". This monitor does not follow it.",
		Why:   "Whoever followed it could be led away from what was logged. Somebody may have the log's key, or answer in the new log's name.",
		Next: []string{
			"Do not put the new log into a policy. Ask the people who run the log, by a way you trust.",
			"New uploads are not seen until this is settled: hold back installing what is new.",
		},
	}
}

func afterEndAlert(detail string) alert.Alert {
	return alert.Alert{
		Severity: alert.Tampering, Kind: "after-end",
		Title: "the log went on after its end",
		What:  "A log that has ended signs nothing any more, but " + detail + ".",
		Why:   "Whoever holds its key is not its operator, or its operator breaks the rule. Two logs may now claim to be the one that goes on.",
		Next: []string{
			"Do not believe what came after the end. This monitor goes on reading it, and follows no successor.",
			"Send the attached evidence to the people who run the log and to its witnesses.",
		},
	}
}

func secondDigestInNextAlert(e *entry.Entry, first uint64) alert.Alert {
	a := secondDigestAlert(e, first)
	a.What = fmt.Sprintf("Entry %d of the log that this one took over from says that %s at %s has one content, this entry says that it has another. One file name must stand for one file.",
		first, e.File, e.Registry)
	a.Why = "A log that takes over must not take a new content for an old name either."
	return a
}

// Troubles of the log itself.

func forkAlert(detail string) alert.Alert {
	return alert.Alert{
		Severity: alert.Tampering, Kind: "fork",
		Title: "the log shows two different histories",
		What:  detail + ". An honest log only grows; this one was rewritten, or shows different people different things.",
		Why:   "Nothing that is only in one of the two histories can be relied on, and what was uploaded meanwhile may be hidden from you.",
		Next: []string{
			"Do not believe new entries of this log. This monitor has stopped where it was and keeps what it verified.",
			"Send the attached evidence to the people who run the log, its witnesses and the registries that use it; they can check it with the public keys alone.",
		},
	}
}

func rollbackAlert(was, now uint64) alert.Alert {
	return alert.Alert{
		Severity: alert.Tampering, Kind: "rollback",
		Title: fmt.Sprintf("the log went back from %d to %d entries", was, now),
		What:  fmt.Sprintf("The log showed %d entries before and shows %d now. A log only grows: entries that were there are being hidden, or the log was restored from a backup, which is no better.", was, now),
		Why:   "While it shows an old state, new uploads stay unseen.",
		Next: []string{
			"Ask the people who run the log. This monitor waits where it was and goes on by itself if the log shows its full history again.",
			"If the answer is that entries are lost, the log must be replaced by a successor; only then start the monitor with --accept-new-baseline.",
		},
	}
}

func tilesAlert(detail string) alert.Alert {
	return alert.Alert{
		Severity: alert.Tampering, Kind: "tiles",
		Title: "the log serves other entries than it signed",
		What:  "Read twice, what the log serves does not hash to what it signed: " + detail + ".",
		Why:   "It may be hiding a changed history, or its storage or a cache in front of it is damaged. Which of the two cannot be told from here, and it proves nothing to others.",
		Next: []string{
			"Read the log from another network. If it stays like this, tell the people who run it.",
			"This monitor has stopped where it was and goes on by itself when entries and signature agree again.",
		},
	}
}

func headSignatureAlert(detail string) alert.Alert {
	return alert.Alert{
		Severity: alert.Tampering, Kind: "head-signature",
		Title: "the log's address serves a checkpoint that is not properly signed",
		What:  "Read twice, the checkpoint at the log's address is in the log's name but its signatures do not hold: " + detail + ".",
		Why:   "It was changed on the way, or somebody else answers in the log's name.",
		Next:  []string{"Read the log from another network.", "If it stays like this, tell the people who run the log."},
	}
}

// Conditions: infrastructure troubles with a beginning and an end.
const (
	condSilent  = "silent"
	condClock   = "clock"
	condBacklog = "backlog"
)

func conditionAlert(kind, detail string, since time.Time) alert.Alert {
	from := since.UTC().Format("2006-01-02 15:04 UTC")
	a := alert.Alert{Severity: alert.Infrastructure, Kind: kind}
	switch kind {
	case condSilent:
		a.Title = "nothing new from the log since " + from
		a.What = "Since " + from + " no quorum of witnesses has confirmed a newest state of the log that this monitor could read. " + detail
		a.Why = "Uploads since then may not have been seen. This is an outage, not evidence of tampering."
		a.Next = []string{"Nothing has to be done by maintainers; what is found later is still told.", "Operators: see whether the log is up, its witnesses answer and this machine's network works."}
	case condClock:
		a.Title = "clocks disagree: witnesses are ahead of this monitor"
		a.What = detail
		a.Why = "How old the log's newest state is cannot be judged while the clocks disagree. Entries are still read and told."
		a.Next = []string{"Set this machine's clock. If it is right, ask the witnesses' operators about theirs."}
	case condBacklog:
		a.Title = "the monitor is behind the log since " + from
		a.What = detail
		a.Why = "Alerts about the entries not read yet will be late."
		a.Next = []string{"Operators: see whether the log serves its entries, and whether this machine keeps up."}
	}
	return a
}

func recoveredAlert(kind string, since, now time.Time) alert.Alert {
	return alert.Alert{
		Severity: alert.Infrastructure, Kind: kind + "-over",
		Title: "over: " + conditionAlert(kind, "", since).Title,
		What:  fmt.Sprintf("The trouble that began at %s is over since %s. What was logged meanwhile has been read or is being read now.", since.UTC().Format("2006-01-02 15:04 UTC"), now.UTC().Format("15:04 UTC")),
		Why:   "You were told of its beginning.",
	}
}

func deliveryFailedAlert(kind, host string, n alert.Notice, attempts int, reason string) alert.Alert {
	return alert.Alert{
		Severity: alert.Infrastructure, Kind: "delivery",
		Title: fmt.Sprintf("an alert could not be delivered by %s", kind),
		What: fmt.Sprintf("The %s alert %s of subscription %q was given up after %d attempts; its receiver is at %s. Last answer: %s",
			n.Severity, n.ID, n.Subscription, attempts, host, reason),
		Why:  "Somebody who asked to be told was not.",
		Next: []string{"Correct the address in the subscriptions file, or remove it, and tell its owner by other means. The alert is on the monitor's page."},
	}
}
