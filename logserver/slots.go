package logserver

// Uniqueness: what one digest each slot is pinned to, decided durably before
// an entry is handed to the storage engine.
//
// A slot's row is reserved (durable, not yet handed over), added (handed over,
// outcome uncertain) or indexed. Rows follow from the log: after a crash the
// log's tail is replayed, what is found there is indexed, and what is not is
// freed. The whole file can be deleted; it is rebuilt from the tiles.
//
// Who can change slots.db can make the log accept a second digest for a file
// name; monitors and clients check uniqueness themselves and would show it.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/portbook/portbook/entry"
	_ "modernc.org/sqlite" // driver "sqlite"
)

// slotsVersion is raised with every change of the schema: an older file is
// rebuilt from the tiles.
const slotsVersion = 1

const slotsSchema = `
CREATE TABLE slots (
	key     BLOB PRIMARY KEY,  -- entry.Slot.Key, or the key of an entry's id
	digest  BLOB NOT NULL,     -- see digestOf
	state   INTEGER NOT NULL,  -- stateReserved, stateAdded, stateIndexed
	idx     INTEGER,           -- index of the entry that pinned the slot
	prev    INTEGER,           -- while reserved for a replacement: index of the entry it replaces
	removed INTEGER NOT NULL DEFAULT 0 -- a remove entry was logged for the file
) WITHOUT ROWID;
CREATE INDEX open_slots ON slots (state) WHERE state < 2;
CREATE TABLE policies (registry TEXT, ecosystem TEXT, overwrite TEXT NOT NULL, PRIMARY KEY (registry, ecosystem));
CREATE TABLE tail (size INTEGER NOT NULL); -- entries [0, size) are applied
INSERT INTO tail VALUES (0);
`

const (
	stateReserved = 0
	stateAdded    = 1
	stateIndexed  = 2
)

// ConflictError says that a slot is pinned to another digest, or an id to
// another entry. There is no proof for what was submitted.
type ConflictError struct {
	Slot       entry.Slot // zero for an id
	FirstIndex uint64
	Reason     string
}

func (e *ConflictError) Error() string { return e.Reason }

// PreconditionError says that an entry needs something of the log that is not so.
type PreconditionError struct{ Field, Reason string }

func (e *PreconditionError) Error() string { return e.Field + ": " + e.Reason }

// slotRow is one row of slots.
type slotRow struct {
	digest  []byte
	state   int
	index   sql.NullInt64
	prev    sql.NullInt64
	removed bool
}

// slots is the open uniqueness database. Only the sequencer's goroutine uses it
// once the log is open.
type slots struct {
	db                           *sql.DB
	get, reserve, replace, index *sql.Stmt
	applied                      int64 // tail as last committed
}

// openSQLite opens one of our databases: one connection, write-ahead log.
func openSQLite(path, synchronous string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous("+synchronous+")")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

// openVersioned opens the database at path if it has the schema's version, and
// else makes it anew, empty: what is in it follows from the log.
func openVersioned(path, synchronous, schema string, version int) (*sql.DB, error) {
	db, err := openSQLite(path, synchronous)
	if err != nil {
		return nil, err
	}
	var have int
	err = db.QueryRow("PRAGMA user_version").Scan(&have)
	if err == nil && have == version {
		return db, nil
	}
	if err := errors.Join(db.Close(), os.RemoveAll(path), os.RemoveAll(path+"-wal"), os.RemoveAll(path+"-shm")); err != nil {
		return nil, err
	}
	if db, err = openSQLite(path, synchronous); err != nil {
		return nil, err
	}
	if _, err := db.Exec(fmt.Sprintf("BEGIN; %s; PRAGMA user_version = %d; COMMIT;", schema, version)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func openSlots(path string) (*slots, error) {
	db, err := openVersioned(path, "FULL", slotsSchema, slotsVersion)
	if err != nil {
		return nil, fmt.Errorf("uniqueness database %s: %w", path, err)
	}
	s := &slots{db: db}
	for _, p := range []struct {
		into **sql.Stmt
		sql  string
	}{
		{&s.get, "SELECT digest, state, idx, prev, removed FROM slots WHERE key = ?"},
		{&s.reserve, "INSERT INTO slots (key, digest, state) VALUES (?, ?, 0) ON CONFLICT DO NOTHING"},
		{&s.replace, "UPDATE slots SET digest = ?, state = 0, prev = idx, idx = NULL WHERE key = ?"},
		{&s.index, "INSERT INTO slots (key, digest, state, idx) VALUES (?, ?, 2, ?) ON CONFLICT (key) DO UPDATE SET digest = excluded.digest, state = 2, idx = excluded.idx, prev = NULL, removed = 0 WHERE slots.state < 2 OR slots.digest <> excluded.digest"},
	} {
		if *p.into, err = db.Prepare(p.sql); err != nil {
			return nil, errors.Join(fmt.Errorf("uniqueness database %s: %w", path, err), db.Close())
		}
	}
	if err := db.QueryRow("SELECT size FROM tail").Scan(&s.applied); err != nil {
		return nil, errors.Join(fmt.Errorf("uniqueness database %s: %w", path, err), db.Close())
	}
	return s, nil
}

func (s *slots) close() error { return s.db.Close() }

// slotKey is the key an entry is unique under, and what must be equal for a
// second submission to be the same one: the digests of an upload or a conflict;
// for what else carries an id, everything but the time.
func slotKey(e *entry.Entry) (key [32]byte, digest []byte, err error) {
	if e.Kind == entry.KindUpload {
		slot, _ := e.Slot()
		digest, err = digestOf(e)
		return slot.Key(), digest, err
	}
	if e.Kind == entry.KindConflict { // one for each slot and refused digest
		slot, _ := e.Slot()
		digest, err = digestOf(e)
		k := slot.Key()
		return sha256.Sum256(append(append([]byte("conflict\x00"), k[:]...), digest...)), digest, err
	}
	key = sha256.Sum256([]byte("id\x00" + e.Registry + "\x00" + string(e.Claim) + "\x00" + e.ID))
	timeless := *e
	timeless.Time = "1970-01-01T00:00:00Z"
	leaf, err := timeless.Marshal()
	sum := sha256.Sum256(leaf)
	return key, sum[:], err
}

// digestOf is an entry's sha256, sha512, or both in this order: 32, 64 or 96 bytes.
func digestOf(e *entry.Entry) ([]byte, error) {
	return hex.DecodeString(e.SHA256 + e.SHA512)
}

// sameDigest compares two digestOf values by the algorithms that both have.
// comparable is false if there is none.
func sameDigest(a, b []byte) (same, comparable bool) {
	same = true
	if len(a) != 64 && len(b) != 64 {
		same, comparable = bytes.Equal(a[:32], b[:32]), true
	}
	if len(a) >= 64 && len(b) >= 64 {
		same, comparable = same && bytes.Equal(a[len(a)-64:], b[len(b)-64:]), true
	}
	return same && comparable, comparable
}

func (s *slots) row(tx *sql.Tx, key [32]byte) (*slotRow, error) {
	var r slotRow
	err := tx.Stmt(s.get).QueryRow(key[:]).Scan(&r.digest, &r.state, &r.index, &r.prev, &r.removed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &r, err
}

// admit decides on one entry whose key is not in flight: reserve its slot (new
// is true), name the index it already has, or refuse it.
func (s *slots) admit(tx *sql.Tx, e *entry.Entry, key [32]byte, digest []byte) (index uint64, isNew bool, err error) {
	if e.Kind != entry.KindUpload {
		if err := s.precondition(tx, e); err != nil {
			// A retry of a reject or a removal finds its own effect: the id decides.
			if r, rerr := s.row(tx, key); rerr == nil && r != nil && r.state == stateIndexed && bytes.Equal(r.digest, digest) {
				return uint64(r.index.Int64), false, nil
			}
			return 0, false, err
		}
	}
	res, err := tx.Stmt(s.reserve).Exec(key[:], digest)
	if err != nil {
		return 0, false, err
	}
	if n, err := res.RowsAffected(); err != nil {
		return 0, false, err
	} else if n == 1 {
		if e.Replaces != nil {
			if _, err := tx.Exec("DELETE FROM slots WHERE key = ?", key[:]); err != nil {
				return 0, false, err
			}
			return 0, false, &PreconditionError{"replaces", "nothing is logged for this file: log it without replaces"}
		}
		return 0, true, nil
	}
	r, err := s.row(tx, key)
	if err != nil {
		return 0, false, err
	}
	if r.state != stateIndexed {
		return 0, false, fmt.Errorf("slot of %s is neither in flight nor indexed", e.File)
	}
	first := uint64(r.index.Int64)
	if e.Kind != entry.KindUpload {
		if bytes.Equal(r.digest, digest) {
			return first, false, nil
		}
		return 0, false, &ConflictError{FirstIndex: first, Reason: fmt.Sprintf("id %s belongs to another entry, at index %d: take a new random id", e.ID, first)}
	}
	same, comparable := sameDigest(r.digest, digest)
	if same {
		return first, false, nil
	}
	if !comparable {
		return 0, false, &PreconditionError{"sha512", fmt.Sprintf("index %d pins this file by another digest algorithm: send both digests", first)}
	}
	allowed, err := s.mayOverwrite(tx, e, r)
	if err != nil {
		return 0, false, err
	}
	if !allowed {
		slot, _ := e.Slot()
		return 0, false, &ConflictError{Slot: slot, FirstIndex: first,
			Reason: fmt.Sprintf("%s of %s is pinned to other bytes by index %d", e.File, e.Project, first)}
	}
	if _, err := tx.Stmt(s.replace).Exec(digest, key[:]); err != nil {
		return 0, false, err
	}
	return 0, true, nil
}

// mayOverwrite says whether the registry's logged policy lets e take over a
// slot that another digest holds.
func (s *slots) mayOverwrite(tx *sql.Tx, e *entry.Entry, r *slotRow) (bool, error) {
	if e.Claim != entry.ClaimIndex {
		return false, nil
	}
	var overwrite string
	err := tx.QueryRow("SELECT overwrite FROM policies WHERE registry = ? AND ecosystem = ?", e.Registry, e.Ecosystem).Scan(&overwrite)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	named := e.Replaces != nil && int64(*e.Replaces) == r.index.Int64
	switch overwrite {
	case "replace":
		return named, nil
	case "after-remove":
		return r.removed && (named || e.Replaces == nil), nil
	}
	return false, nil
}

// precondition checks what a status or control entry needs of the log.
func (s *slots) precondition(tx *sql.Tx, e *entry.Entry) error {
	switch e.Kind {
	case entry.KindReject:
		slot, _ := e.Slot()
		r, err := s.row(tx, slot.Key())
		if err != nil {
			return err
		}
		if r == nil || r.state != stateIndexed {
			return &PreconditionError{"file", "nothing is logged for this file that could be rejected"}
		}
		digest, err := digestOf(e)
		if err != nil {
			return err
		}
		if same, _ := sameDigest(r.digest, digest); !same {
			return &PreconditionError{"sha256", fmt.Sprintf("index %d logged other bytes for this file: name those", r.index.Int64)}
		}
	case entry.KindDispute:
		if int64(*e.Index) >= s.applied {
			return &PreconditionError{"index", fmt.Sprintf("the log has no entry %d", *e.Index)}
		}
	}
	return nil
}

// apply records that e stands at index. Replaying the log from its first entry
// gives the same rows as living through it.
func (s *slots) apply(tx *sql.Tx, index int64, e *entry.Entry) error {
	key, digest, err := slotKey(e)
	if err != nil {
		return err
	}
	if _, err := tx.Stmt(s.index).Exec(key[:], digest, index); err != nil {
		return err
	}
	switch e.Kind {
	case entry.KindReject:
		slot, _ := e.Slot()
		k := slot.Key()
		_, err = tx.Exec("DELETE FROM slots WHERE key = ?", k[:])
	case entry.KindRemove:
		if e.File != "" {
			k := entry.Slot{Registry: e.Registry, Ecosystem: e.Ecosystem, Claim: e.Claim, Project: e.Project, File: e.File}.Key()
			_, err = tx.Exec("UPDATE slots SET removed = 1 WHERE key = ?", k[:])
		}
	case entry.KindRegistryPolicy:
		_, err = tx.Exec("INSERT INTO policies VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET overwrite = excluded.overwrite", e.Registry, e.Ecosystem, e.Overwrite)
	}
	return err
}

// catchUp makes the rows those of tree t: it replays the tail that is not yet
// applied, then frees what was reserved but is not in the log. Nothing may be
// in flight.
func (s *slots) catchUp(ctx context.Context, t tree, progress func(done, size int64)) error {
	if s.applied > t.size {
		return fmt.Errorf("%w: the uniqueness database knows %d entries, the log has %d: the log went back; restore it, do not delete slots.db",
			ErrBehind, s.applied, t.size)
	}
	// One transaction for some 16 bundles: bounded memory, few commits.
	const step = 16 * tileWidth
	for s.applied < t.size {
		to := min(s.applied+step, t.size)
		err := s.update(func(tx *sql.Tx) error {
			upTo := t
			upTo.size = to
			err := upTo.each(s.applied, func(index int64, leaf []byte) error {
				e, err := entry.Parse(leaf)
				if err != nil {
					return fmt.Errorf("entry %d: %w", index, err)
				}
				return s.apply(tx, index, e)
			})
			if err != nil {
				return err
			}
			return s.setTail(tx, to)
		})
		if err != nil {
			return fmt.Errorf("replaying the log into the uniqueness database: %w", err)
		}
		s.applied = to
		if progress != nil {
			progress(to, t.size)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return s.freeLost(t)
}

// freeLost frees the slots of submissions that never reached the log, and gives
// a slot that was to be replaced back to the entry it had.
func (s *slots) freeLost(t tree) error {
	return s.update(func(tx *sql.Tx) error {
		rows, err := tx.Query("SELECT key, prev FROM slots WHERE state < 2 AND prev IS NOT NULL")
		if err != nil {
			return err
		}
		defer rows.Close()
		type lost struct {
			key  []byte
			prev int64
		}
		var back []lost
		for rows.Next() {
			var l lost
			if err := rows.Scan(&l.key, &l.prev); err != nil {
				return err
			}
			back = append(back, l)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		for _, l := range back {
			leaves, err := t.leaves(l.prev, 1)
			if err != nil {
				return err
			}
			e, err := entry.Parse(leaves[0])
			if err != nil {
				return fmt.Errorf("entry %d: %w", l.prev, err)
			}
			digest, err := digestOf(e)
			if err != nil {
				return err
			}
			if _, err := tx.Exec("UPDATE slots SET digest = ?, state = 2, idx = prev, prev = NULL WHERE key = ?", digest, l.key); err != nil {
				return err
			}
		}
		_, err = tx.Exec("DELETE FROM slots WHERE state < 2")
		return err
	})
}

func (s *slots) setTail(tx *sql.Tx, size int64) error {
	_, err := tx.Exec("UPDATE tail SET size = ?", size)
	return err
}

// markAdded says that rows were handed to the storage engine and that it is not
// known what became of them.
func (s *slots) markAdded(keys [][32]byte) error {
	return s.update(func(tx *sql.Tx) error {
		for _, k := range keys {
			if _, err := tx.Exec("UPDATE slots SET state = ? WHERE key = ? AND state = ?", stateAdded, k[:], stateReserved); err != nil {
				return err
			}
		}
		return nil
	})
}

// update runs do in one transaction.
func (s *slots) update(do func(tx *sql.Tx) error) error {
	return inTx(s.db, do)
}

func inTx(db *sql.DB, do func(tx *sql.Tx) error) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}
