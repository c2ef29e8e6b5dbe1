package logserver

// The indexes of a log, offline: slots.db and lookup.db follow from the tiles,
// so they can be compared with them and made anew. Nothing is built from tiles
// that are not what the published checkpoint says.

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"

	"github.com/portbook/portbook/c2sp"
)

// IndexDigest says what a uniqueness index holds, without its content: Sum is
// SHA-256 over its rows in ascending order of their keys, each the 32 bytes of
// the key and the index of the entry that has it, in 8 bytes, big-endian.
type IndexDigest struct {
	Size int64 // entries [0, Size) are in it
	Rows int64
	Sum  [32]byte
}

// ErrNoIndex says that a log has no uniqueness index yet, or not one of this
// version: serving the log makes it.
var ErrNoIndex = errors.New("no uniqueness index")

// DigestIndex sums up the uniqueness index of the log in dir, which may be
// served meanwhile.
func DigestIndex(ctx context.Context, dir string) (d IndexDigest, err error) {
	path := filepath.Join(dir, slotsFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return d, ErrNoIndex
	}
	name := (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath()}).String()
	db, err := sql.Open("sqlite", name+"?mode=ro&_pragma=busy_timeout(5000)")
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return d, fmt.Errorf("uniqueness index: %w", withoutPath(err))
	}
	defer tx.Rollback() // it only read
	var version int
	if err := tx.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return d, fmt.Errorf("uniqueness index: %w", err)
	}
	if version != slotsVersion {
		return d, fmt.Errorf("%w of this version", ErrNoIndex)
	}
	if err := tx.QueryRow("SELECT size FROM tail").Scan(&d.Size); err != nil {
		return d, fmt.Errorf("uniqueness index: %w", err)
	}
	rows, err := tx.QueryContext(ctx, "SELECT key, idx FROM slots ORDER BY key")
	if err != nil {
		return d, fmt.Errorf("uniqueness index: %w", err)
	}
	defer rows.Close()
	h := sha256.New()
	var key []byte
	for rows.Next() {
		var index uint64
		if err := rows.Scan(&key, &index); err != nil {
			return d, fmt.Errorf("uniqueness index: %w", err)
		}
		h.Write(binary.BigEndian.AppendUint64(key, index))
		d.Rows++
	}
	h.Sum(d.Sum[:0])
	if err := rows.Err(); err != nil {
		return d, fmt.Errorf("uniqueness index: %w", err)
	}
	return d, nil
}

// RebuildIndex makes the indexes of the log in dir anew from its tiles. No
// server may run on it meanwhile. The old ones stay until the new ones are
// whole, so that it can be interrupted, and run again, at any time. progress may
// be nil.
func RebuildIndex(ctx context.Context, dir string, progress func(what string, done, size int64)) (IndexDigest, error) {
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	id, err := ReadIdentity(dir)
	if err != nil {
		return IndexDigest{}, err
	}
	lock, err := lockFile(filepath.Join(dir, lockFileName))
	if err != nil {
		return IndexDigest{}, err
	}
	defer lock.release()
	t, err := publishedTree(ctx, dir, id)
	if err != nil {
		return IndexDigest{}, err
	}
	progress("verified", t.size, t.size)
	if err := rebuildSlots(ctx, dir, t, progress); err != nil {
		return IndexDigest{}, err
	}
	if err := rebuildLookup(ctx, dir, t, progress); err != nil {
		return IndexDigest{}, err
	}
	return DigestIndex(ctx, dir)
}

// publishedTree is the tree of the public checkpoint, after every entry, every
// tile and the root have been compared.
func publishedTree(ctx context.Context, dir string, id Identity) (tree, error) {
	raw, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return tree{}, errors.New("the log has no public checkpoint: there is nothing to build from; serving the log makes it")
	}
	if err != nil {
		return tree{}, fmt.Errorf("%w: public checkpoint: %w", ErrStorage, err)
	}
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return tree{}, fmt.Errorf("%w: public checkpoint: %w", errUnreadable, err)
	}
	t := tree{ctx: ctx, src: directory(filepath.Join(dir, engineDir)), cache: newTileCache()}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return t, fmt.Errorf("%w: public checkpoint: %w", errUnreadable, err)
	}
	if err := (&keyring{origin: id.Origin, keys: id.Keys}).signed(note); err != nil || cp.Origin != id.Origin {
		return t, fmt.Errorf("%w: public checkpoint: it is not this log's: %w", errUnreadable, errors.Join(err, errOtherOrigin(cp.Origin, id.Origin)))
	}
	t.size = int64(cp.Size)
	root, err := t.root()
	if err == nil && root != cp.Root {
		err = fmt.Errorf("%w: the tiles have root %x, the checkpoint says %x", errUnreadable, root, cp.Root)
	}
	if err == nil {
		err = leavesMatchTiles(t, 0)
	}
	if err == nil {
		err = tilesMatchTiles(t, 0)
	}
	if err != nil {
		return t, fmt.Errorf("the tiles are not what the checkpoint says, nothing is built from them: %w; portbook-log audit says what is damaged, portbook-log repair brings it back", err)
	}
	return t, nil
}

func errOtherOrigin(have, want string) error {
	if have == want {
		return nil
	}
	return fmt.Errorf("it is of log %q", have)
}

// rebuilt are the suffixes of a database that is not whole yet, and of SQLite's
// own files.
const rebuilding = ".rebuilding"

var sqliteFiles = []string{"", "-wal", "-shm"}

// replaceDB puts a database that has just been closed in the place of the old one.
func replaceDB(dir, name string) error {
	for _, s := range sqliteFiles[1:] { // of the old one: they must not meet the new file
		if err := os.Remove(filepath.Join(dir, name+s)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(filepath.Join(dir, name+rebuilding), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncDir(dir)
}

func removeDBFiles(path string) error {
	for _, s := range sqliteFiles {
		if err := os.Remove(path + s); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func rebuildSlots(ctx context.Context, dir string, t tree, progress func(string, int64, int64)) (err error) {
	path := filepath.Join(dir, slotsFile+rebuilding)
	if err := removeDBFiles(path); err != nil { // of one that was interrupted
		return err
	}
	s, err := openSlots(path)
	if err != nil {
		return err
	}
	err = s.catchUp(ctx, t, func(done, size int64) { progress("uniqueness", done, size) })
	if err = errors.Join(err, s.close()); err != nil {
		return errors.Join(err, removeDBFiles(path))
	}
	return replaceDB(dir, slotsFile)
}

func rebuildLookup(ctx context.Context, dir string, t tree, progress func(string, int64, int64)) error {
	path := filepath.Join(dir, lookupFile+rebuilding)
	if err := removeDBFiles(path); err != nil {
		return err
	}
	at := func(size int64) tree {
		upTo := t
		upTo.size = size
		return upTo
	}
	l, err := openLookup(path, newBoard(), at, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	const step = 64 * tileWidth
	for from := int64(0); from < t.size && err == nil; from += step {
		to := min(from+step, t.size)
		if err = l.index(ctx, from, to); err == nil {
			progress("lookup", to, t.size)
		}
	}
	if err = errors.Join(err, l.close()); err != nil {
		return errors.Join(err, removeDBFiles(path))
	}
	return replaceDB(dir, lookupFile)
}
