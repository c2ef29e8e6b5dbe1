package logserver

// Named streams, wherever their progress is kept: the same suite runs on the
// journal of an embedded log and on the database of a shared one.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// streamPlace is where the suite's streams are kept.
type streamPlace struct {
	open  func() *streams                 // as a server that starts does, or one more
	grow  func(size uint64)               // the log has so many entries
	count func(store streamStore) (n int) // of what is kept
}

func streamPlaces(t *testing.T) map[string]streamPlace {
	var size atomic.Uint64
	path := filepath.Join(t.TempDir(), streamsFile)
	r := newSharedRig(t, 0, 0)
	pool := r.pool()
	return map[string]streamPlace{
		"journal": {
			open: func() *streams {
				s, err := openStreams(path, func(context.Context) (uint64, error) { return size.Load(), nil })
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.close() })
				return s
			},
			grow: size.Store,
			count: func(store streamStore) int {
				if err := store.(*streamFile).rewrite(); err != nil {
					t.Fatal(err)
				}
				return len(store.(*streamFile).known)
			},
		},
		"database": {
			open: func() *streams { return newStreams(sharedStreams{pool}) },
			grow: func(size uint64) { r.exec("UPDATE log SET integrated = $1", int64(size)) },
			count: func(streamStore) (n int) {
				if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM streams").Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n
			},
		},
	}
}

// TestStreamStores: what a caller is told of a stream is what it was answered,
// whoever answered it, never more than the log has, and never less than before.
func TestStreamStores(t *testing.T) {
	for name, place := range streamPlaces(t) {
		t.Run(name, func(t *testing.T) {
			place.grow(1000)
			at := func(s *streams, by, name string) *streamProgress {
				t.Helper()
				p, err := s.open(t.Context(), by, name)
				if err != nil {
					t.Fatal(err)
				}
				return p
			}
			want := func(s *streams, name string, position uint64) {
				t.Helper()
				if p := at(s, "me", name); p.accepted != position {
					t.Errorf("stream %s stands at %d, want %d", name, p.accepted, position)
				}
			}
			s := place.open()
			a, late := at(s, "me", "a"), at(s, "me", "a") // two calls of one name
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			check(a.advance(10, 10))
			check(a.advance(900, 900))
			want(s, "a", 900)
			check(late.advance(20, 20)) // it does not go back
			want(s, "a", 900)
			check(a.advance(800, 800)) // sent again from an earlier place
			want(s, "a", 900)
			if p := at(s, "somebody else", "a"); p.accepted != 0 {
				t.Errorf("another credential's stream stands at %d", p.accepted)
			}
			for _, bad := range []string{"", "../x", "a b", string(make([]byte, 65))} {
				var field *entry.FieldError
				if _, err := s.open(t.Context(), "me", bad); !errors.As(err, &field) {
					t.Errorf("name %q: %v", bad, err)
				}
			}
			// Refusals alone move a stream and need no entry; what it was told of
			// before stays needed.
			check(a.advance(901, 0))
			check(at(s, "me", "refusals").advance(3, 0))

			s = place.open() // another server
			want(s, "a", 901)
			want(s, "refusals", 3)

			place.grow(899) // the log went back
			want(s, "a", 0)
			want(s, "refusals", 3)
			place.grow(1000)

			// Many at once, each more than once: all are kept when advance returns.
			var wg sync.WaitGroup
			for n := range 40 {
				wg.Go(func() {
					p, err := s.open(t.Context(), "me", fmt.Sprint("many", n))
					for at := uint64(1); err == nil && at <= 5; at++ {
						err = p.advance(at, at)
						if err == nil {
							var q *streamProgress
							if q, err = s.open(t.Context(), "me", fmt.Sprint("many", n)); err == nil && q.accepted != at {
								err = fmt.Errorf("it stands at %d, not %d", q.accepted, at)
							}
						}
					}
					if err != nil {
						t.Errorf("stream %d: %v", n, err)
					}
				})
			}
			wg.Wait()

			// Bounded: those that moved longest ago are forgotten first.
			for batch := range slices.Chunk(manyRecords(maxStreams), 500) {
				check(s.store.write(batch))
			}
			check(at(s, "me", "newest").advance(1, 1))
			if n := place.count(s.store); n != maxStreams {
				t.Errorf("%d streams are kept, want %d", n, maxStreams)
			}
			want(s, "newest", 1)
			want(s, "a", 0)
			want(s, "many39", 0)
		})
	}
}

func manyRecords(n int) (out []streamRecord) {
	for i := range n {
		r := streamRecord{position: 1, least: 1}
		copy(r.key[:], fmt.Sprintf("made up, number %d", i))
		out = append(out, r)
	}
	return out
}

// rename renames a table.
func (r *sharedRig) rename(from, to string) {
	r.t.Helper()
	if _, err := r.pool().Exec(r.t.Context(), "ALTER TABLE "+from+" RENAME TO "+to); err != nil {
		r.t.Fatal(err)
	}
}

// TestStreamWriteFails: nobody is told of a position that could not be kept, and
// the stream is not believed to be there.
func TestStreamWriteFails(t *testing.T) {
	r := newSharedRig(t, 0, 0)
	s := newStreams(sharedStreams{r.pool()})
	p, err := s.open(t.Context(), "me", "a")
	if err != nil {
		t.Fatal(err)
	}
	// Never ahead of the log.
	if err := p.advance(7, 7); !errors.Is(err, ErrStorage) {
		t.Errorf("more than the database knows of the log: %v", err)
	}
	r.exec("UPDATE log SET integrated = 100")
	if err := p.advance(7, 7); err != nil {
		t.Errorf("after that: %v", err)
	}
	r.rename("streams", "gone")
	if err := p.advance(8, 8); !errors.Is(err, ErrStorage) {
		t.Errorf("without the table: %v", err)
	}
	if _, err := s.open(t.Context(), "me", "a"); !errors.Is(err, ErrStorage) {
		t.Errorf("without the table: %v", err)
	}
	r.rename("gone", "streams")
	if p, err := s.open(t.Context(), "me", "a"); err != nil || p.accepted != 7 {
		t.Errorf("%+v, %v", p, err)
	}
	// A database that may lose it, also on a connection that lives.
	pool, err := openDB(t.Context(), r.database)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	unsafe := newStreams(sharedStreams{pool})
	if p, err = unsafe.open(t.Context(), "me", "a"); err != nil {
		t.Fatal(err)
	}
	conns := pool.AcquireAllIdle(t.Context())
	for _, c := range conns {
		if _, err := c.Exec(t.Context(), "SET synchronous_commit = off"); err != nil {
			t.Fatal(err)
		}
		c.Release()
	}
	if err := p.advance(9, 9); !errors.Is(err, errUnsafe) {
		t.Errorf("synchronous_commit off: %v", err)
	}
	if p, err := s.open(t.Context(), "me", "a"); err != nil || p.accepted != 7 {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestSharedStream: a named stream goes on at any frontend, also when the one
// before is gone, and what is sent again has the indexes it had. For one that is
// killed see cmd/portbook-log's TestSharedFaults.
func TestSharedStream(t *testing.T) {
	r := newSharedRig(t, 1, 1)
	a, b := r.serveOpen(r.ready()), r.serveOpen(r.ready(frontendOnly))
	indexes := map[string]uint64{}
	send := func(stream pb.Log_SubmitStreamClient, from, n int, position uint64) {
		t.Helper()
		if err := stream.Send(&pb.SubmitStreamRequest{Entries: several(from, n), Position: position}); err != nil {
			t.Fatal(err)
		}
		for got := from; got < from+n; {
			res, err := stream.Recv()
			if err != nil || res.Position != uint64(got) || len(res.Results) == 0 || res.Accepted != nil {
				t.Fatalf("answer %d: %v, %v", got, res, err)
			}
			for _, x := range res.Results {
				file := nth(got).File
				if was, again := indexes[file]; x.Error != nil || again && was != x.Index {
					t.Fatalf("%s was at %d, now %v", file, was, x)
				}
				indexes[file] = x.Index
				got++
			}
		}
	}
	open := func(s *served, want uint64) pb.Log_SubmitStreamClient {
		t.Helper()
		stream, at, err := s.named(a.bearer, "backfill")
		if err != nil || at != want {
			t.Fatalf("it stands at %d, %v; want %d", at, err, want)
		}
		return stream
	}
	send(open(a, 0), 0, 20, 0)
	send(open(b, 20), 20, 20, 20)
	first := open(a, 40)
	send(first, 40, 20, 40)
	if err := first.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("a stream ends with %v", err)
	}
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	// Sent again from before what was answered: the same indexes, it stands no lower.
	b2 := r.serveOpen(r.ready()) // somebody must publish
	send(open(b, 60), 50, 20, 50)
	stream := open(b2, 70)
	// A place that the log does not know of is refused: nothing of it is logged.
	stream.Send(&pb.SubmitStreamRequest{Entries: several(1000, 1), Position: 71})
	if res, err := stream.Recv(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a position beyond 70: %v, %v", res, err)
	}
	if _, _, err := b.named(a.bearer, "../x"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a bad name: %v", err)
	}
	if size, err := r.engine.Head(t.Context()); err != nil || size != 70 {
		t.Errorf("the log has %d entries, %v; want 70", size, err)
	}
	// Without the database nobody is told anything.
	r.rename("streams", "gone")
	if _, _, err := b2.named(a.bearer, "backfill"); status.Code(err) != codes.Unavailable {
		t.Errorf("without the table: %v", err)
	}
}

// TestSharedStreamsOfRebuilt: a database made anew does not vouch for what was
// answered beyond what is known to be signed.
func TestSharedStreamsOfRebuilt(t *testing.T) {
	r := newSharedRig(t, 0, 0)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	for n := range 5 {
		r.step(l, by, nth(n), n)
	}
	for name, least := range map[string]uint64{"signed": 5, "not": 6} {
		p, err := l.streams.open(t.Context(), "me", name)
		if err != nil {
			t.Fatal(err)
		}
		if least > 5 {
			r.exec("UPDATE log SET integrated = 6")
		}
		if err := p.advance(least, least); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	if err := RebuildShared(t.Context(), r.database, r.engine, l.cfg.Logger, r.signer.Key()); err != nil {
		t.Fatal(err)
	}
	var kept []string
	rows, err := r.pool().Query(t.Context(), "SELECT position::text FROM streams")
	if err == nil {
		kept, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil || !slices.Equal(kept, []string{"5"}) {
		t.Errorf("kept: %v, %v", kept, err)
	}
}
