package logserver

// What a shared log survives: a paused publisher, a database that restarts, goes
// back or forgets, frontends that die, credentials that are revoked.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// TestSharedSubmit: any frontend answers with index and proof, also one without
// the key; equal entries at all frontends at once get one index.
func TestSharedSubmit(t *testing.T) {
	r := newSharedRig(t, 3, 2)
	logs := []*Log{r.ready(), r.ready(frontendOnly), r.ready()}
	by := r.all(entry.ClaimIndex)
	const entries = 40
	var mu sync.Mutex
	got := map[int]map[uint64]bool{}
	var wg sync.WaitGroup
	for w, l := range logs {
		for k := range 2 {
			wg.Go(func() {
				for i := range entries {
					n := (i*7 + w*13 + k*19) % entries
					ack, err := l.Submit(t.Context(), by, nth(n), Cosigned)
					if err != nil {
						t.Errorf("entry %d at frontend %d: %v", n, w, err)
						return
					}
					r.check(ack)
					mu.Lock()
					if got[n] == nil {
						got[n] = map[uint64]bool{}
					}
					got[n][ack.Index] = true
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	seen := map[uint64]bool{}
	for n, at := range got {
		if len(at) != 1 {
			t.Errorf("entry %d has the indexes %v", n, at)
		}
		for i := range at {
			if seen[i] {
				t.Errorf("index %d was acknowledged for two entries", i)
			}
			seen[i] = true
		}
	}
	if size := logs[0].Published().Size; size != entries {
		t.Errorf("the log has %d entries, want %d", size, entries)
	}
	// Frontends agree on everything else they say.
	for i, l := range logs {
		l.Close()
		if want := int64(entries); int64(l.Published().Size) != want {
			t.Errorf("frontend %d knows %d entries, want %d", i, l.Published().Size, want)
		}
	}
}

// pausing makes one hook of a term wait, once: what a publisher that is stopped
// there, and goes on later, does.
type pausing struct {
	armed   atomic.Bool
	reached chan struct{}
	resume  chan struct{}
}

func newPausing() *pausing {
	return &pausing{reached: make(chan struct{}), resume: make(chan struct{})}
}

func (p *pausing) hook() {
	if p.armed.CompareAndSwap(true, false) {
		close(p.reached)
		<-p.resume
	}
}

// TestPausedPublisherIsRefused stops a publisher in front of each of its writes,
// elects another one, lets it publish more, and wakes the first: its write is
// refused, and nothing that anybody can see goes back or forks.
func TestPausedPublisherIsRefused(t *testing.T) {
	for _, where := range []string{"anchor", "index rows", "checkpoint"} {
		t.Run(where, func(t *testing.T) {
			r := newSharedRig(t, 3, 2)
			p := newPausing()
			var old *shared
			a := r.open(func(c *Config) {
				switch where {
				case "anchor":
					c.Shared.testBeforeSwap = p.hook
				case "index rows":
					c.Shared.testBeforeCommit = p.hook
				case "checkpoint":
					c.Shared.testBeforePublish = p.hook
				}
			})
			old = a.shared
			waitFor(t, "the first publisher", func() bool { return a.Status().Writable })
			b := r.open()
			by := r.all(entry.ClaimIndex)
			r.must2(a, by, nth(0))
			watch := r.watch()

			p.armed.Store(true)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var stuck sync.WaitGroup
			stuck.Go(func() { // acknowledged in the end, by whichever publisher
				ack, err := b.Submit(ctx, by, nth(1), Cosigned)
				if err != nil {
					t.Errorf("the submission that met the pause: %v", err)
					return
				}
				r.check(ack)
			})
			<-p.reached
			// A process that is stopped sends no sign of life, so the database ends its
			// session. Here only its writing goroutine is stopped: end it by hand.
			r.endElectionSession()
			waitFor(t, "the second publisher", func() bool { return r.fence() == 2 })
			stuck.Wait()
			r.must2(b, by, nth(2))
			before := r.rows() + r.anchorText() + r.published()
			close(p.resume)
			waitFor(t, "the first to hear that it is deposed", func() bool { return r.deposed(old) })
			time.Sleep(200 * time.Millisecond)
			if after := r.rows() + r.anchorText() + r.published(); after != before {
				t.Errorf("the paused publisher changed\n%s\ninto\n%s", before, after)
			}
			if a.Status().Latched || b.Status().Latched {
				t.Error("a deposed publisher is no failed guard")
			}
			r.must2(a, by, nth(3))
			watch()
		})
	}
}

// must2 is must for a credential of the test's own.
func (r *sharedRig) must2(l *Log, by Token, e *entry.Entry) *Ack {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		ack, err := l.Submit(ctx, by, e, Cosigned)
		if err == nil {
			r.check(ack)
			return ack
		}
		if ctx.Err() != nil || !errors.Is(err, ErrReadOnly) && !errors.Is(err, ErrStorage) && !errors.Is(err, ErrNotPublished) {
			r.t.Fatalf("submit %s: %v", e.File, err)
		}
		time.Sleep(20 * time.Millisecond) // as a client does
	}
}

func (r *sharedRig) query(sql string, args ...any) (s string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, r.database)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close(ctx)
	if err := c.QueryRow(ctx, sql, args...).Scan(&s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *sharedRig) exec(sql string, args ...any) {
	r.t.Helper()
	r.query("WITH x AS ("+sql+" RETURNING 1) SELECT count(*)::text FROM x", args...)
}

func (r *sharedRig) fence() int {
	return len(r.query("SELECT repeat('x', fence::int) FROM anchor"))
}

func (r *sharedRig) anchorText() string {
	return r.query("SELECT size || ' ' || encode(root, 'hex') || ' ' || fence || ' ' || holder FROM anchor")
}

func (r *sharedRig) published() string {
	return r.query("SELECT published || ' ' || convert_from(checkpoint, 'UTF8') FROM log")
}

// endElectionSession does to the publisher's session what the database does to
// one that is silent.
func (r *sharedRig) endElectionSession() {
	r.t.Helper()
	if n := r.query(`SELECT count(pg_terminate_backend(pid))::text FROM pg_locks JOIN pg_database d ON d.oid = database
		WHERE datname = current_database() AND locktype = 'advisory' AND classid = $1 AND objid = $2 AND granted`, lockClass, lockElection); n != "1" {
		r.t.Fatalf("%s sessions hold the election's lock", n)
	}
}

// deposed reports whether a frontend knows that it is no longer the publisher:
// it stands for election again.
func (r *sharedRig) deposed(s *shared) bool { return s.terms.Load() == 0 }

// watch notes every checkpoint that anybody shows until the returned function is
// called, which checks that all are of one history and sizes never fall.
func (r *sharedRig) watch() (check func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	seen := map[string][][]byte{}
	note := func(who string, raw []byte) {
		mu.Lock()
		defer mu.Unlock()
		if list := seen[who]; len(raw) > 0 && (len(list) == 0 || !bytes.Equal(list[len(list)-1], raw)) {
			seen[who] = append(list, raw)
		}
	}
	path := "/" + c2sp.OriginHash(r.signer.Key().Name()) + "/checkpoint" // a test may change the signer
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			raw, _ := r.engine.ReadCheckpoint(ctx)
			note("directory", raw)
			note("database", []byte(strings.SplitN(r.published(), " ", 2)[1]))
			for _, w := range r.witnesses {
				res, err := http.Get(w.server.URL + path)
				if err != nil {
					continue
				}
				if raw, err := io.ReadAll(res.Body); err == nil && res.StatusCode == http.StatusOK {
					note(w.name, raw)
				}
				res.Body.Close()
			}
			sleep(ctx, 10*time.Millisecond)
		}
	})
	return func() {
		r.t.Helper()
		cancel()
		wg.Wait()
		roots := map[uint64][32]byte{}
		for who, list := range seen {
			var last uint64
			for _, raw := range list {
				n, err := c2sp.ParseNote(raw)
				if err != nil {
					r.t.Fatal(err)
				}
				cp, err := c2sp.ParseCheckpoint(n.Text)
				if err != nil {
					r.t.Fatal(err)
				}
				if cp.Size < last && who != "directory" { // see TestLateDirectoryCheckpoint
					r.t.Errorf("%s went from size %d back to %d", who, last, cp.Size)
				}
				last = cp.Size
				if root, ok := roots[cp.Size]; ok && root != cp.Root {
					r.t.Errorf("size %d has two roots", cp.Size)
				}
				roots[cp.Size] = cp.Root
				tree := tree{context.Background(), r.engine, int64(cp.Size), nil}
				if root, err := tree.root(); err != nil || root != cp.Root {
					r.t.Errorf("%s showed size %d with root %x; the tiles say %x, %v", who, cp.Size, cp.Root, root, err)
				}
			}
		}
		if len(roots) == 0 {
			r.t.Error("no checkpoint was seen")
		}
	}
}

// TestSilentPublisherIsReplaced: the database ends the session of a publisher
// that gives no sign of life, although its connection stays open.
func TestSilentPublisherIsReplaced(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	cfg, err := pgx.ParseConfig(r.database)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["idle_session_timeout"] = fmt.Sprint(sessionLimit.Milliseconds()) // as campaign's
	silent, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close(context.Background())
	if _, err := silent.Exec(t.Context(), "SELECT pg_advisory_lock($1, $2)", lockClass, lockElection); err != nil {
		t.Fatal(err)
	}
	l := r.open()
	if l.Status().Writable {
		t.Fatal("elected while another session holds the lock")
	}
	start := time.Now()
	waitFor(t, "the silent one to be replaced", func() bool { return l.Status().Writable })
	t.Logf("replaced after %v", time.Since(start).Round(time.Millisecond))
}

// TestLateDirectoryCheckpoint: a deposed publisher that was past its last look at
// the database can put an older checkpoint beside the tiles; frontends do not
// show it, and the publisher of now replaces it.
func TestLateDirectoryCheckpoint(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.must2(l, by, nth(0))
	older := l.Published().Note
	r.must2(l, by, nth(1))
	newest := l.Published().Note
	waitFor(t, "the checkpoint beside the tiles", func() bool { raw, _ := r.engine.ReadCheckpoint(t.Context()); return bytes.Equal(raw, newest) })
	if err := r.engine.WriteCheckpoint(t.Context(), newest, older); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(l.Published().Note, newest) {
		t.Error("a frontend shows what is beside the tiles")
	}
	waitFor(t, "the newest to be back", func() bool { raw, _ := r.engine.ReadCheckpoint(t.Context()); return bytes.Equal(raw, newest) })
}

// TestFrontendsDirectoryIsNoLog: what works on a log in a directory refuses a
// frontend's, and says why.
func TestFrontendsDirectoryIsNoLog(t *testing.T) {
	r := newSharedRig(t, 0, 0)
	l := r.ready()
	dir := l.cfg.Dir
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string]func() error{
		"read its identity": func() error { _, err := ReadIdentity(dir); return err },
		"rebuild its index": func() error { _, err := RebuildIndex(t.Context(), dir, nil); return err },
		"be a successor":    func() error { return AwaitPredecessor(dir, "log.example/other") },
		"serve it alone": func() error {
			cfg := r.rig.config()
			cfg.Dir = dir
			_, err := Open(t.Context(), cfg)
			return err
		},
	} {
		if err := do(); !errors.Is(err, ErrNoLog) || !strings.Contains(err.Error(), "frontend of a shared log") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := Init(t.Context(), dir, r.anchor+"2", r.signer.Key()); err == nil {
		t.Error("a log was made in a frontend's directory")
	}
}

// TestSharedGarbageIsCollected: partial tiles go once full ones are published,
// and whoever has an older checkpoint can still prove with it.
func TestSharedGarbageIsCollected(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.must2(l, by, nth(0))
	r.must2(l, by, nth(1))
	older := l.Published()
	partials := func() int {
		var found []string
		for _, kind := range []string{"0", "entries"} {
			some, err := filepath.Glob(filepath.Join(string(r.engine.dir), "tile", kind, "000.p", "*"))
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, some...)
		}
		return len(found)
	}
	if partials() == 0 {
		t.Fatal("no partial tiles to begin with")
	}
	var group sync.WaitGroup
	for n := 2; n < 256; n++ {
		group.Go(func() { r.must2(l, by, nth(n)) })
	}
	group.Wait()
	waitFor(t, "the partial tiles to go", func() bool { return partials() == 0 })
	if _, err := l.prove(t.Context(), older, 1, nil); err != nil {
		t.Errorf("with an older checkpoint: %v", err)
	}
	r.must2(l, by, nth(256))
}

// TestDeadFrontendsEntriesAreSwept: what a frontend reserved and did not queue
// is queued by the publisher, once; who submits it meanwhile joins it.
func TestDeadFrontendsEntriesAreSwept(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	a := r.ready()
	dying := r.ready(frontendOnly)
	by := r.all(entry.ClaimIndex)
	died := make(chan struct{})
	dying.seq.(*sharedSequencer).testDecided = func() { // it never gets to queue
		close(died)
		<-t.Context().Done()
	}
	go dying.Submit(context.Background(), by, demo("d1"), Cosigned)
	<-died
	if n := strings.Count(r.rows(), "reserved"); n != 1 {
		t.Fatalf("%d reservations", n)
	}
	start := time.Now()
	ack := r.must2(a, by, demo("d1"))
	if ack.Index != 0 || a.Published().Size != 1 {
		t.Errorf("index %d in a log of %d", ack.Index, a.Published().Size)
	}
	t.Logf("swept after %v", time.Since(start).Round(time.Millisecond))
	r.step(a, by, demo("d2"), conflictWith(0))
}

// TestEngineThatForgets: entries that the engine took and lost are queued again.
func TestEngineThatForgets(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	l := r.ready(func(c *Config) { c.MaxWait = 15 * time.Second })
	by := r.all(entry.ClaimIndex)
	r.engine.mu.Lock()
	r.engine.lose = true
	r.engine.mu.Unlock()
	go func() {
		time.Sleep(500 * time.Millisecond)
		r.engine.mu.Lock()
		r.engine.lose = false
		r.engine.mu.Unlock()
	}()
	if ack := r.must2(l, by, demo("d1")); ack.Index != 0 {
		t.Errorf("index %d", ack.Index)
	}
}

// TestRevokedEverywhere: a revocation at one place bites at every frontend
// within a second.
func TestRevokedEverywhere(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	logs := []*Log{r.ready(), r.ready(frontendOnly), r.ready(frontendOnly)}
	tok, secret, err := logs[0].Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: entry.Kinds()[:1]})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	for i, l := range logs {
		if _, err := l.Tokens.authenticate(t.Context(), presented{bearer: secret}); err != nil {
			t.Fatalf("frontend %d refuses a good token: %v", i, err)
		}
	}
	admin, done, err := OpenSharedTokens(t.Context(), r.database, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	start := time.Now()
	if err := admin.Revoke(tok.ID); err != nil {
		t.Fatal(err)
	}
	for i, l := range logs {
		for {
			_, err := l.Tokens.authenticate(t.Context(), presented{bearer: secret})
			if errors.Is(err, errNoCredential) {
				break
			}
			if time.Since(start) > time.Second {
				t.Fatalf("frontend %d still lets a revoked token in after %v: %v", i, time.Since(start), err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	t.Logf("refused everywhere after %v", time.Since(start).Round(time.Millisecond))
}

// TestSharedInitRefuses what is no place for a new log.
func TestSharedInitRefuses(t *testing.T) {
	r := newSharedRig(t, 0, 0)
	key := r.signer.Key()
	wantErr := func(what, database string, e SharedEngine, want string) {
		t.Helper()
		if err := InitShared(t.Context(), database, e, key); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", what, err, want)
		}
	}
	wantErr("a log twice", r.database, newMemEngine(t.TempDir()), "holds a log already")
	used := newMemEngine(t.TempDir())
	used.Queue(t.Context(), [32]byte{1}, []byte("x"))
	wantErr("an engine with entries", newDatabase(t), used, "begins with an empty tree")
	served := newMemEngine(t.TempDir())
	if err := served.WriteCheckpoint(t.Context(), nil, []byte("x")); err != nil {
		t.Fatal(err)
	}
	wantErr("tiles of another log", newDatabase(t), served, "another log is there")
	wantErr("Trillian's database", sharedPostgres.URI(), newMemEngine(t.TempDir()), "Trillian keeps its trees in")
	wantErr("no connection string", "postgres://%zz", newMemEngine(t.TempDir()), "connection string")

	// What a frontend refuses to serve.
	wantOpen := func(what string, change func(*Config), want string) {
		t.Helper()
		cfg := r.config()
		change(&cfg)
		l, err := Open(t.Context(), cfg)
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", what, err, want)
		}
	}
	wantOpen("an empty database", func(c *Config) { c.Shared.Database = newDatabase(t) }, "the database has no log")
	wantOpen("Trillian's database", func(c *Config) { c.Shared.Database = sharedPostgres.URI() }, "Trillian keeps its trees in")
	wantOpen("another engine", func(c *Config) { c.Shared.Engine = newMemEngine(t.TempDir()) }, "belongs to the log on")
	wantOpen("another key", func(c *Config) {
		s, err := c2sp.GenerateSigner("log.example/test", c2sp.AlgEd25519)
		if err != nil {
			t.Fatal(err)
		}
		c.Signer = s
	}, "key")
	wantOpen("the directory of an embedded log", func(c *Config) { c.Dir = r.dir }, "holds a log of its own")
	other := newSharedRig(t, 0, 0)
	other.open().Close()
	wantOpen("the directory of another log's frontend", func(c *Config) { c.Dir = filepath.Join(filepath.Dir(other.dir), "frontend1") }, "another log")
	r.exec("UPDATE goose_db_version SET version_id = 99 WHERE version_id = 1")
	wantOpen("tables of a newer version", func(*Config) {}, "a newer portbook-log")
}

// TestUnsafeDatabaseIsRefused: synchronous_commit=off, set for the server, the
// database or the role, before the start and under a living frontend.
func TestUnsafeDatabaseIsRefused(t *testing.T) {
	db := startPostgres(t)
	defer db.Close()
	r := newSharedRigOn(t, 1, 1, db.FrontendURI())
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.must2(l, by, nth(0))
	for _, c := range []struct{ name, on, off string }{
		{"server", "ALTER SYSTEM SET synchronous_commit = off", "ALTER SYSTEM RESET synchronous_commit"},
		{"database", "ALTER DATABASE frontend SET synchronous_commit = off", "ALTER DATABASE frontend RESET synchronous_commit"},
		{"role", "ALTER ROLE postgres SET synchronous_commit = off", "ALTER ROLE postgres RESET synchronous_commit"},
	} {
		set := func(sql string) {
			t.Helper()
			for _, q := range []string{sql, "SELECT pg_reload_conf()"} {
				if err := db.Exec(t.Context(), q); err != nil {
					t.Fatal(err)
				}
			}
		}
		set(c.on)
		if c.name == "server" { // it reaches living sessions
			waitFor(t, "the running frontend to notice", func() bool { return !l.Status().Writable })
			if _, err := l.Submit(t.Context(), by, nth(1), Cosigned); !errors.Is(err, ErrReadOnly) || !strings.Contains(err.Error(), "synchronous_commit") {
				t.Errorf("submission to an unsafe database: %v", err)
			}
		}
		// New sessions are refused.
		if l2, err := Open(t.Context(), r.config()); err == nil || !strings.Contains(err.Error(), "synchronous_commit") {
			t.Errorf("%s: opened on an unsafe database: %v", c.name, err)
			if err == nil {
				l2.Close()
			}
		}
		set(c.off)
		waitFor(t, "the frontend to go on", func() bool { return l.Status().Writable })
	}
	r.must2(l, by, nth(1))
	if l.Published().Size != 2 {
		t.Errorf("size %d", l.Published().Size)
	}
	// Also what was changed between the look and the decision.
	if err := db.Configure(map[string]string{"fsync": "off"}); err != nil {
		t.Fatal(err)
	}
	if err := db.Exec(t.Context(), "SELECT pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
	s := nopSubmission(t)
	d := &sharedDecision{q: l.seq.(*sharedSequencer), byKey: map[[32]byte]*sharedFlight{}}
	waitFor(t, "the setting to arrive", func() bool { return r.query("SHOW fsync") == "off" })
	err := pgx.BeginFunc(t.Context(), l.shared.pool, func(tx pgx.Tx) error { return d.inTx(t.Context(), tx, []*submission{s}) })
	if !errors.Is(err, errUnsafe) {
		t.Errorf("decided on a database with fsync=off: %v", err)
	}
}

// TestPromotedStandbyIsRefused: an asynchronous standby that lacks what was
// acknowledged is promoted. No frontend takes a submission, the guard latches.
func TestPromotedStandbyIsRefused(t *testing.T) {
	for _, c := range []struct{ name, lost, want string }{
		{"the checkpoint beside the tiles shows it", "", "shows a published checkpoint of 2 entries, the anchor knows of 1"},
		{"the tiles show it", "checkpoint", "the database knows 1 entries, tiles are written of 2"},
		{"the engine shows it", "checkpoint and tiles", "was never reserved"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			primary := startPostgres(t)
			defer primary.Close()
			r := newSharedRigOn(t, 3, 2, primary.FrontendURI())
			l := r.ready()
			by := r.all(entry.ClaimIndex)
			r.must2(l, by, nth(0))
			standby, err := primary.Standby(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer standby.Close()
			waitFor(t, "the standby to follow", func() bool { return publishedIn(t, standby.FrontendURI()) == "1" })
			standby.Server().Kill() // it hears nothing more
			lost := r.must2(l, by, nth(1))
			if lost.Index != 1 {
				t.Fatal(lost.Index)
			}
			waitFor(t, "the checkpoint beside the tiles", func() bool {
				raw, _ := r.engine.ReadCheckpoint(t.Context())
				return bytes.Equal(raw, l.Published().Note)
			})
			l.Close()
			primary.Server().Kill()
			if err := standby.Server().Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := standby.Promote(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.database = standby.FrontendURI()
			if c.lost != "" {
				if err := os.Remove(filepath.Join(string(r.engine.dir), "checkpoint")); err != nil {
					t.Fatal(err)
				}
			}
			if c.lost == "checkpoint and tiles" {
				r.engine.tiled = 1
			}
			again := r.open(func(c *Config) { c.MaxWait = 2 * time.Second })
			waitFor(t, "the guard to latch", func() bool { return again.Status().Latched })
			if err := again.Status().Reason; !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "outdated standby was promoted") {
				t.Errorf("latched for %v", err)
			}
			// The same entry does not get a second index, nor another digest its slot.
			if ack, err := again.Submit(t.Context(), by, nth(1), Cosigned); !errors.Is(err, ErrReadOnly) {
				t.Errorf("submission: %v, %v", ack, err)
			}
			other := r.open(frontendOnly)
			time.Sleep(2 * followPause)
			if other.Status().Writable {
				t.Error("another frontend takes submissions")
			}
			if got := len(r.engine.sequence()); got != 2 {
				t.Errorf("the engine has %d entries", got)
			}
		})
	}
}

func publishedIn(t testing.TB, database string) string {
	t.Helper()
	c, err := pgx.Connect(t.Context(), database)
	if err != nil {
		return err.Error()
	}
	defer c.Close(t.Context())
	var s string
	if err := c.QueryRow(t.Context(), "SELECT published::text FROM log").Scan(&s); err != nil {
		return err.Error()
	}
	return s
}

// TestNotOpenAfterRestart: after its database has restarted no frontend decides
// before a publisher has made sure of the log.
func TestNotOpenAfterRestart(t *testing.T) {
	db := startPostgres(t)
	defer db.Close()
	r := newSharedRigOn(t, 1, 1, db.FrontendURI())
	pub := r.ready()
	by := r.all(entry.ClaimIndex)
	r.must2(pub, by, nth(0))
	front := r.ready(frontendOnly)
	pub.Close()
	r.must3NotPublished(front, by, nth(1)) // no publisher: reserved, not answered
	db.Server().Kill()
	if err := db.Server().Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * followPause)
	waitFor(t, "the frontend to see the database again", func() bool { return errors.Is(front.Status().Reason, errNotOpen) })
	if _, err := front.Submit(t.Context(), by, nth(2), Cosigned); !errors.Is(err, errNotOpen) {
		t.Errorf("submission without anybody having made sure: %v", err)
	}
	// Not even between the look and the decision.
	s := nopSubmission(t)
	d := &sharedDecision{q: front.seq.(*sharedSequencer), byKey: map[[32]byte]*sharedFlight{}}
	err := pgx.BeginFunc(t.Context(), front.shared.pool, func(tx pgx.Tx) error { return d.inTx(t.Context(), tx, []*submission{s}) })
	if !errors.Is(err, errNotOpen) {
		t.Errorf("decided: %v", err)
	}
	start := time.Now()
	next := r.ready()
	t.Logf("open again %v after a publisher came", time.Since(start).Round(time.Millisecond))
	for i, want := range []uint64{0, 1, 2} {
		if ack := r.must2(front, by, nth(i)); ack.Index != want {
			t.Errorf("entry %d has index %d now", i, ack.Index)
		}
	}
	next.Close()
}

func (r *sharedRig) must3NotPublished(l *Log, by Token, e *entry.Entry) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 300*time.Millisecond)
	defer cancel()
	if ack, err := l.Submit(ctx, by, e, Cosigned); !errors.Is(err, ErrNotPublished) {
		r.t.Errorf("%v, %v; want it reserved and not published", ack, err)
	}
}

// TestForeignEntryLatches: somebody else writes to the engine's tree, or the
// database lost a reservation.
func TestForeignEntryLatches(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.must2(l, by, nth(0))
	leaf := r.mustLeaf(nth(1))
	before := r.anchorText()
	r.engine.Queue(t.Context(), [32]byte{9}, leaf)
	waitFor(t, "the guard to latch", func() bool { return l.Status().Latched })
	if !strings.Contains(l.Status().Reason.Error(), "never reserved") {
		t.Error(l.Status().Reason)
	}
	if _, err := l.Submit(t.Context(), by, nth(2), Cosigned); !errors.Is(err, ErrReadOnly) {
		t.Errorf("submission: %v", err)
	}
	if r.anchorText() != before || l.Published().Size != 1 {
		t.Error("it signed more")
	}
	// The others hear of it.
	other := r.open(frontendOnly)
	waitFor(t, "another frontend to hear", func() bool { return errors.Is(other.Status().Reason, errLatched) })
}

// TestSwappedLeafLatches: the engine returns other bytes for a submission.
func TestSwappedLeafLatches(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.engine.hold(true)
	go l.Submit(context.Background(), by, nth(0), Cosigned)
	waitFor(t, "the engine to have it", func() bool { r.engine.mu.Lock(); defer r.engine.mu.Unlock(); return len(r.engine.queue) == 1 })
	r.engine.mu.Lock()
	r.engine.queue[0].leaf = r.mustLeaf(nth(1))
	r.engine.mu.Unlock()
	r.engine.hold(false)
	waitFor(t, "the guard to latch", func() bool { return l.Status().Latched })
	if l.Published().Size != 0 {
		t.Error("it signed it")
	}
}

func (r *sharedRig) mustLeaf(e *entry.Entry) []byte {
	r.t.Helper()
	e.Registry, e.Claim = testRegistry, entry.ClaimIndex
	leaf, err := e.Marshal()
	if err != nil {
		r.t.Fatal(err)
	}
	return leaf
}

// TestAnchorRowMoved: somebody writes the anchor who is no publisher.
func TestAnchorRowMoved(t *testing.T) {
	for _, c := range []struct{ name, sql, want string }{
		{"size", "UPDATE anchor SET size = size + 1", "changed by somebody else"},
		{"gone", "DELETE FROM anchor", "anchor is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newSharedRig(t, 1, 1)
			l := r.ready()
			by := r.all(entry.ClaimIndex)
			r.must2(l, by, nth(0))
			time.Sleep(100 * time.Millisecond)
			r.exec(c.sql)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			if ack, err := l.Submit(ctx, by, nth(1), Cosigned); err == nil {
				t.Errorf("acknowledged %d", ack.Index)
			}
			if c.name == "size" {
				waitFor(t, "the guard to latch", func() bool { return l.Status().Latched })
				if !strings.Contains(l.Status().Reason.Error(), c.want) {
					t.Error(l.Status().Reason)
				}
			}
		})
	}
}

// TestRestoredDatabase: the whole database is an older copy, on the same server.
func TestRestoredDatabase(t *testing.T) {
	r := newSharedRig(t, 3, 2)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.must2(l, by, nth(0))
	l.Close()
	copyOf := r.copyDatabase()
	l = r.ready()
	for i := range 5 {
		r.must2(l, by, nth(i+1))
	}
	waitFor(t, "the checkpoint beside the tiles", func() bool {
		raw, _ := r.engine.ReadCheckpoint(t.Context())
		return bytes.Equal(raw, l.Published().Note)
	})
	before := len(r.engine.sequence())
	l.Close()
	r.database = copyOf
	l = r.open()
	waitFor(t, "the guard to latch", func() bool { return l.Status().Latched })
	t.Log(l.Status().Reason)
	if _, err := l.Submit(t.Context(), by, nth(50), Cosigned); !errors.Is(err, ErrReadOnly) {
		t.Errorf("submission: %v", err)
	}
	if len(r.engine.sequence()) != before {
		t.Error("it queued entries")
	}
}

// copyDatabase makes a copy on the same server.
func (r *sharedRig) copyDatabase() string {
	r.t.Helper()
	u, err := url.Parse(r.database)
	if err != nil {
		r.t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	if err := sharedPostgres.Exec(r.t.Context(), "CREATE DATABASE "+name+"copy TEMPLATE "+name); err != nil {
		r.t.Fatal(err)
	}
	u.Path += "copy"
	return u.String()
}

// TestRebuildShared: the database is lost, or went back; made anew it says what
// it said, and the log goes on.
func TestRebuildShared(t *testing.T) {
	r := newSharedRig(t, 3, 2)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	r.must2(l, by, nth(0))
	if err := RebuildShared(t.Context(), r.database, r.engine, l.cfg.Logger, r.signer.Key()); err == nil || !strings.Contains(err.Error(), "a publisher is running") {
		t.Errorf("rebuilt beneath a running publisher: %v", err)
	}
	if _, _, err := l.Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}}); err != nil {
		t.Fatal(err)
	}
	l.Close()
	back := r.copyDatabase()
	l = r.ready()
	r.must2(l, by, demo("d1"))
	r.step(l, by, reject(demo("d1"), 1), 2)
	r.step(l, by, policy("replace", 2), 3)
	r.must2(l, by, nth(1))
	waitFor(t, "the checkpoint beside the tiles", func() bool {
		raw, _ := r.engine.ReadCheckpoint(t.Context())
		return bytes.Equal(raw, l.Published().Note)
	})
	l.Close()
	lived := r.rows()
	for _, database := range []string{back, newDatabase(t)} {
		r.database = database
		other, err := c2sp.GenerateSigner("log.example/test", c2sp.AlgEd25519)
		if err != nil {
			t.Fatal(err)
		}
		if err := RebuildShared(t.Context(), r.database, r.engine, l.cfg.Logger, other.Key()); err == nil {
			t.Error("rebuilt with another key")
		}
		if database != back { // what the wrong key began is no log yet
			r.database = newDatabase(t)
		}
		if err := RebuildShared(t.Context(), r.database, r.engine, l.cfg.Logger, r.signer.Key()); err != nil {
			t.Fatal(err)
		}
		tokens, done, err := OpenSharedTokens(t.Context(), database, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		// The older database may not know of a revocation.
		if list := tokens.List(); len(list) != tokens.suspended() || database == back && len(list) != 1 {
			t.Errorf("credentials after the rebuild: %+v", list)
		}
		done()
		if again := r.rows(); again != lived {
			t.Errorf("rows lived through:\n%s\nrows rebuilt:\n%s", lived, again)
		}
		if got := r.query("SELECT size::text FROM anchor"); got != "5" {
			t.Errorf("the anchor has size %s", got)
		}
	}
	l = r.ready()
	r.step(l, by, nth(1), 4)
	r.step(l, by, nth(2), 5)
}
