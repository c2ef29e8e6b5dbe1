package monitor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
)

func TestParseWatch(t *testing.T) {
	for purl, want := range map[string]Watch{
		"pkg:pypi/Django": {"pypi.org", "pypi", "django"},
		"pkg:pypi/zope.interface?repository_url=https://PyPI.Example:443/simple/": {"pypi.example/simple", "pypi", "zope-interface"},
		"pkg:npm/%40scope/name":                                     {"registry.npmjs.org", "npm", "@scope/name"},
		"pkg:npm/left-pad?repository_url=127.0.0.1:4873":            {"127.0.0.1:4873", "npm", "left-pad"},
		"pkg:conda/numpy?repository_url=https://conda.example/main": {"conda.example/main", "conda", "numpy"},
	} {
		got, err := ParseWatch(purl)
		if err != nil || got != want {
			t.Errorf("%s: %+v %v, want %+v", purl, got, err, want)
		}
	}
	for purl, why := range map[string]string{
		"django":                 "not a package URL",
		"pkg:pypi/django@5.0":    "a whole project",
		"pkg:conda/numpy":        "repository_url",
		"pkg:pypi/django?arch=x": "arch",
		"pkg:cargo/serde?repository_url=https://crates.example": "ecosystem",
		"pkg:pypi/-bad-":                    "",
		"pkg:pypi/x?repository_url=ftp://a": "repository_url",
	} {
		if _, err := ParseWatch(purl); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want a reason with %q", purl, err, why)
		}
	}
}

func TestSubscriptionsRefuse(t *testing.T) {
	const head = "subscriptions:\n  - project: pkg:pypi/django\n    notify: [{email: a@example.org}]\n"
	for name, tt := range map[string]struct{ yaml, want string }{
		"unknown key at the top":       {"subscribers: []\n", "subscribers"},
		"misspelt expectation":         {head + "    expects: {}\n", "expects"},
		"misspelt publisher field":     {head + "    expect: {publishers: [{kind: github, repo: a/b}]}\n", "repo"},
		"misspelt project key":         {"subscriptions:\n  - project: {registry: pypi.org, ecosystem: pypi, name: x}\n    notify: [{email: a@example.org}]\n", `"name"`},
		"no project":                   {"subscriptions:\n  - notify: [{email: a@example.org}]\n", "names no project"},
		"nobody to tell":               {"subscriptions:\n  - project: pkg:pypi/django\n", "names nobody"},
		"neither mail nor hook":        {"subscriptions:\n  - project: pkg:pypi/django\n    notify: [{only: [tampering]}]\n", "neither"},
		"both":                         {"subscriptions:\n  - project: pkg:pypi/django\n    notify: [{email: a@example.org, webhook: https://x.example}]\n", "write two"},
		"not an address":               {"subscriptions:\n  - project: pkg:pypi/django\n    notify: [{email: \"a@example.org\\r\\nBcc: b@example.org\"}]\n", "mail address"},
		"hook without secret":          {"subscriptions:\n  - project: pkg:pypi/django\n    notify: [{webhook: https://x.example}]\n", "whsec_"},
		"severity nobody has":          {"subscriptions:\n  - project: pkg:pypi/django\n    notify: [{email: a@example.org, only: [critical]}]\n", "critical"},
		"kind expects everybody":       {head + "    expect: {publishers: [{kind: github}]}\n", "expect everybody"},
		"unknown publisher kind":       {head + "    expect: {publishers: [{kind: githug, repository: a/b}]}\n", "githug"},
		"uploads neither none nor any": {head + "    expect: {uploads: few}\n", "few"},
		"none and publishers":          {head + "    expect: {uploads: none, publishers: [{kind: github, repository: a/b}]}\n", "contradicts"},
		"upload is no change":          {head + "    expect: {changes: [upload]}\n", "upload"},
		"two of one name":              {head + strings.TrimPrefix(head, "subscriptions:\n"), "two of that name"},
		"name with an escape":          {"subscriptions:\n  - name: \"\\e[2J\"\n    project: pkg:pypi/x\n    notify: [{email: a@example.org}]\n", "printable"},
		"two documents":                {head + "---\n" + head, "more than one"},
		"not YAML":                     {"\t:", ""},
		"aliases without end":          {"a: &a [x,x,x,x,x,x,x,x,x]\n" + strings.Repeat("b: [*a,*a,*a,*a]\n", 3), ""},
		"secret for a mail":            {"subscriptions:\n  - project: pkg:pypi/x\n    notify: [{email: a@example.org, secret: x}]\n", "no secret"},
		"secret file missing":          {"subscriptions:\n  - project: pkg:pypi/x\n    notify: [{webhook: https://x.example, secret_file: nowhere}]\n", "secret_file"},
		"bad operator":                 {"operator: {notify: [{email: nobody}]}\n", "operator"},
	} {
		if _, err := ParseSubscriptions([]byte(tt.yaml), t.TempDir()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want a reason with %q", name, err, tt.want)
		}
	}
	s, err := ParseSubscriptions(nil, "")
	if err != nil || len(s.List) != 0 {
		t.Errorf("an empty file: %v", err)
	}
	if _, err := LoadSubscriptions(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing file is an empty one")
	}
}

func TestSecretFileAndTargets(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hook.secret"), []byte(testSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	parse := func(url, more string) *Subscriptions {
		s, err := ParseSubscriptions([]byte("subscriptions:\n  - projects: [pkg:pypi/a, pkg:pypi/b, pkg:pypi/A]\n    notify: [{webhook: '"+url+"', secret_file: hook.secret}"+more+"]\n"), dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := parse("https://x.example/h", "")
	if s.List[0].Notify[0].Secret != testSecret || s.Projects() != 2 || s.Targets(alert.Webhook) != 1 || s.Targets(alert.Email) != 0 {
		t.Errorf("%+v", s.List)
	}
	if n := len(s.For(Watch{"pypi.org", "pypi", "a"})); n != 1 {
		t.Errorf("the same project twice gives %d subscriptions", n)
	}
	if err := s.CheckTargets(false); err != nil {
		t.Error(err)
	}
	if err := parse("http://127.0.0.1/h", "").CheckTargets(false); err == nil {
		t.Error("a private webhook passes")
	}
	if err := parse("http://127.0.0.1/h", "").CheckTargets(true); err != nil {
		t.Error(err)
	}
	other := "whsec_" + strings.Repeat("QUFB", 10)
	if err := parse("https://x.example/h", ", {webhook: 'https://x.example/h', secret: "+other+"}").CheckTargets(false); err == nil {
		t.Error("one URL with two secrets")
	}
}

func TestExpectedPublisherMatchesASubset(t *testing.T) {
	p := &entry.Publisher{Kind: "github", Issuer: "https://token.actions.githubusercontent.com", Repository: "Alice/Lib", RepositoryID: "7", OwnerID: "9", Workflow: "release.yml", Environment: "pypi"}
	for _, tt := range []struct {
		x    ExpectedPublisher
		want bool
	}{
		{ExpectedPublisher{Kind: "github", Repository: "alice/lib"}, true},
		{ExpectedPublisher{Kind: "github", Repository: "alice/lib", RepositoryID: "7", OwnerID: "9", Workflow: "release.yml", Environment: "pypi"}, true},
		{ExpectedPublisher{Kind: "github", Repository: "alice/lib", RepositoryID: "8"}, false}, // renamed, or resurrected by somebody
		{ExpectedPublisher{Kind: "github", Repository: "alice/lib", OwnerID: "8"}, false},
		{ExpectedPublisher{Kind: "gitlab", Repository: "alice/lib"}, false},
		{ExpectedPublisher{Kind: "github", Repository: "alice/lib2"}, false},
		{ExpectedPublisher{Kind: "github", Repository: "alice/lib", Workflow: "Release.yml"}, false},
		{ExpectedPublisher{Kind: "github", Repository: "alice/lib", Environment: "prod"}, false},
		{ExpectedPublisher{Kind: "github", Repository: "alice/lib", Issuer: "https://elsewhere"}, false},
		{ExpectedPublisher{Kind: "github", Repository: "alice/lib", Subject: "x"}, false},
	} {
		if got := tt.x.Matches(p); got != tt.want {
			t.Errorf("%+v: %v", tt.x, got)
		}
		if tt.x.Matches(nil) {
			t.Error("an upload without publisher matches")
		}
	}
}

// A verify command is pasted into a shell: what a stranger named stays a word.
func TestVerifyCommandQuotes(t *testing.T) {
	e := &entry.Entry{Kind: entry.KindUpload, Registry: "r.example", Ecosystem: "generic", Project: "p", File: "-x;$(touch y)' .bin"}
	if got, want := VerifyCommand(e), `portbook verify './-x;$(touch y)'\'' .bin' --proof './-x;$(touch y)'\'' .bin.tlog-proof' --policy policy.txt --registry r.example --ecosystem generic --project p --file '-x;$(touch y)'\'' .bin'`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// One flag a line is the same command to a shell.
	if got, want := strings.ReplaceAll(VerifyCommandLines(e), " \\\n  ", " "), VerifyCommand(e); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func FuzzParseSubscriptions(f *testing.F) {
	f.Add([]byte(subsAlice))
	f.Add([]byte("subscriptions:\n  - project: pkg:pypi/x\n    notify: [{email: a@b.example}]\n"))
	f.Add([]byte("operator: {notify: [{email: a@b.example, only: [tampering]}]}"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSubscriptions(b, "/nonexistent")
		if err != nil {
			return
		}
		for i := range s.List {
			sub := &s.List[i]
			if len(sub.Notify) == 0 || len(sub.Projects) == 0 || alert.OneLine(sub.Name) != sub.Name {
				t.Fatalf("accepted %+v", sub)
			}
			for _, w := range sub.Projects {
				if len(s.For(w)) == 0 {
					t.Fatalf("%v is watched by nobody", w)
				}
				if n, err := entry.NormalProject(w.Ecosystem, w.Project); err != nil || n != w.Project {
					t.Fatalf("%v is not normal: it matches nothing", w)
				}
			}
		}
	})
}
