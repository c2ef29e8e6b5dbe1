package main

// portbook run against a real log with three witnesses, in front of an index
// that knows nothing of proofs.

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/world"
)

func TestRunWithProofsFromTheLog(t *testing.T) {
	s := newShop(t)
	w, err := world.New(t.Context(), t.TempDir(), world.Options{Witnesses: 3, Quorum: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s.write("policy", string(w.Policy))
	name := s.add("aaa")
	delete(s.files, name+".tlog-proof")
	content := s.files[name]
	flags := []string{"--log", w.Log.URL, "--state", filepath.Join(s.dir, "state")}
	args, arrived := s.target()
	s.expect(flags, append(args, "aaa"), 1, "PORTBOOK REFUSED (PB117)", "and the log has none either")

	sum := sha256.Sum256(content)
	e := &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: s.registry, Ecosystem: entry.PyPI, Project: "aaa", Version: "1.0",
		File: name, Size: entry.Uint(uint64(len(content))), SHA256: hex.EncodeToString(sum[:]), Time: time.Now().UTC().Format(entry.TimeFormat)}
	c, err := w.Log.Submitter(s.registry)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Submit(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	s.expect(flags, append(args, "aaa"), 0, "portbook: 1 verified, 0 refused, 0 could not be checked\n")
	if got := arrived(); len(got) != 1 {
		t.Errorf("installed %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(s.dir, "state")); err != nil || !strings.Contains(string(b), w.LogKey.Key().Name()) {
		t.Errorf("nothing is remembered of the log: %v", err)
	}
	// Swapped, it has a digest that the log does not know.
	s.files[name] = append(content[:len(content)-1:len(content)-1], content[len(content)-1]^1)
	args, arrived = s.target()
	s.expect(flags, append(args, "aaa"), 1, "PORTBOOK REFUSED (PB117)")
	if got := arrived(); len(got) != 0 {
		t.Errorf("installed %q", got)
	}
}
