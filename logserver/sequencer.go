package logserver

// The sequencer takes submissions in batches:
//
//	submit ─▶ [batch] ─▶ one transaction: settle what the batch before became,
//	decide each entry's slot, commit ─▶ driver.Add ─▶ index ─▶ whoever waits
//
// One goroutine owns the uniqueness database; another waits for the driver, so
// that a batch is being decided while the one before is being written.

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera"
)

// submission is one entry on its way into the log.
type submission struct {
	entry  *entry.Entry
	leaf   []byte
	key    [32]byte
	digest []byte
	credit conflictCredit // who pays if this becomes a conflict entry; nil for the log's own
	ready  bool           // its index is about to be applied; owned by the run goroutine
	*pending
}

// pending is the outcome of a submission; it may be shared by several.
type pending struct {
	done  chan struct{} // closed when the fields below are set
	index uint64
	fresh bool // the leaf at index is this submission's own
	err   error
}

func newPending() *pending { return &pending{done: make(chan struct{})} }

func (p *pending) resolve(index uint64, fresh bool, err error) {
	p.index, p.fresh, p.err = index, fresh, err
	close(p.done)
}

// conflictCredit asks whether one more conflict entry may be logged on behalf
// of a submitter for a project.
type conflictCredit func(project string) bool

// addedBatch is a batch that was handed to the driver.
type addedBatch struct {
	subs    []*submission
	futures []tessera.IndexFuture
}

// settled is an entry with its index, not yet applied to the database.
type settled struct {
	index int64
	sub   *submission
}

type sequencer struct {
	slots   *slots
	add     tessera.AddFn
	size    func(context.Context) (uint64, error) // integrated size
	tree    func(size int64) tree
	grown   func(size uint64) // called when indexes below size are assigned
	latch   func(error)       // stops writing for good
	now     func() time.Time
	logger  *slog.Logger
	in      chan *submission
	added   chan addedBatch
	settled chan []settled // results of the driver, in order of index
	failed  chan addedBatch

	// Owned by the run goroutine.
	inFlight map[[32]byte]*submission // reserved, not yet applied
	ready    []settled                // indexed, to be applied with the next transaction
}

const (
	batchMax   = 1024
	queueMax   = 4 * batchMax
	settleWait = 50 * time.Millisecond // an idle log applies what is settled after this long
)

func newSequencer() *sequencer {
	return &sequencer{
		in:       make(chan *submission, queueMax),
		added:    make(chan addedBatch, 4),
		settled:  make(chan []settled, 64),
		failed:   make(chan addedBatch, 8),
		inFlight: map[[32]byte]*submission{},
	}
}

// submit queues an entry; its pending resolves when its index is durable. It
// waits while the queue is full, as long as ctx lets it.
func (q *sequencer) submit(ctx context.Context, s *submission) error {
	select {
	case q.in <- s:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run decides batches until ctx ends; then everything that is in the queue is
// refused, everything handed over is settled, and run returns.
func (q *sequencer) run(ctx context.Context) {
	var waiting sync.WaitGroup
	waiting.Go(q.wait)
	defer func() {
		close(q.added)
		go func() { waiting.Wait(); close(q.settled) }()
		for s := range q.settled {
			q.addReady(s)
		}
		for len(q.failed) > 0 {
			for _, s := range (<-q.failed).subs {
				s.resolve(0, false, ErrStorage)
			}
		}
		if err := q.settle(); err != nil {
			q.logger.Error("settling at shutdown failed; the next start replays the log's tail", "err", err)
		}
	}()
	idle := time.NewTicker(settleWait)
	defer idle.Stop()
	for {
		var batch []*submission
		select {
		case <-ctx.Done():
			for {
				select {
				case s := <-q.in:
					s.resolve(0, false, errClosing)
				default:
					return
				}
			}
		case s := <-q.in:
			batch = append(batch, s)
		case s := <-q.settled:
			q.addReady(s)
			continue
		case b := <-q.failed:
			if err := q.recover(ctx, b); err != nil {
				q.latch(fmt.Errorf("%w: recovering from a failed write: %w", errUnreadable, err))
			}
			continue
		case <-idle.C:
			if len(q.ready) > 0 {
				if err := q.settle(); err != nil {
					q.logger.Error("uniqueness database cannot be written", "err", err)
				}
			}
			continue
		}
		for len(batch) < batchMax {
			select {
			case s := <-q.in:
				batch = append(batch, s)
				continue
			default:
			}
			break
		}
		q.decide(ctx, batch)
	}
}

// decide settles what is ready and decides the slots of batch, in one durable
// transaction, then hands the new entries to the driver.
func (q *sequencer) decide(ctx context.Context, batch []*submission) {
	for drained := false; !drained; {
		select {
		case s := <-q.settled:
			q.addReady(s)
		default:
			drained = true
		}
	}
	type outcome struct {
		sub   *submission
		index uint64
		err   error
	}
	var outcomes []outcome
	var fresh []*submission
	reserved := map[[32]byte]*submission{}
	type join struct{ sub, first *submission }
	var joins []join
	err := q.slots.update(func(tx *sql.Tx) error {
		if err := q.applyReady(tx); err != nil {
			return err
		}
		for _, s := range batch {
			first := reserved[s.key]
			if first == nil {
				first = q.inFlight[s.key]
				if first != nil && first.ready {
					first = nil // applied above: the database knows it
				}
			}
			if first != nil {
				joins = append(joins, join{s, first})
				continue
			}
			index, isNew, err := q.slots.admit(tx, s.entry, s.key, s.digest)
			if isNew {
				reserved[s.key] = s
				fresh = append(fresh, s)
				continue
			}
			if err != nil && !isVerdict(err) {
				return err
			}
			outcomes = append(outcomes, outcome{s, index, err})
		}
		return nil
	})
	if err != nil {
		q.logger.Error("uniqueness database cannot be written; submissions fail until it can", "err", err)
		for _, s := range batch {
			s.resolve(0, false, fmt.Errorf("%w: the uniqueness database cannot be written", ErrStorage))
		}
		return
	}
	q.appliedReady()
	if len(fresh) > 0 {
		b := addedBatch{subs: fresh, futures: make([]tessera.IndexFuture, len(fresh))}
		for i, s := range fresh {
			q.inFlight[s.key] = s
			b.futures[i] = q.add(context.WithoutCancel(ctx), tessera.NewEntry(s.leaf))
		}
		q.added <- b
	}
	for _, o := range outcomes {
		var conflict *ConflictError
		if errors.As(o.err, &conflict) && conflict.Slot.File != "" {
			q.recordConflict(o.sub, conflict)
		}
		o.sub.resolve(o.index, false, o.err)
	}
	for _, j := range joins {
		go q.follow(j.sub, j.first)
	}
}

// isVerdict tells a decision about an entry from trouble with the database.
func isVerdict(err error) bool {
	var c *ConflictError
	var p *PreconditionError
	return errors.As(err, &c) || errors.As(err, &p)
}

// follow resolves s as the submission in flight for the same slot resolves.
func (q *sequencer) follow(s, first *submission) {
	<-first.done
	switch same, _ := equalDigest(s, first); {
	case first.err != nil:
		s.resolve(0, false, first.err)
	case same:
		s.resolve(first.index, bytes.Equal(s.leaf, first.leaf), nil)
	case s.entry.Kind != entry.KindUpload:
		s.resolve(0, false, &ConflictError{FirstIndex: first.index, Reason: fmt.Sprintf("id %s belongs to another entry, at index %d: take a new random id", s.entry.ID, first.index)})
	default:
		slot, _ := s.entry.Slot()
		c := &ConflictError{Slot: slot, FirstIndex: first.index, Reason: fmt.Sprintf("%s of %s is pinned to other bytes by index %d", s.entry.File, s.entry.Project, first.index)}
		q.recordConflict(s, c)
		s.resolve(0, false, c)
	}
}

func equalDigest(a, b *submission) (same, comparable bool) {
	if a.entry.Kind != entry.KindUpload {
		return bytes.Equal(a.digest, b.digest), true
	}
	return sameDigest(a.digest, b.digest)
}

// recordConflict logs that a second digest was refused for a slot, if the
// submitter has credit for it: entries that a stranger can cause are bounded.
func (q *sequencer) recordConflict(s *submission, c *ConflictError) {
	if s.credit == nil || !s.credit(c.Slot.Project) {
		return
	}
	var id [16]byte
	rand.Read(id[:])
	e := &entry.Entry{
		Kind: entry.KindConflict, Claim: entry.ClaimLog,
		Registry: c.Slot.Registry, Ecosystem: c.Slot.Ecosystem, Project: c.Slot.Project, File: c.Slot.File,
		SlotClaim: c.Slot.Claim, SHA256: s.entry.SHA256, SHA512: s.entry.SHA512, FirstIndex: entry.Uint(c.FirstIndex),
		ID: hex.EncodeToString(id[:]), Time: q.now().UTC().Format(entry.TimeFormat),
	}
	sub, err := newSubmission(e, nil)
	if err != nil {
		q.logger.Error("conflict entry is malformed", "err", err)
		return
	}
	select {
	case q.in <- sub:
	default: // the queue is full: the refusal stands, its record can wait for the next attempt
		q.logger.Warn("queue full: a conflict was refused but not recorded", "project", c.Slot.Project)
	}
}

// newSubmission encodes e; the error is the entry's.
func newSubmission(e *entry.Entry, credit conflictCredit) (*submission, error) {
	leaf, err := e.Marshal()
	if err != nil {
		return nil, err
	}
	key, digest, err := slotKey(e)
	if err != nil {
		return nil, err
	}
	return &submission{entry: e, leaf: leaf, key: key, digest: digest, credit: credit, pending: newPending()}, nil
}

// wait collects the driver's answers, in order, and resolves submissions.
func (q *sequencer) wait() {
	for b := range q.added {
		var good []settled
		var bad addedBatch
		for i, f := range b.futures {
			s := b.subs[i]
			index, err := f()
			if err != nil {
				q.logger.Error("the storage engine failed to take an entry", "err", withoutPath(err))
				bad.subs = append(bad.subs, s)
				continue
			}
			good = append(good, settled{int64(index.Index), s})
		}
		if n := len(good); n > 0 {
			for _, g := range good {
				g.sub.resolve(uint64(g.index), true, nil)
			}
			q.grown(uint64(good[n-1].index) + 1)
			q.settled <- good
		}
		if len(bad.subs) > 0 {
			q.failed <- bad
		}
	}
}

func (q *sequencer) addReady(batch []settled) {
	for _, r := range batch {
		r.sub.ready = true
	}
	q.ready = append(q.ready, batch...)
}

// applyReady writes what is settled into tx. The rows follow from the log, so a
// transaction that fails is simply tried again with the next one.
func (q *sequencer) applyReady(tx *sql.Tx) error {
	tail := q.slots.applied
	for _, r := range q.ready {
		if err := q.slots.apply(tx, r.index, r.sub.entry); err != nil {
			return err
		}
		// After a failed write there is a gap until recover has replayed it.
		if r.index == tail {
			tail++
		}
	}
	if tail == q.slots.applied {
		return nil
	}
	return q.slots.setTail(tx, tail)
}

// appliedReady forgets what applyReady wrote, once it is committed.
func (q *sequencer) appliedReady() {
	for _, r := range q.ready {
		if r.index == q.slots.applied {
			q.slots.applied++
		}
		if q.inFlight[r.sub.key] == r.sub {
			delete(q.inFlight, r.sub.key)
		}
	}
	q.ready = q.ready[:0]
}

func (q *sequencer) settle() error {
	if len(q.ready) == 0 {
		return nil
	}
	if err := q.slots.update(q.applyReady); err != nil {
		return err
	}
	q.appliedReady()
	return nil
}

// recover finds out what became of entries whose write failed: those the log
// has are settled, the others' slots are freed.
func (q *sequencer) recover(ctx context.Context, b addedBatch) error {
	defer func() {
		for _, s := range b.subs {
			delete(q.inFlight, s.key)
			s.resolve(0, false, fmt.Errorf("%w: the entry could not be written; submit it again", ErrStorage))
		}
	}()
	keys := make([][32]byte, len(b.subs))
	for i, s := range b.subs {
		keys[i] = s.key
	}
	if err := q.slots.markAdded(keys); err != nil {
		return err
	}
	// Nothing may be in flight while the tail is read.
	for len(q.inFlight) > len(b.subs)+len(q.ready) {
		select {
		case s := <-q.settled:
			q.addReady(s)
		case more := <-q.failed:
			b.subs = append(b.subs, more.subs...)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := q.settle(); err != nil {
		return err
	}
	size, err := q.size(ctx)
	if err != nil {
		return err
	}
	if err := q.slots.catchUp(ctx, q.tree(int64(size)), nil); err != nil {
		return err
	}
	if size > 0 {
		q.grown(size)
	}
	return nil
}
