// The durable outbox: what the gateway has promised and not yet finished, in one
// SQLite database. Who can change it can withhold files from the pages and
// unmask uploader pseudonyms; it cannot make a client accept a file, because
// clients verify proofs by their own policy.

package gateway

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// A State is where an upload stands. See the picture in gateway.go.
type State string

// The states of an upload. One that the index refused has none: nothing of it is
// kept.
const (
	Received   State = "received"   // whole and hashed, the index has not heard of it
	Forwarding State = "forwarding" // handed to the index, outcome unknown
	Accepted   State = "accepted"   // the index took it; to be logged
	Submitted  State = "submitted"  // handed to the log, outcome unknown
	Proven     State = "proven"     // proof stored: on the pages
	Conflict   State = "conflict"   // the log holds the name for other bytes: withheld
)

// What the index's page said of a file's name just before it was handed over.
const (
	listedNo    = "no"    // not there
	listedSame  = "same"  // there, with this digest
	listedOther = "other" // there, with another digest or none, or nobody could tell
)

//go:embed migrations/*.sql
var migrations embed.FS

type outbox struct {
	db         *sql.DB
	registry   string
	accountKey []byte // under which salts are found; see salts.go
	lock       *os.File
}

// attempt is a row of attempts.
type attempt struct {
	id      int64
	e       *entry.Entry
	listed  string
	created time.Time
	tries   int
}

// file is a row of files.
type file struct {
	seq        int64
	state      State
	e          *entry.Entry
	acceptedAt time.Time
	tries      int
	logIndex   uint64
}

// openOutbox opens, or makes, the outbox in dir, for this process alone.
func openOutbox(ctx context.Context, dir, registry string) (*outbox, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 32)
		n, _ := lock.ReadAt(holder, 0)
		lock.Close()
		return nil, fmt.Errorf("%s is in use by another gateway (process %s)", dir, holder[:n])
	}
	if err := errors.Join(lock.Truncate(0), writeAt(lock, fmt.Sprint(os.Getpid()))); err != nil {
		lock.Close()
		return nil, err
	}
	o := &outbox{registry: registry, lock: lock}
	path := filepath.Join(dir, "outbox.db")
	if f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		lock.Close()
		return nil, err
	} else {
		f.Close()
	}
	o.db, err = openDB(path, false)
	if err == nil {
		err = o.migrate(ctx)
	}
	if err != nil {
		o.Close()
		return nil, fmt.Errorf("outbox %s: %w", path, err)
	}
	return o, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// openDB opens the database so that a committed transaction survives a power cut.
func openDB(path string, readOnly bool) (*sql.DB, error) {
	q := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)", "secure_delete(ON)"}}
	q.Set("_txlock", "immediate")
	if readOnly {
		q = url.Values{"_pragma": {"busy_timeout(10000)", "query_only(ON)"}, "mode": {"rw"}}
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(8)
	return db, nil
}

func (o *outbox) migrate(ctx context.Context) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, o.db, sub, goose.WithGoMigrations(hideAccounts))
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return err
	}
	// What is gone from the database shall not stay in its log either. A reader at
	// this moment can prevent that, until the next start.
	if err := o.exec(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`); err != nil {
		return err
	}
	if err := o.db.QueryRowContext(ctx, `SELECT key FROM account_key`).Scan(&o.accountKey); err != nil {
		return err
	}
	var have string
	switch err := o.db.QueryRowContext(ctx, `SELECT registry FROM gateway`).Scan(&have); {
	case errors.Is(err, sql.ErrNoRows):
		_, err = o.db.ExecContext(ctx, `INSERT INTO gateway (registry) VALUES (?)`, o.registry)
		return err
	case err != nil:
		return err
	case have != o.registry:
		return fmt.Errorf("it belongs to registry %q, not to %q: give each registry its own directory", have, o.registry)
	}
	return nil
}

// Close closes the database and lets the next gateway in.
func (o *outbox) Close() error {
	var err error
	if o.db != nil {
		err = o.db.Close()
	}
	// Not only closed: a process that is being started may hold a copy for a moment.
	return errors.Join(err, unix.Flock(int(o.lock.Fd()), unix.LOCK_UN), o.lock.Close())
}

// receive makes an upload durable before the index hears of it.
func (o *outbox) receive(ctx context.Context, e *entry.Entry, listed string, now time.Time) (int64, error) {
	leaf, err := e.Marshal()
	if err != nil {
		return 0, err
	}
	res, err := o.db.ExecContext(ctx, `INSERT INTO attempts (state, project, file, sha256, entry, listed, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
		Received, e.Project, e.File, e.SHA256, leaf, listed, now.UnixMilli())
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

// forwarding notes that the index may hear of the upload from now on.
func (o *outbox) forwarding(ctx context.Context, id int64) error {
	return o.exec(ctx, `UPDATE attempts SET state = ? WHERE id = ?`, Forwarding, id)
}

// drop forgets an attempt that the index refused, or never heard of.
func (o *outbox) drop(ctx context.Context, id int64) error {
	return o.exec(ctx, `DELETE FROM attempts WHERE id = ?`, id)
}

// dropReceived forgets the attempts that the index never heard of.
func (o *outbox) dropReceived(ctx context.Context) error {
	return o.exec(ctx, `DELETE FROM attempts WHERE state = ?`, Received)
}

// stillUnknown puts off the next question about an attempt.
func (o *outbox) stillUnknown(ctx context.Context, id int64, next time.Time, reason string) error {
	return o.exec(ctx, `UPDATE attempts SET tries = tries + 1, next_try = ?, last_error = ? WHERE id = ?`, next.UnixMilli(), reason, id)
}

// errGone: the attempt was finished with by someone else.
var errGone = errors.New("the attempt is no longer open")

// accept turns an open attempt into a file to be logged, and returns its seq and
// state. Content that was accepted before keeps its row, and its proof. An attempt
// that is no longer open (the index refused it after all) is errGone.
func (o *outbox) accept(ctx context.Context, id int64, e *entry.Entry, listed string, now time.Time) (int64, State, error) {
	leaf, err := e.Marshal()
	if err != nil {
		return 0, "", err
	}
	tx, err := o.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, "", err
	}
	defer tx.Rollback()
	res, err := tx.ExecContext(ctx, `DELETE FROM attempts WHERE id = ?`, id)
	if err != nil {
		return 0, "", err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return 0, "", errors.Join(errGone, err)
	}
	_, err = tx.ExecContext(ctx, `
		INSERT INTO files (state, project, file, sha256, entry, listed, rank, accepted_at)
		VALUES (?, ?, ?, ?, ?, ?, (SELECT coalesce(max(rank), 0) + 1 FROM files), ?)
		ON CONFLICT (project, file, sha256) DO UPDATE SET rank = excluded.rank`,
		Accepted, e.Project, e.File, e.SHA256, leaf, listed, now.UnixMilli())
	if err != nil {
		return 0, "", err
	}
	var seq int64
	var state State
	err = tx.QueryRowContext(ctx, `SELECT seq, state FROM files WHERE project = ? AND file = ? AND sha256 = ?`, e.Project, e.File, e.SHA256).Scan(&seq, &state)
	if err != nil {
		return 0, "", err
	}
	return seq, state, tx.Commit()
}

// submitted notes that the log may know of the file from now on.
func (o *outbox) submitted(ctx context.Context, seq int64) error {
	return o.exec(ctx, `UPDATE files SET state = ?, tries = tries + 1 WHERE seq = ? AND state IN (?, ?)`, Submitted, seq, Accepted, Submitted)
}

// retry keeps a file that could not be logged for another try.
func (o *outbox) retry(ctx context.Context, seq int64, next time.Time, reason string) error {
	return o.exec(ctx, `UPDATE files SET next_try = ?, last_error = ? WHERE seq = ?`, next.UnixMilli(), reason, seq)
}

// proven stores the first proof of a file: from now on it is on the pages.
func (o *outbox) proven(ctx context.Context, seq int64, index uint64, proof []byte, now time.Time) error {
	return o.exec(ctx, `UPDATE files SET state = ?, log_index = ?, proof = ?, proven_at = ?, last_error = '' WHERE seq = ? AND proof IS NULL`,
		Proven, int64(index), proof, now.UnixMilli(), seq)
}

// conflict notes that the log holds the name for other bytes.
func (o *outbox) conflict(ctx context.Context, seq int64, first uint64, reason string) error {
	return o.exec(ctx, `UPDATE files SET state = ?, first_index = ?, last_error = ? WHERE seq = ?`, Conflict, int64(first), reason, seq)
}

// hurry makes every file that waits for the log due now.
func (o *outbox) hurry(ctx context.Context) error {
	return o.exec(ctx, `UPDATE files SET next_try = 0 WHERE state IN (?, ?) AND next_try > 0`, Accepted, Submitted)
}

// held counts files that wait for the log after a failed try.
func (o *outbox) held(ctx context.Context) (n int, err error) {
	err = o.db.QueryRowContext(ctx, `SELECT count(*) FROM files WHERE state IN (?, ?) AND last_error <> ''`, Accepted, Submitted).Scan(&n)
	return n, err
}

// due lists the files to be handed to the log now.
func (o *outbox) due(ctx context.Context, now time.Time, limit int) ([]int64, error) {
	rows, err := o.db.QueryContext(ctx, `SELECT seq FROM files WHERE state IN (?, ?) AND next_try <= ? ORDER BY seq LIMIT ?`, Accepted, Submitted, now.UnixMilli(), limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var seqs []int64
	for rows.Next() {
		var seq int64
		if err := rows.Scan(&seq); err != nil {
			return nil, err
		}
		seqs = append(seqs, seq)
	}
	return seqs, rows.Err()
}

// unknown lists the attempts whose fate the index is to be asked for now.
func (o *outbox) unknown(ctx context.Context, now time.Time, limit int) ([]attempt, error) {
	rows, err := o.db.QueryContext(ctx, `SELECT id, entry, listed, created_at, tries FROM attempts WHERE state = ? AND next_try <= ? ORDER BY next_try LIMIT ?`, Forwarding, now.UnixMilli(), limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []attempt
	for rows.Next() {
		var a attempt
		var leaf []byte
		var created int64
		if err := rows.Scan(&a.id, &leaf, &a.listed, &created, &a.tries); err != nil {
			return nil, err
		}
		if a.e, err = entry.Parse(leaf); err != nil {
			return nil, fmt.Errorf("attempt %d: %w", a.id, err)
		}
		a.created = time.UnixMilli(created)
		out = append(out, a)
	}
	return out, rows.Err()
}

// file reads one row.
func (o *outbox) file(ctx context.Context, seq int64) (*file, error) {
	f := file{seq: seq}
	var leaf []byte
	var accepted, index int64
	err := o.db.QueryRowContext(ctx, `SELECT state, entry, accepted_at, tries, log_index FROM files WHERE seq = ?`, seq).Scan(&f.state, &leaf, &accepted, &f.tries, &index)
	if err != nil {
		return nil, err
	}
	if f.e, err = entry.Parse(leaf); err != nil {
		return nil, fmt.Errorf("file %d: %w", seq, err)
	}
	f.acceptedAt, f.logIndex = time.UnixMilli(accepted), uint64(index)
	return &f, nil
}

// shelf lists what is known of a project's files, by name: contents that the index
// accepted, the latest last, and those in forwarding. It is one moment's view.
func (o *outbox) shelf(ctx context.Context, project string) (files, attempts map[string][]shelved, err error) {
	rows, err := o.db.QueryContext(ctx, `
		SELECT file, sha256, listed, state, rank FROM files WHERE project = ?
		UNION ALL
		SELECT file, sha256, listed, state, 0 FROM attempts WHERE project = ? AND state = ?
		ORDER BY 5`, project, project, Forwarding)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	files, attempts = map[string][]shelved{}, map[string][]shelved{}
	for rows.Next() {
		var name string
		var s shelved
		var rank int64
		if err := rows.Scan(&name, &s.sha256, &s.listed, &s.state, &rank); err != nil {
			return nil, nil, err
		}
		if s.state == Forwarding {
			attempts[name] = append(attempts[name], s)
		} else {
			files[name] = append(files[name], s)
		}
	}
	return files, attempts, rows.Err()
}

// proof returns the proof of a file name, the latest accepted first; nil if none.
func (o *outbox) proof(ctx context.Context, project, name string) ([]byte, error) {
	var proof []byte
	err := o.db.QueryRowContext(ctx, `SELECT proof FROM files WHERE project = ? AND file = ? AND state = ? ORDER BY rank DESC LIMIT 1`, project, name, Proven).Scan(&proof)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return proof, err
}

func (o *outbox) exec(ctx context.Context, query string, args ...any) error {
	_, err := o.db.ExecContext(ctx, query, args...)
	return err
}

// isFull tells whether err means that the disk is full.
func isFull(err error) bool {
	var e *sqlite.Error
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_FULL
}

// A PendingFile is an upload that the gateway has not finished with.
type PendingFile struct {
	Project   string `json:"project"`
	File      string `json:"file"`
	SHA256    string `json:"sha256"`
	State     State  `json:"state"`
	Since     string `json:"since"`
	Tries     int    `json:"tries"`
	NextTry   string `json:"next_try,omitempty"`
	LastError string `json:"last_error,omitempty"`
	// FirstIndex is set for a conflict: the entry that holds the name.
	FirstIndex *uint64 `json:"first_index,omitempty"`
}

// Pending lists what the gateway that keeps its state in dir has not finished:
// handed to the index with its answer unknown, waiting for the log, or in
// conflict. It only reads, beside a running gateway or without one.
func Pending(ctx context.Context, dir string) ([]PendingFile, error) {
	path := filepath.Join(dir, "outbox.db")
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("no gateway keeps its state here: %w", err)
	}
	db, err := openDB(path, true)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.QueryContext(ctx, `
		SELECT project, file, sha256, state, created_at AS since, tries, next_try, last_error, 0 FROM attempts
		UNION ALL
		SELECT project, file, sha256, state, accepted_at, tries, next_try, last_error, first_index FROM files WHERE state <> ?
		ORDER BY since, project, file`, Proven)
	if err != nil {
		return nil, fmt.Errorf("outbox %s: %w", path, err)
	}
	defer rows.Close()
	out := []PendingFile{}
	for rows.Next() {
		var p PendingFile
		var since, next, first int64
		if err := rows.Scan(&p.Project, &p.File, &p.SHA256, &p.State, &since, &p.Tries, &next, &p.LastError, &first); err != nil {
			return nil, err
		}
		p.Since = time.UnixMilli(since).UTC().Format(entry.TimeFormat)
		if next > 0 && p.State != Conflict {
			p.NextTry = time.UnixMilli(next).UTC().Format(entry.TimeFormat)
		}
		if p.State == Conflict {
			p.FirstIndex = entry.Uint(uint64(first))
		}
		out = append(out, p)
	}
	return out, rows.Err()
}
