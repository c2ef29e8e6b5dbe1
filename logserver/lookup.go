package logserver

// The lookup index: where the entries about a project, a file or a digest
// stand. It follows the published log, and can be deleted at any time.
//
// A lookup key is eight bytes of a hash; every hit is compared with the leaf
// itself, so a collision costs a read and never gives a wrong answer.

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/portbook/portbook/entry"
)

const lookupVersion = 2

const lookupSchema = `
CREATE TABLE lookup (key INTEGER, idx INTEGER, PRIMARY KEY (key, idx)) WITHOUT ROWID;
CREATE TABLE tail (size INTEGER NOT NULL); -- entries [0, size) are indexed
INSERT INTO tail VALUES (0);
`

type lookup struct {
	db     *sql.DB
	board  *board
	tree   func(size int64) tree
	logger *slog.Logger
	// covered is how many entries are indexed.
	covered *board
}

func openLookup(path string, b *board, tree func(int64) tree, logger *slog.Logger) (*lookup, error) {
	db, err := openVersioned(path, "NORMAL", lookupSchema, lookupVersion)
	if err != nil {
		return nil, fmt.Errorf("lookup index: %w: it follows from the log; if it is damaged, stop the server, delete lookup.db and start again", err)
	}
	db.SetMaxOpenConns(4)
	var size uint64
	if err := db.QueryRow("SELECT size FROM tail").Scan(&size); err != nil {
		return nil, errors.Join(fmt.Errorf("lookup index: %w: it follows from the log; if it is damaged, stop the server, delete lookup.db and start again", err), db.Close())
	}
	l := &lookup{db: db, board: b, tree: tree, logger: logger, covered: newBoard()}
	l.covered.set(Published{Size: size, Quorum: true})
	return l, nil
}

// The things one can look up. Each names the strings it is made of.
func keyOf(what string, parts ...string) int64 {
	h := sha256.New()
	for _, p := range append([]string{what}, parts...) {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return int64(binary.BigEndian.Uint64(h.Sum(nil)))
}

// keysOf is what a leaf can be found by: one that this server cannot read, by
// its hash alone.
func keysOf(leaf []byte, e *entry.Entry) []int64 {
	hash := entry.LeafHash(leaf)
	keys := []int64{keyOf("leaf", string(hash[:]))}
	if e.SHA256 != "" {
		keys = append(keys, keyOf("sha256", e.SHA256))
	}
	if e.SHA512 != "" {
		keys = append(keys, keyOf("sha512", e.SHA512))
	}
	if e.Project != "" {
		keys = append(keys, keyOf("project", e.Registry, e.Ecosystem, e.Project))
	}
	if e.File != "" {
		keys = append(keys, keyOf("file", e.Registry, e.Ecosystem, e.Project, e.File))
	}
	return keys
}

// run follows the published log until ctx ends.
func (l *lookup) run(ctx context.Context) {
	for {
		p, changed := l.board.get()
		have, _ := l.covered.get()
		for have.Size < p.Size {
			const step = 64 * tileWidth
			to := min(have.Size+step, p.Size)
			start := time.Now()
			if err := l.index(ctx, int64(have.Size), int64(to)); err != nil {
				if ctx.Err() != nil {
					return
				}
				l.logger.Error("the lookup index cannot follow the log; trying again", "err", err)
				if !sleep(ctx, time.Second) {
					return
				}
				continue
			}
			have.Size = to
			l.covered.set(have)
			// While the log grows fast, index more at a time and less often: the
			// submissions come first.
			if !sleep(ctx, min(8*time.Since(start), 4*time.Second)) {
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (l *lookup) index(ctx context.Context, from, to int64) error {
	type row struct{ key, index int64 }
	rows := make([]row, 0, 4*(to-from))
	t := l.tree(to)
	t.ctx = ctx
	unreadable := 0
	err := t.each(from, func(index int64, leaf []byte) error {
		e, err := entry.Parse(leaf)
		if err != nil { // of a newer server, say; a log does not end at one
			unreadable++
			e = &entry.Entry{}
		}
		for _, k := range keysOf(leaf, e) {
			rows = append(rows, row{k, index})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if unreadable > 0 {
		l.logger.Warn("entries of an unknown version: they are found by index and leaf hash alone", "count", unreadable, "from", from, "to", to)
	}
	slices.SortFunc(rows, func(a, b row) int { // in the order of the B-tree
		if a.key < b.key {
			return -1
		}
		return 1
	})
	return inTx(l.db, func(tx *sql.Tx) error {
		const together = 256 // rows a statement: half the time of one by one
		for len(rows) > 0 {
			n := min(together, len(rows))
			args := make([]any, 0, 2*n)
			for _, r := range rows[:n] {
				args = append(args, r.key, r.index)
			}
			if _, err := tx.Exec("INSERT OR IGNORE INTO lookup VALUES (?, ?)"+strings.Repeat(", (?, ?)", n-1), args...); err != nil {
				return err
			}
			rows = rows[n:]
		}
		_, err := tx.Exec("UPDATE tail SET size = ?", to)
		return err
	})
}

// found is an entry that a lookup led to.
type found struct {
	index uint64
	leaf  []byte
	entry *entry.Entry // empty if this server cannot read the leaf
}

// find returns up to n published entries from index from on that have the key
// and that match says yes to, oldest first. It covers t, and waits for the index to get there. more says where to go on, 0 if
// there is nothing further.
func (l *lookup) find(t tree, key int64, from uint64, n int, match func(*found) bool) (hits []found, more uint64, err error) {
	ctx, size := t.ctx, uint64(t.size)
	if size > 0 {
		if _, err := l.covered.wait(ctx, size-1, nil); err != nil {
			return nil, 0, fmt.Errorf("%w: the lookup index has not caught up with the log yet: try again", ErrNotPublished)
		}
	}
	for from < size {
		const page = 256
		indexes, err := l.page(ctx, key, from, size, page)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: lookup index: %w", ErrStorage, err)
		}
		for _, i := range indexes {
			leaves, err := t.leaves(i, 1)
			if err != nil {
				return nil, 0, err
			}
			e, err := entry.Parse(leaves[0])
			if err != nil {
				e = &entry.Entry{} // it matches no name and no digest
			}
			f := found{uint64(i), leaves[0], e}
			if !match(&f) {
				continue
			}
			if len(hits) == n {
				return hits, uint64(i), nil
			}
			hits = append(hits, f)
		}
		if len(indexes) < page {
			break
		}
		from = uint64(indexes[len(indexes)-1]) + 1
	}
	return hits, 0, nil
}

func (l *lookup) page(ctx context.Context, key int64, from, size uint64, n int) ([]int64, error) {
	rows, err := l.db.QueryContext(ctx, "SELECT idx FROM lookup WHERE key = ? AND idx >= ? AND idx < ? ORDER BY idx LIMIT ?", key, int64(from), int64(size), n)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []int64
	for rows.Next() {
		var i int64
		if err := rows.Scan(&i); err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	return out, rows.Err()
}

func (l *lookup) close() error { return l.db.Close() }
