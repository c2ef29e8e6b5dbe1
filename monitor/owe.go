// Owing: a finding becomes rows of alert, notice and delivery, inside the
// caller's transaction.

package monitor

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/portbook/portbook/monitor/alert"
)

// maxNotice is how many alerts one notice takes.
const maxNotice = 100

func severityRank(s alert.Severity) int {
	for i, v := range alert.Severities() {
		if v == s {
			return i
		}
	}
	return len(alert.Severities())
}

// owe records a finding and, unless it has been told already or nobody is to be
// told, owes it. window is how long a group collects; 0 groups nothing.
func owe(ctx context.Context, tx *sql.Tx, log int64, f finding, now time.Time, window time.Duration) error {
	a := f.alert
	a.Created = now.UTC().Truncate(time.Second)
	body, err := alert.Marshal(a)
	if err != nil {
		return fmt.Errorf("alert %s: %w", a.ID, err)
	}
	ms := now.UnixMilli()
	needsProof := f.proof && a.Index != nil
	var idx any
	if a.Index != nil {
		idx = *a.Index
	}
	res, err := tx.ExecContext(ctx, `INSERT OR IGNORE INTO alert (id, severity, kind, log, idx, quiet_key, body, needs_proof, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		a.ID, severityRank(a.Severity), a.Kind, log, idx, f.quiet, string(body), needsProof, ms)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err // known under this ID: told, or about to be
	}
	if f.quiet != "" {
		var lately bool
		if err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM alert WHERE quiet_key = ? AND created > ? AND notice <> '')`, f.quiet, now.Add(-quietDay).UnixMilli()).Scan(&lately); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if lately {
			return nil
		}
	}
	var receivers []int64
	for _, t := range f.to {
		if !t.wants(a.Severity) {
			continue
		}
		id, err := receiverID(ctx, tx, t.receiver())
		if err != nil {
			return err
		}
		receivers = append(receivers, id)
	}
	if len(receivers) == 0 {
		return nil
	}
	notice := a.ID
	if a.Severity == alert.Tampering || window <= 0 {
		f.group = ""
	}
	joined := false
	if f.group != "" {
		err := tx.QueryRowContext(ctx, `SELECT id FROM notice WHERE group_key = ? AND open = 1 AND send_after > ?
			AND (SELECT count(*) FROM alert WHERE notice = notice.id) < ? LIMIT 1`, f.group, ms, maxNotice).Scan(&notice)
		switch {
		case err == nil:
			joined = true
		case !errors.Is(err, sql.ErrNoRows):
			return fmt.Errorf("database: %w", err)
		}
	}
	if !joined {
		after := ms
		if f.group != "" {
			after = now.Add(window).UnixMilli()
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO notice (id, severity, subscription, group_key, send_after, created) VALUES (?, ?, ?, ?, ?, ?)`,
			notice, severityRank(a.Severity), f.subscription, f.group, after, ms); err != nil {
			return fmt.Errorf("database: %w", err)
		}
	}
	if _, err := tx.ExecContext(ctx, `UPDATE alert SET notice = ? WHERE id = ?`, notice, a.ID); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	for _, r := range receivers {
		if _, err := tx.ExecContext(ctx, `INSERT OR IGNORE INTO delivery (notice, receiver, severity, owed_at) VALUES (?, ?, ?, ?)`, notice, r, severityRank(a.Severity), ms); err != nil {
			return fmt.Errorf("database: %w", err)
		}
	}
	return nil
}

// receiverID returns the row of a receiver, making it if need be.
func receiverID(ctx context.Context, tx *sql.Tx, r alert.Receiver) (int64, error) {
	var id int64
	err := tx.QueryRowContext(ctx, `SELECT id FROM receiver WHERE kind = ? AND address = ?`, r.Kind, r.Address).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.QueryRowContext(ctx, `INSERT INTO receiver (kind, address, secret) VALUES (?, ?, ?) RETURNING id`, r.Kind, r.Address, r.Secret).Scan(&id)
	}
	if err != nil {
		return 0, fmt.Errorf("database: receiver: %w", err)
	}
	return id, nil
}

// setSubscriptions makes the database agree with a subscriptions file. What is
// owed to receivers that are no longer in it is dropped.
func (s *Store) setSubscriptions(ctx context.Context, subs *Subscriptions) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		for _, q := range []string{`DELETE FROM subscription`, `UPDATE receiver SET active = 0, operator = 0`} {
			if _, err := tx.ExecContext(ctx, q); err != nil {
				return fmt.Errorf("database: %w", err)
			}
		}
		for i := range subs.List {
			sub := &subs.List[i]
			if _, err := tx.ExecContext(ctx, `INSERT INTO subscription (name, watch, expect) VALUES (?, ?, ?)`, sub.Name, mustJSON(sub.Projects), mustJSON(sub.Expect)); err != nil {
				return fmt.Errorf("database: %w", err)
			}
		}
		for _, t := range subs.everyone() {
			r := t.receiver()
			if _, err := tx.ExecContext(ctx, `INSERT INTO receiver (kind, address, secret, active) VALUES (?, ?, ?, 1)
				ON CONFLICT (kind, address) DO UPDATE SET secret = excluded.secret, active = 1`, r.Kind, r.Address, r.Secret); err != nil {
				return fmt.Errorf("database: %w", err)
			}
		}
		for _, t := range subs.Operator.Notify {
			r := t.receiver()
			if !t.wants(alert.Infrastructure) {
				continue
			}
			if _, err := tx.ExecContext(ctx, `UPDATE receiver SET operator = 1 WHERE kind = ? AND address = ?`, r.Kind, r.Address); err != nil {
				return fmt.Errorf("database: %w", err)
			}
		}
		if _, err := tx.ExecContext(ctx, `UPDATE delivery SET state = 'dropped', error = 'the receiver is no longer in the subscriptions file', done_at = ?
			WHERE state = 'owed' AND receiver IN (SELECT id FROM receiver WHERE active = 0)`, s.now().UnixMilli()); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		return nil
	})
}

// oweNow records findings that are not about an entry.
func (s *Store) oweNow(ctx context.Context, log int64, window time.Duration, fs ...finding) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		for _, f := range fs {
			if err := owe(ctx, tx, log, f, s.now(), window); err != nil {
				return err
			}
		}
		return nil
	})
}

// An unproven alert waits for its tlog-proof.
type unproven struct {
	id      string
	index   uint64
	leaf    []byte
	created time.Time
}

func (s *Store) unproven(ctx context.Context, log int64, limit int) ([]unproven, error) {
	rows, err := s.w.QueryContext(ctx, `SELECT a.id, a.idx, a.created, e.leaf FROM alert a JOIN entry e ON e.log = a.log AND e.idx = a.idx
		WHERE a.needs_proof = 1 AND a.log = ? LIMIT ?`, log, limit)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer rows.Close()
	var out []unproven
	for rows.Next() {
		var u unproven
		var ms int64
		if err := rows.Scan(&u.id, &u.index, &ms, &u.leaf); err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		u.created = time.UnixMilli(ms)
		out = append(out, u)
	}
	return out, rows.Err()
}

func setProof(ctx context.Context, tx *sql.Tx, id, proof, missing string) error {
	if _, err := tx.ExecContext(ctx, `UPDATE alert SET needs_proof = 0, proof = ?, proof_error = ? WHERE id = ?`, proof, missing, id); err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return nil
}

// decodeAlert puts an alert together from its row.
func decodeAlert(body, proof, missing string) (alert.Alert, error) {
	var a alert.Alert
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		return a, fmt.Errorf("database: alert: %w", err)
	}
	a.Proof, a.ProofMissing = proof, missing
	return a, nil
}
