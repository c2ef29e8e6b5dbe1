package logserver

// A shared log: any number of frontends, one elected publisher among them.
//
//	index ─▶ any frontend ─▶ PostgreSQL: the slot is reserved, durably
//	                      └▶ engine (Trillian): the entry is queued and ordered
//	publisher: sequenced entries ─▶ tiles ─▶ root = the engine's root ─▶
//	  indexes and rows, in one transaction with the fence ─▶ guard ─▶ anchor,
//	  with the fence ─▶ sign ─▶ cosign ─▶ newest checkpoint, with the fence
//	any frontend ◀─ notified: indexes, checkpoint ─▶ index + proof
//
// A frontend keeps nothing that cannot be made anew: its directory holds the
// lookup index, and the key if it may be elected. See shared_slots.go for how
// submissions are decided, shared_term.go for the publisher.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/portbook/portbook/c2sp"
)

// SharedEngine orders the entries of a shared log, and keeps the tiles that
// readers get: logserver/trillian and a directory or bucket. Every frontend has
// one.
type SharedEngine interface {
	// Name tells this engine's tree from every other.
	Name() string
	// Queue hands over an entry. Once it has returned without an error the entry
	// will be ordered, once: an id that the engine has is dropped.
	Queue(ctx context.Context, id [32]byte, leaf []byte) error
	// Head is the size of what is ordered.
	Head(ctx context.Context) (size uint64, err error)
	// Integrate makes tiles of what is ordered, until ctx ends; fence is larger
	// than every publisher's before. Passing trouble it waits out; any other error
	// means that the engine or the tiles do not hold the tree that they held.
	//
	// record is called with entries [first, first+len(leaves)), in order, once
	// their tiles are written and the root of the tree they end is the engine's
	// own; after an error it is called again, with an overlap. grown is called
	// when the tree of a size can be read, once at the beginning and after each
	// record.
	Integrate(ctx context.Context, fence uint64, record func(ctx context.Context, first uint64, ids [][32]byte, leaves [][]byte) error, grown func(size uint64)) error

	tileSource
	// ReadCheckpoint returns the public checkpoint beside the tiles;
	// fs.ErrNotExist if there is none.
	ReadCheckpoint(ctx context.Context) ([]byte, error)
	// WriteCheckpoint replaces it if it is still was (nil: absent), as far as the
	// storage can tell.
	WriteCheckpoint(ctx context.Context, was, raw []byte) error
	// CollectGarbage removes the partial tiles and bundles that have full ones in
	// a tree of this size, which is published. Readers of an older checkpoint are
	// served the full ones.
	CollectGarbage(ctx context.Context, published uint64) error
	Close() error
}

// SharedConfig makes a log a shared one. Config.Dir is then this frontend's own,
// and may be lost. Without Config.Signer it is never elected.
type SharedConfig struct {
	Database string // connection string; pgx's, as libpq's: postgres://user@host/database
	Engine   SharedEngine
	Name     string // of this frontend, for people; "" makes one of host and process

	testBeforeSwap, testBeforeCommit, testBeforePublish func() // called in tests in front of each write of a term
	testEnding                                          func() // called in tests when the last leaf is reserved
	testSwept                                           func(n int)
}

// shared is the part of a Log that only a shared one has.
type shared struct {
	log    *Log
	cfg    SharedConfig
	pool   *pgxpool.Pool
	seq    *sharedSequencer
	rates  *sharedRates
	name   string
	ended  chan struct{} // closed by release
	engine SharedEngine

	stopFollow context.CancelFunc
	following  sync.WaitGroup

	mu    sync.Mutex
	state sharedState // guarded by mu; as last seen
	blind error       // guarded by mu; why the database cannot be seen
	fresh time.Time   // guarded by mu; when state was seen

	terms atomic.Int32 // 1 while this server is elected, as far as it knows
}

// followLimit is how old the last look at the database may be: a frontend that
// is cut off says so.
const followLimit = 5 * time.Second

// openSharedLog is Open for a frontend of a shared log. The log's keys are those
// that the database names.
func openSharedLog(ctx context.Context, cfg Config) (*Log, error) {
	s := &shared{cfg: *cfg.Shared, engine: cfg.Shared.Engine, name: cfg.Shared.Name, ended: make(chan struct{})}
	if s.name == "" {
		s.name = whoami()
	}
	opening, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var err error
	if s.pool, err = openDB(opening, s.cfg.Database); err != nil {
		return nil, err
	}
	fail := func(err error) (*Log, error) {
		s.pool.Close()
		return nil, errors.Join(err, s.engine.Close())
	}
	keys, err := s.identify(opening, cfg)
	if err != nil {
		return fail(err)
	}
	id, err := s.state.id()
	if err != nil {
		return fail(err)
	}
	cfg.Private = cfg.Private || id.private()
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return fail(err)
	}
	if err := s.ownDir(cfg.Dir); err != nil {
		return fail(err)
	}
	l, err := newLog(cfg, keys, s.engine)
	if err != nil {
		return fail(err)
	}
	l.shared, l.quotas = s, nil
	if l.Tokens, err = openCredentials(opening, sharedCredentials{s.pool}, cfg.Now); err != nil {
		cfg.Logger.Error("nobody can submit until the credentials can be read", "err", err)
	}
	if err := l.meantPrivate(id, err); err != nil {
		return nil, errors.Join(err, l.release())
	}
	if l.lookup, err = openIndex(filepath.Join(cfg.Dir, indexDir), l.freshTree, cfg.Logger); err != nil {
		return nil, errors.Join(err, l.release())
	}
	ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.start(ctx, l)
	return l, nil
}

// ownDir refuses a directory that is not this log's: it holds an embedded log, or
// the lookup index of another shared one.
func (s *shared) ownDir(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, identityFile)); err == nil {
		return fmt.Errorf("%s holds a log of its own: give the frontend another directory", dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	path := filepath.Join(dir, frontendFile)
	want := s.state.engine + "\n"
	have, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return writeDurably(path, []byte(want), 0o644)
	}
	if err == nil && string(have) != want {
		err = fmt.Errorf("%s belongs to a frontend of another log: give this one another directory", dir)
	}
	return err
}

// frontendFile says which log a frontend's directory belongs to.
const frontendFile = "frontend"

func (s *shared) identify(ctx context.Context, cfg Config) (*keyring, error) {
	if err := foreignDB(ctx, s.pool); err != nil {
		return nil, err
	}
	if err := checkDB(ctx, s.pool); err != nil {
		return nil, err
	}
	state, err := readState(ctx, s.pool, nil)
	if err != nil {
		return nil, err
	}
	if state.engine != s.engine.Name() {
		return nil, fmt.Errorf("the database belongs to the log on %s, not to the one on %s", state.engine, s.engine.Name())
	}
	id, err := state.id()
	if err != nil {
		return nil, err
	}
	s.state, s.fresh = state, time.Now()
	if cfg.Signer == nil {
		return sharedKeyring(id, nil)
	}
	keys, err := sharedKeyring(id, append([]Signer{cfg.Signer}, cfg.Also...))
	if err != nil {
		return nil, err
	}
	for _, k := range keys.idle() {
		cfg.Logger.Warn("a key that is given signs nothing: it is not one of the log's yet, or it is retired", "key", name(k))
	}
	return keys, nil
}

// start begins to follow the database, to decide submissions and, with a key,
// to stand for election.
func (s *shared) start(ctx context.Context, l *Log) {
	s.log = l
	s.seq = newSharedSequencer(s.pool, s.engine)
	s.seq.origin = l.Origin()
	s.seq.entryAt, s.seq.now, s.seq.logger, s.seq.gone, s.seq.seen = l.lookup.entryAt, l.cfg.Now, l.cfg.Logger, l.seqDone, s.state.integrated
	l.seq, l.ended, l.trouble = s.seq, s.ended, s.trouble
	l.lookup.readUpTo(func() (uint64, error) { return max(s.integrated(), s.seq.decided.Load()), nil })
	l.working.Go(func() { l.lookup.follow(ctx, l.board) })
	l.streams, s.rates = newStreams(sharedStreams{s.pool}), newSharedRates(s.pool)
	l.who = &sharedAttribution{db: s.pool, seen: uint64(s.state.integrated)}
	l.pub = &publisher{
		keys: l.keys, metrics: l.metrics, tree: l.tree, fresh: l.freshTree, board: l.board,
		interval: l.cfg.Interval, republish: l.cfg.Republish, roundLimit: l.cfg.RoundLimit,
		latched: l.guard, logger: l.cfg.Logger, wake: make(chan struct{}, 1),
	}
	l.pub.quorum.Store(&quorum{l.cfg.Policy, l.witnesses, l.auditors})
	following, stop := context.WithCancel(ctx)
	s.stopFollow = stop
	if err := s.saw(ctx, s.state, nil); err != nil {
		l.cfg.Logger.Error("the newest checkpoint is not served; publishing makes it anew", "err", err)
	}
	s.following.Go(func() { s.follow(following) })
	var deciding context.Context
	deciding, l.stopSeq = context.WithCancel(ctx)
	l.stopEnding = func() {} // the publisher ends it: see sharedTerm.end
	l.working.Go(func() {
		defer close(l.seqDone)
		s.seq.run(deciding)
	})
	if l.cfg.Signer != nil {
		l.working.Go(func() { s.stand(deciding) })
	}
}

// integrated is how many entries this frontend knows to be integrated.
func (s *shared) integrated() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(s.state.integrated)
}

// follow keeps up with the database: told by it, and by looking.
func (s *shared) follow(ctx context.Context) {
	heard := make(chan struct{}, 1)
	s.following.Go(func() { s.listen(ctx, heard) })
	for {
		if err := s.look(ctx); err != nil && ctx.Err() == nil {
			s.log.cfg.Logger.Error("the shared database cannot be read; trying again", "err", err)
			if !sleep(ctx, followPause) {
				return
			}
		}
		select {
		case <-heard:
		case <-time.After(followPause):
		case <-ctx.Done():
			return
		}
	}
}

// listen passes on what the database notifies of. What is lost while there is
// no connection is found by looking.
func (s *shared) listen(ctx context.Context, heard chan<- struct{}) {
	for ctx.Err() == nil {
		err := s.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
			if _, err := c.Exec(ctx, "LISTEN "+sharedChannel); err != nil {
				return err
			}
			defer c.Conn().Close(context.WithoutCancel(ctx)) // no listener goes back into the pool
			for {
				if _, err := c.Conn().WaitForNotification(ctx); err != nil {
					return err
				}
				select {
				case heard <- struct{}{}:
				default:
				}
			}
		})
		if ctx.Err() == nil {
			s.log.cfg.Logger.Warn("not told of changes by the shared database; looking for them instead", "err", err)
		}
		if !sleep(ctx, time.Second) {
			return
		}
	}
}

// look reads the log row and what follows from it.
func (s *shared) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, followLimit)
	defer cancel()
	s.mu.Lock()
	was := s.state
	s.mu.Unlock()
	have, _ := s.log.board.get()
	state, err := readState(ctx, s.pool, have.Note)
	if err == nil && state.integrated < was.integrated {
		// Not even a publisher would take this back: the database did.
		err = fmt.Errorf("%w: the shared database knows %d entries, it knew %d: it was restored from a backup, or an outdated standby was promoted", ErrBehind, state.integrated, was.integrated)
		s.log.latch(&guardError{err})
	}
	if err == nil && (state.identity != was.identity || state.engine != was.engine) {
		if err = s.changed(was, state); err != nil && !errors.Is(err, ErrStorage) {
			s.log.latch(&guardError{err})
		}
	}
	return s.saw(ctx, state, err)
}

// changed takes over an identity whose keys were changed, or that says how the log
// ends. Its errors but ErrStorage are a failed guard.
func (s *shared) changed(was, state sharedState) error {
	old, err := was.id()
	if err != nil {
		return err
	}
	id, err := state.id()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStorage, err)
	}
	if state.engine != was.engine || id.Origin != old.Origin {
		return errors.New("the shared database now belongs to another log: restart this frontend")
	}
	if !id.follows(old) {
		return fmt.Errorf("%w: the shared database knows older keys of the log than it did, or has forgotten that the log ends: it was restored from a backup, or an outdated standby was promoted", ErrBehind)
	}
	if !s.log.keys.change(id) {
		return nil
	}
	for _, k := range id.Keys {
		s.log.cfg.Logger.Info("the keys of the log have changed", "key", name(k.key), "state", k.State)
	}
	if err := s.log.keys.cannotSign(); err != nil {
		s.log.cfg.Logger.Error("this server cannot publish any more: restart it with all keys of the log", "err", err)
	}
	if err := s.log.SetPolicy(s.log.policy()); err != nil {
		s.log.cfg.Logger.Error("the publish policy does not fit the keys of the log: nothing is acknowledged here until it does", "err", err)
	}
	return nil
}

// saw takes note of what the database says.
func (s *shared) saw(ctx context.Context, state sharedState, err error) error {
	if err == nil && len(state.checkpoint) > 0 {
		if err = s.log.takePublished(state.checkpoint); err != nil {
			err = fmt.Errorf("newest checkpoint in the database: %w", err)
		}
	}
	if err == nil {
		err = s.seq.follow(ctx, state.integrated)
	}
	s.mu.Lock()
	s.blind = err
	if err == nil {
		state.checkpoint = nil
		s.state, s.fresh = state, time.Now()
	}
	s.mu.Unlock()
	if err != nil {
		s.log.setStatus(Status{Reason: databaseReason(err)})
		return err
	}
	why := state.whyNot(s.log.Origin())
	s.log.setStatus(Status{Writable: why == nil, Reason: why})
	return nil
}

// databaseReason is what callers are told of trouble with the database.
func databaseReason(err error) error {
	if errors.Is(err, errUnsafe) || errors.Is(err, ErrBehind) {
		return err
	}
	return fmt.Errorf("%w: the shared database cannot be read", ErrStorage)
}

// trouble is why nothing is being published, as far as this frontend knows.
func (s *shared) trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.blind != nil:
		return databaseReason(s.blind)
	case time.Since(s.fresh) > followLimit:
		return fmt.Errorf("the shared database has not been heard of for %v", time.Since(s.fresh).Round(time.Second))
	case s.state.trouble != "":
		return errors.New(s.state.trouble)
	}
	return nil
}

// release ends what start began, after the sequencer and the publisher.
func (s *shared) release() error {
	if s.stopFollow != nil {
		s.stopFollow()
	}
	s.following.Wait()
	close(s.ended)
	s.pool.Close()
	return s.engine.Close()
}

// fenced runs do in a transaction in which no other publisher can be elected,
// if this one still is the publisher. Everything that a publisher writes goes
// through it, or names the fence in its own WHERE.
func fenced(ctx context.Context, pool *pgxpool.Pool, fence uint64, do func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var one int
		err := tx.QueryRow(ctx, "SELECT 1 FROM anchor WHERE fence = $1 FOR SHARE", int64(fence)).Scan(&one)
		if errors.Is(err, pgx.ErrNoRows) {
			return errDeposed
		}
		if err != nil {
			return err
		}
		return do(tx)
	})
}

// sharedCheckpoint publishes a checkpoint to all frontends. An older one than
// what is published is refused.
func sharedCheckpoint(ctx context.Context, pool *pgxpool.Pool, fence uint64, raw []byte) error {
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return err
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return err
	}
	return fenced(ctx, pool, fence, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, "UPDATE log SET published = $1, checkpoint = $2, trouble = '' WHERE published <= $1", int64(cp.Size), raw)
		if err != nil {
			return err
		}
		if tag.RowsAffected() != 1 {
			return fmt.Errorf("a checkpoint of more than %d entries is published", cp.Size)
		}
		_, err = tx.Exec(ctx, "NOTIFY "+sharedChannel)
		return err
	})
}

// takePublished takes over a checkpoint that another server published.
func (l *Log) takePublished(raw []byte) error {
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return err
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return err
	}
	if cp.Origin != l.keys.origin {
		return fmt.Errorf("it is of another log, %q", cp.Origin)
	}
	if err := l.keys.signed(note); err != nil {
		return fmt.Errorf("it was changed by somebody else: %w", err)
	}
	have, _ := l.board.get()
	if cp.Size < have.Size || bytes.Equal(raw, have.Note) {
		return nil // our own is newer
	}
	_, err = l.policy().Verify(raw)
	audits := (&quorum{policy: l.policy(), auditors: l.auditors}).audits(raw)
	l.board.set(Published{Size: cp.Size, Root: cp.Root, Note: raw, Quorum: err == nil, audits: audits})
	return nil
}

// sharedCredentials keeps the credentials in the shared database: what one
// frontend revokes all refuse as soon as they look, twice a second.
type sharedCredentials struct{ pool *pgxpool.Pool }

// OpenSharedTokens reads the credentials of a shared log, as OpenTokens does those
// in a file. The caller must call done.
func OpenSharedTokens(ctx context.Context, database string, now func() time.Time) (c *Credentials, done func(), err error) {
	pool, err := openDB(ctx, database)
	if err != nil {
		return nil, nil, err
	}
	if err := checkDB(ctx, pool); err != nil {
		pool.Close()
		return nil, nil, err
	}
	if c, err = openCredentials(ctx, sharedCredentials{pool}, now); err != nil {
		pool.Close()
		return nil, nil, err
	}
	return c, func() { c.oidc.end(); pool.Close() }, nil
}

// read implements credentialStore.
func (c sharedCredentials) read(ctx context.Context, version string) (raw []byte, now string, err error) {
	err = c.pool.QueryRow(ctx, "SELECT version::text, CASE WHEN version::text = $1 THEN ''::bytea ELSE body END FROM credentials", version).Scan(&now, &raw)
	return raw, now, databaseTrouble(err)
}

// change implements credentialStore.
func (c sharedCredentials) change(ctx context.Context, do func(raw []byte) ([]byte, error)) error {
	return pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
		var raw []byte
		if err := tx.QueryRow(ctx, "SELECT body FROM credentials FOR UPDATE").Scan(&raw); err != nil {
			return databaseTrouble(err)
		}
		raw, err := do(raw)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "UPDATE credentials SET body = $1, version = version + 1", raw)
		return databaseTrouble(err)
	})
}
