package logserver

// A shared log for the tests: real PostgreSQL, any number of frontends, and an
// engine in memory that keeps its tiles in a directory.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
	"golang.org/x/mod/sumdb/tlog"
)

// sharedPostgres is one server for all tests that do not break it.
var sharedPostgres struct {
	sync.Mutex
	*trilliantest.PostgreSQL // guarded by Mutex
	n                        int
}

func stopSharedPostgres() {
	if sharedPostgres.PostgreSQL != nil {
		sharedPostgres.Close()
	}
}

func startPostgres(t testing.TB) *trilliantest.PostgreSQL {
	t.Helper()
	db, err := trilliantest.StartPostgreSQL(context.Background(), nil)
	if trilliantest.Skippable(err) {
		t.Skipf("PostgreSQL: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// newDatabase is an empty database on a server that the tests share.
func newDatabase(t testing.TB) string {
	t.Helper()
	sharedPostgres.Lock()
	defer sharedPostgres.Unlock()
	if sharedPostgres.PostgreSQL == nil {
		sharedPostgres.PostgreSQL = startPostgres(t)
	}
	sharedPostgres.n++
	name := fmt.Sprintf("shared%d", sharedPostgres.n)
	if err := sharedPostgres.CreateDatabase(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	cfg, err := pgx.ParseConfig(sharedPostgres.FrontendURI())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("postgres://%s@%s:%d/%s", cfg.User, cfg.Host, cfg.Port, name)
}

// memEngine implements SharedEngine in memory, as Trillian does: what is queued
// is ordered a moment later, each id once.
type memEngine struct {
	dir directory

	mu      sync.Mutex
	held    bool // what is queued is not ordered
	lose    bool // what is queued is dropped without a word
	queue   []memLeaf
	order   []memLeaf
	has     map[[32]byte]bool
	hashes  memHashes // of what has tiles
	tiled   uint64
	fence   uint64
	queued  int // calls of Queue
	readErr error
}

type memLeaf struct {
	id   [32]byte
	leaf []byte
}

type memHashes []tlog.Hash

func (m memHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = m[x]
	}
	return out, nil
}

func newMemEngine(dir string) *memEngine {
	return &memEngine{dir: directory(dir), has: map[[32]byte]bool{}}
}

func (e *memEngine) Name() string { return "memory " + string(e.dir) }
func (e *memEngine) Close() error { return nil }

func (e *memEngine) Queue(_ context.Context, id [32]byte, leaf []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queued++
	if e.lose || e.has[id] {
		return nil
	}
	e.has[id] = true
	e.queue = append(e.queue, memLeaf{id, bytes.Clone(leaf)})
	return nil
}

func (e *memEngine) hold(on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.held = on
}

func (e *memEngine) sequence() []memLeaf {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.held {
		e.order = append(e.order, e.queue...)
		e.queue = nil
	}
	return e.order
}

func (e *memEngine) Head(context.Context) (uint64, error) { return uint64(len(e.sequence())), nil }

func (e *memEngine) Integrate(ctx context.Context, fence uint64, record func(context.Context, uint64, [][32]byte, [][]byte) error, grown func(uint64)) error {
	for first := true; ; first = false {
		order := e.sequence()
		e.mu.Lock()
		from := e.tiled
		used := e.fence
		e.fence = max(e.fence, fence)
		e.mu.Unlock()
		if fence < used {
			return fmt.Errorf("fence %d was used", used)
		}
		if first {
			grown(from)
		}
		if uint64(len(order)) < from {
			return errors.New("the order went back")
		}
		if len(order) > int(from) {
			if err := e.write(from, order); err != nil {
				return err
			}
			var ids [][32]byte
			var leaves [][]byte
			for _, l := range order[from:] {
				ids, leaves = append(ids, l.id), append(leaves, l.leaf)
			}
			if err := record(ctx, from, ids, leaves); err == nil {
				e.mu.Lock()
				e.tiled = max(e.tiled, uint64(len(order)))
				e.mu.Unlock()
				grown(uint64(len(order)))
				continue
			} else if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		if !sleep(ctx, 2*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// write makes the tiles of all that is in order.
func (e *memEngine) write(from uint64, order []memLeaf) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hashes = e.hashes[:tlog.StoredHashCount(int64(from))]
	for i := from; i < uint64(len(order)); i++ {
		h, err := tlog.StoredHashes(int64(i), order[i].leaf, e.hashes)
		if err != nil {
			return err
		}
		e.hashes = append(e.hashes, h...)
	}
	put := func(t c2sp.Tile, raw []byte) error {
		path := filepath.Join(string(e.dir), filepath.FromSlash(t.Path()))
		if have, err := os.ReadFile(path); err == nil {
			if !bytes.Equal(have, raw) {
				return fmt.Errorf("%s is there with other bytes", t.Path())
			}
			return nil
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return writeDurably(path, raw, 0o644)
	}
	for _, t := range tlog.NewTiles(8, int64(from), int64(len(order))) {
		raw, err := tlog.ReadTileData(t, e.hashes)
		if err != nil {
			return err
		}
		if err := put(c2sp.Tile{Level: t.L, Index: uint64(t.N), Width: t.W}, raw); err != nil {
			return err
		}
		if t.L == 0 {
			var bundle []byte
			for _, l := range order[t.N*tileWidth : t.N*tileWidth+int64(t.W)] {
				bundle = append(binary.BigEndian.AppendUint16(bundle, uint16(len(l.leaf))), l.leaf...)
			}
			if err := put(c2sp.Tile{Level: -1, Index: uint64(t.N), Width: t.W}, bundle); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *memEngine) ReadTile(ctx context.Context, level, index uint64, p uint8) ([]byte, error) {
	return e.dir.ReadTile(ctx, level, index, p)
}

func (e *memEngine) ReadEntryBundle(ctx context.Context, index uint64, p uint8) ([]byte, error) {
	return e.dir.ReadEntryBundle(ctx, index, p)
}

func (e *memEngine) ReadCheckpoint(context.Context) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(e.dir), "checkpoint"))
}

func (e *memEngine) WriteCheckpoint(_ context.Context, was, raw []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	have, err := os.ReadFile(filepath.Join(string(e.dir), "checkpoint"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !bytes.Equal(have, was) {
		return errors.New("the checkpoint was changed by somebody else")
	}
	return writeDurably(filepath.Join(string(e.dir), "checkpoint"), raw, 0o644)
}

func (e *memEngine) CollectGarbage(_ context.Context, published uint64) error {
	for n := range published / tileWidth {
		for _, level := range []int{-1, 0} {
			full := c2sp.Tile{Level: level, Index: n, Width: tileWidth}
			if _, err := os.Stat(filepath.Join(string(e.dir), filepath.FromSlash(full.Path()))); err != nil {
				return err
			}
			if err := os.RemoveAll(filepath.Join(string(e.dir), filepath.FromSlash(full.Path()+".p"))); err != nil {
				return err
			}
		}
	}
	return nil
}

// sharedRig is a shared log with real witnesses.
type sharedRig struct {
	*rig
	engine   *memEngine
	database string
	n        int
}

func newSharedRig(t testing.TB, witnesses, quorum int) *sharedRig {
	return newSharedRigOn(t, witnesses, quorum, newDatabase(t))
}

func newSharedRigOn(t testing.TB, witnesses, quorum int, database string) *sharedRig {
	t.Helper()
	r := &sharedRig{rig: newRig(t, witnesses, quorum), database: database}
	tiles := filepath.Join(filepath.Dir(r.dir), "tiles")
	if err := os.Mkdir(tiles, 0o755); err != nil {
		t.Fatal(err)
	}
	r.engine = newMemEngine(tiles)
	if err := InitShared(t.Context(), r.database, r.engine, r.signer.Key()); err != nil {
		t.Fatal(err)
	}
	return r
}

// config is that of one more frontend, which may be elected.
func (r *sharedRig) config() Config {
	cfg := r.rig.config()
	r.n++
	cfg.Dir = filepath.Join(filepath.Dir(r.dir), fmt.Sprintf("frontend%d", r.n))
	cfg.Logger = cfg.Logger.With("frontend", r.n)
	cfg.Shared = &SharedConfig{Database: r.database, Engine: r.engine, Name: fmt.Sprintf("frontend %d", r.n)}
	return cfg
}

func (r *sharedRig) open(change ...func(*Config)) *Log {
	r.t.Helper()
	cfg := r.config()
	for _, c := range change {
		c(&cfg)
	}
	l, err := Open(r.t.Context(), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	return l
}

func (r *sharedRig) ready(change ...func(*Config)) *Log {
	r.t.Helper()
	l := r.open(change...)
	waitFor(r.t, "the frontend to take submissions", func() bool { return l.Status().Writable })
	return l
}

func frontendOnly(c *Config) { c.Signer = nil }

// pool is a connection of the test's own.
func (r *sharedRig) pool() *pgxpool.Pool {
	r.t.Helper()
	pool, err := openDB(r.t.Context(), r.database)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(pool.Close)
	return pool
}

// rows is all that the database says about the log, as rows of an embedded log.
func (r *sharedRig) rows() string {
	r.t.Helper()
	var out string
	pool := r.pool()
	for _, q := range []string{
		"SELECT coalesce(string_agg(upper(encode(key, 'hex')) || ' ' || upper(encode(digest, 'hex')) || ' ' || idx || ' ' || removed::int || E'\\n', '' ORDER BY key), '') FROM slots WHERE digest <> ''",
		"SELECT coalesce(string_agg(registry || ' ' || ecosystem || ' ' || overwrite || E'\\n', '' ORDER BY 1), '') FROM policies",
		"SELECT 'tail ' || integrated || E'\\n' FROM log",
		"SELECT coalesce(string_agg('reserved ' || upper(encode(key, 'hex')) || E'\\n', ''), '') FROM submissions WHERE idx IS NULL",
	} {
		var s string
		if err := pool.QueryRow(r.t.Context(), q).Scan(&s); err != nil {
			r.t.Fatal(err)
		}
		out += s
	}
	return out
}
