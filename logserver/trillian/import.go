package trillian

// Importing a log: its entries go into a tree of type PREORDERED_LOG, where each
// keeps its index, and the tree is then turned into a LOG.

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/trillian"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// ErrNotPrefix says that a tree to import into holds something else than the
// beginning of the log.
var ErrNotPrefix = errors.New("the target holds entries that are not the source's")

// Import is a log that is imported.
type Import struct {
	Size uint64
	Root [32]byte // of Size entries
	// Leaves calls do with the entries [from, Size), in order, until do fails. It
	// is called more than once.
	Leaves func(ctx context.Context, from uint64, do func(leaf []byte) error) error
	// Published, if not 0, is a size at most Size whose partial tiles are written
	// too: that of the checkpoint that readers have.
	Published uint64
	// Progress, if not nil, is called now and then.
	Progress func(stage string, done, of uint64)
}

// ImportID is the ID under which an import logs an entry: it says at which index
// too, so that importing twice is the same as once.
func ImportID(index uint64, leaf []byte) [32]byte {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, index))
	h.Write(leaf)
	return [32]byte(h.Sum(nil))
}

// CreateImport makes a tree to import into, and the log in the store that
// remembers which: Config.TreeID is not used, the new ID is returned. If the
// store has one already, because an import was interrupted, its ID is returned.
func CreateImport(ctx context.Context, cfg Config) (int64, error) {
	raw, err := cfg.Store.Get(ctx, stateName)
	if err == nil {
		s, err := parseState(raw)
		if err != nil {
			return 0, &StateError{fmt.Sprintf("%s cannot be read: %v", stateName, err)}
		}
		return s.TreeID, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("the tile store: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	tree, err := trillian.NewTrillianAdminClient(cfg.Conn).CreateTree(ctx, &trillian.CreateTreeRequest{Tree: &trillian.Tree{
		TreeState: trillian.TreeState_ACTIVE, TreeType: trillian.TreeType_PREORDERED_LOG, DisplayName: "portbook", MaxRootDuration: durationpb.New(0)}})
	if err != nil {
		return 0, fmt.Errorf("trillian: %w", err)
	}
	if _, err := trillian.NewTrillianLogClient(cfg.Conn).InitLog(ctx, &trillian.InitLogRequest{LogId: tree.TreeId}); err != nil {
		return 0, fmt.Errorf("trillian: %w", err)
	}
	cfg.TreeID = tree.TreeId
	d, err := New(cfg)
	if err != nil {
		return 0, err
	}
	return tree.TreeId, d.initState(ctx)
}

const (
	// importLeaves and importBytes bound one call; Trillian takes 4 MiB.
	importLeaves = 500
	importBytes  = 2 << 20
)

// Import fills the tree and the store with a log, and ends with the tree a LOG
// that takes entries. The tree must be empty, or hold the beginning of the log
// that an interrupted import has left; else it is ErrNotPrefix, and nothing is
// written. Trillian's root and the tiles are compared with Root before the tree
// takes entries.
func (d *Driver) Import(ctx context.Context, im Import) error {
	if im.Progress == nil {
		im.Progress = func(string, uint64, uint64) {}
	}
	tree, err := d.tree(ctx)
	if err != nil {
		return err
	}
	head, err := d.Head(ctx)
	if err != nil {
		return err
	}
	if err := d.prefix(ctx, im, tree, head); err != nil {
		return err
	}
	if tree.TreeType == trillian.TreeType_PREORDERED_LOG {
		if tree.TreeState == trillian.TreeState_ACTIVE {
			if err := d.fill(ctx, im, head.Size); err != nil {
				return err
			}
			if err := d.update(ctx, &trillian.Tree{TreeState: trillian.TreeState_FROZEN}, "tree_state"); err != nil {
				return err
			}
		}
		// The signer may have been at work while the tree froze: what it has now is
		// what it keeps.
		if head, err = d.Head(ctx); err != nil {
			return err
		}
		if head != (Root{im.Size, im.Root}) {
			return &RootError{im.Size, head.Size, im.Root, head.Hash}
		}
		if err := d.update(ctx, &trillian.Tree{TreeType: trillian.TreeType_LOG}, "tree_type"); err != nil {
			return err
		}
	}
	if err := d.writeTiles(ctx, im); err != nil {
		return err
	}
	return d.update(ctx, &trillian.Tree{TreeState: trillian.TreeState_ACTIVE}, "tree_state")
}

// prefix refuses a target that is not the beginning of the source, and a source
// that does not have the root it should.
func (d *Driver) prefix(ctx context.Context, im Import, tree *trillian.Tree, head Root) error {
	if head.Size > im.Size {
		return fmt.Errorf("%w: it has %d entries, the source %d", ErrNotPrefix, head.Size, im.Size)
	}
	if tree.TreeType == trillian.TreeType_LOG && head.Size < im.Size {
		return fmt.Errorf("%w, or takes no import: tree %d is a LOG of %d entries, the source has %d; only a PREORDERED_LOG can be imported into", ErrNotPrefix, tree.TreeId, head.Size, im.Size)
	}
	e, at := new(edge), [32]byte(emptyRoot)
	err := im.Leaves(ctx, 0, func(leaf []byte) error {
		if len(leaf) == 0 || len(leaf) > maxLeaf {
			return fmt.Errorf("%w: entry %d of the source has %d", ErrBadLeaf, e.size, len(leaf))
		}
		e.append(leaf, tlog.RecordHash(leaf), func(Object) {})
		if e.size == head.Size {
			at = e.root()
		}
		if e.size%tileWidth == 0 {
			im.Progress("reading the source", e.size, im.Size)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if root := e.root(); e.size != im.Size || root != im.Root {
		return fmt.Errorf("the source has %d entries with the root %x, want %d with %x", e.size, root, im.Size, im.Root)
	}
	if at != head.Hash {
		return fmt.Errorf("%w: its %d entries have the root %x, the source's first %d have %x", ErrNotPrefix, head.Size, head.Hash, head.Size, at)
	}
	return nil
}

// fill adds the entries [from, im.Size) and waits until the signer has them all.
func (d *Driver) fill(ctx context.Context, im Import, from uint64) error {
	next, bytes := from, 0
	var batch []*trillian.LogLeaf
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		call, cancel := context.WithTimeout(ctx, 6*callLimit)
		defer cancel()
		r, err := d.log.AddSequencedLeaves(call, &trillian.AddSequencedLeavesRequest{LogId: d.cfg.TreeID, Leaves: batch})
		if err != nil {
			return fmt.Errorf("trillian: %w", err)
		}
		for i, l := range r.Results {
			// FailedPrecondition: the ID or the index is taken. It was added before,
			// or the roots will differ.
			if c := codes.Code(l.GetStatus().GetCode()); c != codes.OK && c != codes.FailedPrecondition {
				return fmt.Errorf("trillian: entry %d: %w", batch[i].LeafIndex, status.ErrorProto(l.GetStatus()))
			}
		}
		batch, bytes = batch[:0], 0
		im.Progress("adding entries", next, im.Size)
		return nil
	}
	err := im.Leaves(ctx, from, func(leaf []byte) error {
		id := ImportID(next, leaf)
		batch = append(batch, &trillian.LogLeaf{LeafValue: append([]byte(nil), leaf...), LeafIdentityHash: id[:], LeafIndex: int64(next)})
		next++
		if bytes += len(leaf); len(batch) == importLeaves || bytes >= importBytes {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return err
	}
	for {
		head, err := d.Head(ctx)
		if err == nil && head.Size >= im.Size {
			return nil
		}
		im.Progress("waiting for Trillian's signer", head.Size, im.Size)
		if !sleep(ctx, 100*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// writeTiles integrates the whole tree, with a stop at the published size.
func (d *Driver) writeTiles(ctx context.Context, im Import) error {
	in := &integrator{d: d, keep: true, grown: func(size uint64) { im.Progress("writing tiles", size, im.Size) },
		record: func(context.Context, Batch) error { return nil }}
	defer in.stop()
	for _, stop := range []uint64{im.Published, im.Size} {
		if stop == 0 {
			continue
		}
		in.until = stop
		if err := in.run(ctx); err != nil {
			return d.latch(err)
		}
	}
	if im.Size > 0 && in.root != im.Root {
		return d.latch(&RootError{in.edge.size, im.Size, in.root, im.Root})
	}
	return nil
}

// update changes one field of the tree.
func (d *Driver) update(ctx context.Context, t *trillian.Tree, field string) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	t.TreeId = d.cfg.TreeID
	if _, err := d.admin.UpdateTree(ctx, &trillian.UpdateTreeRequest{Tree: t, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{field}}}); err != nil {
		return fmt.Errorf("trillian: changing the tree's %s: %w", field, err)
	}
	return nil
}

// Integrated is the log that the store holds: its integrated size and root.
func (d *Driver) Integrated(ctx context.Context) (Root, error) {
	s, _, err := d.readState(ctx)
	return Root{s.Size, s.Root}, err
}
