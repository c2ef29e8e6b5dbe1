// Package trillian is a tessera.Driver over Trillian 1.8: it moves bytes. Trillian
// gives order and durability, on PostgreSQL or MariaDB; this package turns what
// it has sequenced into the tiles and entry bundles of c2sp.org/tlog-tiles, the
// same bytes that Tessera's POSIX engine writes.
//
//	any process          Queue(id, leaf) ──▶ log server ──▶ database ◀── log signer
//	one elected process  Integrate: root ◀ leaves in order ◀ log server
//	                       rehash ▶ our root = Trillian's root? ▶ tiles ▶ Record ▶ state
//	any process          Reader: tiles, integrated size
//
// Who can change Trillian's database can at most stop the log: entries that are
// integrated are never read again, a root that is not ours ends the integration
// with an error of kind ErrTampering, and nothing counts as integrated before the
// roots were compared. Who can change the tiles can make readers fail, and the
// next integrator refuse to begin; a tile is never overwritten.
//
// See docs/decisions/ on what fences what, and TestStaleIntegrator.
package trillian

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/types"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/api/layout"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Config says which tree is driven, and where its tiles are.
type Config struct {
	Conn   grpc.ClientConnInterface // to Trillian's log servers, which have the admin API too; see Dial
	TreeID int64                    // a tree of type LOG
	Store  Store                    // of tiles, bundles and the integrated size

	// Record is called by Integrate with each batch, before its size counts: its
	// leaves are ordered for good and their tiles written, and nobody was told.
	// It should return errors.Is ErrFenced if another process has been elected.
	// Any other error is taken for a passing one: the same leaves are recorded
	// again, perhaps in a larger or smaller batch, so recording must be
	// idempotent. nil records nothing.
	Record func(context.Context, Batch) error
	// Grown is called by Integrate after the integrated size has advanced. It
	// must not block.
	Grown func(size uint64)

	// Poll is the pause between two looks at Trillian's root; 0 means 20 ms.
	Poll time.Duration
	// Queuers is the number of entries that Appender.Add sends to Trillian at
	// once; 0 means 64. With 1 entries keep the order of the calls.
	Queuers int
	// QueueFor bounds how long Appender.Add tries to queue an entry while
	// Trillian cannot be reached; 0 means 30 s.
	QueueFor time.Duration

	Logger *slog.Logger
}

// Batch is a run of leaves with consecutive indices.
type Batch struct {
	First  uint64     // index of the first leaf
	IDs    [][32]byte // what each was queued under
	Leaves [][]byte
	Root   [32]byte // of the tree of size First + len(Leaves)
}

// Root is a tree head as Trillian has it.
type Root struct {
	Size uint64
	Hash [32]byte
}

var (
	// ErrTampering says that what Trillian or the tile store holds is not the
	// tree that was integrated: a database that was restored, promoted from an
	// asynchronous standby, run with synchronous_commit=off, or changed by hand.
	// It is the kind of RootError, BackError, LeafError, ConflictError and
	// StateError. The driver does nothing more once it has seen one.
	ErrTampering = errors.New("the log's engine does not hold the tree that was integrated")
	// ErrFenced says that another process integrates: a newer token than ours was
	// used.
	ErrFenced = errors.New("another process has taken over the integration")
	// ErrNoState says that the store holds no log: Init makes one.
	ErrNoState = errors.New("the tile store holds no log")
	// ErrFrozen says that the tree takes no entries, ErrDraining that it takes no
	// new ones and still orders those it has.
	ErrFrozen   = errors.New("the Trillian tree is FROZEN: it takes no entries")
	ErrDraining = errors.New("the Trillian tree is DRAINING: it takes no new entries")
	// ErrPreordered says that the tree is of type PREORDERED_LOG: an import into
	// it was not finished.
	ErrPreordered = errors.New("the Trillian tree is a PREORDERED_LOG: its import is not finished")
	// ErrNoTree says that Trillian has no such tree, or has deleted it.
	ErrNoTree = errors.New("Trillian has no such tree")
	// ErrIDTaken says that another leaf was queued under the same ID.
	ErrIDTaken = errors.New("another leaf was queued under this ID")
	// ErrUncertain says that an entry may or may not be logged. Queueing it again
	// under its ID logs it exactly once.
	ErrUncertain = errors.New("whether the entry is logged is uncertain")
	// ErrBadLeaf says that a leaf is empty, which Trillian refuses, or longer than
	// an entry bundle can hold.
	ErrBadLeaf = fmt.Errorf("a leaf has 1 to %d bytes", maxLeaf)
)

const maxLeaf = 1<<16 - 1

// RootError says that the leaves that Trillian returned do not give its root:
// ours at Size is not that of Trillian's tree, whose root at TheirSize, the same
// size or a later one, is Theirs.
type RootError struct {
	Size, TheirSize uint64
	Ours, Theirs    [32]byte
}

func (e *RootError) Error() string {
	return fmt.Sprintf("the leaves and tiles give the root %x at size %d, which does not fit Trillian's root %x at size %d: %v; stop, and compare the database with the tiles", e.Ours, e.Size, e.Theirs, e.TheirSize, ErrTampering)
}

// Is makes it an ErrTampering.
func (e *RootError) Is(target error) bool { return target == ErrTampering }

// BackError says that Trillian's tree is smaller than what was integrated.
type BackError struct{ Integrated, Theirs uint64 }

func (e *BackError) Error() string {
	return fmt.Sprintf("Trillian's tree has %d entries, %d were integrated: %v; its database lost confirmed transactions (restored, promoted from an asynchronous standby, or synchronous_commit=off)", e.Theirs, e.Integrated, ErrTampering)
}

// Is makes it an ErrTampering.
func (e *BackError) Is(target error) bool { return target == ErrTampering }

// LeafError says that a leaf that Trillian returned cannot be the one it sequenced.
type LeafError struct {
	Index uint64
	Why   string
}

func (e *LeafError) Error() string {
	return fmt.Sprintf("leaf %d of Trillian %s: %v", e.Index, e.Why, ErrTampering)
}

// Is makes it an ErrTampering.
func (e *LeafError) Is(target error) bool { return target == ErrTampering }

// StateError says that the tile store's own files do not fit together, or belong
// to another tree.
type StateError struct{ Why string }

func (e *StateError) Error() string {
	return fmt.Sprintf("the tile store: %s: %v", e.Why, ErrTampering)
}

// Is makes it an ErrTampering.
func (e *StateError) Is(target error) bool { return target == ErrTampering }

// Driver drives one tree. It is a tessera.Driver. Any number of processes may
// have one; Integrate is for one at a time.
type Driver struct {
	cfg   Config
	log   trillian.TrillianLogClient
	admin trillian.TrillianAdminClient

	mu      sync.Mutex
	latched error                    // guarded by mu; the first ErrTampering
	waiting map[[32]byte]chan<- told // guarded by mu; entries added here and not yet integrated
	head    uint64                   // guarded by mu; Trillian's size, as last seen
	size    struct {                 // guarded by mu; the integrated size
		n    uint64
		seen time.Time // zero while this process integrates: then n is exact
		own  bool
	}
}

type told struct {
	index uint64
	err   error
}

// New makes a driver. It does not look at Trillian or the store.
func New(cfg Config) (*Driver, error) {
	switch {
	case cfg.Conn == nil:
		return nil, errors.New("trillian: no connection")
	case cfg.TreeID == 0:
		return nil, errors.New("trillian: no tree ID")
	case cfg.Store == nil:
		return nil, errors.New("trillian: no tile store")
	}
	if cfg.Poll == 0 {
		cfg.Poll = 20 * time.Millisecond
	}
	if cfg.Queuers == 0 {
		cfg.Queuers = 64
	}
	if cfg.QueueFor == 0 {
		cfg.QueueFor = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Record == nil {
		cfg.Record = func(context.Context, Batch) error { return nil }
	}
	if cfg.Grown == nil {
		cfg.Grown = func(uint64) {}
	}
	return &Driver{cfg: cfg, waiting: map[[32]byte]chan<- told{},
		log: trillian.NewTrillianLogClient(cfg.Conn), admin: trillian.NewTrillianAdminClient(cfg.Conn)}, nil
}

// Dial connects to a Trillian log server, or to several by a gRPC target that
// names them. It comes back within a second or two when the server does; gRPC
// alone would wait up to two minutes. creds may be
// insecure.NewCredentials on a private network: Trillian has no access control
// of its own.
func Dial(target string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	b := backoff.DefaultConfig
	b.BaseDelay, b.MaxDelay = 50*time.Millisecond, 2*time.Second
	opts = append([]grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: 2 * time.Second})}, opts...)
	return grpc.NewClient(target, opts...)
}

const (
	// callLimit bounds one call of Trillian.
	callLimit = 10 * time.Second
	// maxMessage bounds an answer: a batch of the longest leaves.
	maxMessage = leavesPerCall * (maxLeaf + 1024)
)

// tree reads the tree's type and state.
func (d *Driver) tree(ctx context.Context) (*trillian.Tree, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	t, err := d.admin.GetTree(ctx, &trillian.GetTreeRequest{TreeId: d.cfg.TreeID})
	if status.Code(err) == codes.NotFound || err == nil && t.Deleted {
		return nil, fmt.Errorf("%w: %d", ErrNoTree, d.cfg.TreeID)
	}
	if err != nil {
		return nil, fmt.Errorf("trillian: %w", err)
	}
	return t, nil
}

// Check says whether the tree takes entries: nil, ErrFrozen, ErrDraining,
// ErrPreordered, ErrNoTree, or trouble.
func (d *Driver) Check(ctx context.Context) error {
	t, err := d.tree(ctx)
	if err != nil {
		return err
	}
	return takesEntries(t)
}

func takesEntries(t *trillian.Tree) error {
	switch {
	case t.TreeType == trillian.TreeType_PREORDERED_LOG:
		return ErrPreordered
	case t.TreeType != trillian.TreeType_LOG:
		return fmt.Errorf("%w: tree %d is a %v", ErrNoTree, t.TreeId, t.TreeType)
	case t.TreeState == trillian.TreeState_FROZEN:
		return ErrFrozen
	case t.TreeState == trillian.TreeState_DRAINING:
		return ErrDraining
	}
	return nil
}

// Head is Trillian's newest tree head.
func (d *Driver) Head(ctx context.Context) (Root, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := d.log.GetLatestSignedLogRoot(ctx, &trillian.GetLatestSignedLogRootRequest{LogId: d.cfg.TreeID})
	if status.Code(err) == codes.NotFound {
		return Root{}, fmt.Errorf("%w: %d", ErrNoTree, d.cfg.TreeID)
	}
	if err != nil {
		return Root{}, fmt.Errorf("trillian: %w", err)
	}
	var root types.LogRootV1
	if err := root.UnmarshalBinary(r.GetSignedLogRoot().GetLogRoot()); err != nil {
		return Root{}, fmt.Errorf("trillian: its root: %w", err)
	}
	if len(root.RootHash) != 32 {
		return Root{}, fmt.Errorf("trillian: its root hash has %d bytes", len(root.RootHash))
	}
	d.mu.Lock()
	d.head = max(d.head, root.TreeSize)
	d.mu.Unlock()
	return Root{root.TreeSize, [32]byte(root.RootHash)}, nil
}

// Latched is the ErrTampering that this driver has seen, if any.
func (d *Driver) Latched() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.latched
}

// latch keeps the first ErrTampering and returns err.
func (d *Driver) latch(err error) error {
	if errors.Is(err, ErrTampering) {
		d.mu.Lock()
		if d.latched == nil {
			d.latched = err
		}
		d.mu.Unlock()
	}
	return err
}

// Reader reads tiles, bundles and the integrated size, in any process.
// ReadCheckpoint always fails with fs.ErrNotExist here: publishing is the
// caller's.
func (d *Driver) Reader() tessera.LogReader { return reader{d} }

type reader struct{ d *Driver }

// ReadCheckpoint implements tessera.LogReader.
func (r reader) ReadCheckpoint(context.Context) ([]byte, error) { return nil, fs.ErrNotExist }

// ReadTile implements tessera.LogReader. A request for a partial tile may be
// answered with a wider one.
func (r reader) ReadTile(ctx context.Context, level, index uint64, p uint8) ([]byte, error) {
	return getWide(ctx, r.d.cfg.Store, p, func(p uint8) string { return layout.TilePath(level, index, p) })
}

// ReadEntryBundle implements tessera.LogReader, as ReadTile does.
func (r reader) ReadEntryBundle(ctx context.Context, index uint64, p uint8) ([]byte, error) {
	return getWide(ctx, r.d.cfg.Store, p, func(p uint8) string { return layout.EntriesPath(index, p) })
}

// getWide reads a partial tile or bundle, or the full one where the partial one
// is not or no longer there.
func getWide(ctx context.Context, s Store, p uint8, name func(p uint8) string) ([]byte, error) {
	raw, err := s.Get(ctx, name(p))
	if p != 0 && errors.Is(err, fs.ErrNotExist) {
		return s.Get(ctx, name(0))
	}
	return raw, err
}

// NextIndex implements tessera.LogReader: Trillian's size, as last seen here.
func (r reader) NextIndex(ctx context.Context) (uint64, error) {
	size, err := r.IntegratedSize(ctx)
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	return max(size, r.d.head), err
}

// IntegratedSize implements tessera.LogReader. In a process that does not
// integrate it is read from the store, at most once in Config.Poll.
func (r reader) IntegratedSize(ctx context.Context) (uint64, error) {
	d := r.d
	d.mu.Lock()
	n, fresh := d.size.n, d.size.own || time.Since(d.size.seen) < d.cfg.Poll
	d.mu.Unlock()
	if fresh {
		return n, nil
	}
	s, _, err := d.readState(ctx)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.size.own {
		d.size.n, d.size.seen = max(d.size.n, s.Size), time.Now()
	}
	return d.size.n, nil
}
