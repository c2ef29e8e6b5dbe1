// Package migrate moves a log between storage engines: from a directory to
// Trillian and tiles, and back. Entries keep their index, so every old proof and
// checkpoint goes on verifying; nothing is written to the source.
//
//	source: identity, tree, signed checkpoint ─▶ read every entry ─▶ their root is
//	  the engine's, and at the checkpoint's size the signed one ─▶ target, filled by
//	  its own engine, which computes the root anew ─▶ the same root? ─▶ it may be served
package migrate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/logserver/trillian"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
)

// ErrRefused says that a move is not made: the source is in use or does not hold
// what it signed, or the target holds something else.
var ErrRefused = errors.New("the log is not moved")

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

// Progress is told how far a stage is, now and then.
type Progress func(stage string, done, of uint64)

// Source is a log that is read: its tree and its newest signed checkpoint.
type Source struct {
	Identity  logserver.Identity
	Size      uint64
	Root      [32]byte
	Published []byte // the public checkpoint; nil if there is none and Size is 0
	at        c2sp.Checkpoint

	store trillian.Store // of its bundles
	close func() error
}

// Close lets the source be served again.
func (s *Source) Close() error {
	if s.close == nil {
		return nil
	}
	return s.close()
}

// FromDir opens a log's directory. It refuses one that is being served, and keeps
// any server away until Close.
func FromDir(dir string) (_ *Source, err error) {
	s := &Source{store: trillian.Dir(logserver.EngineDir(dir))}
	if s.Identity, err = logserver.ReadIdentity(dir); err != nil {
		return nil, refused("%w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	// Opened for reading alone: the server's own lock is exclusive.
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if err == nil {
		s.close = lock.Close
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
			return nil, refused("%s is being served: stop the server first, since what it takes from now on would be missing", dir)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// Read again under the lock. A log that ends is not moved: where it went, its
	// end would not be known, and it would take entries after it.
	if s.Identity, err = logserver.ReadIdentity(dir); err != nil {
		return nil, refused("%w", err)
	}
	_, next, err := logserver.Ended(dir)
	if s.Identity.Freeze != nil || err == nil && next != nil {
		return nil, refused("the log in %s ends (portbook-log freeze), and another one takes over: it is served for reading where it is", dir)
	}
	raw, err := os.ReadFile(filepath.Join(logserver.EngineDir(dir), ".state", "treeState"))
	if err != nil {
		return nil, refused("the storage of %s has no state: %w", dir, err)
	}
	if s.Size, s.Root, err = parseTreeState(raw); err != nil {
		return nil, refused("the storage of %s: %w", dir, err)
	}
	switch n, err := logserver.InJournal(dir, s.Identity, s.Size); {
	case err != nil:
		return nil, refused("the storage of %s: %w", dir, err)
	case n > 0:
		return nil, refused("%d entries of the log in %s have their index and are not in its tiles yet: start its server, which takes them in, and stop it", n, dir)
	}
	published, err := logserver.PublicCheckpoint(dir)
	return s, s.signed(published, err)
}

// parseTreeState reads Tessera's own record of a POSIX tree.
func parseTreeState(raw []byte) (size uint64, root [32]byte, err error) {
	var state struct {
		Size *uint64 `json:"size"`
		Root []byte  `json:"root"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return 0, root, fmt.Errorf("treeState: %w", err)
	}
	if state.Size == nil || len(state.Root) != 32 {
		return 0, root, errors.New("treeState has no size or no root")
	}
	return *state.Size, [32]byte(state.Root), nil
}

// FromTrillian opens a log on Trillian, whose keys id names in every state. The
// tree must be FROZEN and integrated to its end, or entries could be left behind.
// A log that ends is not moved, as by FromDir.
func FromTrillian(ctx context.Context, cfg trillian.Config, id logserver.Identity) (*Source, error) {
	if id.Freeze != nil {
		return nil, refused("the log ends (portbook-log freeze), and another one takes over: its tiles are served for reading where they are")
	}
	d, err := trillian.New(cfg)
	if err != nil {
		return nil, err
	}
	switch err := d.Check(ctx); {
	case err == nil || errors.Is(err, trillian.ErrDraining):
		return nil, refused("Trillian's tree %d may still grow: stop the frontends, let the publisher finish, and freeze the tree (updatetree --tree_state=FROZEN)", cfg.TreeID)
	case !errors.Is(err, trillian.ErrFrozen):
		return nil, err
	}
	head, err := d.Head(ctx)
	if err != nil {
		return nil, err
	}
	have, err := d.Integrated(ctx)
	if err != nil {
		return nil, err
	}
	if have != head {
		return nil, refused("Trillian's tree has %d entries with the root %x, the tiles %d with %x: let a publisher finish first", head.Size, head.Hash, have.Size, have.Hash)
	}
	s := &Source{Identity: id, Size: have.Size, Root: have.Hash, store: cfg.Store}
	published, err := cfg.Store.Get(ctx, trillian.CheckpointName)
	return s, s.signed(published, err)
}

// signed takes the public checkpoint, which must be signed by a key of the log
// and be no larger than the tree.
func (s *Source) signed(raw []byte, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if s.Size > 0 {
			return refused("nothing was published of its %d entries: there is no signed root to compare with; let it publish first", s.Size)
		}
		return nil
	}
	if err != nil {
		return err
	}
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return refused("its public checkpoint: %w", err)
	}
	if s.at, err = c2sp.ParseCheckpoint(note.Text); err != nil {
		return refused("its public checkpoint: %w", err)
	}
	if s.at.Origin != s.Identity.Origin {
		return refused("its public checkpoint is of the log %q, not of %q", s.at.Origin, s.Identity.Origin)
	}
	if s.at.Size > s.Size {
		return refused("it has published %d entries and holds %d: its storage was restored from a backup; restore the newer one", s.at.Size, s.Size)
	}
	for _, k := range s.Identity.Keys {
		key, err := c2sp.ParseVKey(k.VKey)
		if err != nil {
			return refused("a key of the log: %w", err)
		}
		if k.State == logserver.KeyRetired && s.at.Size > k.UpTo {
			continue // what it signs beyond that is not the log's
		}
		for _, sig := range note.Sigs {
			if key.Matches(sig) && key.VerifyLog(note.Text, sig) == nil {
				s.Published = raw
				return nil
			}
		}
	}
	return refused("its public checkpoint is signed by none of the log's keys")
}

// Verify reads every entry and compares their root with the tree's, and with the
// signed one at its size. It must be called before a move.
func (s *Source) Verify(ctx context.Context, progress Progress) error {
	r := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	root := func() [32]byte {
		h, err := r.GetRootHash(nil)
		if err != nil || r.End() == 0 {
			return c2sp.EmptyRoot
		}
		return [32]byte(h)
	}
	signed := root()
	err := s.Leaves(ctx, 0, func(leaf []byte) error {
		if err := r.Append(rfc6962.DefaultHasher.HashLeaf(leaf), nil); err != nil {
			return err
		}
		if r.End() == s.at.Size {
			signed = root()
		}
		if r.End()%1024 == 0 {
			progress("reading the source", r.End(), s.Size)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if got := root(); got != s.Root {
		return refused("its %d entries have the root %x, its tree has %x: its storage is damaged", s.Size, got, s.Root)
	}
	if s.Published != nil && signed != s.at.Root {
		return refused("its first %d entries have the root %x, the log has signed %x: its storage is damaged or not the log's", s.at.Size, signed, s.at.Root)
	}
	return nil
}

// Leaves calls do with the entries [from, Size), in order.
func (s *Source) Leaves(ctx context.Context, from uint64, do func(leaf []byte) error) error {
	for from < s.Size {
		if err := ctx.Err(); err != nil {
			return err
		}
		index := from / c2sp.TileWidth
		width := int(min(s.Size-index*c2sp.TileWidth, c2sp.TileWidth))
		raw, err := s.bundle(ctx, index, width)
		if err != nil {
			return err
		}
		leaves, err := c2sp.ParseBundle(raw, width)
		if err != nil {
			return refused("entry bundle %d of the source: %w", index, err)
		}
		for _, leaf := range leaves[from%c2sp.TileWidth:] {
			if err := do(leaf); err != nil {
				return err
			}
			from++
		}
	}
	return nil
}

// bundle reads the first width entries of a bundle, from a wider one if it must.
func (s *Source) bundle(ctx context.Context, index uint64, width int) ([]byte, error) {
	raw, err := s.store.Get(ctx, c2sp.Tile{Level: -1, Index: index, Width: width}.Path())
	if errors.Is(err, fs.ErrNotExist) && width < c2sp.TileWidth {
		raw, err = s.store.Get(ctx, c2sp.Tile{Level: -1, Index: index, Width: c2sp.TileWidth}.Path())
		at := 0
		for range width {
			if len(raw)-at >= 2 {
				at += 2 + int(raw[at])<<8 + int(raw[at+1])
			}
		}
		if err == nil && at <= len(raw) {
			raw = raw[:at]
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refused("entry bundle %d of the source is missing", index)
	}
	return raw, err
}

// ToTrillian moves a log to Trillian and a tile store. cfg.TreeID 0 makes a tree,
// or goes on with the one that an interrupted move has made for the same store;
// the ID is returned in any case.
func ToTrillian(ctx context.Context, s *Source, cfg trillian.Config, progress Progress) (tree int64, err error) {
	if err := s.Verify(ctx, progress); err != nil {
		return 0, err
	}
	// A target that publishes is another log, or this one after the move.
	if have, err := cfg.Store.Get(ctx, trillian.CheckpointName); err == nil && !bytes.Equal(have, s.Published) {
		return 0, refused("the place for the tiles has another checkpoint: it holds a log that is served")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	made, err := trillian.CreateImport(ctx, cfg)
	if err != nil {
		return 0, err
	}
	if cfg.TreeID != 0 && cfg.TreeID != made {
		return 0, refused("the place for the tiles belongs to Trillian's tree %d, not to %d", made, cfg.TreeID)
	}
	cfg.TreeID = made
	d, err := trillian.New(cfg)
	if err != nil {
		return 0, err
	}
	err = d.Import(ctx, trillian.Import{Size: s.Size, Root: s.Root, Leaves: s.Leaves, Published: s.at.Size, Progress: progress})
	if errors.Is(err, trillian.ErrNotPrefix) || errors.Is(err, trillian.ErrTampering) || errors.Is(err, trillian.ErrBadLeaf) {
		return made, refused("%w", err)
	}
	if err != nil {
		return made, err
	}
	if s.Published == nil {
		return made, nil
	}
	err = cfg.Store.Swap(ctx, trillian.CheckpointName, nil, s.Published)
	if errors.Is(err, trillian.ErrChanged) {
		if have, err := cfg.Store.Get(ctx, trillian.CheckpointName); err == nil && bytes.Equal(have, s.Published) {
			return made, nil
		}
		return made, refused("the place for the tiles got another checkpoint meanwhile")
	}
	return made, err
}

// ToDatabase makes the database of a shared log of what ToTrillian has moved.
func ToDatabase(ctx context.Context, s *Source, dsn string, engine logserver.SharedEngine, progress Progress) error {
	log := logserver.Adopted{Identity: s.Identity, Size: s.Size, Root: s.Root, Published: s.Published}
	err := logserver.AdoptShared(ctx, dsn, engine, log, func(ctx context.Context, from uint64, do func([]byte) error) error {
		n := from
		return s.Leaves(ctx, from, func(leaf []byte) error {
			if n++; n%1024 == 0 {
				progress("deciding slots", n, s.Size)
			}
			return do(leaf)
		})
	})
	if errors.Is(err, logserver.ErrTaken) {
		return refused("%w", err)
	}
	return err
}

// workers is how many entry bundles are copied at once.
const workers = 4

// ToDir moves a log into a directory, with a new anchor. An interrupted move is
// gone on with.
func ToDir(ctx context.Context, s *Source, dir, anchor string, progress Progress) error {
	if err := s.Verify(ctx, progress); err != nil {
		return err
	}
	id := s.Identity
	id.Anchor = anchor
	err := logserver.Adopt(dir, logserver.Adopted{Identity: id, Size: s.Size, Root: s.Root, Published: s.Published}, func(engine string) error {
		return s.fillDir(ctx, engine, progress)
	})
	if errors.Is(err, logserver.ErrTaken) {
		return refused("%w", err)
	}
	return err
}

// fillDir fills a Tessera directory by Tessera's own migration.
func (s *Source) fillDir(ctx context.Context, engine string, progress Progress) error {
	path := filepath.Join(engine, ".state", "treeState")
	state := func() (size uint64, root [32]byte, err error) {
		raw, err := os.ReadFile(path)
		if err != nil {
			return 0, root, err
		}
		return parseTreeState(raw)
	}
	have, root, err := state()
	if errors.Is(err, fs.ErrNotExist) {
		have, root, err = 0, c2sp.EmptyRoot, nil
	}
	if err != nil {
		return refused("the target: %w", err)
	}
	if err := s.hasPrefix(ctx, have, root); err != nil {
		return err
	}
	driver, err := posix.New(ctx, posix.Config{Path: engine})
	if err != nil {
		return err
	}
	target, err := tessera.NewMigrationTarget(ctx, driver, tessera.NewMigrationOptions())
	if err != nil {
		return err
	}
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for t := time.NewTicker(time.Second); ; {
			select {
			case <-watch.Done():
				t.Stop()
				return
			case <-t.C:
				if size, _, err := state(); err == nil {
					progress("writing tiles", size, s.Size)
				}
			}
		}
	}()
	// First what readers have a checkpoint of, with its partial tiles, then the rest.
	for _, stop := range []struct {
		size uint64
		root [32]byte
	}{{s.at.Size, s.at.Root}, {s.Size, s.Root}} {
		if stop.size <= have {
			continue
		}
		err := target.Migrate(ctx, workers, stop.size, stop.root[:], func(ctx context.Context, index uint64, p uint8) ([]byte, error) {
			width := int(p)
			if p == 0 {
				width = c2sp.TileWidth
			}
			return s.bundle(ctx, index, width)
		})
		if err != nil {
			return err
		}
		have = stop.size
	}
	if size, root, err := state(); err != nil || size != s.Size || root != s.Root {
		return refused("the target has %d entries with the root %x (%v), want %d with %x", size, root, err, s.Size, s.Root)
	}
	return nil
}

// hasPrefix refuses a target that holds something else than the beginning of
// the source.
func (s *Source) hasPrefix(ctx context.Context, size uint64, root [32]byte) error {
	if size > s.Size {
		return refused("%w: it has %d entries, the source %d", trillian.ErrNotPrefix, size, s.Size)
	}
	whole := errors.New("all that is asked for")
	r := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	want := c2sp.EmptyRoot
	if size > 0 {
		err := s.Leaves(ctx, 0, func(leaf []byte) error {
			if err := r.Append(rfc6962.DefaultHasher.HashLeaf(leaf), nil); err != nil {
				return err
			}
			if r.End() < size {
				return nil
			}
			h, err := r.GetRootHash(nil)
			if err != nil {
				return err
			}
			want = [32]byte(h)
			return whole
		})
		if !errors.Is(err, whole) {
			return err
		}
	}
	if root != want {
		return refused("%w: its %d entries have the root %x, the source's first %d have %x", trillian.ErrNotPrefix, size, root, size, want)
	}
	return nil
}
