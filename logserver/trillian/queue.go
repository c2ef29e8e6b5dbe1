package trillian

// Queueing: entries go to Trillian under an ID, and Trillian takes each ID once.

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/trillian"
	"github.com/transparency-dev/tessera"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Queue hands a leaf to Trillian under an ID. Once it returns nil the leaf is in
// Trillian's database and will be sequenced, once, however often and by however
// many it is queued under this ID: so a frontend keeps the ID durably before it
// queues, and after a crash anyone queues it again. IDs are 32 bytes that nobody
// else uses; they are in no tile. Two entries with equal bytes and different IDs
// are logged twice: deduplication is the caller's.
//
// It fails with ErrFrozen, ErrDraining, ErrPreordered, ErrNoTree, ErrBadLeaf and
// ErrIDTaken where trying again does not help, with an ErrTampering once this
// driver has seen one, and else with an ErrUncertain.
func (d *Driver) Queue(ctx context.Context, id [32]byte, leaf []byte) error {
	_, err := d.queue(ctx, id, leaf)
	return err
}

// queue is Queue, and says whether the ID was known.
func (d *Driver) queue(ctx context.Context, id [32]byte, leaf []byte) (known bool, err error) {
	if len(leaf) == 0 || len(leaf) > maxLeaf {
		return false, fmt.Errorf("%w: this one has %d", ErrBadLeaf, len(leaf))
	}
	if err := d.Latched(); err != nil {
		return false, err
	}
	r, err := d.queueLeaf(ctx, id, leaf)
	// On MySQL and MariaDB the second of two that queue one ID at the same time
	// does not see the first's row ("failed to retrieve all existing leaves"); the
	// next try does.
	for try := 0; status.Code(err) == codes.Unknown && try < 3 && sleep(ctx, 10*time.Millisecond<<try); try++ {
		r, err = d.queueLeaf(ctx, id, leaf)
	}
	if err != nil {
		return false, d.notQueued(ctx, err)
	}
	switch c := codes.Code(r.GetQueuedLeaf().GetStatus().GetCode()); c {
	case codes.OK:
		return false, nil
	case codes.AlreadyExists:
		if have := r.GetQueuedLeaf().GetLeaf().GetLeafValue(); !bytes.Equal(have, leaf) {
			return true, fmt.Errorf("%w: %x", ErrIDTaken, id)
		}
		return true, nil
	default:
		return false, fmt.Errorf("%w: trillian: %v: %s", ErrUncertain, c, r.GetQueuedLeaf().GetStatus().GetMessage())
	}
}

func (d *Driver) queueLeaf(ctx context.Context, id [32]byte, leaf []byte) (*trillian.QueueLeafResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return d.log.QueueLeaf(ctx, &trillian.QueueLeafRequest{LogId: d.cfg.TreeID, Leaf: &trillian.LogLeaf{LeafValue: leaf, LeafIdentityHash: id[:]}},
		grpc.MaxCallRecvMsgSize(maxMessage))
}

// notQueued is what an error of QueueLeaf means.
func (d *Driver) notQueued(ctx context.Context, err error) error {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition:
		// The state or the type of the tree, most likely: its words come from there.
		if why := d.Check(ctx); errors.Is(why, ErrFrozen) || errors.Is(why, ErrDraining) || errors.Is(why, ErrPreordered) || errors.Is(why, ErrNoTree) {
			return why
		}
	}
	return fmt.Errorf("%w: trillian: %w", ErrUncertain, err)
}

// Find looks up the index of an entry that was queued under an ID, in what
// Trillian has sequenced; ok is false if it is not there (yet). It needs no
// table of IDs, only Trillian, and is slower than one. The index may be at or
// above the integrated size.
func (d *Driver) Find(ctx context.Context, id [32]byte, leaf []byte) (index uint64, ok bool, err error) {
	head, err := d.Head(ctx)
	if err != nil || head.Size == 0 {
		return 0, false, err
	}
	hash := tlog.RecordHash(leaf)
	call, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := d.log.GetInclusionProofByHash(call, &trillian.GetInclusionProofByHashRequest{
		LogId: d.cfg.TreeID, LeafHash: hash[:], TreeSize: int64(head.Size), OrderBySequence: true})
	if status.Code(err) == codes.NotFound {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("trillian: %w", err)
	}
	for _, p := range r.GetProof() { // one for each entry with these bytes
		l, err := d.leaves(ctx, uint64(p.LeafIndex), uint64(p.LeafIndex)+1)
		if err != nil {
			return 0, false, d.latch(err)
		}
		if bytes.Equal(l[0].LeafIdentityHash, id[:]) {
			return uint64(p.LeafIndex), true, nil
		}
	}
	return 0, false, nil
}

type idKey struct{}

// WithID gives Appender.Add the ID to queue the entry under. Without one it
// makes a random one, and an entry whose Add was cut short by the end of the
// process may be logged without anyone knowing.
func WithID(ctx context.Context, id [32]byte) context.Context {
	return context.WithValue(ctx, idKey{}, id)
}

// Appender implements what tessera.NewAppender asks of a driver: entries are
// added, and integrated, in this process. It takes the integration over from any
// other one; for several processes that elect one of them, see Queue and
// Integrate. Checkpoints by Tessera's signer are kept in memory and never
// written: what is published is the caller's. Its goroutines end with ctx.
func (d *Driver) Appender(ctx context.Context, opts *tessera.AppendOptions) (*tessera.Appender, tessera.LogReader, error) {
	if err := d.Check(ctx); err != nil && !errors.Is(err, ErrFrozen) && !errors.Is(err, ErrDraining) {
		return nil, nil, err // a frozen tree can be read
	}
	in := &integrator{d: d, record: d.cfg.Record, grown: d.cfg.Grown}
	if err := in.begin(ctx); err != nil {
		in.stop()
		return nil, nil, d.latch(err)
	}
	outstanding := int(opts.PushbackMaxOutstanding())
	if outstanding == 0 {
		outstanding = tessera.DefaultPushbackMaxOutstanding
	}
	a := &appender{reader: reader{d}, d: d, queue: make(chan *added, outstanding)}
	go func() {
		defer in.stop()
		a.end(d.latch(in.run(ctx)))
	}()
	for range d.cfg.Queuers {
		go a.send(ctx)
	}
	go a.sign(ctx, opts.CheckpointPublisher(a, nil), opts.CheckpointInterval())
	return &tessera.Appender{Add: a.add}, a, nil
}

// appender is the appending side of a driver.
type appender struct {
	reader
	d     *Driver
	queue chan *added // as many as may be waited for, so that sending never blocks
	over  error       // guarded by d.mu; why the integration has ended

	mu         sync.Mutex
	checkpoint []byte // guarded by mu
}

type added struct {
	id   [32]byte
	leaf []byte
	done chan told // of one
}

// add implements tessera.AddFn.
func (a *appender) add(ctx context.Context, e *tessera.Entry) tessera.IndexFuture {
	w := &added{leaf: e.Data(), done: make(chan told, 1)}
	var given bool
	if w.id, given = ctx.Value(idKey{}).([32]byte); !given {
		rand.Read(w.id[:])
	}
	if err := a.expect(w); err != nil {
		return func() (tessera.Index, error) { return tessera.Index{}, err }
	}
	a.queue <- w
	return sync.OnceValues(func() (tessera.Index, error) {
		r := <-w.done
		return tessera.Index{Index: r.index}, r.err
	})
}

// expect registers an entry to be told of.
func (a *appender) expect(w *added) error {
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	switch {
	case a.over != nil:
		return a.over
	case a.d.waiting[w.id] != nil:
		return fmt.Errorf("%w: it is being added", ErrIDTaken)
	case len(a.d.waiting) >= cap(a.queue):
		return fmt.Errorf("%w: %d entries are on their way to Trillian", tessera.ErrPushbackIntegration, cap(a.queue))
	}
	a.d.waiting[w.id] = w.done
	return nil
}

// fail tells an adder that its entry could not be queued.
func (a *appender) fail(w *added, err error) {
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	if a.d.waiting[w.id] == w.done { // else it was told already
		delete(a.d.waiting, w.id)
		w.done <- told{err: err}
	}
}

// end tells every adder that nobody will tell it more.
func (a *appender) end(why error) {
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	a.over = fmt.Errorf("%w: the integration has ended: %w", ErrUncertain, why)
	for _, w := range a.d.waiting {
		w <- told{err: a.over}
	}
	clear(a.d.waiting)
}

// send queues entries, one at a time.
func (a *appender) send(ctx context.Context) {
	for {
		select {
		case w := <-a.queue:
			if err := a.sendOne(ctx, w); err != nil {
				a.fail(w, err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// sendOne queues an entry, trying again while whether it is queued is uncertain.
// The integrator tells the adder; sendOne does only of an ID that was integrated
// before.
func (a *appender) sendOne(ctx context.Context, w *added) error {
	pause := leastPause
	for deadline := time.Now().Add(a.d.cfg.QueueFor); ; {
		known, err := a.d.queue(ctx, w.id, w.leaf)
		if err == nil && known {
			err = a.find(ctx, w)
		}
		if err == nil || !errors.Is(err, ErrUncertain) {
			return err
		}
		if time.Now().Add(pause).After(deadline) || !sleep(ctx, pause) {
			return err
		}
		pause = min(2*pause, mostPause)
	}
}

// find settles an entry whose ID Trillian knew already: our own earlier attempt,
// or one of a process before us. If it is integrated the adder is told; if not,
// the integrator will tell.
func (a *appender) find(ctx context.Context, w *added) error {
	index, ok, err := a.d.Find(ctx, w.id, w.leaf)
	if err != nil {
		if errors.Is(err, ErrTampering) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	if !ok {
		return nil
	}
	a.d.mu.Lock()
	defer a.d.mu.Unlock()
	if a.d.waiting[w.id] == w.done && index < a.d.size.n {
		delete(a.d.waiting, w.id)
		w.done <- told{index: index}
	}
	return nil
}

// ReadCheckpoint implements tessera.LogReader: the newest checkpoint by
// Tessera's own signer, from memory.
func (a *appender) ReadCheckpoint(context.Context) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.checkpoint == nil {
		return a.reader.ReadCheckpoint(context.Background())
	}
	return a.checkpoint, nil
}

// sign keeps a checkpoint of the integrated tree.
func (a *appender) sign(ctx context.Context, sign func(context.Context, uint64, []byte) ([]byte, error), every time.Duration) {
	var last uint64
	for first := true; ; first = false {
		s, _, err := a.d.readState(ctx)
		if err == nil && (first || s.Size > last) {
			var cp []byte
			if cp, err = sign(ctx, s.Size, s.Root[:]); err == nil {
				last = s.Size
				a.mu.Lock()
				a.checkpoint = cp
				a.mu.Unlock()
			}
		}
		if err != nil && ctx.Err() == nil {
			a.d.cfg.Logger.Warn("no checkpoint for Tessera", "err", err)
		}
		if !sleep(ctx, every) {
			return
		}
	}
}
