package logserver

// How a log that was served from a directory becomes a shared one: see package
// migrate.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/portbook/portbook/c2sp"
)

// AdoptShared makes the database of a shared log whose entries the engine and the
// tiles hold already. leaves calls do with the entries [from, log.Size), in
// order: their slots are decided anew. The anchor is made at the whole tree
// first, so a server that starts before all is done finds the database behind it
// and signs nothing. An interrupted AdoptShared is gone on with; ErrTaken means
// that the database holds another log, or this one already elected a publisher.
func AdoptShared(ctx context.Context, dsn string, engine SharedEngine, log Adopted, leaves func(ctx context.Context, from uint64, do func(leaf []byte) error) error) error {
	id := log.Identity
	id.Anchor = ""
	if err := id.checkKeys(); err != nil {
		return err
	}
	identity, err := json.Marshal(id)
	if err != nil {
		return err
	}
	if size, err := engine.Head(ctx); err != nil || size != log.Size {
		return fmt.Errorf("%s has %d entries (%w), the log has %d", engine.Name(), size, err, log.Size)
	}
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
	published := uint64(0)
	if log.Published != nil {
		note, err := c2sp.ParseNote(log.Published)
		if err != nil {
			return err
		}
		cp, err := c2sp.ParseCheckpoint(note.Text)
		if err != nil {
			return err
		}
		published = cp.Size
	}
	t := &sharedTerm{shared: &shared{pool: pool, engine: engine}, anchor: &anchorRow{stop: func(error) {}}, adopt: true}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var n int
		if err := tx.QueryRow(ctx, "SELECT (SELECT count(*) FROM log) + (SELECT count(*) FROM anchor)").Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			if _, err := tx.Exec(ctx, "INSERT INTO anchor (origin, size, root, fence) VALUES ($1, $2, $3, 0)", id.Origin, int64(log.Size), log.Root[:]); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO log (identity, engine, published, checkpoint, logged_from) VALUES ($1, $2, $3, $4, $5)", identity, engine.Name(), int64(published), append([]byte{}, log.Published...), int64(log.Size))
			return err
		}
		var have struct {
			identity, engine string
			size, fence      int64
			root, checkpoint []byte
		}
		err := tx.QueryRow(ctx, "SELECT identity, engine, integrated, checkpoint, size, root, fence FROM log, anchor").
			Scan(&have.identity, &have.engine, &t.integrated, &have.checkpoint, &have.size, &have.root, &have.fence)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if err != nil || have.identity != string(identity) || have.engine != engine.Name() || have.size != int64(log.Size) ||
			!bytes.Equal(have.root, log.Root[:]) || !bytes.Equal(have.checkpoint, log.Published) || have.fence != 0 {
			return fmt.Errorf("%w: the database holds another log, or this one, which has been served from there", ErrTaken)
		}
		return nil
	})
	if err != nil {
		if errors.Is(err, ErrTaken) {
			return err
		}
		return databaseTrouble(err)
	}
	var batch [][]byte
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		// Nobody reserved these entries under an ID, and nobody waits for them.
		if err := t.commit(ctx, t.integrated, make([][32]byte, len(batch)), batch); err != nil {
			return err
		}
		t.integrated += int64(len(batch))
		batch = batch[:0]
		return nil
	}
	err = leaves(ctx, uint64(t.integrated), func(leaf []byte) error {
		if batch = append(batch, bytes.Clone(leaf)); len(batch) < integrateStep {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return err
	}
	if uint64(t.integrated) != log.Size {
		return fmt.Errorf("the database knows %d entries, the log has %d", t.integrated, log.Size)
	}
	return nil
}
