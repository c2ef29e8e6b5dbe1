package logserver

// Who logged what of a shared log: the first submitter is named, whoever asks
// again, wherever, and whatever fails in between.

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/entry"
)

// logged is what the database says: of each entry by whom, with "late", and
// which entries nobody is named for. Nobody may be named twice.
func (r *sharedRig) logged(credentials ...Token) (by map[uint64]string, unknown []Attributed, begins uint64) {
	r.t.Helper()
	a, size, err := ReadSharedAttribution(r.t.Context(), r.database)
	if err != nil {
		r.t.Fatal(err)
	}
	by = map[uint64]string{}
	for _, t := range append(credentials, Token{}) {
		for _, x := range a.By(t.ID) {
			if age := time.Since(x.Time); age < -time.Minute || age > time.Hour {
				r.t.Errorf("recorded at %v", x.Time)
			}
			for i := range x.Count {
				if was, twice := by[x.First+i]; twice {
					r.t.Errorf("entry %d is of %q and of %q", x.First+i, was, t.ID)
				}
				if by[x.First+i] = t.ID; x.Late {
					by[x.First+i] += " late"
				}
			}
		}
	}
	unknown, begins = a.Unknown(size)
	return by, unknown, begins
}

func (r *sharedRig) wantLogged(want map[uint64]string, credentials ...Token) {
	r.t.Helper()
	got, unknown, begins := r.logged(credentials...)
	if !reflect.DeepEqual(got, want) || len(unknown) > 0 || begins != 0 {
		r.t.Errorf("logged %v, unknown %v, from %d; want %v", got, unknown, begins, want)
	}
}

func credentialOf(r *sharedRig, id string) Token {
	t := r.all(entry.ClaimIndex)
	t.ID = id
	return t
}

// TestSharedAttribution: credentials submit the same and other entries at all
// frontends at once; each entry has one name, that of one who submitted it, and
// later retries by others change nothing. Conflicts are the log's own.
func TestSharedAttribution(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	logs := []*Log{r.ready(), r.ready(frontendOnly)}
	creds := []Token{credentialOf(r, "c0"), credentialOf(r, "c-"), credentialOf(r, "c2"), credentialOf(r, "c3")}
	const own, common = 30, 20
	var mu sync.Mutex
	want := map[uint64]string{}
	shared := map[uint64]bool{}
	var wg sync.WaitGroup
	for w, by := range creds {
		wg.Go(func() {
			for n := range own + common {
				e := nth(1000*(w+1) + n)
				if n >= own {
					e = nth(n)
				}
				ack, err := logs[w%2].Submit(t.Context(), by, e, Cosigned)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if n < own {
					want[ack.Index] = by.ID
				} else {
					shared[ack.Index] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	r.step(logs[1], creds[1], upload("p1", "p1-1001.tar.gz", "other bytes"), conflictWith(mustIndex(r, logs[0], creds[0], nth(1001))))
	waitFor(t, "the conflict's record", func() bool { return logs[0].Published().Size == 4*own+common+1 })
	first, unknown, begins := r.logged(creds...)
	if len(unknown) > 0 || begins != 0 || len(shared) != common || len(first) != 4*own+common+1 {
		t.Errorf("%d entries, unknown %v, from %d", len(first), unknown, begins)
	}
	for i, who := range first {
		switch {
		case shared[i]:
			if len(who) != 2 {
				t.Errorf("entry %d: by %q", i, who)
			}
		case who != want[i]:
			t.Errorf("entry %d: by %q, want %q", i, who, want[i])
		}
	}
	for w, l := range logs { // again, everything, by another one
		for n := range own {
			r.must2(l, creds[w], nth(1000*((w+1)%4+1)+n))
		}
		for n := own; n < own+common; n++ {
			r.must2(l, creds[w], nth(n))
		}
	}
	if again, _, _ := r.logged(creds...); !reflect.DeepEqual(again, first) {
		t.Errorf("after retries by others: %v, was %v", again, first)
	}
	// It is nowhere that a caller can see.
	if strings.Contains(string(logs[0].Published().Note), "c-") {
		t.Error("the checkpoint has a credential's ID")
	}
}

func mustIndex(r *sharedRig, l *Log, by Token, e *entry.Entry) uint64 {
	r.t.Helper()
	return r.must2(l, by, e).Index
}

// TestSharedAttributionOfJoined: who reserved an entry is named, not who asks for
// it at another frontend while it is on its way, also if the first frontend dies.
func TestSharedAttributionOfJoined(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	a := r.ready()
	dying := r.ready(frontendOnly)
	thief, other := credentialOf(r, "thief"), credentialOf(r, "other")
	died := make(chan struct{})
	dying.seq.(*sharedSequencer).testDecided = func() { // it never gets to queue
		close(died)
		<-t.Context().Done()
	}
	go dying.Submit(context.Background(), thief, demo("d1"), Cosigned)
	<-died
	if ack := r.must2(a, other, demo("d1")); ack.Index != 0 {
		t.Errorf("index %d", ack.Index)
	}
	r.wantLogged(map[uint64]string{0: "thief"}, thief, other)
}

// TestSharedAttributionOfOlderServers: an entry that a server reserved which does
// not say for whom is unknown, until somebody is acknowledged for it.
func TestSharedAttributionOfOlderServers(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	l, b := r.ready(), r.ready(frontendOnly)
	x, y := credentialOf(r, "x"), credentialOf(r, "y")
	r.engine.hold(true)
	waiting, err := l.queue(t.Context(), x, nth(0), nth(1))
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the reservations", func() bool { return strings.Count(r.rows(), "reserved") == 2 })
	if got := r.query("WITH u AS (UPDATE submissions SET by = NULL RETURNING 1) SELECT count(*)::text FROM u"); got != "2" {
		t.Fatalf("%s rows", got)
	}
	r.engine.hold(false)
	waitFor(t, "them to be published", func() bool { return l.Published().Size == 2 && b.Published().Size == 2 })
	if by, unknown, _ := r.logged(x, y); len(by) != 0 || !reflect.DeepEqual(unknown, []Attributed{{First: 0, Count: 2}}) {
		t.Errorf("logged %v, unknown %v", by, unknown)
	}
	at := r.must2(b, y, nth(1)).Index // before x is answered
	if by, _, _ := r.logged(x, y); !reflect.DeepEqual(by, map[uint64]string{at: "y late"}) {
		t.Errorf("logged %v", by)
	}
	if _, err := waiting.wait(t.Context(), Cosigned); err != nil {
		t.Fatal(err)
	}
	r.must2(b, y, nth(0))
	r.must2(b, y, nth(2))
	r.must2(l, x, nth(2))
	r.wantLogged(map[uint64]string{1 - at: "x late", at: "y late", 2: "y"}, x, y)
}

// TestSharedNoRecordNoAcknowledgement: while who logged what cannot be written,
// no new entry gets an index, and nobody is acknowledged for an older one that
// has no name.
func TestSharedNoRecordNoAcknowledgement(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	l := r.ready()
	x := credentialOf(r, "x")
	r.must2(l, x, nth(0))
	do := func(sql string) {
		t.Helper()
		if _, err := r.pool().Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	// Not known, and only readable: a late record cannot be written.
	do("DELETE FROM logged")
	do("CREATE FUNCTION full_disk() RETURNS trigger AS $$ BEGIN RAISE 'disk on fire'; END $$ LANGUAGE plpgsql")
	do("CREATE TRIGGER full_disk BEFORE INSERT ON logged FOR EACH ROW EXECUTE FUNCTION full_disk()")
	l.Close()
	l = r.ready()
	for _, level := range []Wait{Cosigned, Sequenced} {
		if _, err := l.Submit(t.Context(), x, nth(0), level); !errors.Is(err, ErrStorage) || strings.Contains(err.Error(), "fire") {
			t.Errorf("acknowledged without a record, or the database's words reach the caller: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if ack, err := l.Submit(ctx, x, nth(1), Sequenced); err == nil {
		t.Errorf("entry %d has an index and no record", ack.Index)
	}
	if got := r.query("SELECT integrated::text FROM log"); got != "1" {
		t.Errorf("%s entries are integrated", got)
	}
	do("DROP TRIGGER full_disk ON logged")
	if ack := r.must2(l, credentialOf(r, "y"), nth(1)); ack.Index != 1 {
		t.Errorf("index %d", ack.Index)
	}
	r.must2(l, x, nth(0))
	r.wantLogged(map[uint64]string{0: "x late", 1: "x"}, x, credentialOf(r, "y"))
}

// TestSharedAttributionMigrates: the database of an older version gets the
// record, which says from where on it is kept.
func TestSharedAttributionMigrates(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	l := r.ready()
	x, y := credentialOf(r, "x"), credentialOf(r, "y")
	for n := range 3 {
		r.must2(l, x, nth(n))
	}
	l.Close()
	p, done, err := migrations(r.pool())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	if _, err := p.DownTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if got := r.query("SELECT (to_regclass('logged') IS NULL)::text"); got != "true" {
		t.Fatal("this is no database of version 1")
	}
	l = r.ready()
	r.must2(l, y, nth(0))
	r.must2(l, y, nth(3))
	got, unknown, begins := r.logged(x, y)
	if !reflect.DeepEqual(got, map[uint64]string{3: "y"}) || len(unknown) > 0 || begins != 3 {
		t.Errorf("logged %v, unknown %v, from %d", got, unknown, begins)
	}
}

// TestSharedAttributionOfRebuilt: a database that is made anew keeps the names of
// what it knew to be signed; an empty one begins the record behind the log. What
// was on its way keeps its name.
func TestSharedAttributionOfRebuilt(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	l := r.ready()
	x, y := credentialOf(r, "x"), credentialOf(r, "y")
	r.must2(l, x, nth(0))
	r.must2(l, x, nth(1))
	l.Close()
	back := r.copyDatabase()
	l = r.ready()
	r.must2(l, y, nth(2))
	waitFor(t, "the checkpoint beside the tiles", func() bool {
		raw, _ := r.engine.ReadCheckpoint(t.Context())
		cp, err := ownSize(l, raw)
		return err == nil && cp == 3
	})
	l.Close()
	r.database = back
	// Signed are 2; of a third one it says what is of another history.
	if _, err := r.pool().Exec(t.Context(), "UPDATE logged SET count = count + 1 WHERE first + count = 2"); err != nil {
		t.Fatal(err)
	}
	if err := RebuildShared(t.Context(), back, r.engine, l.cfg.Logger, r.signer.Key()); err != nil {
		t.Fatal(err)
	}
	got, _, begins := r.logged(x, y)
	if !reflect.DeepEqual(got, map[uint64]string{0: "x", 1: "x"}) || begins != 0 {
		t.Errorf("logged %v, from %d", got, begins)
	}
	l = r.ready()
	r.must2(l, x, nth(2))
	r.must2(l, y, nth(3))
	r.wantLogged(map[uint64]string{0: "x", 1: "x", 2: "x late", 3: "y"}, x, y)
	waitFor(t, "the checkpoint beside the tiles", func() bool {
		raw, _ := r.engine.ReadCheckpoint(t.Context())
		cp, err := ownSize(l, raw)
		return err == nil && cp == 4
	})
	l.Close()
	r.database = newDatabase(t)
	if err := RebuildShared(t.Context(), r.database, r.engine, l.cfg.Logger, r.signer.Key()); err != nil {
		t.Fatal(err)
	}
	l = r.ready()
	r.must2(l, x, nth(0))
	r.must2(l, x, nth(4))
	got, unknown, begins := r.logged(x, y)
	if !reflect.DeepEqual(got, map[uint64]string{4: "x"}) || begins != 4 || len(unknown) > 0 {
		t.Errorf("logged %v, unknown %v, from %d", got, unknown, begins)
	}
}

func ownSize(l *Log, raw []byte) (uint64, error) { return ownCheckpoint(l.keys, raw) }

// TestSharedAttributionPages: a record of more runs than one page is read whole.
func TestSharedAttributionPages(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	const n = 2*loggedPage + 5
	if _, err := r.pool().Exec(t.Context(), fmt.Sprintf("INSERT INTO logged SELECT i, 1, 'c' || i %% 2, now(), false FROM generate_series(0, %d - 1) i", n)); err != nil {
		t.Fatal(err)
	}
	a, _, err := ReadSharedAttribution(t.Context(), r.database)
	if err != nil {
		t.Fatal(err)
	}
	var total uint64
	for _, x := range append(a.By("c0"), a.By("c1")...) {
		total += x.Count
	}
	if holes, _ := a.Unknown(n); total != n || len(holes) > 0 {
		t.Errorf("%d entries, holes %v", total, holes)
	}
	if holes, _ := a.Unknown(n + 1); len(holes) != 1 {
		t.Errorf("behind the last one: %v", holes)
	}
}
