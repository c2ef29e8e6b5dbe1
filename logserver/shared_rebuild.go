package logserver

// How the database of a shared log is made anew: for a log that was moved to
// Trillian, or whose database was lost or went back. Everything in it follows
// from the tiles but the credentials, who logged what, and what was on its way.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// RebuildShared makes the database of a shared log anew from the tiles and the
// engine. Every frontend must be stopped. The anchor becomes the newest
// checkpoint of this log's own that is found: in the database, and beside the
// tiles. At the next start the witnesses are heard as always, so that a tree
// older than what they hold is not signed. Reservations are kept; so are the
// credentials, suspended until they are confirmed, and of what the database knew
// to be signed who logged it and how far streams have come, if they are there.
func RebuildShared(ctx context.Context, dsn string, engine SharedEngine, logger *slog.Logger, key *c2sp.Key, also ...*c2sp.Key) error {
	id, identity, err := sharedIdentity(key, also)
	if err != nil {
		return err
	}
	keys := &keyring{origin: id.Origin, keys: id.Keys}
	pool, err := openDB(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := foreignDB(ctx, pool); err != nil {
		return err
	}
	if err := migrateDB(ctx, pool); err != nil {
		return err
	}
	election, err := pool.Acquire(ctx)
	if err != nil {
		return databaseTrouble(err)
	}
	defer election.Release()
	defer election.Conn().Close(context.WithoutCancel(ctx)) // frees the lock
	var elected bool
	if err := election.QueryRow(ctx, "SELECT pg_try_advisory_lock($1, $2)", lockClass, lockElection).Scan(&elected); err != nil {
		return databaseTrouble(err)
	}
	if !elected {
		return errors.New("a publisher is running: stop every frontend first")
	}
	head, err := engine.Head(ctx)
	if err != nil {
		return fmt.Errorf("the engine %s: %w", engine.Name(), err)
	}
	// The database may be older than a revocation.
	err = sharedCredentials{pool}.change(ctx, func(raw []byte) ([]byte, error) {
		if len(raw) == 0 {
			return raw, nil
		}
		return suspend(raw, time.Now().UTC().Format(entry.TimeFormat))
	})
	if err != nil {
		return err
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		root := c2sp.EmptyRoot
		if _, err := tx.Exec(ctx, "INSERT INTO anchor (origin, size, root, fence) VALUES ($1, 0, $2, 0) ON CONFLICT DO NOTHING", id.Origin, root[:]); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO log (identity, engine, logged_from) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", identity, engine.Name(), int64(head)); err != nil {
			return err
		}
		state, err := readState(ctx, tx, nil)
		if err != nil {
			return err
		}
		have, err := state.id()
		if err != nil || have.Origin != id.Origin || have.VKey != id.VKey || state.engine != engine.Name() {
			return fmt.Errorf("the database belongs to another log, or to %s: %w", state.engine, errors.Join(err, errors.New("give its own keys and tree")))
		}
		keys.change(have) // which has the retired ones too
		for _, q := range []string{
			"UPDATE log SET integrated = 0, ended = '', opened = '', latched = '', trouble = ''",
			// The database may not know of the last elections, whose fence the tiles
			// know; elections are fewer than milliseconds.
			"UPDATE anchor SET fence = greatest(fence, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)",
			"DELETE FROM slots", "DELETE FROM policies", "DELETE FROM submissions WHERE idx IS NOT NULL", "DELETE FROM waiting",
		} {
			if _, err := tx.Exec(ctx, q); err != nil {
				return err
			}
		}
		// Of what was signed it is made sure that it is still the same.
		var signed int64
		if err := tx.QueryRow(ctx, "SELECT size FROM anchor").Scan(&signed); err != nil {
			return err
		}
		return errors.Join(forgetLogged(ctx, tx, uint64(signed)), forgetStreams(ctx, tx, uint64(signed)))
	})
	if err != nil {
		return databaseTrouble(err)
	}
	anchor, err := openAnchorRow(ctx, pool, id.Origin, "rebuilding: "+whoami())
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	anchor.stop = stop
	t := &sharedTerm{shared: &shared{pool: pool, engine: engine}, anchor: anchor, fence: anchor.last.fence, adopt: true}
	return t.rebuild(ctx, keys, logger, stop)
}

var errRebuilt = errors.New("the database is rebuilt")

func (t *sharedTerm) rebuild(ctx context.Context, keys *keyring, logger *slog.Logger, stop context.CancelCauseFunc) error {
	head, err := t.engine.Head(ctx)
	if err != nil {
		return err
	}
	replayed := false
	last := time.Now()
	err = t.engine.Integrate(ctx, t.fence, func(ctx context.Context, first uint64, ids [][32]byte, leaves [][]byte) error {
		err := t.tryRecord(ctx, first, ids, leaves)
		if err != nil && !errors.Is(err, ErrStorage) {
			stop(err)
		}
		return err
	}, func(size uint64) {
		if !replayed { // nothing is recorded before
			replayed = true
			tree := tree{ctx, t.engine, int64(size), nil}
			var leaves [][]byte
			err := tree.each(0, func(index int64, leaf []byte) error {
				leaves = append(leaves, leaf)
				if len(leaves) < integrateStep && index+1 < tree.size {
					return nil
				}
				if err := t.commit(ctx, t.integrated, nil, leaves); err != nil {
					return err
				}
				t.integrated += int64(len(leaves))
				leaves = nil
				if time.Since(last) > 2*time.Second {
					last = time.Now()
					logger.Info("replaying the log into the database", "done", t.integrated, "of", tree.size)
				}
				return nil
			})
			if err != nil {
				stop(err)
				return
			}
		}
		if size >= head {
			t.tiles.Store(size)
			stop(errRebuilt)
		}
	})
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if !errors.Is(err, errRebuilt) {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	return t.setAnchor(ctx, keys)
}

// setAnchor makes the newest checkpoint that is found the anchor, if the tree
// has it.
func (t *sharedTerm) setAnchor(ctx context.Context, keys *keyring) error {
	state, err := readState(ctx, t.pool, nil)
	if err != nil {
		return err
	}
	beside, err := t.engine.ReadCheckpoint(ctx)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	known := t.anchor.known()
	whole := tree{ctx, t.engine, int64(t.tiles.Load()), nil}
	if known.size > t.tiles.Load() {
		return fmt.Errorf("%w: the log has signed %d entries, the engine has %d", ErrBehind, known.size, t.tiles.Load())
	}
	at := whole
	at.size = int64(known.size)
	if root, err := at.root(); err != nil || root != known.root {
		return fmt.Errorf("%w: the tree of size %d that was signed is not this one (%w)", ErrBehind, known.size, errors.Join(err, errBadAnchor))
	}
	newest := known
	for where, raw := range map[string][]byte{"the database": state.checkpoint, "the checkpoint beside the tiles": beside} {
		if len(raw) == 0 {
			continue
		}
		size, err := ownCheckpoint(keys, raw)
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
		if err := containsNote(whole, keys, where, raw); err != nil {
			return err
		}
		if size > newest.size {
			newest.size = size
			at.size = int64(size)
			if newest.root, err = at.root(); err != nil {
				return err
			}
		}
	}
	return t.anchor.swap(newest)
}

// sharedIdentity is the identity of a log with these keys, and its JSON.
func sharedIdentity(key *c2sp.Key, also []*c2sp.Key) (Identity, []byte, error) {
	id := Identity{Origin: key.Name(), VKey: key.String()}
	if len(also) > 0 {
		for _, k := range append([]*c2sp.Key{key}, also...) {
			id.Keys = append(id.Keys, LogKey{VKey: k.String(), State: KeyActive})
		}
	}
	raw, err := json.Marshal(id)
	if err == nil {
		err = id.checkKeys()
	}
	return id, raw, err
}
