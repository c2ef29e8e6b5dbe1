package logserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera"
	"golang.org/x/time/rate"
)

// Config says how a log is served.
type Config struct {
	Dir    string   // made by Init
	Signer Signer   // the log's Ed25519 key; its name is the origin
	Also   []Signer // its other keys that are not retired; see Identity
	// Shared makes this server a frontend of a shared log: then Dir is its own,
	// and Signer may be nil.
	Shared *SharedConfig
	Policy *c2sp.Policy // the publish policy; its log lines, if any, must have one of the keys
	Logger *slog.Logger
	Now    func() time.Time // of entries the log itself makes, and of tokens

	// AnchorBeside allows the anchor on the log's own file system, where a
	// restored backup brings both back together.
	AnchorBeside bool

	Interval    time.Duration // at least this between two checkpoints; 0 means 100 ms
	Republish   time.Duration // an unchanged tree is cosigned anew after this; 0 means 10 min
	RoundLimit  time.Duration // for one round of cosigning; 0 means 6 s
	MaxInFlight int           // submissions at once, of which one credential has at most half; 0 means 32768
	MaxRate     int           // submissions a second, of all credentials; 0 means 100000
	MaxReads    int           // lookups and proofs at once, which need no credential; 0 means 64
	MaxWait     time.Duration // for one submission to be published; 0 means 30 s
	// MinFree is the share of the disk, of bytes and of inodes, below which nothing
	// more is taken, for the log and for its anchor; 0 means none. A frontend's
	// disk is not watched: nothing on it is the log's.
	MinFree float64

	// Private: whoever reads tiles, the checkpoint, proofs or entries needs a
	// credential that reads. Witnesses see origin, size and root as always.
	Private bool

	testEnding func(step string) // called in tests between the steps of Log.end
	testStart  func(*Log)        // called in tests before the log is made sure of
}

func (c *Config) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.Interval, 100*time.Millisecond)
	set(&c.Republish, 10*time.Minute)
	set(&c.RoundLimit, 6*time.Second)
	set(&c.MaxWait, 30*time.Second)
	for n, v := range map[*int]int{&c.MaxInFlight: 32768, &c.MaxRate: 100_000, &c.MaxReads: 64} {
		if *n == 0 {
			*n = v
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Log is a log that is being served.
type Log struct {
	cfg    Config
	keys   *keyring
	lock   *fileLock
	src    tileSource // what readers get
	tiles  *tileCache // of src
	static *static    // of src
	board  *board
	seq    sequencing // nil if the write side could not be opened
	lookup *index
	Tokens *Credentials
	// ended is closed when nothing more will be published here; trouble is why
	// the last round published nothing, nil if it did. Both are set if seq is.
	ended   <-chan struct{}
	trouble func() error

	// Of the embedded engine; nil where there is none, or no anchor.
	engine *lateEngine
	anchor anchor
	// takeAnchor makes anchor this server's; makeSure calls it until it has.
	takeAnchor func() error
	room       room
	journal    atomic.Pointer[journal] // set once the log takes submissions
	streamFile *streamFile
	recalled   bool       // quotas know what was logged today; owned by makeSure
	pub        *publisher // of a shared log too
	shared     *shared    // nil unless the log is shared

	streams *streams     // progress of named streams; set once the log takes submissions
	who     attributions // who logged what; set once the log takes submissions

	metrics *metrics

	admission   admission
	reads       atomic.Int64 // reading calls under way
	readStreams atomic.Int64 // of them, streams
	conflicts   *limits      // of conflict entries, by credential
	conflictsOf *limits      // of conflict entries, by credential and project
	rates       *limits      // of submissions, by credential; of a shared log see shared.rates
	rate        *rate.Limiter
	quotas      *quotas   // of new entries, by credential and project; nil of a shared log, which counts in its database
	refusals    *refusals // of callers and entries, because of who asks
	rest        restCalls

	mark atomic.Pointer[FreezeMark] // set once the log is to end

	follower *follower // of a server that only reads; else nil

	testReading func() // called in tests while a read counts as under way

	successorOf string // Identity.SuccessorOf

	stop       context.CancelFunc
	stopEnding context.CancelFunc // with stopSeq
	working    sync.WaitGroup
	stopSeq    context.CancelFunc
	seqDone    chan struct{}
	witnesses  []*cosigner
	auditors   []*auditor
	closing    sync.Once
	closeErr   error // set by closing

	mu     sync.Mutex
	status Status        // guarded by mu
	guard  chan struct{} // closed when a guard fails
}

// sequencing decides about submissions and gives them their indexes. It is the
// embedded sequencer or a shared log's.
type sequencing interface {
	// submit queues entries in their order, all or none; each is resolved when its
	// index is durable. It waits while the queue is full, as long as ctx lets it.
	submit(ctx context.Context, subs []*submission) error
	// run decides until ctx ends; then it settles what it has begun and returns.
	run(ctx context.Context)
}

// Status says whether the log takes submissions.
type Status struct {
	Writable bool
	Latched  bool  // a guard failed: it will not be writable again before a restart
	Reason   error // why it is not writable
}

// Open opens the log in cfg.Dir and starts to serve it. It fails only if there
// is no log, the key or policy is not its own, another server has it, or it has
// credentials that read and cfg.Private is not set. In any
// other trouble the log is open for reading, and Status says why it takes no
// submissions: storage absent or behind, anchor absent, witnesses not heard.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	cfg.defaults()
	policy := *cfg.Policy // ownPolicy may add to it
	cfg.Policy = &policy
	if cfg.Shared != nil {
		return openSharedLog(ctx, cfg)
	}
	id, err := ReadIdentity(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Private = cfg.Private || id.private()
	keys, err := newKeyring(id, append([]Signer{cfg.Signer}, cfg.Also...))
	if err != nil {
		return nil, err
	}
	l, err := newLog(cfg, keys, directory(filepath.Join(cfg.Dir, engineDir)))
	if err != nil {
		return nil, err
	}
	l.successorOf = id.SuccessorOf
	if err := l.open(ctx, id); err != nil {
		return nil, errors.Join(err, l.release())
	}
	return l, nil
}

// newLog locks the directory of a log and makes what every log has.
func newLog(cfg Config, keys *keyring, src tileSource) (*Log, error) {
	if err := keys.ownPolicy(cfg.Policy); err != nil {
		return nil, err
	}
	witnesses, err := newWitnesses(cfg.Policy)
	if err != nil {
		return nil, err
	}
	auditors, err := newAuditors(cfg.Policy, cfg.Private)
	if err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(cfg.Dir, lockFileName))
	if err != nil {
		return nil, err
	}
	l := &Log{
		cfg: cfg, keys: keys, src: src, lock: lock, board: newBoard(), tiles: newTileCache(),
		conflicts: newLimits(rate.Every(time.Second), 100), conflictsOf: newLimits(rate.Every(time.Minute), 10), rates: newLimits(rate.Inf, 1),
		rate: rate.NewLimiter(rate.Limit(cfg.MaxRate), cfg.MaxRate), admission: admission{of: map[string]int{}},
		quotas: newQuotas(cfg.Now), refusals: newRefusals(),
		witnesses: witnesses, auditors: auditors,
		status: Status{Reason: errStarting}, guard: make(chan struct{}), seqDone: make(chan struct{}),
	}
	l.static = newStatic(l.src, cfg.Private)
	l.metrics = newMetrics(l)
	return l, nil
}

var errStarting = errors.New("the server is starting")

func (l *Log) open(ctx context.Context, id Identity) (err error) {
	if err := l.openTokens(filepath.Join(l.cfg.Dir, TokensFile), id); err != nil {
		return err
	}
	if l.cfg.Private && !id.private() {
		if err := MakePrivate(l.cfg.Dir); err != nil {
			l.cfg.Logger.Error("the log is served as private, and log.json does not say so yet: give --private again at the next start", "err", err)
		}
	}
	if n := l.Tokens.suspended(); n > 0 {
		l.cfg.Logger.Warn("credentials that came from a backup are refused until they are confirmed: see portbook-log token list, then token confirm, rotate or revoke each", "suspended", n)
	}
	if err := l.loadPublished(); err != nil {
		l.cfg.Logger.Error("the public checkpoint is not served yet; if it is damaged, publishing makes it anew", "err", err)
	}
	if l.lookup, err = openIndex(filepath.Join(l.cfg.Dir, indexDir), l.freshTree, l.cfg.Logger); err != nil {
		return err
	}
	l.lookup.readUpTo(func() (uint64, error) { return l.Published().Size, nil })
	ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	l.working.Go(func() { l.lookup.follow(ctx, l.board) })
	l.room.dirs, l.room.least = []string{l.cfg.Dir, filepath.Dir(id.Anchor)}, l.cfg.MinFree
	l.room.look()
	l.working.Go(func() {
		l.room.watch(ctx, func(err error) {
			if err != nil {
				l.cfg.Logger.Error("taking no submissions; reads go on", "err", err)
				return
			}
			l.cfg.Logger.Info("the disk has room again; taking submissions", "free", l.room.left())
		})
	})
	if l.openEnded() {
		close(l.seqDone)
		return nil
	}
	if err := l.openWriteSide(id); err != nil {
		var locked *LockedError
		if errors.As(err, &locked) {
			return err
		}
		l.cfg.Logger.Error("the log cannot be written", "dir", l.cfg.Dir, "anchor", id.Anchor)
		l.latch(err)
		close(l.seqDone)
		return nil
	}
	if id.Freeze != nil {
		l.mark.Store(id.Freeze)
	}
	var starting, ending context.Context
	starting, l.stopSeq = context.WithCancel(ctx)
	ending, l.stopEnding = context.WithCancel(ctx)
	l.working.Go(func() { l.begin(starting, ending, ctx) })
	return nil
}

// loadPublished reads the public checkpoint that the last server left. One that
// this log did not sign is as good as none.
func (l *Log) loadPublished() error {
	raw, err := os.ReadFile(filepath.Join(l.cfg.Dir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: public checkpoint: %w", ErrStorage, withoutPath(err))
	}
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return fmt.Errorf("public checkpoint: %w", err)
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return fmt.Errorf("public checkpoint: %w", err)
	}
	if cp.Origin != l.keys.origin {
		return fmt.Errorf("public checkpoint: it is of another log, %q", cp.Origin)
	}
	if err := l.keys.signed(note); err != nil {
		return fmt.Errorf("public checkpoint: it was changed by somebody else: %w", err)
	}
	_, err = l.cfg.Policy.Verify(raw)
	audits := (&quorum{policy: l.cfg.Policy, auditors: l.auditors}).audits(raw)
	l.board.set(Published{Size: cp.Size, Root: cp.Root, Note: raw, Quorum: err == nil, audits: audits})
	return nil
}

// openWriteSide opens what is needed to take submissions. Its errors leave the
// log readable.
func (l *Log) openWriteSide(id Identity) (err error) {
	anchor := &anchorFile{path: id.Anchor}
	l.anchor = anchor
	l.takeAnchor = func() error {
		if err := anchor.take(id.Origin); err != nil {
			return err
		}
		same, err := sameFileSystem(l.cfg.Dir, id.Anchor)
		switch {
		case err != nil:
			return fmt.Errorf("%w: the anchor's file system: %w", ErrStorage, withoutPath(err))
		case same && !l.cfg.AnchorBeside:
			return errors.New("the anchor is on the log's own file system: a restored backup would bring both back and fork the log; move it, or allow it with --anchor-beside")
		}
		return nil
	}
	// A disk that fails now is no verdict: begin tries again.
	if err := l.takeAnchor(); err != nil && !errors.Is(err, ErrStorage) {
		return err
	}
	l.engine = &lateEngine{dir: filepath.Join(l.cfg.Dir, engineDir)}
	l.lookup.readUpTo(func() (uint64, error) { return l.engine.size(context.Background()) })
	l.pub = &publisher{
		keys: l.keys, metrics: l.metrics, anchor: l.anchor,
		size: l.engine.size, tree: l.tree, fresh: l.freshTree,
		publish: func(_ context.Context, raw []byte) error {
			return writeDurably(filepath.Join(l.cfg.Dir, checkpointFile), raw, 0o644)
		},
		board:    l.board,
		interval: l.cfg.Interval, republish: l.cfg.Republish, roundLimit: l.cfg.RoundLimit,
		latch: l.latch, latched: l.guard, ended: make(chan struct{}), logger: l.cfg.Logger, wake: make(chan struct{}, 1),
	}
	l.pub.quorum.Store(&quorum{l.cfg.Policy, l.witnesses, l.auditors})
	l.ended, l.trouble = l.pub.ended, l.pub.trouble
	seq := newSequencer()
	seq.index, seq.feeder = l.lookup, l.feeder()
	seq.grown = func(uint64) { l.pub.grown() }
	seq.latch, seq.now, seq.logger, seq.gone = l.latch, l.cfg.Now, l.cfg.Logger, l.seqDone
	l.seq = seq
	l.streamFile = newStreamFile(filepath.Join(l.cfg.Dir, streamsFile), l.taken)
	l.streams = newStreams(l.streamFile)
	return nil
}

// mayPass reports whether an error at start is trouble of a disk, a key or the
// network that may be over when it is tried again, and no verdict on the log.
func mayPass(err error) bool {
	var guard *guardError
	var errno syscall.Errno
	switch {
	case errors.As(err, &guard), errors.Is(err, ErrBehind), errors.Is(err, errUnreadable), errors.Is(err, errNoAnchor), errors.Is(err, errBadAnchor), errors.Is(err, errAnchorMoved):
		return false
	case errors.Is(err, ErrStorage), errors.Is(err, ErrSigner), errors.Is(err, context.DeadlineExceeded):
		return true
	}
	return errors.As(err, &errno) && errno != syscall.ENOENT
}

// begin makes sure of the log, then lets submissions in, unless the log ends.
// The sequencer runs until ctx ends, the publisher until publishing does.
func (l *Log) begin(ctx, ending, publishing context.Context) {
	defer close(l.seqDone)
	if l.cfg.testStart != nil {
		l.cfg.testStart(l)
	}
	var next *entry.Entry // that the log has ended with
	var size uint64
	said := ""
	for {
		err := l.makeSure(ctx)
		if err == nil {
			if next, size, err = l.endedLeaf(ctx); err == nil {
				break
			}
		}
		if ctx.Err() != nil {
			return
		}
		if !mayPass(err) {
			l.latch(err)
			return
		}
		if err.Error() != said {
			said = err.Error()
			var engine *engineError
			if errors.As(err, &engine) {
				l.cfg.Logger.Error("the storage engine does not open", "err", engine.cause)
			}
			l.cfg.Logger.Error("the log cannot be made sure of; it is tried again each second", "err", err)
		}
		l.setStatus(Status{Reason: err})
		if !sleep(ctx, time.Second) {
			return
		}
	}
	l.working.Go(func() { l.pub.run(publishing) })
	if l.mark.Load() != nil || next != nil {
		l.end(ending)
		return
	}
	if size == 0 && l.successorOf != "" {
		l.setStatus(Status{Reason: fmt.Errorf("it waits for its first entry, that it takes over from %s: stop it and run portbook-log successor", l.successorOf)})
		return
	}
	l.working.Go(func() { l.awaitMark(ctx, l.stopSeq) })
	seq, who := l.seq.(*sequencer), l.who.(*attributionFile)
	seq.journal, seq.noted = l.journal.Load(), who.flush
	seq.indexed = func(subs []*submission) { who.expect(runsOf(subs)) }
	l.setStatus(Status{Writable: true})
	l.cfg.Logger.Info("taking submissions", "origin", l.Origin(), "size", l.lookup.size())
	l.seq.run(ctx)
	if l.mark.Load() != nil {
		l.end(ending)
	}
}

// makeSure takes the anchor, opens the storage, compares it with the anchor, the
// public checkpoint and the witnesses, and replays the tail.
func (l *Log) makeSure(ctx context.Context) error {
	if err := l.takeAnchor(); err != nil {
		return err
	}
	if err := l.engine.open(ctx); err != nil {
		return err
	}
	if err := l.takeIn(ctx); err != nil {
		return err
	}
	if err := l.streamFile.load(); err != nil {
		return err
	}
	if was, _ := l.board.get(); was.Note == nil {
		if err := l.loadPublished(); errors.Is(err, ErrStorage) {
			return err
		}
	}
	size, err := l.engine.size(ctx)
	if err != nil {
		return fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
	}
	if least := l.anchor.known().size; size < least {
		return fmt.Errorf("%w: it has %d entries and has signed %d: it was restored from a backup; restore the newer state, or rebuild it from a mirror", ErrBehind, size, least)
	}
	t := l.freshTree(int64(size))
	t.ctx = ctx
	if was, _ := l.board.get(); was.Note != nil {
		if err := containsNote(t, l.keys, "the public checkpoint file", was.Note); err != nil {
			return err
		}
		if was.Size > l.anchor.known().size {
			return fmt.Errorf("%w: a checkpoint of %d entries is published, the anchor knows of %d: it was restored from a backup; restore the newer one", errBadAnchor, was.Size, l.anchor.known().size)
		}
	}
	last := time.Now()
	l.lookup.applying.Lock()
	err = l.lookup.replay(ctx, t, func(done, of int64) {
		if time.Since(last) > 2*time.Second {
			last = time.Now()
			l.cfg.Logger.Info("replaying the log into the index", "done", done, "of", of)
		}
	})
	l.lookup.applying.Unlock()
	if err == nil {
		err = l.lookup.readable()
	}
	if err != nil {
		return err
	}
	if !l.recalled {
		l.recallQuotas(ctx)
		l.recalled = true
	}
	return l.pub.hearWitnesses(ctx, func(err error) {
		l.cfg.Logger.Warn("taking no submissions yet", "err", err)
		l.setStatus(Status{Reason: err})
	})
}

// takeIn opens the journal: what it has, and the tiles lack, is given to the
// engine first. What tiles and journal both have must be the same.
func (l *Log) takeIn(ctx context.Context) error {
	if j := l.journal.Load(); j != nil && j.waiting() == 0 {
		return nil
	}
	dir := filepath.Join(l.cfg.Dir, journalDir)
	first, entries, segments, err := readJournal(dir, l.Origin())
	if err != nil {
		var damage *journalDamage
		if errors.As(err, &damage) {
			l.cfg.Logger.Error("the journal is damaged", "file", filepath.Join(dir, damage.file), "what", damage.what)
		}
		return err
	}
	size, err := l.engine.size(ctx)
	if err != nil {
		return fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
	}
	if len(segments) > 0 && first > size {
		return fmt.Errorf("%w: it has %d entries and its journal begins at entry %d: its storage was restored from a backup; restore the newer state, or rebuild it from a mirror", ErrBehind, size, first)
	}
	end := first + uint64(len(entries))
	if least := l.anchor.known().size; max(size, end) < least {
		return fmt.Errorf("%w: it has %d entries and has signed %d: it was restored from a backup; restore the newer state, or rebuild it from a mirror", ErrBehind, size, least)
	}
	t := l.freshTree(int64(min(size, end)))
	t.ctx = ctx
	err = t.each(int64(first), func(index int64, leaf []byte) error {
		if !bytes.Equal(leaf, entries[uint64(index)-first].leaf) {
			return fmt.Errorf("%w: entry %d is another in the tiles than in the journal: one of them is of another time, or was changed; "+
				"receipts were given for what the journal has: to go on with the tiles, move the directory %s away", ErrBehind, index, journalDir)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if size < end {
		l.cfg.Logger.Info("taking entries in from the journal, that have their index and are not in the tiles", "from", size, "to", end)
	}
	for size < end {
		var next []*tessera.Entry
		for _, e := range entries[size-first : min(size+EngineBatch, end)-first] {
			next = append(next, tessera.NewEntry(e.leaf))
		}
		if err := l.feeder().write(ctx, size, next); err != nil {
			return err // what of it is there is seen when this is tried again
		}
		size += uint64(len(next))
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if len(entries) > 0 { // of what the tiles have, a write may have failed before
		if err := l.engine.sync(); err != nil {
			return fmt.Errorf("%w: %w", ErrStorage, withoutPath(err))
		}
	}
	if l.who == nil {
		begins := size
		if len(entries) > 0 {
			begins = min(first, size)
		}
		who, err := openAttribution(filepath.Join(l.cfg.Dir, AttributionFile), l.Origin(), size, begins, l.cfg.Now, l.cfg.Logger)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrStorage, err)
		}
		l.who = who
	}
	var runs []Attributed
	for i, e := range entries {
		runs = addRun(runs, Attributed{First: first + uint64(i), Count: 1, By: e.by})
	}
	if err := l.who.(*attributionFile).add(runs); err != nil {
		return fmt.Errorf("%w: %w", ErrStorage, err)
	}
	if err := l.journal.Load().close(); err != nil {
		return fmt.Errorf("%w: journal: %w", ErrStorage, withoutPath(err))
	}
	j, err := openJournal(dir, l.Origin(), segments, size)
	if err == nil {
		l.journal.Store(j)
	}
	return err
}

func (l *Log) feeder() feeder {
	return feeder{l.engine.append, l.engine.size, l.engine.sync, l.freshTree}
}

// taken is how many entries have their index.
func (l *Log) taken(ctx context.Context) (uint64, error) {
	size, err := l.engine.size(ctx)
	return max(size, l.journal.Load().end()), err
}

// recallQuotas counts what was logged today before the server started. If that
// cannot be read the log goes on, and counts from now.
func (l *Log) recallQuotas(ctx context.Context) {
	var limited map[string]bool // nil: nobody knows who
	if known, err := l.Tokens.current(ctx); err == nil {
		limited = map[string]bool{}
		for id, c := range known {
			if c.Quota > 0 {
				limited[id] = true
			}
		}
		if len(limited) == 0 {
			return
		}
	}
	said, err := ReadAttribution(l.cfg.Dir)
	n := 0
	if err == nil {
		n, err = l.quotas.recall(said, func(id string) bool { return limited == nil || limited[id] }, l.lookup.entryAt)
	}
	if err != nil {
		l.cfg.Logger.Error("quotas count from now: what was logged earlier today cannot be read", "counted", n, "err", err)
		return
	}
	l.cfg.Logger.Info("quotas count what was logged earlier today", "entries", n)
}

func (l *Log) integrated(ctx context.Context) (uint64, error) {
	if l.shared != nil {
		return l.shared.integrated(), nil
	}
	return l.engine.size(ctx)
}

func (l *Log) setStatus(s Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.status.Latched && l.status.Reason != errClosing {
		l.status = s
	}
}

// latch stops the write side for good; reads go on.
func (l *Log) latch(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.status.Latched {
		return
	}
	l.status = Status{Latched: true, Reason: err}
	l.cfg.Logger.Error("the log takes no more submissions and signs nothing; an operator must look", "err", err)
	close(l.guard)
}

// Guard is closed when the write side has been latched.
func (l *Log) Guard() <-chan struct{} { return l.guard }

// Status says whether the log takes submissions now.
func (l *Log) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Ready is nil if the log takes submissions, its last round of cosigning
// published a checkpoint, and that is validly cosigned and fresh; of one that
// only reads, if it follows its storage.
func (l *Log) Ready() error {
	if l.follower != nil {
		if err := l.follower.trouble(); err != nil {
			return fmt.Errorf("%w: %w", ErrReadOnly, err)
		}
		return nil
	}
	s := l.Status()
	if !s.Writable {
		return fmt.Errorf("%w: %w", ErrReadOnly, s.Reason)
	}
	if err := l.room.check(); err != nil {
		return err
	}
	if q, embedded := l.seq.(*sequencer); embedded && (q.stuck.Load() != nil || q.failing.Load() != nil) {
		return errStuck
	}
	if err := l.trouble(); err != nil {
		return fmt.Errorf("the last checkpoint was not published: %w", err)
	}
	return l.fresh()
}

// Origin is the log's origin line.
func (l *Log) Origin() string { return l.keys.origin }

// Published is the newest published checkpoint.
func (l *Log) Published() Published {
	p, _ := l.board.get()
	return p
}

func (l *Log) tree(size int64) tree {
	return tree{context.Background(), l.src, size, l.tiles}
}

// freshTree reads storage anew, and each tile once.
func (l *Log) freshTree(size int64) tree {
	return tree{context.Background(), l.src, size, newTileCache()}
}

// Close takes no more submissions, settles and publishes what it can, and
// releases the log. Everything acknowledged is already durable.
func (l *Log) Close() error {
	l.closing.Do(func() {
		l.setStatus(Status{Reason: errClosing})
		if l.stopSeq != nil {
			l.stopSeq()
			l.stopEnding()
			<-l.seqDone
		}
		l.closeErr = l.release()
	})
	return l.closeErr
}

func (l *Log) release() error {
	if l.stop != nil {
		l.stop()
	}
	if l.Tokens != nil {
		l.Tokens.oidc.end()
	}
	l.working.Wait()
	var err error
	if l.engine != nil {
		err = errors.Join(err, l.engine.close(context.Background()))
	}
	err = errors.Join(err, l.journal.Load().close(), l.streams.close())
	if l.who != nil {
		err = errors.Join(err, l.who.close())
	}
	if l.lookup != nil {
		err = errors.Join(err, l.lookup.close())
	}
	if l.anchor != nil {
		l.anchor.close()
	}
	if l.shared != nil {
		err = errors.Join(err, l.shared.release())
	}
	for _, w := range l.witnesses {
		w.http.CloseIdleConnections()
	}
	for _, w := range l.auditors {
		w.http.CloseIdleConnections()
	}
	l.lock.release()
	return err
}
