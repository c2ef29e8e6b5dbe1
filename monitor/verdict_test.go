// An entry is marked with what the subscriptions made of it, in the same
// transaction as the alert, and with nothing of whose subscriptions they are.

package monitor

import (
	"database/sql"
	"io/fs"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pressly/goose/v3"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
	"github.com/portbook/portbook/monitor/internal/fakelog"
)

// marks returns the verdicts of all entries as one letter each, oldest first.
func (w *world) marks() string {
	w.t.Helper()
	list, err := w.store.Newest(w.t.Context(), testOrigin, 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	s := ""
	for _, r := range list {
		switch r.Verdict {
		case "":
			s = "." + s
		case alert.Unexpected, alert.Tampering:
			s = string(r.Verdict[:1]) + s
		default:
			w.t.Errorf("entry %d: verdict %q", r.Index, r.Verdict)
		}
	}
	return s
}

func TestVerdicts(t *testing.T) {
	w := newWorld(t, subsAlice+`
  - name: frozen
    project: {registry: pypi.test, ecosystem: pypi, project: frozen}
    notify: [{webhook: HOOK/x, secret: SECRET, only: [tampering]}]
    expect: {uploads: none}
  - name: says nothing
    project: {registry: pypi.test, ecosystem: pypi, project: quiet}
    notify: [{webhook: HOOK/x, secret: SECRET}]
`)
	for i, e := range []struct {
		mark string
		e    *entry.Entry
	}{
		{".", fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "alice/lib", "a")},
		{"u", fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "mallory/lib", "b")},
		{".", fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "mallory/lib", "b")}, // logged again: nothing new
		{"t", fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "alice/lib", "other")},
		{"u", fakelog.Status(entry.KindYank, "alice-lib", "1.0", 1)},
		{"u", fakelog.Upload("frozen", "1.0", "frozen-1.0.tar.gz", "", "c")}, // judged, though nobody wants to be told
		{".", fakelog.Upload("quiet", "1.0", "quiet-1.0.tar.gz", "", "d")},   // told, though nobody judged
		{"u", fakelog.Status(entry.KindYank, "quiet", "1.0", 2)},
		{".", fakelog.Upload("nobodys", "1.0", "nobodys-1.0.tar.gz", "", "e")},
		{"t", fakelog.Upload("nobodys", "1.0", "nobodys-1.0.tar.gz", "", "f")},
	} {
		w.log.AddEntry(e.e)
		w.round()
		if got := w.marks(); len(got) != i+1 || got[i:] != e.mark {
			t.Errorf("entry %d (%s %s %s): marks %q, want %q at the end", i, e.e.Kind, e.e.Project, e.e.Version, got, e.mark)
		}
	}
	told := func(index uint64) Told {
		t.Helper()
		r, err := w.store.Record(t.Context(), testOrigin, index)
		if err != nil {
			t.Fatal(err)
		}
		n, err := w.store.Told(t.Context(), testOrigin, r)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if got := told(1); got != (Told{Sent: 2}) { // a webhook and a mail
		t.Errorf("entry 1: %+v", got)
	}
	for _, silent := range []uint64{0, 5, 8} {
		if got := told(silent); got != (Told{}) {
			t.Errorf("entry %d: %+v", silent, got)
		}
	}
	if got := told(6); got != (Told{Sent: 1}) {
		t.Errorf("entry 6: %+v", got)
	}
	h, err := w.store.Health(t.Context(), testOrigin)
	if err != nil || h.Sent == 0 || h.Owed != 0 {
		t.Errorf("%+v %v", h, err)
	}
}

// The marks of a forgotten history are not those of the entries that took its
// numbers.
func TestVerdictsOfAnotherHistory(t *testing.T) {
	w := newWorld(t, subsAlice)
	w.log.AddEntry(fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "", "a"), fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "b"))
	w.round()
	if got := w.marks(); got != "uu" {
		t.Fatal(got)
	}
	w.log.Fork(1, leafOf(t, fakelog.Upload("alice-lib", "2.0", "alice_lib-2.0.tar.gz", "alice/lib", "c")))
	w.round()
	w.reopen()
	if err := w.m.AcceptNewBaseline(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.round()
	// The first entry is the same one, told before and marked again; the second is another.
	if got := w.marks(); got != "u." {
		t.Errorf("marks %q", got)
	}
	r, err := w.store.Record(t.Context(), testOrigin, 1)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := w.store.Told(t.Context(), testOrigin, r); err != nil || n != (Told{}) {
		t.Errorf("the new entry 1 is said to have been told: %+v %v", n, err)
	}
	if r, err = w.store.Record(t.Context(), testOrigin, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := w.store.Told(t.Context(), testOrigin, r); err != nil || n.Sent == 0 {
		t.Errorf("entry 0: %+v %v", n, err)
	}
}

// What was logged before the monitor began is not judged, except for tampering.
func TestHistoryHasNoVerdict(t *testing.T) {
	w := newWorld(t, subsAlice)
	if _, err := w.store.w.ExecContext(t.Context(), `UPDATE log SET alert_from = 2`); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	for _, seed := range []string{"a", "b", "c"} {
		w.log.AddEntry(fakelog.Upload("alice-lib", "1."+seed, "alice_lib-1."+seed+".tar.gz", "", seed))
	}
	w.round()
	if got := w.marks(); got != "..u" {
		t.Errorf("marks %q", got)
	}
}

// A database of the first schema learns the marks from its alerts.
func TestMigrationToVerdicts(t *testing.T) {
	w := newWorld(t, subsAlice+`
  - name: says nothing
    project: {registry: pypi.test, ecosystem: pypi, project: quiet}
    notify: [{webhook: HOOK/x, secret: SECRET}]
`)
	w.log.AddEntry(
		fakelog.Upload("alice-lib", "1.0", "alice_lib-1.0.tar.gz", "alice/lib", "a"),
		fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "b"),
		fakelog.Upload("quiet", "1.0", "quiet-1.0.tar.gz", "", "c"),
		fakelog.Upload("alice-lib", "1.1", "alice_lib-1.1.tar.gz", "", "other"),
	)
	w.round()
	const want = ".u.t"
	if got := w.marks(); got != want {
		t.Fatalf("marks %q, want %q", got, want)
	}
	w.store.Close()
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: filepath.Clean(w.path())}).EscapedPath())
	if err != nil {
		t.Fatal(err)
	}
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, sub)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.DownTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), `SELECT verdict FROM entry`)
	if err == nil || !strings.Contains(err.Error(), "verdict") {
		t.Fatalf("the first schema has the column: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	if got := w.marks(); got != want {
		t.Errorf("after the migration: marks %q, want %q", got, want)
	}
}
