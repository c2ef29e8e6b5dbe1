// Reading the index: what the web page and the command line show.

package monitor

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/monitor/alert"
)

// A ProjectRow is one project in the index.
type ProjectRow struct {
	Watch
	Entries int
	Last    uint64 // index of its newest entry
}

// A Record is one indexed entry.
type Record struct {
	Index uint64
	Leaf  []byte
	Entry *entry.Entry // nil where the leaf cannot be read
	Err   error

	// Verdict is what the subscriptions made of it when it was read:
	// alert.Unexpected, alert.Tampering, or empty.
	Verdict alert.Severity
}

// Search finds projects by name (exact first, then by prefix), and entries by
// the hex of a sha256.
func (s *Store) Search(ctx context.Context, origin, query string, limit int) (projects []ProjectRow, files []Record, err error) {
	query = strings.TrimSpace(query)
	if query == "" || len(query) > 300 {
		return nil, nil, nil
	}
	if b, err := hex.DecodeString(query); err == nil && len(b) == 32 {
		files, err = s.records(ctx, `SELECT idx, leaf, verdict FROM entry WHERE digest = ? AND log = (SELECT id FROM log WHERE origin = ?) ORDER BY idx LIMIT ?`,
			digestPrefix(query), origin, limit)
		if err != nil {
			return nil, nil, err
		}
		exact := files[:0]
		for _, f := range files {
			if f.Entry != nil && f.Entry.SHA256 == strings.ToLower(query) {
				exact = append(exact, f)
			}
		}
		return nil, exact, nil
	}
	// One spelling for each ecosystem's normal form, as people type them.
	names := []string{strings.ToLower(query)}
	for _, eco := range entry.Ecosystems() {
		if n, err := entry.NormalProject(eco, query); err == nil {
			names = append(names, n)
		}
	}
	seen := map[Watch]bool{}
	for _, n := range names {
		// A range over the primary key instead of LIKE: no character of the
		// query means anything.
		rows, err := s.r.QueryContext(ctx, `SELECT p.registry, p.ecosystem, p.name, count(*), max(e.idx) FROM
			(SELECT * FROM project WHERE name >= ? AND name < ? || char(1114111) ORDER BY name LIMIT ?) p
			JOIN entry e ON e.project = p.id AND e.project <> 0 AND e.log = (SELECT id FROM log WHERE origin = ?)
			GROUP BY p.id ORDER BY p.name`, n, n, limit, origin)
		if err != nil {
			return nil, nil, fmt.Errorf("database: %w", err)
		}
		for rows.Next() {
			var p ProjectRow
			if err := rows.Scan(&p.Registry, &p.Ecosystem, &p.Project, &p.Entries, &p.Last); err != nil {
				rows.Close()
				return nil, nil, fmt.Errorf("database: %w", err)
			}
			if !seen[p.Watch] && len(projects) < limit {
				seen[p.Watch] = true
				projects = append(projects, p)
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, nil, fmt.Errorf("database: %w", err)
		}
	}
	return projects, nil, nil
}

// Timeline returns a project's entries, newest first, those below before only.
func (s *Store) Timeline(ctx context.Context, origin string, w Watch, before uint64, limit int) ([]Record, error) {
	if before > 1<<62 {
		before = 1 << 62
	}
	return s.records(ctx, `SELECT idx, leaf, verdict FROM entry WHERE project = (SELECT id FROM project WHERE name = ? AND registry = ? AND ecosystem = ?) AND project <> 0
		AND log = (SELECT id FROM log WHERE origin = ?) AND idx < ? ORDER BY idx DESC LIMIT ?`, w.Project, w.Registry, w.Ecosystem, origin, before, limit)
}

// Newest returns the newest entries of the log, newest first.
func (s *Store) Newest(ctx context.Context, origin string, limit int) ([]Record, error) {
	return s.records(ctx, `SELECT idx, leaf, verdict FROM entry WHERE log = (SELECT id FROM log WHERE origin = ?) ORDER BY idx DESC LIMIT ?`, origin, limit)
}

// Record returns one entry; nil if it is not indexed (yet).
func (s *Store) Record(ctx context.Context, origin string, index uint64) (*Record, error) {
	if index > 1<<62 {
		return nil, nil
	}
	list, err := s.records(ctx, `SELECT idx, leaf, verdict FROM entry WHERE log = (SELECT id FROM log WHERE origin = ?) AND idx = ?`, origin, index)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return &list[0], nil
}

// Told counts the deliveries of alerts about a record, by what became of them.
// Whom they went to is nobody's business.
type Told struct{ Owed, Sent, Failed int }

// Told counts the deliveries of alerts about one record.
func (s *Store) Told(ctx context.Context, origin string, r *Record) (Told, error) {
	var t Told
	// An alert about the same number in a forgotten history carries another leaf.
	err := s.r.QueryRowContext(ctx, `SELECT count(*) FILTER (WHERE state = 'owed'), count(*) FILTER (WHERE state = 'sent'), count(*) FILTER (WHERE state = 'failed')
		FROM delivery WHERE notice IN (SELECT notice FROM alert WHERE log = (SELECT id FROM log WHERE origin = ?) AND idx = ? AND notice <> '' AND instr(body, ?) > 0)`,
		origin, r.Index, string(r.Leaf)).Scan(&t.Owed, &t.Sent, &t.Failed)
	if err != nil {
		return t, fmt.Errorf("database: %w", err)
	}
	return t, nil
}

func (s *Store) records(ctx context.Context, q string, args ...any) ([]Record, error) {
	rows, err := s.r.QueryContext(ctx, q, args...)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer rows.Close()
	var out []Record
	for rows.Next() {
		var r Record
		if err := rows.Scan(&r.Index, &r.Leaf, &r.Verdict); err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		r.Entry, r.Err = entry.Parse(r.Leaf)
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return out, nil
}

// Health is how the log and the monitor are.
type Health struct {
	Origin     string
	Size       uint64    // of the newest accepted checkpoint
	Verified   uint64    // entries verified and indexed
	VerifiedAt time.Time // when the cursor last moved
	Checkpoint []byte    // signed note of the newest accepted checkpoint; nil: none yet
	Quorum     time.Time // when a quorum last said it is the newest; zero: none, or no witnesses in the policy
	CanaryAt   time.Time
	Tampering  string      // why the monitor stands still
	Conditions []Condition // infrastructure troubles in progress

	Subscriptions, Projects int // watched; projects indexed
	Owed, Sent, Failed      int // deliveries
	OldestOwed              time.Time
	Receivers               []ReceiverHealth // those that fail now
}

// A Condition is an infrastructure trouble in progress.
type Condition struct {
	Kind   string
	Since  time.Time
	Told   bool
	Detail string
}

// A ReceiverHealth is a receiver that does not take its alerts. Where says its
// host only.
type ReceiverHealth struct {
	Kind, Where string
	Failures    int
	NextTry     time.Time
}

// Behind is how many entries have not been verified yet.
func (h *Health) Behind() uint64 { return h.Size - h.Verified }

// Health reads how the log and the monitor are.
func (s *Store) Health(ctx context.Context, origin string) (*Health, error) {
	tx, err := s.r.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer tx.Rollback()
	l, err := scanLog(tx.QueryRowContext(ctx, `SELECT `+logColumns+` FROM log WHERE origin = ?`, origin))
	if err != nil {
		return nil, fmt.Errorf("database: log %q: %w", origin, err)
	}
	h := &Health{Origin: origin, Size: l.HeadSize, Verified: l.Verified.Size, Checkpoint: l.HeadNote, Quorum: l.HeadTime, CanaryAt: l.CanaryAt, Tampering: l.Tampering}
	var verifiedAt, oldest int64
	for _, q := range []struct {
		to   any
		sql  string
		args []any
	}{
		{&verifiedAt, `SELECT verified_at FROM log WHERE id = ?`, []any{l.ID}},
		{&h.Subscriptions, `SELECT count(*) FROM subscription`, nil},
		{&h.Projects, `SELECT count(*) FROM project`, nil},
		{&h.Owed, `SELECT count(*) FROM delivery WHERE state = 'owed'`, nil},
		{&h.Sent, `SELECT count(*) FROM delivery WHERE state = 'sent'`, nil},
		{&h.Failed, `SELECT count(*) FROM delivery WHERE state = 'failed'`, nil},
		{&oldest, `SELECT coalesce(min(owed_at), 0) FROM delivery WHERE state = 'owed'`, nil},
	} {
		if err := tx.QueryRowContext(ctx, q.sql, q.args...).Scan(q.to); err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
	}
	h.VerifiedAt = unixOrZero(verifiedAt)
	if oldest != 0 {
		h.OldestOwed = time.UnixMilli(oldest)
	}
	rows, err := tx.QueryContext(ctx, `SELECT kind, since, told, detail FROM condition WHERE log = ? ORDER BY since`, l.ID)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var c Condition
		var ms int64
		if err := rows.Scan(&c.Kind, &ms, &c.Told, &c.Detail); err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		c.Since = time.UnixMilli(ms)
		h.Conditions = append(h.Conditions, c)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	if rows, err = tx.QueryContext(ctx, `SELECT kind, address, failures, blocked_until FROM receiver WHERE active = 1 AND failures > 0 ORDER BY failures DESC LIMIT 20`); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var r alert.Receiver
		var rh ReceiverHealth
		var ms int64
		if err := rows.Scan(&r.Kind, &r.Address, &rh.Failures, &ms); err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		rh.Kind, rh.Where, rh.NextTry = r.Kind, receiverHost(r), time.UnixMilli(ms)
		h.Receivers = append(h.Receivers, rh)
	}
	return h, rows.Err()
}

// Tampering lists the alerts of that severity, newest first: what the log or
// an index did stays on the page after it has passed.
func (s *Store) Tampering(ctx context.Context, limit int) ([]alert.Alert, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT body, proof, proof_error FROM alert WHERE severity = 0 ORDER BY created DESC, id LIMIT ?`, 4*limit)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	defer rows.Close()
	var out []alert.Alert
	seen := map[string]bool{} // one finding may be told to several
	for rows.Next() {
		var body, proof, missing string
		if err := rows.Scan(&body, &proof, &missing); err != nil {
			return nil, fmt.Errorf("database: %w", err)
		}
		a, err := decodeAlert(body, proof, missing)
		if err != nil {
			return nil, err
		}
		key := a.Kind + "|" + a.Title
		if a.Index != nil {
			key += fmt.Sprint("|", *a.Index)
		}
		if !seen[key] && len(out) < limit {
			seen[key] = true
			out = append(out, a)
		}
	}
	return out, rows.Err()
}
