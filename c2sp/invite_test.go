package c2sp

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestInvite(t *testing.T) {
	ed, err := GenerateSigner("log.example/pypi", AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	pq, err := GenerateSigner("log.example/pypi", AlgMLDSA44)
	if err != nil {
		t.Fatal(err)
	}
	cp := Checkpoint{Origin: "log.example/pypi", Size: 7, Root: [32]byte{1}}
	sig, err := ed.Sign(cp.Text())
	if err != nil {
		t.Fatal(err)
	}
	note := (&Note{Text: cp.Text(), Sigs: []Signature{sig}}).Bytes()
	for name, i := range map[string]*Invite{
		"a new log":  {Keys: []*Key{ed.Key()}},
		"two keys":   {Keys: []*Key{ed.Key(), pq.Key()}, URL: "https://log.example/pypi", Checkpoint: note},
		"with http":  {Keys: []*Key{ed.Key()}, URL: "http://127.0.0.1:8080/", Checkpoint: note},
		"not served": {Keys: []*Key{ed.Key()}, Checkpoint: note},
	} {
		line := i.String()
		got, err := ParseInvite(line)
		if err != nil || got.String() != line || !IsInvite(line) || strings.Contains(line, "\n") {
			t.Errorf("%s: %v: %s", name, err, line)
		}
	}

	good := (&Invite{Keys: []*Key{ed.Key()}, URL: "https://log.example/pypi", Checkpoint: note}).String()
	other, _ := GenerateSigner("other.example/log", AlgEd25519)
	again, _ := GenerateSigner("log.example/pypi", AlgEd25519)
	cosigner, _ := GenerateSigner("log.example/pypi", AlgEd25519Cosig)
	theirs := other.Key().String()
	sig2, _ := other.Sign(cp.Text())
	foreign := base64.StdEncoding.EncodeToString((&Note{Text: cp.Text(), Sigs: []Signature{sig2}}).Bytes())
	moved := Checkpoint{Origin: "log.example/pypi", Size: 8, Root: [32]byte{1}}
	spoiled := base64.StdEncoding.EncodeToString((&Note{Text: moved.Text(), Sigs: []Signature{sig}}).Bytes())
	mine := base64.StdEncoding.EncodeToString(note)
	for name, line := range map[string]string{
		"empty":                            "",
		"another version":                  strings.Replace(good, "/v1", "/v2", 1),
		"cut off":                          strings.Join(strings.Split(good, " ")[:3], " "),
		"two blanks":                       strings.Replace(good, " ", "  ", 1),
		"a path for a URL":                 strings.Replace(good, "https://log.example/pypi", "/etc/passwd", 1),
		"a URL with a password":            strings.Replace(good, "https://", "https://u:p@", 1),
		"a URL with a query":               strings.Replace(good, "log.example/pypi ", "log.example/pypi?x ", 1),
		"another scheme":                   strings.Replace(good, "https://", "file://", 1),
		"no key":                           strings.Replace(good, ed.Key().String(), "log.example/pypi", 1),
		"a cosigner's key":                 strings.Replace(good, ed.Key().String(), cosigner.Key().String(), 1),
		"keys of two logs":                 good + " " + theirs,
		"one key twice":                    good + " " + ed.Key().String(),
		"not base64":                       strings.Replace(good, mine, "%%%", 1),
		"a note that is none":              strings.Replace(good, mine, base64.StdEncoding.EncodeToString([]byte("hello\n")), 1),
		"signed by another log":            strings.Replace(good, mine, foreign, 1),
		"signed by another key":            strings.Replace(good, ed.Key().String(), again.Key().String(), 1),
		"a signature of another text":      strings.Replace(good, mine, spoiled, 1),
		"the checkpoint of a log not here": strings.Replace(good, ed.Key().String(), theirs, 1),
		"too long":                         good + strings.Repeat(" ", MaxInvite),
	} {
		if _, err := ParseInvite(line); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLogList(t *testing.T) {
	ed, _ := GenerateSigner("log.example/a", AlgEd25519)
	pq, _ := GenerateSigner("log.example/b", AlgMLDSA44)
	cosigner, _ := GenerateSigner("witness.example/w", AlgEd25519Cosig)
	list := "# logs\n\nlogs/v0\n\nvkey " + ed.Key().String() + "\nqpd 86400\ncontact a@log.example\n\nvkey " + cosigner.Key().String() + "\norigin ignored\n" +
		"vkey nonsense\nqpd 1\nvkey " + pq.Key().String() + "\norigin other.example/b\n"
	logs, skipped, err := ParseLogList([]byte(list))
	if err != nil || len(logs) != 2 || len(skipped) != 2 || logs[0].Origin != "log.example/a" || logs[1].Origin != "other.example/b" || logs[1].Key.Alg() != AlgMLDSA44 {
		t.Errorf("%+v %v %v", logs, skipped, err)
	}
	for name, bad := range map[string]string{
		"empty": "", "comments alone": "# x\n", "another version": "logs/v1\n", "no header": "vkey " + ed.Key().String() + "\n", "a line before the first vkey": "logs/v0\nqpd 1\n",
	} {
		if _, _, err := ParseLogList([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzInvite(f *testing.F) {
	ed, err := GenerateSigner("log.example/pypi", AlgEd25519)
	if err != nil {
		f.Fatal(err)
	}
	f.Add((&Invite{Keys: []*Key{ed.Key()}, URL: "https://log.example/pypi"}).String())
	f.Add("portbook-invite/v1 - - x")
	f.Fuzz(func(t *testing.T, s string) {
		i, err := ParseInvite(s)
		if err == nil && i.String() != strings.TrimSuffix(s, "\n") {
			t.Errorf("%q is written back as %q", s, i.String())
		}
	})
}

func FuzzLogList(f *testing.F) {
	f.Add([]byte("logs/v0\nvkey x\norigin y\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		logs, _, err := ParseLogList(b)
		for _, l := range logs {
			if err != nil || l.Key == nil {
				t.Errorf("%+v with %v", l, err)
			}
		}
	})
}
