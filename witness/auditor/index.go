package auditor

// What an auditor notes beside its mirror, in SQLite: pending checkpoints, how
// far each log has been checked, which file names are taken, and findings. All
// of it but the findings and the logs' URLs follows from the mirror and from what
// was cosigned: if the file is deleted, the next start reads the mirror again.
//
// Its memory is bounded: a slot is some 50 bytes on disk, and none is kept in memory.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/witness"
	_ "modernc.org/sqlite"
)

const (
	indexVersion = 1
	// keptPending is how many pending checkpoints of a log are good for
	// add-entries: the newest and some before it.
	keptPending = 16
	// maxFindings bounds the findings of one log. One is a verdict.
	maxFindings = 100
)

const schema = `
CREATE TABLE log (id INTEGER PRIMARY KEY, origin TEXT NOT NULL UNIQUE, url TEXT NOT NULL, next INTEGER NOT NULL, ended INTEGER) STRICT;
CREATE TABLE pending (log INTEGER NOT NULL REFERENCES log, size INTEGER NOT NULL, root BLOB NOT NULL, note BLOB NOT NULL, PRIMARY KEY (log, size)) STRICT, WITHOUT ROWID;
CREATE TABLE slot (log INTEGER NOT NULL, key BLOB NOT NULL, idx INTEGER NOT NULL, removed INTEGER NOT NULL, PRIMARY KEY (log, key)) STRICT, WITHOUT ROWID;
CREATE TABLE policy (log INTEGER NOT NULL, registry TEXT NOT NULL, ecosystem TEXT NOT NULL, overwrite TEXT NOT NULL, PRIMARY KEY (log, registry, ecosystem)) STRICT, WITHOUT ROWID;
CREATE TABLE finding (id INTEGER PRIMARY KEY, log INTEGER NOT NULL REFERENCES log, kind TEXT NOT NULL, idx INTEGER NOT NULL, first INTEGER,
	reason TEXT NOT NULL, seen INTEGER NOT NULL, count INTEGER NOT NULL, file BLOB, UNIQUE (log, kind, idx)) STRICT;
`

type index struct {
	path  string
	read  *sql.DB
	write *sql.DB // one connection
}

func openIndex(ctx context.Context, path string) (_ *index, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	open := func(conns int, more ...string) (*sql.DB, error) {
		q := url.Values{"_pragma": append([]string{"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "trusted_schema(0)"}, more...)}
		if conns == 1 {
			q.Set("_txlock", "immediate")
		}
		db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String())
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(conns)
		db.SetMaxIdleConns(conns)
		return db, nil
	}
	x := &index{path: path}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%s: %w: if it is damaged, delete it with its -wal and -shm: it is made anew from the mirror, and each log's URL is given again with add-log", path, err), x.close())
		}
	}()
	if x.write, err = open(1); err != nil {
		return nil, err
	}
	var version int
	if err := x.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return nil, err
	}
	switch version {
	case indexVersion:
	case 0:
		if _, err := x.write.ExecContext(ctx, "BEGIN;"+schema+fmt.Sprintf("PRAGMA user_version = %d; COMMIT", indexVersion)); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("it is of version %d, and this program knows %d", version, indexVersion)
	}
	x.read, err = open(4, "query_only(1)")
	return x, err
}

func (x *index) close() error {
	var err error
	if x.read != nil {
		err = x.read.Close()
	}
	if x.write != nil {
		err = errors.Join(err, x.write.Close())
	}
	return err
}

func (x *index) fail(err error) error { return fmt.Errorf("audit index: %w", err) }

// A logRow is a log as the index knows it.
type logRow struct {
	id     int64
	origin string
	url    string // where it is read; empty: it pushes
	next   uint64 // entries before it are stored and checked
}

// log returns a log's row, making it if need be.
func (x *index) log(ctx context.Context, origin string) (*logRow, error) {
	r := &logRow{origin: origin}
	get := func(db *sql.DB) error {
		return db.QueryRowContext(ctx, "SELECT id, url, next FROM log WHERE origin = ?", origin).Scan(&r.id, &r.url, &r.next)
	}
	err := get(x.read)
	if errors.Is(err, sql.ErrNoRows) {
		if _, err := x.write.ExecContext(ctx, "INSERT INTO log (origin, url, next) VALUES (?, '', 0) ON CONFLICT DO NOTHING", origin); err != nil {
			return nil, x.fail(err)
		}
		err = get(x.write)
	}
	if err != nil {
		return nil, x.fail(err)
	}
	return r, nil
}

// setURL says where a log is read.
func (x *index) setURL(ctx context.Context, origin, at string) error {
	if _, err := x.log(ctx, origin); err != nil {
		return err
	}
	if _, err := x.write.ExecContext(ctx, "UPDATE log SET url = ? WHERE origin = ?", at, origin); err != nil {
		return x.fail(err)
	}
	return nil
}

// A pending is a checkpoint whose entries are awaited.
type pending struct {
	cp   c2sp.Checkpoint
	note []byte // with the log's signatures
}

// pendings returns the pending checkpoints of a log, the newest first.
func (x *index) pendings(ctx context.Context, log int64) ([]pending, error) {
	rows, err := x.read.QueryContext(ctx, "SELECT note FROM pending WHERE log = ? ORDER BY size DESC", log)
	if err != nil {
		return nil, x.fail(err)
	}
	defer rows.Close()
	var out []pending
	for rows.Next() {
		var p pending
		if err := rows.Scan(&p.note); err != nil {
			return nil, x.fail(err)
		}
		note, err := c2sp.ParseNote(p.note)
		if err != nil {
			return nil, x.fail(err)
		}
		if p.cp, err = c2sp.ParseCheckpoint(note.Text); err != nil {
			return nil, x.fail(err)
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

// addPending makes p the newest pending checkpoint of a log, if the newest is
// still was (nil: none).
func (x *index) addPending(ctx context.Context, log int64, was *pending, p pending) error {
	tx, err := x.write.BeginTx(ctx, nil)
	if err != nil {
		return x.fail(err)
	}
	defer tx.Rollback()
	var size sql.Null[uint64]
	if err := tx.QueryRowContext(ctx, "SELECT max(size) FROM pending WHERE log = ?", log).Scan(&size); err != nil {
		return x.fail(err)
	}
	if size.Valid != (was != nil) || was != nil && size.V != was.cp.Size {
		return witness.ErrMoved
	}
	if _, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO pending (log, size, root, note) VALUES (?, ?, ?, ?)", log, int64(p.cp.Size), p.cp.Root[:], p.note); err != nil {
		return x.fail(err)
	}
	if _, err := tx.ExecContext(ctx, "DELETE FROM pending WHERE log = ?1 AND size NOT IN (SELECT size FROM pending WHERE log = ?1 ORDER BY size DESC LIMIT ?2)", log, keptPending); err != nil {
		return x.fail(err)
	}
	if err := tx.Commit(); err != nil {
		return x.fail(err)
	}
	return nil
}

// A Finding is something about a log that its auditor has to say.
type Finding struct {
	ID     int64
	Origin string
	Kind   string // malformed-entry, second-digest, after-end, unreadable-entry
	Index  uint64 // of the entry
	First  *uint64
	Reason string
	Seen   time.Time
	Count  uint64 // of unreadable entries
	File   []byte // the evidence, if it blocks and the tree that holds the entry is complete
}

// The kinds of findings. Nothing beyond one of the first three is cosigned.
const (
	KindMalformed    = "malformed-entry"
	KindSecondDigest = "second-digest"
	KindAfterEnd     = "after-end"
	KindUnreadable   = "unreadable-entry"
)

// Blocks reports whether nothing beyond it is cosigned.
func (f Finding) Blocks() bool { return f.Kind != KindUnreadable }

// findings returns all findings of a log (0: of every log), oldest first.
func (x *index) findings(ctx context.Context, log int64) ([]Finding, error) {
	rows, err := x.read.QueryContext(ctx, `SELECT f.id, l.origin, f.kind, f.idx, f.first, f.reason, f.seen, f.count, f.file
		FROM finding f JOIN log l ON l.id = f.log WHERE ?1 = 0 OR f.log = ?1 ORDER BY f.id`, log)
	if err != nil {
		return nil, x.fail(err)
	}
	defer rows.Close()
	var out []Finding
	for rows.Next() {
		var f Finding
		var seen int64
		if err := rows.Scan(&f.ID, &f.Origin, &f.Kind, &f.Index, &f.First, &f.Reason, &seen, &f.Count, &f.File); err != nil {
			return nil, x.fail(err)
		}
		f.Seen = time.Unix(seen, 0)
		out = append(out, f)
	}
	return out, rows.Err()
}

// blocked returns the first finding that stops the cosigning of a log.
func (x *index) blocked(ctx context.Context, log int64) (*Finding, error) {
	list, err := x.findings(ctx, log)
	if err != nil {
		return nil, err
	}
	var first *Finding
	for i := range list {
		if list[i].Blocks() && (first == nil || list[i].Index < first.Index) {
			first = &list[i]
		}
	}
	return first, nil
}

func (x *index) setFile(ctx context.Context, id int64, file []byte) error {
	if _, err := x.write.ExecContext(ctx, "UPDATE finding SET file = ? WHERE id = ?", file, id); err != nil {
		return x.fail(err)
	}
	return nil
}

// check reads entries whose place in the log is proven, the first at index from,
// and records what they say, all in one transaction that moves next behind them.
// leaf returns an earlier entry. What breaks a rule becomes a finding; the error
// is the database's alone.
func (x *index) check(ctx context.Context, log *logRow, from uint64, leaves [][]byte, leaf func(uint64) ([]byte, error), now time.Time) (found []Finding, err error) {
	tx, err := x.write.BeginTx(ctx, nil)
	if err != nil {
		return nil, x.fail(err)
	}
	defer tx.Rollback()
	var next uint64
	c := checker{ctx: ctx, tx: tx, log: log.id, now: now}
	if err := tx.QueryRowContext(ctx, "SELECT next, ended FROM log WHERE id = ?", log.id).Scan(&next, &c.ended); err != nil {
		return nil, x.fail(err)
	}
	if next != from {
		return nil, witness.ErrMoved
	}
	c.leaf = func(i uint64) ([]byte, error) {
		if i >= from {
			return leaves[i-from], nil
		}
		return leaf(i)
	}
	for i, l := range leaves {
		if err := c.entry(from+uint64(i), l); err != nil {
			return nil, x.fail(err)
		}
	}
	if _, err := tx.ExecContext(ctx, "UPDATE log SET next = ?, ended = ? WHERE id = ?", int64(from)+int64(len(leaves)), c.ended, log.id); err != nil {
		return nil, x.fail(err)
	}
	if err := tx.Commit(); err != nil {
		return nil, x.fail(err)
	}
	return c.found, nil
}

// A checker reads entries within one transaction.
type checker struct {
	ctx   context.Context
	tx    *sql.Tx
	log   int64
	now   time.Time
	ended *uint64 // index of the leaf that ends the log
	leaf  func(uint64) ([]byte, error)
	found []Finding
}

// entry checks one entry: its grammar, and the rules that bind a log.
func (c *checker) entry(index uint64, leaf []byte) error {
	if c.ended != nil {
		if err := c.find(Finding{Kind: KindAfterEnd, Index: index, First: c.ended, Reason: fmt.Sprintf("entry %d ends the log", *c.ended)}); err != nil {
			return err
		}
	}
	e, err := entry.Parse(leaf)
	switch {
	case errors.Is(err, entry.ErrVersion):
		return c.find(Finding{Kind: KindUnreadable, Index: index, Reason: err.Error()})
	case err != nil:
		return c.find(Finding{Kind: KindMalformed, Index: index, Reason: err.Error()})
	}
	switch e.Kind {
	case entry.KindUpload:
		return c.upload(index, e)
	case entry.KindReject:
		return c.reject(e)
	case entry.KindRemove:
		if e.File == "" {
			return nil
		}
		key := entry.Slot{Registry: e.Registry, Ecosystem: e.Ecosystem, Claim: e.Claim, Project: e.Project, File: e.File}.Key()
		held, _, _, err := c.slot(key)
		if err != nil || held == nil || differs(held, e) {
			return err // of other bytes than the name stands for
		}
		return c.exec("UPDATE slot SET removed = 1 WHERE log = ? AND key = ?", c.log, key[:])
	case entry.KindRegistryPolicy:
		return c.exec("INSERT INTO policy (log, registry, ecosystem, overwrite) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET overwrite = excluded.overwrite",
			c.log, e.Registry, e.Ecosystem, e.Overwrite)
	case entry.KindSuccessor:
		if c.ended == nil {
			c.ended = &index
		}
	}
	return nil
}

func (c *checker) exec(q string, args ...any) error {
	_, err := c.tx.ExecContext(c.ctx, q, args...)
	return err
}

// slot returns the entry that holds a slot; nil: none does.
func (c *checker) slot(key [32]byte) (held *entry.Entry, index uint64, removed bool, err error) {
	err = c.tx.QueryRowContext(c.ctx, "SELECT idx, removed FROM slot WHERE log = ? AND key = ?", c.log, key[:]).Scan(&index, &removed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, 0, false, nil
	}
	if err != nil {
		return nil, 0, false, err
	}
	leaf, err := c.leaf(index)
	if err != nil {
		return nil, 0, false, err
	}
	held, err = entry.Parse(leaf)
	return held, index, removed, err
}

// differs reports whether two uploads are certainly of different bytes.
func differs(a, b *entry.Entry) bool {
	return a.SHA256 != "" && b.SHA256 != "" && a.SHA256 != b.SHA256 || a.SHA512 != "" && b.SHA512 != "" && a.SHA512 != b.SHA512
}

// upload keeps the rule that a slot has one digest (DESIGN section 5): another
// one only where a reject freed it, or the registry's logged policy allows it.
func (c *checker) upload(index uint64, e *entry.Entry) error {
	slot, _ := e.Slot()
	key := slot.Key()
	held, at, removed, err := c.slot(key)
	if err != nil {
		return err
	}
	if held != nil {
		if !differs(held, e) {
			if held.SHA256 != "" && e.SHA256 != "" || held.SHA512 != "" && e.SHA512 != "" {
				return nil // logged again
			}
			// Nobody could tell what a third one differs from; a log refuses it.
			return c.find(Finding{Kind: KindSecondDigest, Index: index, First: &at,
				Reason: fmt.Sprintf("entry %d gives %s of %s a digest of another kind than entry %d: whether it is the same content cannot be told", index, e.File, e.Project, at)})
		}
		var policy string
		err := c.tx.QueryRowContext(c.ctx, "SELECT overwrite FROM policy WHERE log = ? AND registry = ? AND ecosystem = ?", c.log, e.Registry, e.Ecosystem).Scan(&policy)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		named := e.Replaces != nil && *e.Replaces == at
		allowed := policy == "replace" && named || policy == "after-remove" && removed && (named || e.Replaces == nil)
		if e.Claim != entry.ClaimIndex || !allowed {
			return c.find(Finding{Kind: KindSecondDigest, Index: index, First: &at, // the slot keeps its first
				Reason: fmt.Sprintf("entry %d gives %s of %s another content than entry %d", index, e.File, e.Project, at)})
		}
	}
	return c.exec("INSERT INTO slot (log, key, idx, removed) VALUES (?, ?, ?, 0) ON CONFLICT DO UPDATE SET idx = excluded.idx, removed = 0", c.log, key[:], int64(index))
}

// reject frees the slot of the very upload that it names.
func (c *checker) reject(e *entry.Entry) error {
	slot, _ := e.Slot()
	key := slot.Key()
	held, _, _, err := c.slot(key)
	if err != nil || held == nil || differs(held, e) {
		return err
	}
	return c.exec("DELETE FROM slot WHERE log = ? AND key = ?", c.log, key[:])
}

// find records a finding once. Unreadable entries are counted: when a log speaks
// a newer version, every entry is one.
func (c *checker) find(f Finding) error {
	if f.Kind == KindUnreadable {
		var id int64
		err := c.tx.QueryRowContext(c.ctx, "UPDATE finding SET count = count + 1 WHERE log = ? AND kind = ? RETURNING id", c.log, f.Kind).Scan(&id)
		if err == nil || !errors.Is(err, sql.ErrNoRows) {
			return err
		}
	}
	reason := strings.ToValidUTF8(f.Reason, "?")
	res, err := c.tx.ExecContext(c.ctx, `INSERT INTO finding (log, kind, idx, first, reason, seen, count)
		SELECT ?1, ?2, ?3, ?4, ?5, ?6, 1 WHERE (SELECT count(*) FROM finding WHERE log = ?1) < ?7 ON CONFLICT DO NOTHING`,
		c.log, f.Kind, int64(f.Index), f.First, reason, c.now.Unix(), maxFindings)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	c.found = append(c.found, f)
	return nil
}
