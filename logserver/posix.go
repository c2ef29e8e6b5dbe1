package logserver

// The embedded storage engine: Tessera on a POSIX directory, one process.

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

// engine is an open storage engine.
type engine struct {
	// append adds entries, at most EngineBatch, behind what there is. It returns
	// the index of the first once they are in the tiles, durably; the others
	// follow it. After an error some of them may be there.
	append func(ctx context.Context, entries []*tessera.Entry) (first uint64, err error)
	size   func(context.Context) (uint64, error) // integrated size
	sync   func() error                          // makes what was written durable, also by an append that failed
	close  func(context.Context) error
}

// lateEngine is the storage engine of a log that is served: it opens when its
// disk lets it.
type lateEngine struct {
	dir    string
	opened atomic.Pointer[engine]
}

// open opens the engine unless it is open. After ErrStorage it may be called again.
func (e *lateEngine) open(ctx context.Context) error {
	if e.opened.Load() != nil {
		return nil
	}
	opened, err := openPOSIX(ctx, e.dir)
	switch {
	case err == nil:
		e.opened.Store(opened)
		return nil
	case errors.Is(err, ErrBehind), errors.Is(err, ErrStorage):
		return err
	}
	return &engineError{err}
}

// engineError is why Tessera does not open. Its words name files, and readers
// hear of an error's text.
type engineError struct{ cause error }

func (e *engineError) Error() string {
	return ErrStorage.Error() + ": the storage engine does not open: the server's log says why"
}
func (e *engineError) Is(target error) bool { return target == ErrStorage }

func (e *lateEngine) size(ctx context.Context) (uint64, error) {
	if opened := e.opened.Load(); opened != nil {
		return opened.size(ctx)
	}
	return 0, errEngineOut
}

func (e *lateEngine) append(ctx context.Context, entries []*tessera.Entry) (uint64, error) {
	if opened := e.opened.Load(); opened != nil {
		return opened.append(ctx, entries)
	}
	return 0, errEngineOut
}

func (e *lateEngine) sync() error {
	if opened := e.opened.Load(); opened != nil {
		return opened.sync()
	}
	return errEngineOut
}

var errEngineOut = fmt.Errorf("%w: the storage engine is not open", ErrStorage)

func (e *lateEngine) close(ctx context.Context) error {
	if opened := e.opened.Load(); opened != nil {
		return opened.close(ctx)
	}
	return nil
}

const (
	// EngineBatch and EngineBatchAge are the batching that Tessera is given.
	EngineBatch    = 1024
	EngineBatchAge = 5 * time.Millisecond
	// Tessera publishes checkpoints of its own, under a key nobody knows; its
	// garbage collection goes by them. Nothing of ours does.
	enginePublish = 5 * time.Second
)

// openPOSIX opens the Tessera log in dir. It refuses to create one: Tessera
// takes a missing state directory for a new log, and would fork.
func openPOSIX(ctx context.Context, dir string) (*engine, error) {
	if _, err := os.Stat(filepath.Join(dir, ".state", "treeState")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: its storage has no state: mount its file system, or restore it whole", ErrBehind)
		}
		return nil, fmt.Errorf("%w: %w", ErrStorage, withoutPath(err))
	}
	return newPOSIX(ctx, dir)
}

func newPOSIX(ctx context.Context, dir string) (e *engine, err error) {
	defer func() { // Tessera panics where it cannot take its lock file
		if cause := recover(); cause != nil {
			e, err = nil, fmt.Errorf("its lock cannot be taken: %v", cause)
		}
	}()
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		return nil, err
	}
	if e, err = newEngine(ctx, driver); err != nil {
		return nil, err
	}
	e.sync = func() error { return syncFileSystem(dir) }
	return e, nil
}

// newEngine opens any Tessera driver as an appender with a throw-away signer
// and no witnesses: publishing is ours.
func newEngine(ctx context.Context, driver tessera.Driver) (*engine, error) {
	skey, _, err := note.GenerateKey(rand.Reader, "engine.invalid")
	if err != nil {
		return nil, err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	opts := tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(enginePublish).
		WithBatching(EngineBatch, EngineBatchAge)
	appender, _, reader, err := tessera.NewAppender(ctx, driver, opts)
	if err != nil {
		cancel()
		return nil, err
	}
	return &engine{
		append: appendTo(appender.Add),
		size:   reader.IntegratedSize,
		sync:   func() error { return nil },
		// Tessera's own shutdown waits for its own checkpoint, which goes by file
		// times. We only stop its goroutines, and they may outlive this call, and
		// our lock, by what they are in the middle of. That harms no engine that
		// opens the directory then: nothing is being sequenced, since every
		// future has been waited for; the checkpoint is its own, replaced in one
		// step, and read by its garbage collection alone, which looks a minute
		// after opening, when the new engine has long replaced it; and that
		// collection removes partial tiles and bundles only where the full ones
		// are. See TestReopenAtOnce.
		close: func(context.Context) error { cancel(); return nil },
	}, nil
}

// appendTo adds entries in order. Tessera takes what it is given within
// EngineBatchAge as one batch, which is written whole or not at all; should it
// come to two batches, and the first of them fail, the entries do not follow one
// another.
func appendTo(add tessera.AddFn) func(context.Context, []*tessera.Entry) (uint64, error) {
	return func(ctx context.Context, entries []*tessera.Entry) (first uint64, err error) {
		futures := make([]tessera.IndexFuture, len(entries))
		for i, e := range entries {
			futures[i] = add(ctx, e)
		}
		for i, f := range futures { // all of them: nothing may be under way afterwards
			index, ferr := f()
			switch {
			case ferr != nil:
				err = errors.Join(err, withoutPath(ferr))
			case i == 0:
				first = index.Index
			case err == nil && index.Index != first+uint64(i):
				err = fmt.Errorf("entry %d of a batch is at index %d, the first at %d", i, index.Index, first)
			}
		}
		return first, err
	}
}

// feeder gives an engine entries whose indexes are known.
type feeder struct {
	append func(ctx context.Context, entries []*tessera.Entry) (first uint64, err error)
	size   func(context.Context) (uint64, error)
	sync   func() error
	tree   func(size int64) tree
}

// write appends entries, the first of which has index next. After an error landed
// says what is there, and nothing may be written before it has.
func (f feeder) write(ctx context.Context, next uint64, entries []*tessera.Entry) error {
	first, err := f.append(context.WithoutCancel(ctx), entries)
	if err == nil && first != next {
		err = fmt.Errorf("entry %d was written as entry %d", next, first)
	}
	if err != nil {
		return fmt.Errorf("%w: the storage engine: %w", ErrStorage, err)
	}
	return nil
}

// landed returns how many of entries, the first of which has index next, are in
// the tiles, and makes that durable. Its error is trouble that may pass, unless
// it is errUnreadable or ErrBehind: the log has something else in their place.
func (f feeder) landed(ctx context.Context, next uint64, entries []*tessera.Entry) (int, error) {
	size, err := f.size(ctx)
	if err != nil {
		return 0, fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
	}
	if size < next || size > next+uint64(len(entries)) {
		return 0, fmt.Errorf("%w: it has %d entries, and should have between %d and %d", ErrBehind, size, next, next+uint64(len(entries)))
	}
	t := f.tree(int64(size))
	t.ctx = ctx
	err = t.each(int64(next), func(index int64, leaf []byte) error {
		if !bytes.Equal(leaf, entries[uint64(index)-next].Data()) {
			return fmt.Errorf("%w: entry %d is not the one that was given this index", ErrBehind, index)
		}
		return nil
	})
	if err == nil && size > next {
		if err = f.sync(); err != nil {
			err = fmt.Errorf("%w: %w", ErrStorage, withoutPath(err))
		}
	}
	return int(size - next), err
}

// directory reads a log directory in the layout of c2sp.org/tlog-tiles.
type directory string

// ReadTile implements tileSource.
func (d directory) ReadTile(_ context.Context, level, index uint64, p uint8) ([]byte, error) {
	return d.read(c2sp.Tile{Level: int(level), Index: index, Width: width(p)})
}

// ReadEntryBundle implements tileSource.
func (d directory) ReadEntryBundle(_ context.Context, index uint64, p uint8) ([]byte, error) {
	return d.read(c2sp.Tile{Level: -1, Index: index, Width: width(p)})
}

func width(p uint8) int {
	if p == 0 {
		return tileWidth
	}
	return int(p)
}

// read returns the file of a tile or bundle, or the full one where the partial
// one has been removed.
func (d directory) read(t c2sp.Tile) ([]byte, error) {
	raw, err := os.ReadFile(filepath.Join(string(d), filepath.FromSlash(t.Path())))
	if errors.Is(err, fs.ErrNotExist) && t.Width < tileWidth {
		t.Width = tileWidth
		raw, err = os.ReadFile(filepath.Join(string(d), filepath.FromSlash(t.Path())))
	}
	return raw, err
}
