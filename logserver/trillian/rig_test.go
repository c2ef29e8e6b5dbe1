package trillian_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	gtrillian "github.com/google/trillian"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
	"golang.org/x/sync/errgroup"
)

// The neighbours that tests share: started when the first asks for them, ended
// with the test binary. A test that breaks one starts its own.
var (
	postgres = sync.OnceValues(func() (*trilliantest.Trillian, error) {
		db, err := trilliantest.StartPostgreSQL(context.Background(), nil)
		return onDatabase(db, err)
	})
	mariadb = sync.OnceValues(func() (*trilliantest.Trillian, error) {
		db, err := trilliantest.StartMariaDB(context.Background(), nil)
		return onDatabase(db, err)
	})

	ending sync.Mutex
	atEnd  []func() // guarded by ending
)

// end calls f when the test binary ends, after what was registered later.
func end(f func()) {
	ending.Lock()
	defer ending.Unlock()
	atEnd = append(atEnd, f)
}

func onDatabase(db trilliantest.Database, err error) (*trilliantest.Trillian, error) {
	if err != nil {
		return nil, err
	}
	end(db.Close)
	tr, err := trilliantest.Start(context.Background(), trilliantest.Options{Database: db})
	if err == nil {
		end(tr.Close)
	}
	return tr, err
}

func TestMain(m *testing.M) {
	code := m.Run()
	for i := len(atEnd) - 1; i >= 0; i-- {
		atEnd[i]()
	}
	os.Exit(code)
}

// need skips the test, in words, if the machine lacks a neighbour.
func need[T any](t *testing.T, start func() (T, error)) T {
	t.Helper()
	v, err := start()
	if trilliantest.Skippable(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// own starts a PostgreSQL and a Trillian for one test, which may break them.
func own(t *testing.T, settings map[string]string) (*trilliantest.PostgreSQL, *trilliantest.Trillian) {
	t.Helper()
	db := need(t, func() (*trilliantest.PostgreSQL, error) { return trilliantest.StartPostgreSQL(t.Context(), settings) })
	t.Cleanup(db.Close)
	tr, err := trilliantest.Start(t.Context(), trilliantest.Options{Database: db})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	return db, tr
}

// newLog makes an empty log on a new tree.
func newLog(t *testing.T, tr *trilliantest.Trillian, store trillian.Store) trillian.Config {
	t.Helper()
	tree, err := tr.CreateTree(t.Context(), gtrillian.TreeType_LOG)
	if err != nil {
		t.Fatal(err)
	}
	cfg := trillian.Config{Conn: tr.Conn, TreeID: tree, Store: store, Poll: 5 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if err := trillian.Init(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func newDriver(t *testing.T, cfg trillian.Config) *trillian.Driver {
	t.Helper()
	d, err := trillian.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// integration is a running Integrate.
type integration struct {
	stop func() error // ends it and returns what it returned
	done chan struct{}
	err  error // once done is closed
}

func integrate(t *testing.T, d *trillian.Driver, token uint64) *integration {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	in := &integration{done: make(chan struct{})}
	go func() {
		defer close(in.done)
		in.err = d.Integrate(ctx, token)
	}()
	in.stop = func() error {
		cancel()
		<-in.done
		return in.err
	}
	t.Cleanup(func() { in.stop() })
	return in
}

// awaitEnd returns what Integrate returns by itself.
func (in *integration) awaitEnd(t *testing.T) error {
	t.Helper()
	select {
	case <-in.done:
		return in.err
	case <-time.After(20 * time.Second):
		t.Fatal("the integration goes on")
		return nil
	}
}

func id(n int) (id [32]byte) {
	copy(id[:], fmt.Sprintf("submission %d", n))
	return id
}

// queue queues entries from..to-1 under their IDs, eight at a time.
func queue(t *testing.T, d *trillian.Driver, from, to int) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(8)
	for i := from; i < to; i++ {
		g.Go(func() error { return d.Queue(t.Context(), id(i), leaf(i)) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

func leaf(i int) []byte { return fmt.Appendf(nil, "entry %d", i) }

// awaitSize waits for an integrated size.
func awaitSize(t *testing.T, d *trillian.Driver, size uint64) {
	t.Helper()
	var got uint64
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if got, err = d.Reader().IntegratedSize(t.Context()); err == nil && got >= size {
			return
		}
	}
	t.Fatalf("integrated size %d, %v; want %d", got, err, size)
}
