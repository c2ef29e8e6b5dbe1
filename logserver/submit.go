package logserver

// A submission's way in and out: admission, the queue, the wait, the answer.
// Entries that came in one message stay together as one ticket.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera"
	"golang.org/x/time/rate"
)

// Wait says when a submission is answered.
type Wait int

const (
	// Cosigned: with index and proof, once a published and cosigned checkpoint
	// covers the entry. Only this is an acknowledgement (FAULTS rule 1).
	Cosigned Wait = iota
	// Sequenced: with the index alone, once the entry is durable in the log. It is
	// a receipt: no promise to a client.
	Sequenced
)

// String is the wait level's name in the metrics.
func (w Wait) String() string {
	if w == Sequenced {
		return "sequenced"
	}
	return "cosigned"
}

// Ack is an acknowledgement: an index, and a proof against a published and
// cosigned checkpoint. In a receipt Proof is nil.
type Ack struct {
	Index uint64
	Proof *c2sp.Proof
}

// outcome is what became of one entry.
type outcome struct {
	ack Ack
	err error
}

// submission is one entry on its way into the log.
type submission struct {
	entry   *entry.Entry
	by      string // ID of the credential; "" for the log's own
	quota   int    // new entries a day of this credential for a project; 0: no limit
	leaf    []byte
	tessera *tessera.Entry // of leaf
	key     [32]byte
	digest  []byte
	finds   []uint64       // keys that lookups find it by
	credit  conflictCredit // who pays if this becomes a conflict entry; nil for the log's own
	needs   []need
	// Owned by the sequencer's run goroutine.
	batch uint64    // number of the batch that it was handed over in
	after uint64    // if not 0, it is decided when the batches up to this one are applied
	until time.Time // the same, of a shared log: what was reserved until then
	pending
}

// pending is the outcome of a submission.
type pending struct {
	group *group // whom to tell

	mu      sync.Mutex
	decided bool     // guarded by mu
	after   []func() // guarded by mu; called when decided

	// Set before group.done is closed.
	index uint64
	fresh bool // the leaf at index is this submission's own
	err   error
}

// group is submissions that are answered together.
type group struct {
	left atomic.Int64
	done chan struct{} // closed when all are decided
	gone atomic.Bool   // nobody waits any more
}

func newGroup(n int) *group {
	g := &group{done: make(chan struct{})}
	g.left.Store(int64(n))
	return g
}

func (g *group) one() {
	if g.left.Add(-1) == 0 {
		close(g.done)
	}
}

// resolve decides a submission, once.
func (p *pending) resolve(index uint64, fresh bool, err error) {
	p.mu.Lock()
	p.index, p.fresh, p.err, p.decided = index, fresh, err, true
	after := p.after
	p.after = nil
	p.mu.Unlock()
	for _, f := range after {
		f()
	}
	p.group.one()
}

// then calls f once p is decided, now if it is already.
func (p *pending) then(f func()) {
	p.mu.Lock()
	if !p.decided {
		p.after = append(p.after, f)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	f()
}

// newSubmission encodes e, alone in its group; the error is the entry's.
func newSubmission(e *entry.Entry, credit conflictCredit) (*submission, error) {
	s := &submission{entry: e, credit: credit, pending: pending{group: newGroup(1)}}
	return s, s.encode()
}

func (s *submission) encode() (err error) {
	if s.leaf, err = s.entry.Marshal(); err != nil {
		return err
	}
	if s.key, s.digest, err = slotKey(s.entry); err != nil {
		return err
	}
	s.needs = needs(s.entry, s.key)
	s.tessera = tessera.NewEntry(s.leaf)
	s.finds = findKeys(make([]uint64, 0, 8), [32]byte(s.tessera.LeafHash()), s.entry)
	return nil
}

// ticket is entries that were queued together on behalf of one credential.
type ticket struct {
	log     *Log
	by      string
	subs    []submission
	refused []error  // before they were queued; nil where they were
	charges []charge // to quotas
	group   *group
	queued  time.Time
}

// abandon gives up waiting; the entries are logged all the same, but for those
// that a shared log holds back still.
func (t *ticket) abandon() {
	t.group.gone.Store(true)
	t.log.admission.leave(t.by, len(t.subs))
}

// admission counts the submissions in flight.
type admission struct {
	mu  sync.Mutex
	all int            // guarded by mu
	of  map[string]int // guarded by mu; by credential, those that have any
}

// enter counts up to n more for a credential and returns how many, or says why
// none: limit is for all, and no credential has more than half of it.
func (a *admission) enter(by string, n, limit int) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	share := max(limit/2, 1)
	if a.of[by] >= share {
		return 0, fmt.Errorf("%w: this token has %d submissions in flight, its share", ErrOverloaded, share)
	}
	if a.all >= limit {
		return 0, fmt.Errorf("%w: %d submissions are in flight", ErrOverloaded, limit)
	}
	n = min(n, share-a.of[by], limit-a.all)
	a.all += n
	a.of[by] += n
	return n, nil
}

func (a *admission) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.all
}

func (a *admission) leave(by string, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all -= n
	if a.of[by] -= n; a.of[by] == 0 {
		delete(a.of, by)
	}
}

// queue admits entries on behalf of a credential, in order, and hands them to
// the sequencer: as many as there is room for, at least one, or an error. What
// is refused alone is in the ticket. The caller must call the ticket's wait or
// abandon exactly once, and leave the entries of the ticket alone.
func (l *Log) queue(ctx context.Context, by Credential, entries ...*entry.Entry) (*ticket, error) {
	if s := l.Status(); !s.Writable {
		return nil, fmt.Errorf("%w: %w", ErrReadOnly, s.Reason)
	}
	if err := l.room.check(); err != nil {
		return nil, err
	}
	n, err := l.admission.enter(by.ID, len(entries), l.cfg.MaxInFlight)
	if err != nil {
		return nil, err
	}
	t := &ticket{log: l, by: by.ID, subs: make([]submission, n), queued: time.Now()}
	credit := func(project string) bool {
		return l.conflicts.allow(by.ID, 0) && l.conflictsOf.allow(by.ID+"\x00"+project, 0)
	}
	for i := range t.subs {
		s := &t.subs[i]
		s.entry, s.by, s.quota, s.credit = entries[i], by.ID, by.Quota, credit
		err := by.bind(s.entry)
		if err == nil {
			err = s.encode()
		}
		if err != nil {
			t.refuse(i, err)
		}
	}
	if n, err = t.spend(ctx, by); err == nil {
		err = t.send(ctx)
	}
	if err != nil {
		for _, c := range t.charges {
			c.back()
		}
		l.admission.leave(by.ID, n)
		return nil, err
	}
	return t, nil
}

func (t *ticket) refuse(i int, err error) {
	if t.refused == nil {
		t.refused = make([]error, len(t.subs))
	}
	t.refused[i] = err
}

// send hands over what was not refused.
func (t *ticket) send(ctx context.Context) error {
	subs := make([]*submission, 0, len(t.subs))
	for i := range t.subs {
		if t.refused == nil || t.refused[i] == nil {
			subs = append(subs, &t.subs[i])
		}
	}
	t.group = newGroup(len(subs))
	if len(subs) == 0 {
		close(t.group.done)
		return nil
	}
	for _, s := range subs {
		s.group = t.group
	}
	return t.log.seq.submit(ctx, subs)
}

// spend charges the ticket to its credential's rate and quotas and to the log's
// rate. It cuts the ticket to what they allow, gives back the rest of its
// admission, and fails if the rates allow nothing; what is over its quota is
// refused alone. An entry that was refused for another reason uses up no rate. It returns the ticket's length.
func (t *ticket) spend(ctx context.Context, by Credential) (int, error) {
	l, n := t.log, len(t.subs)
	good := n
	for _, err := range t.refused {
		if err != nil {
			good--
		}
	}
	if good == 0 {
		return n, nil
	}
	allowed, err := l.allowance(ctx, by, good)
	if err != nil {
		return n, err
	}
	if allowed == 0 {
		return n, &limitError{reasonRate, fmt.Sprintf("this token may log %d entries a second", by.Rate), time.Second}
	}
	if allowed = upTo(l.rate, allowed); allowed == 0 {
		return n, fmt.Errorf("%w: the log takes %d entries a second", ErrOverloaded, l.cfg.MaxRate)
	}
	cut := 0
	for allowed > 0 && cut < n {
		if t.refused == nil || t.refused[cut] == nil {
			c, err := l.quotas.take(&t.subs[cut])
			switch {
			case err != nil:
				t.refuse(cut, err) // of one project: what follows may be of others
			case by.Quota > 0:
				t.charges = append(t.charges, c)
			}
			allowed--
		}
		cut++
	}
	if cut < n {
		t.subs = t.subs[:cut]
		if t.refused != nil {
			t.refused = t.refused[:cut]
		}
		l.admission.leave(by.ID, n-cut)
	}
	return cut, nil
}

// allowance takes as many submissions as a credential's rate allows, at most n.
func (l *Log) allowance(ctx context.Context, by Credential, n int) (int, error) {
	if l.shared != nil {
		return l.shared.rates.upTo(ctx, by, n)
	}
	return l.rates.upTo(by.ID, by.Rate, n), nil
}

// wait returns what became of each entry, once all are as far as w says. Its
// error is trouble that is worth trying again and says nothing about an entry.
func (t *ticket) wait(ctx context.Context, w Wait) ([]outcome, error) {
	defer t.abandon()
	select {
	case <-t.group.done:
	case <-t.log.seqDone:
		// The sequencer is gone; what it decided last is decided.
		select {
		case <-t.group.done:
		default:
			return nil, fmt.Errorf("%w: %w", ErrReadOnly, errClosing)
		}
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrNotPublished, ctx.Err())
	}
	out := make([]outcome, len(t.subs))
	var last uint64
	logged, charged := 0, t.charges
	for i := range t.subs {
		s := &t.subs[i]
		if t.refused != nil && t.refused[i] != nil {
			out[i].err = t.refused[i]
			continue
		}
		if len(charged) > 0 { // all entries of a credential with a quota are charged
			if s.err != nil || !s.fresh {
				charged[0].back() // nothing new was logged for it
			}
			charged = charged[1:]
		}
		if out[i].err = s.err; s.err == nil {
			out[i].ack.Index = s.index
			last = max(last, s.index)
			logged++
		}
	}
	if logged == 0 {
		return out, nil
	}
	if t.log.who != nil {
		indexes := make([]uint64, 0, logged)
		for i := range out {
			if out[i].err == nil {
				indexes = append(indexes, out[i].ack.Index)
			}
		}
		if err := t.log.who.ensure(ctx, indexes, t.by); err != nil {
			t.log.cfg.Logger.Error("cannot record who logged what; nothing is acknowledged until it can be", "err", err)
			return nil, fmt.Errorf("%w: the entry is logged and could not be recorded; submit it again", ErrStorage)
		}
	}
	noteSequenced(ctx, last)
	if w == Cosigned {
		if err := t.cosigned(ctx, out, last); err != nil {
			return nil, err
		}
	}
	t.log.metrics.acknowledged(w.String(), time.Since(t.queued), logged)
	return out, nil
}

// cosigned waits until all that was logged is published, and proves it.
func (t *ticket) cosigned(ctx context.Context, out []outcome, last uint64) error {
	p, err := t.log.board.wait(ctx, last, t.log.ended)
	if errors.Is(err, errStopped) {
		return fmt.Errorf("%w: %w", ErrReadOnly, t.log.Status().Reason)
	}
	if err != nil {
		why := t.log.trouble()
		if why == nil {
			why = err
		}
		return fmt.Errorf("%w: entry %d waits for a checkpoint: %w", ErrNotPublished, last, why)
	}
	for i := range out {
		if out[i].err != nil {
			continue
		}
		var leaf []byte
		if t.subs[i].fresh {
			leaf = t.subs[i].leaf
		}
		if out[i].ack.Proof, err = t.log.prove(ctx, p, out[i].ack.Index, leaf); err != nil {
			return err
		}
	}
	linkPublished(ctx, p)
	return nil
}

// Submit logs e on behalf of a credential and waits for its acknowledgement or
// receipt, until ctx ends and at most Config.MaxWait.
func (l *Log) Submit(ctx context.Context, by Credential, e *entry.Entry, w Wait) (*Ack, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.MaxWait)
	defer cancel()
	own := *e
	t, err := l.queue(ctx, by, &own)
	if err != nil {
		return nil, l.closedBy(err)
	}
	ack, err := t.one(ctx, w)
	return ack, l.closedBy(err)
}

// one is wait for a ticket of one entry.
func (t *ticket) one(ctx context.Context, w Wait) (*Ack, error) {
	out, err := t.wait(ctx, w)
	if err == nil {
		err = out[0].err
	}
	if err != nil {
		return nil, err
	}
	return &out[0].ack, nil
}

// prove builds the proof of entry index against p, which must cover it, and
// checks it before anyone gets it. leaf is read from the log if it is nil.
func (l *Log) prove(ctx context.Context, p Published, index uint64, leaf []byte) (*c2sp.Proof, error) {
	t := l.tree(int64(p.Size))
	t.ctx = ctx
	return l.proveIn(t, p, index, leaf)
}

// proveIn is prove in t, which is the tree of p.
func (l *Log) proveIn(t tree, p Published, index uint64, leaf []byte) (*c2sp.Proof, error) {
	if leaf == nil {
		leaves, err := t.leaves(int64(index), 1)
		if err != nil {
			return nil, err
		}
		leaf = leaves[0]
	}
	hashes, err := t.inclusion(int64(index))
	if err != nil {
		return nil, err
	}
	if err := c2sp.VerifyInclusion(index, p.Size, entry.LeafHash(leaf), hashes, p.Root); err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", errUnreadable, index, err)
	}
	return &c2sp.Proof{Extra: leaf, Index: index, Hashes: hashes, Checkpoint: p.Note}, nil
}

// limits are rate limits by key, forgotten when there are too many keys.
type limits struct {
	mu    sync.Mutex
	every rate.Limit
	burst int
	byKey map[string]*rate.Limiter // guarded by mu
}

const maxLimits = 100_000

func newLimits(every rate.Limit, burst int) *limits {
	return &limits{every: every, burst: burst, byKey: map[string]*rate.Limiter{}}
}

// allow takes one from key's allowance. perSecond, if not 0, is the key's own rate.
func (l *limits) allow(key string, perSecond int) bool { return l.upTo(key, perSecond, 1) == 1 }

// upTo takes as many as are left of key's allowance, at most n.
func (l *limits) upTo(key string, perSecond, n int) int {
	every, burst := l.every, l.burst
	if perSecond > 0 {
		every, burst = rate.Limit(perSecond), perSecond
	}
	if every == rate.Inf {
		return n
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	lim := l.byKey[key]
	if lim == nil || lim.Limit() != every {
		if len(l.byKey) >= maxLimits {
			clear(l.byKey)
		}
		lim = rate.NewLimiter(every, burst)
		l.byKey[key] = lim
	}
	return upTo(lim, n)
}

// upTo takes as many as are left, at most n.
func upTo(lim *rate.Limiter, n int) int {
	now := time.Now()
	n = min(n, int(lim.TokensAt(now)))
	if n < 1 || !lim.AllowN(now, n) { // taken by another meanwhile
		return 0
	}
	return n
}
