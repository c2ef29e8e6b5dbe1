package migrate

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/logserver/enginetest"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
)

const origin = "log.example/test"

var silent = func(string, uint64, uint64) {}

// log is a log's directory of the suite's entries, of which some are published.
type log struct {
	dir    string
	signer *c2sp.Signer
	ref    *enginetest.Reference
}

func newLog(t *testing.T, size, published int) *log {
	t.Helper()
	l := &log{dir: filepath.Join(t.TempDir(), "log"), ref: new(enginetest.Reference)}
	var err error
	if l.signer, err = c2sp.GenerateSigner(origin, c2sp.AlgEd25519); err != nil {
		t.Fatal(err)
	}
	if err := logserver.InitWithKey(t.Context(), l.dir, filepath.Join(t.TempDir(), "anchor"), l.signer); err != nil {
		t.Fatal(err)
	}
	e := enginetest.Open(t, func(ctx context.Context) (tessera.Driver, error) {
		return posix.New(ctx, posix.Config{Path: logserver.EngineDir(l.dir)})
	})
	defer e.Close()
	for i := range size {
		l.ref.Append(enginetest.Leaf(i))
		f := e.Add(t.Context(), tessera.NewEntry(enginetest.Leaf(i)))
		if i == published-1 || i == size-1 {
			if _, err := f(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if size > 0 {
		l.publish(t, published, l.ref.Root(t, published))
	}
	return l
}

func (l *log) publish(t *testing.T, size int, root [32]byte) {
	t.Helper()
	cp := c2sp.Checkpoint{Origin: origin, Size: uint64(size), Root: root}
	sig, err := l.signer.SignCheckpoint(t.Context(), cp)
	if err != nil {
		t.Fatal(err)
	}
	text := cp.Text()
	if err := os.WriteFile(filepath.Join(l.dir, "checkpoint"), []byte(text+"\n"+sig.Line()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *Source {
	t.Helper()
	s, err := FromDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// check opens a moved log as the engine does, compares it with its entries, and
// goes on.
func (l *log) check(t *testing.T, dir string) {
	t.Helper()
	e := enginetest.Open(t, func(ctx context.Context) (tessera.Driver, error) {
		return posix.New(ctx, posix.Config{Path: logserver.EngineDir(dir)})
	})
	defer e.Close()
	size := l.ref.Size()
	enginetest.AwaitIntegrated(t, e.Reader, size)
	l.ref.Check(t, e.Reader, size)
	more := []byte("the next entry")
	if index, err := e.Add(t.Context(), tessera.NewEntry(more))(); err != nil || index.Index != uint64(size) {
		t.Fatalf("the next entry has index %d, %v", index.Index, err)
	}
	var ref enginetest.Reference
	for i := range size {
		ref.Append(enginetest.Leaf(i))
	}
	ref.Append(more)
	ref.Check(t, e.Reader, size+1)
	for old := range size {
		if old%41 == 0 {
			ref.CheckProofs(t, e.Reader, old, size+1)
		}
	}
}

// TestToDir moves logs of all boundary sizes, published whole or in part.
func TestToDir(t *testing.T) {
	for _, c := range []struct{ size, published int }{{0, 0}, {1, 1}, {255, 200}, {256, 256}, {257, 1}, {513, 300}} {
		t.Run(fmt.Sprint(c.size), func(t *testing.T) {
			t.Parallel() // Tessera's migration looks once a second
			l := newLog(t, c.size, c.published)
			dir, anchor := filepath.Join(t.TempDir(), "back"), filepath.Join(t.TempDir(), "anchor")
			s := open(t, l.dir)
			if err := ToDir(t.Context(), s, dir, anchor, silent); err != nil {
				t.Fatal(err)
			}
			id, err := logserver.ReadIdentity(dir)
			if err != nil || id.Origin != origin || id.VKey != l.signer.Key().String() || id.Anchor != anchor {
				t.Fatalf("%+v, %v", id, err)
			}
			was, err1 := os.ReadFile(filepath.Join(l.dir, "checkpoint"))
			now, err2 := os.ReadFile(filepath.Join(dir, "checkpoint"))
			if !bytes.Equal(was, now) || c.size > 0 && errors.Join(err1, err2) != nil {
				t.Fatal("another checkpoint")
			}
			root := l.ref.Root(t, c.size)
			if raw, err := os.ReadFile(anchor); err != nil || !strings.Contains(string(raw), fmt.Sprintf("\n%d\n%x\n", c.size, root[:])) {
				t.Fatalf("anchor %q, %v", raw, err)
			}
			// Its partial tiles at the published size are there too.
			moved := open(t, dir)
			if err := moved.Verify(t.Context(), silent); err != nil {
				t.Fatal(err)
			}
			if c.published%256 != 0 {
				name := c2sp.Tile{Level: 0, Index: uint64(c.published / 256), Width: c.published % 256}.Path()
				if _, err := os.Stat(filepath.Join(logserver.EngineDir(dir), filepath.FromSlash(name))); err != nil {
					t.Fatal(err)
				}
			}
			moved.Close()
			l.check(t, dir)
			// Twice into one directory is refused.
			if err := ToDir(t.Context(), s, dir, anchor, silent); !errors.Is(err, ErrRefused) {
				t.Fatalf("a second move: %v", err)
			}
		})
	}
}

// TestInterrupted: a move that ended at each step goes on.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	l := newLog(t, 600, 300)
	dir, anchor := filepath.Join(t.TempDir(), "back"), filepath.Join(t.TempDir(), "anchor")
	s := open(t, l.dir)
	for _, n := range []int{0, 1, 2} { // bundles that can be read beyond verifying, before the source fails
		cut(t, s, dir, anchor, n)
	}
	// Another log must not go on with it.
	other := newLog(t, 600, 300)
	if err := ToDir(t.Context(), open(t, other.dir), dir, anchor, silent); !errors.Is(err, ErrRefused) {
		t.Fatalf("another log goes on: %v", err)
	}
	if err := ToDir(t.Context(), s, dir, anchor, silent); err != nil {
		t.Fatal(err)
	}
	l.check(t, dir)
}

// failing is a source of which only so many bundles can be read.
type failing struct {
	trillian.Store
	left *atomic.Int64
}

func (f failing) Get(ctx context.Context, name string) ([]byte, error) {
	if f.left.Add(-1) < 0 {
		return nil, errors.New("the source cannot be read")
	}
	return f.Store.Get(ctx, name)
}

// cut makes a move end after n more bundles than it takes to verify the source.
func cut(t *testing.T, s *Source, dir, anchor string, n int) {
	t.Helper()
	whole := s.store
	f := failing{whole, new(atomic.Int64)}
	f.left.Store(int64((s.Size+255)/256) + int64(n))
	s.store = f
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond) // Tessera tries again ten times
	defer cancel()
	if err := ToDir(ctx, s, dir, anchor, silent); err == nil || errors.Is(err, ErrRefused) {
		t.Fatalf("after %d bundles: %v", n, err)
	}
	s.store = whole
	if _, err := logserver.ReadIdentity(dir); !errors.Is(err, logserver.ErrNoLog) {
		t.Fatalf("half a log can be served: %v", err)
	}
}

// TestRefusals: sources that are not what they signed, and targets that hold
// something else. Nothing that could be served is made.
func TestRefusals(t *testing.T) {
	t.Run("served", func(t *testing.T) {
		l := newLog(t, 3, 3)
		s := open(t, l.dir)
		// A server's lock and ours exclude each other, both ways.
		if _, err := logserver.Open(t.Context(), logserver.Config{Dir: l.dir, Signer: l.signer, Policy: &c2sp.Policy{}}); err == nil {
			t.Fatal("a server takes a log that is being moved")
		}
		s.Close()
	})
	sources := map[string]func(t *testing.T, l *log){
		"no checkpoint": func(t *testing.T, l *log) { os.Remove(filepath.Join(l.dir, "checkpoint")) },
		"another root": func(t *testing.T, l *log) {
			root := l.ref.Root(t, 250)
			root[1] ^= 1
			l.publish(t, 250, root)
		},
		"another whole root": func(t *testing.T, l *log) { l.publish(t, 300, l.ref.Root(t, 299)) },
		"more was published": func(t *testing.T, l *log) { l.publish(t, 301, l.ref.Root(t, 300)) },
		"another key": func(t *testing.T, l *log) {
			l.signer, _ = c2sp.GenerateSigner(origin, c2sp.AlgEd25519)
			l.publish(t, 250, l.ref.Root(t, 250))
		},
		"a bit of an entry": func(t *testing.T, l *log) { spoil(t, filepath.Join(logserver.EngineDir(l.dir), "tile/entries/000")) },
		"a bundle is gone":  func(t *testing.T, l *log) { os.Remove(filepath.Join(logserver.EngineDir(l.dir), "tile/entries/000")) },
		"it is to end": func(t *testing.T, l *log) {
			next, err := c2sp.GenerateSigner("next.example/log", c2sp.AlgEd25519)
			if err == nil {
				err = logserver.Freeze(l.dir, logserver.Successor{Origin: "next.example/log", VKeys: []string{next.Key().String()}, URL: "https://next.example"}, time.Now())
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"entries in the journal alone": func(t *testing.T, l *log) {
			journal(t, l.dir, append([]byte{'J', 1, 0xac, 2}, origin...), []byte{'E', 0xac, 2, 1, 'a', 4, 'l', 'e', 'a', 'f'}) // from 300 on
		},
		"a damaged journal": func(t *testing.T, l *log) { journal(t, l.dir, []byte{'J', 9}) },
		"no state":          func(t *testing.T, l *log) { os.Remove(filepath.Join(logserver.EngineDir(l.dir), ".state/treeState")) },
		"another state": func(t *testing.T, l *log) {
			root := l.ref.Root(t, 299)
			raw, _ := json.Marshal(map[string]any{"size": 300, "root": root[:]})
			os.WriteFile(filepath.Join(logserver.EngineDir(l.dir), ".state/treeState"), raw, 0o644)
		},
	}
	for name, damage := range sources {
		t.Run(name, func(t *testing.T) {
			l := newLog(t, 300, 250)
			damage(t, l)
			dir := filepath.Join(t.TempDir(), "back")
			s, err := FromDir(l.dir)
			if err == nil {
				err = ToDir(t.Context(), s, dir, filepath.Join(t.TempDir(), "anchor"), silent)
				s.Close()
			}
			if !errors.Is(err, ErrRefused) {
				t.Fatalf("got %v", err)
			}
			if _, err := os.Stat(dir); err == nil {
				t.Fatal("something was written")
			}
		})
	}
	targets := map[string]func(t *testing.T, dir, anchor string){
		"a log":     func(t *testing.T, dir, _ string) { os.CopyFS(dir, os.DirFS(newLog(t, 1, 1).dir)) },
		"an engine": func(t *testing.T, dir, _ string) { os.MkdirAll(logserver.EngineDir(dir), 0o755) },
		"an anchor": func(t *testing.T, _, anchor string) { os.WriteFile(anchor, []byte("x"), 0o600) },
	}
	for name, occupy := range targets {
		t.Run("target: "+name, func(t *testing.T) {
			l := newLog(t, 300, 250)
			dir, anchor := filepath.Join(t.TempDir(), "back"), filepath.Join(t.TempDir(), "anchor")
			occupy(t, dir, anchor)
			if err := ToDir(t.Context(), open(t, l.dir), dir, anchor, silent); !errors.Is(err, ErrRefused) {
				t.Fatalf("got %v", err)
			}
		})
	}
	t.Run("target: other entries where an interrupted move stood", func(t *testing.T) {
		l := newLog(t, 300, 250)
		s := open(t, l.dir)
		dir, anchor := filepath.Join(t.TempDir(), "back"), filepath.Join(t.TempDir(), "anchor")
		cut(t, s, dir, anchor, 0)
		os.RemoveAll(logserver.EngineDir(dir))
		e := enginetest.Open(t, func(ctx context.Context) (tessera.Driver, error) {
			return posix.New(ctx, posix.Config{Path: logserver.EngineDir(dir)})
		})
		if _, err := e.Add(t.Context(), tessera.NewEntry(enginetest.Leaf(1000)))(); err != nil {
			t.Fatal(err)
		}
		e.Close()
		if err := ToDir(t.Context(), s, dir, anchor, silent); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not the source's") {
			t.Fatalf("got %v", err)
		}
	})
}

func spoil(t *testing.T, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

// journal writes the journal of a log: these payloads.
func journal(t *testing.T, dir string, payloads ...[]byte) {
	t.Helper()
	var raw []byte
	for _, p := range payloads {
		raw = binary.LittleEndian.AppendUint32(raw, uint32(len(p)))
		raw = binary.LittleEndian.AppendUint32(raw, crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
		raw = append(raw, p...)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "journal"), 0o700), os.WriteFile(filepath.Join(dir, "journal", "000000000001"), raw, 0o600)); err != nil {
		t.Fatal(err)
	}
}
