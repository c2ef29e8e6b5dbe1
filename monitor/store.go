// The monitor's database: SQLite, one file, one writer. Trust: who can change
// this file can suppress alerts and hide rows, but never make the monitor
// accept a history that the witnesses did not cosign.

package monitor

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ErrNoDatabase is returned by OpenStore where there is no database. To begin
// without one is to forget what the log showed before: an operator decides it.
var ErrNoDatabase = errors.New("no database; `portbook-monitor init` makes one, and everything the monitor saw before is forgotten then")

// Store is the monitor's memory.
type Store struct {
	path string
	w    *sql.DB // one connection: writes are in one order
	r    *sql.DB // many, read-only
	now  func() time.Time
}

// CreateStore makes an empty database at path (mode 0600). It refuses to
// replace one.
func CreateStore(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: there is a database already: %w", path, fs.ErrExist)
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	s, err := OpenStore(ctx, path, nil)
	if err != nil {
		return err
	}
	return s.Close()
}

// OpenStore opens the database at path and brings its schema up to date. now
// judges due times; nil is time.Now.
func OpenStore(ctx context.Context, path string, now func() time.Time) (*Store, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrNoDatabase)
	} else if err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	// synchronous=FULL: what was committed survives a power cut, so an alert
	// that was sent is never unknown to the database that sent it.
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)"
	w, err := sql.Open("sqlite", dsn+"&_txlock=immediate&_pragma=cache_size(-65536)")
	if err != nil {
		return nil, err
	}
	w.SetMaxOpenConns(1)
	s := &Store{path: path, w: w, now: now}
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, w, sub)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if _, err := p.Up(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: migrate: %w", path, err), w.Close())
	}
	if s.r, err = sql.Open("sqlite", dsn+"&_pragma=query_only(1)"); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	s.r.SetMaxOpenConns(4)
	return s, nil
}

// Close closes the database.
func (s *Store) Close() error { return errors.Join(s.r.Close(), s.w.Close()) }

// tx runs f in one write transaction.
func (s *Store) tx(ctx context.Context, f func(tx *sql.Tx) error) error {
	tx, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("database: commit: %w", err)
	}
	return nil
}

// logState is one row of the table log.
type logState struct {
	ID        int64
	Origin    string
	AlertFrom uint64
	Verified  Position
	HeadSize  uint64
	HeadRoot  [32]byte
	HeadNote  []byte
	HeadTime  time.Time // zero: never, or a policy without witnesses
	CanaryAt  time.Time
	Tampering string
}

const logColumns = `id, origin, alert_from, verified_size, verified_root, verified_range, head_size, head_root, head_note, head_time, canary_at, tampering`

func scanLog(row interface{ Scan(...any) error }) (*logState, error) {
	var l logState
	var vroot, vrange, hroot []byte
	var headTime, canary int64
	if err := row.Scan(&l.ID, &l.Origin, &l.AlertFrom, &l.Verified.Size, &vroot, &vrange, &l.HeadSize, &hroot, &l.HeadNote, &headTime, &canary, &l.Tampering); err != nil {
		return nil, err
	}
	if len(vroot) != 32 || len(hroot) != 32 || len(vrange)%32 != 0 {
		return nil, fmt.Errorf("database: log %q: cursor has hashes of the wrong length", l.Origin)
	}
	copy(l.Verified.Root[:], vroot)
	copy(l.HeadRoot[:], hroot)
	for ; len(vrange) > 0; vrange = vrange[32:] {
		l.Verified.Range = append(l.Verified.Range, [32]byte(vrange[:32]))
	}
	if err := l.Verified.check(); err != nil {
		return nil, fmt.Errorf("database: log %q: %w", l.Origin, err)
	}
	l.HeadTime = unixOrZero(headTime)
	l.CanaryAt = unixOrZero(canary)
	return &l, nil
}

func unixOrZero(sec int64) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	return time.Unix(sec, 0).UTC()
}

// loadLog returns the state of a log; nil if the database does not know it.
func (s *Store) loadLog(ctx context.Context, origin string) (*logState, error) {
	l, err := scanLog(s.w.QueryRowContext(ctx, `SELECT `+logColumns+` FROM log WHERE origin = ?`, origin))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return l, err
}

// addLog makes the first row of a log.
func (s *Store) addLog(ctx context.Context, origin string, alertFrom uint64) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO log (origin, alert_from, verified_root, head_root) VALUES (?, ?, ?, ?)`, origin, alertFrom, emptyRoot[:], emptyRoot[:])
		return err
	})
}

// forgetHistory starts a log's index and cursor again from nothing, keeping
// alerts and what is owed. It is what --accept-new-baseline does to a log that
// contradicted its past.
func (s *Store) forgetHistory(ctx context.Context, log int64) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		for _, q := range []string{
			`DELETE FROM entry WHERE log = ?`, `DELETE FROM slot WHERE log = ?`, `DELETE FROM registry_policy WHERE log = ?`, `DELETE FROM condition WHERE log = ?`,
		} {
			if _, err := tx.ExecContext(ctx, q, log); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, `UPDATE alert SET needs_proof = 0, proof_error = 'The log''s history was forgotten by the operator before the proof could be fetched.' WHERE log = ? AND needs_proof = 1`, log); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE log SET verified_size = 0, verified_root = ?, verified_range = x'', verified_at = 0,
			head_size = 0, head_root = ?, head_note = x'', head_time = 0, canary_at = 0, tampering = '' WHERE id = ?`, emptyRoot[:], emptyRoot[:], log)
		return err
	})
}

// setHead records an accepted checkpoint.
func (s *Store) setHead(ctx context.Context, log int64, size uint64, root [32]byte, note []byte, quorum time.Time) error {
	_, err := s.w.ExecContext(ctx, `UPDATE log SET head_size = ?, head_root = ?, head_note = ?, head_time = ? WHERE id = ?`,
		size, root[:], note, unixSeconds(quorum), log)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return nil
}

func unixSeconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// advance moves the cursor inside a transaction.
func advance(ctx context.Context, tx *sql.Tx, log int64, p Position, at time.Time) error {
	flat := make([]byte, 0, 32*len(p.Range))
	for _, h := range p.Range {
		flat = append(flat, h[:]...)
	}
	_, err := tx.ExecContext(ctx, `UPDATE log SET verified_size = ?, verified_root = ?, verified_range = ?, verified_at = ? WHERE id = ?`,
		p.Size, p.Root[:], flat, at.Unix(), log)
	return err
}
