package trillian_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
	"golang.org/x/sync/errgroup"
)

// awaitHead waits for Trillian's own size.
func awaitHead(t *testing.T, d *trillian.Driver, size uint64) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		head, err := d.Head(t.Context())
		if err == nil && head.Size >= size {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("Trillian's size is %d, %v; want %d", head.Size, err, size)
		}
	}
}

// TestKills ends each process of the engine with SIGKILL, one after the other,
// while entries come in, and the integrator by its context: every entry that was
// queued is logged once, under one index, in the tiles that were written, and
// each time the integration goes on within ten seconds.
func TestKills(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it starts databases and Trillian, and kills them; TestOutage is run")
	}
	t.Parallel() // on neighbours of its own
	for name, start := range map[string]func() (trilliantest.Database, error){
		"PostgreSQL": func() (trilliantest.Database, error) { return trilliantest.StartPostgreSQL(context.Background(), nil) },
		"MariaDB":    func() (trilliantest.Database, error) { return trilliantest.StartMariaDB(context.Background(), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			db := need(t, start)
			defer db.Close()
			tr, err := trilliantest.Start(t.Context(), trilliantest.Options{Database: db})
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			rec := &recorded{t: t}
			cfg := newLog(t, tr, dir(t))
			cfg.Record = rec.record
			d := newDriver(t, cfg)
			token := uint64(1)
			run := integrate(t, d, token)

			// Four frontends, each with its own IDs, which queue again what is uncertain.
			var (
				stop   atomic.Bool
				queued atomic.Int64
				g      errgroup.Group
				mu     sync.Mutex
				all    []int // guarded by mu; whose queueing was confirmed
			)
			for f := range 4 {
				g.Go(func() error {
					for n := 0; !stop.Load(); n++ {
						i := f*1_000_000 + n
						for {
							err := d.Queue(t.Context(), id(i), leaf(i))
							if err == nil {
								break
							}
							if !errors.Is(err, trillian.ErrUncertain) {
								return err
							}
							time.Sleep(20 * time.Millisecond)
						}
						queued.Add(1)
						mu.Lock()
						all = append(all, i)
						mu.Unlock()
						time.Sleep(2 * time.Millisecond)
					}
					return nil
				})
			}
			victims := []*trilliantest.Process{db.Server(), tr.Servers[0], tr.Signer}
			rounds := 2
			if *long {
				rounds = 8
			}
			for round := range rounds {
				for _, p := range append(victims, nil) {
					time.Sleep(rand.N(100 * time.Millisecond))
					if p == nil {
						run.stop()
						token++
						run = integrate(t, d, token)
						continue
					}
					p.Kill()
					time.Sleep(rand.N(200 * time.Millisecond))
					if err := p.Start(t.Context()); err != nil {
						t.Fatal(err)
					}
					back := time.Now()
					// An entry queued from now on is integrated soon.
					i := 90_000_000 + round*10 + len(p.Name)
					if err := retry(t, 10*time.Second, func() error { return d.Queue(t.Context(), id(i), leaf(i)) }); err != nil {
						t.Fatalf("%s was killed: %v", p.Name, err)
					}
					mu.Lock()
					all = append(all, i)
					mu.Unlock()
					if err := retry(t, 10*time.Second-time.Since(back), func() error {
						rec.mu.Lock()
						defer rec.mu.Unlock()
						if _, ok := rec.index[id(i)]; !ok {
							return errors.New("it is not integrated")
						}
						return nil
					}); err != nil {
						t.Fatalf("%s was killed: ten seconds after it is back: %v", p.Name, err)
					}
				}
			}
			stop.Store(true)
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			awaitSize(t, d, uint64(len(all)))
			for _, i := range all {
				if _, ok := rec.index[id(i)]; !ok {
					t.Errorf("entry %d was queued and is not logged", i)
				}
			}
			if len(rec.ids) != len(all) {
				t.Errorf("%d entries are logged, %d were queued", len(rec.ids), len(all))
			}
			rec.check(t, d, len(all))
			t.Logf("%d entries, %d kills", len(all), rounds*len(victims))
		})
	}
}

func retry(t *testing.T, limit time.Duration, do func() error) error {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		err := do()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// TestSynchronousCommitOff: a PostgreSQL that confirms what it has not written
// loses entries that were queued in a crash. The setting is refused; where nobody
// looked, queueing again under the same IDs logs each entry once. Sequenced
// entries survive even so: Trillian's signer drops temporary tables as it
// commits, and PostgreSQL flushes such a commit whatever the setting.
func TestSynchronousCommitOff(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it is about what a database loses")
	}
	t.Parallel() // on neighbours of its own
	db, tr := own(t, map[string]string{"synchronous_commit": "off", "wal_writer_delay": "10000ms", "wal_writer_flush_after": "1GB", "wal_buffers": "16MB"})
	conn, err := pgx.Connect(t.Context(), db.URI())
	if err != nil {
		t.Fatal(err)
	}
	if err := trillian.CheckPostgreSQL(t.Context(), conn); !errors.Is(err, trillian.ErrNotDurable) {
		t.Fatalf("the setting: %v", err)
	}
	conn.Close(t.Context())
	rec := &recorded{t: t}
	cfg := newLog(t, tr, dir(t))
	cfg.Record = rec.record
	d := newDriver(t, cfg)
	integrate(t, d, 1)
	queue(t, d, 0, 30)
	awaitSize(t, d, 30)
	lost := false
	for try := 0; try < 5 && !lost; try++ { // the background writer may come in between
		tr.Signer.Kill()
		first := 1000 * (try + 1)
		queue(t, d, first, first+30)
		db.Kill()
		if err := db.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		var n int
		conn, err := pgx.Connect(t.Context(), db.URI())
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM Unsequenced WHERE TreeId = $1", cfg.TreeID).Scan(&n); err != nil {
			t.Fatal(err)
		}
		conn.Close(t.Context())
		lost = n < 30
		if err := tr.Signer.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := retry(t, 10*time.Second, func() error { return d.Queue(t.Context(), id(first), leaf(first)) }); err != nil {
			t.Fatal(err)
		}
		queue(t, d, first, first+30)
		awaitSize(t, d, uint64(30*(try+2)))
		rec.check(t, d, 30*(try+2))
	}
	if !lost {
		t.Fatal("nothing was lost: the test shows nothing")
	}
}

// TestPromotedStandby: a standby that lagged is promoted. What it lacks and was
// integrated is missed, whether the tree is now smaller or has other entries.
func TestPromotedStandby(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it is about what databases lose, and starts four")
	}
	t.Parallel() // on neighbours of its own
	for _, grown := range []bool{false, true} {
		t.Run(fmt.Sprintf("grown=%v", grown), func(t *testing.T) {
			db, tr := own(t, nil)
			cfg := newLog(t, tr, dir(t))
			d := newDriver(t, cfg)
			run := integrate(t, d, 1)
			queue(t, d, 0, 20)
			awaitSize(t, d, 20)
			standby, err := db.Standby(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer standby.Close()
			standby.Kill() // the network is cut: it has the first 20
			queue(t, d, 20, 50)
			awaitSize(t, d, 50)
			if grown {
				run.stop()
			}
			db.Kill()
			tr.Close()
			if err := standby.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := standby.Promote(t.Context()); err != nil {
				t.Fatal(err)
			}
			after, err := trilliantest.Start(t.Context(), trilliantest.Options{Database: standby})
			if err != nil {
				t.Fatal(err)
			}
			defer after.Close()
			cfg.Conn = after.Conn
			front := newDriver(t, cfg)
			if !grown {
				var back *trillian.BackError
				if err := front.Integrate(t.Context(), 2); !errors.As(err, &back) || back.Theirs != 20 {
					t.Fatal(err)
				}
				return
			}
			queue(t, front, 500, 530)
			awaitHead(t, front, 50)
			var wrong *trillian.RootError
			if err := newDriver(t, cfg).Integrate(t.Context(), 2); !errors.As(err, &wrong) || wrong.Size != 50 {
				t.Fatal(err)
			}
		})
	}
}

// TestTamperedDatabase: what somebody with the database's password can change is
// seen before it counts.
func TestTamperedDatabase(t *testing.T) {
	t.Parallel() // on neighbours of its own
	db, tr := own(t, nil)
	for name, sql := range map[string]string{
		"another root":    "UPDATE TreeHead SET RootHash = decode(repeat('ab', 32), 'hex') WHERE TreeId = %d AND TreeSize > 0",
		"an older root":   "DELETE FROM TreeHead WHERE TreeId = %d AND TreeSize > 0",
		"another leaf":    "UPDATE LeafData SET LeafValue = 'not what was queued' WHERE TreeId = %d",
		"leaves reversed": "UPDATE SequencedLeafData SET SequenceNumber = 1000 - SequenceNumber WHERE TreeId = %[1]d; UPDATE SequencedLeafData SET SequenceNumber = SequenceNumber - 971 WHERE TreeId = %[1]d",
	} {
		t.Run(name, func(t *testing.T) {
			cfg := newLog(t, tr, dir(t))
			d := newDriver(t, cfg)
			if name == "an older root" {
				run := integrate(t, d, 1)
				queue(t, d, 0, 30)
				awaitSize(t, d, 30)
				run.stop()
			} else {
				queue(t, d, 0, 30)
				awaitHead(t, d, 30)
			}
			if err := db.Exec(t.Context(), fmt.Sprintf(sql, cfg.TreeID)); err != nil {
				t.Fatal(err)
			}
			before, err := d.Reader().IntegratedSize(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Integrate(t.Context(), 1); !errors.Is(err, trillian.ErrTampering) {
				t.Fatalf("got %v", err)
			}
			if n, err := newDriver(t, cfg).Reader().IntegratedSize(t.Context()); n != before || err != nil {
				t.Fatalf("size %d, %v; want %d", n, err, before)
			}
		})
	}
}

// TestOutage: the database is gone for a while; nothing ends, and afterwards all
// goes on within ten seconds.
func TestOutage(t *testing.T) {
	t.Parallel() // on neighbours of its own
	db, tr := own(t, nil)
	rec := &recorded{t: t}
	cfg := newLog(t, tr, dir(t))
	cfg.Record = rec.record
	d := newDriver(t, cfg)
	run := integrate(t, d, 1)
	queue(t, d, 0, 5)
	awaitSize(t, d, 5)
	outage := 3 * time.Second
	if *long {
		outage = time.Minute
	}
	db.Kill()
	if err := d.Queue(t.Context(), id(5), leaf(5)); !errors.Is(err, trillian.ErrUncertain) {
		t.Fatalf("without a database: %v", err)
	}
	time.Sleep(outage)
	select {
	case <-run.done:
		t.Fatalf("the integration ended: %v", run.err)
	default:
	}
	if err := db.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	if err := retry(t, 10*time.Second, func() error { return d.Queue(t.Context(), id(5), leaf(5)) }); err != nil {
		t.Fatal(err)
	}
	awaitSize(t, d, 6)
	if took := time.Since(back); took > 10*time.Second {
		t.Fatalf("it took %v to go on", took)
	}
	rec.check(t, d, 6)
}
