package logserver

// Uniqueness: what one digest each slot is pinned to, decided durably before
// an entry is handed to the storage engine.
//
// A slot is reserved (durable, not yet handed over), added (handed over,
// outcome uncertain) or indexed. Reservations are few, and stand in a table of
// their own; slots holds what is in the log and follows from it: after a crash
// the log's tail is replayed, what is found there is indexed, and what is not
// is freed. The whole file can be deleted; it is rebuilt from the tiles.
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
	"net/url"
	"os"

	"github.com/portbook/portbook/entry"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// slotsVersion is raised with every change of the schema: an older file is
// rebuilt from the tiles.
const slotsVersion = 2

const slotsSchema = `
CREATE TABLE slots (
	key     BLOB PRIMARY KEY,  -- see slotKey
	digest  BLOB NOT NULL,     -- see slotKey
	idx     INTEGER NOT NULL,  -- index of the entry that pinned the slot
	removed INTEGER NOT NULL DEFAULT 0 -- a remove entry was logged for the file
) WITHOUT ROWID;
CREATE TABLE reserved (
	seq    INTEGER PRIMARY KEY,
	key    BLOB NOT NULL,
	digest BLOB NOT NULL,
	added  INTEGER NOT NULL DEFAULT 0 -- 1: handed to the storage engine, outcome uncertain
);
CREATE TABLE policies (registry TEXT, ecosystem TEXT, overwrite TEXT NOT NULL, PRIMARY KEY (registry, ecosystem));
CREATE TABLE tail (size INTEGER NOT NULL); -- entries [0, size) are applied
INSERT INTO tail VALUES (0);
`

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
	index   uint64
	removed bool
}

// slots is the open uniqueness database. Only the sequencer's goroutine uses it
// once the log is open.
type slots struct {
	db                  *sql.DB
	get, reserve, index *sql.Stmt
	applied             int64 // tail as last committed
	nextSeq             int64 // of the next reservation
	// entryAt reads an entry of the log.
	entryAt func(index int64) (*entry.Entry, error)
}

// openSQLite opens one of our databases: one connection, write-ahead log. Its
// keys are hashes, so every row touches another page: pages are small, and the
// log is folded into the file seldom.
func openSQLite(path, synchronous string) (*sql.DB, error) {
	name := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}).String()
	db, err := sql.Open("sqlite", name+"?_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=page_size(1024)&_pragma=cache_size(-32768)"+
		"&_pragma=wal_autocheckpoint(32768)&_pragma=journal_mode(WAL)&_pragma=synchronous("+synchronous+")")
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
	if err != nil && !isDamaged(err) {
		return nil, errors.Join(withoutPath(err), db.Close())
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

// isDamaged tells a file that is no database, or a broken one, from a database
// that cannot be read at the moment.
func isDamaged(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && (e.Code()&0xff == sqlite3.SQLITE_NOTADB || e.Code()&0xff == sqlite3.SQLITE_CORRUPT)
}

func openSlots(path string) (*slots, error) {
	db, err := openVersioned(path, "FULL", slotsSchema, slotsVersion)
	if err != nil {
		return nil, fmt.Errorf("uniqueness database: %w: it follows from the log; if it is damaged, stop the server, delete slots.db and start again", err)
	}
	s := &slots{db: db}
	for _, p := range []struct {
		into **sql.Stmt
		sql  string
	}{
		{&s.get, "SELECT digest, idx, removed FROM slots WHERE key = ?"},
		{&s.reserve, "INSERT INTO reserved (seq, key, digest) VALUES (?, ?, ?)"},
		{&s.index, "INSERT INTO slots (key, digest, idx) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET digest = excluded.digest, idx = excluded.idx, removed = 0 WHERE slots.digest <> excluded.digest"},
	} {
		if *p.into, err = db.Prepare(p.sql); err != nil {
			return nil, errors.Join(fmt.Errorf("uniqueness database: %w: it follows from the log; if it is damaged, stop the server, delete slots.db and start again", err), db.Close())
		}
	}
	if err := db.QueryRow("SELECT size, (SELECT coalesce(max(seq), 0) + 1 FROM reserved) FROM tail").Scan(&s.applied, &s.nextSeq); err != nil {
		return nil, errors.Join(fmt.Errorf("uniqueness database: %w: it follows from the log; if it is damaged, stop the server, delete slots.db and start again", err), db.Close())
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

// slotRows are the rows that decide on entries, within one transaction on
// slots.db or on a shared log's database. The rules below know no other.
type slotRows interface {
	row(key [32]byte) (*slotRow, error) // nil: nothing holds it
	// overwrite is what the registry's logged policy says; "" if there is none.
	overwrite(registry, ecosystem string) (string, error)

	// pin gives key to an entry, unless one with the same digest has it.
	pin(key [32]byte, digest []byte, index int64) error
	free(key [32]byte) error
	setRemoved(key [32]byte) error
	setOverwrite(registry, ecosystem, overwrite string) error
}

// slotTx implements slotRows on slots.db.
type slotTx struct {
	*slots
	tx *sql.Tx
}

func (s slotTx) row(key [32]byte) (*slotRow, error) { return s.slots.row(s.tx, key) }

func (s slotTx) overwrite(registry, ecosystem string) (overwrite string, err error) {
	err = s.tx.QueryRow("SELECT overwrite FROM policies WHERE registry = ? AND ecosystem = ?", registry, ecosystem).Scan(&overwrite)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return overwrite, err
}

func (s slotTx) pin(key [32]byte, digest []byte, index int64) error {
	_, err := s.tx.Stmt(s.index).Exec(key[:], digest, index)
	return err
}

func (s slotTx) free(key [32]byte) error {
	_, err := s.tx.Exec("DELETE FROM slots WHERE key = ?", key[:])
	return err
}

func (s slotTx) setRemoved(key [32]byte) error {
	_, err := s.tx.Exec("UPDATE slots SET removed = 1 WHERE key = ?", key[:])
	return err
}

func (s slotTx) setOverwrite(registry, ecosystem, overwrite string) error {
	_, err := s.tx.Exec("INSERT INTO policies VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET overwrite = excluded.overwrite", registry, ecosystem, overwrite)
	return err
}

func (s *slots) row(tx *sql.Tx, key [32]byte) (*slotRow, error) {
	var r slotRow
	err := tx.Stmt(s.get).QueryRow(key[:]).Scan(&r.digest, &r.index, &r.removed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &r, err
}

// admit decides on one entry whose key is not in flight: reserve its slot (new
// is true), name the index it already has, or refuse it. tail is how much of
// the log tx has applied.
func (s *slots) admit(tx *sql.Tx, tail int64, e *entry.Entry, key [32]byte, digest []byte) (index uint64, isNew bool, err error) {
	index, isNew, err = verdict(slotTx{s, tx}, tail, s.entryAt, e, key, digest)
	if !isNew {
		return index, false, err
	}
	_, err = tx.Stmt(s.reserve).Exec(s.nextSeq, key[:], digest)
	s.nextSeq++
	return 0, err == nil, err
}

// verdict is the rule of admission: an entry whose key is not in flight may be
// logged (isNew), has the index it is logged at, or is refused. tail is how much
// of the log rows have applied; entryAt reads an entry of it.
func verdict(rows slotRows, tail int64, entryAt func(int64) (*entry.Entry, error), e *entry.Entry, key [32]byte, digest []byte) (index uint64, isNew bool, err error) {
	r, err := rows.row(key)
	if err != nil {
		return 0, false, err
	}
	switch {
	case r == nil && e.Kind == entry.KindUpload:
		if e.Replaces != nil {
			err = &PreconditionError{"replaces", "nothing is logged for this file: log it without replaces"}
		}
	case r == nil:
		err = precondition(rows, tail, entryAt, e)
	case e.Kind == entry.KindUpload:
		same, comparable := sameDigest(r.digest, digest)
		if same {
			return r.index, false, nil
		}
		if !comparable {
			return 0, false, otherAlgorithm(r.index)
		}
		var allowed bool
		if allowed, err = mayOverwrite(rows, e, r); err == nil && !allowed {
			err = otherBytes(e, r.index)
		}
	case bytes.Equal(r.digest, digest):
		return r.index, false, nil
	default:
		err = otherEntry(e, r.index)
	}
	return 0, err == nil, err
}

// otherBytes refuses an upload of a file that is logged with another digest.
func otherBytes(e *entry.Entry, first uint64) *ConflictError {
	slot, _ := e.Slot()
	return &ConflictError{Slot: slot, FirstIndex: first, Reason: fmt.Sprintf("%s of %s is pinned to other bytes by index %d", e.File, e.Project, first)}
}

// otherAlgorithm refuses an upload whose digest cannot be compared.
func otherAlgorithm(first uint64) *PreconditionError {
	return &PreconditionError{"sha512", fmt.Sprintf("index %d pins this file by another digest algorithm: send both digests", first)}
}

// otherEntry refuses an entry with an id that another one has.
func otherEntry(e *entry.Entry, first uint64) *ConflictError {
	return &ConflictError{FirstIndex: first, Reason: fmt.Sprintf("id %s belongs to another entry, at index %d: take a new random id", e.ID, first)}
}

// mayOverwrite says whether the registry's logged policy lets e take over a
// slot that another digest holds.
func mayOverwrite(rows slotRows, e *entry.Entry, r *slotRow) (bool, error) {
	if e.Claim != entry.ClaimIndex {
		return false, nil
	}
	overwrite, err := rows.overwrite(e.Registry, e.Ecosystem)
	if err != nil {
		return false, err
	}
	named := e.Replaces != nil && *e.Replaces == r.index
	switch overwrite {
	case "replace":
		return named, nil
	case "after-remove":
		return r.removed && (named || e.Replaces == nil), nil
	}
	return false, nil
}

// precondition checks what a status or control entry needs of the log.
func precondition(rows slotRows, tail int64, entryAt func(int64) (*entry.Entry, error), e *entry.Entry) error {
	switch e.Kind {
	case entry.KindReject:
		slot, _ := e.Slot()
		r, err := rows.row(slot.Key())
		if err != nil {
			return err
		}
		if r == nil {
			return &PreconditionError{"file", "nothing is logged for this file that could be rejected"}
		}
		digest, err := digestOf(e)
		if err != nil {
			return err
		}
		if same, _ := sameDigest(r.digest, digest); !same {
			return &PreconditionError{"sha256", fmt.Sprintf("index %d logged other bytes for this file: name those", r.index)}
		}
	case entry.KindDispute:
		if *e.Index >= uint64(tail) {
			return &PreconditionError{"index", fmt.Sprintf("the log has no entry %d", *e.Index)}
		}
		disputed, err := entryAt(int64(*e.Index))
		if err != nil {
			return err
		}
		if disputed.Registry != e.Registry {
			return &PreconditionError{"index", fmt.Sprintf("entry %d is not about %s", *e.Index, e.Registry)}
		}
	}
	return nil
}

// apply records that e stands at index.
func (s *slots) apply(tx *sql.Tx, index int64, e *entry.Entry) error {
	return applyTo(slotTx{s, tx}, index, e)
}

// applyTo records in rows that e stands at index. Replaying the log from its
// first entry gives the same rows as living through it.
func applyTo(rows slotRows, index int64, e *entry.Entry) error {
	key, digest, err := slotKey(e)
	if err != nil {
		return err
	}
	if err := rows.pin(key, digest, index); err != nil {
		return err
	}
	switch e.Kind {
	case entry.KindReject:
		err = ifHeld(rows, e, rows.free)
	case entry.KindRemove:
		if e.File != "" {
			err = ifHeld(rows, e, rows.setRemoved)
		}
	case entry.KindRegistryPolicy:
		err = rows.setOverwrite(e.Registry, e.Ecosystem, e.Overwrite)
	}
	return err
}

// ifHeld runs change on the upload slot of a reject or remove, if the slot is
// held by the digest that e names, or e names none: what was said of old bytes
// changes nothing for those that replaced them.
func ifHeld(rows slotRows, e *entry.Entry, change func(key [32]byte) error) error {
	k := uploadSlot(e).Key()
	r, err := rows.row(k)
	if err != nil || r == nil {
		return err
	}
	digest, err := digestOf(e)
	if err != nil {
		return err
	}
	if len(digest) > 0 {
		if same, _ := sameDigest(r.digest, digest); !same {
			return nil
		}
	}
	return change(k)
}

// uploadSlot is the slot of the file that e is about, under e's own claim.
func uploadSlot(e *entry.Entry) entry.Slot {
	return entry.Slot{Registry: e.Registry, Ecosystem: e.Ecosystem, Claim: e.Claim, Project: e.Project, File: e.File}
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
					return fmt.Errorf("%w: entry %d: %w", errUnreadable, index, err)
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
	// What is still reserved never reached the log.
	return s.update(func(tx *sql.Tx) error {
		_, err := tx.Exec("DELETE FROM reserved")
		return err
	})
}

func (s *slots) setTail(tx *sql.Tx, size int64) error {
	_, err := tx.Exec("UPDATE tail SET size = ?", size)
	return err
}

// markAdded says that what is reserved was handed to the storage engine and
// that it is not known what became of it.
func (s *slots) markAdded() error {
	return s.update(func(tx *sql.Tx) error {
		_, err := tx.Exec("UPDATE reserved SET added = 1")
		return err
	})
}

// release drops the reservations below seq: what they were for is applied.
func (s *slots) release(tx *sql.Tx, seq int64) error {
	_, err := tx.Exec("DELETE FROM reserved WHERE seq < ?", seq)
	return err
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
