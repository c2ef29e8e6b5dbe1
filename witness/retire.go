package witness

// The end of a witness: a notice, and for each log what was cosigned last. After
// it the key signs nothing any more, which the database itself sees to; its
// private half can be destroyed. The statement is published at GET /retirement:
//
//	portbook-witness-retired/v1
//	# any number of comment lines
//	witness <name>
//	key <vkey>                   one line for each key
//	retired <time, UTC>
//	reason <one line>
//	log <origin>                 for each log, by origin; without notes: none cosigned
//	| <each line of the note cosigned last>
//
// The statement itself is not signed: a witness key signs checkpoints, and no
// other statement ever (c2sp.org/tlog-cosignature). What it promises can be
// broken in one way, which shows: a cosignature with a later time.

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/portbook/portbook/c2sp"
)

// A Retirement is the notice that a witness has ended.
type Retirement struct {
	Time   time.Time // whole seconds; no cosignature is later
	Reason string    // one line
}

// A RetiredError means that this witness has ended (410). It says nothing about
// the log.
type RetiredError struct{ Retirement }

func (e *RetiredError) Error() string {
	return fmt.Sprintf("this witness has retired at %s and signs nothing any more: %s", e.Time.UTC().Format(time.RFC3339), e.Reason)
}

// Retire ends the witness of this state, for ever. If it has retired before,
// that stays as it is and is returned. It needs no key: a lost one can be
// retired too. The mark is raised, so that an older copy is still noticed.
func (s *Store) Retire(ctx context.Context, reason string, now time.Time) (*Retirement, error) {
	switch r, err := s.Retirement(ctx); {
	case err != nil:
		return nil, err
	case r != nil:
		if err := s.allCovered(ctx); err != nil {
			return nil, err
		}
		return r, nil
	}
	if reason == "" || len(reason) > 500 || !utf8.ValidString(reason) || strings.ContainsFunc(reason, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return nil, errors.New("the reason has to be one line of at most 500 bytes, in characters that can be printed")
	}
	if s.postgres {
		if err := s.ready(ctx); err != nil {
			return nil, err
		}
	}
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", s.path, err)
	}
	defer tx.Rollback()
	var at, generation int64
	if err := tx.QueryRowContext(ctx, "UPDATE generation SET n = n + 1 RETURNING n").Scan(&generation); err != nil { // first: see migrations/postgres
		return nil, fmt.Errorf("writing %s: %w", s.path, err)
	}
	if !s.postgres {
		if err := s.mayCount(uint64(generation)); err != nil {
			return nil, err
		}
	}
	// Not before what it has signed, should its clock have been wrong.
	if err := tx.QueryRowContext(ctx, "SELECT coalesce(max(time), 0) FROM head").Scan(&at); err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO retirement (one, at, reason) VALUES (1, $1, $2)", max(at, now.Unix()), reason); err != nil {
		return nil, fmt.Errorf("writing %s: %w", s.path, err)
	}
	if err := tx.Commit(); err != nil {
		return nil, fmt.Errorf("writing %s: %w", s.path, err)
	}
	_, server := s.mark.says()
	if err := s.mark.raise(uint64(generation), server); err != nil {
		return nil, err
	}
	return s.Retirement(ctx)
}

// Retirement returns the notice, nil while the witness serves.
func (s *Store) Retirement(ctx context.Context) (*Retirement, error) {
	if r := s.retired.Load(); r != nil {
		return r, nil
	}
	var at int64
	var r Retirement
	err := s.read.QueryRowContext(ctx, "SELECT at, reason FROM retirement").Scan(&at, &r.Reason)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	r.Time = time.Unix(at, 0).UTC()
	s.retired.Store(&r) // for ever
	return &r, nil
}

// WriteStatement writes the statement of a retired witness.
func (s *Store) WriteStatement(ctx context.Context, to io.Writer) error {
	r, err := s.Retirement(ctx)
	if err != nil {
		return err
	}
	if r == nil {
		return errors.New("this witness has not retired")
	}
	if err := s.allCovered(ctx); err != nil { // no head moves any more
		return err
	}
	keys := s.publicKeys()
	rows, err := s.read.QueryContext(ctx, "SELECT l.origin, h.note FROM log l LEFT JOIN head h ON h.origin = l.origin ORDER BY l.origin")
	if err != nil {
		return fmt.Errorf("reading %s: %w", s.path, err)
	}
	defer rows.Close()
	b := bufio.NewWriter(to)
	fmt.Fprintf(b, `portbook-witness-retired/v1
# This witness has retired. Below is what it cosigned last for each log. It signs
# nothing any more: a cosignature of its keys with a later time is not its work.
# Each note can be verified by itself, with the log's key and the keys below.
witness %s
`, keys[0].Name())
	for _, k := range keys {
		fmt.Fprintf(b, "key %s\n", k)
	}
	fmt.Fprintf(b, "retired %s\nreason %s\n", r.Time.Format(time.RFC3339), r.Reason)
	for rows.Next() {
		var origin string
		var note []byte
		if err := rows.Scan(&origin, &note); err != nil {
			return fmt.Errorf("reading %s: %w", s.path, err)
		}
		fmt.Fprintf(b, "log %s\n", origin)
		for line := range bytes.Lines(note) {
			fmt.Fprintf(b, "| %s", line)
		}
	}
	return errors.Join(rows.Err(), b.Flush())
}

// publicKeys are the keys that this state belongs to, Ed25519 first.
func (s *Store) publicKeys() []*c2sp.Key {
	var keys []*c2sp.Key
	for _, k := range s.keys {
		keys = append(keys, k.key)
	}
	return keys
}

func (w *Witness) serveStatement(rw http.ResponseWriter, r *http.Request) {
	retired, err := w.store.Retirement(r.Context())
	if err == nil && retired != nil {
		err = w.store.allCovered(r.Context()) // before the first byte
	}
	switch {
	case err != nil:
		w.log.Error("reading the retirement failed", "error", err)
		problem(rw, http.StatusInternalServerError, "the witness failed; its operator's journal has the cause")
	case retired == nil:
		problem(rw, http.StatusNotFound, "this witness has not retired")
	default:
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		rw.Header().Set("X-Content-Type-Options", "nosniff")
		rw.Header().Set("Cache-Control", "no-cache")
		if err := w.store.WriteStatement(r.Context(), rw); err != nil {
			w.log.Error("the statement was not written to its end", "error", err)
			panic(http.ErrAbortHandler) // half a statement must not look whole
		}
	}
}
