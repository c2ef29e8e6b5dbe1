package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
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
