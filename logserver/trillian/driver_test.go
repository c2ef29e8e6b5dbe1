package trillian_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	gtrillian "github.com/google/trillian"
	"github.com/jackc/pgx/v5"
	"github.com/portbook/portbook/logserver/enginetest"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
	"github.com/transparency-dev/tessera"
	"golang.org/x/mod/sumdb/tlog"
)

// recorded is what Record was told, checked as it comes in.
type recorded struct {
	t *testing.T

	mu     sync.Mutex
	ids    [][32]byte                 // guarded by mu; by index
	leaves [][]byte                   // guarded by mu
	index  map[[32]byte]uint64        // guarded by mu
	fail   func(trillian.Batch) error // guarded by mu; nil: it succeeds
}

func (r *recorded) record(_ context.Context, b trillian.Batch) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		if err := r.fail(b); err != nil {
			return err
		}
	}
	if b.First > uint64(len(r.ids)) {
		r.t.Errorf("a batch begins at %d, %d were recorded", b.First, len(r.ids))
	}
	for i, id := range b.IDs {
		index := b.First + uint64(i)
		if index < uint64(len(r.ids)) {
			if r.ids[index] != id {
				r.t.Errorf("index %d was recorded for two entries", index)
			}
			continue
		}
		if was, ok := r.index[id]; ok {
			r.t.Errorf("one ID has the indices %d and %d", was, index)
		}
		if r.index == nil {
			r.index = map[[32]byte]uint64{}
		}
		r.index[id] = index
		r.ids, r.leaves = append(r.ids, id), append(r.leaves, b.Leaves[i])
	}
	return nil
}

func (r *recorded) setFail(f func(trillian.Batch) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = f
}

// check compares every tile with what was recorded.
func (r *recorded) check(t *testing.T, d *trillian.Driver, size int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.leaves) < size {
		t.Fatalf("%d leaves were recorded, want %d", len(r.leaves), size)
	}
	var ref enginetest.Reference
	for _, l := range r.leaves[:size] {
		ref.Append(l)
	}
	ref.Check(t, d.Reader(), size)
}

// TestQueue: an ID is logged once, whoever queues it and however often.
func TestQueue(t *testing.T) {
	for name, start := range map[string]func() (*trilliantest.Trillian, error){"PostgreSQL": postgres, "MariaDB": mariadb} {
		t.Run(name, func(t *testing.T) {
			rec := &recorded{t: t}
			cfg := newLog(t, need(t, start), dir(t))
			cfg.Record = rec.record
			d := newDriver(t, cfg)
			integrate(t, d, 1)
			var wg sync.WaitGroup
			for range 4 { // four frontends queue the same
				front := newDriver(t, trillian.Config{Conn: cfg.Conn, TreeID: cfg.TreeID, Store: cfg.Store})
				wg.Go(func() {
					for i := range 20 {
						if err := front.Queue(t.Context(), id(i), leaf(i)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			awaitSize(t, d, 20)
			queue(t, d, 0, 20) // again, after they are logged
			// The same bytes under another ID are another entry.
			if err := d.Queue(t.Context(), id(100), leaf(7)); err != nil {
				t.Fatal(err)
			}
			awaitSize(t, d, 21)
			time.Sleep(50 * time.Millisecond)
			rec.check(t, d, 21)
			if n, _ := d.Reader().IntegratedSize(t.Context()); n != 21 {
				t.Fatalf("%d entries of 21", n)
			}
			if err := d.Queue(t.Context(), id(3), []byte("something else")); !errors.Is(err, trillian.ErrIDTaken) {
				t.Fatalf("another leaf under an ID: %v", err)
			}
			for i, want := range map[int]int{7: 7, 100: 7, 19: 19} {
				index, ok, err := d.Find(t.Context(), id(i), leaf(want))
				if err != nil || !ok || index != rec.index[id(i)] {
					t.Fatalf("Find(%d) = %d, %v, %v; want %d", i, index, ok, err, rec.index[id(i)])
				}
			}
			if _, ok, err := d.Find(t.Context(), id(200), leaf(7)); ok || err != nil {
				t.Fatalf("an ID that was not queued: %v, %v", ok, err)
			}
			for _, bad := range [][]byte{nil, make([]byte, 1<<16)} {
				if err := d.Queue(t.Context(), id(300), bad); !errors.Is(err, trillian.ErrBadLeaf) {
					t.Fatalf("a leaf of %d bytes: %v", len(bad), err)
				}
			}
		})
	}
}

// TestAddAgain: an Add under an ID that was logged before resolves to its index.
func TestAddAgain(t *testing.T) {
	cfg := newLog(t, need(t, postgres), dir(t))
	place := func(context.Context) (tessera.Driver, error) { return trillian.New(cfg) }
	l := enginetest.Open(t, place)
	first, err := l.Add(trillian.WithID(t.Context(), id(1)), tessera.NewEntry(leaf(1)))()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		again, err := l.Add(trillian.WithID(t.Context(), id(1)), tessera.NewEntry(leaf(1)))()
		if err != nil || again.Index != first.Index {
			t.Fatalf("index %d, %v; want %d", again.Index, err, first.Index)
		}
		l.Close()
		l = enginetest.Open(t, place) // and after a restart
	}
	if _, err := l.Add(trillian.WithID(t.Context(), id(1)), tessera.NewEntry(leaf(2)))(); !errors.Is(err, trillian.ErrIDTaken) {
		t.Fatalf("another entry under the ID: %v", err)
	}
}

// TestTreeStates: what a tree that takes no entries says.
func TestTreeStates(t *testing.T) {
	tr := need(t, postgres)
	cfg := newLog(t, tr, dir(t))
	d := newDriver(t, cfg)
	integrate(t, d, 1)
	queue(t, d, 0, 3)
	awaitSize(t, d, 3)
	for state, want := range map[gtrillian.TreeState]error{gtrillian.TreeState_FROZEN: trillian.ErrFrozen, gtrillian.TreeState_DRAINING: trillian.ErrDraining} {
		if err := tr.SetState(t.Context(), cfg.TreeID, state); err != nil {
			t.Fatal(err)
		}
		if err := d.Queue(t.Context(), id(9), leaf(9)); !errors.Is(err, want) || errors.Is(err, trillian.ErrUncertain) {
			t.Errorf("%v: %v", state, err)
		}
		if err := d.Check(t.Context()); !errors.Is(err, want) {
			t.Errorf("%v: %v", state, err)
		}
		// What is there can be read, and an appender says why it adds nothing.
		l := enginetest.Open(t, func(context.Context) (tessera.Driver, error) { return trillian.New(cfg) })
		if n, err := l.Reader.IntegratedSize(t.Context()); n != 3 || err != nil {
			t.Errorf("%v: size %d, %v", state, n, err)
		}
		if _, err := l.Add(t.Context(), tessera.NewEntry(leaf(9)))(); !errors.Is(err, want) {
			t.Errorf("%v: Add: %v", state, err)
		}
		l.Close()
	}
	pre, err := tr.CreateTree(t.Context(), gtrillian.TreeType_PREORDERED_LOG)
	if err != nil {
		t.Fatal(err)
	}
	for tree, want := range map[int64]error{pre: trillian.ErrPreordered, 12345: trillian.ErrNoTree} {
		other := cfg
		other.TreeID = tree
		if err := trillian.Init(t.Context(), other); !errors.Is(err, want) {
			t.Errorf("Init: %v, want %v", err, want)
		}
		if err := newDriver(t, other).Queue(t.Context(), id(1), leaf(1)); !errors.Is(err, want) {
			t.Errorf("Queue: %v, want %v", err, want)
		}
	}
}

// TestInit: a log is made once, on an empty tree.
func TestInit(t *testing.T) {
	tr := need(t, postgres)
	store := dir(t)
	cfg := newLog(t, tr, store)
	if err := trillian.Init(t.Context(), cfg); err == nil {
		t.Fatal("a log was made twice")
	}
	d := newDriver(t, cfg)
	integrate(t, d, 1)
	queue(t, d, 0, 1)
	awaitSize(t, d, 1)
	elsewhere := cfg
	elsewhere.Store = dir(t)
	if err := trillian.Init(t.Context(), elsewhere); err == nil {
		t.Fatal("a log was made on a tree that has entries")
	}
	if err := newDriver(t, elsewhere).Integrate(t.Context(), 1); !errors.Is(err, trillian.ErrNoState) {
		t.Fatalf("integration without a log: %v", err)
	}
	if _, err := newDriver(t, elsewhere).Reader().IntegratedSize(t.Context()); !errors.Is(err, trillian.ErrNoState) {
		t.Fatalf("size without a log: %v", err)
	}
	// The tiles of another tree.
	other := newLog(t, tr, dir(t))
	other.Store = store
	if err := newDriver(t, other).Integrate(t.Context(), 1); !errors.Is(err, trillian.ErrTampering) {
		t.Fatalf("integration onto another tree's tiles: %v", err)
	}
}

// hookStore lets a test stand between the driver and its store.
type hookStore struct {
	trillian.Store
	beforeSwap func(content []byte)          // nil: nothing
	afterSwap  func(err error) error         // nil: nothing
	create     func([]trillian.Object) error // nil: nothing
}

func (s *hookStore) Swap(ctx context.Context, name string, old, content []byte) error {
	if s.beforeSwap != nil {
		s.beforeSwap(content)
	}
	err := s.Store.Swap(ctx, name, old, content)
	if s.afterSwap != nil {
		err = s.afterSwap(err)
	}
	return err
}

func (s *hookStore) Create(ctx context.Context, objects ...trillian.Object) error {
	if s.create != nil {
		if err := s.create(objects); err != nil {
			return err
		}
	}
	return s.Store.Create(ctx, objects...)
}

// TestStaleIntegrator: one that was paused at each step of a batch, while
// another took over and went on, does no harm when it wakes up.
func TestStaleIntegrator(t *testing.T) {
	for _, where := range []string{"before the tiles", "before recording", "before the size"} {
		for name, store := range map[string]func(*testing.T) trillian.Store{"directory": dir, "bucket": func(t *testing.T) trillian.Store { return newBucket(t) }} {
			t.Run(where+", "+name, func(t *testing.T) {
				base := store(t)
				cfg := newLog(t, need(t, postgres), base)
				paused, wake := make(chan bool, 10), make(chan bool)
				var asleep atomic.Bool
				sleep := func(at string) {
					if at == where && asleep.CompareAndSwap(false, true) {
						paused <- true
						<-wake
					}
				}
				oldCfg := cfg
				oldCfg.Store = &hookStore{Store: base,
					create: func([]trillian.Object) error { sleep("before the tiles"); return nil },
					beforeSwap: func(c []byte) {
						if !asleep.Load() && len(c) > 0 && !isSize(c, 0) {
							sleep("before the size")
						}
					}}
				oldCfg.Record = func(context.Context, trillian.Batch) error { sleep("before recording"); return nil }
				rec := &recorded{t: t}
				cfg.Record = rec.record
				old, d := newDriver(t, oldCfg), newDriver(t, cfg)
				oldRun := integrate(t, old, 1)
				queue(t, old, 0, 40)
				<-paused
				integrate(t, d, 2)
				queue(t, d, 40, 300)
				awaitSize(t, d, 300)
				rec.check(t, d, 300)
				close(wake)
				if err := oldRun.awaitEnd(t); !errors.Is(err, trillian.ErrFenced) || errors.Is(err, trillian.ErrTampering) {
					t.Fatalf("the old integrator ends with %v", err)
				}
				if err := old.Integrate(t.Context(), 1); !errors.Is(err, trillian.ErrFenced) {
					t.Fatalf("with its old token it may begin again: %v", err)
				}
				queue(t, d, 300, 310)
				awaitSize(t, d, 310)
				rec.check(t, d, 310)
				awaitSize(t, old, 310) // it reads on
			})
		}
	}
}

func isSize(state []byte, size int) bool {
	var s struct{ Size int }
	return json.Unmarshal(state, &s) == nil && s.Size == size
}

// TestUncertainWrites: the store fails after it has written, and before; adders
// are told all the same.
func TestUncertainWrites(t *testing.T) {
	base := dir(t)
	cfg := newLog(t, need(t, postgres), base)
	rec := &recorded{t: t}
	cfg.Record = rec.record
	var n atomic.Int64
	cfg.Store = &hookStore{Store: base,
		afterSwap: func(err error) error {
			if n.Add(1)%2 == 0 {
				return errors.New("the answer was lost")
			}
			return err
		},
		create: func([]trillian.Object) error {
			if n.Add(1)%3 == 0 {
				return errors.New("no answer")
			}
			return nil
		}}
	l := enginetest.Open(t, func(context.Context) (tessera.Driver, error) { return trillian.New(cfg) })
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 5 {
				want := fmt.Appendf(nil, "adder %d entry %d", i, k)
				index, err := l.Add(t.Context(), tessera.NewEntry(want))()
				if err != nil {
					t.Error(err)
					return
				}
				rec.mu.Lock()
				if got := rec.leaves[index.Index]; string(got) != string(want) {
					t.Errorf("index %d has %q, not %q", index.Index, got, want)
				}
				rec.mu.Unlock()
			}
		})
	}
	wg.Wait()
	cfg.Store = base
	rec.check(t, newDriver(t, cfg), 40)
}

// TestRecord: a size counts only once it is recorded; a failure is waited out,
// a fenced one ends the integration.
func TestRecord(t *testing.T) {
	rec := &recorded{t: t}
	cfg := newLog(t, need(t, postgres), dir(t))
	cfg.Record = rec.record
	var grown atomic.Uint64
	cfg.Grown = grown.Store
	d := newDriver(t, cfg)
	tried := make(chan bool, 100)
	rec.fail = func(trillian.Batch) error {
		select {
		case tried <- true:
		default:
		}
		return errors.New("the database is away")
	}
	run := integrate(t, d, 5)
	queue(t, d, 0, 10)
	<-tried
	<-tried
	if n, err := d.Reader().IntegratedSize(t.Context()); n != 0 || err != nil || grown.Load() != 0 {
		t.Fatalf("size %d, %v, grown to %d, before it was recorded", n, err, grown.Load())
	}
	rec.setFail(nil)
	awaitSize(t, d, 10)
	rec.check(t, d, 10)
	if grown.Load() != 10 {
		t.Fatalf("grown to %d", grown.Load())
	}
	rec.setFail(func(trillian.Batch) error { return fmt.Errorf("token 5: %w", trillian.ErrFenced) })
	queue(t, d, 10, 11)
	if err := run.awaitEnd(t); !errors.Is(err, trillian.ErrFenced) {
		t.Fatal(err)
	}
	if n, _ := d.Reader().IntegratedSize(t.Context()); n != 10 {
		t.Fatalf("size %d", n)
	}
}

// TestCatchUp: a long backlog is integrated in steps, each compared with
// Trillian's later root; a wrong leaf in the first is seen there.
func TestCatchUp(t *testing.T) {
	defer trillian.SetLeavesPerStep(300)()
	db, tr := own(t, nil)
	rec := &recorded{t: t}
	cfg := newLog(t, tr, dir(t))
	cfg.Record = rec.record
	d := newDriver(t, cfg)
	queue(t, d, 0, 900)
	run := integrate(t, d, 1)
	awaitSize(t, d, 900)
	rec.check(t, d, 900)
	if err := run.stop(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	queue(t, d, 900, 1700)
	for {
		head, err := d.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if head.Size == 1700 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	// A leaf and its hash are changed, the nodes above are not.
	other := []byte("another entry")
	hash := tlog.RecordHash(other)
	if err := db.Exec(t.Context(), fmt.Sprintf(`UPDATE SequencedLeafData SET MerkleLeafHash = '\x%x' WHERE TreeId = %d AND SequenceNumber = 950;
		UPDATE LeafData SET LeafValue = '\x%x' WHERE (TreeId, LeafIdentityHash) IN
		(SELECT TreeId, LeafIdentityHash FROM SequencedLeafData WHERE TreeId = %d AND SequenceNumber = 950)`, hash[:], cfg.TreeID, other, cfg.TreeID)); err != nil {
		t.Fatal(err)
	}
	var wrong *trillian.RootError
	if err := d.Integrate(t.Context(), 1); !errors.As(err, &wrong) || wrong.Size >= 1700 || wrong.TheirSize != 1700 {
		t.Fatalf("got %v", err)
	}
	if n, _ := d.Reader().IntegratedSize(t.Context()); n != 900 {
		t.Fatalf("size %d counts", n)
	}
}

// TestCollectGarbage removes partial tiles below the published size, and no
// others.
func TestCollectGarbage(t *testing.T) {
	for name, store := range map[string]func(*testing.T) trillian.Store{"directory": dir, "bucket": func(t *testing.T) trillian.Store { return newBucket(t) }} {
		t.Run(name, func(t *testing.T) {
			rec := &recorded{t: t}
			cfg := newLog(t, need(t, postgres), store(t))
			cfg.Record = rec.record
			d := newDriver(t, cfg)
			integrate(t, d, 1)
			for _, size := range []int{100, 300, 600} {
				queue(t, d, len(rec.ids), size)
				awaitSize(t, d, uint64(size))
			}
			there := func(name string) bool {
				_, err := cfg.Store.Get(t.Context(), name)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				return err == nil
			}
			at100, at300, at600 := "tile/0/000.p/100", "tile/0/001.p/44", "tile/0/002.p/88"
			if !there(at100) || !there(at300) || !there(at600) {
				t.Fatal("partial tiles are missing")
			}
			if err := d.CollectGarbage(t.Context(), 300); err != nil {
				t.Fatal(err)
			}
			if there(at100) || there("tile/entries/000.p/100") || !there(at300) || !there(at600) || !there("tile/entries/001.p/44") {
				t.Fatal("not what a checkpoint of 300 leaves over")
			}
			for range 2 {
				if err := d.CollectGarbage(t.Context(), 600); err != nil {
					t.Fatal(err)
				}
			}
			if there(at300) || !there(at600) {
				t.Fatal("not what a checkpoint of 600 leaves over")
			}
			rec.check(t, d, 600)
			// Who asks for a partial tile that is gone gets the full one.
			if raw, err := d.Reader().ReadTile(t.Context(), 0, 0, 100); err != nil || len(raw) != 256*32 {
				t.Fatalf("a partial tile that was collected: %d bytes, %v", len(raw), err)
			}
		})
	}
}

// TestBrokenStore: an integrator does not begin on tiles that are not those of
// its size.
func TestBrokenStore(t *testing.T) {
	base := t.TempDir()
	cfg := newLog(t, need(t, postgres), trillian.Dir(base))
	d := newDriver(t, cfg)
	run := integrate(t, d, 1)
	queue(t, d, 0, 300)
	awaitSize(t, d, 300)
	run.stop()
	for name, damage := range map[string]func([]byte) []byte{
		"tile/0/001.p/44":       func(b []byte) []byte { b[5] ^= 1; return b },
		"tile/1/000.p/1":        func(b []byte) []byte { return b[:31] },
		"tile/entries/001.p/44": func(b []byte) []byte { b[9] ^= 1; return b },
		".state/integrated":     func(b []byte) []byte { return append(b, ' ') },
	} {
		path := filepath.Join(base, filepath.FromSlash(name))
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, gone := range []bool{false, true} {
			if gone {
				err = os.Remove(path)
			} else {
				err = os.WriteFile(path, damage(append([]byte(nil), good...)), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			got := newDriver(t, cfg).Integrate(t.Context(), 2)
			if gone && name == ".state/integrated" {
				if !errors.Is(got, trillian.ErrNoState) {
					t.Errorf("%s is gone: %v", name, got)
				}
			} else if !errors.Is(got, trillian.ErrTampering) {
				t.Errorf("%s damaged (gone: %v): %v", name, gone, got)
			}
			// The same token may come back; restore what was there.
			if err := os.WriteFile(path, good, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestLeftoverTile: a tile that somebody else wrote is not overwritten.
func TestLeftoverTile(t *testing.T) {
	cfg := newLog(t, need(t, postgres), dir(t))
	if err := cfg.Store.Create(t.Context(), trillian.Object{Name: "tile/0/000.p/2", Content: make([]byte, 64)}); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, cfg)
	queue(t, d, 0, 2)
	for {
		if head, err := d.Head(t.Context()); err == nil && head.Size == 2 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	var conflict *trillian.ConflictError
	if err := d.Integrate(t.Context(), 1); !errors.As(err, &conflict) {
		t.Fatal(err)
	}
	if err := d.Queue(t.Context(), id(5), leaf(5)); !errors.Is(err, trillian.ErrTampering) {
		t.Fatalf("a latched driver queues: %v", err)
	}
	if err := d.Latched(); !errors.As(err, &conflict) {
		t.Fatal(err)
	}
}

// TestDurabilityChecks: databases that may lose what they confirm.
func TestDurabilityChecks(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it is about how databases are set, and starts some")
	}
	t.Parallel() // on neighbours of its own
	pg := need(t, func() (*trilliantest.PostgreSQL, error) { return trilliantest.StartPostgreSQL(t.Context(), nil) })
	t.Cleanup(pg.Close)
	check := func(uri string) error {
		conn, err := pgx.Connect(t.Context(), uri)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		return trillian.CheckPostgreSQL(t.Context(), conn)
	}
	if err := check(pg.URI()); err != nil {
		t.Fatal(err)
	}
	if err := check(pg.URI() + "&synchronous_commit=off"); !errors.Is(err, trillian.ErrNotDurable) {
		t.Fatalf("in the URI: %v", err)
	}
	for _, sql := range []string{"ALTER ROLE postgres SET synchronous_commit = off", "ALTER DATABASE trillian SET synchronous_commit = off"} {
		if err := pg.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		if err := check(pg.URI()); !errors.Is(err, trillian.ErrNotDurable) {
			t.Fatalf("%s: %v", sql, err)
		}
		if err := pg.Exec(t.Context(), "ALTER ROLE postgres RESET ALL; ALTER DATABASE trillian RESET ALL"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"fsync", "full_page_writes"} {
		if err := pg.Configure(map[string]string{name: "off"}); err != nil {
			t.Fatal(err)
		}
		if err := pg.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := check(pg.URI()); !errors.Is(err, trillian.ErrNotDurable) {
			t.Fatalf("%s: %v", name, err)
		}
		if err := pg.Configure(map[string]string{name: "on"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := pg.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	standby, err := pg.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer standby.Close()
	if err := check(standby.URI()); !errors.Is(err, trillian.ErrNotDurable) {
		t.Fatalf("a standby: %v", err)
	}

	my := need(t, func() (*trilliantest.MariaDB, error) { return trilliantest.StartMariaDB(t.Context(), nil) })
	t.Cleanup(my.Close)
	cfg, err := mysql.ParseDSN(my.DSN())
	if err != nil {
		t.Fatal(err)
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	if err := trillian.CheckMySQL(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"innodb_flush_log_at_trx_commit = 2", "read_only = 1"} {
		if _, err := db.Exec("SET GLOBAL " + set); err != nil {
			t.Fatal(err)
		}
		if err := trillian.CheckMySQL(t.Context(), db); !errors.Is(err, trillian.ErrNotDurable) {
			t.Fatalf("%s: %v", set, err)
		}
		if _, err := db.Exec("SET GLOBAL innodb_flush_log_at_trx_commit = 1"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEngine: a driver as a log with many frontends uses it.
func TestEngine(t *testing.T) {
	cfg := newLog(t, need(t, postgres), dir(t))
	closed := false
	e := trillian.NewEngine(newDriver(t, cfg), func() error { closed = true; return nil })
	front := trillian.NewEngine(newDriver(t, cfg), nil)
	if e.Name() != front.Name() || e.Name() == trillian.NewEngine(newDriver(t, newLog(t, need(t, postgres), dir(t))), nil).Name() {
		t.Fatal("names do not tell trees apart")
	}
	for i := range 10 {
		if err := front.Queue(t.Context(), id(i), leaf(i)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	rec := &recorded{t: t}
	var sizes []uint64
	err := e.Integrate(ctx, 7, func(ctx context.Context, first uint64, ids [][32]byte, leaves [][]byte) error {
		return rec.record(ctx, trillian.Batch{First: first, IDs: ids, Leaves: leaves})
	}, func(size uint64) {
		if sizes = append(sizes, size); size == 10 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || sizes[0] != 0 {
		t.Fatal(err, sizes)
	}
	if n, err := front.Head(t.Context()); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	rec.check(t, newDriver(t, cfg), 10)
	if raw, err := front.ReadTile(t.Context(), 0, 0, 10); err != nil || len(raw) != 320 {
		t.Fatal(len(raw), err)
	}
	if raw, err := front.ReadEntryBundle(t.Context(), 0, 10); err != nil || len(raw) < 20 {
		t.Fatal(len(raw), err)
	}
	if _, err := front.ReadCheckpoint(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := e.WriteCheckpoint(t.Context(), nil, []byte("one")); err != nil {
		t.Fatal(err)
	}
	if err := e.WriteCheckpoint(t.Context(), nil, []byte("two")); !errors.Is(err, trillian.ErrChanged) {
		t.Fatal(err)
	}
	if raw, err := front.ReadCheckpoint(t.Context()); string(raw) != "one" || err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(e.CollectGarbage(t.Context(), 10), front.Close(), e.Close()); err != nil || !closed {
		t.Fatal(err)
	}
}

// TestStateComesBack: an older state object is back in the store, as a publisher
// that was stopped in the middle of a swap can leave it. The integrator writes
// the same tiles once more, and the size that it tells never goes back.
func TestStateComesBack(t *testing.T) {
	store := dir(t)
	rec := &recorded{t: t}
	cfg := newLog(t, need(t, postgres), store)
	cfg.Record = rec.record
	var last atomic.Uint64
	cfg.Grown = func(size uint64) {
		if was := last.Swap(size); was > size {
			t.Errorf("the size went from %d back to %d", was, size)
		}
	}
	d := newDriver(t, cfg)
	integrate(t, d, 7)
	old, err := store.Get(t.Context(), ".state/integrated")
	if err != nil {
		t.Fatal(err)
	}
	queue(t, d, 0, 300)
	awaitSize(t, d, 300)
	now, err := store.Get(t.Context(), ".state/integrated")
	if err == nil {
		err = store.Swap(t.Context(), ".state/integrated", now, old)
	}
	if err != nil {
		t.Fatal(err)
	}
	queue(t, d, 300, 310)
	awaitSize(t, d, 310)
	rec.check(t, d, 310)
	if n, err := newDriver(t, cfg).Reader().IntegratedSize(t.Context()); n != 310 || err != nil {
		t.Fatal(n, err)
	}
}
