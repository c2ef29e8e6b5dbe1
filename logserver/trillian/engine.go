package trillian

import (
	"context"
	"fmt"

	"github.com/google/trillian"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
)

// CheckpointName is the object of the public checkpoint, beside the tiles.
const CheckpointName = "checkpoint"

// Engine is a Driver as a log with many frontends wants it: entries are queued by
// any process, integrated by the one that was elected, and the public checkpoint
// stands beside the tiles. Config.Record and Config.Grown are not used.
type Engine struct {
	d     *Driver
	close func() error
}

// NewEngine makes an engine of a driver. close, which may be nil, is called by
// Close: it ends the connection.
func NewEngine(d *Driver, close func() error) *Engine { return &Engine{d, close} }

// Name tells the tree from every other; it is the same in every process.
func (e *Engine) Name() string { return fmt.Sprintf("Trillian tree %d", e.d.cfg.TreeID) }

// Queue is Driver.Queue.
func (e *Engine) Queue(ctx context.Context, id [32]byte, leaf []byte) error {
	return e.d.Queue(ctx, id, leaf)
}

// Head is the size of what Trillian has ordered.
func (e *Engine) Head(ctx context.Context) (uint64, error) {
	head, err := e.d.Head(ctx)
	return head.Size, err
}

// Integrate is Driver.Integrate. record is called with each batch as
// Config.Record is, grown as Config.Grown is; both may be called again for what
// they were called for before.
func (e *Engine) Integrate(ctx context.Context, fence uint64, record func(ctx context.Context, first uint64, ids [][32]byte, leaves [][]byte) error, grown func(size uint64)) error {
	return e.d.integrate(ctx, fence, func(ctx context.Context, b Batch) error { return record(ctx, b.First, b.IDs, b.Leaves) }, grown)
}

// ReadTile is LogReader's.
func (e *Engine) ReadTile(ctx context.Context, level, index uint64, p uint8) ([]byte, error) {
	return e.d.Reader().ReadTile(ctx, level, index, p)
}

// ReadEntryBundle is LogReader's.
func (e *Engine) ReadEntryBundle(ctx context.Context, index uint64, p uint8) ([]byte, error) {
	return e.d.Reader().ReadEntryBundle(ctx, index, p)
}

// CollectGarbage is Driver.CollectGarbage.
func (e *Engine) CollectGarbage(ctx context.Context, published uint64) error {
	return e.d.CollectGarbage(ctx, published)
}

// ReadCheckpoint reads the public checkpoint; fs.ErrNotExist if there is none.
func (e *Engine) ReadCheckpoint(ctx context.Context) ([]byte, error) {
	return e.d.cfg.Store.Get(ctx, CheckpointName)
}

// WriteCheckpoint replaces the public checkpoint if it is was (nil: absent);
// ErrChanged if it is not.
func (e *Engine) WriteCheckpoint(ctx context.Context, was, raw []byte) error {
	return e.d.cfg.Store.Swap(ctx, CheckpointName, was, raw)
}

// Close ends the connection.
func (e *Engine) Close() error {
	if e.close == nil {
		return nil
	}
	return e.close()
}

// CreateTree makes an empty tree that takes entries, and returns its ID.
func CreateTree(ctx context.Context, conn grpc.ClientConnInterface) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*callLimit)
	defer cancel()
	tree, err := trillian.NewTrillianAdminClient(conn).CreateTree(ctx, &trillian.CreateTreeRequest{Tree: &trillian.Tree{
		TreeState: trillian.TreeState_ACTIVE, TreeType: trillian.TreeType_LOG, DisplayName: "portbook", MaxRootDuration: durationpb.New(0)}})
	if err != nil {
		return 0, fmt.Errorf("trillian: %w", err)
	}
	if _, err := trillian.NewTrillianLogClient(conn).InitLog(ctx, &trillian.InitLogRequest{LogId: tree.TreeId}); err != nil {
		return 0, fmt.Errorf("trillian: the tree %d is made and not initialised: %w", tree.TreeId, err)
	}
	return tree.TreeId, nil
}
