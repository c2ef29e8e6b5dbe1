package powercut

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestCutLosesWhatIsNotSynced: else the tests that cut the power would show nothing.
func TestCutLosesWhatIsNotSynced(t *testing.T) {
	for kind := range Kinds {
		t.Run(kind, func(t *testing.T) {
			d := New(t, kind)
			write := func(name string, durably bool) {
				f, err := os.Create(filepath.Join(d.Dir, name))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if _, err := f.WriteString(name); err != nil {
					t.Fatal(err)
				}
				if !durably {
					return
				}
				root, err := os.Open(d.Dir)
				if err != nil {
					t.Fatal(err)
				}
				defer root.Close()
				if err := f.Sync(); err != nil {
					t.Fatal(err)
				}
				if err := root.Sync(); err != nil {
					t.Fatal(err)
				}
			}
			write("kept", true)
			write("lost", false)
			d.Cut(t)
			if err := os.WriteFile(filepath.Join(d.Dir, "late"), nil, 0o600); err == nil {
				t.Error("it is written to after the cut")
			}
			d.Restore(t)
			for name, want := range map[string]bool{"kept": true, "lost": false, "late": false} {
				raw, err := os.ReadFile(filepath.Join(d.Dir, name))
				if got := err == nil && bytes.Equal(raw, []byte(name)); got != want {
					t.Errorf("%s: there %v, want %v (%v)", name, got, want, err)
				}
			}
		})
	}
}
