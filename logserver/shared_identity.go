package logserver

// How the identity of a shared log changes while it is served: its keys, how it
// ends, and how it begins as the successor of another. Each change is one
// transaction of the database, so every frontend, awake or not, is under it from
// then on:
//
//	keys    raise the fence: whoever publishes is deposed, and the next term reads
//	        the keys after it was elected. A key is retired at the anchor's size,
//	        which no signature of a deposed publisher is above
//	freeze  has the decisions alone: nothing is reserved after it, by any frontend;
//	        the publisher lets what is reserved arrive, then reserves the successor
//	        leaf (see sharedTerm.end)
//	begin   reserves the predecessor leaf in a log that has nothing yet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// follows reports whether id can have been made of old by the changes that there
// are: nothing is taken back.
func (id Identity) follows(old Identity) bool {
	if id.Origin != old.Origin || id.changes() < old.changes() {
		return false
	}
	if old.Freeze != nil && (id.Freeze == nil || id.Freeze.ID != old.Freeze.ID) {
		return false
	}
	for _, k := range old.Keys {
		at := slices.IndexFunc(id.Keys, func(n LogKey) bool { return n.VKey == k.VKey })
		if at < 0 || k.State == KeyRetired && (id.Keys[at].State != KeyRetired || id.Keys[at].UpTo != k.UpTo) {
			return false
		}
	}
	return true
}

// openSharedLogDB opens the database of a log that is there.
func openSharedLogDB(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	pool, err := openDB(ctx, dsn)
	if err != nil {
		return nil, err
	}
	if err := checkDB(ctx, pool); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

// writeSharedIdentity replaces the identity in a transaction.
func writeSharedIdentity(ctx context.Context, tx pgx.Tx, id Identity) error {
	if err := id.checkKeys(); err != nil {
		return err
	}
	raw, err := json.Marshal(id)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "UPDATE log SET identity = $1", raw); err != nil {
		return databaseTrouble(err)
	}
	_, err = tx.Exec(ctx, "NOTIFY "+sharedChannel)
	return databaseTrouble(err)
}

// changeSharedKeys lets change edit the identity of a log, and stores it. last is
// the tree that the log signed last. was is the identity that change is to find,
// nil for any.
func changeSharedKeys(ctx context.Context, pool *pgxpool.Pool, was *string, change func(id *Identity, last anchorState) error) (id Identity, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var last anchorState
		var size int64
		var root []byte
		// First the anchor, as a publisher does.
		if err := tx.QueryRow(ctx, "UPDATE anchor SET fence = fence + 1, holder = 'the keys were changed' RETURNING origin, size, root").Scan(&last.origin, &size, &root); err != nil {
			return databaseTrouble(err)
		}
		last.size, last.root = uint64(size), [32]byte(root)
		state, err := readState(ctx, tx, nil)
		if err != nil {
			return err
		}
		if was != nil && state.identity != *was {
			return errors.New("the keys of the log were changed meanwhile: look at them, and begin again")
		}
		if id, err = state.id(); err != nil {
			return err
		}
		if state.closed != "" {
			return errEnds
		}
		if err := change(&id, last); err != nil {
			return err
		}
		return writeSharedIdentity(ctx, tx, id)
	})
	return id, err
}

func changeKeysIn(ctx context.Context, dsn string, change func(id *Identity, last anchorState) error) (Identity, error) {
	pool, err := openSharedLogDB(ctx, dsn)
	if err != nil {
		return Identity{}, err
	}
	defer pool.Close()
	return changeSharedKeys(ctx, pool, nil, change)
}

// AddSharedKey is AddKey for a shared log, which may be served meanwhile: servers
// that do not have the key publish no more.
func AddSharedKey(ctx context.Context, dsn string, key *c2sp.Key) (Identity, error) {
	return changeKeysIn(ctx, dsn, addKey(key))
}

// BeginSharedRotation is BeginRotation for a shared log, as AddSharedKey.
func BeginSharedRotation(ctx context.Context, dsn string, key *c2sp.Key) (Identity, error) {
	return changeKeysIn(ctx, dsn, beginRotation(key))
}

// RetireSharedKey is RetireKey for a shared log, which may be served meanwhile.
func RetireSharedKey(ctx context.Context, dsn string, keyID uint32) (Identity, error) {
	return changeKeysIn(ctx, dsn, retireKey(keyID))
}

// FinishSharedRotation is FinishRotation for a shared log, which may be served
// meanwhile. tiles are the log's.
func FinishSharedRotation(ctx context.Context, dsn string, tiles Files, policy *c2sp.Policy) (Identity, error) {
	pool, err := openSharedLogDB(ctx, dsn)
	if err != nil {
		return Identity{}, err
	}
	defer pool.Close()
	state, err := readState(ctx, pool, nil)
	if err != nil {
		return Identity{}, err
	}
	id, err := state.id()
	if err != nil {
		return id, err
	}
	// Witnesses are asked before the database is held up.
	rest, err := id.finishRotation(anchorState{})
	if err == nil {
		err = overlapIsDone(ctx, state.checkpoint, filesSource{tiles}, policy, rest)
	}
	if err != nil {
		return id, err
	}
	return changeSharedKeys(ctx, pool, &state.identity, func(id *Identity, last anchorState) error {
		_, err := id.finishRotation(last)
		return err
	})
}

// FreezeShared is Freeze for a shared log. When it has returned no frontend
// reserves anything more; the publisher does the rest.
func FreezeShared(ctx context.Context, dsn string, next Successor, now time.Time) error {
	pool, err := openSharedLogDB(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	return decideAlone(ctx, pool, func(tx pgx.Tx, state sharedState, id Identity) error {
		if again, err := id.end(next, now); again || err != nil {
			return err
		}
		if state.ended { // by a leaf; a database that was made anew has forgotten the mark
			return state.closed.refusal(id.Origin)
		}
		return writeSharedIdentity(ctx, tx, id)
	})
}

// decideAlone runs do in a transaction beside which nobody reserves anything.
func decideAlone(ctx context.Context, pool *pgxpool.Pool, do func(tx pgx.Tx, state sharedState, id Identity) error) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", lockClass, lockDecision); err != nil {
			return databaseTrouble(err)
		}
		if _, err := tx.Exec(ctx, "SELECT FROM log FOR UPDATE"); err != nil {
			return databaseTrouble(err)
		}
		state, err := readState(ctx, tx, nil)
		if err != nil {
			return err
		}
		id, err := state.id()
		if err != nil {
			return err
		}
		return do(tx, state, id)
	})
}

// SharedEnded is Ended for a shared log. publisher says whether a server is
// elected to publish.
func SharedEnded(ctx context.Context, dsn string) (p Published, next *entry.Entry, publisher bool, err error) {
	pool, err := openSharedLogDB(ctx, dsn)
	if err != nil {
		return p, nil, false, err
	}
	defer pool.Close()
	state, err := readState(ctx, pool, nil)
	if err != nil {
		return p, nil, false, err
	}
	if err := pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
		WHERE datname = current_database() AND locktype = 'advisory' AND classid = $1 AND objid = $2 AND granted)`, lockClass, lockElection).Scan(&publisher); err != nil {
		return p, nil, false, databaseTrouble(err)
	}
	if !state.ended || state.published < state.integrated {
		return p, nil, publisher, nil
	}
	note, err := c2sp.ParseNote(state.checkpoint)
	if err != nil {
		return p, nil, publisher, err
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return p, nil, publisher, err
	}
	if next = successorLeaf([]byte(state.closed)); next == nil {
		return p, nil, publisher, fmt.Errorf("%w: the database's last leaf of the log cannot be read", ErrStorage)
	}
	return Published{Size: cp.Size, Root: cp.Root, Note: state.checkpoint}, next, publisher, nil
}

// AwaitSharedPredecessor is AwaitPredecessor for a shared log that was just made.
func AwaitSharedPredecessor(ctx context.Context, dsn, origin string) error {
	pool, err := openSharedLogDB(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	return decideAlone(ctx, pool, func(tx pgx.Tx, _ sharedState, id Identity) error {
		if id.Origin == origin {
			return fmt.Errorf("%s is this log: it cannot take over from itself", origin)
		}
		id.SuccessorOf = origin
		return writeSharedIdentity(ctx, tx, id)
	})
}

// BeginShared is Begin for a shared log, which may be served meanwhile: the
// publisher logs the leaf that is reserved here.
func BeginShared(ctx context.Context, dsn string, old c2sp.Checkpoint, now time.Time) error {
	pool, err := openSharedLogDB(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	// Its name follows from what it says, so that a second time is seen to be one.
	sum := sha256.Sum256([]byte("predecessor\x00" + old.Text()))
	s, err := newSubmission(predecessorLeaf(old, hex.EncodeToString(sum[:16]), now), nil)
	if err != nil {
		return err
	}
	return decideAlone(ctx, pool, func(tx pgx.Tx, state sharedState, id Identity) error {
		if err := id.mayTakeOver(old); err != nil {
			return err
		}
		var first, others int
		err := tx.QueryRow(ctx, `SELECT (SELECT count(*) FROM slots WHERE key = $1 AND digest = $2 AND idx = 0) + (SELECT count(*) FROM submissions WHERE key = $1 AND digest = $2 AND idx IS NULL),
			(SELECT count(*) FROM submissions WHERE idx IS NULL)`, s.key[:], s.digest).Scan(&first, &others)
		switch {
		case err != nil:
			return databaseTrouble(err)
		case first > 0:
			return nil
		case state.integrated > 0 || others > 0:
			return errors.New("this log has entries, and the first is not the predecessor leaf for this checkpoint: a log can take over only with its first entry, once; make a new one with portbook-log init --successor-of")
		}
		return reserve(ctx, tx, sum, s)
	})
}

// reserve makes a submission of the log itself. One with this ID that is there
// already is left as it is.
func reserve(ctx context.Context, tx pgx.Tx, id submissionID, s *submission) error {
	if _, err := tx.Exec(ctx, "INSERT INTO submissions (id, key, digest, leaf, by) VALUES ($1, $2, $3, $4, '') ON CONFLICT DO NOTHING", id[:], s.key[:], s.digest, s.leaf); err != nil {
		return databaseTrouble(err)
	}
	_, err := tx.Exec(ctx, "NOTIFY "+sharedChannel)
	return databaseTrouble(err)
}

// endPause is how soon a publisher looks again while the log ends.
const endPause = 50 * time.Millisecond

// end makes the successor leaf the last entry, once it is decided that the log
// ends. Whoever publishes next goes on with it, and finds the same submission.
func (t *sharedTerm) end(ctx context.Context) {
	said := ""
	for sleep(ctx, endPause) {
		err := t.tryEnd(ctx)
		if errors.Is(err, errEnded) {
			return
		}
		if err != nil && err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			t.log.cfg.Logger.Error("the log cannot be ended yet; trying again", "err", err)
		}
		if err != nil && !sleep(ctx, endRetry) {
			return
		}
	}
}

var (
	errEnded    = errors.New("the log has ended")
	errUnderWay = errors.New("what was reserved before it was to end is on its way")
)

func (t *sharedTerm) tryEnd(ctx context.Context) error {
	if t.log.pub.last.Load() > 0 {
		return errEnded
	}
	t.mu.Lock()
	state := t.state
	t.mu.Unlock()
	if state.closed == "" {
		return nil
	}
	id, err := state.id()
	if err != nil {
		return err
	}
	if id.Freeze == nil { // ended by a leaf that is being integrated
		return nil
	}
	s, err := newSubmission(id.Freeze.leaf(), nil)
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	name := sha256.Sum256(append([]byte("successor\x00"), s.leaf...))
	var under int
	err = fenced(ctx, t.pool, t.fence, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM submissions WHERE idx IS NULL AND id <> $1", name[:]).Scan(&under); err != nil || under > 0 {
			return err
		}
		return reserve(ctx, tx, name, s)
	})
	if err != nil {
		return t.noteDeposed(err)
	}
	if under > 0 { // it comes first, whether its frontend lives or not
		return errors.Join(errUnderWay, t.sweep(ctx, 0))
	}
	if t.cfg.testEnding != nil {
		t.cfg.testEnding()
	}
	return t.engine.Queue(ctx, name, s.leaf)
}
