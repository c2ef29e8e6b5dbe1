// The durable side of the outbox: Store is an alert.Queue.

package monitor

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/portbook/portbook/monitor/alert"
)

var _ alert.Queue = (*Store)(nil)

// Due implements alert.Queue. A notice that is handed out is closed: no
// alert joins it any more.
func (s *Store) Due(ctx context.Context, now time.Time, busy []int64, limit int) (out []alert.Delivery, err error) {
	inFlight := make(map[int64]bool, len(busy))
	for _, id := range busy {
		inFlight[id] = true
	}
	ready, err := s.readyReceivers(ctx, now, inFlight, limit)
	if err != nil || len(ready) == 0 {
		return nil, err
	}
	err = s.tx(ctx, func(tx *sql.Tx) error {
		out = nil
		for _, rid := range ready {
			var d alert.Delivery
			var owed int64
			var rank int
			err := tx.QueryRowContext(ctx, `SELECT d.id, d.attempts, d.owed_at, n.id, n.severity, n.subscription, r.id, r.kind, r.address, r.secret, r.failures
				FROM delivery d JOIN notice n ON n.id = d.notice JOIN receiver r ON r.id = d.receiver
				WHERE d.receiver = ? AND d.state = 'owed' AND n.send_after <= ?
				AND NOT EXISTS (SELECT 1 FROM alert a WHERE a.notice = n.id AND a.needs_proof = 1)
				ORDER BY d.severity, d.attempts, d.id LIMIT 1`, rid, now.UnixMilli()).Scan(
				&d.ID, &d.Attempts, &owed, &d.Notice.ID, &rank, &d.Notice.Subscription,
				&d.Receiver.ID, &d.Receiver.Kind, &d.Receiver.Address, &d.Receiver.Secret, &d.Failures)
			if err == sql.ErrNoRows {
				continue
			}
			if err != nil {
				return fmt.Errorf("database: %w", err)
			}
			d.Owed = time.UnixMilli(owed)
			if rank < 0 || rank >= len(alert.Severities()) {
				return fmt.Errorf("database: notice %s: unknown severity %d", d.Notice.ID, rank)
			}
			d.Notice.Severity = alert.Severities()[rank]
			if _, err := tx.ExecContext(ctx, `UPDATE notice SET open = 0 WHERE id = ? AND open = 1`, d.Notice.ID); err != nil {
				return fmt.Errorf("database: %w", err)
			}
			if d.Notice.Alerts, err = noticeAlerts(ctx, tx, d.Notice.ID); err != nil {
				return err
			}
			out = append(out, d)
		}
		return nil
	})
	return out, err
}

// readyReceivers lists receivers that something is owed to and that are not
// backing off. It reads without the writer's lock: Due looks again.
func (s *Store) readyReceivers(ctx context.Context, now time.Time, busy map[int64]bool, limit int) ([]int64, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT r.id FROM receiver r WHERE r.active = 1 AND r.blocked_until <= ?
		AND EXISTS (SELECT 1 FROM delivery d WHERE d.receiver = r.id AND d.state = 'owed')`, now.UnixMilli())
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		if !busy[id] && len(ids) < limit {
			ids = append(ids, id)
		}
	}
	return ids, rows.Err()
}

func noticeAlerts(ctx context.Context, tx *sql.Tx, notice string) ([]alert.Alert, error) {
	rows, err := tx.QueryContext(ctx, `SELECT body, proof, proof_error FROM alert WHERE notice = ? ORDER BY id = ? DESC, created, idx, id`, notice, notice)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer rows.Close()
	var out []alert.Alert
	for rows.Next() {
		var body, proof, missing string
		if err := rows.Scan(&body, &proof, &missing); err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		a, err := decodeAlert(body, proof, missing)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, rows.Err()
}

// Sent implements alert.Queue.
func (s *Store) Sent(ctx context.Context, d alert.Delivery, at time.Time) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE delivery SET state = 'sent', attempts = attempts + 1, error = '', done_at = ? WHERE id = ?`, at.UnixMilli(), d.ID); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE receiver SET failures = 0, blocked_until = 0, last_error = '', last_sent = ? WHERE id = ?`, at.UnixMilli(), d.Receiver.ID); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		return nil
	})
}

// Retry implements alert.Queue.
func (s *Store) Retry(ctx context.Context, d alert.Delivery, next time.Time, reason string) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		reason := alert.OneLine(reason)
		if _, err := tx.ExecContext(ctx, `UPDATE delivery SET attempts = attempts + 1, error = ? WHERE id = ?`, reason, d.ID); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE receiver SET failures = failures + 1, blocked_until = ?, last_error = ? WHERE id = ?`, next.UnixMilli(), reason, d.Receiver.ID); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		return nil
	})
}

// Failed implements alert.Queue. The operator hears of it, except of the
// failure of an alert about a failure.
func (s *Store) Failed(ctx context.Context, d alert.Delivery, at time.Time, reason string) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		reason := alert.OneLine(reason)
		if _, err := tx.ExecContext(ctx, `UPDATE delivery SET state = 'failed', attempts = attempts + 1, error = ?, done_at = ? WHERE id = ?`, reason, at.UnixMilli(), d.ID); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE receiver SET failures = failures + 1, last_error = ? WHERE id = ?`, reason, d.Receiver.ID); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		if len(d.Notice.Alerts) > 0 && d.Notice.Alerts[0].Kind == "delivery" {
			return nil
		}
		a := deliveryFailedAlert(d.Receiver.Kind, receiverHost(d.Receiver), d.Notice, d.Attempts+1, reason)
		a.ID = alert.ID("delivery", d.Notice.ID, d.Receiver.Kind, d.Receiver.Address)
		rows, err := tx.QueryContext(ctx, `SELECT kind, address, secret FROM receiver WHERE operator = 1 AND active = 1 AND id <> ?`, d.Receiver.ID)
		if err != nil {
			return fmt.Errorf("database: %w", err)
		}
		defer rows.Close()
		f := finding{alert: a}
		for rows.Next() {
			var kind, address, secret string
			if err := rows.Scan(&kind, &address, &secret); err != nil {
				return fmt.Errorf("database: %w", err)
			}
			if kind == alert.Email {
				f.to = append(f.to, Target{Email: address})
			} else {
				f.to = append(f.to, Target{Webhook: address, Secret: secret})
			}
		}
		if err := rows.Err(); err != nil {
			return fmt.Errorf("database: %w", err)
		}
		rows.Close()
		return owe(ctx, tx, 0, f, at, 0)
	})
}

// receiverHost says where a receiver is without saying who: a webhook's path
// and a mail address's local part may be private.
func receiverHost(r alert.Receiver) string {
	if r.Kind == alert.Email {
		return r.Address[strings.LastIndexByte(r.Address, '@')+1:]
	}
	if u, err := url.Parse(r.Address); err == nil {
		return u.Host
	}
	return "an address that cannot be parsed"
}
