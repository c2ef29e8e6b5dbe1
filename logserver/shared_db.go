package logserver

// The database of a shared log: PostgreSQL, one for all frontends. Uniqueness,
// the election, the anchor and the newest checkpoint are here, whatever the
// engine that orders the entries keeps its own data in.
//
// Who can change this database can make the log accept a second digest for a
// file name, hold back submissions, let strangers submit, blame or hide a
// credential, and stop the log; never make it show two histories: what it signs must extend what the tiles,
// the public checkpoint and the witnesses show.

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/portbook/portbook/c2sp"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed shared_migrations/*.sql
var sharedMigrations embed.FS

// Advisory locks in the log's own database.
const (
	lockClass    = 0x706f7274 // "port"
	lockElection = 1          // held for a session by the publisher
	lockDecision = 2          // for a transaction: shared by uploads, alone by what changes a slot's rules
)

// sharedChannel is notified when the log row changes.
const sharedChannel = "portbook_log"

const (
	// statementLimit bounds a statement, idleTxLimit a transaction whose client
	// does nothing: a client that is stopped in the middle of one holds up nobody
	// for longer.
	statementLimit = 10 * time.Second
	idleTxLimit    = 3 * time.Second
)

// errUnsafe says that the database would forget what it has confirmed.
var errUnsafe = errors.New("the database is not durable")

// openDB connects to the database of a shared log. Each connection is refused
// if the database would lose what it confirms.
func openDB(ctx context.Context, dsn string) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("database: the connection string cannot be read: want postgres://USER@HOST/DATABASE") // err quotes the password
	}
	harden(cfg.ConnConfig)
	cfg.MaxConns = max(cfg.MaxConns, 8)
	cfg.AfterConnect = durable
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, databaseTrouble(err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, databaseTrouble(err)
	}
	return pool, nil
}

func harden(cfg *pgx.ConnConfig) {
	if cfg.ConnectTimeout == 0 || cfg.ConnectTimeout > 5*time.Second {
		cfg.ConnectTimeout = 5 * time.Second
	}
	for k, v := range map[string]string{
		"application_name":                    "portbook-log",
		"statement_timeout":                   fmt.Sprint(statementLimit.Milliseconds()),
		"idle_in_transaction_session_timeout": fmt.Sprint(idleTxLimit.Milliseconds()),
		"default_transaction_isolation":       "read committed", // what the decisions are written for
	} {
		cfg.RuntimeParams[k] = v
	}
}

// durable refuses a connection to a database that would lose what it confirms,
// whether the server, the database or the role is set so.
func durable(ctx context.Context, c *pgx.Conn) error {
	var unsafe string
	if err := c.QueryRow(ctx, "SELECT "+unsafeSetting).Scan(&unsafe); err != nil {
		return err
	}
	return refuseUnsafe(unsafe)
}

// unsafeSetting is an SQL expression: the setting that makes this session
// unsafe, or an empty string. It is part of every decision too, since settings
// change under a living connection.
const unsafeSetting = `CASE
	WHEN current_setting('fsync') <> 'on' THEN 'fsync'
	WHEN current_setting('synchronous_commit') = 'off' THEN 'synchronous_commit'
	WHEN current_setting('synchronous_commit') = 'local' AND current_setting('synchronous_standby_names') <> '' THEN 'synchronous_commit (local, with synchronous standbys)'
	ELSE '' END`

func refuseUnsafe(setting string) error {
	if setting == "" {
		return nil
	}
	return fmt.Errorf("%w: its setting %s lets it lose what it has confirmed: set it to on, for the server, the database and the role", errUnsafe, setting)
}

// databaseTrouble is what an error of the database means to us. It may be told
// to callers, so the error itself, which names hosts and users, stays in our log.
func databaseTrouble(err error) error {
	if err == nil || errors.Is(err, ErrStorage) || errors.Is(err, errUnsafe) || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: database: %w", ErrStorage, err)
}

// migrateDB brings the tables to this version.
func migrateDB(ctx context.Context, pool *pgxpool.Pool) error {
	p, closeDB, err := migrations(pool)
	if err != nil {
		return err
	}
	defer closeDB()
	if _, err := p.Up(ctx); err != nil {
		return databaseTrouble(err)
	}
	return nil
}

func migrations(pool *pgxpool.Pool) (*goose.Provider, func(), error) {
	sub, err := fs.Sub(sharedMigrations, "shared_migrations")
	if err != nil {
		return nil, nil, err
	}
	db := stdlib.OpenDBFromPool(pool)
	one, err := lock.NewPostgresSessionLocker() // several servers may start at once
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, sub, goose.WithSessionLocker(one))
	return p, func() { db.Close() }, err
}

// checkDB refuses a database without a log in it, and brings the tables of an
// older version up to date.
func checkDB(ctx context.Context, pool *pgxpool.Pool) error {
	var there bool
	if err := pool.QueryRow(ctx, "SELECT to_regclass('anchor') IS NOT NULL AND to_regclass('log') IS NOT NULL").Scan(&there); err != nil {
		return databaseTrouble(err)
	}
	if !there {
		return fmt.Errorf("%w: the database has no log: make one with portbook-log init --storage trillian, or restore it", ErrNoLog)
	}
	p, closeDB, err := migrations(pool)
	if err != nil {
		return err
	}
	defer closeDB()
	current, target, err := p.GetVersions(ctx)
	if err != nil {
		return databaseTrouble(err)
	}
	if current > target {
		return fmt.Errorf("the database has version %d of the tables, this program knows %d: a newer portbook-log has served it; use that one", current, target)
	}
	if _, err := p.Up(ctx); err != nil {
		return databaseTrouble(err)
	}
	return nil
}

// foreignDB refuses the database that Trillian keeps its trees in: the anchor
// must not be restored together with what it vouches for.
func foreignDB(ctx context.Context, pool *pgxpool.Pool) error {
	var trillian bool
	err := pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM information_schema.tables
		WHERE table_name IN ('treehead', 'sequencedleafdata') AND table_schema NOT IN ('pg_catalog', 'information_schema'))`).Scan(&trillian)
	if err != nil {
		return databaseTrouble(err)
	}
	if trillian {
		return errors.New("this is the database that Trillian keeps its trees in: a restored backup would bring back the log and its anchor together; take another database, better on another server")
	}
	return nil
}

// sharedState is the log row, as one frontend last saw it.
type sharedState struct {
	identity, engine string
	integrated       int64
	published        int64
	checkpoint       []byte // only if it changed; see readState
	open             bool
	latched, trouble string
	ended            bool   // integrated is the size of the last tree
	closed           closed // for good
	awaits           string // origin of the log that it takes over from, while its first entry is missing
}

// whyNot is why no submission may be decided now; nil if one may.
func (s sharedState) whyNot(origin string) error {
	switch {
	case s.latched != "":
		return fmt.Errorf("%w: %s", errLatched, s.latched)
	case s.closed != "":
		return s.closed.refusal(origin)
	case !s.open:
		return errNotOpen
	case s.awaits != "":
		return fmt.Errorf("%w, that it takes over from %s: run portbook-log successor", errAwaits, s.awaits)
	}
	return nil
}

// closedTo and awaitsFirst are SQL expressions of the log row: what the log ends
// with, or is to end with, and sharedState.awaits.
const (
	closedTo    = "CASE WHEN ended <> '' THEN ended ELSE coalesce((identity::jsonb->'freeze')::text, '') END"
	awaitsFirst = "CASE WHEN integrated = 0 THEN coalesce(identity::jsonb->>'successor_of', '') ELSE '' END"
)

// closed is a FreezeMark or the leaf made of it, in JSON; "" while the log goes on.
type closed string

func (c closed) refusal(origin string) error {
	var next struct{ Origin, URL string }
	if err := json.Unmarshal([]byte(c), &next); err != nil {
		return fmt.Errorf("%w: the database's word on how the log ends cannot be read: %w", ErrStorage, err)
	}
	return &FrozenError{origin, next.Origin, next.URL}
}

// bootOf is an SQL expression: when this database server started.
const bootOf = "pg_postmaster_start_time()::text"

// readState reads the log row; the checkpoint only if its bytes are not those
// of have.
func readState(ctx context.Context, db interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, have []byte) (sharedState, error) {
	var s sharedState
	var unsafe string
	if have == nil {
		have = []byte{} // NULL would make the comparison unknown
	}
	err := db.QueryRow(ctx, `SELECT identity, engine, integrated, published, CASE WHEN checkpoint = $1 THEN '' ELSE checkpoint END,
		opened = `+bootOf+`, latched, trouble, ended <> '', `+closedTo+`, `+awaitsFirst+`, `+unsafeSetting+` FROM log`, have).
		Scan(&s.identity, &s.engine, &s.integrated, &s.published, &s.checkpoint, &s.open, &s.latched, &s.trouble, &s.ended, &s.closed, &s.awaits, &unsafe)
	if errors.Is(err, pgx.ErrNoRows) {
		return s, fmt.Errorf("%w: the database has no log: make one with portbook-log init --storage trillian, or restore it", ErrNoLog)
	}
	if err != nil {
		return s, databaseTrouble(err)
	}
	return s, refuseUnsafe(unsafe)
}

// InitShared makes a new log in an empty database, for an engine that is empty.
// It makes a log once: the tables and the rows come in one step.
func InitShared(ctx context.Context, dsn string, engine SharedEngine, key *c2sp.Key, also ...*c2sp.Key) error {
	_, identity, err := sharedIdentity(key, also)
	if err != nil {
		return err
	}
	pool, err := openDB(ctx, dsn)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := foreignDB(ctx, pool); err != nil {
		return err
	}
	var tables int
	if err := pool.QueryRow(ctx, "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename IN ('log', 'anchor', 'slots')").Scan(&tables); err != nil {
		return databaseTrouble(err)
	}
	if tables > 0 {
		var n int
		if err := pool.QueryRow(ctx, "SELECT (SELECT count(*) FROM log) + (SELECT count(*) FROM anchor)").Scan(&n); err != nil {
			return databaseTrouble(err)
		}
		if n > 0 {
			return errors.New("the database holds a log already: a log is made once; take another database, or serve the log it holds")
		}
	}
	size, err := engine.Head(ctx)
	if err != nil {
		return fmt.Errorf("the engine %s: %w", engine.Name(), err)
	}
	if size != 0 {
		return fmt.Errorf("%s has %d entries: a new log begins with an empty tree; make one, or move this one with portbook-log migrate", engine.Name(), size)
	}
	if raw, err := engine.ReadCheckpoint(ctx); err == nil && len(raw) > 0 {
		return errors.New("the place for the tiles has a checkpoint: another log is there; take another place")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the place for the tiles: %w", err)
	}
	if err := migrateDB(ctx, pool); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		root := c2sp.EmptyRoot
		if _, err := tx.Exec(ctx, "INSERT INTO anchor (origin, size, root, fence) VALUES ($1, 0, $2, 0)", key.Name(), root[:]); err != nil {
			return databaseTrouble(err)
		}
		_, err := tx.Exec(ctx, "INSERT INTO log (identity, engine) VALUES ($1, $2)", identity, engine.Name())
		return databaseTrouble(err)
	})
}

// ReadSharedIdentity reads what log a database belongs to.
func ReadSharedIdentity(ctx context.Context, dsn string) (Identity, error) {
	pool, err := openDB(ctx, dsn)
	if err != nil {
		return Identity{}, err
	}
	defer pool.Close()
	if err := checkDB(ctx, pool); err != nil {
		return Identity{}, err
	}
	state, err := readState(ctx, pool, nil)
	if err != nil {
		return Identity{}, err
	}
	return state.id()
}

func (s sharedState) id() (Identity, error) {
	var id Identity
	err := json.Unmarshal([]byte(s.identity), &id)
	if err == nil {
		err = id.checkKeys()
	}
	if err != nil {
		return id, fmt.Errorf("the database's identity of the log: %w", err)
	}
	return id, nil
}
