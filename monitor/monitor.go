// The monitor itself: its configuration, its beginning and its loop. See the
// pipeline in doc.go.

package monitor

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/monitor/alert"
)

// Config configures [New].
type Config struct {
	Store         *Store
	Source        Source
	Policy        *c2sp.Policy
	Origin        string         // which log of the policy; may be empty if it names one
	Subscriptions *Subscriptions // nil: none

	// Channels deliver, by receiver kind. Their settings are theirs.
	Channels map[string]alert.Channel

	Poll        time.Duration // pause between two looks at the checkpoint; default 2 s
	StaleAfter  time.Duration // a log without news for longer is an outage; default 15 min
	GroupWindow time.Duration // alerts of one release within it are one notice; 0: each alone
	Confirm     time.Duration // pause before a doubtful sign of tampering is read again; default 5 s
	EvidenceDir string        // default: evidence/ beside the database
	PageURL     string        // where the monitor's own web page is, for links in alerts

	// Backoff of deliveries; zero values are alert.OutboxConfig's.
	RetryBase, RetryCap, GiveUp time.Duration

	// Open reads the log at an address that a log which has ended gives as its
	// successor's. Default: with plain HTTP only if Source is read like that too.
	Open func(url string) (Source, error)

	Scan   ScanOptions
	Now    func() time.Time // default time.Now
	Logger *slog.Logger
}

// Monitor watches one log.
type Monitor struct {
	cfg    Config
	now    atomic.Pointer[watched] // replaced by the goroutine of Run
	log    *slog.Logger
	outbox *alert.Outbox

	// subsMu is held while subscriptions change and while alerts are owed, so
	// that nothing is owed to a receiver who has just been removed.
	subsMu   sync.Mutex
	subs     atomic.Pointer[Subscriptions]
	fetched  atomic.Uint64
	lastRead atomic.Int64 // unix milliseconds of the last time all was read
	trouble  atomic.Pointer[string]

	// Owned by the goroutine of Run.
	projects map[Watch]int64
	state    *logState
	started  time.Time
	misled   bool     // the successor was refused when it was last looked at
	examined struct { // the smaller tree last compared with our own leaves
		root [32]byte
		err  error
	}
}

// clockSlack is how far witnesses' clocks may be ahead before it is a trouble.
const clockSlack = 5 * time.Minute

// maxProofAge is how long an alert waits for a proof that the log does not
// yield. Then it is sent without one: a log must not silence an alert.
const maxProofAge = time.Minute

// ErrNotBorn is returned by New where the database does not know the log yet.
var ErrNotBorn = errors.New("this database has not watched that log before; `portbook-monitor init` begins")

// OriginOf returns the log a monitor under p watches: origin if given, else the
// only one in the policy.
func OriginOf(p *c2sp.Policy, origin string) (string, error) {
	found := ""
	for _, l := range p.Logs {
		name := l.Key.Name()
		switch {
		case origin == name:
			return origin, nil
		case p.Retired(name):
			continue // it has no news any more
		case origin == "" && found != "" && found != name:
			return "", fmt.Errorf("the policy names several logs (%s, %s): say which one to watch", found, name)
		}
		found = name
	}
	if origin != "" || found == "" {
		return "", fmt.Errorf("the policy names no log %q", origin)
	}
	return found, nil
}

// Begin makes the database at path, if there is none, and the log's first row
// in it. Entries below alertFrom are indexed and not alerted. It refuses, with
// an error that is fs.ErrExist, a database that watches the log already: to
// begin again would be to forget what it saw.
func Begin(ctx context.Context, path, origin string, alertFrom uint64) error {
	if err := CreateStore(ctx, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	s, err := OpenStore(ctx, path, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	l, err := s.loadLog(ctx, origin)
	if err != nil {
		return err
	}
	if l != nil {
		return fmt.Errorf("%s: this database watches %s already (%w); to begin again would forget what the monitor saw. Move it away first if that is what you want", path, origin, fs.ErrExist)
	}
	return s.addLog(ctx, origin, alertFrom)
}

// Head reads and verifies a log's newest checkpoint under the policy, for who
// begins to watch it. Nothing is remembered.
func Head(ctx context.Context, src interface {
	Checkpoint(context.Context) ([]byte, error)
}, p *c2sp.Policy, origin string) (*c2sp.Verified, []byte, error) {
	note, err := src.Checkpoint(ctx)
	if err != nil {
		return nil, nil, err
	}
	v, err := p.Verify(note)
	if err != nil {
		return nil, nil, err
	}
	if origin != "" && v.Origin != origin {
		return nil, nil, fmt.Errorf("the address serves the log %q, not %q", v.Origin, origin)
	}
	return v, note, nil
}

// New returns a monitor that goes on where its database stands.
func New(ctx context.Context, c Config) (*Monitor, error) {
	if c.Store == nil || c.Source == nil || c.Policy == nil {
		return nil, errors.New("monitor: Store, Source and Policy are needed")
	}
	origin, err := OriginOf(c.Policy, c.Origin)
	if err != nil {
		return nil, fmt.Errorf("monitor: %w", err)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Poll <= 0 {
		c.Poll = 2 * time.Second
	}
	if c.StaleAfter <= 0 {
		c.StaleAfter = 15 * time.Minute
	}
	if c.Confirm <= 0 {
		c.Confirm = 5 * time.Second
	}
	if c.EvidenceDir == "" {
		c.EvidenceDir = filepath.Join(filepath.Dir(c.Store.path), "evidence")
	}
	if c.Subscriptions == nil {
		if c.Subscriptions, err = ParseSubscriptions(nil, ""); err != nil {
			return nil, err
		}
	}
	m := &Monitor{cfg: c, log: c.Logger, projects: map[Watch]int64{}, started: c.Now()}
	m.now.Store(&watched{origin: origin, policy: c.Policy, source: c.Source})
	if m.state, err = c.Store.loadLog(ctx, origin); err != nil {
		return nil, err
	}
	if m.state == nil {
		return nil, fmt.Errorf("%s: log %q: %w", c.Store.path, origin, ErrNotBorn)
	}
	if err := m.resume(ctx); err != nil {
		return nil, err
	}
	if err := m.SetSubscriptions(ctx, c.Subscriptions); err != nil {
		return nil, err
	}
	m.fetched.Store(m.state.Verified.Size)
	m.outbox = alert.NewOutbox(alert.OutboxConfig{
		Queue: c.Store, Channels: c.Channels, Now: c.Now, Logger: c.Logger,
		Base: c.RetryBase, Cap: c.RetryCap, GiveUp: c.GiveUp,
	})
	return m, nil
}

// Standing returns why the monitor stands still: the tampering it saw last and
// that has not been undone; empty if there is none.
func (m *Monitor) Standing() string { return m.state.Tampering }

// AcceptNewBaseline forgets the history of a log that contradicted it and
// starts again from its first entry. Alerts and what is owed stay, and nothing
// that was told is told again. Call it before Run.
func (m *Monitor) AcceptNewBaseline(ctx context.Context) error {
	if err := m.cfg.Store.forgetHistory(ctx, m.state.ID); err != nil {
		return err
	}
	l, err := m.cfg.Store.loadLog(ctx, m.Origin())
	if err != nil {
		return err
	}
	m.state = l
	m.fetched.Store(0)
	clear(m.projects)
	return nil
}

// SetSubscriptions replaces what is watched, from the next entry on. It may be
// called while Run runs.
func (m *Monitor) SetSubscriptions(ctx context.Context, s *Subscriptions) error {
	m.subsMu.Lock()
	defer m.subsMu.Unlock()
	if err := m.cfg.Store.setSubscriptions(ctx, s); err != nil {
		return err
	}
	m.subs.Store(s)
	return nil
}

// Origin is the log being watched: the one that was configured, or the one that
// took over from it.
func (m *Monitor) Origin() string { return m.now.Load().origin }

// Source is where the log is read.
func (m *Monitor) Source() Source { return m.now.Load().source }

// Policy is the policy with the logs that took over from the one it names.
func (m *Monitor) Policy() *c2sp.Policy { return m.now.Load().policy }

// LogURL is where the log being watched is read, if it has taken over from the
// one that was configured; else empty.
func (m *Monitor) LogURL() string { return m.now.Load().url }

// Store is the monitor's database.
func (m *Monitor) Store() *Store { return m.cfg.Store }

// Run watches and delivers until ctx ends. It returns an error only where its
// own database fails, or is in use by another monitor (ErrInUse); whatever the
// log does is a finding.
func (m *Monitor) Run(ctx context.Context) error {
	unlock, err := m.cfg.Store.lock()
	if err != nil {
		return err
	}
	defer unlock()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.outbox.Run(ctx) })
	g.Go(func() error {
		for {
			if err := m.Round(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(m.cfg.Poll):
			}
		}
	})
	return g.Wait()
}

// Round looks at the log once: it reads the checkpoint, verifies and records
// what is new, and judges the log's health. Run calls it; tests do too.
func (m *Monitor) Round(ctx context.Context) error {
	readErr := m.read(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var db *databaseError
	if errors.As(readErr, &db) {
		return db.err
	}
	if err := m.prove(ctx); err != nil {
		return err
	}
	if readErr == nil {
		if readErr = m.followEnd(ctx); ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.As(readErr, &db) {
			return db.err
		}
	}
	if err := m.health(ctx, readErr); err != nil {
		return err
	}
	detail := ""
	if readErr != nil {
		detail = readErr.Error()
		m.log.Warn("the log could not be read to its end", "origin", m.Origin(), "verified", m.state.Verified.Size, "err", readErr)
	} else {
		m.lastRead.Store(m.cfg.Now().UnixMilli())
	}
	m.trouble.Store(&detail)
	m.outbox.Wake()
	return nil
}

// databaseError marks an error of our own database, which ends the monitor,
// among errors of the log, which do not.
type databaseError struct{ err error }

func (e *databaseError) Error() string { return e.err.Error() }
func (e *databaseError) Unwrap() error { return e.err }

func db(err error) error {
	if err == nil {
		return nil
	}
	return &databaseError{err}
}

// read brings the cursor to the log's head. A first doubtful sign of tampering
// (see lie) is read again after a pause: caches and restarts look like it.
func (m *Monitor) read(ctx context.Context) error {
	err := m.readOnce(ctx)
	var l *lie
	if errors.As(err, &l) && !l.proven {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(m.cfg.Confirm):
		}
		err = m.readOnce(ctx)
	}
	if errors.As(err, &l) {
		return errors.Join(err, db(m.tellLie(ctx, l)))
	}
	return err
}

func (m *Monitor) readOnce(ctx context.Context) error {
	head, err := m.accept(ctx)
	if err != nil {
		return err
	}
	opts := m.cfg.Scan
	opts.Fetched = m.fetched.Store
	_, err = Scan(ctx, m.Source(), m.state.Verified, head, opts, func(leaves []Leaf, p Position) error {
		return db(m.commit(ctx, leaves, p))
	})
	var bad *InconsistentError
	if errors.As(err, &bad) {
		a := tilesAlert(bad.Error())
		return &lie{alert: a, err: err, key: []string{"tiles", fmt.Sprint(m.state.Verified.Size)}}
	}
	if err == nil {
		err = m.afterEnd(ctx, head)
	}
	if err == nil && m.state.Tampering != "" && !m.misled {
		// The log shows the history it showed before, to its end.
		if err := m.cfg.Store.setTampering(ctx, m.state.ID, ""); err != nil {
			return db(err)
		}
		m.state.Tampering = ""
	}
	return err
}

// commit is the one transaction: rows, their marks, cursor, owed alerts.
func (m *Monitor) commit(ctx context.Context, leaves []Leaf, p Position) error {
	m.subsMu.Lock()
	defer m.subsMu.Unlock()
	subs := m.subs.Load()
	now := m.cfg.Now()
	err := m.cfg.Store.tx(ctx, func(tx *sql.Tx) error {
		j, err := m.newJudge(ctx, tx, m.state, subs)
		if err != nil {
			return err
		}
		for _, l := range leaves {
			if err := j.leaf(ctx, l); err != nil {
				return err
			}
		}
		for _, f := range j.findings {
			if err := j.mark(ctx, f); err != nil {
				return err
			}
			if err := owe(ctx, tx, m.state.ID, f, now, m.cfg.GroupWindow); err != nil {
				return err
			}
		}
		hookBeforeCursor()
		return advance(ctx, tx, m.state.ID, p, now)
	})
	if err != nil {
		clear(m.projects) // rows made in the failed transaction are gone
		return err
	}
	hookAfterCommit()
	m.state.Verified = p
	m.outbox.Wake()
	return nil
}

// Test hooks: they make a crash happen at the worst moment rather than perhaps.
var (
	hookBeforeCursor = func() {}
	hookAfterCommit  = func() {}
)

// prove attaches tlog-proofs to the alerts that wait for one.
func (m *Monitor) prove(ctx context.Context) error {
	for {
		list, err := m.cfg.Store.unproven(ctx, m.state.ID, 256)
		if err != nil || len(list) == 0 {
			return err
		}
		type outcome struct{ proof, missing string }
		done := make([]outcome, len(list))
		g := new(errgroup.Group)
		g.SetLimit(8)
		for i, u := range list {
			g.Go(func() error {
				text, err := m.Proof(ctx, u.index, u.leaf)
				switch {
				case err == nil:
					done[i].proof = string(text)
				case ctx.Err() == nil && m.cfg.Now().Sub(u.created) >= maxProofAge:
					done[i].missing = "The log did not yield the hashes for it: " + alert.OneLine(err.Error()) + ". Fetch it later from the entry's page."
				}
				return nil
			})
		}
		_ = g.Wait() // outcomes are in done
		waiting := 0
		err = m.cfg.Store.tx(ctx, func(tx *sql.Tx) error {
			for i, u := range list {
				if done[i] == (outcome{}) {
					waiting++
					continue
				}
				if err := setProof(ctx, tx, u.id, done[i].proof, done[i].missing); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		m.outbox.Wake()
		if waiting > 0 {
			return nil // again next round
		}
	}
}

// Proof builds the tlog-proof of a verified entry against the newest accepted
// checkpoint, and checks it before anybody sees it.
func (m *Monitor) Proof(ctx context.Context, index uint64, leaf []byte) ([]byte, error) {
	l, err := m.cfg.Store.head(ctx, m.Origin())
	if err != nil {
		return nil, err
	}
	if l == nil || index >= l.HeadSize {
		return nil, fmt.Errorf("entry %d is not in an accepted checkpoint", index)
	}
	hashes, err := m.Source().Inclusion(ctx, index, l.HeadSize)
	if err != nil {
		return nil, err
	}
	if err := c2sp.VerifyInclusion(index, l.HeadSize, leafHash(leaf), hashes, l.HeadRoot); err != nil {
		return nil, fmt.Errorf("the log's tiles do not prove entry %d: %w", index, err)
	}
	p := c2sp.Proof{Extra: leaf, Index: index, Hashes: hashes, Checkpoint: l.HeadNote}
	return p.Bytes(), nil
}
