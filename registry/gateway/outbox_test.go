package gateway

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/pressly/goose/v3"
)

// TestRefusedStaysRefused: an attempt that the index refused cannot become a file,
// not even by a question to the index that was on its way at the time.
func TestRefusedStaysRefused(t *testing.T) {
	ctx, now := context.Background(), time.Now()
	o, err := openOutbox(ctx, t.TempDir(), "packages.example")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	e := &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: "packages.example", Ecosystem: entry.PyPI, Project: "demo", Version: "1",
		File: "demo-1.tar.gz", Size: entry.Uint(1), SHA256: strings.Repeat("a", 64), Time: "2026-01-01T00:00:00Z"}
	id, err := o.receive(ctx, e, listedNo, now)
	if err == nil {
		err = o.forwarding(ctx, id)
	}
	if err != nil {
		t.Fatal(err)
	}
	open, err := o.unknown(ctx, now, 10)
	if err != nil || len(open) != 1 {
		t.Fatalf("%v %v", open, err)
	}
	if err := o.drop(ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, _, err := o.accept(ctx, open[0].id, open[0].e, listedNo, now); !errors.Is(err, errGone) {
		t.Errorf("accepted after all: %v", err)
	}
	if files, _, err := o.shelf(ctx, "demo"); err != nil || len(files) != 0 {
		t.Errorf("files: %v %v", files, err)
	}
}

// TestPause: pauses grow, and end at the bound whatever the other side asks for.
func TestPause(t *testing.T) {
	for tries, most := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
		if d := pause(tries, 0, time.Minute); d > most || d < most*3/4 {
			t.Errorf("after %d failures: %v", tries, d)
		}
	}
	for _, d := range []time.Duration{pause(1000, 0, time.Minute), pause(0, 240*time.Hour, time.Minute)} {
		if d > time.Minute || d < 45*time.Second {
			t.Errorf("bound: %v", d)
		}
	}
}

// TestVisible is the table of what a page shows of a file that the index lists.
func TestVisible(t *testing.T) {
	one := func(state State, digest, listed string) shelved { return shelved{digest, listed, state} }
	for _, c := range []struct {
		name     string
		digest   string // on the index's page
		files    []shelved
		attempts []shelved
		want     bool
	}{
		{"never seen", "a", nil, nil, true},
		{"proven", "a", []shelved{one(Proven, "a", listedNo)}, nil, true},
		{"proven, no digest on the page", "", []shelved{one(Proven, "a", listedNo)}, nil, true},
		{"accepted", "a", []shelved{one(Accepted, "a", listedNo)}, nil, false},
		{"submitted, no digest on the page", "", []shelved{one(Submitted, "a", listedNo)}, nil, false},
		{"accepted, was there before with these bytes", "a", []shelved{one(Accepted, "a", listedSame)}, nil, true},
		{"accepted over other bytes", "b", []shelved{one(Accepted, "b", listedOther)}, nil, false},
		{"conflict", "b", []shelved{one(Proven, "a", listedNo), one(Conflict, "b", listedOther)}, nil, false},
		{"conflict, no digest on the page", "", []shelved{one(Proven, "a", listedNo), one(Conflict, "b", listedOther)}, nil, false},
		{"conflict, but the page is back at the first bytes", "a", []shelved{one(Proven, "a", listedNo), one(Conflict, "b", listedOther)}, nil, true},
		{"conflict with bytes that were there before", "b", []shelved{one(Conflict, "b", listedSame)}, nil, false},
		{"proven, swapped at the index", "x", []shelved{one(Proven, "a", listedNo)}, nil, true},
		{"accepted, and the index tells another digest", "x", []shelved{one(Accepted, "a", listedNo)}, nil, false},
		{"in flight, new", "a", nil, []shelved{one(Forwarding, "a", listedNo)}, false},
		{"in flight, new, no digest on the page", "", nil, []shelved{one(Forwarding, "a", listedNo)}, false},
		{"in flight, same bytes as unlogged ones", "a", nil, []shelved{one(Forwarding, "a", listedSame)}, true},
		{"in flight, other bytes than unlogged ones", "x", nil, []shelved{one(Forwarding, "a", listedOther)}, true},
		{"in flight, over unlogged ones, now on the page", "a", nil, []shelved{one(Forwarding, "a", listedOther)}, false},
		{"in flight, over proven ones", "a", []shelved{one(Proven, "a", listedNo)}, []shelved{one(Forwarding, "b", listedOther)}, true},
		{"in flight, over proven ones, now on the page", "b", []shelved{one(Proven, "a", listedNo)}, []shelved{one(Forwarding, "b", listedOther)}, false},
	} {
		s := &shelf{files: map[string][]shelved{"f": c.files}, attempts: map[string][]shelved{"f": c.attempts}}
		if got := s.visible("f", c.digest); got != c.want {
			t.Errorf("%s: visible %v", c.name, got)
		}
	}
}

// TestReadAccounts reads the form that the documentation shows, and refuses what
// could not be logged.
func TestReadAccounts(t *testing.T) {
	got, err := parseAccounts([]byte(`accounts:
  release-bot:
    auth: trusted-publisher
    publisher: {kind: github, repository: alice/demo, repository_id: "123", owner_id: "45", workflow: release.yml}
  alice: {}
`))
	if err != nil || got["release-bot"].Publisher.RepositoryID != "123" || got["release-bot"].Auth != "trusted-publisher" || got["alice"].Publisher != nil {
		t.Errorf("%+v %v", got, err)
	}
	for text, want := range map[string]string{
		"accounts: {a: {publisher: {kind: github}}}":       `account "a"`,
		"accounts: {a: {auth: magic}}":                     `account "a"`,
		"accounts: {a: {password: x}}":                     "password",
		"accounts: {__token__: {auth: trusted-publisher}}": "__token__",
		"accounts: [a]": "unmarshal",
	} {
		if _, err := parseAccounts([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// FuzzPhrase: nothing that an index says can end the status line.
func FuzzPhrase(f *testing.F) {
	for _, s := range []string{"", "OK", "a\r\nSet-Cookie: x=1", "\x00\x1b[2J", "ünï", strings.Repeat("x", 5000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := phrase(s)
		if len(p) > 403 {
			t.Errorf("%d bytes", len(p))
		}
		for _, c := range []byte(p) {
			if c < ' ' || c > '~' {
				t.Errorf("%q in %q", c, p)
			}
		}
	})
}

// TestAccountsAreHidden: a database from when accounts were written in clear keeps
// its pseudonyms and loses the accounts, down to the last byte of its files.
func TestAccountsAreHidden(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	const token = "gto_0123456789abcdef0123456789abcdef"
	path := filepath.Join(dir, "outbox.db")
	db, err := openDB(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() // open to the end: what it wrote is still in the -wal file
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, sub, goose.WithGoMigrations(hideAccounts))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.UpTo(ctx, 1); err != nil {
		t.Fatal(err)
	}
	salt := bytes.Repeat([]byte{7}, 32)
	if _, err := db.Exec(`INSERT INTO gateway (registry) VALUES ('packages.example')`); err != nil {
		t.Fatal(err)
	}
	for i := range 100 { // more than a page
		if _, err := db.Exec(`INSERT INTO salts (registry, project, account, salt) VALUES ('packages.example', ?, ?, ?)`, fmt.Sprint("demo", i), token, salt); err != nil {
			t.Fatal(err)
		}
	}
	written := func() string {
		t.Helper()
		all := ""
		for _, suffix := range []string{"", "-wal"} {
			b, err := os.ReadFile(path + suffix)
			if err != nil {
				t.Fatal(err)
			}
			all += string(b)
		}
		return all
	}
	if !strings.Contains(written(), token) {
		t.Fatal("the old database does not have it: this proves nothing")
	}
	o, err := openOutbox(ctx, dir, "packages.example")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	name, err := o.pseudonym(ctx, "demo0", token)
	if err != nil || name != hex.EncodeToString(mac(salt, token)) {
		t.Errorf("the pseudonym became %s, %v", name, err)
	}
	if other, err := o.pseudonym(ctx, "new", token); err != nil || other == name {
		t.Errorf("in another project: %s %v", other, err)
	}
	if strings.Contains(written(), token) {
		t.Error("the account is still there")
	}
}
