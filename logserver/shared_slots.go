package logserver

// Uniqueness of a shared log, decided by any number of frontends at once:
//
//	submit ─▶ [batch] ─▶ one transaction: reserve (INSERT … ON CONFLICT DO
//	NOTHING), look at the rows, take back what is refused, commit ─▶ queue with
//	the engine ─▶ the publisher integrates it and writes its index ─▶ whoever waits
//
// A reservation is the submission itself: its random ID and its leaf are durable
// before the engine hears of it, and the engine takes each ID once. So anyone
// may queue it again, and nobody ever takes it back: it will be in the log.
//
// The rules are those of slots.go and of needs (sequencer.go): verdict and
// applyTo are the same functions. What an entry in flight may yet change is not
// decided before that entry is applied. Uploads share an advisory lock for the
// length of their transaction; a reject, remove or registry policy has it alone,
// so each sees all that the others have reserved. What is refused for something
// that the log lacks waits first for what is in flight and may be that: its
// upload, or a baseline; then it is decided for good.

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/portbook/portbook/entry"
)

// submissionID names a submission to the engine, which takes each once.
type submissionID = [32]byte

const (
	sharedBatch    = 512
	sharedQueuers  = 64                     // calls of the engine at once
	heldPause      = 20 * time.Millisecond  // before what is held back is looked at again
	followPause    = 200 * time.Millisecond // between two looks at the database while nothing is heard
	waitingFor     = 5 * time.Second        // that a need is kept for one who waits to have it alone
	queueRetry     = 250 * time.Millisecond
	decideAttempts = 3
)

// sharedSequencer decides submissions in the shared database.
type sharedSequencer struct {
	pool    *pgxpool.Pool
	engine  SharedEngine
	entryAt func(index int64) (*entry.Entry, error)
	now     func() time.Time
	logger  *slog.Logger
	origin  string
	in      chan []*submission
	gone    <-chan struct{} // closed when run has returned, or never runs
	owner   [16]byte        // of rows in waiting

	// Owned by the run goroutine.
	held []*submission // wait for what is in flight, in order of arrival

	// decided is how many entries a decision has found integrated: it may read
	// them before this frontend has heard of them. The run goroutine writes it.
	decided atomic.Uint64

	mu     sync.Mutex
	flight map[submissionID]*sharedFlight // guarded by mu; not known to be integrated
	seen   int64                          // guarded by mu; indexes below it have been given out

	testDecided func() // called in tests between the commit and the engine
}

// sharedFlight is a submission on its way into the log, of this frontend or of
// another one, and who waits for its index here.
type sharedFlight struct {
	id     submissionID
	digest []byte
	leaf   []byte
	own    *submission   // whose reservation it is; nil: another frontend's
	joined []*submission // for the same slot
}

func newSharedSequencer(pool *pgxpool.Pool, engine SharedEngine) *sharedSequencer {
	q := &sharedSequencer{pool: pool, engine: engine, in: make(chan []*submission, queueMax), flight: map[submissionID]*sharedFlight{}}
	rand.Read(q.owner[:])
	return q
}

// submit implements sequencing.
func (q *sharedSequencer) submit(ctx context.Context, subs []*submission) error {
	select {
	case q.in <- subs:
		return nil
	case <-q.gone:
		return fmt.Errorf("%w: %w", ErrReadOnly, errClosing)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run implements sequencing.
func (q *sharedSequencer) run(ctx context.Context) {
	var queuing sync.WaitGroup
	defer queuing.Wait()
	queue := make(chan *sharedFlight, 4*sharedBatch)
	defer close(queue)
	for range sharedQueuers {
		queuing.Go(func() {
			for f := range queue {
				q.queueOne(ctx, f)
			}
		})
	}
	for {
		var again <-chan time.Time
		if len(q.held) > 0 {
			again = time.After(heldPause)
		}
		select {
		case <-ctx.Done():
			closing := fmt.Errorf("%w: %w", ErrReadOnly, errClosing)
			refuse(q.held, closing)
			for {
				select {
				case subs := <-q.in:
					refuse(subs, closing)
					continue
				default:
				}
				return
			}
		case <-again:
			q.decide(ctx, nil, queue)
		case batch := <-q.in:
			batch = slices.Clone(batch) // the caller keeps the other
			for len(batch) < sharedBatch && len(q.in) > 0 {
				batch = append(batch, <-q.in...) // nobody else receives
			}
			q.decide(ctx, batch, queue)
		}
	}
}

func refuse(subs []*submission, err error) {
	for _, s := range subs {
		s.resolve(0, false, err)
	}
}

// queueOne hands a reserved submission to the engine, until it has it or the
// server stops: then the publisher's sweep does.
func (q *sharedSequencer) queueOne(ctx context.Context, f *sharedFlight) {
	for pause := queueRetry; ; pause = min(2*pause, 5*time.Second) {
		if ctx.Err() != nil {
			return
		}
		err := q.engine.Queue(ctx, f.id, f.leaf)
		if err == nil || ctx.Err() != nil {
			return
		}
		q.logger.Warn("the engine did not take an entry; trying again", "err", err)
		if !sleep(ctx, pause) {
			return
		}
		q.mu.Lock()
		there := q.flight[f.id] != nil
		q.mu.Unlock()
		if !there {
			return // somebody else queued it, and it is in the log
		}
	}
}

// alone is the need that e has alone, nil if it has none.
func aloneNeed(s *submission) []byte {
	for _, n := range s.needs {
		if n.alone {
			return n.key[:]
		}
	}
	return nil
}

// policyNeed is the policy that an upload goes by, nil for other kinds.
func policyNeed(s *submission) []byte {
	if s.entry.Kind != entry.KindUpload {
		return nil
	}
	return s.needs[1].key[:]
}

// announces is what e will be found by once it is in the log, if a status may
// wait for it; else nil.
func announces(e *entry.Entry) []byte {
	var key [32]byte
	switch e.Kind {
	case entry.KindUpload:
		key = mark{e.Registry, e.Ecosystem, e.Project, ""}.key()
	case entry.KindBaseline:
		key = mark{registry: e.Registry, ecosystem: e.Ecosystem}.key()
	default:
		return nil
	}
	return key[:]
}

// anything is in what awaits returns: the entry may need any other.
var anything [32]byte

// awaits is what something in flight may announce that e needs of the log: see
// precondition.
func awaits(e *entry.Entry) [][32]byte {
	switch e.Kind {
	case entry.KindYank, entry.KindUnyank, entry.KindQuarantine, entry.KindUnquarantine, entry.KindDeprecate, entry.KindUndeprecate,
		entry.KindArchive, entry.KindUnarchive, entry.KindRemove, entry.KindDistTag:
		return [][32]byte{mark{e.Registry, e.Ecosystem, e.Project, ""}.key(), mark{registry: e.Registry, ecosystem: e.Ecosystem}.key()}
	case entry.KindDispute: // its index
		return [][32]byte{anything}
	}
	return nil
}

// announced are the times at which what is in flight, of one mark, was reserved.
type announced struct{ first, last time.Time }

// mustWait reports whether s, which lacks something, must wait for what is in
// flight: what is there when it is first asked, and not what comes later.
func mustWait(inFlight map[[32]byte]announced, s *submission) bool {
	first, wait := s.until.IsZero(), false
	for _, key := range awaits(s.entry) {
		a, there := inFlight[key]
		switch {
		case !there:
		case !first:
			wait = wait || !a.first.After(s.until)
		default:
			wait = true
			if a.last.After(s.until) {
				s.until = a.last
			}
		}
	}
	return wait
}

// decide decides what is held back, then batch. What must be alone has a
// transaction of its own, in its turn. What nobody waits for any more is not
// held back for ever.
func (q *sharedSequencer) decide(ctx context.Context, batch []*submission, queue chan<- *sharedFlight) {
	q.held = slices.DeleteFunc(q.held, func(s *submission) bool {
		gone := s.group.gone.Load()
		if gone {
			s.resolve(0, false, ErrNotPublished)
		}
		return gone
	})
	batch = append(q.held, batch...)
	q.held = nil
	waiting := usage{} // the needs of what is held back: nothing overtakes it
	for len(batch) > 0 {
		n := slices.IndexFunc(batch, func(s *submission) bool { return aloneNeed(s) != nil })
		switch {
		case n == 0:
			n = 1
		case n < 0:
			n = len(batch)
		}
		var part []*submission
		for _, s := range batch[:n] {
			if waiting.allows(s.needs) {
				part = append(part, s)
			} else {
				q.held = append(q.held, s)
				waiting.add(s.needs, 1)
			}
		}
		batch = batch[n:]
		for len(part) > 0 {
			m := min(len(part), sharedBatch)
			for _, s := range q.decidePart(ctx, part[:m], queue) {
				q.held = append(q.held, s)
				waiting.add(s.needs, 1)
			}
			part = part[m:]
		}
	}
}

// decidePart decides submissions that need nothing alone, or one that does, and
// returns those that must wait for what is in flight.
func (q *sharedSequencer) decidePart(ctx context.Context, subs []*submission, queue chan<- *sharedFlight) (held []*submission) {
	var d *sharedDecision
	var err error
	for range decideAttempts {
		d = &sharedDecision{q: q, byKey: map[[32]byte]*sharedFlight{}}
		err = pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error { return d.inTx(ctx, tx, subs) })
		if err == nil {
			break
		}
		subs = d.forget(subs)
		if !isContended(err) {
			break
		}
	}
	var frozen *FrozenError
	if errors.As(err, &frozen) {
		refuse(subs, frozen)
		return nil
	}
	if err != nil {
		if ctx.Err() == nil {
			q.logger.Error("the shared database cannot decide on submissions", "err", err)
		}
		// A commit that failed may have happened all the same: then the sweep
		// queues what it reserved, and the same submission joins it.
		refuse(subs, databaseTrouble(publicTrouble(err)))
		return nil
	}
	if q.testDecided != nil {
		q.testDecided()
	}
	for _, f := range d.fresh {
		select {
		case queue <- f:
		case <-ctx.Done():
		}
	}
	for _, o := range d.outcomes {
		var conflict *ConflictError
		if errors.As(o.err, &conflict) && conflict.Slot.File != "" {
			q.recordConflict(o.sub, conflict)
		}
		o.sub.resolve(o.index, false, o.err)
	}
	if foreign := d.join(); len(foreign) > 0 {
		q.look(ctx, foreign)
	}
	return d.held
}

// isContended says that the database gave up on a transaction for the sake of
// another one.
func isContended(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == "40001" || e.Code == "40P01")
}

// publicTrouble leaves away what a caller must not see.
func publicTrouble(err error) error {
	if errors.Is(err, errUnsafe) || errors.Is(err, errNotOpen) || errors.Is(err, errLatched) || errors.Is(err, errAwaits) {
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return fmt.Errorf("%w: the uniqueness database cannot be written", ErrStorage)
}

var (
	errNotOpen = errors.New("no publisher has made sure of the log yet since its database started")
	errAwaits  = errors.New("it waits for its first entry")
)

// sharedDecision is one transaction.
type sharedDecision struct {
	q        *sharedSequencer
	fresh    []*sharedFlight            // reserved by us
	byKey    map[[32]byte]*sharedFlight // in flight
	joining  []*submission              // what is in flight in byKey
	held     []*submission
	outcomes []sharedOutcome

	registered bool // fresh is known to the followers
}

type sharedOutcome struct {
	sub   *submission
	index uint64
	err   error
}

// forget takes back what inTx told the followers to look out for, and returns
// those of subs that have no answer yet.
func (d *sharedDecision) forget(subs []*submission) []*submission {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	answered := map[*submission]bool{}
	for _, f := range d.fresh {
		// The commit may have happened, and the entry have arrived.
		answered[f.own] = d.q.flight[f.id] == nil && d.registered
		delete(d.q.flight, f.id)
	}
	return slices.DeleteFunc(slices.Clone(subs), func(s *submission) bool { return answered[s] })
}

// join lets submissions wait for what is in flight for their slot, and returns
// the flights that may have arrived before we listened.
func (d *sharedDecision) join() (look []submissionID) {
	q := d.q
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range d.joining {
		f := d.byKey[s.key]
		known := q.flight[f.id]
		if known == nil {
			known = &sharedFlight{id: f.id, digest: f.digest, leaf: f.leaf}
			q.flight[f.id] = known
			look = append(look, f.id)
		}
		known.joined = append(known.joined, s)
	}
	return look
}

func (d *sharedDecision) inTx(ctx context.Context, tx pgx.Tx, subs []*submission) error {
	q := d.q
	alone := aloneNeed(subs[0]) != nil // then it is the only one
	lock := "SELECT pg_advisory_xact_lock_shared($1, $2)"
	if alone {
		lock = "SELECT pg_advisory_xact_lock($1, $2)"
	}
	// One reservation for each slot; the others of this batch join it. In the
	// order of keys, so that two frontends do not wait for each other.
	first := map[[32]byte]*sharedFlight{}
	var later []*submission
	var try []*sharedFlight
	for _, s := range subs {
		if first[s.key] != nil {
			later = append(later, s)
			continue
		}
		f := &sharedFlight{digest: s.digest, leaf: s.leaf, own: s}
		rand.Read(f.id[:])
		first[s.key] = f
		try = append(try, f)
	}
	slices.SortFunc(try, func(a, b *sharedFlight) int { return bytes.Compare(a.own.key[:], b.own.key[:]) })
	var ids, keys, digests, leaves, alones, policies, marks, needed, slotKeys, waitsFor, disputes [][]byte
	var registries, ecosystems, by []string
	for _, f := range try {
		s := f.own
		by = append(by, s.by)
		ids, keys, digests, leaves = append(ids, f.id[:]), append(keys, s.key[:]), append(digests, s.digest), append(leaves, s.leaf)
		alones, policies, marks = append(alones, aloneNeed(s)), append(policies, policyNeed(s)), append(marks, announces(s.entry))
		for _, key := range awaits(s.entry) {
			if key == anything {
				disputes = append(disputes, f.id[:])
			} else {
				waitsFor = append(waitsFor, key[:])
			}
		}
		for _, n := range s.needs {
			needed = append(needed, n.key[:])
		}
		for _, k := range keysFor(s.entry, s.key) {
			slotKeys = append(slotKeys, k[:])
		}
		if s.entry.Kind == entry.KindUpload {
			registries, ecosystems = append(registries, s.entry.Registry), append(ecosystems, s.entry.Ecosystem)
		}
	}

	var state sharedState
	var unsafe string
	var now int64 // seconds since 1970, by the database's clock
	reserved := map[submissionID]bool{}
	blocked := map[[32]byte]bool{}
	inFlight := map[[32]byte]announced{}
	rows := mapRows{slots: map[[32]byte]*slotRow{}, policies: map[[2]string]string{}}
	b := &pgx.Batch{}
	b.Queue(lock, lockClass, lockDecision)
	b.Queue("SELECT integrated, floor(extract(epoch FROM clock_timestamp()))::bigint, opened = " + bootOf + ", latched, " + closedTo + ", " + awaitsFirst + ", " + unsafeSetting + " FROM log").QueryRow(func(r pgx.Row) error {
		return r.Scan(&state.integrated, &now, &state.open, &state.latched, &state.closed, &state.awaits, &unsafe)
	})
	b.Queue(`INSERT INTO submissions (id, key, digest, leaf, alone, policy, by, mark)
		SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::text[], $8::bytea[])
		ON CONFLICT (key) WHERE idx IS NULL DO NOTHING RETURNING id`, ids, keys, digests, leaves, alones, policies, by, marks).Query(func(r pgx.Rows) error {
		for r.Next() {
			var id []byte
			if err := r.Scan(&id); err != nil {
				return err
			}
			reserved[submissionID(id)] = true
		}
		return r.Err()
	})
	// What is in flight beside us and has a need of ours, in a way that excludes us.
	if alone {
		b.Queue(`SELECT DISTINCT $1::bytea FROM submissions WHERE idx IS NULL AND id <> $2 AND (key = $1 OR alone = $1 OR policy = $1)`,
			aloneNeed(subs[0]), try[0].id[:]).Query(collectKeys(blocked))
	} else {
		b.Queue(`SELECT alone FROM submissions WHERE idx IS NULL AND alone = ANY($1)
			UNION SELECT need FROM waiting WHERE need = ANY($1) AND until > clock_timestamp()`, needed).Query(collectKeys(blocked))
	}
	// What is in flight and may be what a status lacks. It is looked for before the
	// rows are: what arrives in between is seen in them.
	collect := func(r pgx.Rows) error {
		for r.Next() {
			var key []byte
			var a announced
			if err := r.Scan(&key, &a.first, &a.last); err != nil {
				return err
			}
			inFlight[[32]byte(key)] = a
		}
		return r.Err()
	}
	if len(waitsFor) > 0 {
		b.Queue("SELECT mark, min(at), max(at) FROM submissions WHERE idx IS NULL AND mark = ANY($1) GROUP BY mark", waitsFor).Query(collect)
	}
	if len(disputes) > 0 {
		b.Queue("SELECT $1::bytea, min(at), max(at) FROM submissions WHERE idx IS NULL AND NOT id = ANY($2) HAVING count(*) > 0", anything[:], disputes).Query(collect)
	}
	b.Queue("SELECT key, digest, idx, removed FROM slots WHERE key = ANY($1)", slotKeys).Query(rows.collectSlots)
	b.Queue(`SELECT registry, ecosystem, overwrite FROM policies WHERE (registry, ecosystem) IN (SELECT * FROM unnest($1::text[], $2::text[]))`,
		registries, ecosystems).Query(rows.collectPolicies)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return err
	}
	if err := errors.Join(refuseUnsafe(unsafe), state.whyNot(q.origin)); err != nil {
		return err
	}

	decided := max(q.decided.Load(), uint64(state.integrated))
	for _, r := range rows.slots { // newer than the tail, maybe
		decided = max(decided, r.index+1)
	}
	q.decided.Store(decided)

	var unwanted, asked [][]byte
	for _, f := range try {
		s := f.own
		if slices.ContainsFunc(s.needs, func(n need) bool { return blocked[n.key] }) {
			if reserved[f.id] {
				unwanted = append(unwanted, f.id[:])
			}
			d.held = append(d.held, s)
			first[s.key] = nil
			continue
		}
		if !reserved[f.id] {
			asked = append(asked, s.key[:]) // in flight already
			continue
		}
		var index uint64
		isNew := false
		r, err := rows.row(s.key)
		if err == nil && s.entry.Kind == entry.KindConflict && r == nil && !s.credit(s.entry.Project) {
			err = errNoCredit
		}
		if err == nil {
			index, isNew, err = verdict(rows, state.integrated, q.entryAt, s.entry, s.key, s.digest)
		}
		if isNew {
			d.fresh = append(d.fresh, f)
			d.byKey[s.key] = f
			continue
		}
		if err != nil && !isVerdict(err) && !errors.Is(err, errNoCredit) {
			return err
		}
		unwanted = append(unwanted, f.id[:])
		var lacks *PreconditionError
		if errors.As(err, &lacks) && mustWait(inFlight, s) {
			d.held = append(d.held, s)
			first[s.key] = nil
			continue
		}
		d.outcomes = append(d.outcomes, sharedOutcome{s, index, err})
		first[s.key] = nil
	}
	over, err := d.charge(ctx, tx, now, subs)
	if err != nil {
		return err
	}
	for _, f := range over {
		unwanted = append(unwanted, f.id[:])
		first[f.own.key] = nil
	}
	b = &pgx.Batch{}
	if len(unwanted) > 0 {
		b.Queue("DELETE FROM submissions WHERE id = ANY($1)", unwanted)
	}
	if len(asked) > 0 {
		b.Queue("SELECT id, key, digest, leaf FROM submissions WHERE key = ANY($1) AND idx IS NULL AND NOT id = ANY($2)", asked, unwanted).Query(func(r pgx.Rows) error {
			for r.Next() {
				var id, key, digest, leaf []byte
				if err := r.Scan(&id, &key, &digest, &leaf); err != nil {
					return err
				}
				d.byKey[[32]byte(key)] = &sharedFlight{id: submissionID(id), digest: digest, leaf: leaf}
			}
			return r.Err()
		})
	}
	if alone {
		if len(d.held) > 0 {
			b.Queue(`INSERT INTO waiting VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second') ON CONFLICT (need, owner) DO UPDATE SET until = excluded.until`,
				aloneNeed(subs[0]), q.owner[:], waitingFor.Seconds())
		} else {
			b.Queue("DELETE FROM waiting WHERE owner = $1 OR until < clock_timestamp()", q.owner[:])
		}
	}
	if b.Len() > 0 {
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
	}

	for _, f := range try {
		if first[f.own.key] == f && !reserved[f.id] {
			later = append(later, f.own)
		}
	}
	for _, s := range later {
		if d.byKey[s.key] != nil {
			d.joining = append(d.joining, s)
		} else { // it arrived between two of our statements, or was held or refused: look again
			d.held = append(d.held, s)
		}
	}
	// The followers look out for what is reserved before anyone can see it.
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, f := range d.fresh {
		q.flight[f.id] = f
	}
	d.registered = true
	return nil
}

// charge counts what is reserved to the quotas of today, over all frontends, in
// the transaction that reserves it: nothing else is logged anew, and nothing of
// it is given back. It takes back, and returns, what is over its quota.
func (d *sharedDecision) charge(ctx context.Context, tx pgx.Tx, now int64, subs []*submission) (over []*sharedFlight, err error) {
	wants := map[[16]byte][]*sharedFlight{} // in order of arrival
	for _, s := range subs {
		if f := d.byKey[s.key]; s.quota > 0 && f != nil && f.own == s {
			key, _ := quotaKeys(s)
			wants[key] = append(wants[key], f)
		}
	}
	if len(wants) == 0 {
		return nil, nil
	}
	// In the order of keys, so that two frontends do not wait for each other.
	order := slices.SortedFunc(maps.Keys(wants), func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	var keys [][]byte
	var counts, quotas []int64
	for _, k := range order {
		keys, counts, quotas = append(keys, k[:]), append(counts, int64(len(wants[k]))), append(quotas, int64(wants[k][0].own.quota))
	}
	rows, err := tx.Query(ctx, `INSERT INTO quotas (day, key, used, most)
		SELECT $1, key, least(n, most), most FROM unnest($2::bytea[], $3::bigint[], $4::bigint[]) u (key, n, most)
		ON CONFLICT (day, key) DO UPDATE SET before = quotas.used, most = excluded.most,
			used = greatest(quotas.used, least(quotas.used + excluded.used, excluded.most))
		RETURNING key, used - before`, now/daySeconds, keys, counts, quotas)
	if err != nil {
		return nil, err
	}
	var key []byte
	var granted int
	_, err = pgx.ForEachRow(rows, []any{&key, &granted}, func() error {
		list := wants[[16]byte(key)]
		over = append(over, list[min(granted, len(list)):]...)
		return nil
	})
	for _, f := range over {
		delete(d.byKey, f.own.key)
		d.outcomes = append(d.outcomes, sharedOutcome{f.own, 0, overQuota(f.own.quota, now)})
	}
	d.fresh = slices.DeleteFunc(d.fresh, func(f *sharedFlight) bool { return d.byKey[f.own.key] != f })
	return over, err
}

// collectKeys adds the keys of a query to a set.
func collectKeys(set map[[32]byte]bool) func(pgx.Rows) error {
	return func(r pgx.Rows) error {
		for r.Next() {
			var key []byte
			if err := r.Scan(&key); err != nil {
				return err
			}
			set[[32]byte(key)] = true
		}
		return r.Err()
	}
}

// look finds out about flights that may have arrived before we listened.
func (q *sharedSequencer) look(ctx context.Context, ids []submissionID) {
	list := make([][]byte, len(ids))
	for i := range ids {
		list[i] = ids[i][:]
	}
	rows, err := q.pool.Query(ctx, "SELECT id, idx FROM submissions WHERE id = ANY($1) AND idx IS NOT NULL", list)
	if err == nil {
		err = q.arrivedRows(rows)
	}
	if err != nil && ctx.Err() == nil {
		q.logger.Warn("the shared database cannot be read; who waits may have to ask again", "err", err)
	}
}

// follow gives out the indexes below integrated.
func (q *sharedSequencer) follow(ctx context.Context, integrated int64) error {
	q.mu.Lock()
	from, any := q.seen, len(q.flight) > 0
	q.mu.Unlock()
	if integrated <= from {
		return nil
	}
	if any {
		rows, err := q.pool.Query(ctx, "SELECT id, idx FROM submissions WHERE idx >= $1 AND idx < $2", from, integrated)
		if err == nil {
			err = q.arrivedRows(rows)
		}
		if err != nil {
			return databaseTrouble(err)
		}
	}
	q.mu.Lock()
	q.seen = integrated
	q.mu.Unlock()
	return nil
}

func (q *sharedSequencer) arrivedRows(rows pgx.Rows) error {
	defer rows.Close()
	for rows.Next() {
		var id []byte
		var idx int64
		if err := rows.Scan(&id, &idx); err != nil {
			return err
		}
		q.arrived(submissionID(id), uint64(idx))
	}
	return rows.Err()
}

// arrived tells who waits for a submission that it stands at index.
func (q *sharedSequencer) arrived(id submissionID, index uint64) {
	q.mu.Lock()
	f := q.flight[id]
	delete(q.flight, id)
	q.mu.Unlock()
	if f == nil {
		return
	}
	if f.own != nil {
		f.own.resolve(index, true, nil)
	}
	for _, s := range f.joined {
		var err error
		same, comparable := bytes.Equal(s.digest, f.digest), true
		if s.entry.Kind == entry.KindUpload {
			same, comparable = sameDigest(s.digest, f.digest)
		}
		switch {
		case same:
		case !comparable:
			err = otherAlgorithm(index)
		case s.entry.Kind != entry.KindUpload:
			err = otherEntry(s.entry, index)
		default:
			c := otherBytes(s.entry, index)
			q.recordConflict(s, c)
			err = c
		}
		if err != nil {
			s.resolve(0, false, err)
		} else {
			s.resolve(index, bytes.Equal(s.leaf, f.leaf), nil)
		}
	}
}

// recordConflict submits the record that a second digest was refused.
func (q *sharedSequencer) recordConflict(s *submission, c *ConflictError) {
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

// mapRows implements slotRows on rows that were read before; what changes is
// noted, to be written back.
type mapRows struct {
	slots    map[[32]byte]*slotRow
	policies map[[2]string]string
	changed  map[[32]byte]bool  // of slots; nil where nothing may change
	policy   map[[2]string]bool // of policies
}

func (m mapRows) collectSlots(r pgx.Rows) error {
	for r.Next() {
		var key []byte
		var row slotRow
		var idx int64
		if err := r.Scan(&key, &row.digest, &idx, &row.removed); err != nil {
			return err
		}
		row.index = uint64(idx)
		m.slots[[32]byte(key)] = &row
	}
	return r.Err()
}

func (m mapRows) collectPolicies(r pgx.Rows) error {
	for r.Next() {
		var registry, ecosystem, overwrite string
		if err := r.Scan(&registry, &ecosystem, &overwrite); err != nil {
			return err
		}
		m.policies[[2]string{registry, ecosystem}] = overwrite
	}
	return r.Err()
}

func (m mapRows) row(key [32]byte) (*slotRow, error) { return m.slots[key], nil }

func (m mapRows) overwrite(registry, ecosystem string) (string, error) {
	return m.policies[[2]string{registry, ecosystem}], nil
}

func (m mapRows) pin(key [32]byte, digest []byte, index int64) error {
	if r := m.slots[key]; r == nil || !bytes.Equal(r.digest, digest) {
		m.slots[key] = &slotRow{digest: digest, index: uint64(index)}
		m.changed[key] = true
	}
	return nil
}

// Marks stand among the slots, without a digest.
func (m mapRows) has(x mark) (bool, error) { return m.slots[x.key()] != nil, nil }

func (m mapRows) set(x mark, index int64) error {
	if key := x.key(); m.slots[key] == nil {
		m.slots[key] = &slotRow{digest: []byte{}, index: uint64(index)}
		m.changed[key] = true
	}
	return nil
}

func (m mapRows) free(key [32]byte) error {
	m.slots[key] = nil
	m.changed[key] = true
	return nil
}

func (m mapRows) setRemoved(key [32]byte) error {
	if r := m.slots[key]; r != nil {
		m.slots[key] = &slotRow{digest: r.digest, index: r.index, removed: true}
		m.changed[key] = true
	}
	return nil
}

func (m mapRows) setOverwrite(registry, ecosystem, overwrite string) error {
	m.policies[[2]string{registry, ecosystem}] = overwrite
	m.policy[[2]string{registry, ecosystem}] = true
	return nil
}
