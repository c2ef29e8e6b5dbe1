package witness

// One suite, both stores: a test that calls eachStore runs on SQLite, and on a
// real PostgreSQL wherever one is installed.

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/logserver/trillian/trilliantest"
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

func startPostgres(t testing.TB, settings map[string]string) *trilliantest.PostgreSQL {
	t.Helper()
	db, err := trilliantest.StartPostgreSQL(context.Background(), settings)
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
		sharedPostgres.PostgreSQL = startPostgres(t, nil)
	}
	sharedPostgres.n++
	name := fmt.Sprintf("witness%d", sharedPostgres.n)
	if err := sharedPostgres.CreateDatabase(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(sharedPostgres.URI())
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}

// eachStore runs a test on each store, with a witness that has one log.
func eachStore(t *testing.T, test func(t *testing.T, r *rig)) {
	eachNew(t, func(t *testing.T, newRig func(testing.TB) *rig) { test(t, newRig(t)) })
}

// eachNew is eachStore for tests that make witnesses themselves.
func eachNew(t *testing.T, test func(t *testing.T, newRig func(testing.TB) *rig)) {
	t.Run("SQLite", func(t *testing.T) { test(t, newRig) })
	t.Run("PostgreSQL", func(t *testing.T) {
		test(t, func(t testing.TB) *rig { return newPostgresRig(t, newDatabase(t)) })
	})
}

// newPostgresRig is newRig with its state in the empty database at uri.
func newPostgresRig(t testing.TB, uri string) *rig {
	t.Helper()
	r := &rig{t: t, clock: &clock{t: noon}, log: newLog(t, "example.com/log"), signed: map[string]map[uint64][32]byte{}}
	d, err := CreateDirOn(t.Context(), filepath.Join(t.TempDir(), "w"), "witness.example/w1", uri, noon.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	r.withMark(d)
	t.Cleanup(func() { r.dir.Close() })
	r.trust(r.log)
	return r
}

// withMark is use with a new mark for d.
func (r *rig) withMark(d *Dir) {
	r.t.Helper()
	r.mark = filepath.Join(r.t.TempDir(), "mark")
	if err := d.Store.CreateMark(context.Background(), r.mark); err != nil {
		r.t.Fatal(err)
	}
	r.use(d)
}

// another opens the state of r once more, as another program does: on PostgreSQL
// it is another instance.
func (r *rig) another() *rig {
	r.t.Helper()
	second := &rig{t: r.t, clock: r.clock, log: r.log, signed: r.signed}
	d, err := OpenDir(r.dir.Path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { second.dir.Close() })
	if !d.Store.postgres {
		second.use(d)
		return second
	}
	second.withMark(d)
	if err := r.dir.Store.look(context.Background()); err != nil { // as it does by itself, half a second later
		r.t.Fatal(err)
	}
	return second
}
