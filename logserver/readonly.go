package logserver

// A server that only reads: it serves a directory or a bucket that another
// process writes, holds no key, takes no lock there and signs nothing.
//
//	checkpoint file ─▶ signed by the log? ─▶ the policy's quorum, if one is given ─▶ not smaller, not another tree ─▶ its
//	root from the tiles ─▶ consistent with the last ─▶ remembered, durably ─▶ served
//
// It believes the log's key, the quorum of its policy and its own memory, not the
// storage. Without a policy the log's key alone, so that who has it can show what
// no witness has seen. Who can change
// the storage can make it serve an old state, or nothing; who can also change its
// state directory can make it serve an old state as if it were new. Every client
// checks what it reads all the same.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"golang.org/x/time/rate"
)

// Files has a log's files by their names below its prefix: "checkpoint",
// "tile/0/000". What is not there is fs.ErrNotExist. A bucket is one.
type Files interface {
	Get(ctx context.Context, name string) ([]byte, error)
}

// ReadOnlyConfig says what a server that only reads serves.
type ReadOnlyConfig struct {
	// Dir is the directory of a log (made by Init, with log.json), or a copy of
	// its static files (checkpoint and tile/). Files is used instead if it is set.
	Dir   string
	Files Files
	// VKeys are keys of the log, any of which makes a checkpoint the log's. None:
	// those that the log.json in Dir names.
	VKeys []*c2sp.Key
	// State is a directory of this server alone: the lookup index, and the newest
	// checkpoint it has seen.
	State string
	// Tokens is the credentials file of a private log; default: tokens.json in Dir.
	Tokens string

	// Policy is an accept policy: a checkpoint below its quorum is not served. Its
	// log lines, if any, must have one of the keys. nil: the quorum is not judged.
	Policy *c2sp.Policy

	Private  bool          // also if the log.json or export.json in Dir says so
	Every    time.Duration // between two looks at the checkpoint; 0 means 200 ms
	MaxReads int           // as in Config
	MaxWait  time.Duration
	Logger   *slog.Logger
	Now      func() time.Time
}

// errOnlyReads is the reason why a server that only reads is not writable.
var errOnlyReads = errors.New("this server only reads: submit to the log itself")

// ErrWentBack says that the storage shows a checkpoint that is not of the history
// that was seen before: smaller, of another tree, or not the log's at all.
var ErrWentBack = errors.New("the storage does not go on from what it showed before")

// ErrBelowQuorum says that the storage shows a checkpoint that too few witnesses
// of the policy have cosigned. That alone is no sign of another history.
var ErrBelowQuorum = errors.New("the storage's checkpoint lacks the quorum of this server's policy")

// filesSource reads tiles from Files.
type filesSource struct{ Files }

// ReadTile implements tileSource.
func (f filesSource) ReadTile(ctx context.Context, level, index uint64, p uint8) ([]byte, error) {
	return f.read(ctx, c2sp.Tile{Level: int(level), Index: index, Width: width(p)})
}

// ReadEntryBundle implements tileSource.
func (f filesSource) ReadEntryBundle(ctx context.Context, index uint64, p uint8) ([]byte, error) {
	return f.read(ctx, c2sp.Tile{Level: -1, Index: index, Width: width(p)})
}

func (f filesSource) read(ctx context.Context, t c2sp.Tile) ([]byte, error) {
	raw, err := f.Get(ctx, t.Path())
	if errors.Is(err, fs.ErrNotExist) && t.Width < tileWidth {
		t.Width = tileWidth
		raw, err = f.Get(ctx, t.Path())
	}
	return raw, err
}

// follower keeps a log's board at the newest checkpoint of its storage.
type follower struct {
	checkpoint func(context.Context) ([]byte, error)
	identity   func() (Identity, error)
	accept     *c2sp.Policy // nil: the quorum is not judged
	path       string       // of what it remembers
	every      time.Duration

	last Published // owned by the goroutine that follows

	mu      sync.Mutex
	problem error // guarded by mu; why the storage is not followed now
}

// OpenReadOnly opens a log for reading alone. It fails only if it does not know
// whose checkpoints to believe, or has no state directory of its own; whatever
// is wrong with the storage, /readyz tells.
func OpenReadOnly(ctx context.Context, cfg ReadOnlyConfig) (*Log, error) {
	f := &follower{path: filepath.Join(cfg.State, "seen"), every: cfg.Every}
	if f.every == 0 {
		f.every = 200 * time.Millisecond
	}
	src, tokens, err := cfg.storage(f)
	if err != nil {
		return nil, err
	}
	id, err := f.identity()
	if err != nil {
		return nil, err
	}
	if cfg.State == "" {
		return nil, errors.New("a server that only reads needs a state directory of its own")
	}
	if _, err := os.Stat(filepath.Join(cfg.State, identityFile)); err == nil {
		return nil, fmt.Errorf("%s holds a log: a server that only reads needs a state directory of its own", cfg.State)
	}
	if err := os.MkdirAll(cfg.State, 0o755); err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(cfg.State, lockFileName))
	if err != nil {
		return nil, err
	}
	c := Config{Dir: cfg.State, Logger: cfg.Logger, Now: cfg.Now, Private: cfg.Private, MaxReads: cfg.MaxReads, MaxWait: cfg.MaxWait,
		Policy: &c2sp.Policy{Quorum: c2sp.QuorumNone}}
	c.defaults()
	for _, k := range id.Keys {
		c.Policy.Logs = append(c.Policy.Logs, c2sp.PolicyLog{Key: k.key})
	}
	keys := &keyring{origin: id.Origin, keys: id.Keys}
	if cfg.Policy != nil {
		own := *cfg.Policy
		if err := keys.ownPolicy(&own); err != nil {
			lock.release()
			return nil, err
		}
		f.accept = &own
	}
	l := &Log{
		cfg: c, keys: keys, src: src, lock: lock, board: newBoard(), tiles: newTileCache(),
		conflicts: newLimits(rate.Inf, 1), conflictsOf: newLimits(rate.Inf, 1), rates: newLimits(rate.Inf, 1),
		rate: rate.NewLimiter(rate.Inf, 1), admission: admission{of: map[string]int{}},
		quotas: newQuotas(c.Now), refusals: newRefusals(), follower: f,
		status: Status{Latched: true, Reason: errOnlyReads}, guard: make(chan struct{}), seqDone: make(chan struct{}),
	}
	close(l.seqDone)
	l.static = newStatic(l.src, c.Private)
	l.metrics = newMetrics(l)
	if err := l.openReadOnly(ctx, id, tokens); err != nil {
		return nil, errors.Join(err, l.release())
	}
	return l, nil
}

// storage finds where the tiles, the checkpoint, the keys and the credentials
// are, and sets Private if the directory says that its log is.
func (cfg *ReadOnlyConfig) storage(f *follower) (src tileSource, tokens string, err error) {
	tokens = cfg.Tokens
	var known *bool // Identity.Private
	inDir := func() (Identity, error) {
		return Identity{}, fmt.Errorf("%w: whose log is it? Name the log's key: no log.json is beside these files", ErrNoLog)
	}
	switch {
	case cfg.Files != nil:
		src = filesSource{cfg.Files}
		f.checkpoint = func(ctx context.Context) ([]byte, error) { return cfg.Files.Get(ctx, checkpointFile) }
	default:
		if info, err := os.Stat(cfg.Dir); err != nil || !info.IsDir() {
			return nil, "", fmt.Errorf("%w: %s is not a directory that is there", ErrNoLog, cfg.Dir)
		}
		src = directory(cfg.Dir)
		f.checkpoint = func(context.Context) ([]byte, error) { return os.ReadFile(filepath.Join(cfg.Dir, checkpointFile)) }
		if _, err := os.Stat(filepath.Join(cfg.Dir, identityFile)); err == nil {
			src = directory(filepath.Join(cfg.Dir, engineDir))
			inDir = func() (Identity, error) { return ReadIdentity(cfg.Dir) }
			have, err := ReadIdentity(cfg.Dir)
			if err != nil {
				return nil, "", err
			}
			cfg.Private, known = cfg.Private || have.private(), have.Private
			if tokens == "" {
				tokens = filepath.Join(cfg.Dir, TokensFile)
			}
		} else if raw, err := os.ReadFile(filepath.Join(cfg.Dir, exportState)); err == nil {
			var have exported
			if err := json.Unmarshal(raw, &have); err != nil {
				return nil, "", fmt.Errorf("%s: %w", filepath.Join(cfg.Dir, exportState), err)
			}
			cfg.Private = cfg.Private || have.Private
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, "", err
		}
	}
	f.identity = inDir
	if len(cfg.VKeys) > 0 {
		id := Identity{Origin: cfg.VKeys[0].Name(), VKey: cfg.VKeys[0].String(), Private: known}
		for _, k := range cfg.VKeys {
			if k.Name() != id.Origin {
				return nil, "", fmt.Errorf("the keys name two logs, %q and %q", id.Origin, k.Name())
			}
			id.Keys = append(id.Keys, LogKey{VKey: k.String(), State: KeyActive, key: k})
		}
		f.identity = func() (Identity, error) { return id, nil }
	}
	if tokens == "" {
		tokens = filepath.Join(cfg.State, TokensFile)
	}
	return src, tokens, nil
}

func (l *Log) openReadOnly(ctx context.Context, id Identity, tokens string) (err error) {
	if err := l.openTokens(tokens, id); err != nil {
		return err
	}
	if err := l.remembered(); err != nil {
		return err
	}
	if l.lookup, err = openIndex(filepath.Join(l.cfg.Dir, indexDir), l.freshTree, l.cfg.Logger); err != nil {
		return err
	}
	ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	l.lookup.readUpTo(func() (uint64, error) { return l.Published().Size, nil })
	l.follower.look(ctx, l) // what is there is served at once
	l.working.Go(func() { l.lookup.follow(ctx, l.board) })
	l.working.Go(func() {
		for sleep(ctx, l.follower.every) {
			l.follower.look(ctx, l)
		}
	})
	return nil
}

// remembered reads the newest checkpoint that this server has seen before. It is
// served as long as the storage shows no newer one.
func (l *Log) remembered() error {
	raw, err := os.ReadFile(l.follower.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("what was seen before: %w", withoutPath(err))
	}
	cp, err := signedCheckpoint(raw, l.keys)
	if err != nil {
		return fmt.Errorf("what was seen before, in %s, is not of this log: %w; if the state directory is of another log, take another", l.cfg.Dir, err)
	}
	l.follower.last = Published{Size: cp.Size, Root: cp.Root, Note: raw, Quorum: true}
	if err := l.follower.quorum(raw, cp.Size); err != nil {
		l.cfg.Logger.Warn("what was seen before is held to, and not served", "err", err)
		return nil // it was seen under another policy, or none
	}
	l.board.set(l.follower.last)
	return nil
}

// quorum is nil if a checkpoint satisfies the policy, if there is one.
func (f *follower) quorum(raw []byte, size uint64) error {
	if f.accept == nil {
		return nil
	}
	if _, err := f.accept.Verify(raw); err != nil {
		return fmt.Errorf("%w: %d entries: %w", ErrBelowQuorum, size, err)
	}
	return nil
}

// look reads the storage's checkpoint, and serves it if it goes on from the last.
func (f *follower) look(ctx context.Context, l *Log) {
	err := f.advance(ctx, l)
	if ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	was := f.problem
	f.problem = err
	f.mu.Unlock()
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		l.cfg.Logger.Error("the storage is not followed; what was served before is served on", "err", err)
	case err == nil && was != nil:
		l.cfg.Logger.Info("the storage is followed again", "size", f.last.Size)
	}
}

func (f *follower) trouble() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.problem
}

func (f *follower) advance(ctx context.Context, l *Log) error {
	raw, err := f.checkpoint(ctx)
	if errors.Is(err, fs.ErrNotExist) && f.last.Note == nil {
		return errors.New("the log has not published a checkpoint yet")
	}
	if err != nil {
		return fmt.Errorf("%w: checkpoint: %w", ErrStorage, withoutPath(err))
	}
	if bytes.Equal(raw, f.last.Note) {
		return f.quorum(raw, f.last.Size) // it may have been seen under another policy
	}
	cp, err := signedCheckpoint(raw, l.keys)
	if err != nil {
		if id, ierr := f.identity(); ierr == nil && id.Origin == l.keys.origin && len(id.Keys) != len(l.keys.keys) {
			return errors.New("the log's keys have changed: start this server again")
		}
		return fmt.Errorf("%w: the checkpoint: %w", ErrWentBack, err)
	}
	if err := f.quorum(raw, cp.Size); err != nil {
		return err
	}
	switch {
	case cp.Size < f.last.Size:
		return fmt.Errorf("%w: it has a checkpoint of %d entries, and had one of %d", ErrWentBack, cp.Size, f.last.Size)
	case cp.Size == f.last.Size && f.last.Note != nil && cp.Root != f.last.Root:
		return fmt.Errorf("%w: it has two trees of %d entries", ErrWentBack, cp.Size)
	}
	t := l.freshTree(int64(cp.Size))
	t.ctx = ctx
	root, err := t.root()
	if err != nil {
		return err
	}
	if root != cp.Root {
		return fmt.Errorf("%w: the tiles are not those of the checkpoint of %d entries", ErrWentBack, cp.Size)
	}
	if f.last.Note != nil {
		proof, err := t.consistency(int64(f.last.Size))
		if err != nil {
			return err
		}
		if err := c2sp.VerifyConsistency(f.last.Size, cp.Size, proof, f.last.Root, cp.Root); err != nil {
			return fmt.Errorf("%w: the tree of %d entries is not in that of %d: %w", ErrWentBack, f.last.Size, cp.Size, err)
		}
	}
	next := Published{Size: cp.Size, Root: cp.Root, Note: raw, Quorum: true}
	if cp.Size != f.last.Size || f.last.Note == nil { // the same tree cosigned anew is nothing to remember
		if err := writeDurably(f.path, raw, 0o644); err != nil {
			return fmt.Errorf("%w: remembering the checkpoint: %w", ErrStorage, withoutPath(err))
		}
	}
	f.last = next
	l.board.set(next)
	return nil
}
