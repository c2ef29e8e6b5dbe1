package witness

// The rule of a witness: what is asked of a request, in which order, and what
// happens before a signature leaves. c2sp.org/tlog-witness, add-checkpoint.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"golang.org/x/time/rate"
)

// MaxBody is the most bytes an add-checkpoint request may have. It leaves room
// below c2sp.MaxNote for our own signature lines, so that what the read API
// serves can be read by those who keep that bound.
const MaxBody = c2sp.MaxNote - 8<<10

// maxAttempts bounds how often a request that lost a race is judged again. The
// second time it is nearly always a conflict; only requests that cosign one
// size over and over can lose twice.
const maxAttempts = 20

// attemptTimeout is how long one request may take once it has been read.
const attemptTimeout = 20 * time.Second

// A Config says who a witness is and what it stands on.
type Config struct {
	Signer *c2sp.Signer     // the witness key: an Ed25519 cosigner (0x04)
	MLDSA  *c2sp.Signer     // its second key, of the same name: ML-DSA-44 (0x06); nil: it has none
	Store  *Store           // made for this key; the caller closes it
	Now    func() time.Time // the clock of the cosignatures; nil: time.Now
	Logger *slog.Logger     // refusals and forks; nil: nothing is logged

	PerLog    Rate // new checkpoints of one log; zero: 200 a second, 1,000 at once
	PerClient Rate // requests of one client address; zero: 1,000 a second, 5,000 at once

	Peers []Peer // each log waits for them (HearPeers); nil: the store's mark vouches for it
}

// A Witness cosigns checkpoints. It is safe for concurrent use.
type Witness struct {
	keys    []*c2sp.Key    // Ed25519 first
	signers []*c2sp.Signer // one for each key, one kind of statement; none once it has retired
	store   *Store
	since   time.Time // when the state was made
	now     func() time.Time
	log     *slog.Logger
	big     chan struct{} // one for each large request body being read or judged
	signing chan struct{} // one for each signature being made
	warn    *rate.Limiter // of warnings that any stranger can cause again and again

	peers   *peers  // nil: none
	logs    *limits // by origin
	clients *limits // by address
	metrics *metrics
	started time.Time

	// testBeforeAdvance, if set, is called between the judgement and the
	// compare-and-swap. It makes a race certain.
	testBeforeAdvance func()
}

// New returns a witness. It refuses a store that was made for another key
// ([ErrOtherKey]). One that has retired needs no key, and takes none.
func New(c Config) (*Witness, error) {
	if c.Store == nil {
		return nil, errors.New("a witness needs a database")
	}
	retired, err := c.Store.Retirement(context.Background())
	if err != nil {
		return nil, err
	}
	if retired != nil {
		c.Signer, c.MLDSA = nil, nil
	}
	switch {
	case retired != nil:
	case c.Signer == nil:
		return nil, errors.New("a witness needs a key and a database")
	case c.Signer.Key().Alg() != c2sp.AlgEd25519Cosig:
		return nil, fmt.Errorf("key %s is of type %s; this witness cosigns with Ed25519 (0x04)", c.Signer.Key(), c.Signer.Key().Alg())
	}
	w := &Witness{store: c.Store, now: c.Now, log: c.Logger,
		big: make(chan struct{}, bigBodies), signing: make(chan struct{}, runtime.GOMAXPROCS(0)),
		warn: rate.NewLimiter(rate.Every(10*time.Second), 20)}
	if c.Signer != nil {
		w.signers = append(w.signers, c.Signer)
	}
	if c.MLDSA != nil {
		k := c.MLDSA.Key()
		if k.Alg() != c2sp.AlgMLDSA44 || k.Name() != c.Signer.Key().Name() {
			return nil, fmt.Errorf("key %s: the second key of %s is of type %s and has the same name", k, c.Signer.Key().Name(), c2sp.AlgMLDSA44)
		}
		w.signers = append(w.signers, c.MLDSA)
	}
	for _, signer := range w.signers {
		since, err := c.Store.bound(signer.Key())
		if err != nil {
			return nil, err
		}
		if since.After(w.since) {
			w.since = since
		}
		w.keys = append(w.keys, signer.Key())
	}
	if retired != nil {
		w.keys = c.Store.publicKeys()
	}
	if w.peers, err = newPeers(c.Peers, w.keys); err != nil {
		return nil, err
	}
	w.logs, w.clients = newLimits(c.PerLog, Rate{200, 1000}), newLimits(c.PerClient, Rate{1000, 5000})
	if w.now == nil {
		w.now = time.Now
	}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	w.started, w.metrics = w.now(), newMetrics(c.Store, w.peers)
	observe := func(heads int, took time.Duration) {
		w.metrics.together.Observe(float64(heads))
		w.metrics.commit.Observe(took.Seconds())
	}
	c.Store.observe.Store(&observe)
	return w, nil
}

// Keys returns the public keys of the witness, Ed25519 first.
func (w *Witness) Keys() []*c2sp.Key { return slices.Clone(w.keys) }

// A request is an add-checkpoint request whose whole grammar has been read. Its
// checkpoint is still anybody's word.
type request struct {
	old   uint64
	proof [][32]byte
	cp    c2sp.Checkpoint
	note  *c2sp.Note
}

func parseRequest(body []byte) (*request, error) {
	a, err := c2sp.ParseAddCheckpoint(body)
	if err != nil {
		return nil, &MalformedError{err}
	}
	n, err := c2sp.ParseNote(a.Checkpoint)
	if err != nil {
		return nil, &MalformedError{err}
	}
	cp, err := c2sp.ParseCheckpoint(n.Text)
	if err != nil {
		return nil, &MalformedError{err}
	}
	return &request{old: a.Old, proof: a.Proof, cp: cp, note: n}, nil
}

// AddCheckpoint judges the body of an add-checkpoint request and, if every check
// passes, returns the signature lines of its answer; by then the new checkpoint
// is on the disk. Its errors are those of errors.go; any other is our own
// failure and says nothing about the log. See TestEveryMust.
func (w *Witness) AddCheckpoint(ctx context.Context, body []byte) ([]byte, error) {
	_, lines, err := w.addCheckpoint(ctx, body)
	return lines, err
}

// addCheckpoint also tells the origin, if the request is in the grammar.
func (w *Witness) addCheckpoint(ctx context.Context, body []byte) (origin string, lines []byte, err error) {
	req, err := parseRequest(body)
	if err != nil {
		return "", nil, err
	}
	// A client that hangs up must not leave it open what was written; a disk
	// that hangs must not collect requests without end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTimeout)
	defer cancel()
	if r := w.store.retired.Load(); r != nil {
		return req.cp.Origin, nil, &RetiredError{*r}
	}
	for range maxAttempts {
		lines, err := w.attempt(ctx, req)
		if errors.Is(err, errMoved) {
			continue // another request won; judge this one by what is true now
		}
		return req.cp.Origin, lines, err
	}
	return req.cp.Origin, nil, fmt.Errorf("log %q: %d attempts were overtaken by other requests", req.cp.Origin, maxAttempts)
}

// attempt judges req against the state as it is, once.
func (w *Witness) attempt(ctx context.Context, req *request) ([]byte, error) {
	known, err := w.store.log(ctx, req.cp.Origin)
	if err != nil {
		return nil, err
	}
	logSigs, err := verifyLog(known, req.note)
	if err != nil {
		return nil, err
	}
	if err := w.judge(ctx, req, known, logSigs); err != nil {
		return nil, err
	}

	at := w.now()
	if err := w.checkClock(at, known.Head); err != nil {
		return nil, err
	}
	if lines := w.again(req, known.Head, logSigs, at); lines != nil {
		if err := w.store.covered(ctx, known.written); err != nil {
			return nil, err
		}
		return lines, nil
	}
	if !w.logs.allow(req.cp.Origin) {
		return nil, &BusyError{"log " + strconv.Quote(req.cp.Origin) + " has new checkpoints cosigned more often than this witness allows"}
	}
	// The signatures are over a re-encoding of what was understood, never over
	// the bytes received: should the two ever differ, they are good for nothing.
	note := c2sp.Note{Text: req.cp.Text(), Sigs: logSigs}
	cosigs, err := w.cosign(req.cp, at)
	if err != nil {
		return nil, err
	}
	var lines []byte
	for _, s := range cosigs {
		note.Sigs = append(note.Sigs, s)
		lines = append(lines, s.Line()...)
	}
	head := Head{Size: req.cp.Size, Root: req.cp.Root, Time: time.Unix(at.Unix(), 0), Note: note.Bytes()}
	if w.testBeforeAdvance != nil {
		w.testBeforeAdvance()
	}
	if err := w.store.advance(ctx, req.cp.Origin, known.Head, head); err != nil {
		if r, _ := w.store.Retirement(ctx); r != nil {
			return nil, &RetiredError{*r} // since this server started
		}
		return nil, err
	}
	w.peers.advanced(req.cp.Origin)
	return lines, nil
}

// cosign signs with all keys at the same time. No more signatures are being made
// at once than there are processors, and none on a connection's goroutine: one of
// ML-DSA-44 needs 64 KiB of stack, which each connection would keep.
func (w *Witness) cosign(cp c2sp.Checkpoint, at time.Time) ([]c2sp.Signature, error) {
	begun := time.Now()
	sigs, errs := make([]c2sp.Signature, len(w.signers)), make([]error, len(w.signers))
	var wg sync.WaitGroup
	for i, signer := range w.signers {
		wg.Go(func() {
			w.signing <- struct{}{}
			sigs[i], errs[i] = signer.Cosign(cp, at)
			<-w.signing
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("cosigning: %w", err)
	}
	w.metrics.signing.Observe(time.Since(begun).Seconds())
	return sigs, nil
}

// again returns the signature lines of a checkpoint that was cosigned within
// this very second: they would say the same. A stranger who repeats what a log
// has sent makes neither the disk nor the log's allowance pay.
func (w *Witness) again(req *request, head *Head, logSigs []c2sp.Signature, at time.Time) []byte {
	if head == nil || head.Size != req.cp.Size || head.Time.Unix() != at.Unix() {
		return nil
	}
	had, err := c2sp.ParseNote(head.Note)
	if err != nil || len(had.Sigs) != len(logSigs)+len(w.signers) || had.Text != req.cp.Text() {
		return nil
	}
	for i, s := range logSigs {
		if had.Sigs[i].Line() != s.Line() {
			return nil // other signatures of the log are to be served from now on
		}
	}
	var lines []byte
	for i, signer := range w.signers {
		s := had.Sigs[len(logSigs)+i]
		if !signer.Key().Matches(s) {
			return nil
		}
		lines = append(lines, s.Line()...)
	}
	return lines
}

// verifyLog returns the signatures of the log's trusted keys, one for each key,
// in the order of the note. Lines by unknown keys are ignored; a line that
// claims a trusted key and is wrong spoils the note.
func verifyLog(l *Log, n *c2sp.Note) ([]c2sp.Signature, error) {
	var good []c2sp.Signature
	seen := make(map[*c2sp.Key]bool)
	for _, s := range n.Sigs {
		for _, k := range l.Keys {
			if !k.Matches(s) {
				continue
			}
			if err := k.VerifyLog(n.Text, s); err != nil {
				return nil, &SignatureError{l.Origin, err}
			}
			if !seen[k] {
				seen[k] = true
				good = append(good, s)
			}
		}
	}
	if len(good) == 0 {
		return nil, &SignatureError{l.Origin, nil}
	}
	return good, nil
}

// check compares a request, signed by the log, with the checkpoint cosigned
// last (nil: none). The order is the specification's.
func check(req *request, head *Head) error {
	if req.old > req.cp.Size {
		return &OldSizeError{req.old, req.cp.Size}
	}
	var have uint64
	if head != nil {
		have = head.Size
	}
	if req.old != have {
		return &ConflictError{have}
	}
	if req.cp.Size == 0 && req.cp.Root != c2sp.EmptyRoot {
		return &ProofError{"a tree of size 0 whose root is not the hash of the empty string"}
	}
	if req.old == 0 {
		if len(req.proof) > 0 {
			return &ProofError{"a consistency proof from size 0 must be empty"}
		}
		return nil // the empty tree is consistent with any tree
	}
	if req.old == req.cp.Size && req.cp.Root != head.Root {
		return &ForkError{req.cp.Origin, req.old, req.cp.Size}
	}
	if err := c2sp.VerifyConsistency(req.old, req.cp.Size, req.proof, head.Root, req.cp.Root); err != nil {
		return &ProofError{err.Error()}
	}
	return nil
}

// checkClock refuses a clock that would date a cosignature before the last one
// of this log, or before this witness existed. Two cosignatures in the wrong
// order would both be false: each says "the largest tree seen so far".
func (w *Witness) checkClock(now time.Time, head *Head) error {
	if head != nil && now.Unix() < head.Time.Unix() {
		return &ClockError{now, head.Time, "the last cosignature for this log"}
	}
	if now.Unix() < w.since.Unix() {
		return &ClockError{now, w.since, "the making of this witness"}
	}
	return nil
}

// SignSubtree judges the body of a sign-subtree request and returns the
// signature lines of its answer: those of the keys whose format has subtrees.
// It reads no state but which logs are known: that one of our own keys
// cosigned the reference checkpoint says that it was seen and was consistent.
// See TestEverySubtreeMust.
func (w *Witness) SignSubtree(ctx context.Context, body []byte) ([]byte, error) {
	_, lines, err := w.signSubtree(ctx, body)
	return lines, err
}

// signSubtree also tells the origin, if the request is in the grammar.
func (w *Witness) signSubtree(ctx context.Context, body []byte) (origin string, lines []byte, err error) {
	req, err := c2sp.ParseSignSubtree(body)
	if err != nil {
		return "", nil, &MalformedError{err}
	}
	note, err := c2sp.ParseNote(req.Checkpoint)
	if err != nil {
		return "", nil, &MalformedError{err}
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return "", nil, &MalformedError{err}
	}
	if req.End > cp.Size {
		return "", nil, &MalformedError{fmt.Errorf("the subtree ends at %d, beyond the checkpoint's size %d", req.End, cp.Size)}
	}
	lines, err = w.judgeSubtree(ctx, req, cp, note)
	return cp.Origin, lines, err
}

func (w *Witness) judgeSubtree(ctx context.Context, req *c2sp.SignSubtree, cp c2sp.Checkpoint, note *c2sp.Note) ([]byte, error) {
	if _, err := w.store.Log(ctx, cp.Origin); err != nil {
		return nil, err
	}
	if r, err := w.store.Retirement(ctx); err != nil {
		return nil, err
	} else if r != nil {
		return nil, &RetiredError{*r}
	}
	if err := w.signedByUs(cp.Origin, note); err != nil {
		return nil, err
	}
	if err := c2sp.VerifySubtree(req.Subtree, cp.Size, req.Proof, cp.Root); err != nil {
		return nil, &ProofError{err.Error()}
	}
	var lines []byte
	for _, signer := range w.signers {
		if signer.Key().Alg() != c2sp.AlgMLDSA44 {
			continue
		}
		sig, err := signer.CosignSubtree(cp.Origin, req.Subtree)
		if err != nil {
			return nil, fmt.Errorf("cosigning: %w", err)
		}
		lines = append(lines, sig.Line()...)
	}
	if lines == nil {
		return nil, errNoSubtrees
	}
	return lines, nil
}

// signedByUs returns nil if a valid cosignature of one of our keys is on the
// note, and none that claims to be is wrong.
func (w *Witness) signedByUs(origin string, note *c2sp.Note) error {
	ours := false
	for _, s := range note.Sigs {
		for _, signer := range w.signers {
			if !signer.Key().Matches(s) {
				continue
			}
			if _, err := signer.Key().VerifyNote(note.Text, s); err != nil {
				return &SignatureError{origin, err}
			}
			ours = true
		}
	}
	if !ours {
		return &SignatureError{origin, errNotOurs}
	}
	return nil
}

var (
	errNotOurs = errors.New("the checkpoint has no cosignature of this witness")
	// errNoSubtrees: the witness was made with its first key alone.
	errNoSubtrees = errors.New("this witness has no key whose cosignatures can be over a subtree")
)
