package witness

// What a database on another machine can do to a witness, done to a real one.

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
)

// A switchboard is the address under which instances find their database: what
// answers there changes, as a name or a virtual address does.
type switchboard struct {
	lis net.Listener

	mu    sync.Mutex
	to    string     // guarded by mu
	conns []net.Conn // guarded by mu
}

func newSwitchboard(t *testing.T, to *trilliantest.PostgreSQL) *switchboard {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &switchboard{lis: lis}
	b.plug(t, to)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			in, err := lis.Accept()
			if err != nil {
				return
			}
			b.mu.Lock()
			out, err := net.Dial("tcp", b.to)
			if err != nil {
				in.Close()
				b.mu.Unlock()
				continue
			}
			b.conns = append(b.conns, in, out)
			b.mu.Unlock()
			running.Go(func() { io.Copy(in, out); in.Close() })
			running.Go(func() { io.Copy(out, in); out.Close() })
		}
	})
	t.Cleanup(func() {
		lis.Close()
		b.cut()
		running.Wait()
	})
	return b
}

// plug sends the next connections to another server, and cuts those there are.
func (b *switchboard) plug(t *testing.T, to *trilliantest.PostgreSQL) {
	t.Helper()
	u, err := url.Parse(to.URI())
	if err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.to = u.Host
	b.mu.Unlock()
	b.cut()
}

func (b *switchboard) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		c.Close()
	}
	b.conns = nil
}

// database makes an empty database on a server, found through the switchboard.
func (b *switchboard) database(t *testing.T, db *trilliantest.PostgreSQL, name string) string {
	t.Helper()
	if err := db.CreateDatabase(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return "postgres://postgres@" + b.lis.Addr().String() + "/" + name + "?sslmode=disable"
}

// sign has the next checkpoint cosigned, and returns why not.
func (r *rig) sign() error {
	r.t.Helper()
	var size uint64
	if l, err := r.dir.Store.Log(context.Background(), r.log.origin); err != nil {
		return err
	} else if l.Head != nil {
		size = l.Head.Size
	}
	lines, err := r.w.AddCheckpoint(context.Background(), r.log.request(size, size+1))
	if err == nil {
		r.enter(r.log.checkpoint(size+1), string(lines))
	}
	return err
}

// signs waits until it does: connections that were cut are found out one by one.
func (r *rig) signs() {
	r.t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = r.sign(); err == nil {
			return
		}
	}
	r.t.Fatalf("waited 30 s for a cosignature: %v", err)
}

// refuses waits until it refuses with this error, which says what to do, and
// fails when it signs.
func (r *rig) refuses(want error, repair string) {
	r.t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = r.sign(); err == nil {
			r.t.Fatalf("cosigned; want %v", want)
		}
		if errors.Is(err, want) && strings.Contains(err.Error(), repair) {
			if err := r.dir.Store.Ping(context.Background()); !errors.Is(err, want) {
				r.t.Errorf("it says that it is well: %v", err)
			}
			return
		}
	}
	r.t.Fatalf("waited 30 s for %v (%s): %v", want, repair, err)
}

// An instance of a witness signs on the database server that all instances have
// found not to be behind their marks, and on no other.
func TestRestoredDatabase(t *testing.T) {
	t.Parallel()
	db := startPostgres(t, nil)
	defer db.Close()
	board := newSwitchboard(t, db)

	t.Run("server killed", func(t *testing.T) {
		a := newPostgresRig(t, board.database(t, db, "killed"))
		b := a.another()
		for range 3 {
			a.signs()
			b.signs()
			db.Kill()
			if err := a.sign(); err == nil {
				t.Fatal("cosigned without a database")
			}
			if err := db.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			board.cut()
			a.signs() // once b has confirmed the server, by itself
		}
		a.audit(a.log.origin)
	})

	t.Run("an instance is away when the server starts again", func(t *testing.T) {
		a := newPostgresRig(t, board.database(t, db, "away"))
		b := a.another()
		b.signs()
		if err := b.dir.Close(); err != nil {
			t.Fatal(err)
		}
		a.signs() // nobody needs to be there while the server runs
		if err := db.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		board.cut()
		a.refuses(ErrUnconfirmed, "instances --forget")
		list, err := a.dir.Store.Instances(t.Context())
		if err != nil || len(list) != 2 || !list[0].Confirmed || list[1].Confirmed {
			t.Errorf("%+v %v", list, err)
		}
		b.restart()
		a.signs()

		// It is gone for good, and its operator says so.
		if err := b.dir.Close(); err != nil {
			t.Fatal(err)
		}
		if err := db.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		board.cut()
		a.refuses(ErrUnconfirmed, list[1].ID)
		// Nobody can come in its place meanwhile: that would count as it did.
		if err := a.dir.Store.CreateMark(t.Context(), filepath.Join(t.TempDir(), "mark")); !errors.Is(err, ErrUnconfirmed) {
			t.Errorf("an instance was made: %v", err)
		}
		if err := a.dir.Store.ForgetInstance(t.Context(), list[1].ID); err != nil {
			t.Fatal(err)
		}
		a.signs()
		d, err := OpenDir(b.dir.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := d.Store.UseMark(t.Context(), b.mark); !errors.Is(err, ErrOldState) || !strings.Contains(err.Error(), "taken out") {
			t.Errorf("who was taken out is back: %v", err)
		}
	})

	t.Run("a new instance waits until the others know", func(t *testing.T) {
		a := newPostgresRig(t, board.database(t, db, "joins"))
		a.signs()
		b := a.another()
		if err := a.dir.Close(); err != nil {
			t.Fatal(err)
		}
		c := &rig{t: t, clock: a.clock, log: a.log, signed: a.signed}
		d, err := OpenDir(a.dir.Path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		c.withMark(d)
		c.refuses(ErrUnconfirmed, "an instance is new")
		b.signs()
		a.restart()
		c.signs()
	})

	t.Run("an old copy of the files", func(t *testing.T) {
		a := newPostgresRig(t, board.database(t, db, "copied"))
		b := a.another()
		a.signs()
		b.signs()
		data := dataDirectory(t, db)
		files := func(args ...string) {
			t.Helper()
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		db.Stop()
		files("cp", "-a", data, data+".old")
		if err := db.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		board.cut()
		a.signs()
		newest := a.head(a.log.origin).Size
		db.Stop()
		files("mv", data, data+".newest")
		files("cp", "-a", data+".old", data)
		if err := db.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		board.cut()
		a.refuses(ErrOldState, "begin a new one, with a new name")
		if err := b.sign(); err == nil { // whether it knows or not
			t.Fatal("the other instance cosigned")
		}
		// Nor after a restart.
		if err := a.dir.Close(); err != nil {
			t.Fatal(err)
		}
		d, err := OpenDir(a.dir.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Store.UseMark(t.Context(), a.mark); !errors.Is(err, ErrOldState) || !strings.Contains(err.Error(), "bring the newest database back") {
			t.Errorf("%v, want %v", err, ErrOldState)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		// The newest is brought back.
		db.Stop()
		files("rm", "-r", data)
		files("mv", data+".newest", data)
		if err := db.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		board.cut()
		a.restart()
		a.signs()
		if size := a.head(a.log.origin).Size; size <= newest {
			t.Errorf("size %d after %d", size, newest)
		}
	})

	t.Run("a standby that misses the last writes is promoted", func(t *testing.T) {
		a := newPostgresRig(t, board.database(t, db, "standby"))
		b := a.another()
		a.signs()
		standby, err := db.Standby(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer standby.Close()
		board.plug(t, standby)
		if err := a.sign(); err == nil {
			t.Fatal("cosigned on a standby")
		}
		if _, err := OpenDir(a.dir.Path); err == nil || !strings.Contains(err.Error(), "standby") {
			t.Errorf("a standby is opened: %v", err)
		}
		board.plug(t, db)
		standby.Kill()
		a.signs()
		db.Kill()
		if err := errors.Join(standby.Start(t.Context()), standby.Promote(t.Context())); err != nil {
			t.Fatal(err)
		}
		board.plug(t, standby)
		a.refuses(ErrOldState, "a standby was promoted")
		if err := b.sign(); err == nil {
			t.Fatal("the other instance cosigned")
		}
	})
	if err := db.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	board.plug(t, db)

	t.Run("two primaries", func(t *testing.T) {
		a := newPostgresRig(t, board.database(t, db, "two"))
		b := a.another()
		a.signs()
		standby, err := db.Standby(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer standby.Close()
		if err := standby.Promote(t.Context()); err != nil {
			t.Fatal(err)
		}
		// b alone is sent to the new one; a does not notice.
		other := newSwitchboard(t, standby)
		uri, err := readSecret(filepath.Join(b.dir.Path, StoreFile))
		if err != nil {
			t.Fatal(err)
		}
		store, err := OpenPostgres(t.Context(), strings.Replace(uri, board.lis.Addr().String(), other.lis.Addr().String(), 1))
		if err != nil {
			t.Fatal(err)
		}
		d := *b.dir
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		d.Store = store
		b.use(&d)
		b.refuses(ErrUnconfirmed, "waiting for")
		a.signs()
		other.plug(t, db)
		b.refuses(ErrOldState, "comes before")
		board.plug(t, standby)
		a.refuses(ErrOldState, "bring the newest database back")
	})
}

// dataDirectory is where a server has its files.
func dataDirectory(t *testing.T, db *trilliantest.PostgreSQL) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.URI())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var dir string
	if err := conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A database that may lose what it has confirmed is refused, at the start and
// under a witness that runs; so is one that is no witness's.
func TestUnsafeDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	signer := mustSigner(t, "witness.example/w1", c2sp.AlgEd25519Cosig)
	r := newPostgresRig(t, newDatabase(t))
	uri, err := readSecret(filepath.Join(r.dir.Path, StoreFile))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	r.signs()
	if err := sharedPostgres.Exec(t.Context(), "ALTER DATABASE "+name+" SET synchronous_commit = off"); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPostgres(t.Context(), uri); !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "set it to on") {
		t.Errorf("synchronous_commit off: %v", err)
	}
	if err := sharedPostgres.Exec(t.Context(), "ALTER DATABASE "+name+" RESET synchronous_commit"); err != nil {
		t.Fatal(err)
	}

	db := startPostgres(t, map[string]string{"fsync": "off"})
	defer db.Close()
	if _, err := CreatePostgres(t.Context(), db.FrontendURI(), []*c2sp.Key{signer.Key()}, noon); !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "fsync") {
		t.Errorf("fsync off: %v", err)
	}
	if err := db.Configure(map[string]string{"fsync": "on"}); err != nil {
		t.Fatal(err)
	}
	if err := db.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	running := newPostgresRig(t, db.FrontendURI())
	running.signs()
	for _, unsafe := range []string{"synchronous_commit", "full_page_writes"} {
		for _, sql := range []string{"ALTER SYSTEM SET " + unsafe + " = off", "SELECT pg_reload_conf()"} {
			if err := db.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, func() bool { return running.sign() != nil })
		running.refuses(ErrUnsafe, unsafe)
		for _, sql := range []string{"ALTER SYSTEM RESET " + unsafe, "SELECT pg_reload_conf()"} {
			if err := db.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		running.signs()
	}

	// Trillian's database, and an empty one.
	if _, err := CreatePostgres(t.Context(), db.URI(), []*c2sp.Key{signer.Key()}, noon); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("another program's database: %v", err)
	}
	if _, err := CreatePostgres(t.Context(), uri, []*c2sp.Key{signer.Key()}, noon); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("made twice: %v", err)
	}
	if _, err := OpenPostgres(t.Context(), db.URI()); !errors.Is(err, ErrNoState) || !strings.Contains(err.Error(), "begin a new one") {
		t.Errorf("another program's database: %v", err)
	}
	// Nor does it sign without a mark, or with the mark of a witness on SQLite.
	d, err := OpenDir(r.dir.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Store.advance(t.Context(), r.log.origin, nil, Head{Size: 1, Time: noon}); err == nil || !strings.Contains(err.Error(), "only with a mark") {
		t.Errorf("without a mark: %v", err)
	}
	single, path := marked(t)
	if err := d.Store.UseMark(t.Context(), path); !errors.Is(err, ErrNoMark) {
		t.Errorf("another witness's mark: %v", err)
	}
	if err := single.dir.Store.UseMark(t.Context(), r.mark); err == nil {
		t.Error("a mark of PostgreSQL on SQLite")
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited 30 s")
		}
	}
}

// What one log cannot have written does not stop the others.
func TestRefusedHeadFailsAlone(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		other := newLog(t, "example.com/other")
		r.trust(other)
		store := r.dir.Store
		to := func(l *testLog, at time.Time) Head {
			return Head{Size: 1, Root: l.tree.root(1), Time: at, Note: l.note(l.checkpoint(1))}
		}
		batch := []*advance{
			{ctx: t.Context(), origin: r.log.origin, to: to(r.log, time.Unix(0, 0))}, // no time for a cosignature
			{ctx: t.Context(), origin: other.origin, to: to(other, noon)},
			{ctx: t.Context(), origin: "example.com/nobody", to: to(other, noon)},
		}
		write := store.writeTogether
		if store.postgres {
			write = store.writeShared
		}
		results, err := write(batch)
		if err != nil {
			t.Fatal(err)
		}
		if results[0] == nil || results[1] != nil || results[2] == nil || errors.Is(results[0], errMoved) || errors.Is(results[2], errMoved) {
			t.Errorf("%v", results)
		}
		if r.head(other.origin) == nil || r.head(r.log.origin) != nil {
			t.Error("the heads are not what was reported")
		}
	})
}
