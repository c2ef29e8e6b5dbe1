package logserver

// The elected publisher of a shared log. A session lock of the database says
// who is elected; the fence, raised at each election, is what every write of a
// publisher is compared with. The lock alone fences nothing: who is stopped for
// a while and goes on does not know that it lost the lock. See
// TestPausedPublisherIsRefused.
//
// The database ends the session of a publisher that is silent for sessionLimit,
// so that a stopped process, whose connections stay open, holds up nobody.

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

const (
	sessionLimit    = 3 * time.Second        // of silence of the publisher's session
	sessionPause    = 500 * time.Millisecond // between two signs of life
	standPause      = 250 * time.Millisecond // between two tries to be elected
	headPause       = 10 * time.Millisecond  // between two looks at what is integrated
	integrateStep   = 16 * tileWidth         // entries a transaction
	sweepPause      = time.Second
	sweepAge        = 5 * time.Second // a reservation that old is queued again
	sweepMost       = 1000
	keepSubmissions = time.Hour // that a frontend may take to fetch an index
	mirrorPause     = 250 * time.Millisecond
	collectPause    = time.Second
)

// errDeposed says that another publisher was elected.
var errDeposed = errors.New("another publisher was elected")

func whoami() string {
	host, _ := os.Hostname() // a name for people; none is no reason to fail
	return "process " + strconv.Itoa(os.Getpid()) + " on " + host
}

// stand stands for election until ctx ends, and publishes when elected.
func (s *shared) stand(ctx context.Context) {
	for ctx.Err() == nil {
		if s.log.Status().Latched {
			return // for good: an operator must look
		}
		err := s.campaign(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.cfg.Logger.Warn("not publishing", "err", err)
		}
		pause := standPause
		if errors.Is(err, ErrSigner) {
			pause *= 8 // whoever has all keys tries more often
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// campaign waits for the lock, publishes while it is held, and gives it back.
func (s *shared) campaign(ctx context.Context) error {
	cfg := s.pool.Config().ConnConfig
	harden(cfg)
	cfg.RuntimeParams["idle_session_timeout"] = fmt.Sprint(sessionLimit.Milliseconds())
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return databaseTrouble(err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		conn.Close(closing)
	}()
	if err := durable(ctx, conn); err != nil {
		return err
	}
	for elected := false; !elected; {
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1, $2)", lockClass, lockElection).Scan(&elected); err != nil {
			return databaseTrouble(err)
		}
		if !elected && !sleep(ctx, standPause) {
			return ctx.Err()
		}
	}
	// Who has not all keys gives way before it deposes anybody.
	if err := s.knowKeys(ctx); err != nil {
		s.lackKeys(ctx, err)
		return err
	}
	anchor, err := openAnchorRow(ctx, s.pool, s.log.keys.origin, s.name)
	if err != nil {
		s.latchIfGuard(0, err)
		return err
	}
	// They were changed in between, or they are those of the whole term: a change
	// raises the fence.
	if err := s.knowKeys(ctx); err != nil {
		return err
	}
	s.terms.Add(1)
	defer s.terms.Add(-1)
	s.log.cfg.Logger.Info("elected to publish", "fence", anchor.last.fence, "size", anchor.last.size)
	term, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	anchor.stop, anchor.testBeforeSwap = stop, s.cfg.testBeforeSwap
	alive := make(chan struct{})
	go func() { // the only user of conn meanwhile
		defer close(alive)
		for sleep(term, sessionPause) {
			ping, cancel := context.WithTimeout(term, sessionLimit)
			_, err := conn.Exec(ping, "SELECT 1")
			cancel()
			if err != nil && term.Err() == nil {
				stop(fmt.Errorf("the election's session ended: %w", databaseTrouble(err)))
			}
		}
	}()
	t := &sharedTerm{shared: s, anchor: anchor, fence: anchor.last.fence}
	err = t.run(term)
	if cause := context.Cause(term); cause != nil && ctx.Err() == nil {
		err = cause
	}
	stop(nil)
	<-alive
	return err
}

// knowKeys reads the keys of the log, and says which one this server lacks.
func (s *shared) knowKeys(ctx context.Context) error {
	state, err := readState(ctx, s.pool, nil)
	if err != nil {
		return err
	}
	id, err := state.id()
	if err != nil {
		return err
	}
	s.log.keys.change(id)
	return s.log.keys.cannotSign()
}

// lackKeys tells all frontends that nothing is published for want of a key, if
// that is why, and lets others stand. Nobody else is elected meanwhile.
func (s *shared) lackKeys(ctx context.Context, why error) {
	if !errors.Is(why, ErrSigner) {
		return
	}
	if _, err := s.pool.Exec(ctx, "UPDATE log SET trouble = $1 WHERE trouble <> $1", why.Error()); err != nil && ctx.Err() == nil {
		s.log.cfg.Logger.Warn("cannot tell the frontends why nothing is published", "err", err)
	}
}

// sharedTerm is the time of one publisher between election and deposition.
type sharedTerm struct {
	*shared
	anchor     *anchorRow
	fence      uint64
	integrated int64         // as committed; owned by the goroutine that integrates
	unsure     bool          // a commit failed and may have happened all the same
	ended      bool          // integrated is the size of the last tree; owned like it
	tiles      atomic.Uint64 // size of the tree that can be read, and whose rows are committed: what may be signed
	adopt      bool          // entries that nobody reserved are taken over: rebuilding
}

// run makes sure of the log, opens it for submissions, and publishes until ctx
// ends.
func (t *sharedTerm) run(ctx context.Context) error {
	l := t.log
	l.pub.anchor, l.pub.ended, l.pub.size = t.anchor, make(chan struct{}), func(context.Context) (uint64, error) { return t.tiles.Load(), nil }
	l.pub.publish = func(ctx context.Context, raw []byte) error {
		if t.cfg.testBeforePublish != nil {
			t.cfg.testBeforePublish()
		}
		return t.noteDeposed(sharedCheckpoint(ctx, t.pool, t.fence, raw))
	}
	l.pub.latch = func(err error) { t.latchIfGuard(t.fence, err) }
	work, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var published []remembered
	if err := t.insist(work, func() (err error) { published, err = t.recall(work); return err }); err != nil {
		return err
	}
	if l.pub.done() { // nothing is signed any more, and nobody asked for anything
		l.cfg.Logger.Info("this log has ended; nothing more is signed", "origin", l.Origin(), "size", t.integrated)
		t.housekeep(work)
		return context.Cause(work)
	}
	var working sync.WaitGroup
	defer working.Wait()
	defer stop(nil)
	working.Go(func() { // whatever ends it ends the term
		err := t.engine.Integrate(work, t.fence, t.record, func(size uint64) {
			if int64(size) > t.integrated {
				err := t.databaseWentBack(size)
				t.latchIfGuard(t.fence, err)
				stop(err)
				return
			}
			if t.ended {
				l.pub.last.Store(uint64(t.integrated)) // before it can be signed
			}
			t.tiles.Store(max(size, t.tiles.Load())) // what is integrated anew can be read all the while
			l.pub.grown()
		})
		if work.Err() == nil {
			// Refused by the fence, or for what it found, or the database's fence went
			// back: only if nobody else was elected is it more than the end of a term.
			// If that cannot be asked, the next term finds the same. (The anchor itself
			// belongs to the publisher's goroutine.)
			if fenced(work, t.pool, t.fence, func(pgx.Tx) error { return nil }) == nil {
				err = &guardError{fmt.Errorf("%w: %w", ErrBehind, err)}
				t.latchIfGuard(t.fence, err)
			}
			stop(err)
		}
	})
	if err := t.insist(work, func() error { return t.makeSure(work, published) }); err != nil {
		return err
	}
	if err := t.insist(work, func() error { return t.open(work) }); err != nil {
		return err
	}
	l.cfg.Logger.Info("publishing", "origin", l.Origin(), "size", t.tiles.Load(), "fence", t.fence)
	working.Go(func() { t.housekeep(work) })
	working.Go(func() { t.collect(work) })
	working.Go(func() { t.end(work) })
	l.pub.run(work) // ends with work, latched, or when the last checkpoint is published
	if l.pub.done() {
		l.cfg.Logger.Info("the log ends here; its last checkpoint is published", "size", l.Published().Size)
		<-work.Done() // the checkpoint beside the tiles stays the last
	}
	return context.Cause(work)
}

// insist does do until it succeeds, the term ends, or a guard fails.
func (t *sharedTerm) insist(ctx context.Context, do func() error) error {
	for {
		err := do()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errUnsafe) {
			return err
		}
		var guard *guardError
		if errors.As(err, &guard) || !errors.Is(err, ErrStorage) && !errors.Is(err, ErrSigner) {
			err = &guardError{err}
			t.latchIfGuard(t.fence, err)
			return err
		}
		t.log.cfg.Logger.Error("cannot make sure of the log yet; trying again", "err", err)
		t.say(ctx, databaseReasonOf(err))
		if !sleep(ctx, 250*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// open lets every frontend take submissions, until the database restarts.
func (t *sharedTerm) open(ctx context.Context) error {
	return t.noteDeposed(fenced(ctx, t.pool, t.fence, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "UPDATE log SET opened = "+bootOf+", latched = '', trouble = ''")
		if err == nil {
			_, err = tx.Exec(ctx, "NOTIFY "+sharedChannel)
		}
		return err
	}))
}

// say tells all frontends why nothing is published; nil that all is well.
func (t *sharedTerm) say(ctx context.Context, trouble error) {
	text := ""
	if trouble != nil {
		text = trouble.Error()
	}
	if _, err := t.pool.Exec(ctx, "UPDATE log SET trouble = $1 WHERE trouble <> $1 AND EXISTS (SELECT FROM anchor WHERE fence = $2)", text, int64(t.fence)); err != nil && ctx.Err() == nil {
		t.log.cfg.Logger.Warn("cannot tell the frontends why nothing is published", "err", err)
	}
}

// databaseReasonOf leaves away what callers must not see of an error.
func databaseReasonOf(err error) error {
	if errors.Is(err, ErrStorage) {
		return fmt.Errorf("%w: the publisher cannot read or write the storage behind it", ErrStorage)
	}
	return err
}

// latchIfGuard stops all frontends if err is a failed guard of this publisher's
// own term, and this one for good.
func (s *shared) latchIfGuard(fence uint64, err error) {
	var guard *guardError
	if !errors.As(err, &guard) {
		return
	}
	s.log.latch(err)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, dberr := s.pool.Exec(ctx, "UPDATE log SET latched = $1 WHERE EXISTS (SELECT FROM anchor WHERE fence = $2)", err.Error(), int64(fence)); dberr != nil {
		s.log.cfg.Logger.Error("cannot tell the other frontends that a guard failed", "err", dberr)
	}
}

// noteDeposed ends the term if err says that it is over.
func (t *sharedTerm) noteDeposed(err error) error {
	if errors.Is(err, errDeposed) {
		t.anchor.stop(errDeposed)
		return fmt.Errorf("%w: %w", ErrStorage, err)
	}
	return databaseTrouble(err)
}

// remembered is a published checkpoint, and who remembers it.
type remembered struct {
	where string
	raw   []byte
}

// recall compares the database with the anchor, and both with what was
// published, wherever that is remembered.
func (t *sharedTerm) recall(ctx context.Context) (published []remembered, err error) {
	l := t.log
	state, err := readState(ctx, t.pool, nil)
	if err != nil {
		return nil, err
	}
	t.integrated, t.ended, t.unsure = state.integrated, state.ended, false
	known := t.anchor.known()
	if uint64(t.integrated) < known.size {
		return nil, &guardError{fmt.Errorf("%w: the database knows %d entries, the log has signed %d", ErrBehind, t.integrated, known.size)}
	}
	beside, err := t.engine.ReadCheckpoint(ctx)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the checkpoint beside the tiles: %w", ErrStorage, withoutPath(err))
	}
	have, _ := l.board.get()
	for _, p := range []remembered{{"the database", state.checkpoint}, {"the checkpoint beside the tiles", beside}, {"this server", have.Note}} {
		if len(p.raw) == 0 {
			continue
		}
		size, err := ownCheckpoint(l.keys, p.raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.where, err)
		}
		if size > known.size {
			return nil, &guardError{fmt.Errorf("%w: %s shows a published checkpoint of %d entries, the anchor knows of %d: the database was restored from a backup, or an outdated standby was promoted; bring the newer one back", errBadAnchor, p.where, size, known.size)}
		}
		published = append(published, p)
	}
	if t.ended {
		l.pub.last.Store(uint64(t.integrated))
		if len(state.checkpoint) > 0 {
			return published, l.takePublished(state.checkpoint)
		}
	}
	return published, nil
}

// makeSure waits until what the engine has ordered is integrated, and compares
// the tree with what was published and with the witnesses.
func (t *sharedTerm) makeSure(ctx context.Context, published []remembered) error {
	l := t.log
	asking, cancel := context.WithTimeout(ctx, statementLimit)
	head, err := t.engine.Head(asking)
	cancel()
	if err != nil {
		return fmt.Errorf("%w: the engine: %w", ErrStorage, err)
	}
	for t.tiles.Load() < head {
		if !sleep(ctx, headPause) {
			return ctx.Err()
		}
	}
	tree := l.freshTree(int64(t.tiles.Load()))
	tree.ctx = ctx
	for _, p := range published {
		if err := containsNote(tree, l.keys, p.where, p.raw); err != nil {
			return err
		}
	}
	return l.pub.hearWitnesses(ctx, func(err error) {
		l.cfg.Logger.Warn("not publishing yet", "err", err)
		t.say(ctx, err)
	})
}

// ownCheckpoint is the size of a checkpoint that the log signed.
func ownCheckpoint(keys *keyring, raw []byte) (uint64, error) {
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return 0, err
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return 0, err
	}
	if cp.Origin != keys.origin {
		return 0, fmt.Errorf("it is of another log, %q", cp.Origin)
	}
	return cp.Size, keys.signed(note)
}

// record commits that leaves stand at [first, …): indexes, rows and integrated
// size. What is committed already is left out.
func (t *sharedTerm) record(ctx context.Context, first uint64, ids [][32]byte, leaves [][]byte) error {
	err := t.tryRecord(ctx, first, ids, leaves)
	var guard *guardError
	if errors.As(err, &guard) {
		t.latchIfGuard(t.fence, err) // the engine would try again
		t.anchor.stop(err)
	}
	return err
}

func (t *sharedTerm) databaseWentBack(tiles uint64) error {
	return &guardError{fmt.Errorf("%w: the database knows %d entries, tiles are written of %d: the database was restored from a backup, or an outdated standby was promoted", ErrBehind, t.integrated, tiles)}
}

func (t *sharedTerm) tryRecord(ctx context.Context, first uint64, ids [][32]byte, leaves [][]byte) error {
	if t.unsure {
		state, err := readState(ctx, t.pool, nil)
		if err != nil {
			return err
		}
		t.integrated, t.ended, t.unsure = state.integrated, state.ended, false
	}
	if first > uint64(t.integrated) {
		return t.databaseWentBack(first)
	}
	have := uint64(t.integrated) - first
	if have >= uint64(len(ids)) {
		return nil
	}
	ids, leaves = ids[have:], leaves[have:]
	for len(ids) > 0 {
		n := min(len(ids), integrateStep)
		if t.cfg.testBeforeCommit != nil {
			t.cfg.testBeforeCommit()
		}
		if err := t.commit(ctx, t.integrated, ids[:n], leaves[:n]); err != nil {
			return err
		}
		t.integrated += int64(n)
		ids, leaves = ids[n:], leaves[n:]
	}
	return nil
}

// commit is one transaction of record, with the fence.
func (t *sharedTerm) commit(ctx context.Context, from int64, submissions [][32]byte, leaves [][]byte) error {
	var ids, hashes, keys [][]byte
	var indexes []int64
	entries := make([]*entry.Entry, len(leaves))
	for i, leaf := range leaves {
		var err error
		if entries[i], err = entry.Parse(leaf); err != nil {
			return &guardError{fmt.Errorf("%w: entry %d: %w", errUnreadable, from+int64(i), err)}
		}
		key, _, err := slotKey(entries[i])
		if err != nil {
			return &guardError{fmt.Errorf("%w: entry %d: %w", errUnreadable, from+int64(i), err)}
		}
		hash := entry.LeafHash(leaf)
		if submissions != nil {
			ids = append(ids, submissions[i][:])
		}
		hashes, indexes, keys = append(hashes, hash[:]), append(indexes, from+int64(i)), append(keys, key[:])
		if k := entries[i].Kind; k == entry.KindReject || k == entry.KindRemove && entries[i].File != "" {
			slot := uploadSlot(entries[i]).Key()
			keys = append(keys, slot[:])
		}
	}
	to := from + int64(len(leaves))
	ended := ""
	for i, e := range entries {
		if e.Kind == entry.KindSuccessor && i < len(entries)-1 {
			return &guardError{fmt.Errorf("entry %d of %d ends it: %w", from+int64(i), to, errAfterEnd)}
		} else if e.Kind == entry.KindSuccessor {
			ended = string(leaves[i])
		}
	}
	err := fenced(ctx, t.pool, t.fence, func(tx pgx.Tx) error {
		rows := mapRows{map[[32]byte]*slotRow{}, map[[2]string]string{}, map[[32]byte]bool{}, map[[2]string]bool{}}
		known := map[submissionID]bool{}
		by := map[uint64]string{} // who reserved what, by index
		b := &pgx.Batch{}
		arrive := `UPDATE submissions s SET idx = u.idx, leaf = '' FROM unnest($1::bytea[], $2::bigint[], $3::bytea[]) u (id, idx, hash)
			WHERE s.id = u.id AND s.idx IS NULL AND sha256('\x00'::bytea || s.leaf) = u.hash RETURNING s.id, s.idx, s.by`
		if submissions == nil { // from the tiles, which have no IDs
			arrive = `UPDATE submissions s SET idx = u.idx, leaf = '' FROM unnest($2::bigint[], $3::bytea[]) u (idx, hash)
				WHERE $1::bytea[] IS NULL AND s.idx IS NULL AND sha256('\x00'::bytea || s.leaf) = u.hash RETURNING s.id, s.idx, s.by`
		}
		b.Queue(arrive, ids, indexes, hashes).Query(func(r pgx.Rows) error {
			for r.Next() {
				var id []byte
				var index int64
				var who *string
				if err := r.Scan(&id, &index, &who); err != nil {
					return err
				}
				known[submissionID(id)] = true
				if who != nil {
					by[uint64(index)] = *who
				}
			}
			return r.Err()
		})
		b.Queue("SELECT key, digest, idx, removed FROM slots WHERE key = ANY($1)", keys).Query(rows.collectSlots)
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		for i := range leaves {
			if !t.adopt && !known[submissions[i]] {
				return &guardError{fmt.Errorf("%w: entry %d, submission %s, was never reserved in the database: it was restored from a backup, an outdated standby was promoted, or somebody else writes to the engine's tree",
					ErrBehind, from+int64(i), hex.EncodeToString(submissions[i][:]))}
			}
			if err := applyTo(rows, from+int64(i), entries[i]); err != nil {
				return err
			}
		}
		if err := rows.write(ctx, tx); err != nil {
			return err
		}
		var runs []Attributed
		for i := uint64(from); i < uint64(to); i++ {
			if who, known := by[i]; known {
				runs = addRun(runs, Attributed{First: i, Count: 1, By: who})
			}
		}
		if err := (&sharedAttribution{db: tx}).record(ctx, runs); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, "UPDATE log SET integrated = $1, ended = $3 WHERE integrated = $2 AND ended = ''", to, from, ended)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			if state, err := readState(ctx, tx, nil); err != nil {
				return err
			} else if state.ended && state.integrated == from {
				return &guardError{fmt.Errorf("entry %d: %w", from, errAfterEnd)}
			}
			return &guardError{fmt.Errorf("%w: the database no longer says that %d entries are integrated", ErrBehind, from)}
		}
		_, err = tx.Exec(ctx, "NOTIFY "+sharedChannel)
		return err
	})
	var guard *guardError
	if err != nil && !errors.As(err, &guard) {
		t.unsure = true
	}
	if guard != nil {
		return err
	}
	if err == nil {
		t.ended = ended != ""
	}
	return t.noteDeposed(err)
}

// write brings what applyTo changed into the database.
func (m mapRows) write(ctx context.Context, tx pgx.Tx) error {
	var keys, digests, freed [][]byte
	var indexes []int64
	var removed []bool
	for key := range m.changed {
		if r := m.slots[key]; r != nil {
			keys, digests, indexes, removed = append(keys, bytes.Clone(key[:])), append(digests, r.digest), append(indexes, int64(r.index)), append(removed, r.removed)
		} else {
			freed = append(freed, bytes.Clone(key[:]))
		}
	}
	b := &pgx.Batch{}
	b.Queue(`INSERT INTO slots SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bool[])
		ON CONFLICT (key) DO UPDATE SET digest = excluded.digest, idx = excluded.idx, removed = excluded.removed`, keys, digests, indexes, removed)
	if len(freed) > 0 {
		b.Queue("DELETE FROM slots WHERE key = ANY($1)", freed)
	}
	for p := range m.policy {
		b.Queue("INSERT INTO policies VALUES ($1, $2, $3) ON CONFLICT (registry, ecosystem) DO UPDATE SET overwrite = excluded.overwrite", p[0], p[1], m.policies[p])
	}
	return tx.SendBatch(ctx, b).Close()
}

// collect removes partial tiles that the published tree has full ones for, until
// ctx ends. It needs no fence: they are garbage whoever publishes.
func (t *sharedTerm) collect(ctx context.Context) {
	collected := uint64(0)
	for sleep(ctx, collectPause) {
		p, _ := t.log.board.get()
		if full := p.Size / tileWidth; full > collected {
			if err := t.engine.CollectGarbage(ctx, p.Size); err == nil {
				collected = full
			} else if ctx.Err() == nil {
				t.log.cfg.Logger.Warn("partial tiles that are full meanwhile cannot be removed; trying again", "err", withoutPath(err))
			}
		}
	}
}

// housekeep queues again what its frontend did not, keeps the checkpoint beside
// the tiles what the database says, and removes what is outdated, until ctx ends.
func (t *sharedTerm) housekeep(ctx context.Context) {
	lastSweep, lastClean := time.Now(), time.Now()
	for sleep(ctx, mirrorPause) {
		// A publisher that has nothing to write would not hear that another was
		// elected, or that the keys were changed and others should sign.
		if err := t.noteDeposed(t.elected(ctx)); err != nil {
			continue
		}
		if err := t.mirror(ctx); err != nil && ctx.Err() == nil {
			t.log.cfg.Logger.Warn("the checkpoint beside the tiles is not the newest; trying again", "err", err)
		}
		if t.log.pub.trouble() != nil {
			t.say(ctx, databaseReasonOf(t.log.pub.trouble()))
		}
		if time.Since(lastSweep) > sweepPause {
			age := sweepAge
			if t.awaited() { // its first entry is reserved by who cannot queue
				age = 0
			}
			if err := t.sweep(ctx, age); err != nil && ctx.Err() == nil {
				t.log.cfg.Logger.Warn("reserved entries cannot be queued again; trying again", "err", err)
			}
			lastSweep = time.Now()
		}
		if time.Since(lastClean) > keepSubmissions/4 {
			if err := t.clean(ctx); err != nil && ctx.Err() == nil {
				t.log.cfg.Logger.Warn("what is outdated in the database cannot be removed", "err", err)
			}
			lastClean = time.Now()
		}
	}
}

// elected is errDeposed if the fence was raised since.
func (t *sharedTerm) elected(ctx context.Context) error {
	var fence int64
	if err := t.pool.QueryRow(ctx, "SELECT fence FROM anchor").Scan(&fence); err != nil {
		return databaseTrouble(err)
	}
	if uint64(fence) != t.fence {
		return errDeposed
	}
	return nil
}

// awaited reports whether the log has no first entry yet, which makes it the
// successor of another.
func (s *shared) awaited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.awaits != ""
}

// clean removes what nobody asks for any more: old submissions, the counts of
// days before yesterday, rates that are full again.
func (s *shared) clean(ctx context.Context) (err error) {
	for _, q := range []string{
		fmt.Sprintf("DELETE FROM submissions WHERE idx IS NOT NULL AND at < clock_timestamp() - %d * interval '1 second'", int(keepSubmissions.Seconds())),
		fmt.Sprintf("DELETE FROM quotas WHERE day < floor(extract(epoch FROM clock_timestamp()) / %d) - 1", daySeconds),
		"DELETE FROM rates WHERE at < clock_timestamp() - interval '1 hour'",
	} {
		_, each := s.pool.Exec(ctx, q)
		err = errors.Join(err, each)
	}
	return err
}

// mirror writes the newest checkpoint beside the tiles, for readers that go
// there and not to a frontend. What an older publisher wrote there late is
// replaced: see docs/running.md.
func (t *sharedTerm) mirror(ctx context.Context) error {
	p, _ := t.log.board.get()
	if p.Note == nil {
		return nil
	}
	was, err := t.engine.ReadCheckpoint(ctx)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return withoutPath(err)
	}
	if bytes.Equal(was, p.Note) {
		return nil
	}
	// The newest of all frontends', and only while we are elected.
	var newest []byte
	err = fenced(ctx, t.pool, t.fence, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "SELECT checkpoint FROM log").Scan(&newest)
	})
	if err != nil {
		return t.noteDeposed(err)
	}
	if len(newest) == 0 || bytes.Equal(was, newest) {
		return nil
	}
	return withoutPath(t.engine.WriteCheckpoint(ctx, was, newest))
}

// sweep queues again what was reserved that long ago and has not arrived: its
// frontend died, or the engine lost it.
func (t *sharedTerm) sweep(ctx context.Context, age time.Duration) error {
	rows, err := t.pool.Query(ctx, `SELECT id, leaf FROM submissions WHERE idx IS NULL AND at < clock_timestamp() - $1 * interval '1 second' ORDER BY at LIMIT $2`,
		age.Seconds(), sweepMost)
	if err != nil {
		return databaseTrouble(err)
	}
	type late struct {
		id, leaf []byte
	}
	list, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (l late, err error) { return l, r.Scan(&l.id, &l.leaf) })
	if err != nil {
		return databaseTrouble(err)
	}
	for _, l := range list {
		if err := t.engine.Queue(ctx, submissionID(l.id), l.leaf); err != nil {
			return err
		}
	}
	if t.cfg.testSwept != nil {
		t.cfg.testSwept(len(list))
	}
	return nil
}

// anchorRow is the anchor in the shared database. Its owner is the publisher's
// goroutine.
type anchorRow struct {
	pool  *pgxpool.Pool
	last  anchorState // what we know it to say
	tried anchorState // what we last tried to make it say; differs from last after a failed write
	stop  func(error) // ends the term; errDeposed when another publisher has raised the fence

	testBeforeSwap func()
}

// anchorLimit bounds each access to the anchor.
const anchorLimit = 5 * time.Second

// openAnchorRow raises the fence: from then on no publisher before us can write.
func openAnchorRow(ctx context.Context, pool *pgxpool.Pool, origin, holder string) (*anchorRow, error) {
	a := &anchorRow{pool: pool, stop: func(error) {}}
	var size, fence int64
	var root []byte
	err := pool.QueryRow(ctx, "UPDATE anchor SET fence = fence + 1, holder = $1 RETURNING origin, size, root, fence", holder).Scan(&a.last.origin, &size, &root, &fence)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, &guardError{errNoAnchor}
	}
	if err != nil {
		return nil, databaseTrouble(err)
	}
	a.last.size, a.last.root, a.last.fence = uint64(size), [32]byte(root), uint64(fence)
	a.tried = a.last
	if a.last.origin != origin {
		return nil, &guardError{fmt.Errorf("%w: it belongs to log %q, not to %q", errBadAnchor, a.last.origin, origin)}
	}
	return a, nil
}

func (a *anchorRow) known() anchorState { return a.last }

// check implements anchor.
func (a *anchorRow) check() (anchorState, error) {
	ctx, cancel := context.WithTimeout(context.Background(), anchorLimit)
	defer cancel()
	var now anchorState
	var size, fence int64
	var root []byte
	err := a.pool.QueryRow(ctx, "SELECT origin, size, root, fence FROM anchor").Scan(&now.origin, &size, &root, &fence)
	if errors.Is(err, pgx.ErrNoRows) {
		return now, errNoAnchor
	}
	if err != nil {
		return now, databaseTrouble(err)
	}
	now.size, now.root, now.fence = uint64(size), [32]byte(root), uint64(fence)
	if now.fence > a.last.fence {
		a.stop(errDeposed)
		return now, fmt.Errorf("%w: %w", ErrStorage, errDeposed)
	}
	if now != a.last && now != a.tried {
		return now, fmt.Errorf("%w: it says size %d fence %d, we wrote size %d fence %d", errAnchorMoved, now.size, now.fence, a.last.size, a.last.fence)
	}
	return now, nil
}

// swap implements anchor: one statement, which finds nothing to change if the
// fence was raised or somebody else wrote.
func (a *anchorRow) swap(next anchorState) error {
	now, err := a.check()
	if err != nil {
		return err
	}
	if a.testBeforeSwap != nil {
		a.testBeforeSwap()
	}
	a.tried = next
	ctx, cancel := context.WithTimeout(context.Background(), anchorLimit)
	defer cancel()
	var tag pgconn.CommandTag
	// Also if it says so already: it must be ours at this moment.
	tag, err = a.pool.Exec(ctx, "UPDATE anchor SET size = $1, root = $2 WHERE fence = $3 AND origin = $4 AND size = $5 AND root = $6",
		int64(next.size), next.root[:], int64(now.fence), now.origin, int64(now.size), now.root[:])
	if err != nil {
		return databaseTrouble(err)
	}
	if tag.RowsAffected() != 1 {
		if _, err := a.check(); err != nil {
			return err
		}
		return errAnchorMoved
	}
	a.last, a.tried = next, next
	return nil
}

func (a *anchorRow) close() {}
