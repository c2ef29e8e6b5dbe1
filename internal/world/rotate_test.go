package world

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
)

// TestRotation: upload, freeze, successor, upload. Who verifies accepts both
// files with the policy it had, the monitor tells of the new upload, and nobody
// changed a configuration.
func TestRotation(t *testing.T) {
	const registry = "index.example"
	w, err := New(t.Context(), t.TempDir(), Options{Witnesses: 3, Quorum: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	s, err := w.NewSite(t.Context(), SiteOptions{Registry: registry, Subscriptions: "subscriptions:\n  - name: mine\n    project: {registry: " + registry +
		", ecosystem: pypi, project: demo}\n    notify:\n      - email: MAILBOX\n"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	upload := func(l *Log, version string) (client.File, []byte) {
		t.Helper()
		c, err := l.Submitter(registry)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		sum := sha256.Sum256([]byte(version))
		f := client.File{Registry: registry, Ecosystem: entry.PyPI, Project: "demo", Name: "demo-" + version + ".tar.gz", SHA256: sum}
		ack, err := c.Submit(t.Context(), &entry.Entry{Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "demo", Version: version, File: f.Name,
			Size: entry.Uint(3), SHA256: hex.EncodeToString(sum[:]), Time: "2026-11-21T05:00:00Z"})
		if err != nil {
			t.Fatal(err)
		}
		return f, ack.Proof
	}
	old, oldProof := upload(w.Log, "1.0")
	next, err := w.Rotate(t.Context(), "log.portbook.example/next")
	if err != nil {
		t.Fatal(err)
	}
	defer next.Stop()
	var frozen *submit.Frozen
	c, err := w.Log.Submitter(registry)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Submit(t.Context(), &entry.Entry{Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "demo", Version: "9", File: "demo-9.tar.gz",
		Size: entry.Uint(3), SHA256: strings.Repeat("ab", 32), Time: "2026-11-21T05:00:00Z"}); !errors.As(err, &frozen) || frozen.URL != next.URL {
		t.Errorf("the old log: %v", err)
	}
	fresh, freshProof := upload(next, "2.0")

	// Who verifies.
	state, err := client.OpenState(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := client.NewReader(w.Log.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := state.Follow(t.Context(), w.ParsedPolicy(), r)
	if err != nil || len(f.Handovers) != 1 {
		t.Fatalf("%+v, %v", f, err)
	}
	if _, err := client.Verify(f.Policy, old, oldProof); err != nil {
		t.Errorf("the old file: %v", err)
	}
	if _, err := client.Verify(f.Policy, fresh, freshProof); err != nil {
		t.Errorf("the new file: %v", err)
	}

	// The monitor, by itself.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got := ""
		for _, m := range s.Mail.Messages() {
			got += m.Subject + "\n"
		}
		if strings.Contains(got, "rotated") && strings.Contains(got, "demo-2.0.tar.gz") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("mails:\n%s", got)
		}
	}
	// The proxy follows too.
	s.Proxy.Refresh(t.Context())
	if err := w.Log.Stop(); err != nil { // without the old log
		t.Error(err)
	}
	if f, err = state.Follow(t.Context(), w.ParsedPolicy(), r); err != nil || f.Reader.URL() != next.URL {
		t.Errorf("without the old log: %v", err)
	}
}
