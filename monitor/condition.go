// Conditions in the database: infrastructure troubles in progress, so that a
// restart neither forgets nor repeats them.

package monitor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

type condition struct {
	since  time.Time
	told   bool
	detail string
}

func (s *Store) getCondition(ctx context.Context, log int64, kind string) (*condition, error) {
	var c condition
	var ms int64
	err := s.w.QueryRowContext(ctx, `SELECT since, told, detail FROM condition WHERE log = ? AND kind = ?`, log, kind).Scan(&ms, &c.told, &c.detail)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	c.since = time.UnixMilli(ms)
	return &c, nil
}

// putCondition records a condition together with what is owed about it.
func (s *Store) putCondition(ctx context.Context, log int64, kind string, c *condition, fs []finding) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO condition (log, kind, since, told, detail) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT DO UPDATE SET told = excluded.told, detail = excluded.detail`, log, kind, c.since.UnixMilli(), c.told, c.detail); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		for _, f := range fs {
			if err := owe(ctx, tx, log, f, s.now(), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Store) endCondition(ctx context.Context, log int64, kind string, fs []finding) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM condition WHERE log = ? AND kind = ?`, log, kind); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		for _, f := range fs {
			if err := owe(ctx, tx, log, f, s.now(), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// setTampering records why the monitor stands still.
func (s *Store) setTampering(ctx context.Context, log int64, why string) error {
	if _, err := s.w.ExecContext(ctx, `UPDATE log SET tampering = ? WHERE id = ?`, why, log); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return nil
}

// head is loadLog for readers: it does not wait for the writer.
func (s *Store) head(ctx context.Context, origin string) (*logState, error) {
	l, err := scanLog(s.r.QueryRowContext(ctx, `SELECT `+logColumns+` FROM log WHERE origin = ?`, origin))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return l, nil
}
