package witness

// The state of a witness with several instances behind one name: PostgreSQL, with
// the statements of store.go, and what several instances and a database on another
// machine need beside them.
//
// A database that is restored, or a standby that is promoted without the last
// transactions, knows less than was signed. Each instance has a mark of its own,
// which remembers what this instance wrote and, half a second later, what others
// wrote. So no single mark is enough: after every start of the database server
// each instance has to find its mark not ahead (confirm), and until all have,
// none signs. Servers are told apart by timeline and start time, and have an
// order: an instance that has confirmed one never goes back to an earlier one,
// so two servers cannot both be confirmed by all. See TestRestoredDatabase and
// docs/decisions/0018-several-witness-instances.md.
//
// Who can write to this database can make the witness sign what it should not.

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/portbook/portbook/c2sp"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

const (
	statementLimit = 10 * time.Second       // one statement; the database ends it
	lookPause      = 500 * time.Millisecond // between two looks at the database's count and server
)

var (
	// ErrUnsafe means that the database may lose what it has confirmed.
	ErrUnsafe = errors.New("the witness database is not durable")
	// ErrUnconfirmed means that nothing is signed until other instances have
	// looked at the database server, which has started since.
	ErrUnconfirmed = errors.New("not every instance of this witness has confirmed the database server")
)

// serverOf is an SQL expression: the timeline and start of the server that
// answers. A later string is a later server; on a standby it fails.
const serverOf = `(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || ' ' || to_char(extract(epoch FROM pg_postmaster_start_time()) * 1000000, 'FM0000000000000000000'))`

// unsafeOf is an SQL expression: the setting that lets this session lose what it
// has committed, or an empty string.
const unsafeOf = `CASE
	WHEN current_setting('fsync') <> 'on' THEN 'fsync'
	WHEN current_setting('full_page_writes') <> 'on' THEN 'full_page_writes'
	WHEN current_setting('synchronous_commit') = 'off' THEN 'synchronous_commit'
	WHEN current_setting('synchronous_commit') = 'local' AND current_setting('synchronous_standby_names') <> '' THEN 'synchronous_commit (local, with synchronous standbys)'
	ELSE '' END`

func refuseUnsafe(setting string) error {
	if setting == "" {
		return nil
	}
	return fmt.Errorf("%w: its setting %s lets it lose what it has confirmed: set it to on, for the server, the database and the role", ErrUnsafe, setting)
}

// CreatePostgres makes the state of a new witness in the empty PostgreSQL database
// at uri. It refuses a database that holds tables already.
func CreatePostgres(ctx context.Context, uri string, keys []*c2sp.Key, now time.Time) (_ *Store, err error) {
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	s, err := connectPostgres(ctx, uri)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	var tables int
	if err := s.read.QueryRowContext(ctx, "SELECT count(*) FROM information_schema.tables WHERE table_schema NOT IN ('pg_catalog', 'information_schema')").Scan(&tables); err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	if tables > 0 {
		return nil, fmt.Errorf("%s is not empty: a witness is made once, in a database of its own", s.path)
	}
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	if err := s.bind(ctx, keys, now); err != nil {
		return nil, err
	}
	return s, s.load(ctx)
}

// OpenPostgres opens the state of an existing witness, and brings its schema up to
// date. What is missing, or may lose what it confirms, is refused ([ErrNoState],
// [ErrUnsafe]).
func OpenPostgres(ctx context.Context, uri string) (_ *Store, err error) {
	s, err := connectPostgres(ctx, uri)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	var there bool
	if err := s.read.QueryRowContext(ctx, "SELECT to_regclass('witness_key') IS NOT NULL AND to_regclass('instance') IS NOT NULL").Scan(&there); err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	if there {
		err = s.read.QueryRowContext(ctx, "SELECT count(*) > 0 FROM witness_key").Scan(&there)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	case !there:
		return nil, fmt.Errorf("%w in %s: is it the right one? If its tables are lost, this witness has ended: begin a new one, with a new name (a copy from a backup would sign backwards)", ErrNoState, s.path)
	}
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	return s, s.load(ctx)
}

// connectPostgres opens the two pools.
func connectPostgres(ctx context.Context, uri string) (*Store, error) {
	cfg, err := pgx.ParseConfig(uri)
	if err != nil {
		return nil, errors.New("the witness database must be given as postgres://user@host:port/database?sslmode=verify-full") // err shows the password
	}
	if cfg.ConnectTimeout == 0 || cfg.ConnectTimeout > 5*time.Second {
		cfg.ConnectTimeout = 5 * time.Second
	}
	for k, v := range map[string]string{
		"application_name":                    "portbook-witness",
		"statement_timeout":                   fmt.Sprint(statementLimit.Milliseconds()),
		"idle_in_transaction_session_timeout": fmt.Sprint(statementLimit.Milliseconds()),
		"default_transaction_isolation":       "read committed", // what write is made for
	} {
		cfg.RuntimeParams[k] = v
	}
	open := func(conns int) *sql.DB {
		db := stdlib.OpenDB(*cfg, stdlib.OptionAfterConnect(checkServer))
		db.SetMaxOpenConns(conns)
		db.SetMaxIdleConns(conns)
		return db
	}
	s := &Store{path: fmt.Sprintf("postgres://%s:%d/%s", cfg.Host, cfg.Port, cfg.Database), postgres: true,
		read: open(8), write: open(4), advances: make(chan *advance), committer: make(chan struct{})}
	if err := s.read.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the witness database %s: %w", s.path, err), s.Close())
	}
	return s, nil
}

// checkServer refuses a connection to a server that takes no writes or would lose
// them, whether the server, the database or the role is set so.
func checkServer(ctx context.Context, c *pgx.Conn) error {
	var standby bool
	var unsafe string
	if err := c.QueryRow(ctx, "SELECT pg_is_in_recovery(), "+unsafeOf).Scan(&standby, &unsafe); err != nil {
		return err
	}
	if standby {
		return errors.New("the server is a standby: connect to the primary (target_session_attrs=primary finds it among several hosts)")
	}
	return refuseUnsafe(unsafe)
}

func postgresProvider(db *sql.DB) (*goose.Provider, error) {
	dir, err := fs.Sub(migrations, "migrations/postgres")
	if err != nil {
		return nil, err
	}
	one, err := lock.NewPostgresSessionLocker() // several instances may start at once
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectPostgres, db, dir, goose.WithSessionLocker(one), goose.WithDisableGlobalRegistry(true))
}

// mayWrite is an SQL condition on the row of generation: count $1, server $2 and
// instance $3 are those of a mark that may go on here.
const mayWrite = `n >= $1 AND ` + serverOf + ` = $2 AND ` + unsafeOf + ` = ''
	AND EXISTS (SELECT FROM instance me WHERE me.id = $3 AND NOT EXISTS
		(SELECT FROM instance o WHERE o.confirmed <> $2 OR o.id <> me.id AND o.seen < me.joined))`

// writeSQL advances heads and counts it, at once or not at all, on the one server
// and in the one state that this instance may write to. Its rows are the count
// and one origin that was advanced each; a count with no origin: all have moved;
// no row: the conditions do not hold. The count's row is locked first, so
// instances write one after the other, and a head that another one advanced
// meanwhile is compared as it is then.
const writeSQL = `WITH counted AS (
	UPDATE generation SET n = n + 1 WHERE ` + mayWrite + ` RETURNING n
), a AS (
	SELECT counted.n, u.* FROM counted, unnest($4::text[], $5::bigint[], $6::bytea[], $7::bigint[], $8::bytea[], $9::bigint[], $10::bytea[], $11::bigint[])
		u (origin, size, root, time, note, old_size, old_root, old_time)
), inserted AS (
	INSERT INTO head (origin, size, root, time, note) SELECT origin, size, root, time, note FROM a WHERE old_size IS NULL
	ON CONFLICT DO NOTHING RETURNING origin
), replaced AS (
	UPDATE head h SET size = a.size, root = a.root, time = a.time, note = a.note FROM a
	WHERE h.origin = a.origin AND h.size = a.old_size AND h.root = a.old_root AND h.time = a.old_time RETURNING h.origin
)
SELECT counted.n, won.origin FROM counted LEFT JOIN (SELECT origin FROM inserted UNION ALL SELECT origin FROM replaced) won ON true`

// writeShared is writeTogether on PostgreSQL: one statement, which is its own
// transaction.
func (s *Store) writeShared(batch []*advance) (results []error, err error) {
	if s.mark == nil {
		return nil, errors.New("a witness on PostgreSQL signs only with a mark")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*statementLimit)
	defer cancel()
	results, err = s.tryShared(ctx, batch)
	if errors.Is(err, errNotNow) {
		// Nearly always a server that has started since the last look.
		if err = s.look(ctx); err == nil {
			results, err = s.tryShared(ctx, batch)
		}
	}
	if errors.Is(err, errNotNow) {
		return nil, s.whyNot(ctx)
	}
	var refused *pgconn.PgError
	if len(batch) > 1 && errors.As(err, &refused) {
		// One of them has something that the database refuses: it alone is to fail.
		results = make([]error, len(batch))
		for i := range batch {
			one, err := s.tryShared(ctx, batch[i:i+1])
			if results[i] = err; err == nil {
				results[i] = one[0]
			}
		}
		return results, nil
	}
	return results, err
}

// errNotNow says that the conditions of writeSQL do not hold.
var errNotNow = errors.New("the database is not the one this instance may write to")

func (s *Store) tryShared(ctx context.Context, batch []*advance) ([]error, error) {
	results := make([]error, len(batch))
	var (
		origins                []string
		sizes, times           []int64
		roots, notes, oldRoots [][]byte
		oldSizes, oldTimes     []*int64
		at                     = map[string]int{} // the place in batch of the advance that is tried
	)
	for i, a := range batch {
		results[i] = errMoved // two of one log cannot both win: the second looks again
		if _, twice := at[a.origin]; twice || a.ctx.Err() != nil {
			continue
		}
		at[a.origin] = i
		origins, sizes, roots = append(origins, a.origin), append(sizes, int64(a.to.Size)), append(roots, a.to.Root[:])
		times, notes = append(times, a.to.Time.Unix()), append(notes, a.to.Note)
		var size, unix *int64
		var root []byte
		if a.from != nil {
			n, t := int64(a.from.Size), a.from.Time.Unix()
			size, unix, root = &n, &t, a.from.Root[:]
		}
		oldSizes, oldRoots, oldTimes = append(oldSizes, size), append(oldRoots, root), append(oldTimes, unix)
	}
	if len(origins) == 0 {
		return results, nil
	}
	if s.mark.fails.Load() { // not one more write that it does not know
		if err := s.look(ctx); err != nil {
			return nil, err
		}
	}
	n, server := s.mark.says()
	rows, err := s.write.QueryContext(ctx, writeSQL, int64(n), server, s.mark.instance(), origins, sizes, roots, times, notes, oldSizes, oldRoots, oldTimes)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	counted := false
	var count int64
	for rows.Next() {
		var origin sql.NullString
		if err := rows.Scan(&count, &origin); err != nil {
			return nil, err
		}
		counted = true
		if origin.Valid {
			results[at[origin.String]] = nil
		}
	}
	// A transaction has committed when its last message was read without error.
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	if !counted {
		return nil, errNotNow
	}
	return results, s.mark.raise(uint64(count), server)
}

// look compares the mark with the database: it refuses one that is older
// ([ErrOldState]), confirms a server that has started since, and raises the mark
// to what others have written.
func (s *Store) look(ctx context.Context) error {
	n, server := s.mark.says()
	id := s.mark.instance()
	var have, seen, joined sql.NullInt64
	var now string
	var confirmed sql.NullString
	if err := s.read.QueryRowContext(ctx, `SELECT g.n, `+serverOf+`, me.confirmed, me.seen, (SELECT max(joined) FROM instance)
		FROM generation g LEFT JOIN instance me ON me.id = $1`, id).Scan(&have, &now, &confirmed, &seen, &joined); err != nil {
		return fmt.Errorf("reading %s: %w", s.path, err)
	}
	const repair = "bring the newest database back; if it is lost, this witness has ended: begin a new one, with a new name"
	switch {
	case !confirmed.Valid:
		return fmt.Errorf("%w: %s does not know the instance of this mark (%s): it was restored from before this instance was made, or the instance was taken out "+
			"(portbook-witness instances); %s", ErrOldState, s.path, id, repair)
	case now < server:
		return fmt.Errorf("%w: the server of %s (timeline and start %s) comes before the one that this instance last confirmed (%s): an old primary, or a restored backup; %s "+
			"(if the later server never wrote and is gone for good, vouch for this one: portbook-witness mark, and instances --forget %s)",
			ErrOldState, s.path, now, server, repair, id)
	case have.Int64 < int64(n):
		return fmt.Errorf("%w: %s has been written %d times, and the mark remembers %d: it was restored from a backup, or a standby was promoted that had not received everything; %s",
			ErrOldState, s.path, have.Int64, n, repair)
	}
	if have.Int64 > int64(n) || now != server {
		if err := s.mark.raise(uint64(have.Int64), now); err != nil { // first: there is no way back to the server before
			return err
		}
	}
	if confirmed.String != now || seen.Int64 < joined.Int64 {
		if _, err := s.write.ExecContext(ctx, "UPDATE instance SET confirmed = $2, seen = $3 WHERE id = $1 AND "+serverOf+" = $2", id, now, have.Int64); err != nil {
			return fmt.Errorf("writing %s: %w", s.path, err)
		}
	}
	return nil
}

// ready returns nil if this instance could write now.
func (s *Store) ready(ctx context.Context) error {
	if err := s.look(ctx); err != nil {
		return err
	}
	n, server := s.mark.says()
	var may bool
	if err := s.read.QueryRowContext(ctx, "SELECT "+mayWrite+" FROM generation", int64(n), server, s.mark.instance()).Scan(&may); err != nil {
		return fmt.Errorf("reading %s: %w", s.path, err)
	}
	if !may {
		return s.whyNot(ctx)
	}
	return nil
}

// whyNot says why nothing can be written now.
func (s *Store) whyNot(ctx context.Context) error {
	var unsafe string
	if err := s.read.QueryRowContext(ctx, "SELECT "+unsafeOf).Scan(&unsafe); err != nil {
		return fmt.Errorf("reading %s: %w", s.path, err)
	}
	if unsafe != "" {
		return refuseUnsafe(unsafe)
	}
	list, err := s.Instances(ctx)
	if err != nil {
		return err
	}
	var late []string
	for _, i := range list {
		if !i.Confirmed {
			late = append(late, i.ID+" on "+i.Host)
		}
	}
	if late == nil {
		return fmt.Errorf("%w: an instance is new and the others have not seen it yet, or the server changes", ErrUnconfirmed)
	}
	return fmt.Errorf("%w, which has started: waiting for %s. Start it; if it is lost for good, and the database is surely the newest: portbook-witness instances --forget", ErrUnconfirmed, strings.Join(late, ", "))
}

// usePostgresMark is UseMark for one of several instances.
func (s *Store) usePostgresMark(ctx context.Context, path string, m *mark) error {
	if m.said.instance == "" {
		return errors.Join(fmt.Errorf("%w: %s is that of a witness with one instance: make one with portbook-witness mark", ErrNoMark, path), m.close())
	}
	s.mark = m
	if err := s.look(ctx); err != nil {
		s.mark = nil
		return errors.Join(fmt.Errorf("mark %s: %w", path, err), m.close())
	}
	if s.unfollow == nil {
		s.unfollow, s.followed = make(chan struct{}), make(chan struct{})
		go s.follow(s.unfollow)
	}
	return nil
}

// follow looks from time to time, until the store is closed.
func (s *Store) follow(stop <-chan struct{}) {
	defer close(s.followed)
	tick := time.NewTicker(lookPause)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), statementLimit)
		s.look(ctx) // what it finds, a request finds too, and tells
		cancel()
	}
}

// An Instance is one of the programs that serve a witness on PostgreSQL.
type Instance struct {
	ID, Host  string
	Confirmed bool // it has found its mark not ahead of the database server as it is
}

// Instances lists who serves this state; none but on PostgreSQL.
func (s *Store) Instances(ctx context.Context) ([]Instance, error) {
	if !s.postgres {
		return nil, nil
	}
	rows, err := s.read.QueryContext(ctx, "SELECT id, host, confirmed = "+serverOf+" FROM instance ORDER BY joined, id")
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	defer rows.Close()
	var out []Instance
	for rows.Next() {
		var i Instance
		if err := rows.Scan(&i.ID, &i.Host, &i.Confirmed); err != nil {
			return nil, fmt.Errorf("reading %s: %w", s.path, err)
		}
		out = append(out, i)
	}
	return out, rows.Err()
}

// ForgetInstance takes an instance out, whose mark then counts no more: its
// operator vouches that the database holds all that it ever signed.
func (s *Store) ForgetInstance(ctx context.Context, id string) error {
	if !s.postgres {
		return errors.New("this witness has one instance: only a witness on PostgreSQL has several")
	}
	res, err := s.write.ExecContext(ctx, "DELETE FROM instance WHERE id = $1", id)
	if err != nil {
		return fmt.Errorf("writing %s: %w", s.path, err)
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return errors.Join(fmt.Errorf("%s knows no instance %q", s.path, id), err)
	}
	return nil
}

// joinInstance enters a new instance. Those that are there must have confirmed the
// server, or the count that comes with the new one could hide what theirs miss.
func (s *Store) joinInstance(ctx context.Context) (id string, n uint64, server string, err error) {
	raw := make([]byte, 8)
	rand.Read(raw) // never fails
	id = hex.EncodeToString(raw)
	host, _ := os.Hostname() // a name for people; none is no reason to fail
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return "", 0, "", fmt.Errorf("writing %s: %w", s.path, err)
	}
	defer tx.Rollback()
	var joined int64
	var late int
	err = tx.QueryRowContext(ctx, "UPDATE generation SET n = n + 1 RETURNING n, "+serverOf).Scan(&joined, &server)
	if err == nil {
		err = tx.QueryRowContext(ctx, "SELECT count(*) FROM instance WHERE confirmed <> $1", server).Scan(&late)
	}
	if err == nil && late > 0 {
		return "", 0, "", s.whyNot(ctx)
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, "INSERT INTO instance (id, host, joined, seen, confirmed) VALUES ($1, $2, $3, $3, $4)", id, host, joined, server)
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		return "", 0, "", fmt.Errorf("writing %s: %w", s.path, err)
	}
	return id, uint64(joined), server, nil
}

// Shared reports whether several instances can serve this state.
func (s *Store) Shared() bool { return s.postgres }
