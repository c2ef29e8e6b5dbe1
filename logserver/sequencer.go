package logserver

// The sequencer takes submissions in batches:
//
//	submit ─▶ [batch] ─▶ decide each entry's slot ─▶ driver.Add ─▶ index ─▶
//	apply, in the log's order ─▶ whoever waits
//
// One goroutine decides and applies; another waits for the driver, so that a
// batch is being decided while the one before is being written. What decides is
// the log's own entries, through the index, and what is in flight: decided and
// not yet applied. That is in memory alone. The log is the durable record: what
// of it survives a crash is all replayed before anything is decided again, and
// what does not survive was answered to nobody. See
// docs/decisions/0005-the-log-is-the-reservation.md.
//
// What would be decided by rows that an entry in flight may yet change is held
// back until that entry is applied: see needs.

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera"
)

// need is something outside of an entry's own row that decides on it, or that
// it decides: an upload slot, or the policy of a registry's ecosystem. Entries
// in flight share a need, or one has it alone.
type need struct {
	key   [32]byte
	alone bool
}

// needs of e, whose own key is given: uploads go by the slot and the policy; a
// reject or remove changes the slot, another status of a file asks for it; a
// policy entry changes the policy.
func needs(e *entry.Entry, key [32]byte) []need {
	switch {
	case e.Kind == entry.KindUpload:
		return []need{{key: key}, {key: policyKey(e.Registry, e.Ecosystem)}}
	case e.Kind == entry.KindReject, e.Kind == entry.KindRemove && e.File != "":
		return []need{{uploadSlot(e).Key(), true}}
	case e.Kind == entry.KindRegistryPolicy:
		return []need{{policyKey(e.Registry, e.Ecosystem), true}}
	case e.Kind != entry.KindConflict && e.File != "":
		return []need{{key: uploadSlot(e).Key()}}
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
	good   []*submission // their index is set
	failed []*submission // what became of them is not known
}

type sequencer struct {
	index   *index
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

	// Owned by the run goroutine, which has index.applying.
	inFlight    map[[32]byte]*submission // decided, not yet applied, by key
	ready       map[uint64]*submission   // has an index, behind one that is not known yet
	used        usage                    // the needs of what is in flight
	held        []*submission            // wait for what is in flight, in order of arrival
	batch       uint64                   // number of the last batch that was handed over
	unapplied   map[uint64]int           // entries of each batch that are in flight
	outstanding int                      // batches that the driver has not answered
	doubt       bool                     // a write failed: nothing is decided before recover has found out what is so
	tried       time.Time                // when recover last failed

	testDecided func() // called by decide in tests between deciding and the driver
}

const (
	batchMax = 1024
	queueMax = 64 // messages, of up to maxStreamEntries
	// maxOutstanding batches are with the driver; meanwhile the next one grows.
	maxOutstanding = 2
	recoverPause   = 100 * time.Millisecond
)

func newSequencer() *sequencer {
	return &sequencer{
		in:        make(chan []*submission, queueMax),
		added:     make(chan addedBatch, maxOutstanding), // never full, nor is results
		results:   make(chan result, maxOutstanding),
		inFlight:  map[[32]byte]*submission{},
		used:      usage{},
		ready:     map[uint64]*submission{},
		unapplied: map[uint64]int{},
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
// refused, everything handed over is applied, and run returns.
func (q *sequencer) run(ctx context.Context) {
	q.index.applying.Lock()
	defer q.index.applying.Unlock()
	go q.wait()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if q.doubt && q.outstanding == 0 && time.Since(q.tried) > recoverPause {
			q.tryRecover(ctx)
		}
		full, broken := q.index.full()
		switch {
		case q.doubt:
			q.refuse(q.held, errRecovering)
			q.held = nil
		case broken != nil:
			q.refuse(q.held, errIndex)
			q.held = nil
		}
		in := q.in
		if q.outstanding >= maxOutstanding || q.doubt && q.outstanding > 0 || full && broken == nil {
			in = nil
		}
		select {
		case <-ctx.Done():
			q.shut()
			return
		case r := <-q.results:
			q.take(r)
			if len(q.held) > 0 && !q.doubt && q.outstanding < maxOutstanding {
				q.decide(ctx, nil)
			}
		case <-tick.C: // to look again
		case first := <-in:
			batch := q.gather(first)
			switch {
			case q.doubt:
				q.refuse(batch, errRecovering)
			case broken != nil:
				q.refuse(batch, errIndex)
			default:
				q.decide(ctx, batch)
			}
		}
	}
}

var (
	errRecovering = fmt.Errorf("%w: it is recovering from a failed write", ErrStorage)
	errIndex      = fmt.Errorf("%w: the index cannot be written", ErrStorage)
)

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

// shut refuses what is in the queue or held back, and applies what the driver has.
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
}

// take applies what the driver made of a batch, then answers.
func (q *sequencer) take(r result) {
	q.outstanding--
	next := q.index.size()
	for _, s := range r.good {
		if s.index == next && !q.doubt {
			q.apply(s)
			next++
			continue
		}
		q.ready[s.index] = s
	}
	for s := q.ready[next]; s != nil && !q.doubt; s = q.ready[next] {
		delete(q.ready, next)
		q.apply(s)
		next++
	}
	q.index.announce()
	if len(r.failed) > 0 {
		q.doubt = true
	}
	if len(r.good) > 0 {
		grown := uint64(0)
		for _, s := range r.good {
			grown = max(grown, s.index+1)
			s.resolve(s.index, true, nil)
		}
		q.grown(grown)
	}
	q.refuse(r.failed, fmt.Errorf("%w: the entry could not be written; submit it again", ErrStorage))
}

// apply records an entry that stands where the index ends, and frees what it
// needed. If that fails, recover starts from the log again.
func (q *sequencer) apply(s *submission) {
	if err := (indexRows{q.index}).apply(s.index, s.entry, s.finds); err != nil {
		q.logger.Error("the index cannot follow the log", "index", s.index, "err", err)
		q.doubt = true
		q.ready[s.index] = s
		return
	}
	q.used.add(s.needs, -1)
	if q.inFlight[s.key] == s {
		delete(q.inFlight, s.key)
	}
	if q.unapplied[s.batch]--; q.unapplied[s.batch] == 0 {
		delete(q.unapplied, s.batch)
	}
}

// settled reports whether all batches up to number n are applied.
func (q *sequencer) settled(n uint64) bool {
	for batch := range q.unapplied { // a few
		if batch <= n {
			return false
		}
	}
	return true
}

// decide decides what is held back, then batch, and hands the new entries to
// the driver.
func (q *sequencer) decide(ctx context.Context, batch []*submission) {
	batch = append(q.held, batch...)
	type outcome struct {
		sub   *submission
		index uint64
		err   error
	}
	var outcomes []outcome
	fresh := make([]*submission, 0, len(batch))
	type join struct{ sub, first *submission }
	var joins []join
	q.held = nil
	waiting := usage{} // the needs of what is held back: nothing overtakes it
	rows, tail := indexRows{q.index}, int64(q.index.size())
	hold := func(s *submission) {
		q.held = append(q.held, s)
		waiting.add(s.needs, 1)
	}
	for _, s := range batch {
		if s.after > 0 && !q.settled(s.after) || !q.used.allows(s.needs) || len(waiting) > 0 && !waiting.allows(s.needs) {
			hold(s)
			continue
		}
		if first := q.inFlight[s.key]; first != nil {
			joins = append(joins, join{s, first})
			continue
		}
		index, isNew, err := q.verdict(rows, tail, s)
		var needs *PreconditionError
		switch {
		case isNew:
			q.inFlight[s.key] = s
			q.used.add(s.needs, 1)
			fresh = append(fresh, s)
			continue
		case errors.As(err, &needs) && s.after == 0 && len(q.inFlight) > 0:
			// It may need what is on its way: what it names was submitted before it.
			s.after = q.batch + 1
			hold(s)
			continue
		case err != nil && !isVerdict(err):
			q.logger.Error("the index cannot be read", "err", err)
			err = fmt.Errorf("%w: the index cannot be read", ErrStorage)
		}
		outcomes = append(outcomes, outcome{s, index, err})
	}
	if q.testDecided != nil {
		q.testDecided()
	}
	q.handOver(ctx, fresh)
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

// handOver gives decided entries to the driver.
func (q *sequencer) handOver(ctx context.Context, fresh []*submission) {
	q.batch++
	if len(fresh) == 0 {
		return
	}
	b := addedBatch{subs: fresh, futures: make([]tessera.IndexFuture, len(fresh))}
	for i, s := range fresh {
		s.batch = q.batch
		b.futures[i] = q.add(context.WithoutCancel(ctx), s.tessera)
	}
	q.unapplied[q.batch] = len(fresh)
	q.outstanding++
	q.added <- b
}

// verdict is the rule of admission for a submission whose key is not in flight.
func (q *sequencer) verdict(rows indexRows, tail int64, s *submission) (index uint64, isNew bool, err error) {
	if s.entry.Kind == entry.KindConflict {
		if r, err := rows.row(s.key); err != nil {
			return 0, false, err
		} else if r == nil && !s.credit(s.entry.Project) {
			return 0, false, errNoCredit
		}
	}
	return verdict(rows, tail, q.index.entryAt, s.entry, s.key, s.digest)
}

// errNoCredit says that a submitter has caused enough conflict entries for now.
var errNoCredit = errors.New("no credit for a conflict entry")

// isVerdict tells a decision about an entry from trouble with the index.
func isVerdict(err error) bool {
	var c *ConflictError
	var p *PreconditionError
	return errors.Is(err, errNoCredit) || errors.As(err, &c) || errors.As(err, &p)
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

// wait collects the driver's answers. Batches that the driver flushes at once
// may get their indexes in either order.
func (q *sequencer) wait() {
	for b := range q.added {
		r := result{good: make([]*submission, 0, len(b.subs))}
		for i, f := range b.futures {
			s := b.subs[i]
			index, err := f()
			if err != nil {
				q.logger.Error("the storage engine failed to take an entry", "err", withoutPath(err))
				r.failed = append(r.failed, s)
				continue
			}
			s.index = index.Index
			r.good = append(r.good, s)
		}
		if len(r.good) > 0 && q.indexed != nil {
			q.indexed(r.good) // here, where its fsync delays no decision
		}
		q.results <- r
	}
}

// tryRecover runs recover. If storage holds the wrong thing, writing stops; if
// it merely fails, submissions fail until it does not.
func (q *sequencer) tryRecover(ctx context.Context) {
	switch err := q.recover(ctx); {
	case err == nil:
		q.logger.Info("recovered from a failed write", "size", q.index.size())
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
// has are applied, the others are forgotten and their slots are free. The driver
// has nothing.
func (q *sequencer) recover(ctx context.Context) error {
	size, err := q.size(ctx)
	if err != nil {
		return err
	}
	for index := range q.ready {
		if index >= size {
			return fmt.Errorf("%w: entry %d was taken and is not there; the log has %d", ErrBehind, index, size)
		}
	}
	if err := errors.Join(q.index.replay(ctx, q.tree(int64(size)), nil), q.index.readable()); err != nil {
		return err
	}
	clear(q.inFlight)
	clear(q.ready)
	clear(q.used)
	clear(q.unapplied)
	if size > 0 {
		q.grown(size)
	}
	return nil
}
