package logserver

// The one publisher, for every driver:
//
//	integrated size ─▶ guard: leaves, tiles and anchor agree ─▶ anchor moved,
//	durably ─▶ sign ─▶ cosign by policy (fail closed) ─▶ public checkpoint ─▶
//	everyone waiting at or below that size
//
// See FAULTS rules 1, 2 and 5: nothing is signed without the guard, a guard
// that fails stops all writing for good, and times are the monotonic clock's.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/mod/sumdb/tlog"
)

// Published is a checkpoint that the log has published.
type Published struct {
	Size uint64
	Root [32]byte
	Note []byte    // the signed note with its cosignatures
	At   time.Time // when this server published it (monotonic); zero if another did
	// Quorum says that it satisfies the publish policy of now: only then is it
	// good for an acknowledgement.
	Quorum bool

	audits int               // how many of the policy's auditors have cosigned it
	span   trace.SpanContext // of the round that published it
}

// board holds the newest published checkpoint and wakes those who wait for it.
type board struct {
	mu      sync.Mutex
	latest  Published     // guarded by mu
	audited Published     // guarded by mu; the newest that auditors have cosigned, for proofs
	changed chan struct{} // guarded by mu; closed when latest changes
}

func newBoard() *board { return &board{changed: make(chan struct{})} }

func (b *board) get() (Published, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.latest, b.changed
}

func (b *board) set(p Published) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.latest = p
	b.keep(p)
	close(b.changed)
	b.changed = make(chan struct{})
}

// judge says anew whether the newest checkpoint has its quorum.
func (b *board) judge(quorum func(Published) bool) {
	p, _ := b.get()
	if p.Note == nil {
		return
	}
	p.Quorum = quorum(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.latest.Size != p.Size || !bytes.Equal(b.latest.Note, p.Note) {
		return // a newer one was published meanwhile, under the policy of its round
	}
	b.latest = p
	close(b.changed)
	b.changed = make(chan struct{})
}

// wait returns the first published checkpoint that covers index and has its
// quorum. Once stopped is closed there will be none.
func (b *board) wait(ctx context.Context, index uint64, stopped <-chan struct{}) (Published, error) {
	for {
		p, changed := b.get()
		if index < p.Size && p.Quorum {
			return p, nil
		}
		select {
		case <-changed:
		case <-stopped:
			if p, _ = b.get(); index < p.Size && p.Quorum {
				return p, nil
			}
			return p, errStopped
		case <-ctx.Done():
			return p, ctx.Err()
		}
	}
}

// publisher owns the anchor and the public checkpoint. Only its run goroutine
// signs.
type publisher struct {
	keys       *keyring
	quorum     atomic.Pointer[quorum] // replaced as a whole by Log.SetPolicy
	metrics    *metrics
	anchor     anchor
	size       func(context.Context) (uint64, error) // integrated size
	tree       func(size int64) tree                 // cached, for proofs
	fresh      func(size int64) tree                 // read from storage anew, for the guard
	publish    func(context.Context, []byte) error   // writes the public checkpoint, durably
	board      *board
	interval   time.Duration // between two checkpoints while the log grows
	republish  time.Duration // of an unchanged log, so that it stays fresh
	roundLimit time.Duration // one round of cosigning
	latch      func(error)
	latched    <-chan struct{} // closed once writing has stopped for good
	ended      chan struct{}   // closed when run has ended: nothing more will be published
	logger     *slog.Logger
	wake       chan struct{} // capacity 1: the tree has grown
	last       atomic.Uint64 // size of the log's last tree, once it ends; else 0
	publishing sync.Mutex    // held while the public checkpoint is replaced

	mu        sync.Mutex
	lastRound error // guarded by mu; why the last round did not publish, nil if it did
}

// quorum is the publish policy with the witnesses it names.
type quorum struct {
	policy    *c2sp.Policy
	witnesses []*cosigner
	auditors  []*auditor // asked after publication; none is in the policy's quorum
}

// guardError is a failed guard: nothing is signed, and writing stops for good.
type guardError struct{ err error }

func (e *guardError) Error() string { return "guard: " + e.err.Error() }
func (e *guardError) Unwrap() error { return e.err }

// run publishes until ctx ends. On the way out it publishes what is integrated,
// if the quorum answers within one round.
func (p *publisher) run(ctx context.Context) {
	defer close(p.ended)
	asking, stop := context.WithCancel(ctx)
	var audits sync.WaitGroup
	audits.Go(func() { p.auditing(asking) })
	defer func() { stop(); audits.Wait() }()
	backoff := time.Duration(0)
	last := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.latched:
			return
		case <-ctx.Done():
			final, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.roundLimit)
			defer cancel()
			var guard *guardError
			if err := p.round(final, false); errors.As(err, &guard) {
				p.latch(err)
			} else if err != nil && !errors.Is(err, errNothingNew) {
				p.logger.Warn("the last entries are not published yet; the next start publishes them", "err", err)
			}
			return
		case <-p.wake:
			if wait := max(p.interval, backoff) - time.Since(last); wait > 0 {
				if !sleep(ctx, wait) {
					continue
				}
			}
		case <-timer.C:
		}
		last = time.Now()
		err := p.round(ctx, true)
		var guard *guardError
		switch {
		case err == nil, errors.Is(err, errNothingNew):
			backoff = 0
		case errors.As(err, &guard):
			p.note(err)
			p.latch(err)
			return
		case errors.Is(err, errLatched):
			return
		default:
			if ctx.Err() == nil {
				p.logger.Warn("checkpoint not published; trying again", "err", err)
			}
			backoff = min(max(2*backoff, 250*time.Millisecond), 5*time.Second)
		}
		if !errors.Is(err, errNothingNew) {
			p.note(err)
		}
		if p.done() {
			p.awaitAudits(ctx)
			return
		}
		if backoff > 0 {
			timer.Reset(backoff)
		} else {
			timer.Reset(p.republish)
		}
	}
}

func (p *publisher) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastRound = err
}

// trouble is why the last round published nothing; nil if it did.
func (p *publisher) trouble() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastRound
}

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

// grown tells the publisher that there is something to publish.
func (p *publisher) grown() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

var errNothingNew = errors.New("nothing new to publish")

// round publishes the integrated tree if there is anything new about it.
func (p *publisher) round(ctx context.Context, refresh bool) error {
	size, err := p.size(ctx)
	if err != nil {
		return fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
	}
	if p.done() {
		return errNothingNew
	}
	was, _ := p.board.get()
	if size == was.Size && was.Quorum && (!refresh || !was.At.IsZero() && time.Since(was.At) < p.republish) {
		return errNothingNew
	}
	start := time.Now()
	ctx, span := tracer.Start(ctx, "publish", trace.WithAttributes(attribute.Int64("portbook.size", int64(size))))
	err = p.attempt(ctx, size)
	p.metrics.round(err, time.Since(start))
	endSpan(span, err)
	return err
}

// attempt signs the tree of the given size, gathers a quorum and publishes.
func (p *publisher) attempt(ctx context.Context, size uint64) error {
	note, cp, err := p.sign(ctx, int64(size))
	if err != nil {
		return err
	}
	raw, err := p.gather(ctx, note, cp)
	if err != nil {
		return err
	}
	p.publishing.Lock()
	defer p.publishing.Unlock()
	if err := p.publish(ctx, raw); err != nil {
		return fmt.Errorf("%w: public checkpoint: %w", ErrStorage, withoutPath(err))
	}
	p.board.set(Published{Size: cp.Size, Root: cp.Root, Note: raw, At: time.Now(), Quorum: true, audits: p.quorum.Load().audits(raw), span: trace.SpanContextFromContext(ctx)})
	return nil
}

// sign is the guarded signer: it signs the tree of the given size only if the
// tiles and leaves that readers will get make it an extension of the last tree
// that was signed, and only after the anchor says so.
func (p *publisher) sign(ctx context.Context, size int64) (*c2sp.Note, c2sp.Checkpoint, error) {
	fail := func(err error) (*c2sp.Note, c2sp.Checkpoint, error) {
		return nil, c2sp.Checkpoint{}, &guardError{err}
	}
	select {
	case <-p.latched:
		return nil, c2sp.Checkpoint{}, errLatched
	default:
	}
	last, err := p.anchor.check()
	if errors.Is(err, ErrStorage) {
		return nil, c2sp.Checkpoint{}, err
	}
	if err != nil {
		return fail(err)
	}
	if size < int64(last.size) {
		return fail(fmt.Errorf("%w: the log has %d entries, it has signed %d", ErrBehind, size, last.size))
	}
	t := p.fresh(size)
	t.ctx = ctx
	root, err := t.root()
	if err != nil {
		return p.guardRead(ctx, err)
	}
	proof, err := t.consistency(int64(last.size))
	if err != nil {
		return p.guardRead(ctx, err)
	}
	if err := c2sp.VerifyConsistency(last.size, uint64(size), proof, last.root, root); err != nil {
		return fail(fmt.Errorf("%w: the tiles of size %d do not extend the signed tree of size %d: %w", ErrBehind, size, last.size, err))
	}
	if err := errors.Join(leavesMatchTiles(t, int64(last.size)), tilesMatchTiles(t, int64(last.size))); errors.Is(err, errAfterEnd) {
		return fail(err)
	} else if err != nil {
		return p.guardRead(ctx, err)
	}
	next := last
	next.size, next.root = uint64(size), root
	if err := p.anchor.swap(next); errors.Is(err, ErrStorage) {
		return nil, c2sp.Checkpoint{}, err
	} else if err != nil {
		return fail(err)
	}
	cp := c2sp.Checkpoint{Origin: p.keys.origin, Size: uint64(size), Root: root}
	signing, cancel := context.WithTimeout(ctx, p.roundLimit)
	defer cancel()
	sigs, err := p.keys.sign(signing, cp)
	if err != nil {
		return nil, c2sp.Checkpoint{}, err
	}
	return &c2sp.Note{Text: cp.Text(), Sigs: sigs}, cp, nil
}

// guardRead sorts a read that failed during the guard: storage that holds the
// wrong thing is a failed guard, one that cannot be read right now is not.
func (p *publisher) guardRead(ctx context.Context, err error) (*c2sp.Note, c2sp.Checkpoint, error) {
	if ctx.Err() != nil {
		return nil, c2sp.Checkpoint{}, ctx.Err()
	}
	if errors.Is(err, errUnreadable) {
		return nil, c2sp.Checkpoint{}, &guardError{err}
	}
	return nil, c2sp.Checkpoint{}, fmt.Errorf("%w: %w", ErrStorage, err)
}

// leavesMatchTiles rehashes the entries [from, t.size) and compares them with
// the level 0 tiles: we do not sign a leaf whose bytes we cannot show. Nor do we
// sign one after the leaf that ends the log: the last one before from is looked
// at too.
func leavesMatchTiles(t tree, from int64) error {
	if from > 0 && from < t.size {
		from--
	}
	return t.each(from, func(index int64, leaf []byte) error {
		if err := t.matches(index, entry.LeafHash(leaf)); err != nil {
			return err
		}
		if index < t.size-1 && successorLeaf(leaf) != nil {
			return fmt.Errorf("entry %d of %d ends it: %w", index, t.size, errAfterEnd)
		}
		return nil
	})
}

// tilesMatchTiles compares each node above the level 0 tiles that came after
// from with the tile below it: a consistency proof vouches for the old part of
// a tree, and for nothing that is new in it.
func tilesMatchTiles(t tree, from int64) error {
	for level := 1; level*tileHeight < 63; level++ {
		end := t.size >> (level * tileHeight)
		if end == 0 {
			break
		}
		for index := from >> (level * tileHeight); index < end; index++ {
			above, err := t.tile(level, index/tileWidth)
			if err != nil {
				return err
			}
			below, err := t.tile(level-1, index)
			if err != nil {
				return err
			}
			last := below[tileHeight-1]
			if above[0][index%tileWidth] != tlog.NodeHash(last[0], last[1]) {
				return fmt.Errorf("%w: tile %d/%d does not hash to its node in the tile above", errUnreadable, level-1, index)
			}
		}
	}
	return nil
}

// gather sends the signed note to every witness that is not busy and returns
// the note with cosignatures as soon as the policy is satisfied, giving those
// still under way a short grace. Below the quorum there is no note.
func (p *publisher) gather(ctx context.Context, note *c2sp.Note, cp c2sp.Checkpoint) ([]byte, error) {
	type answer struct {
		sigs []cosignature
		err  error
	}
	asking, cancel := context.WithTimeout(ctx, p.roundLimit)
	quorum := p.quorum.Load()
	answers := make(chan answer, len(quorum.witnesses))
	asked := 0
	var sending sync.WaitGroup
	t := p.tree(int64(cp.Size))
	// The signatures of all the log's keys: each witness ignores those that it
	// does not know (c2sp.org/tlog-witness).
	sent := &c2sp.Note{Text: note.Text, Sigs: slices.Clone(note.Sigs)}
	for _, w := range quorum.witnesses {
		if !w.busy.TryLock() {
			continue // the request of an earlier round is still under way
		}
		asked++
		sending.Go(func() {
			defer w.busy.Unlock()
			start := time.Now()
			ctx, span := tracer.Start(asking, "cosign", trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attribute.String("portbook.witness", w.name)))
			at := t
			at.ctx = ctx
			sigs, err := w.cosign(ctx, sent, cp, at.consistency)
			p.metrics.witness(w.name, err, time.Since(start))
			endSpan(span, err)
			answers <- answer{sigs, err}
			var claim *claimError
			if errors.As(err, &claim) {
				p.weigh(asking, w)
			}
		})
	}
	go func() { sending.Wait(); cancel() }()

	have := map[string]bool{}
	var problems []error
	start := time.Now()
	limit := time.NewTimer(p.roundLimit)
	defer limit.Stop()
	var grace <-chan time.Time
	for done := 0; done < asked; {
		select {
		case a := <-answers:
			done++
			if a.err != nil {
				problems = append(problems, a.err)
				continue
			}
			for _, c := range a.sigs {
				have[c.witness] = true
				note.Sigs = append(note.Sigs, c.sig)
			}
		case <-grace:
			done = asked
		case <-limit.C:
			done = asked
			problems = append(problems, fmt.Errorf("no quorum within %v", p.roundLimit))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if grace == nil && quorum.policy.Satisfied(have) {
			grace = time.After(min(max(time.Since(start)/4, 2*time.Millisecond), 100*time.Millisecond))
		}
	}
	p.carry(note, cp)
	raw := note.Bytes()
	// The published bytes must satisfy the very check that every reader makes.
	if _, err := quorum.policy.Verify(raw); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errors.Join(problems...))
	}
	return raw, nil
}

// weigh decides on a witness's unsigned claim to hold more than we showed it:
// only a checkpoint with our own signature counts, and then writing stops. The
// round does not wait for it: who claims may be slow to prove.
func (p *publisher) weigh(ctx context.Context, w *cosigner) {
	note, known, err := w.latest(ctx, p.keys.origin)
	if err != nil || !known {
		return // a claim without proof costs the witness its vote, not the log its life
	}
	size, err := p.size(ctx)
	if err != nil {
		return
	}
	t := p.fresh(int64(size))
	t.ctx = ctx
	var ahead *aheadError
	if err := contains(t, p.keys, "witness "+w.name, note); errors.As(err, &ahead) {
		p.latch(&guardError{ahead})
	}
}

// hearWitnesses waits until so many witnesses have shown what they hold that
// those unheard cannot form a quorum (n−k+1 of n), and checks all of it against
// the integrated tree. say is told why it still waits.
func (p *publisher) hearWitnesses(ctx context.Context, say func(error)) error {
	quorum := p.quorum.Load()
	if quorum.policy.Quorum == c2sp.QuorumNone {
		return nil
	}
	probe, cp, err := p.probe(ctx)
	if err != nil {
		return err
	}
	unheard := map[string]bool{}
	for _, w := range quorum.policy.Witnesses {
		unheard[w.Name] = true
	}
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		size, err := p.size(ctx)
		if err != nil {
			return fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
		}
		t := p.fresh(int64(size))
		t.ctx = ctx
		results := make([]error, len(quorum.witnesses))
		var asking sync.WaitGroup
		for i, w := range quorum.witnesses {
			if unheard[w.name] {
				asking.Go(func() { results[i] = w.hear(ctx, p.keys, t, probe, cp) })
			}
		}
		asking.Wait()
		var problems []error
		var claims bool
		for i, err := range results {
			var ahead *aheadError
			var claim *claimError
			switch {
			case errors.As(err, &ahead):
				return &guardError{err}
			case errors.As(err, &claim):
				claims = true
				problems = append(problems, err)
			case err != nil:
				problems = append(problems, err)
			default:
				for _, k := range quorum.witnesses[i].keys {
					delete(unheard, k.Name)
				}
			}
		}
		if !claims && !quorum.policy.Satisfied(unheard) {
			return nil
		}
		say(fmt.Errorf("waiting for the witnesses at start: %w", errors.Join(problems...)))
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// probe is a note that this log has signed before, or the anchor's tree signed
// again: resending it tells what a witness holds and commits us to nothing new.
func (p *publisher) probe(ctx context.Context) (*c2sp.Note, c2sp.Checkpoint, error) {
	if was, _ := p.board.get(); was.Note != nil && was.Size <= p.anchor.known().size {
		note, err := c2sp.ParseNote(was.Note)
		if err != nil {
			return nil, c2sp.Checkpoint{}, err
		}
		cp, err := c2sp.ParseCheckpoint(note.Text)
		return note, cp, err
	}
	return p.sign(ctx, int64(p.anchor.known().size))
}
