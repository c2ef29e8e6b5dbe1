package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/client"
)

// Freshness is judged on the state, never on the file's own proof: the file
// verifies at any age, and the person is warned of an old memory.
func TestVerifyWarnsOfAnOldMemory(t *testing.T) {
	u := submitFile(t, "six-1.17.0.tar.gz", "six")
	p := submitPolicy(t)
	ack := logged(t, u.entry, 2)
	if err := os.WriteFile(u.path+proofSuffix, ack.Proof, 0o644); err != nil {
		t.Fatal(err)
	}
	state, err := client.OpenState(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	leaf, err := u.entry.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	l := &fakeLog{origin: "log.example/test", leaves: map[uint64][]byte{2: leaf}}
	if err := state.Update(t.Context(), p, l.note(5, false, []string{"w1", "w2"}, start).Bytes(), nil); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		after time.Duration
		want  string
		warn  bool
	}{
		{time.Hour, "fresh", false},
		{25 * time.Hour, "aging", true},
		{8 * 24 * time.Hour, "stale", true},
		{2 * 365 * 24 * time.Hour, "stale", true},
		{-time.Hour, "is the clock right?", true},
	} {
		v := verifier{policy: p, named: p, registry: "pypi.example", ecosystem: "pypi", state: state, now: func() time.Time { return start.Add(tc.after) }}
		r := v.verify(t.Context(), u.path, "")
		var out bytes.Buffer
		r.print(&out)
		if r.Outcome != outcomeVerified || !strings.Contains(out.String(), tc.want) || strings.Contains(out.String(), "WARNING") != tc.warn || r.Freshness.Warn != tc.warn {
			t.Errorf("after %s: %s", tc.after, out.String())
		}
	}
}

// Whatever the checks before it say, an interrupted check is no verdict.
func TestVerifyInterruptedIsNoVerdict(t *testing.T) {
	u := submitFile(t, "six-1.17.0.tar.gz", "six")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	v := verifier{policy: submitPolicy(t), registry: "pypi.example", ecosystem: "pypi", now: time.Now}
	if r := v.verify(ctx, u.path, ""); r.Outcome != outcomeCannot {
		t.Errorf("%+v", r)
	}
}
