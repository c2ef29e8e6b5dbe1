package witness

// What a witness must never forget: which logs and keys it was told to trust, the
// latest checkpoint it cosigned for each, and the forks it saw. It is in SQLite,
// or, with the same statements, in PostgreSQL (postgres.go). A write is on the disk
// (WAL, synchronous=FULL) before it is reported done.

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite"
)

//go:embed migrations/*.sql migrations/postgres/*.sql
var migrations embed.FS

// applicationID marks a database file as ours (PRAGMA application_id): "PBwi".
const applicationID = 0x50427769

// maxForks and maxForkBytes bound the evidence kept for one log; the first is
// kept whatever its size. One fork is a verdict; the rest is a log that fills
// our disk.
const (
	maxForks     = 100
	maxForkBytes = 4 << 20
)

var (
	// ErrNoState means that there is no database where one must be. It is never
	// made on the way: a witness without its memory would sign backwards.
	ErrNoState = errors.New("no witness database")
	// ErrOtherKey means that database and key do not belong together.
	ErrOtherKey = errors.New("the witness database was made for another key")
	// errMoved means that the head was not what the caller thought.
	errMoved = errors.New("the head has moved")
)

// A Store is the memory of one witness. It is safe for concurrent use, and for
// several processes: on one machine in SQLite, whose file must be on a local disk,
// on any in PostgreSQL.
type Store struct {
	path     string // for people; a database's without its password
	postgres bool
	read     *sql.DB
	write    *sql.DB // in SQLite one connection: writers queue here
	keys     []boundKey
	lookup   *sql.Stmt
	insert   *sql.Stmt
	replace  *sql.Stmt
	count    *sql.Stmt
	serve    *sql.Stmt
	retired  atomic.Pointer[Retirement]
	parsed   sync.Map      // vkey (string) -> *c2sp.Key, of the keys in the database
	mark     *mark         // nil: none is kept
	unfollow chan struct{} // nil, or closed to end follow
	followed chan struct{} // closed when follow has ended
	// observe, if set, is told of each commit.
	observe atomic.Pointer[func(heads int, took time.Duration)]

	closing   sync.RWMutex // held for reading while an advance is handed over
	started   bool         // commit runs
	closed    bool         // guarded by closing
	advances  chan *advance
	committer chan struct{} // closed when commit has ended
}

// An advance is a head that waits to be written.
type advance struct {
	ctx    context.Context
	origin string
	from   *Head // nil: none yet
	to     Head
	done   chan error // capacity 1
}

// maxTogether bounds the advances that share one transaction, and its fsync.
const maxTogether = 256

// A boundKey is a witness key that the state belongs to.
type boundKey struct {
	vkey    string
	key     *c2sp.Key
	created time.Time
}

// A Head is the latest checkpoint cosigned for a log.
type Head struct {
	Size uint64
	Root [32]byte
	Time time.Time // of the cosignature, in whole seconds
	Note []byte    // text, verified log signatures, our cosignatures
}

// A Log is a log that the witness was told to serve.
type Log struct {
	Origin string
	Keys   []*c2sp.Key // signatures by these count, in the order they were added
	Head   *Head       // nil: nothing cosigned yet

	written uint64 // the count of writes when this was read
}

// A Fork is two notes that the log signed and that contradict each other: of one
// size, with different roots, or of two sizes, with hashes that show it. Each
// carries the log's signatures, so they convince anyone who has the log's key:
// see [Fork.Evidence].
type Fork struct {
	ID       int64 // given when it is kept
	Origin   string
	Size     uint64     // of Theirs
	OursSize uint64     // not above Size
	Ours     []byte     // what this witness cosigned
	Theirs   []byte     // what it was asked to cosign as well
	Hashes   [][32]byte // nil if the sizes are equal
	Seen     time.Time
}

// CreateStore makes the database of a new witness that has these keys, all of
// one name, for ever. It refuses to touch an existing file.
func CreateStore(ctx context.Context, path string, keys []*c2sp.Key, now time.Time) (_ *Store, err error) {
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("making the witness database: %w", err)
	}
	f.Close()
	defer func() {
		if err != nil {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				os.Remove(path + suffix)
			}
		}
	}()
	s, err := connect(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if _, err := s.write.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
		return nil, fmt.Errorf("making the witness database: %w", err)
	}
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	if err := s.bind(ctx, keys, now); err != nil {
		return nil, err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	return s, s.load(ctx)
}

func checkKeys(keys []*c2sp.Key) error {
	if len(keys) == 0 {
		return errors.New("a witness needs a key")
	}
	for _, key := range keys {
		if !key.IsCosigner() || key.Name() != keys[0].Name() {
			return fmt.Errorf("%s is no cosigner's key of %s", key, keys[0].Name())
		}
	}
	return nil
}

// bind makes the database that of these keys. It comes last, in a transaction of
// its own: a database without these rows is one whose making was interrupted, and
// is refused.
func (s *Store) bind(ctx context.Context, keys []*c2sp.Key, now time.Time) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("making the witness database: %w", err)
	}
	defer tx.Rollback()
	for _, key := range keys {
		if _, err := tx.ExecContext(ctx, "INSERT INTO witness_key (vkey, name, raw, created) VALUES ($1, $2, $3, $4)",
			key.String(), key.Name(), key.Raw(), max(now.Unix(), 1)); err != nil {
			return fmt.Errorf("making the witness database: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("making the witness database: %w", err)
	}
	return nil
}

// OpenStore opens the database of an existing witness, and brings its schema up
// to date. What is missing, foreign, or half made is refused ([ErrNoState]),
// never made anew.
func OpenStore(path string) (_ *Store, err error) {
	const repair = "put the original database back if it is only not mounted; if it is lost, this witness has ended: " +
		"begin a new one, with a new name, in a new directory (a copy from a backup would sign backwards)"
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w at %s: %s", ErrNoState, path, repair)
	case err != nil:
		return nil, fmt.Errorf("opening the witness database: %w", err)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s is not a plain file: links and devices are refused", ErrNoState, path)
	case st.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s can be read or written by others (mode %04o): chmod 600 %s", path, st.Mode().Perm(), path)
	}
	s, err := connect(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	ctx := context.Background()
	var id, bound int
	if err := s.read.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return nil, fmt.Errorf("%w: %s cannot be read (%v): %s", ErrNoState, path, err, repair)
	}
	if id != applicationID {
		return nil, fmt.Errorf("%w: %s is not the database of a witness: %s", ErrNoState, path, repair)
	}
	err = s.read.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE name = 'witness_key'`).Scan(&bound)
	if err == nil && bound > 0 {
		err = s.read.QueryRowContext(ctx, "SELECT count(*) FROM witness_key").Scan(&bound)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %s cannot be read (%v): %s", ErrNoState, path, err, repair)
	case bound == 0:
		return nil, fmt.Errorf("%w: the making of %s was interrupted: remove key and database, which never signed, and run init again", ErrNoState, path)
	}
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	return s, s.load(ctx)
}

// connect opens the two pools. mode=rw: SQLite never creates the file.
func connect(path string) (*Store, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	open := func(more url.Values, conns int) (*sql.DB, error) {
		q := url.Values{"mode": {"rw"}, "_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)",
			"foreign_keys(1)", "trusted_schema(0)", "cell_size_check(1)", "cache_size(-512)"}} // KiB a connection; the system caches the file
		for k, v := range more {
			q[k] = append(q[k], v...)
		}
		db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String())
		if err != nil {
			return nil, fmt.Errorf("opening the witness database: %w", err)
		}
		db.SetMaxOpenConns(conns)
		db.SetMaxIdleConns(conns)
		return db, nil
	}
	s := &Store{path: path, advances: make(chan *advance), committer: make(chan struct{})}
	if s.write, err = open(url.Values{"_txlock": {"immediate"}}, 1); err != nil {
		return nil, err
	}
	if s.read, err = open(url.Values{"_pragma": {"query_only(1)"}}, 4); err != nil {
		s.write.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) migrate(ctx context.Context) error {
	provider := sqliteProvider
	if s.postgres {
		provider = postgresProvider
	}
	p, err := provider(s.write)
	if err != nil {
		return fmt.Errorf("migrating %s: %w", s.path, err)
	}
	have, want, err := p.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("migrating %s: %w", s.path, err)
	}
	if have > want {
		return fmt.Errorf("%s was written by a newer version of this program (schema %d; this one knows %d): upgrade it", s.path, have, want)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrating %s: %w", s.path, err)
	}
	return nil
}

func sqliteProvider(db *sql.DB) (*goose.Provider, error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectSQLite3, db, dir, goose.WithDisableGlobalRegistry(true))
}

// load reads whose state this is and prepares what every request needs.
func (s *Store) load(ctx context.Context) error {
	rows, err := s.read.QueryContext(ctx, "SELECT vkey, created FROM witness_key ORDER BY rowid")
	if err != nil {
		return fmt.Errorf("reading %s: %w", s.path, err)
	}
	defer rows.Close()
	for rows.Next() {
		var k boundKey
		var created int64
		if err := rows.Scan(&k.vkey, &created); err != nil {
			return fmt.Errorf("reading %s: %w", s.path, err)
		}
		if k.key, err = c2sp.ParseVKey(k.vkey); err != nil {
			return fmt.Errorf("reading %s: %w", s.path, err)
		}
		k.created = time.Unix(created, 0)
		s.keys = append(s.keys, k)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading %s: %w", s.path, err)
	}
	for _, p := range []struct {
		stmt **sql.Stmt
		db   *sql.DB
		text string
	}{
		{&s.lookup, s.read, `SELECT k.vkey, h.size, h.root, h.time, h.note, (SELECT n FROM generation) FROM log_key k
			LEFT JOIN head h ON h.origin = k.origin WHERE k.origin = $1 ORDER BY k.rowid`},
		{&s.insert, s.write, `INSERT INTO head (origin, size, root, time, note) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`},
		{&s.replace, s.write, `UPDATE head SET size = $1, root = $2, time = $3, note = $4
			WHERE origin = $5 AND size = $6 AND root = $7 AND time = $8`},
		{&s.count, s.write, `UPDATE generation SET n = n + 1 RETURNING n`},
		{&s.serve, s.read, `SELECT h.note, (SELECT n FROM generation) FROM log l JOIN head h ON h.origin = l.origin WHERE l.origin_hash = $1`},
	} {
		if *p.stmt, err = p.db.PrepareContext(ctx, p.text); err != nil {
			return fmt.Errorf("reading %s: %w", s.path, err)
		}
	}
	s.started = true
	go s.commit()
	return nil
}

// Close closes the database. It waits for what is being written.
func (s *Store) Close() error {
	s.closing.Lock()
	defer s.closing.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.unfollow != nil {
		close(s.unfollow)
		<-s.followed
	}
	if s.started {
		close(s.advances)
		<-s.committer
	}
	return errors.Join(s.read.Close(), s.write.Close(), s.mark.close())
}

// Name is the name of the witness that this state belongs to.
func (s *Store) Name() string { return s.keys[0].key.Name() }

// VKeys returns the witness keys that this state belongs to.
func (s *Store) VKeys() []string {
	var out []string
	for _, k := range s.keys {
		out = append(out, k.vkey)
	}
	return out
}

// bound returns when this state began for key, or [ErrOtherKey].
func (s *Store) bound(key *c2sp.Key) (time.Time, error) {
	for _, k := range s.keys {
		if k.vkey == key.String() {
			return k.created, nil
		}
	}
	return time.Time{}, fmt.Errorf("%w: %s belongs to %s, and the key is %s: put the key file back that was made with this database",
		ErrOtherKey, s.path, s.keys[0].vkey, key)
}

// belongsTo refuses keys that are not exactly those of this state
// ([ErrOtherKey]).
func (s *Store) belongsTo(keys []*c2sp.Key) error {
	for _, k := range keys {
		if _, err := s.bound(k); err != nil {
			return err
		}
	}
	if len(keys) < len(s.keys) {
		return fmt.Errorf("%w: %s belongs to %d keys, and %d are there: put the missing key file back", ErrOtherKey, s.path, len(s.keys), len(keys))
	}
	return nil
}

// AddLog makes keys trusted for the log with this origin. It only ever adds:
// a key that is there stays, and added counts the new ones. Keys are a log's
// (0x01, or 0x06 for a log that signs with ML-DSA-44); one raw key serves one log.
func (s *Store) AddLog(ctx context.Context, origin string, keys []*c2sp.Key) (added int, err error) {
	if c, err := c2sp.ParseCheckpoint(c2sp.Checkpoint{Origin: origin}.Text()); err != nil || c.Origin != origin {
		return 0, fmt.Errorf("%.100q cannot be the origin of a log: it must be one non-empty line", origin)
	}
	if len(keys) == 0 {
		return 0, fmt.Errorf("log %s: no key given", origin)
	}
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("adding log %s: %w", origin, err)
	}
	defer tx.Rollback()
	now := time.Now().Unix() // for people who read the table; nothing is judged by it
	if _, err := tx.ExecContext(ctx, "INSERT INTO log (origin, origin_hash, added) VALUES ($1, $2, $3) ON CONFLICT (origin) DO NOTHING",
		origin, c2sp.OriginHash(origin), now); err != nil {
		return 0, fmt.Errorf("adding log %s: %w", origin, err)
	}
	for _, k := range keys {
		if k.Alg() != c2sp.AlgEd25519 && k.Alg() != c2sp.AlgMLDSA44 {
			return 0, fmt.Errorf("key %s is of type %s, which no log signs with", k, k.Alg())
		}
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM witness_key WHERE raw = $1", k.Raw()).Scan(&n); err != nil {
			return 0, fmt.Errorf("adding log %s: %w", origin, err)
		}
		if n > 0 {
			return 0, fmt.Errorf("key %s is this witness's own key: nobody witnesses himself", k)
		}
		var vkey, other string
		err := tx.QueryRowContext(ctx, "SELECT vkey, origin FROM log_key WHERE vkey = $1 OR raw = $2", k.String(), k.Raw()).Scan(&vkey, &other)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			if _, err := tx.ExecContext(ctx, "INSERT INTO log_key (vkey, origin, raw, added) VALUES ($1, $2, $3, $4)",
				k.String(), origin, k.Raw(), now); err != nil {
				return 0, fmt.Errorf("adding log %s: %w", origin, err)
			}
			added++
		case err != nil:
			return 0, fmt.Errorf("adding log %s: %w", origin, err)
		case vkey != k.String() || other != origin:
			return 0, fmt.Errorf("key %s already serves log %s as %s: one key, one log", k, other, vkey)
		}
	}
	if err := tx.Commit(); err != nil {
		return 0, fmt.Errorf("adding log %s: %w", origin, err)
	}
	return added, nil
}

// Log returns what is known about the log with this origin, or an
// [*UnknownLogError]. Its head may be shown: the mark knows it.
func (s *Store) Log(ctx context.Context, origin string) (*Log, error) {
	l, err := s.log(ctx, origin)
	if err != nil {
		return nil, err
	}
	if err := s.covered(ctx, l.written); err != nil {
		return nil, err
	}
	return l, nil
}

// log is Log without the wait for the mark: its head is not to be shown, unless
// covered says so.
func (s *Store) log(ctx context.Context, origin string) (*Log, error) {
	rows, err := s.lookup.QueryContext(ctx, origin)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	defer rows.Close()
	l := &Log{Origin: origin}
	for rows.Next() {
		var vkey string
		var size, at sql.NullInt64
		var root, note []byte
		if err := rows.Scan(&vkey, &size, &root, &at, &note, &l.written); err != nil {
			return nil, fmt.Errorf("reading %s: %w", s.path, err)
		}
		k, err := s.key(vkey)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", s.path, err)
		}
		l.Keys = append(l.Keys, k)
		if size.Valid && l.Head == nil {
			if len(root) != 32 {
				return nil, fmt.Errorf("reading %s: the root of log %s has %d bytes", s.path, origin, len(root))
			}
			l.Head = &Head{Size: uint64(size.Int64), Root: [32]byte(root), Time: time.Unix(at.Int64, 0), Note: note}
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	if len(l.Keys) == 0 {
		return nil, &UnknownLogError{origin}
	}
	return l, nil
}

// key parses a vkey of the database, once: keys are never changed or taken away.
func (s *Store) key(vkey string) (*c2sp.Key, error) {
	if k, ok := s.parsed.Load(vkey); ok {
		return k.(*c2sp.Key), nil
	}
	k, err := c2sp.ParseVKey(vkey)
	if err == nil {
		s.parsed.Store(vkey, k)
	}
	return k, err
}

// CountLogs is how many logs there are.
func (s *Store) CountLogs(ctx context.Context) (n int, err error) {
	if err := s.read.QueryRowContext(ctx, "SELECT count(*) FROM log").Scan(&n); err != nil {
		return 0, fmt.Errorf("reading %s: %w", s.path, err)
	}
	return n, nil
}

// Logs returns all logs, by origin.
func (s *Store) Logs(ctx context.Context) ([]*Log, error) {
	rows, err := s.read.QueryContext(ctx, "SELECT origin FROM log ORDER BY origin")
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	defer rows.Close()
	var origins []string
	for rows.Next() {
		var o string
		if err := rows.Scan(&o); err != nil {
			return nil, fmt.Errorf("reading %s: %w", s.path, err)
		}
		origins = append(origins, o)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	var logs []*Log
	for _, o := range origins {
		l, err := s.Log(ctx, o)
		if err != nil {
			return nil, err
		}
		logs = append(logs, l)
	}
	return logs, nil
}

// advance replaces the head of a log, if it still is from (nil: none yet), and
// returns when the new one is durable, and the mark with it. errMoved: it was
// not. After any other error nobody knows which head is on the disk, and
// nothing signed may leave.
func (s *Store) advance(ctx context.Context, origin string, from *Head, to Head) error {
	a := &advance{ctx: ctx, origin: origin, from: from, to: to, done: make(chan error, 1)}
	if err := s.hand(a); err != nil {
		return fmt.Errorf("writing %s: %w", s.path, err)
	}
	select {
	case err := <-a.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("writing %s: %w", s.path, ctx.Err())
	}
}

func (s *Store) hand(a *advance) error {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return sql.ErrConnDone
	}
	select {
	case s.advances <- a:
		return nil
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}

// commit writes what waits, together: while one transaction is being made
// durable the next one gathers, so many logs share one fsync and a log that is
// alone waits for nobody.
func (s *Store) commit() {
	defer close(s.committer)
	for first := range s.advances {
		batch := []*advance{first}
	gather:
		for len(batch) < maxTogether {
			select {
			case a, ok := <-s.advances:
				if !ok {
					break gather
				}
				batch = append(batch, a)
			default:
				break gather
			}
		}
		start := time.Now()
		write := s.writeTogether
		if s.postgres {
			write = s.writeShared
		}
		results, err := write(batch)
		if observe := s.observe.Load(); observe != nil {
			(*observe)(len(batch), time.Since(start))
		}
		for i, a := range batch {
			if err != nil {
				a.done <- fmt.Errorf("writing %s: %w", s.path, err)
			} else {
				a.done <- results[i]
			}
		}
	}
}

// writeTogether makes a batch durable in one transaction. results are each
// one's own: nil, errMoved, or what the database had against it. With err
// nobody knows what of the batch is on the disk.
func (s *Store) writeTogether(batch []*advance) (results []error, err error) {
	tx, err := s.write.Begin()
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	results = make([]error, len(batch))
	changed := false
	for i, a := range batch {
		if results[i] = a.ctx.Err(); results[i] == nil { // who asked may have gone while it waited
			results[i] = s.swap(tx, a)
		}
		changed = changed || results[i] == nil
	}
	if !changed {
		return results, nil
	}
	var generation int64
	if err := tx.Stmt(s.count).QueryRow().Scan(&generation); err != nil {
		return nil, err
	}
	if err := s.mayCount(uint64(generation)); err != nil {
		return nil, err
	}
	if err := tx.Commit(); err != nil {
		return nil, err
	}
	return results, s.mark.raise(uint64(generation), "")
}

// swap is the compare-and-swap of one head. A statement that the database
// refuses undoes itself alone.
func (s *Store) swap(tx *sql.Tx, a *advance) error {
	var res sql.Result
	var err error
	if a.from == nil {
		res, err = tx.Stmt(s.insert).Exec(a.origin, int64(a.to.Size), a.to.Root[:], a.to.Time.Unix(), a.to.Note)
	} else {
		res, err = tx.Stmt(s.replace).Exec(int64(a.to.Size), a.to.Root[:], a.to.Time.Unix(), a.to.Note,
			a.origin, int64(a.from.Size), a.from.Root[:], a.from.Time.Unix())
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", s.path, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return fmt.Errorf("writing %s: %w", s.path, err)
	}
	if n != 1 {
		return errMoved
	}
	return nil
}

// checkpoint returns the note the read API serves, nil if there is none.
func (s *Store) checkpoint(ctx context.Context, originHash string) ([]byte, error) {
	if len(originHash) != 64 {
		return nil, nil // and no text that a database may take offence at
	}
	var note []byte
	var written uint64
	err := s.serve.QueryRowContext(ctx, originHash).Scan(&note, &written)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", s.path, err)
	}
	if err := s.covered(ctx, written); err != nil {
		return nil, err
	}
	return note, nil
}

// Ping reports whether the database answers, and is the one that this program may
// write to, and whether the mark keeps up with it ([ErrMarkFails]).
func (s *Store) Ping(ctx context.Context) error {
	if s.postgres && s.mark != nil {
		return s.ready(ctx)
	}
	return s.allCovered(ctx)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
