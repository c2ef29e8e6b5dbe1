package logserver

// The sequencer takes submissions in batches:
//
//	submit ─▶ [batch] ─▶ one transaction: settle what the batch before became,
//	decide each entry's slot, commit ─▶ driver.Add ─▶ index ─▶ whoever waits
//
// One goroutine owns the uniqueness database; another waits for the driver, so
// that a batch is being decided while the one before is being written. What the
// batches became is applied in the log's own order, so that the database is
// always what a replay of the log's first entries gives. Plain uploads are
// applied lazily, many at a time; until then they count as in flight. What would
// be decided by rows that an entry in flight may yet change is held back until
// that entry is applied: see needs.

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera"
)

// urgent reports whether deciding on s, or on what follows it, needs the
// database to be up to date: all but plain uploads, for which it is enough to
// know what is in flight.
func (s *submission) urgent() bool {
	return s.entry.Kind != entry.KindUpload || s.entry.Replaces != nil
}

// need is something outside of an entry's own row that decides on it, or that
// it decides: an upload slot, or the policy of a registry's ecosystem. Entries
// in flight share a need, or one has it alone.
type need struct {
	key   [32]byte
	alone bool
}

// needs of e: uploads go by the slot and the policy; a reject or remove changes
// the slot, a policy the policy.
func needs(e *entry.Entry) []need {
	policy := func() [32]byte { return sha256.Sum256([]byte("policy\x00" + e.Registry + "\x00" + e.Ecosystem)) }
	switch {
	case e.Kind == entry.KindUpload:
		return []need{{key: uploadSlot(e).Key()}, {key: policy()}}
	case e.Kind == entry.KindReject, e.Kind == entry.KindRemove && e.File != "":
		return []need{{uploadSlot(e).Key(), true}}
	case e.Kind == entry.KindRegistryPolicy:
		return []need{{policy(), true}}
	}
	return nil
}

// users counts who has a need.
type users struct{ sharing, alone int }

// usage counts the users of each key that has any.
type usage map[[32]byte]users

// allows reports whether needs can be had beside those that u counts.
func (u usage) allows(needs []need) bool {
	for _, n := range needs {
		if has := u[n.key]; has.alone > 0 || n.alone && has.sharing > 0 {
			return false
		}
	}
	return true
}

// add counts needs by times, which is 1 or -1.
func (u usage) add(needs []need, times int) {
	for _, n := range needs {
		has := u[n.key]
		if n.alone {
			has.alone += times
		} else {
			has.sharing += times
		}
		if has == (users{}) {
			delete(u, n.key)
		} else {
			u[n.key] = has
		}
	}
}

// conflictCredit asks whether one more conflict entry may be logged on behalf
// of a submitter for a project.
type conflictCredit func(project string) bool

// addedBatch is a batch that was handed to the driver.
type addedBatch struct {
	subs    []*submission
	futures []tessera.IndexFuture
}

// result is what the driver made of a batch.
type result struct {
	good   []*submission // resolved with their indexes
	failed bool          // what became of others is not known
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
	in      chan []*submission
	indexed func([]*submission) // may be nil; called with entries that have their index, before anyone is told
	added   chan addedBatch
	results chan result
	gone    <-chan struct{} // closed when run has returned, or never runs

	// Owned by the run goroutine.
	inFlight    map[[32]byte]*submission // reserved, not yet applied, by key
	ready       map[int64]*submission    // has an index, not yet applied, by index
	used        usage                    // the needs of what is in flight
	held        []*submission            // wait for what is in flight, in order of arrival
	urgent      bool                     // ready holds more than plain uploads
	outstanding int                      // batches that the driver has not answered
	doubt       bool                     // a write failed: nothing is decided before recover has found out what is so
	tried       time.Time                // when recover last failed

	testReserved func() // called by decide in tests between the slots' reservation and the driver
}

const (
	batchMax   = 1024
	queueMax   = 4 * batchMax
	applyMin   = 32 * batchMax         // uploads are applied so many at a time: fewer pages are written twice
	settleWait = 50 * time.Millisecond // an idle log applies what is settled after this long
	// maxOutstanding batches are with the driver; meanwhile the next one grows.
	maxOutstanding = 2
	recoverPause   = 100 * time.Millisecond
)

func newSequencer() *sequencer {
	return &sequencer{
		in:       make(chan []*submission, queueMax),
		added:    make(chan addedBatch, maxOutstanding), // never full, nor is results
		results:  make(chan result, maxOutstanding),
		inFlight: map[[32]byte]*submission{},
		used:     usage{},
		ready:    map[int64]*submission{},
	}
}

// submit implements sequencing.
func (q *sequencer) submit(ctx context.Context, subs []*submission) error {
	select {
	case q.in <- subs:
		return nil
	case <-q.gone:
		return fmt.Errorf("%w: %w", ErrReadOnly, errClosing)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run decides batches until ctx ends; then everything that is in the queue is
// refused, everything handed over is settled, and run returns.
func (q *sequencer) run(ctx context.Context) {
	go q.wait()
	idle := time.NewTicker(settleWait)
	defer idle.Stop()
	for {
		if q.doubt && q.outstanding == 0 && time.Since(q.tried) > recoverPause {
			q.tryRecover(ctx)
		}
		if q.doubt {
			q.refuse(q.held, errRecovering)
			q.held = nil
		}
		in := q.in
		if q.outstanding >= maxOutstanding || q.doubt && q.outstanding > 0 {
			in = nil
		}
		select {
		case <-ctx.Done():
			q.shut()
			return
		case r := <-q.results:
			q.take(r)
			if len(q.held) > 0 && !q.doubt {
				q.decide(ctx, nil)
			}
		case <-idle.C:
			if q.outstanding > 0 {
				continue // busy: decide applies what is ready when it is much
			}
			if err := q.settle(); err != nil {
				q.logger.Error("uniqueness database cannot be written", "err", err)
				q.doubt = true
			}
		case first := <-in:
			batch := q.gather(first)
			if q.doubt {
				q.refuse(batch, errRecovering)
				continue
			}
			q.decide(ctx, batch)
		}
	}
}

var errRecovering = fmt.Errorf("%w: it is recovering from a failed write", ErrStorage)

func (q *sequencer) refuse(subs []*submission, err error) {
	for _, s := range subs {
		s.resolve(0, false, err)
	}
}

// gather is a batch of first and what else is in the queue.
func (q *sequencer) gather(first []*submission) []*submission {
	batch := slices.Clone(first)
	for len(batch) < batchMax {
		select {
		case more := <-q.in:
			batch = append(batch, more...)
			continue
		default:
		}
		break
	}
	return batch
}

// shut refuses what is in the queue or held back, and settles what the driver has.
func (q *sequencer) shut() {
	q.refuse(q.held, fmt.Errorf("%w: %w", ErrReadOnly, errClosing))
	q.held = nil
	for empty := false; !empty; {
		select {
		case subs := <-q.in:
			q.refuse(subs, fmt.Errorf("%w: %w", ErrReadOnly, errClosing))
		default:
			empty = true
		}
	}
	close(q.added)
	for q.outstanding > 0 {
		q.take(<-q.results)
	}
	if q.doubt {
		return // the next start replays the log's tail
	}
	if err := q.settle(); err != nil {
		q.logger.Error("settling at shutdown failed; the next start replays the log's tail", "err", err)
	}
}

// take notes what the driver made of a batch.
func (q *sequencer) take(r result) {
	q.outstanding--
	for _, s := range r.good {
		s.ready = true
		q.ready[int64(s.index)] = s
		q.urgent = q.urgent || s.urgent()
	}
	if r.failed {
		q.doubt = true
	}
}

// decide decides what is held back, then batch, in one durable transaction,
// then hands the new entries to the driver.
func (q *sequencer) decide(ctx context.Context, batch []*submission) {
	batch = append(q.held, batch...)
	apply := len(q.held) > 0 || q.urgent || len(q.ready) >= applyMin || slices.ContainsFunc(batch, (*submission).urgent)
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
	q.held = nil
	waiting := usage{} // the needs of what is held back: nothing overtakes it
	err := q.slots.update(func(tx *sql.Tx) error {
		tail := q.slots.applied
		if apply {
			var err error
			if tail, err = q.applyReady(tx); err != nil {
				return err
			}
		}
		for _, s := range batch {
			if !q.used.allows(s.needs) || !waiting.allows(s.needs) {
				q.held = append(q.held, s)
				waiting.add(s.needs, 1)
				continue
			}
			first := reserved[s.key]
			if first == nil {
				first = q.inFlight[s.key]
				if first != nil && first.ready && int64(first.index) < tail {
					first = nil // applied above: the database knows it
				}
			}
			if first != nil {
				joins = append(joins, join{s, first})
				continue
			}
			if s.entry.Kind == entry.KindConflict {
				if r, err := q.slots.row(tx, s.key); err != nil {
					return err
				} else if r == nil && !s.credit(s.entry.Project) {
					outcomes = append(outcomes, outcome{s, 0, errNoCredit})
					continue
				}
			}
			seq := q.slots.nextSeq
			index, isNew, err := q.slots.admit(tx, tail, s.entry, s.key, s.digest)
			if isNew {
				s.seq = seq
				reserved[s.key] = s
				q.used.add(s.needs, 1)
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
		q.refuse(batch, fmt.Errorf("%w: the uniqueness database cannot be written", ErrStorage))
		q.held = nil   // they are in batch
		q.doubt = true // a commit that failed may have happened all the same
		return
	}
	if apply {
		q.appliedReady()
	}
	if q.testReserved != nil {
		q.testReserved()
	}
	if len(fresh) > 0 {
		b := addedBatch{subs: fresh, futures: make([]tessera.IndexFuture, len(fresh))}
		for i, s := range fresh {
			q.inFlight[s.key] = s
			b.futures[i] = q.add(context.WithoutCancel(ctx), tessera.NewEntry(s.leaf))
		}
		q.outstanding++
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
		j.first.then(func() { q.follow(j.sub, j.first) })
	}
}

// errNoCredit says that a submitter has caused enough conflict entries for now.
var errNoCredit = errors.New("no credit for a conflict entry")

// isVerdict tells a decision about an entry from trouble with the database.
func isVerdict(err error) bool {
	var c *ConflictError
	var p *PreconditionError
	return errors.As(err, &c) || errors.As(err, &p)
}

// follow resolves s as first, which was in flight for the same slot, is decided.
func (q *sequencer) follow(s, first *submission) {
	switch same, comparable := equalDigest(s, first); {
	case first.err != nil:
		s.resolve(0, false, first.err)
	case same:
		s.resolve(first.index, bytes.Equal(s.leaf, first.leaf), nil)
	case !comparable:
		s.resolve(0, false, otherAlgorithm(first.index))
	case s.entry.Kind != entry.KindUpload:
		s.resolve(0, false, otherEntry(s.entry, first.index))
	default:
		c := otherBytes(s.entry, first.index)
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

// recordConflict submits the record that a second digest was refused for a
// slot. It is logged once for each digest, and only while the submitter has
// credit: entries that a stranger can cause are bounded.
func (q *sequencer) recordConflict(s *submission, c *ConflictError) {
	sub, err := conflictEntry(s, c, q.now())
	if err != nil {
		q.logger.Error("conflict entry is malformed", "err", err)
		return
	}
	select {
	case q.in <- []*submission{sub}:
	default: // the queue is full: the refusal stands, its record can wait for the next attempt
		q.logger.Warn("queue full: a conflict was refused but not recorded", "project", c.Slot.Project)
	}
}

// conflictEntry is the record that s was refused.
func conflictEntry(s *submission, c *ConflictError, now time.Time) (*submission, error) {
	var id [16]byte
	rand.Read(id[:])
	e := &entry.Entry{
		Kind: entry.KindConflict, Claim: entry.ClaimLog,
		Registry: c.Slot.Registry, Ecosystem: c.Slot.Ecosystem, Project: c.Slot.Project, File: c.Slot.File,
		SlotClaim: c.Slot.Claim, SHA256: s.entry.SHA256, SHA512: s.entry.SHA512, FirstIndex: entry.Uint(c.FirstIndex),
		ID: hex.EncodeToString(id[:]), Time: now.UTC().Format(entry.TimeFormat),
	}
	return newSubmission(e, s.credit)
}

// wait collects the driver's answers and resolves submissions. Batches that
// the driver flushes at once may get their indexes in either order.
func (q *sequencer) wait() {
	for b := range q.added {
		var r result
		var grown uint64
		for i, f := range b.futures {
			s := b.subs[i]
			index, err := f()
			if err != nil {
				q.logger.Error("the storage engine failed to take an entry", "err", withoutPath(err))
				s.resolve(0, false, fmt.Errorf("%w: the entry could not be written; submit it again", ErrStorage))
				r.failed = true
				continue
			}
			s.index = index.Index
			r.good = append(r.good, s)
			grown = max(grown, index.Index+1)
		}
		if q.indexed != nil && len(r.good) > 0 {
			q.indexed(r.good)
		}
		for _, s := range r.good {
			s.resolve(s.index, true, nil)
		}
		if grown > 0 {
			q.grown(grown)
		}
		q.results <- r
	}
}

// applyReady writes into tx what follows the applied part of the log, in the
// log's own order, frees what those entries needed, and returns the new tail.
// After a transaction that fails, recover starts from the log again.
func (q *sequencer) applyReady(tx *sql.Tx) (tail int64, err error) {
	tail = q.slots.applied
	for s := q.ready[tail]; s != nil; s = q.ready[tail] {
		if err := q.slots.apply(tx, tail, s.entry); err != nil {
			return 0, err
		}
		q.used.add(s.needs, -1)
		tail++
	}
	if tail == q.slots.applied {
		return tail, nil
	}
	oldest := q.slots.nextSeq // of the reservations that are still needed
	for _, s := range q.inFlight {
		if !s.ready || int64(s.index) >= tail {
			oldest = min(oldest, s.seq)
		}
	}
	return tail, errors.Join(q.slots.release(tx, oldest), q.slots.setTail(tx, tail))
}

// appliedReady forgets what applyReady wrote, once it is committed.
func (q *sequencer) appliedReady() {
	for s := q.ready[q.slots.applied]; s != nil; s = q.ready[q.slots.applied] {
		delete(q.ready, q.slots.applied)
		if q.inFlight[s.key] == s {
			delete(q.inFlight, s.key)
		}
		q.slots.applied++
	}
	q.urgent = false
	for _, s := range q.ready { // behind a gap: rare
		q.urgent = q.urgent || s.urgent()
	}
}

// settle applies what is ready while there is nothing to decide.
func (q *sequencer) settle() error {
	if q.doubt || q.ready[q.slots.applied] == nil {
		return nil
	}
	err := q.slots.update(func(tx *sql.Tx) error {
		_, err := q.applyReady(tx)
		return err
	})
	if err == nil {
		q.appliedReady()
	}
	return err
}

// tryRecover runs recover. If storage holds the wrong thing, writing stops; if
// it merely fails, submissions fail until it does not.
func (q *sequencer) tryRecover(ctx context.Context) {
	switch err := q.recover(ctx); {
	case err == nil:
		q.logger.Info("recovered from a failed write", "size", q.slots.applied)
		q.doubt = false
	case ctx.Err() != nil:
	case errors.Is(err, errUnreadable), errors.Is(err, ErrBehind):
		q.latch(fmt.Errorf("recovering from a failed write: %w", err))
		q.tried = time.Now().Add(time.Hour) // for good
	default:
		q.logger.Error("cannot recover from a failed write yet", "err", err)
		q.tried = time.Now()
	}
}

// recover finds out what became of entries after a write failed: those the log
// has are applied, the others' slots are freed. The driver has nothing.
func (q *sequencer) recover(ctx context.Context) error {
	if err := q.slots.markAdded(); err != nil {
		return err
	}
	size, err := q.size(ctx)
	if err != nil {
		return err
	}
	for index := range q.ready {
		if uint64(index) >= size {
			return fmt.Errorf("%w: entry %d was taken and is not there; the log has %d", ErrBehind, index, size)
		}
	}
	t := q.tree(int64(size))
	t.ctx = ctx
	if err := q.slots.catchUp(ctx, t, nil); err != nil {
		return err
	}
	clear(q.inFlight)
	clear(q.ready)
	clear(q.used)
	q.urgent = false
	if size > 0 {
		q.grown(size)
	}
	return nil
}
