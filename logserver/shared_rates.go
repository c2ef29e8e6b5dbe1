package logserver

// The rates of credentials, over all frontends of a shared log: one bucket for
// each in the database, of as many submissions as a second has. A frontend takes
// a tenth of a second's at a time, or what a call needs, and what it has not used
// a second later is lost. So n frontends together allow the rate, and a tenth of
// a second's more for each in a burst.

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	leaseParts = 10                    // of a second's submissions
	leaseFor   = time.Second           // that what was taken may be used
	leasePause = 20 * time.Millisecond // before an empty bucket is asked again
)

// sharedRates is a frontend's part of the buckets.
type sharedRates struct {
	pool *pgxpool.Pool

	mu sync.Mutex
	of map[string]*lease // guarded by mu; by credential
}

// lease is what a frontend has taken of one bucket.
type lease struct {
	mu    sync.Mutex // held while the database is asked: others wait for its answer
	left  int        // guarded by mu
	until time.Time  // guarded by mu; for left
	again time.Time  // guarded by mu; the bucket was empty
}

func newSharedRates(pool *pgxpool.Pool) *sharedRates {
	return &sharedRates{pool: pool, of: map[string]*lease{}}
}

// upTo takes as many submissions as a credential's rate allows, at most n.
func (r *sharedRates) upTo(ctx context.Context, by Credential, n int) (int, error) {
	if by.Rate == 0 {
		return n, nil
	}
	r.mu.Lock()
	l := r.of[by.ID]
	if l == nil {
		if len(r.of) >= maxLimits {
			clear(r.of)
		}
		l = &lease{}
		r.of[by.ID] = l
	}
	r.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.After(l.until) {
		l.left = 0
	}
	if l.left < n && !now.Before(l.again) {
		want := max(n-l.left, by.Rate/leaseParts)
		granted, err := r.take(ctx, by, want)
		if err != nil {
			return 0, err
		}
		if granted < want {
			l.again = now.Add(leasePause)
		}
		if granted > 0 {
			l.left += granted
			l.until = now.Add(leaseFor)
		}
	}
	n = min(n, l.left)
	l.left -= n
	return n, nil
}

// take takes up to want out of a credential's bucket, which holds and gets as
// many as its rate says.
func (r *sharedRates) take(ctx context.Context, by Credential, want int) (granted int, err error) {
	err = r.pool.QueryRow(ctx, `INSERT INTO rates AS b (id, tokens, granted, at)
		SELECT $1, most - least(want, most), least(want, most), clock_timestamp() FROM (SELECT $2::float8 AS most, $3::float8 AS want) asked
		ON CONFLICT (id) DO UPDATE SET (tokens, granted, at) = (
			SELECT has - greatest(0, floor(least($3::float8, has))), greatest(0, floor(least($3::float8, has))), excluded.at
			FROM (SELECT least($2::float8, b.tokens + $2::float8 * greatest(0, extract(epoch FROM excluded.at - b.at))) AS has) bucket)
		RETURNING granted`, by.ID, by.Rate, want).Scan(&granted)
	if err != nil {
		return 0, fmt.Errorf("rates: %w", databaseTrouble(err))
	}
	return granted, nil
}
