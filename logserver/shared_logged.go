package logserver

// Who logged what, of a shared log: runs of entries in its database, written by
// the publisher in the transaction that gives the entries their indexes. So no
// index is known that nobody is named for, unless a server of an older version
// reserved the entry or published it: who is acknowledged for such an entry is
// recorded for it, as late.
//
// Who can change the database can blame, or hide, a credential before the
// operator. Rows that the log does not expect are left alone: they are no reason
// to stop it.

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// loggedPage is how many runs are read in one statement.
const loggedPage = 100_000

// sharedAttribution implements attributions on the database, or in one
// transaction of it.
type sharedAttribution struct {
	db interface {
		Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
		Query(context.Context, string, ...any) (pgx.Rows, error)
	}

	mu    sync.Mutex
	known spans  // guarded by mu; recorded, as last seen
	seen  uint64 // guarded by mu; of what was recorded below it when the log was opened nothing is in known
}

// record notes durably who logged entries that have just got their indexes.
func (a *sharedAttribution) record(ctx context.Context, entries []Attributed) error {
	return a.note(ctx, entries, false)
}

// note inserts runs whose first entry is to be recorded and is not.
func (a *sharedAttribution) note(ctx context.Context, entries []Attributed, late bool) error {
	if len(entries) == 0 {
		return nil
	}
	var firsts, counts []int64
	var by []string
	for _, e := range entries {
		firsts, counts, by = append(firsts, int64(e.First)), append(counts, int64(e.Count)), append(by, e.By)
	}
	_, err := a.db.Exec(ctx, `INSERT INTO logged (first, count, by, late)
		SELECT u.first, u.count, u.by, $4 FROM log, unnest($1::bigint[], $2::bigint[], $3::text[]) u (first, count, by)
		WHERE u.first >= log.logged_from AND
			coalesce((SELECT l.first + l.count <= u.first FROM logged l WHERE l.first <= u.first ORDER BY l.first DESC LIMIT 1), true)
		ON CONFLICT DO NOTHING`, firsts, counts, by, late)
	return databaseTrouble(err)
}

// ensure implements attributions. What was logged since the server started is
// looked up once for each of the publisher's steps, not for each caller.
func (a *sharedAttribution) ensure(ctx context.Context, indexes []uint64, by string) error {
	missing, err := a.missing(ctx, indexes)
	if err != nil {
		return err
	}
	slices.Sort(missing)
	var late []Attributed
	for _, i := range slices.Compact(missing) {
		late = append(late, Attributed{First: i, Count: 1, By: by})
	}
	return a.note(ctx, late, true)
}

// missing are those of indexes that are not known to be recorded.
func (a *sharedAttribution) missing(ctx context.Context, indexes []uint64) ([]uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	missing := slices.DeleteFunc(slices.Clone(indexes), a.known.has)
	if len(missing) == 0 || slices.Max(missing) < a.seen {
		return missing, nil
	}
	rows, err := a.db.Query(ctx, "SELECT first, count FROM logged WHERE first >= $1", int64(a.seen))
	if err != nil {
		return nil, databaseTrouble(err)
	}
	var first, count int64
	_, err = pgx.ForEachRow(rows, []any{&first, &count}, func() error {
		to := uint64(first + count)
		a.known, a.seen = a.known.add(span{uint64(first), to}), max(a.seen, to)
		return nil
	})
	return slices.DeleteFunc(missing, a.known.has), databaseTrouble(err)
}

// close implements attributions.
func (a *sharedAttribution) close() error { return nil }

// forgetLogged takes back what was recorded of entries from size on, of which
// nothing says that they are still the same.
func forgetLogged(ctx context.Context, tx pgx.Tx, size uint64) error {
	if _, err := tx.Exec(ctx, "DELETE FROM logged WHERE first >= $1", int64(size)); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "UPDATE logged SET count = $1 - first WHERE first + count > $1", int64(size))
	return err
}

// ReadSharedAttribution reads the record of who logged what of a shared log, also
// while servers write it, and the size of the log's newest checkpoint.
func ReadSharedAttribution(ctx context.Context, database string) (a *Attribution, published uint64, err error) {
	pool, err := openDB(ctx, database)
	if err != nil {
		return nil, 0, err
	}
	defer pool.Close()
	if err := checkDB(ctx, pool); err != nil {
		return nil, 0, err
	}
	state, err := readState(ctx, pool, nil)
	if err != nil {
		return nil, 0, err
	}
	id, err := state.id()
	if err != nil {
		return nil, 0, err
	}
	var start int64
	if err := pool.QueryRow(ctx, "SELECT logged_from FROM log").Scan(&start); err != nil {
		return nil, 0, databaseTrouble(err)
	}
	a = &Attribution{origin: id.Origin, start: uint64(start)}
	for next, n := int64(0), loggedPage; n == loggedPage; {
		rows, err := pool.Query(ctx, "SELECT first, count, by, at, late FROM logged WHERE first >= $1 ORDER BY first LIMIT $2", next, loggedPage)
		if err != nil {
			return nil, 0, databaseTrouble(err)
		}
		n = 0
		var first, count int64
		var by string
		var at time.Time
		var late bool
		_, err = pgx.ForEachRow(rows, []any{&first, &count, &by, &at, &late}, func() error {
			n++
			next = first + 1
			a.runs = addRun(a.runs, Attributed{uint64(first), uint64(count), by, at.UTC().Truncate(time.Second), late})
			return nil
		})
		if err != nil {
			return nil, 0, databaseTrouble(err)
		}
	}
	return a, uint64(state.published), nil
}
