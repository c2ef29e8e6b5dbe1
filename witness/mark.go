package witness

// The high-water mark: how often this witness has written its heads, kept on
// another file system than the database. A database that counts less than the
// mark is an old copy, from a backup or a snapshot: with it the witness would
// sign again what it has already signed otherwise (FAULTS: a log and its
// witness restored together get a fork cosigned).
//
// Each instance of a witness on PostgreSQL has one; it also names the instance and
// the database server written to last (postgres.go).
//
// Order: database, mark, and only then whatever shows a signature, be it the answer,
// the read API or the one who asks again. A crash or a failure between the first two
// leaves the database ahead by one write, whose signatures nobody has seen: an old
// copy cannot sign otherwise what is known, and a healthy witness is not refused, as
// it would be if the mark came first. Ahead it must not stay: the next start, reader
// or write raises the mark before it goes on, and fails where that fails.
//
// Who can change the mark can stop the witness, or, together with an old copy
// of the database, make it sign backwards.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// markSlot is the size of each of the two records of a mark file. They are
// written in turn, so that a torn write leaves the other; no disk tears one
// sector of 512 bytes.
const markSlot = 512

const markMagic = "portbook-witness mark v1"

var (
	// ErrOldState means that the database is older than the mark.
	ErrOldState = errors.New("the witness database is an old copy")
	// ErrNoMark means that there is no mark where one must be.
	ErrNoMark = errors.New("no high-water mark")
	// ErrMarkFails means that the mark cannot be written. Until it can, nothing is
	// signed, and nothing shown that was signed above it.
	ErrMarkFails = errors.New("the high-water mark cannot be written")
)

// A mark is an open high-water mark file. Its owner is one store.
type mark struct {
	file *os.File
	id   string // of the witness, see markID

	reached atomic.Uint64 // said.n, for readers: they do not wait for a write
	fails   atomic.Bool   // the last write failed

	mu   sync.Mutex
	said record // guarded by mu
	slot int    // guarded by mu; where said stands
}

// A record is what a mark says. Without instance and server it is a single
// witness's.
type record struct {
	id       string // of the witness
	n        uint64 // how often its heads were written
	instance string
	server   string // timeline and start: a later server is a later string
}

// before reports whether o was written after r.
func (r record) before(o record) bool {
	return r.server < o.server || r.server == o.server && r.n < o.n
}

// markID names a witness by the key it was made with.
func (s *Store) markID() string {
	h := sha256.Sum256([]byte(s.keys[0].vkey))
	return hex.EncodeToString(h[:])
}

// Generation is how often heads have been written.
func (s *Store) Generation(ctx context.Context) (uint64, error) {
	var n int64
	if err := s.read.QueryRowContext(ctx, "SELECT n FROM generation").Scan(&n); err != nil {
		return 0, fmt.Errorf("reading %s: %w", s.path, err)
	}
	return uint64(n), nil
}

// CreateMark makes a mark at path that says what the database says now: with a
// new witness or instance, or where its operator knows that the database is the
// newest. It replaces no file.
func (s *Store) CreateMark(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("a file is at %s already: a mark is never replaced; choose another path", path)
	}
	if err != nil {
		return fmt.Errorf("making the mark: %w", err)
	}
	first := record{id: s.markID()}
	if s.postgres {
		first.instance, first.n, first.server, err = s.joinInstance(ctx)
	} else {
		first.n, err = s.Generation(ctx)
	}
	if err == nil {
		m := &mark{file: f, id: first.id, slot: 1}
		_, err = f.Write(make([]byte, 2*markSlot))
		err = errors.Join(err, m.write(first))
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		if first.instance != "" { // nobody would ever confirm it
			err = errors.Join(err, s.ForgetInstance(context.WithoutCancel(ctx), first.instance))
		}
		return errors.Join(fmt.Errorf("making the mark: %w", err), os.Remove(path))
	}
	return nil
}

// UseMark takes the mark at path for this store, and raises it to what the database
// counts: no signature leaves before the mark is raised. It refuses a database that is older than the mark
// ([ErrOldState]), and a mark that is missing, damaged, in use, or another
// witness's ([ErrNoMark]).
func (s *Store) UseMark(ctx context.Context, path string) error {
	m, err := openMark(path, s.markID())
	if err != nil {
		return err
	}
	// What it said may be in the system's cache alone, after a failed fsync.
	if err := m.write(m.said); err != nil {
		return errors.Join(err, m.close())
	}
	if s.postgres {
		return s.usePostgresMark(ctx, path, m)
	}
	n, err := s.Generation(ctx)
	if err == nil && n < m.said.n {
		err = fmt.Errorf("%w: it has been written %d times, and the mark %s remembers %d: put the newest database back; "+
			"if it is lost, this witness has ended: begin a new one, with a new name, in a new directory", ErrOldState, n, path, m.said.n)
	}
	if err == nil {
		err = m.raise(n, "")
	}
	if err != nil {
		return errors.Join(err, m.close())
	}
	s.mark = m
	return nil
}

// covered returns nil once the mark says at least n, the count that was read
// together with what is to be shown. It says so already, but for what was written
// a moment ago, by another instance, or before the mark failed.
func (s *Store) covered(ctx context.Context, n uint64) error {
	if s.mark == nil || n <= s.mark.reached.Load() {
		return nil
	}
	if !s.postgres {
		return s.mark.raise(n, "")
	}
	if err := s.look(ctx); err != nil {
		return err
	}
	if have := s.mark.reached.Load(); have < n {
		return fmt.Errorf("%w: %s counted %d writes a moment ago, and now %d", ErrOldState, s.path, n, have)
	}
	return nil
}

// allCovered is covered for all that has been written.
func (s *Store) allCovered(ctx context.Context) error {
	n, err := s.Generation(ctx)
	if err != nil {
		return err
	}
	return s.covered(ctx, n)
}

// mayCount returns nil if SQLite may count n writes: the mark says n-1 by now, so
// that the database is never more than one ahead.
func (s *Store) mayCount(n uint64) error {
	if said, _ := s.mark.says(); s.mark != nil && n <= said {
		return fmt.Errorf("%w: it counts %d writes, and the mark %d: it was put back while the witness ran", ErrOldState, n-1, said)
	}
	return s.mark.raise(n-1, "")
}

// MarkIsBeside reports whether a mark is on the database's own file system,
// where a restored snapshot brings both back.
// What PostgreSQL keeps its files on cannot be asked.
func (s *Store) MarkIsBeside(path string) (bool, error) {
	if s.postgres {
		return false, nil
	}
	var a, b syscall.Stat_t
	if err := errors.Join(syscall.Stat(s.path, &a), syscall.Stat(path, &b)); err != nil {
		return false, fmt.Errorf("comparing file systems: %w", err)
	}
	return a.Dev == b.Dev, nil
}

func openMark(path, id string) (*mark, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w at %s (%w): mount its file system, or name other witnesses of the same logs (serve --peer); only if it is lost and the database is surely the newest, make another with portbook-witness mark", ErrNoMark, path, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the mark: %w", err)
	}
	m := &mark{file: f, id: id}
	if err := m.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s %w", ErrNoMark, path, err), f.Close())
	}
	return m, nil
}

func (m *mark) load() error {
	// The lock ends with the process, however it ends.
	if err := syscall.Flock(int(m.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.New("is in use: another program serves this witness")
	}
	raw := make([]byte, 2*markSlot)
	if n, err := m.file.ReadAt(raw, 0); n < len(raw) {
		return fmt.Errorf("is too short to be a mark (%w)", err)
	}
	found := false
	for i := range 2 {
		r, ok := parseMark(raw[i*markSlot : (i+1)*markSlot])
		switch {
		case !ok: // torn, or never written: the other one counts
		case r.id != m.id:
			return errors.New("is the mark of another witness")
		case !found || m.said.before(r):
			found, m.said, m.slot = true, r, i
		}
	}
	if !found {
		return errors.New("is damaged, or no mark")
	}
	m.reached.Store(m.said.n)
	return nil
}

func (m *mark) close() error {
	if m == nil {
		return nil
	}
	return m.file.Close()
}

// says returns what the mark remembers; 0 without a mark.
func (m *mark) says() (n uint64, server string) {
	if m == nil {
		return 0, ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.said.n, m.said.server
}

// instance is the name under which the database knows the mark.
func (m *mark) instance() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.said.instance
}

// raise makes the mark say n, and server, durably, unless it says more already.
// Without a mark it does nothing.
func (m *mark) raise(n uint64, server string) error {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.said
	next.n, next.server = n, server
	switch {
	case server < m.said.server || server != m.said.server && n < m.said.n:
		return fmt.Errorf("%w: the mark says %d writes on %q and is to say %d on %q", ErrOldState, m.said.n, m.said.server, n, server)
	case !m.said.before(next):
		return nil
	}
	return m.write(next)
}

// write puts r where the older of the two records stands.
func (m *mark) write(r record) error {
	slot := 1 - m.slot
	if err := m.put(r, slot); err != nil {
		m.fails.Store(true)
		return fmt.Errorf("%w (%w): nothing is signed or shown until it can be; see that the disk of %s is there, writable and not full, and restart if it was mounted anew",
			ErrMarkFails, err, m.file.Name())
	}
	m.said, m.slot = r, slot
	m.reached.Store(r.n)
	m.fails.Store(false)
	return nil
}

func (m *mark) put(r record, slot int) error {
	if _, err := m.file.WriteAt(markRecord(r), int64(slot)*markSlot); err != nil {
		return err
	}
	if err := m.file.Sync(); err != nil {
		return err
	}
	return nil
}

// markRecord is magic, id, count, instance and server if there are any, and
// checksum, a line each, and zeros.
func markRecord(r record) []byte {
	text := fmt.Appendf(nil, "%s\n%s\n%d\n", markMagic, r.id, r.n)
	if r.instance != "" {
		text = fmt.Appendf(text, "%s\n%s\n", r.instance, r.server)
	}
	sum := sha256.Sum256(text)
	return append(fmt.Appendf(text, "%x\n", sum), make([]byte, markSlot)...)[:markSlot]
}

func parseMark(raw []byte) (r record, ok bool) {
	lines := strings.Split(string(raw), "\n")
	if len(lines) != 5 && len(lines) != 7 {
		return r, false
	}
	n, err := strconv.ParseUint(lines[2], 10, 63)
	if err != nil {
		return r, false
	}
	r = record{id: lines[1], n: n}
	if len(lines) == 7 {
		r.instance, r.server = lines[3], lines[4]
	}
	return r, bytes.Equal(raw, markRecord(r))
}
