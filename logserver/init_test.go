package logserver

// Making a log, and making it again after it was interrupted at each step.

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
)

func newLogKey(t *testing.T) *c2sp.Signer {
	t.Helper()
	signer, err := c2sp.GenerateSigner("log.example/test", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// interrupted makes a log up to a step, as a crash there leaves it.
func interrupted(t *testing.T, dir, anchor string, signer *c2sp.Signer, step string) {
	t.Helper()
	type crash struct{}
	defer func() {
		if _, ok := recover().(crash); !ok {
			t.Fatalf("there is no step %s", step)
		}
	}()
	m := &making{dir: dir, anchor: anchor, key: signer.Key(), signer: signer, testStep: func(s string) {
		if s == step {
			panic(crash{})
		}
	}}
	t.Error(m.run(t.Context()))
}

// TestInterruptedInit: there is no log, the next try names just what may be
// removed, and after that makes one.
func TestInterruptedInit(t *testing.T) {
	all := []string{engineDir, "anchor", KeyFile, unfinishedFile}
	for step, want := range map[string][]string{
		"begin":     {unfinishedFile},
		"key":       {KeyFile, unfinishedFile},
		"anchor":    {"anchor", KeyFile, unfinishedFile},
		"directory": all,
		"storage":   all,
	} {
		t.Run(step, func(t *testing.T) {
			top := t.TempDir()
			dir, anchor := filepath.Join(top, "log"), filepath.Join(top, "anchor")
			interrupted(t, dir, anchor, newLogKey(t), step)
			if _, err := ReadIdentity(dir); !errors.Is(err, ErrNoLog) {
				t.Errorf("it left a log: %v", err)
			}
			var paths []string
			for _, name := range want {
				if name == "anchor" {
					paths = append(paths, anchor)
				} else {
					paths = append(paths, filepath.Join(dir, name))
				}
			}
			again := newLogKey(t)
			for _, other := range []string{anchor, filepath.Join(top, "another anchor")} {
				err := InitWithKey(t.Context(), dir, other, again)
				if err == nil || !strings.HasSuffix(err.Error(), "try again: "+strings.Join(paths, ", ")) {
					t.Fatalf("the next try: %v; want it to name %v", err, paths)
				}
			}
			for _, p := range paths {
				if err := os.RemoveAll(p); err != nil {
					t.Fatal(err)
				}
			}
			if err := InitWithKey(t.Context(), dir, anchor, again); err != nil {
				t.Fatal(err)
			}
			if id, err := ReadIdentity(dir); err != nil || id.VKey != again.Key().String() {
				t.Errorf("%+v, %v", id, err)
			}
		})
	}
}

// TestNothingOfALogIsALeftover: what may be more than the rest of an
// interrupted Init is never named for removal.
func TestNothingOfALogIsALeftover(t *testing.T) {
	for name, damage := range map[string]func(r *rig, unfinished string) error{
		"log.json lost":                        func(*rig, string) error { return nil },
		"log.json lost, and its databases too": func(r *rig, _ string) error { return r.forget() },
		"log.json put where an unfinished one is, anchor in use": func(r *rig, unfinished string) error {
			os.RemoveAll(filepath.Join(r.dir, engineDir))
			return errors.Join(r.forget(), os.Rename(filepath.Join(filepath.Dir(r.dir), identityFile), unfinished))
		},
		"log.json put where an unfinished one is, anchor lost": func(r *rig, unfinished string) error {
			os.Remove(r.anchor)
			return errors.Join(r.forget(), os.Rename(filepath.Join(filepath.Dir(r.dir), identityFile), unfinished))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := filled(t, 3)
			if err := os.Rename(filepath.Join(r.dir, identityFile), filepath.Join(filepath.Dir(r.dir), identityFile)); err != nil {
				t.Fatal(err)
			}
			if err := damage(r, filepath.Join(r.dir, unfinishedFile)); err != nil {
				t.Fatal(err)
			}
			err := Init(t.Context(), r.dir, filepath.Join(t.TempDir(), "anchor"), r.signer.Key())
			if err == nil || !strings.Contains(err.Error(), "remove nothing; restore log.json") {
				t.Error(err)
			}
		})
	}
}

// forget removes what only a served log has, as if it had never been served.
func (r *rig) forget() error {
	for _, name := range []string{checkpointFile, indexDir, streamsFile, TokensFile} {
		if err := os.RemoveAll(filepath.Join(r.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// TestFailedInitLeavesNothing, and takes nothing that was there before.
func TestFailedInitLeavesNothing(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "log")
	if err := InitWithKey(t.Context(), dir, filepath.Join(top, "nowhere", "anchor"), newLogKey(t)); err == nil {
		t.Fatal("made a log without an anchor")
	}
	names := func() (out []string) {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			out = append(out, e.Name())
		}
		return out
	}
	if got := names(); !slices.Equal(got, []string{lockFileName}) {
		t.Errorf("left %v", got)
	}
	key := filepath.Join(dir, KeyFile)
	if err := os.WriteFile(key, []byte("somebody's key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, init := range []func() error{
		func() error { return InitWithKey(t.Context(), dir, filepath.Join(top, "anchor"), newLogKey(t)) },
		func() error {
			return Init(t.Context(), dir, filepath.Join(top, "nowhere", "anchor"), newLogKey(t).Key())
		},
	} {
		if err := init(); err == nil {
			t.Error("made a log")
		}
		if got := readFile(t, key); got != "somebody's key\n" {
			t.Errorf("the key is now %q", got)
		}
		if got := names(); !slices.Equal(got, []string{lockFileName, KeyFile}) {
			t.Errorf("left %v", got)
		}
	}
}
