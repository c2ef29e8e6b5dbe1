// What the monitor tells, and whom: every alert kind reaches a real receiver.

package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/portbook/portbook/monitor/internal/fakelog"
)

const subsAlice = `
operator:
  notify:
    - {webhook: OPS/x, secret: SECRET}
subscriptions:
  - name: alice
    project: {registry: pypi.test, ecosystem: pypi, project: Alice_Lib}
    notify:
      - {webhook: HOOK/x, secret: SECRET}
      - email: alice@example.org
    expect:
      publishers:
        - {kind: github, repository: alice/lib, workflow: release.yml}
`

func TestExpectedIsRecordedUnexpectedIsSent(t *testing.T) {
	w := newWorld(t, subsAlice)
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "alice/lib", "a"), fakelog.Upload("other", "1.0", "other-1.0.tar.gz", "", "b"))
	w.round()
	w.none(w.hook)
	w.none(w.ops)

	index := w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "mallory/lib", "c"))
	w.round()
	a := w.want(w.hook, alert.Unexpected, "upload")
	if *a.Index != index || a.Project != "alice-lib" || a.Registry != "pypi.test" {
		t.Errorf("alert is about %+v", a)
	}
	if string(a.Entry) != string(w.log.Leaf(index)) {
		t.Errorf("the entry is not the leaf byte for byte:\n%s\n%s", a.Entry, w.log.Leaf(index))
	}
	for _, want := range []string{"mallory/lib", "alice/lib"} {
		if !strings.Contains(a.Why, want) {
			t.Errorf("why does not name %s: %s", want, a.Why)
		}
	}
	if a.Page != fmt.Sprintf("https://monitor.test/entry/%d", index) || !strings.HasPrefix(a.Check, "portbook verify alice_lib-1.1.tar.gz --proof ") {
		t.Errorf("page %q, check %q", a.Page, a.Check)
	}
	v, err := client.VerifyProof(w.log.Policy, []byte(a.Proof))
	if err != nil {
		t.Fatalf("the alert's proof does not verify: %v", err)
	}
	if v.Index != index || v.Entry.File != "alice_lib-1.1.tar.gz" {
		t.Errorf("the proof is about %d %s", v.Index, v.Entry.File)
	}
	w.none(w.ops)

	mails := w.mail.all()
	if len(mails) != 1 || mails[0].to != "alice@example.org" {
		t.Fatalf("mails: %+v", mails)
	}
	m := mails[0]
	if m.header.Get("Portbook-Alert-Id") != a.ID || !strings.Contains(m.header.Get("Message-Id"), a.ID) {
		t.Errorf("mail's IDs: %q", m.header)
	}
	if got := m.attachments["alice_lib-1.1.tar.gz.tlog-proof"]; got != a.Proof {
		t.Errorf("attached proof: %q", got)
	}
	for _, want := range []string{"What happened", "Why you hear of it", "What to do next", "portbook verify"} {
		if !strings.Contains(m.body, want) {
			t.Errorf("mail does not say %q:\n%s", want, m.body)
		}
	}
	if m.header.Get("List-Unsubscribe") != "" {
		t.Error("a static subscription has no List-Unsubscribe")
	}

	// Nothing is told twice, also after a restart.
	w.hook.clear()
	w.reopen()
	w.round()
	w.none(w.hook)
	if len(w.mail.all()) != 1 {
		t.Error("the mail came twice")
	}
}

// Each row is an entry that a subscriber hears of, on top of one expected upload.
func TestEveryKindReachesTheSubscriber(t *testing.T) {
	expected := fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "alice/lib", "a")
	second := fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "alice/lib", "b")
	conflict := func(claim entry.Claim) *entry.Entry {
		e := fakelog.Status(entry.KindConflict, "alice-lib", "", 1)
		e.Claim, e.SlotClaim, e.File, e.SHA256, e.FirstIndex = entry.ClaimLog, claim, expected.File, second.SHA256, entry.Uint(0)
		return e
	}
	observed := func(seed string) *entry.Entry {
		e := fakelog.Upload("alice-lib", "1.0", expected.File, "", seed)
		e.Claim, e.Auth = entry.ClaimObserved, ""
		return e
	}
	with := func(e *entry.Entry, f func(*entry.Entry)) *entry.Entry { f(e); return e }
	policy := func(overwrite string, id int) *entry.Entry {
		return &entry.Entry{Kind: entry.KindRegistryPolicy, Claim: entry.ClaimIndex, Registry: "pypi.test", Ecosystem: entry.PyPI,
			Time: expected.Time, ID: fmt.Sprintf("%032x", id), Overwrite: overwrite}
	}
	file := func(kind entry.Kind) *entry.Entry {
		return with(fakelog.Status(kind, "alice-lib", "1.0", 5), func(e *entry.Entry) { e.File, e.SHA256 = expected.File, expected.SHA256 })
	}
	reject := with(fakelog.Status(entry.KindReject, "alice-lib", "", 6), func(e *entry.Entry) { e.File, e.SHA256 = expected.File, expected.SHA256 })
	tests := []struct {
		name     string
		entries  []*entry.Entry
		severity alert.Severity
		kinds    string // of all alerts, in order
		ops      string // kinds the operator hears of
	}{
		{"upload by token", []*entry.Entry{fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "x")}, alert.Unexpected, "upload", ""},
		{"upload by another workflow", []*entry.Entry{with(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "alice/lib", "x"), func(e *entry.Entry) { e.Publisher.Workflow = "evil.yml" })}, alert.Unexpected, "upload", ""},
		{"same file again", []*entry.Entry{with(fakelog.Upload("alice-lib", "1.0", expected.File, "alice/lib", "a"), func(e *entry.Entry) { e.Time = "2026-11-21T06:00:00Z" })}, "", "", ""},
		{"second digest logged", []*entry.Entry{second}, alert.Tampering, "second-digest", "second-digest"},
		{"second digest, replaces without policy", []*entry.Entry{with(fakelog.Upload("alice-lib", "1.0", expected.File, "alice/lib", "b"), func(e *entry.Entry) { e.Replaces = entry.Uint(0) })}, alert.Tampering, "second-digest", "second-digest"},
		{"second digest after a reject", []*entry.Entry{reject, second}, alert.Unexpected, "reject", ""},
		{"reject of other bytes frees nothing", []*entry.Entry{with(fakelog.Status(entry.KindReject, "alice-lib", "", 6), func(e *entry.Entry) { e.File, e.SHA256 = expected.File, second.SHA256 }), second}, alert.Tampering, "second-digest reject", "second-digest"},
		{"policy loosened", []*entry.Entry{policy("replace", 7)}, alert.Unexpected, "registry-policy", ""},
		{"first policy is what holds anyway", []*entry.Entry{policy("never", 7)}, "", "", ""},
		{"replaced by policy", []*entry.Entry{policy("replace", 7), with(fakelog.Upload("alice-lib", "1.0", expected.File, "alice/lib", "b"), func(e *entry.Entry) { e.Replaces = entry.Uint(0) })}, alert.Unexpected, "registry-policy replaced", ""},
		{"policy replace, but replaces names another entry", []*entry.Entry{policy("replace", 7), with(fakelog.Upload("alice-lib", "1.0", expected.File, "alice/lib", "b"), func(e *entry.Entry) { e.Replaces = entry.Uint(1) })}, alert.Tampering, "second-digest registry-policy", "second-digest"},
		{"after-remove without remove", []*entry.Entry{policy("after-remove", 7), second}, alert.Tampering, "second-digest registry-policy", "second-digest"},
		{"after-remove with remove", []*entry.Entry{policy("after-remove", 7), file(entry.KindRemove), second}, alert.Unexpected, "registry-policy remove replaced", ""},
		{"after-remove, of other bytes", []*entry.Entry{policy("after-remove", 7), with(file(entry.KindRemove), func(e *entry.Entry) { e.SHA256 = second.SHA256 }), second}, alert.Tampering, "second-digest registry-policy remove", "second-digest"},
		{"conflict refused", []*entry.Entry{conflict(entry.ClaimIndex)}, alert.Unexpected, "conflict", ""},
		{"conflict served", []*entry.Entry{conflict(entry.ClaimObserved)}, alert.Tampering, "served-differs", "served-differs"},
		{"observed as logged", []*entry.Entry{observed("a")}, "", "", ""},
		{"observed other than logged", []*entry.Entry{observed("b")}, alert.Tampering, "served-differs upload", "served-differs"},
		{"yank", []*entry.Entry{fakelog.Status(entry.KindYank, "alice-lib", "1.0", 1)}, alert.Unexpected, "yank", ""},
		{"unyank", []*entry.Entry{fakelog.Status(entry.KindUnyank, "alice-lib", "1.0", 1)}, alert.Unexpected, "unyank", ""},
		{"quarantine", []*entry.Entry{fakelog.Status(entry.KindQuarantine, "alice-lib", "", 1)}, alert.Unexpected, "quarantine", ""},
		{"unquarantine", []*entry.Entry{fakelog.Status(entry.KindUnquarantine, "alice-lib", "", 1)}, alert.Unexpected, "unquarantine", ""},
		{"deprecate", []*entry.Entry{fakelog.Status(entry.KindDeprecate, "alice-lib", "", 1)}, alert.Unexpected, "deprecate", ""},
		{"undeprecate", []*entry.Entry{fakelog.Status(entry.KindUndeprecate, "alice-lib", "", 1)}, alert.Unexpected, "undeprecate", ""},
		{"archive", []*entry.Entry{fakelog.Status(entry.KindArchive, "alice-lib", "", 1)}, alert.Unexpected, "archive", ""},
		{"unarchive", []*entry.Entry{fakelog.Status(entry.KindUnarchive, "alice-lib", "", 1)}, alert.Unexpected, "unarchive", ""},
		{"remove", []*entry.Entry{file(entry.KindRemove)}, alert.Unexpected, "remove", ""},
		{"dispute", []*entry.Entry{{Kind: entry.KindDispute, Claim: entry.ClaimIndex, Registry: "pypi.test", Time: expected.Time, ID: fmt.Sprintf("%032x", 9), Index: entry.Uint(0)}}, alert.Unexpected, "dispute", ""},
		{"owner added", []*entry.Entry{with(fakelog.Status(entry.KindOwnerAdd, "alice-lib", "", 1), func(e *entry.Entry) { e.Subject = strings.Repeat("ab", 32) })}, alert.Unexpected, "owner-add", ""},
		{"owner removed", []*entry.Entry{with(fakelog.Status(entry.KindOwnerRemove, "alice-lib", "", 1), func(e *entry.Entry) { e.Subject = strings.Repeat("ab", 32) })}, alert.Unexpected, "owner-remove", ""},
		{"publisher added", []*entry.Entry{with(fakelog.Status(entry.KindPublisherAdd, "alice-lib", "", 1), func(e *entry.Entry) {
			e.Publisher = &entry.Publisher{Kind: "github", Repository: "mallory/lib", Workflow: "x.yml"}
		})}, alert.Unexpected, "publisher-add", ""},
		{"expected publisher added", []*entry.Entry{with(fakelog.Status(entry.KindPublisherAdd, "alice-lib", "", 1), func(e *entry.Entry) {
			e.Publisher = &entry.Publisher{Kind: "github", Repository: "alice/lib", Workflow: "release.yml"}
		})}, "", "", ""},
		{"publisher removed", []*entry.Entry{with(fakelog.Status(entry.KindPublisherRemove, "alice-lib", "", 1), func(e *entry.Entry) {
			e.Publisher = &entry.Publisher{Kind: "github", Repository: "alice/lib", Workflow: "release.yml"}
		})}, alert.Unexpected, "publisher-remove", ""},
		{"log ends", []*entry.Entry{{Kind: entry.KindSuccessor, Claim: entry.ClaimLog, Time: expected.Time, ID: fmt.Sprintf("%032x", 9),
			Origin: "log.test/two", VKeys: []string{fakelog.New("log.test/two", 0, 0, time.Now).VKey()}, URL: "http://127.0.0.1:1"}}, alert.Infrastructure, "successor", "successor"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, subsAlice)
			w.log.AddEntry(expected)
			var leaves [][]byte
			for _, e := range tt.entries {
				b, err := e.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				leaves = append(leaves, b)
			}
			w.log.Add(leaves...)
			w.round()
			var kinds []string
			for i, p := range w.hook.all(t) {
				for _, a := range p.Data.Alerts {
					kinds = append(kinds, a.Kind)
					if i == 0 && a.Severity != tt.severity {
						t.Errorf("severity %s, want %s", a.Severity, tt.severity)
					}
					if a.Title == "" || a.What == "" || a.Why == "" || len(a.Next) == 0 {
						t.Errorf("alert lacks words: %+v", a)
					}
					if a.Severity != alert.Infrastructure {
						p, err := c2sp.ParseProof([]byte(a.Proof))
						if err != nil {
							t.Fatalf("proof: %v", err)
						}
						if err := c2sp.VerifyInclusion(p.Index, w.log.Size(), entry.LeafHash(a.Entry), p.Hashes, w.log.Root()); err != nil {
							t.Errorf("proof: %v", err)
						}
					}
				}
			}
			if got := strings.Join(kinds, " "); got != tt.kinds {
				t.Errorf("the subscriber heard %q, want %q", got, tt.kinds)
			}
			var ops []string
			for _, p := range w.ops.all(t) {
				ops = append(ops, p.Data.Alerts[0].Kind)
			}
			if got := strings.Join(ops, " "); got != tt.ops {
				t.Errorf("the operator heard %q, want %q", got, tt.ops)
			}
		})
	}
}

func TestFrozenProjectAndExpectedChanges(t *testing.T) {
	w := newWorld(t, `
subscriptions:
  - name: frozen
    project: {registry: pypi.test, ecosystem: pypi, project: old}
    notify: [{webhook: HOOK/x, secret: SECRET}]
    expect: {uploads: none, changes: [archive]}
  - name: any
    project: {registry: pypi.test, ecosystem: pypi, project: busy}
    notify: [{webhook: HOOK/x, secret: SECRET}]
    expect: {uploads: any}
`)
	w.log.AddEntry(fakelog.Upload("busy", "1", "busy-1.tar.gz", "", "x"), fakelog.Status(entry.KindArchive, "old", "", 1), fakelog.Upload("old", "9", "old-9.tar.gz", "alice/lib", "y"))
	w.round()
	if a := w.want(w.hook, alert.Unexpected, "upload"); !strings.Contains(a.Why, "frozen") {
		t.Error(a.Why)
	}
}

func TestHistoryBeforeTheBeginningIsNotAlerted(t *testing.T) {
	w := newWorld(t, subsAlice)
	w.log.AddEntry(fakelog.Upload("alice-lib", "0.1", "alice_lib-0.1.tar.gz", "", "x"))
	if _, err := w.store.w.Exec(`UPDATE log SET alert_from = 1`); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	w.round()
	w.none(w.hook)
	w.log.AddEntry(fakelog.Upload("alice-lib", "0.1", "alice_lib-0.1.tar.gz", "", "other bytes"))
	w.round()
	w.want(w.hook, alert.Tampering, "second-digest")
	p, _, err := w.store.Search(t.Context(), testOrigin, "Alice.Lib", 10)
	if err != nil || len(p) != 1 || p[0].Entries != 2 {
		t.Fatalf("history is not indexed: %+v %v", p, err)
	}
}

func TestUnreadableEntryIsToldAndHashingGoesOn(t *testing.T) {
	w := newWorld(t, subsAlice)
	newer := []byte(`{"claim":"index","kind":"upload","v":2}`)
	w.log.Add(newer, []byte(`not an entry`), []byte(`another`), newer)
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "x"))
	w.round()
	w.want(w.hook, alert.Unexpected, "upload")
	var why []string
	for _, p := range w.ops.all(t) {
		a := p.Data.Alerts[0]
		if a.Severity != alert.Infrastructure || a.Kind != "unreadable" {
			t.Errorf("%s/%s", a.Severity, a.Kind)
		}
		why = append(why, a.Why)
	}
	// Each that is no entry at all: a log could hide one behind another. One of
	// the newer version speaks for all of them for a day.
	if len(why) != 3 || strings.Count(strings.Join(why, ""), "newer version") != 1 {
		t.Errorf("%q", why)
	}
	if w.verified() != 5 {
		t.Errorf("verified %d", w.verified())
	}
	w.clock.Add(25 * time.Hour)
	w.ops.clear()
	w.hook.clear()
	w.log.Add([]byte("a third"))
	w.round()
	w.want(w.ops, alert.Infrastructure, "unreadable")
}

func TestConflictIsQuietForADay(t *testing.T) {
	w := newWorld(t, subsAlice)
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "alice/lib", "a"))
	for i := range 3 {
		e := fakelog.Status(entry.KindConflict, "alice-lib", "", i)
		e.Claim, e.SlotClaim, e.File, e.FirstIndex = entry.ClaimLog, entry.ClaimIndex, "alice_lib-1.0.tar.gz", entry.Uint(0)
		e.SHA256 = fmt.Sprintf("%064x", i+1)
		w.log.AddEntry(e)
		w.round()
	}
	w.want(w.hook, alert.Unexpected, "conflict")
}

func TestOneNoticeARelease(t *testing.T) {
	w := newWorld(t, subsAlice, func(w *world) { w.cfg.GroupWindow = 2 * time.Minute })
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "1"), fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1-py3-none-any.whl", "", "2"))
	w.round()
	w.none(w.hook)
	w.reopen() // the window survives a restart
	w.clock.Add(time.Minute)
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1-cp312-cp312-linux_x86_64.whl", "", "3"), fakelog.Upload("alice-lib", "1.2", "alice_lib-1.2.tar.gz", "", "4"))
	// What the log did wrong never waits.
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "other"))
	w.round()
	w.want(w.hook, alert.Tampering, "second-digest")
	w.clock.Add(time.Minute)
	w.round()
	got := w.hook.all(t)
	if len(got) != 1 || len(got[0].Data.Alerts) != 3 || got[0].Data.ID != got[0].Data.Alerts[0].ID {
		t.Fatalf("%d notices: %+v", len(got), got)
	}
	if s := got[0].Data.Summary; !strings.Contains(s, "alice-lib 1.1") || !strings.Contains(s, "2 more files") {
		t.Errorf("summary %q", s)
	}
	mails := w.mail.all()
	if m := mails[len(mails)-1]; len(m.attachments) != 3 || strings.Count(m.body, "What happened") != 1 {
		t.Errorf("mail has %d attachments:\n%s", len(m.attachments), m.body)
	}
	w.hook.clear()
	w.clock.Add(time.Minute)
	w.round()
	if a := w.want(w.hook, alert.Unexpected, "upload"); a.Version != "1.2" {
		t.Error(a.Version)
	}
}

func TestReloadDropsWhatIsOwedToTheRemoved(t *testing.T) {
	w := newWorld(t, subsAlice)
	w.hook.answer(500)
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "1"))
	w.round()
	if err := w.m.SetSubscriptions(t.Context(), w.subs(`
operator: {notify: [{webhook: OPS/x, secret: SECRET}]}
subscriptions:
  - name: bob
    project: {registry: pypi.test, ecosystem: pypi, project: bob}
    notify: [{email: bob@example.org}]
`)); err != nil {
		t.Fatal(err)
	}
	w.hook.answer(204)
	w.clock.Add(time.Hour)
	w.log.AddEntry(fakelog.Upload("bob", "1", "bob-1.tar.gz", "", "b"), fakelog.Upload("alice-lib", "1.2", "alice_lib-1.2.tar.gz", "", "2"))
	w.log.Publish()
	w.round()
	w.none(w.hook)
	if mails := w.mail.all(); len(mails) != 2 || mails[1].to != "bob@example.org" {
		t.Errorf("%+v", mails)
	}
}

// TestReloadWhileOwing: subscriptions that change in the middle of a commit take
// effect after it, so that nothing is owed to who has just been removed.
func TestReloadWhileOwing(t *testing.T) {
	w := newWorld(t, subsAlice)
	changed := make(chan error, 1)
	started := false
	hookBeforeCursor = func() {
		if started {
			return
		}
		started = true
		go func() {
			changed <- w.m.SetSubscriptions(context.Background(), w.subs(`
operator: {notify: [{webhook: OPS/x, secret: SECRET}]}
subscriptions: []
`))
		}()
		select {
		case err := <-changed:
			t.Errorf("subscriptions changed within a commit (%v)", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	defer func() { hookBeforeCursor = func() {} }()
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "1"))
	w.round()
	if err := <-changed; err != nil {
		t.Fatal(err)
	}
	if h, err := w.m.Store().Health(t.Context(), w.m.Origin()); err != nil || h.Owed != 0 {
		t.Errorf("owed to nobody: %+v, %v", h, err)
	}
}

func TestReceiverDownForADayGetsEverythingAfter(t *testing.T) {
	w := newWorld(t, subsAlice)
	w.hook.answer(503)
	for i := range 5 {
		w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", fmt.Sprintf("alice_lib-1.1-%d-py3-none-any.whl", i), "", fmt.Sprint(i)))
		w.round()
	}
	if n := len(w.mail.all()); n != 5 {
		t.Fatalf("the mail of %d alerts was delayed by the webhook", 5-n)
	}
	w.clock.Add(24 * time.Hour)
	w.hook.answer(204)
	w.log.Publish()
	w.round()
	got := w.hook.all(t)
	ids := map[string]bool{}
	for _, p := range got {
		if p.Data.Alerts[0].Kind == "upload" {
			ids[p.Data.ID] = true
		}
	}
	if len(ids) != 5 {
		t.Fatalf("%d of 5 alerts arrived", len(ids))
	}
}

func TestGivenUpDeliveryIsAnAlert(t *testing.T) {
	w := newWorld(t, strings.Replace(subsAlice, "alice@example.org", "nobody@example.org", 1))
	w.hook.answer(500)
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "1"))
	w.round()
	// The relay says that nobody is no user: final at once.
	a := w.want(w.ops, alert.Infrastructure, "delivery")
	if !strings.Contains(a.What, "example.org") || strings.Contains(a.What+a.Title, "nobody@") && !strings.Contains(a.What, "no such user") {
		t.Error(a.What)
	}
	// The webhook is tried for three days.
	for range 100 {
		w.clock.Add(time.Hour)
		w.log.Publish()
		w.round()
	}
	a = w.want(w.ops, alert.Infrastructure, "delivery")
	if !strings.Contains(a.What, "127.0.0.1") || strings.Contains(a.What, "/x") {
		t.Error(a.What)
	}
	h, err := w.store.Health(t.Context(), testOrigin)
	if err != nil || h.Failed != 2 || h.Owed != 0 {
		t.Fatalf("%+v %v", h, err)
	}
}

func TestServeRefusesAMissingDatabase(t *testing.T) {
	if _, err := OpenStore(t.Context(), t.TempDir()+"/none.db", nil); !errors.Is(err, ErrNoDatabase) {
		t.Fatal(err)
	}
	w := newWorld(t, subsAlice)
	if err := CreateStore(t.Context(), w.path()); err == nil {
		t.Fatal("a database was replaced")
	}
	if err := Begin(t.Context(), w.path(), testOrigin, 0); err == nil {
		t.Fatal("a database was replaced")
	}
	c := w.cfg
	c.Origin = "log.test/other"
	if _, err := New(context.Background(), c); err == nil {
		t.Fatal("watching a log that the policy does not name")
	}
}

func TestOneMonitorADatabase(t *testing.T) {
	w := newWorld(t, subsAlice)
	unlock, err := w.store.lock()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.m.Run(t.Context()); !errors.Is(err, ErrInUse) {
		t.Fatalf("a second monitor runs: %v", err)
	}
	unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.m.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestBeginFinishesWhatWasCutShort(t *testing.T) {
	path := t.TempDir() + "/m.db"
	if err := CreateStore(t.Context(), path); err != nil { // as far as a crash let it come
		t.Fatal(err)
	}
	if err := Begin(t.Context(), path, testOrigin, 7); err != nil {
		t.Fatal(err)
	}
	if err := Begin(t.Context(), path, testOrigin, 0); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("began twice: %v", err)
	}
	s, err := OpenStore(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if l, err := s.loadLog(t.Context(), testOrigin); err != nil || l.AlertFrom != 7 {
		t.Fatalf("%+v %v", l, err)
	}
}

// A database that is damaged is refused, not replaced.
func TestDamagedDatabase(t *testing.T) {
	path := t.TempDir() + "/m.db"
	if err := os.WriteFile(path, []byte(strings.Repeat("not a database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := OpenStore(t.Context(), path, nil); err == nil {
		s.Close()
		t.Error("opened")
	}
	w := newWorld(t, subsAlice)
	fill(w, 300)
	w.round()
	if _, err := w.store.w.Exec(`UPDATE log SET verified_range = zeroblob(length(verified_range))`); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), w.cfg); err == nil || !strings.Contains(err.Error(), "compact range") {
		t.Errorf("a damaged cursor: %v", err)
	}
}
