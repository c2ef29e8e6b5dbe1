package logserver

// The sequencer takes submissions in batches:
//
//	submit ─▶ [batch] ─▶ decide each entry's slot ─▶ journal: its index ─▶ who
//	waits for a receipt ─▶ storage engine ─▶ index of the log ─▶ apply, in order
//
// One goroutine decides and applies, one writes the journal, one feeds the
// engine, so that all three happen at once. What decides is the log's own
// entries, through the index, and what is in flight: decided and not yet
// applied. That is in memory alone. The journal and the log are the durable
// record: what of it survives a crash is all replayed before anything is decided
// again, and what does not survive was answered to nobody. See
// docs/decisions/0005-the-log-is-the-reservation.md and
// docs/decisions/0012-journal.md.
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
	"sync/atomic"
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

// A batch is entries that were decided together, in the log's order.
type batch struct {
	subs []*submission
	err  error // of the journal: none of them has an index
}

type sequencer struct {
	index   *index
	journal *journal
	feeder                    // to the storage engine
	grown   func(size uint64) // called when the entries below size are in the tiles
	latch   func(error)       // stops writing for good
	now     func() time.Time
	logger  *slog.Logger
	in      chan []*submission
	indexed func([]*submission)   // called with entries that have their index, before anyone is told
	noted   func() error          // makes durable what indexed was told, before the journal forgets it
	decided chan batch            // to the journal
	written chan batch            // from the journal
	feeding chan batch            // to the engine
	fed     chan batch            // from the engine, of any length
	gone    <-chan struct{}       // closed when run has returned, or never runs
	stuck   atomic.Pointer[error] // why what has its index cannot be written at the moment; nil if it can
	failing atomic.Pointer[error] // why nothing gets an index: the journal's last write; nil if it did not fail

	// Owned by the run goroutine, which has index.applying.
	inFlight  map[[32]byte]*submission // decided, not yet applied, by key
	used      usage                    // the needs of what is in flight
	held      []*submission            // wait for what is in flight, in order of arrival
	batch     uint64                   // number of the last batch that was handed over
	unapplied map[uint64]int           // entries of each batch that are in flight
	writing   int                      // batches that the journal has not answered
	feeds     int                      // entries that the engine has not answered
	top       uint64                   // the engine said that it has the entries below
	doubt     bool                     // the index missed an entry: nothing is decided before recover has replayed the log
	tried     time.Time                // when recover last failed
	asked     time.Time                // when the journal was last asked whether it can write

	testDecided func() // called by decide in tests between deciding and the journal
}

const (
	batchMax = 1024
	queueMax = 64 // messages, of up to maxStreamEntries
	// maxWriting batches are with the journal; meanwhile the next one grows.
	maxWriting = 2
	// maxFeed entries have an index and are not in the tiles: they are in memory.
	maxFeed = 8 * batchMax
	// feedPause is the least time between two batches that are not full: each is
	// some ten fsyncs, and tiles that are written again by the next one.
	feedPause    = 10 * time.Millisecond
	recoverPause = 100 * time.Millisecond
	journalPause = 500 * time.Millisecond
)

func newSequencer() *sequencer {
	return &sequencer{
		in:        make(chan []*submission, queueMax),
		decided:   make(chan batch, maxWriting), // never full, nor is written
		written:   make(chan batch, maxWriting),
		feeding:   make(chan batch, maxFeed), // each batch has an entry: never full, nor is fed
		fed:       make(chan batch, maxFeed),
		inFlight:  map[[32]byte]*submission{},
		used:      usage{},
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
// refused, everything handed over is applied if the engine takes it, and run
// returns.
func (q *sequencer) run(ctx context.Context) {
	q.index.applying.Lock()
	defer q.index.applying.Unlock()
	go q.record()
	go q.feedEngine(ctx)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if q.doubt && q.idle() && time.Since(q.tried) > recoverPause {
			q.tryRecover(ctx)
		}
		closed := q.closed()
		if closed != nil {
			q.refuse(q.held, closed)
			q.held = nil
		}
		in := q.in
		full, broken := q.index.full()
		if q.writing >= maxWriting || q.feeds+len(q.held) >= maxFeed && closed == nil || q.doubt && !q.idle() || full && broken == nil {
			in = nil
		}
		select {
		case <-ctx.Done():
			q.shut()
			return
		case b := <-q.written:
			q.take(b)
			q.again()
		case b := <-q.fed:
			q.apply(b)
			q.again()
		case <-tick.C: // to look again
			if q.failing.Load() != nil && q.writing == 0 && time.Since(q.asked) > journalPause {
				q.asked = time.Now()
				q.writing++
				q.decided <- batch{} // asks whether it can write
			}
		case first := <-in:
			batch := q.gather(first)
			if closed := q.closed(); closed != nil {
				q.refuse(batch, closed)
			} else {
				q.decide(batch)
			}
		}
	}
}

// again decides what is held back, if it can be.
func (q *sequencer) again() {
	if len(q.held) > 0 && q.closed() == nil && q.writing < maxWriting {
		q.decide(nil)
	}
}

// idle reports whether everything that was handed over is settled.
func (q *sequencer) idle() bool { return q.writing == 0 && q.feeds == 0 }

// closed is why nothing is taken at the moment.
func (q *sequencer) closed() error {
	_, broken := q.index.full()
	switch {
	case q.doubt:
		return errRecovering
	case broken != nil:
		return errIndex
	case q.stuck.Load() != nil:
		return errStuck
	}
	return nil
}

var (
	errRecovering = fmt.Errorf("%w: it is recovering from a failed write", ErrStorage)
	errIndex      = fmt.Errorf("%w: the index cannot be written", ErrStorage)
	errStuck      = fmt.Errorf("%w: it cannot be written", ErrStorage)
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

// shut refuses what is in the queue or held back, and applies what has an index
// and the engine takes. What it does not take, the next start gives it.
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
	close(q.decided)
	for q.writing > 0 {
		q.take(<-q.written)
	}
	for b := range q.fed {
		q.apply(b)
	}
}

// record writes decided batches into the journal: then they have their indexes,
// and whoever waits for no more is told.
func (q *sequencer) record() {
	defer close(q.feeding)
	for b := range q.decided {
		if len(b.subs) == 0 {
			b.err = q.journal.ready()
			q.written <- b
			continue
		}
		first, err := q.journal.append(b.subs)
		if err != nil {
			b.err = err
			q.written <- b
			continue
		}
		for i, s := range b.subs {
			s.index = first + uint64(i)
		}
		q.indexed(b.subs)
		for _, s := range b.subs {
			s.resolve(s.index, true, nil)
		}
		q.feeding <- b
		q.written <- b
	}
}

// take hears of the journal that a batch has its indexes, or forgets it.
func (q *sequencer) take(b batch) {
	q.writing--
	if b.err == nil {
		q.failing.Store(nil)
		return
	}
	if q.failing.Swap(&b.err) == nil {
		q.logger.Error("the journal cannot be written; nothing is taken until it can be", "err", b.err)
	}
	q.feeds -= len(b.subs)
	for _, s := range b.subs {
		q.settle(s)
	}
	q.refuse(b.subs, fmt.Errorf("%w: the entry could not be written; submit it again", ErrStorage))
}

// feedEngine gives the engine what has its index, in the log's order.
func (q *sequencer) feedEngine(ctx context.Context) {
	defer close(q.fed)
	var subs []*submission
	more := func() {
		for len(subs) < EngineBatch {
			select {
			case b := <-q.feeding: // nothing once it is closed
				if subs = append(subs, b.subs...); b.subs != nil {
					continue
				}
			default:
			}
			return
		}
	}
	for last := (time.Time{}); ; {
		if len(subs) == 0 {
			b, ok := <-q.feeding
			if !ok {
				return
			}
			subs = b.subs
		}
		if more(); len(subs) < EngineBatch {
			sleep(ctx, feedPause-time.Since(last))
			more()
		}
		last = time.Now()
		now := subs[:min(len(subs), EngineBatch)]
		if !q.integrate(ctx, now) || !q.note(ctx) {
			return // the journal has them
		}
		q.fed <- batch{subs: now}
		subs = subs[len(now):]
	}
}

// integrate has the engine write entries that have their indexes, until it has.
// It gives up, and returns false, if ctx ends before, or if the engine has
// something else in their place: then writing stops.
func (q *sequencer) integrate(ctx context.Context, subs []*submission) bool {
	next, entries := subs[0].index, make([]*tessera.Entry, len(subs))
	for i, s := range subs {
		entries[i] = s.tessera
	}
	for doubt := false; ; {
		var err error
		if doubt {
			var n int
			if n, err = q.landed(ctx, next, entries); err == nil {
				next += uint64(n)
				entries, doubt = entries[n:], false
				for i, e := range entries {
					entries[i] = tessera.NewEntry(e.Data()) // the other may have an index
				}
			}
		}
		if !doubt && len(entries) > 0 {
			err = q.write(ctx, next, entries)
			doubt = err != nil
		}
		if err == nil {
			q.stuck.Store(nil)
			return true
		}
		if errors.Is(err, errUnreadable) || errors.Is(err, ErrBehind) {
			q.latch(fmt.Errorf("after a failed write: %w", err))
			q.stuck.Store(&err)
			<-ctx.Done()
			return false
		}
		if q.stuck.Swap(&err) == nil {
			q.logger.Error("the storage engine cannot write; trying again", "err", err)
		}
		if !sleep(ctx, recoverPause) {
			return false
		}
	}
}

// note has who logged what written down, or gives up as integrate does.
func (q *sequencer) note(ctx context.Context) bool {
	for {
		err := q.noted()
		if err == nil {
			q.stuck.Store(nil)
			return true
		}
		if q.stuck.Swap(&err) == nil {
			q.logger.Error("cannot record who logged what; nothing is taken until it can be", "err", err)
		}
		if !sleep(ctx, recoverPause) {
			return false
		}
	}
}

// settle frees what a submission needed: it is applied, or will never be.
func (q *sequencer) settle(s *submission) {
	q.used.add(s.needs, -1)
	if q.inFlight[s.key] == s {
		delete(q.inFlight, s.key)
	}
	if q.unapplied[s.batch]--; q.unapplied[s.batch] == 0 {
		delete(q.unapplied, s.batch)
	}
}

// apply records entries that are in the tiles. If that fails, recover starts
// from the log again.
func (q *sequencer) apply(b batch) {
	q.feeds -= len(b.subs)
	for _, s := range b.subs {
		q.top = s.index + 1
		if q.doubt {
			continue // recover finds it in the log
		}
		if err := (indexRows{q.index}).apply(s.index, s.entry, s.finds); err != nil {
			q.logger.Error("the index cannot follow the log", "index", s.index, "err", err)
			q.doubt = true
			continue
		}
		q.settle(s)
	}
	q.index.announce()
	q.grown(q.top)
	if err := q.journal.free(q.top); err != nil {
		q.logger.Error("what the journal has no use for cannot be removed", "err", err)
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
// the journal.
func (q *sequencer) decide(batch []*submission) {
	batch = append(slices.DeleteFunc(q.held, func(s *submission) bool {
		gone := s.group.gone.Load()
		if gone { // nobody waits any more: it is not held back for ever
			s.resolve(0, false, ErrNotPublished)
		}
		return gone
	}), batch...)
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
	q.handOver(fresh)
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

// handOver gives decided entries to the journal.
func (q *sequencer) handOver(fresh []*submission) {
	q.batch++
	if len(fresh) == 0 {
		return
	}
	for _, s := range fresh {
		s.batch = q.batch
	}
	q.unapplied[q.batch] = len(fresh)
	q.writing++
	q.feeds += len(fresh)
	q.decided <- batch{subs: fresh}
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

// tryRecover runs recover. If storage holds the wrong thing, writing stops; if
// it merely fails, submissions fail until it does not.
func (q *sequencer) tryRecover(ctx context.Context) {
	switch err := q.recover(ctx); {
	case err == nil:
		q.logger.Info("the index follows the log again", "size", q.index.size())
		q.doubt = false
	case ctx.Err() != nil:
	case errors.Is(err, errUnreadable), errors.Is(err, ErrBehind):
		q.latch(fmt.Errorf("the index cannot follow the log: %w", err))
		q.tried = time.Now().Add(time.Hour) // for good
	default:
		q.logger.Error("the index cannot follow the log yet", "err", err)
		q.tried = time.Now()
	}
}

// recover replays the log into an index that missed an entry. Everything that
// was handed over is settled or in the log.
func (q *sequencer) recover(ctx context.Context) error {
	size, err := q.size(ctx)
	if err != nil {
		return err
	}
	if size < q.top {
		return fmt.Errorf("%w: entry %d was taken and is not there; the log has %d", ErrBehind, q.top-1, size)
	}
	if err := errors.Join(q.index.replay(ctx, q.tree(int64(size)), nil), q.index.readable()); err != nil {
		return err
	}
	clear(q.inFlight)
	clear(q.used)
	clear(q.unapplied)
	q.index.announce()
	return nil
}
