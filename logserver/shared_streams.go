package logserver

// How far named streams have come, of a shared log: rows in its database, so
// that a caller goes on at any frontend where it was at another one, which may
// have been killed.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// sharedStreams implements streamStore.
type sharedStreams struct{ pool *pgxpool.Pool }

// position implements streamStore.
func (s sharedStreams) position(ctx context.Context, key streamKey) (at uint64, err error) {
	err = s.pool.QueryRow(ctx, "SELECT position FROM streams, log WHERE key = $1 AND least <= integrated", key[:]).Scan(&at)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return at, databaseTrouble(err)
}

// write implements streamStore: all streams of this frontend that move at once,
// in one transaction.
func (s sharedStreams) write(batch []streamRecord) error {
	ctx, cancel := context.WithTimeout(context.Background(), statementLimit)
	defer cancel()
	// In the order of keys, so that two frontends do not wait for each other.
	slices.SortFunc(batch, func(a, b streamRecord) int { return bytes.Compare(a.key[:], b.key[:]) })
	var keys [][]byte
	var positions, least []int64
	for _, r := range batch {
		keys, positions, least = append(keys, r.key[:]), append(positions, int64(r.position)), append(least, int64(r.least))
	}
	return databaseTrouble(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		var integrated int64
		var unsafe string
		begun := false // a stream that was not known
		b := &pgx.Batch{}
		b.Queue("SELECT integrated, " + unsafeSetting + " FROM log").QueryRow(func(r pgx.Row) error {
			return r.Scan(&integrated, &unsafe)
		})
		b.Queue(`INSERT INTO streams (key, position, least) SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bigint[])
			ON CONFLICT (key) DO UPDATE SET position = excluded.position, least = greatest(streams.least, excluded.least), moved = excluded.moved
			WHERE streams.position < excluded.position RETURNING xmax = 0`, keys, positions, least).Query(func(r pgx.Rows) error {
			for r.Next() {
				var isNew bool
				if err := r.Scan(&isNew); err != nil {
					return err
				}
				begun = begun || isNew
			}
			return r.Err()
		})
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		if unsafe != "" {
			return refuseUnsafe(unsafe)
		}
		if most := slices.Max(least); most > integrated {
			return fmt.Errorf("%w: the shared database knows %d entries, a stream was answered %d", ErrStorage, integrated, most)
		}
		if !begun {
			return nil
		}
		// Another frontend's that move just now are not waited for: they stay.
		_, err := tx.Exec(ctx, `DELETE FROM streams WHERE key IN (SELECT key FROM streams
			WHERE (moved, key) < (SELECT moved, key FROM streams ORDER BY moved DESC, key DESC OFFSET $1 LIMIT 1) FOR UPDATE SKIP LOCKED)`, maxStreams-1)
		return err
	}))
}

// close implements streamStore.
func (s sharedStreams) close() error { return nil }

// forgetStreams takes back what streams were told of entries from size on, of
// which nothing says that they are still the same.
func forgetStreams(ctx context.Context, tx pgx.Tx, size uint64) error {
	_, err := tx.Exec(ctx, "DELETE FROM streams WHERE least > $1", int64(size))
	return err
}
