package entry

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

const (
	someSHA256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	someID     = "00112233445566778899aabbccddeeff"
)

func upload() *Entry {
	return &Entry{
		Kind: KindUpload, Claim: ClaimIndex, Time: "2026-11-21T05:10:08Z",
		Registry: "pypi.org", Ecosystem: PyPI, Project: "django", Version: "5.1", File: "Django-5.1.tar.gz",
		Size: Uint(0), SHA256: someSHA256,
	}
}

// What only an Entry in memory can be, no leaf: each is refused by Marshal and
// names its field, so that nothing is written which Parse would not read.
func TestMarshalRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Entry)
		field  string
	}{
		"an integer over 2^53-1":      {func(e *Entry) { e.Size = Uint(maxUint + 1) }, "size"},
		"a quote":                     {func(e *Entry) { e.Version = `5"1` }, "version"},
		"a backslash":                 {func(e *Entry) { e.Version = `5\1` }, "version"},
		"a newline":                   {func(e *Entry) { e.Version = "5\n1" }, "version"},
		"a zero byte":                 {func(e *Entry) { e.File = "a\x00" }, "file"},
		"a letter beyond ASCII":       {func(e *Entry) { e.Project = "djangö" }, "project"},
		"an empty publisher":          {func(e *Entry) { e.Publisher = &Publisher{} }, "publisher.kind"},
		"a quote in a publisher":      {func(e *Entry) { e.Publisher = &Publisher{Kind: "npm", Repository: "a/b", Workflow: `"`} }, "publisher.workflow"},
		"an empty string in an array": {func(e *Entry) { e.SourcesSHA256 = []string{""} }, "sources_sha256"},
		"an unknown ecosystem":        {func(e *Entry) { e.Ecosystem = "cargo" }, "ecosystem"},
		"no kind":                     {func(e *Entry) { e.Kind = "" }, "kind"},
		"a quote in an origin": {func(e *Entry) {
			*e = Entry{Kind: KindPredecessor, Claim: ClaimLog, Time: e.Time, ID: someID, Origin: "a\"b", Size: Uint(0), Root: someSHA256}
		}, "origin"},
		"a line end before base64": {func(e *Entry) {
			*e = Entry{Kind: KindSuccessor, Claim: ClaimLog, Time: e.Time, ID: someID, Origin: "o", URL: "https://h", VKeys: []string{"o+00000000+\nAAAA"}}
		}, "vkeys"},
		"a line end inside base64": {func(e *Entry) {
			*e = Entry{Kind: KindSuccessor, Claim: ClaimLog, Time: e.Time, ID: someID, Origin: "o", URL: "https://h", VKeys: []string{"o+00000000+AA\nAA"}}
		}, "vkeys"},
	} {
		t.Run(name, func(t *testing.T) {
			e := upload()
			test.change(e)
			b, err := e.Marshal()
			var fe *FieldError
			if !errors.As(err, &fe) || fe.Field != test.field || b != nil {
				t.Errorf("%s, %v; want field %s", b, err, test.field)
			}
			if v := e.Validate(); v == nil || v.Error() != err.Error() {
				t.Errorf("Validate: %v, Marshal: %v", v, err)
			}
		})
	}
}

// Each field may be in order and the whole too long.
func TestMarshalRefusesTooLong(t *testing.T) {
	e := &Entry{Kind: KindSuccessor, Claim: ClaimLog, Time: "2026-11-21T05:10:08Z", ID: someID, Origin: "o", URL: "https://h"}
	for _, name := range []string{"a", "b", "c"} {
		e.VKeys = append(e.VKeys, name+"+00000000+"+strings.Repeat("AAAA", 500))
	}
	if err := e.Validate(); err != nil {
		t.Fatal(err)
	}
	_, err := e.Marshal()
	var fe *FieldError
	if !errors.As(err, &fe) || fe.Field != "entry" {
		t.Fatalf("%v", err)
	}
	e.VKeys = e.VKeys[:1]
	if _, err := e.Marshal(); err != nil {
		t.Fatal(err)
	}
}

// Empty but not nil is absent.
func TestEmptyListIsAbsent(t *testing.T) {
	e := upload()
	want, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e.SourcesSHA256, e.AttestationSHA256 = []string{}, []string{}
	if got, err := e.Marshal(); err != nil || string(got) != string(want) {
		t.Fatalf("%s, %v", got, err)
	}
}

// Parse keeps nothing of the caller's buffer.
func TestParseCopies(t *testing.T) {
	leaf, err := upload().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e, err := Parse(leaf)
	if err != nil {
		t.Fatal(err)
	}
	for i := range leaf {
		leaf[i] = 'x'
	}
	if e.Project != "django" || *e.Size != 0 {
		t.Fatalf("%+v", e)
	}
}

// The test vectors of RFC 6962 implementations: the empty leaf, and the leaf of
// one zero byte; and a leaf longer than the stack buffer.
func TestLeafHash(t *testing.T) {
	for leaf, want := range map[string]string{
		"":                        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		"\x00":                    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
		strings.Repeat("a", 4000): fmt.Sprintf("%x", sha256.Sum256([]byte("\x00"+strings.Repeat("a", 4000)))),
	} {
		if h := LeafHash([]byte(leaf)); hex.EncodeToString(h[:]) != want {
			t.Errorf("LeafHash(%d bytes) = %x, want %s", len(leaf), h, want)
		}
	}
}

func TestSlot(t *testing.T) {
	up := upload()
	want := Slot{"pypi.org", PyPI, ClaimIndex, "django", "Django-5.1.tar.gz"}
	reject := &Entry{Kind: KindReject, Claim: ClaimIndex, Registry: up.Registry, Ecosystem: up.Ecosystem, Project: up.Project, File: up.File}
	conflict := &Entry{Kind: KindConflict, Claim: ClaimLog, SlotClaim: ClaimIndex, Registry: up.Registry, Ecosystem: up.Ecosystem, Project: up.Project, File: up.File}
	for _, e := range []*Entry{up, reject, conflict} {
		if s, ok := e.Slot(); !ok || s != want || s.Key() != want.Key() {
			t.Errorf("%s: %+v, %v", e.Kind, s, ok)
		}
	}
	for _, k := range Kinds() {
		_, ok := (&Entry{Kind: k}).Slot()
		if wantOK := k == KindUpload || k == KindReject || k == KindConflict; ok != wantOK {
			t.Errorf("%s: slot %v", k, ok)
		}
	}
}

// Moving a byte from one field to the next is another slot.
func TestSlotKeyIsUnambiguous(t *testing.T) {
	seen := map[[32]byte]Slot{}
	for _, s := range []Slot{
		{"a", "b", "c", "d", "e"}, {"ab", "", "c", "d", "e"}, {"", "ab", "c", "d", "e"}, {"a", "bc", "", "d", "e"},
		{"a", "b", "", "cd", "e"}, {"a", "b", "c", "de", ""}, {"a", "b", "c", "", "de"}, {"abcde", "", "", "", ""}, {},
		{"a", "b", "c", "d", "e\x00"},
		{Registry: "pypi.org", Claim: ClaimIndex}, {Registry: "pypi.org", Claim: ClaimObserved},
	} {
		if other, dup := seen[s.Key()]; dup {
			t.Errorf("%+v and %+v have one key", s, other)
		}
		seen[s.Key()] = s
	}
}

func TestKindClaims(t *testing.T) {
	if len(Kinds()) != 23 {
		t.Errorf("%d kinds", len(Kinds()))
	}
	for _, k := range Kinds() {
		if len(k.Claims()) == 0 {
			t.Errorf("%s has no claim", k)
		}
	}
	if c := Kind("rumour").Claims(); c != nil {
		t.Errorf("unknown kind: %v", c)
	}
}

// An address must be found wherever it hides, and a Git reference left alone.
func TestLooksLikeEmail(t *testing.T) {
	for _, s := range []string{
		"a@b.co", "alice@example.org", "Alice <alice@example.org>", "x:alice@example.org", "alice@example.org/x", "alice%40example.org",
		"a@b@example.org", "alice+tag@example.org", "alice@sub.example.org.", "alice@xn--e1afmkf.xn--p1ai", "robot@p.iam.gserviceaccount.com",
		"alice@192.example.org", "'a'@example.org", "x@y, alice@example.org", "a@b.aa", "a@b.zz", "a@b.AZ", "a@b-c.x1",
	} {
		if !looksLikeEmail(s) {
			t.Errorf("%q passes", s)
		}
	}
	for _, s := range []string{
		"", "@", "a@", "@b.co", "x.yml@refs/heads/main", "x.yml@refs/tags/v1.2.3", "x.yml@v1.2", "x.yml@main", "repo:o/r:ref:refs/heads/a.b",
		"@scope/name.js", "a@b", "a@.b", "a@b.", "a@b.1", "a@1.2.3.4", "100%", "a/@b.co", "50%25", " @b.co", "a @b.co", "a@b.c", "a@b_c.org", "a@b.1x", "a@b.-x", "(@b.co",
	} {
		if looksLikeEmail(s) {
			t.Errorf("%q is taken for an address", s)
		}
	}
}

// A URL from somebody's pip configuration may hold a password.
func TestErrorsHoldNoPassword(t *testing.T) {
	for _, u := range []string{"https://me:hunter2@pypi.org/", "me:hunter2@pypi.org", "https://h/?token=hunter2", "https://h/a@hunter2", "ftp://me:hunter2@h", "https://h/#hunter2"} {
		if _, err := RegistryFromURL(u); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
}

func TestTableNamesOnlyFields(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a table with an unknown field was accepted")
		}
	}()
	setOf("kind colour")
}
