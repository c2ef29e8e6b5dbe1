package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/evillog"
	"github.com/portbook/portbook/witness"
)

// TestHandoverEvidenceIsAboutTwoLogs: where a log and the one that it names
// contradict each other, the command accuses neither alone.
func TestHandoverEvidenceIsAboutTwoLogs(t *testing.T) {
	one := func(e *entry.Entry, s *c2sp.Signer) string {
		leaf, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		c := c2sp.Checkpoint{Origin: s.Key().Name(), Size: 1, Root: entry.LeafHash(leaf)}
		sig, err := s.Sign(c.Text())
		if err != nil {
			t.Fatal(err)
		}
		p := c2sp.Proof{Extra: leaf, Checkpoint: (&c2sp.Note{Text: c.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()}
		return "| " + strings.ReplaceAll(strings.TrimSuffix(string(p.Bytes()), "\n"), "\n", "\n| ") + "\n"
	}
	var signers []*c2sp.Signer
	for _, origin := range []string{"old.example/log", "new.example/log"} {
		s, err := c2sp.GenerateSigner(origin, c2sp.AlgEd25519)
		if err != nil {
			t.Fatal(err)
		}
		signers = append(signers, s)
	}
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).Format(entry.TimeFormat)
	last := &entry.Entry{Kind: entry.KindSuccessor, Claim: entry.ClaimLog, ID: strings.Repeat("ab", 16), Time: at,
		Origin: "new.example/log", VKeys: []string{signers[1].Key().String()}, URL: "https://new.example/log"}
	other := &entry.Entry{Kind: entry.KindCanary, Claim: entry.ClaimLog, ID: strings.Repeat("cd", 16), Time: at}
	text := "portbook-evidence/v1\nclaim bad-handover\nfirst\n" + one(last, signers[0]) + "second\n" + one(other, signers[1])
	if _, err := client.ParseEvidence([]byte(text)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, policy := filepath.Join(dir, "evidence"), filepath.Join(dir, "policy")
	for name, content := range map[string]string{file: text, policy: "log " + signers[0].Key().String() + "\nquorum none\n"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for flag, want := range map[string][]string{
		"--json=false": {"old.example/log and new.example/log contradict each other", "which of the two, this does not tell", "second log    new.example/log"},
		"--json":       {`"log": "old.example/log"`, `"second_log": "new.example/log"`},
	} {
		cmd, out := rootCmd(), &bytes.Buffer{}
		cmd.SetOut(out)
		cmd.SetArgs([]string{"evidence", "verify", file, "--policy", policy, flag})
		if err := cmd.Execute(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, w := range want {
			if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got, strings.Join(strings.Fields(w), " ")) {
				t.Errorf("%s: no %q in\n%s", flag, w, out)
			}
		}
	}
}

// TestWitnessEvidence: what a witness publishes about a log that has two
// histories is proven by this command with the log's key alone, and no longer
// once anything in it was changed.
func TestWitnessEvidence(t *testing.T) {
	log, err := c2sp.GenerateSigner("forked.example/log", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := c2sp.GenerateSigner("forked.example/log", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := witness.CreateDir(t.Context(), filepath.Join(t.TempDir(), "w"), "witness.example/w1", time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	w, err := witness.New(witness.Config{Signer: dir.Signer, MLDSA: dir.MLDSA, Store: dir.Store})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Store.AddLog(t.Context(), "forked.example/log", []*c2sp.Key{log.Key()}); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(w.Handler())
	defer srv.Close()

	evil := evillog.New(evillog.Config{Signer: log})
	for i := range 7 {
		evil.Append([]byte{byte(i)})
	}
	post := func(old uint64, want int) {
		t.Helper()
		res, err := http.Post(srv.URL+"/add-checkpoint", "", bytes.NewReader(evil.AddCheckpoint(old)))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != want {
			t.Fatalf("%d %s %v", res.StatusCode, b, err)
		}
	}
	post(0, 200)
	evil.Fork(2, []byte("x"), []byte("y"), []byte("z"), []byte("a"), []byte("b"))
	post(7, 422)
	evil.Append([]byte("c"), []byte("d"))
	post(7, 422)

	verify := func(file string, key *c2sp.Key) (string, error) {
		cmd, out := rootCmd(), &bytes.Buffer{}
		cmd.SetOut(out)
		cmd.SetArgs([]string{"evidence", "verify", file, "--log-key", key.String()})
		err := cmd.Execute()
		return out.String(), err
	}
	policy, err := evidencePolicy("", []string{log.Key().String()})
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 2; i++ {
		res, err := http.Get(fmt.Sprintf("%s/evidence/%d.txt", srv.URL, i))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		if res.Body.Close(); err != nil || res.StatusCode != http.StatusOK {
			t.Fatal(res.Status, err)
		}
		file := filepath.Join(t.TempDir(), "evidence.txt")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := verify(file, log.Key()); err != nil || !strings.Contains(out, "evidence.txt: proven") || !strings.Contains(out, []string{"", "PB201", "PB202"}[i]) {
			t.Errorf("%v: %s\n%s", err, out, text)
		}
		if _, err := verify(file, stranger.Key()); err == nil {
			t.Error("proven with another key of that name")
		}
		for at := bytes.Index(text, []byte("claim ")); at < len(text); at += 7 {
			changed := bytes.Clone(text)
			changed[at] ^= 1
			line := text[bytes.LastIndexByte(text[:at], '\n')+1:]
			if client.VerifyEvidence(changed, policy) == nil && !bytes.HasPrefix(line, []byte("| \u2014 witness.example/w1 ")) {
				t.Errorf("byte %d, %q, changed, and it is still proven", at, text[at])
			}
		}
	}
}
