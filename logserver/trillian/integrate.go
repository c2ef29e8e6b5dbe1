package trillian

// Integration: Trillian's sequenced leaves become tiles, in one process at a time.
//
// What fences what: the state object holds the integrated size and root and the
// token of whoever integrates, and is changed by compare-and-swap alone. A new
// integrator begins by writing its token, which makes every later swap of an
// older one fail. What an older one may still do, writing tiles, does no harm:
// in one tree a tile has one content, and Create overwrites nothing.

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"github.com/google/trillian"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The objects of a store that are not tiles.
const (
	stateName     = ".state/integrated"
	collectedName = ".state/collected"
)

// leavesPerCall is how many leaves Trillian is asked for at once.
const leavesPerCall = 512

// leavesPerStep is how many leaves are integrated at once, at most, when there
// are more: it bounds memory. Tests lower it.
var leavesPerStep uint64 = 8192

// state is the state object.
type state struct {
	TreeID int64
	Size   uint64 // integrated: all tiles and bundles of this size are there
	Root   [32]byte
	Token  uint64 // of who may advance it
}

type stateText struct {
	Tree  string `json:"tree"`
	Size  uint64 `json:"size"`
	Root  string `json:"root"`
	Token uint64 `json:"token"`
}

func (s state) marshal() []byte {
	raw, err := json.Marshal(stateText{strconv.FormatInt(s.TreeID, 10), s.Size, hex.EncodeToString(s.Root[:]), s.Token})
	if err != nil {
		panic(err) // it has strings and numbers alone
	}
	return append(raw, '\n')
}

func parseState(raw []byte) (s state, err error) {
	var t stateText
	if err := json.Unmarshal(raw, &t); err != nil {
		return s, err
	}
	root, err := hex.DecodeString(t.Root)
	if err != nil || len(root) != 32 {
		return s, fmt.Errorf("root %q", t.Root)
	}
	if s.TreeID, err = strconv.ParseInt(t.Tree, 10, 64); err != nil {
		return s, err
	}
	s.Size, s.Root, s.Token = t.Size, [32]byte(root), t.Token
	if !bytes.Equal(s.marshal(), raw) {
		return s, errors.New("not in canonical form")
	}
	return s, nil
}

// readState reads the state object, and its bytes.
func (d *Driver) readState(ctx context.Context) (state, []byte, error) {
	raw, err := d.cfg.Store.Get(ctx, stateName)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil, fmt.Errorf("%w: %s is absent: make a log, mount what holds the tiles, or restore it", ErrNoState, stateName)
	}
	if err != nil {
		return state{}, nil, fmt.Errorf("the tile store: %w", err)
	}
	s, err := parseState(raw)
	if err != nil {
		return state{}, nil, &StateError{fmt.Sprintf("%s cannot be read: %v", stateName, err)}
	}
	if s.TreeID != d.cfg.TreeID {
		return state{}, nil, &StateError{fmt.Sprintf("its tiles are of Trillian's tree %d, not of %d", s.TreeID, d.cfg.TreeID)}
	}
	return s, raw, nil
}

// Init makes an empty log: the tree must be empty and take entries, and the
// store must hold no log. A log is made once.
func Init(ctx context.Context, cfg Config) error {
	d, err := New(cfg)
	if err != nil {
		return err
	}
	if err := d.Check(ctx); err != nil {
		return err
	}
	head, err := d.Head(ctx)
	if err != nil {
		return err
	}
	if head.Size != 0 {
		return fmt.Errorf("Trillian's tree %d has %d entries: a new log begins with an empty tree", cfg.TreeID, head.Size)
	}
	return d.initState(ctx)
}

func (d *Driver) initState(ctx context.Context) error {
	err := d.cfg.Store.Swap(ctx, stateName, nil, state{TreeID: d.cfg.TreeID, Root: emptyRoot}.marshal())
	if errors.Is(err, ErrChanged) {
		return fmt.Errorf("the tile store holds a log already: a log is made once; choose another place")
	}
	return err
}

// Integrate turns what Trillian has sequenced into tiles until ctx ends or
// another process takes over, and returns why. token must be larger than that
// of every integrator before; the same token may come back. 0 takes the next
// one: that is for a process that knows itself to be the only one.
//
// It begins by comparing the tiles with the integrated root, and Trillian's tree
// with both. Passing trouble (Trillian, its database, the store or Record cannot
// be reached) is logged and waited for. An ErrTampering, an ErrFenced, an
// ErrNoState and an ErrNoTree are returned.
func (d *Driver) Integrate(ctx context.Context, token uint64) error {
	return d.integrate(ctx, token, d.cfg.Record, d.cfg.Grown)
}

func (d *Driver) integrate(ctx context.Context, token uint64, record func(context.Context, Batch) error, grown func(uint64)) error {
	if err := d.Latched(); err != nil {
		return err
	}
	in := &integrator{d: d, token: token, record: record, grown: grown}
	defer in.stop()
	return d.latch(in.run(ctx))
}

// integrator is one call of Integrate. It is used by one goroutine.
type integrator struct {
	d      *Driver
	token  uint64
	record func(context.Context, Batch) error
	grown  func(uint64)

	edge  *edge    // nil: to be read from the store
	root  [32]byte // of edge
	state []byte   // the state object as we left it
	told  uint64   // Adds of this process were told up to here
	began bool     // told has been set

	until uint64 // if not 0, integrate no further
	keep  bool   // leave the token as it is: nobody else can be at work
}

const (
	leastPause = 50 * time.Millisecond
	mostPause  = time.Second
)

func (in *integrator) run(ctx context.Context) error {
	pause, trouble := leastPause, false
	for {
		grew, err := in.step(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			if trouble {
				in.d.cfg.Logger.Info("the integration goes on")
			}
			pause, trouble = leastPause, false
			if in.until != 0 && in.edge.size >= in.until {
				return nil
			}
			if !grew && !sleep(ctx, in.d.cfg.Poll) {
				return ctx.Err()
			}
		case errors.Is(err, ErrTampering), errors.Is(err, ErrFenced), errors.Is(err, ErrNoState), errors.Is(err, ErrNoTree):
			return err
		default:
			// What was written is uncertain: begin again from what the store has.
			in.edge = nil
			if !trouble {
				in.d.cfg.Logger.Warn("the integration waits", "err", err)
			}
			trouble = true
			if !sleep(ctx, pause) {
				return ctx.Err()
			}
			pause = min(2*pause, mostPause)
		}
	}
}

// stop ends the integrator's say on the size in this process.
func (in *integrator) stop() {
	d := in.d
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size.own, d.size.seen = false, time.Time{}
}

// begin takes over the integration and reads the edge of the tree.
func (in *integrator) begin(ctx context.Context) error {
	d := in.d
	s, raw, err := d.readState(ctx)
	if err != nil {
		return err
	}
	if in.keep {
		in.token = s.Token
	} else if in.token == 0 {
		in.token = s.Token + 1
	}
	if s.Token > in.token {
		return fmt.Errorf("%w: token %d was used, ours is %d", ErrFenced, s.Token, in.token)
	}
	if s.Token < in.token {
		s.Token = in.token
		next := s.marshal()
		if err := d.cfg.Store.Swap(ctx, stateName, raw, next); err != nil {
			if errors.Is(err, ErrChanged) {
				return fmt.Errorf("the integrated size changed while taking over: %v", err) // look again who it was
			}
			return err
		}
		raw = next
	}
	e, err := loadEdge(ctx, d.cfg.Store, s.Size, s.Root)
	if err != nil {
		return err
	}
	if in.began {
		if err := in.tellTo(ctx, s.Size); err != nil {
			return err
		}
	}
	// A store that let an older state come back (see Dir.Swap) is integrated once
	// more, to the same tiles; the size that is told does not go back.
	back := in.began && s.Size < in.told
	in.edge, in.root, in.state, in.told, in.began = e, s.Root, raw, max(in.told, s.Size), true
	if !back {
		d.settle(s.Size, nil)
		in.grown(s.Size)
	}
	return nil
}

// tellTo tells the Adds of this process whose entries were integrated by a step
// that did not hear of its own success.
func (in *integrator) tellTo(ctx context.Context, size uint64) error {
	for in.told < size {
		leaves, err := in.d.leaves(ctx, in.told, min(size, in.told+leavesPerStep))
		if err != nil {
			return err
		}
		in.d.settle(in.told, leaves)
		in.told += uint64(len(leaves))
	}
	return nil
}

// settle makes first + len(leaves) the integrated size in this process, and
// resolves the Adds that the leaves settle, in one step.
func (d *Driver) settle(first uint64, leaves []*trillian.LogLeaf) {
	size := first + uint64(len(leaves))
	d.mu.Lock()
	d.size.n, d.size.own = size, true
	for i, l := range leaves {
		id := [32]byte(l.LeafIdentityHash)
		if w := d.waiting[id]; w != nil {
			delete(d.waiting, id)
			w <- told{index: first + uint64(i)}
		}
	}
	d.mu.Unlock()
}

// step integrates what Trillian has sequenced since the last, or a part of it.
// It reports whether there was any.
func (in *integrator) step(ctx context.Context) (grew bool, err error) {
	d := in.d
	if in.edge == nil {
		if err := in.begin(ctx); err != nil {
			return false, err
		}
	}
	head, err := d.Head(ctx)
	if err != nil {
		return false, err
	}
	from, to := in.edge.size, head.Size
	switch {
	case to < from:
		return false, &BackError{from, to}
	case to == from:
		if in.root != head.Hash {
			return false, &RootError{to, to, in.root, head.Hash}
		}
		return false, nil
	}
	if in.until != 0 {
		if to = min(to, in.until); to <= from {
			return false, nil
		}
	}
	if to-from > leavesPerStep {
		to = (from + leavesPerStep) / tileWidth * tileWidth
	}
	leaves, err := d.leaves(ctx, from, to)
	if err != nil {
		return false, err
	}

	next := in.edge.clone()
	batch := Batch{First: from, IDs: make([][32]byte, len(leaves)), Leaves: make([][]byte, len(leaves))}
	var objects []Object
	emit := func(o Object) { objects = append(objects, o) }
	for i, l := range leaves {
		batch.IDs[i], batch.Leaves[i] = [32]byte(l.LeafIdentityHash), l.LeafValue
		next.append(l.LeafValue, tlog.Hash(l.MerkleLeafHash), emit) // leaves has compared it
	}
	next.partials(from, emit)
	batch.Root = next.root()
	if err := d.compare(ctx, to, batch.Root, head); err != nil {
		return false, err
	}

	if err := d.cfg.Store.Create(ctx, objects...); err != nil {
		return false, err
	}
	if err := in.record(ctx, batch); err != nil {
		return false, err
	}
	state := state{TreeID: d.cfg.TreeID, Size: to, Root: batch.Root, Token: in.token}.marshal()
	if err := d.cfg.Store.Swap(ctx, stateName, in.state, state); err != nil {
		// Whoever changed it has another token, or is we: begin looks which.
		return false, err
	}
	in.edge, in.root, in.state = next, batch.Root, state
	if to >= in.told {
		in.told = to
		d.settle(from, leaves)
		in.grown(to)
	}
	return true, nil
}

// compare refuses a root of ours at a size that is not the one of Trillian's
// tree, whose head it may be or come before.
func (d *Driver) compare(ctx context.Context, size uint64, ours [32]byte, head Root) error {
	if size == head.Size {
		if ours != head.Hash {
			return &RootError{size, size, ours, head.Hash}
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := d.log.GetConsistencyProof(ctx, &trillian.GetConsistencyProofRequest{
		LogId: d.cfg.TreeID, FirstTreeSize: int64(size), SecondTreeSize: int64(head.Size)})
	if err != nil {
		return fmt.Errorf("trillian: %w", err)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, size, head.Size, r.GetProof().GetHashes(), ours[:], head.Hash[:]); err != nil {
		var mismatch proof.RootMismatchError
		if errors.As(err, &mismatch) {
			return &RootError{size, head.Size, ours, head.Hash}
		}
		return fmt.Errorf("trillian: its consistency proof from %d to %d: %w", size, head.Size, err)
	}
	return nil
}

// leaves reads the sequenced leaves [from, to), in order.
func (d *Driver) leaves(ctx context.Context, from, to uint64) ([]*trillian.LogLeaf, error) {
	out := make([]*trillian.LogLeaf, 0, to-from)
	for from < to {
		call, cancel := context.WithTimeout(ctx, callLimit)
		r, err := d.log.GetLeavesByRange(call, &trillian.GetLeavesByRangeRequest{
			LogId: d.cfg.TreeID, StartIndex: int64(from), Count: int64(min(to-from, leavesPerCall))}, grpc.MaxCallRecvMsgSize(maxMessage))
		cancel()
		if status.Code(err) == codes.NotFound {
			return nil, fmt.Errorf("%w: %d", ErrNoTree, d.cfg.TreeID)
		}
		if err != nil {
			return nil, fmt.Errorf("trillian: %w", err)
		}
		if len(r.Leaves) == 0 {
			return nil, fmt.Errorf("trillian: its tree has more than %d entries, and it returned no entry %d", from, from)
		}
		for _, l := range r.Leaves {
			hash := tlog.RecordHash(l.LeafValue)
			switch {
			case l.LeafIndex != int64(from):
				return nil, &LeafError{from, fmt.Sprintf("came with index %d", l.LeafIndex)}
			case len(l.LeafValue) > maxLeaf:
				return nil, &LeafError{from, fmt.Sprintf("has %d bytes, more than an entry bundle can hold", len(l.LeafValue))}
			case len(l.LeafIdentityHash) != 32:
				return nil, &LeafError{from, fmt.Sprintf("has an ID of %d bytes", len(l.LeafIdentityHash))}
			case !bytes.Equal(hash[:], l.MerkleLeafHash):
				return nil, &LeafError{from, fmt.Sprintf("does not have the hash %x that was sequenced", l.MerkleLeafHash)}
			}
			out = append(out, l)
			from++
			if from == to {
				break
			}
		}
	}
	return out, nil
}

// CollectGarbage removes the partial tiles and bundles that a tree of size
// published has full ones for. published must be covered by a published
// checkpoint: whoever reads an older one is served the full ones.
func (d *Driver) CollectGarbage(ctx context.Context, published uint64) error {
	s, _, err := d.readState(ctx)
	if err != nil {
		return err
	}
	full := min(published, s.Size) / tileWidth // bundles
	raw, err := d.cfg.Store.Get(ctx, collectedName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// A hint alone: what was removed before is looked for once more without it.
	done, _ := strconv.ParseUint(string(raw), 10, 64)
	if done >= full {
		return nil
	}
	for i := done; i < full; i++ {
		prefixes := []string{layout.EntriesPath(i, 0) + ".p/", layout.TilePath(0, i, 0) + ".p/"}
		for level, n := uint64(1), i+1; n%tileWidth == 0; level++ {
			n /= tileWidth
			prefixes = append(prefixes, layout.TilePath(level, n-1, 0)+".p/")
		}
		for _, p := range prefixes {
			if err := d.cfg.Store.RemoveAll(ctx, p); err != nil {
				return err
			}
		}
	}
	err = d.cfg.Store.Swap(ctx, collectedName, raw, strconv.AppendUint(nil, full, 10))
	if errors.Is(err, ErrChanged) {
		return nil // somebody else has collected too
	}
	return err
}

// sleep reports whether ctx lived through it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
