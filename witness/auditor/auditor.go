package auditor

// The rule of an auditing mirror: what becomes a pending checkpoint, what of an
// upload is stored, and when a signature is made. c2sp.org/tlog-mirror.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/witness"
)

// maxExcess is how many entries of an upload may be there already; more is a
// conflict, so that nobody makes us hash the log over and over.
const maxExcess = 32 * c2sp.TileWidth

// A Config says who an auditor is and what it stands on.
type Config struct {
	Dir    *Dir
	Now    func() time.Time // the clock of the cosignatures; nil: time.Now
	Logger *slog.Logger     // nil: nothing is logged
	Poll   time.Duration    // how often a followed log is asked for its checkpoint; 0: 2 s
	// Refresh is how old a cosignature of an unchanged log may become before it is
	// made anew; 0: 5 min.
	Refresh time.Duration
	// PerClient is how many requests of one client address are read at once; 0: 4.
	PerClient int
	// Policy, if set, must have its quorum on a checkpoint before it becomes
	// pending, by pull or push. It names each log, and can do without this auditor.
	Policy *c2sp.Policy
}

// An Auditor mirrors, checks and cosigns logs. It is safe for concurrent use.
type Auditor struct {
	dir     *Dir
	signers []*c2sp.Signer
	store   *witness.Store
	index   *index
	now     func() time.Time
	log     *slog.Logger
	poll    time.Duration
	refresh time.Duration
	policy  *c2sp.Policy // nil: the log's signature is enough
	metrics *metrics
	room    *room // of the add-entries requests under way
	clients *clients

	mu    sync.Mutex
	books map[string]*book // guarded by mu; by origin

	// testBeforeStep, if set, is called before each step of making something
	// durable. It makes a crash certain.
	testBeforeStep func(step string) error
}

// A book is one log as this process has it open.
type book struct {
	origin string
	mirror *mirror
	row    *logRow // id, url; next is read from the index

	mu sync.Mutex // held while entries are saved, and while a checkpoint is cosigned

	state followState // has a lock of its own
}

// New returns an auditor. It checks, and completes, what each log's index says
// against what was cosigned.
func New(ctx context.Context, c Config) (*Auditor, error) {
	a := &Auditor{dir: c.Dir, signers: c.Dir.signers(), store: c.Dir.Store, index: c.Dir.index, now: c.Now, log: c.Logger, poll: c.Poll, refresh: c.Refresh,
		books: map[string]*book{}, room: new(room), clients: newClients(c.PerClient), testBeforeStep: c.Dir.testBeforeStep}
	if a.policy = c.Policy; a.policy != nil && a.policy.Quorum != c2sp.QuorumNone {
		others := map[string]bool{}
		for _, w := range a.policy.Witnesses {
			others[w.Name] = !slices.ContainsFunc(a.Keys(), func(k *c2sp.Key) bool { return bytes.Equal(k.Raw(), w.Key.Raw()) })
		}
		if !a.policy.Satisfied(others) {
			return nil, fmt.Errorf("the quorum of the policy cannot be met without %s itself, which would wait for its own cosignature: use the log's publish policy", a.Keys()[0].Name())
		}
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.poll <= 0 {
		a.poll = 2 * time.Second
	}
	if a.refresh <= 0 {
		a.refresh = 5 * time.Minute
	}
	a.metrics = newMetrics(a)
	logs, err := a.store.Logs(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range logs {
		if _, err := a.book(ctx, l.Origin); err != nil {
			return nil, fmt.Errorf("log %s: %w", l.Origin, err)
		}
	}
	return a, nil
}

// Keys returns the public keys, Ed25519 first.
func (a *Auditor) Keys() []*c2sp.Key { return a.dir.Keys() }

// book opens a log, or returns a *witness.UnknownLogError.
func (a *Auditor) book(ctx context.Context, origin string) (*book, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.books[origin]; b != nil {
		return b, nil
	}
	known, err := a.store.Log(ctx, origin)
	if err != nil {
		return nil, err
	}
	b := &book{origin: origin, mirror: &mirror{dir: filepath.Join(a.dir.Path, mirrorDir, c2sp.OriginHash(origin)), testBeforeStep: a.testBeforeStep}}
	if b.row, err = a.index.log(ctx, origin); err != nil {
		return nil, err
	}
	if err := b.mirror.open(); err != nil {
		return nil, err
	}
	if err := a.complete(ctx, b, known); err != nil {
		return nil, err
	}
	a.books[origin] = b
	return b, nil
}

// complete makes the index of a log as far as what was cosigned, if it is not:
// it was deleted, or an older copy. Then what is stored beyond it is dropped.
func (a *Auditor) complete(ctx context.Context, b *book, known *witness.Log) error {
	if head := known.Head; head != nil {
		for b.row.next < head.Size {
			from := b.row.next
			to := min(from/c2sp.TileWidth*c2sp.TileWidth+c2sp.TileWidth, head.Size)
			leaves, err := b.mirror.leaves(from, to)
			if err != nil {
				return fmt.Errorf("reading the mirror again into the index: %w", err)
			}
			if _, err := a.index.check(ctx, b.row, from, leaves, b.mirror.leaf, a.now()); err != nil {
				return err
			}
			b.row.next = to
		}
		root, err := newTree(ctx, b.mirror, head.Size).root()
		if err != nil {
			return err
		}
		if root != head.Root {
			return fmt.Errorf("the mirror's tiles do not hash to the tree of %d entries that was cosigned: the disk has changed them, or they are another auditor's", head.Size)
		}
		list, err := a.index.pendings(ctx, b.row.id)
		if err != nil {
			return err
		}
		if len(list) == 0 || list[0].cp.Size < head.Size {
			note, err := c2sp.ParseNote(head.Note)
			if err != nil {
				return err
			}
			sigs, err := known.VerifyLog(note)
			if err != nil {
				return err
			}
			cp, err := c2sp.ParseCheckpoint(note.Text)
			if err != nil {
				return err
			}
			p := pending{cp: cp, note: (&c2sp.Note{Text: note.Text, Sigs: sigs}).Bytes()}
			var was *pending
			if len(list) > 0 {
				was = &list[0]
			}
			if err := a.index.addPending(ctx, b.row.id, was, p); err != nil {
				return err
			}
		}
		return errors.Join(b.mirror.prune(b.row.next, head.Size), b.mirror.publish(head.Note))
	}
	return b.mirror.prune(b.row.next, 0)
}

// A standing is where a log stands, as it is in the two databases.
type standing struct {
	known    *witness.Log
	head     *witness.Head // the mirror checkpoint; nil: none yet
	pendings []pending     // the newest first
	next     uint64
}

func (a *Auditor) standing(ctx context.Context, b *book) (*standing, error) {
	row, err := a.index.log(ctx, b.origin)
	if err != nil {
		return nil, err
	}
	return a.dir.standing(ctx, row)
}

func (d *Dir) standing(ctx context.Context, row *logRow) (*standing, error) {
	known, err := d.Store.Log(ctx, row.origin)
	if err != nil {
		return nil, err
	}
	s := &standing{known: known, head: known.Head, next: row.next}
	s.pendings, err = d.index.pendings(ctx, row.id)
	return s, err
}

// info is what a client of this log goes on from.
func (s *standing) info() Info {
	i := Info{Next: s.next}
	if len(s.pendings) > 0 {
		i.Size = s.pendings[0].cp.Size
	}
	return i
}

// AddCheckpoint judges the body of an add-checkpoint request by the witness's own
// rule and makes its checkpoint the pending one. It signs nothing. Its errors are
// those of witness.AddCheckpoint.
func (a *Auditor) AddCheckpoint(ctx context.Context, body []byte) (origin string, err error) {
	for range 20 {
		var b *book
		var s *standing
		cp, note, fork, err := witness.Judge(body, func(origin string) (*witness.Log, error) {
			var err error
			if b, err = a.book(ctx, origin); err != nil {
				return nil, err
			}
			if s, err = a.standing(ctx, b); err != nil {
				return nil, err
			}
			as := &witness.Log{Origin: s.known.Origin, Keys: s.known.Keys}
			if len(s.pendings) > 0 {
				p := s.pendings[0]
				as.Head = &witness.Head{Size: p.cp.Size, Root: p.cp.Root, Note: p.note}
			}
			return as, nil
		})
		if fork != nil {
			if ferr := a.keep(ctx, fork); ferr != nil {
				return cp.Origin, ferr
			}
		}
		if err != nil {
			return cp.Origin, err
		}
		if err := a.accepts(body, cp); err != nil {
			return cp.Origin, err
		}
		var was *pending
		if len(s.pendings) > 0 {
			was = &s.pendings[0]
		}
		err = a.index.addPending(ctx, b.row.id, was, pending{cp: cp, note: note.Bytes()})
		if errors.Is(err, witness.ErrMoved) {
			continue // another request won; judge this one by what is true now
		}
		return cp.Origin, err
	}
	return "", errors.New("overtaken by other requests too often")
}

// accepts returns a *PolicyError if the checkpoint of an add-checkpoint body has
// not the quorum that is asked for.
func (a *Auditor) accepts(body []byte, cp c2sp.Checkpoint) error {
	if a.policy == nil {
		return nil
	}
	req, err := c2sp.ParseAddCheckpoint(body)
	if err != nil {
		return err
	}
	if _, err := a.policy.Verify(req.Checkpoint); err != nil {
		return &PolicyError{cp, err}
	}
	return nil
}

// keep keeps evidence of two histories.
func (a *Auditor) keep(ctx context.Context, f *witness.Fork) error {
	f.Seen = a.now()
	kept, err := a.store.KeepFork(ctx, f)
	if kept {
		a.log.Warn("FORK: the log has signed two different trees; nothing but the first is followed", "origin", f.Origin, "sizes", []uint64{f.OursSize, f.Size})
	}
	return err
}

// A pack is one package of entries of an upload.
type pack struct {
	start, end uint64 // of the entries
	leaves     [][]byte
	proof      []hash
}

// add authenticates a package against the pending checkpoint cp and stores what
// of it is new, if anything is. The error is a *PackageError where it is not part of it.
func (a *Auditor) add(ctx context.Context, b *book, cp c2sp.Checkpoint, p pack) (stored bool, err error) {
	first := p.start / c2sp.TileWidth * c2sp.TileWidth
	before, err := b.mirror.leaves(first, p.start)
	if err != nil {
		return false, err
	}
	leaves := append(before[:len(before):len(before)], p.leaves...)
	hashes := make([]hash, len(leaves))
	for i, l := range leaves {
		hashes[i] = entry.LeafHash(l)
	}
	sub := c2sp.Subtree{Start: first, End: p.end, Hash: rootOf(hashes)}
	if err := c2sp.VerifySubtree(sub, cp.Size, p.proof, cp.Root); err != nil {
		return false, &PackageError{p.start, p.end, err.Error()}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	row, err := a.index.log(ctx, b.origin)
	if err != nil {
		return false, err
	}
	if p.end <= row.next {
		return false, nil // another upload was first, with the same entries: both are proven
	}
	if row.next < p.start {
		return false, fmt.Errorf("log %q: entries before %d are stored, and those from %d came", b.origin, row.next, p.start)
	}
	if err := b.mirror.save(first/c2sp.TileWidth, leaves, hashes); err != nil {
		return false, err
	}
	if err := a.step("record entries"); err != nil {
		return false, err
	}
	found, err := a.index.check(ctx, row, row.next, leaves[row.next-first:], b.mirror.leaf, a.now())
	if err != nil {
		return false, err
	}
	for _, f := range found {
		if f.Blocks() {
			a.log.Error("the log broke a rule; from this entry on nothing is cosigned", "origin", b.origin, "kind", f.Kind, "entry", f.Index, "reason", f.Reason)
		} else {
			a.log.Warn("unreadable entry: of a version that this program does not know; it is stored and hashed, and not checked further", "origin", b.origin, "entry", f.Index)
		}
	}
	a.metrics.entries.WithLabelValues(label(b.origin)).Add(float64(p.end - row.next))
	return true, nil
}

func (a *Auditor) step(name string) error {
	if a.testBeforeStep == nil {
		return nil
	}
	return a.testBeforeStep(name)
}

// finish cosigns the pending checkpoint p, of which all entries are stored: the
// tiles are completed, their root compared with the signed one, and the head
// moved there durably before a signature leaves. The tree that was cosigned last
// is cosigned anew, with the time of now.
func (a *Auditor) finish(ctx context.Context, b *book, p pending) (lines []byte, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, err := a.standing(ctx, b)
	if err != nil {
		return nil, err
	}
	if s.next < p.cp.Size {
		return nil, fmt.Errorf("log %q: %d of %d entries are stored", b.origin, s.next, p.cp.Size)
	}
	if s.head != nil && p.cp.Size < s.head.Size {
		return nil, &ConflictError{s.info(), fmt.Sprintf("size %d has been cosigned already", s.head.Size)}
	}
	from := uint64(0)
	if s.head != nil {
		from = s.head.Size
	}
	root, err := b.mirror.raise(ctx, from, p.cp.Size)
	if err != nil {
		return nil, err
	}
	if root != p.cp.Root {
		return nil, fmt.Errorf("log %q: the mirror's files do not hash to the checkpoint of %d entries, though each was proven part of it: the disk has changed them", b.origin, p.cp.Size)
	}
	if err := a.accuse(ctx, b, p); err != nil {
		return nil, err
	}
	return a.cosign(ctx, b, s, p)
}

// accuse returns a *FindingError if an entry of p breaks a rule, after making the
// evidence of it.
func (a *Auditor) accuse(ctx context.Context, b *book, p pending) error {
	list, err := a.index.findings(ctx, b.row.id)
	if err != nil {
		return err
	}
	var first *Finding
	for i := range list {
		f := &list[i]
		if f.Index >= p.cp.Size || !f.Blocks() {
			continue
		}
		if f.File == nil {
			if f.File, err = evidence(ctx, b.mirror, p, f); err != nil {
				return err
			}
			if err := a.index.setFile(ctx, f.ID, f.File); err != nil {
				return err
			}
		}
		if first == nil || f.Index < first.Index {
			first = f
		}
	}
	if first != nil {
		return &FindingError{*first}
	}
	return nil
}

// cosign signs p and moves the head to it.
func (a *Auditor) cosign(ctx context.Context, b *book, s *standing, p pending) ([]byte, error) {
	note, err := c2sp.ParseNote(p.note)
	if err != nil {
		return nil, err
	}
	at := a.now()
	switch since := a.dir.since; {
	case s.head != nil && at.Unix() < s.head.Time.Unix():
		return nil, &witness.ClockError{Now: at, After: s.head.Time, What: "the last cosignature for this log"}
	case at.Unix() < since.Unix():
		return nil, &witness.ClockError{Now: at, After: since, What: "the making of this auditor"}
	}
	if s.head != nil && s.head.Size == p.cp.Size && s.head.Time.Unix() == at.Unix() {
		return a.linesOf(s.head)
	}
	var lines []byte
	for _, signer := range a.signers {
		sig, err := signer.Cosign(p.cp, at)
		if err != nil {
			return nil, fmt.Errorf("cosigning: %w", err)
		}
		note.Sigs = append(note.Sigs, sig)
		lines = append(lines, sig.Line()...)
	}
	if err := a.step("advance the head"); err != nil {
		return nil, err
	}
	head := witness.Head{Size: p.cp.Size, Root: p.cp.Root, Time: time.Unix(at.Unix(), 0), Note: note.Bytes()}
	if err := a.store.Advance(ctx, b.origin, s.head, head); err != nil {
		return nil, err
	}
	if err := b.mirror.publish(head.Note); err != nil {
		a.log.Error("the mirror's checkpoint file is not the newest; the next start writes it", "error", err)
	}
	if err := a.step("answer"); err != nil {
		return nil, err
	}
	return lines, nil
}

// linesOf returns our signature lines on a note that we cosigned.
func (a *Auditor) linesOf(head *witness.Head) ([]byte, error) {
	note, err := c2sp.ParseNote(head.Note)
	if err != nil {
		return nil, err
	}
	var lines []byte
	for _, s := range note.Sigs {
		for _, signer := range a.signers {
			if signer.Key().Matches(s) {
				lines = append(lines, s.Line()...)
			}
		}
	}
	return lines, nil
}

// An upload is the header of an add-entries request.
type upload struct {
	origin     string
	start, end uint64
}

// An intake is the body of an add-entries request, and what reading it may cost.
type intake struct {
	*bufio.Reader
	guest *guest
	next  func() error // gives the next package its time
}

// receive reads an add-entries request and returns, once the checkpoint that
// it ends at is complete and cosigned, the signature lines of its answer. Its
// errors are those of errors.go, a *witness.UnknownLogError and a
// *witness.ClockError; any other is our own failure.
func (a *Auditor) receive(ctx context.Context, body *intake) (origin string, lines []byte, err error) {
	u, err := readUpload(body.Reader)
	if err != nil {
		return "", nil, err
	}
	b, err := a.book(ctx, u.origin)
	if err != nil {
		return "", nil, err
	}
	lines, err = a.addEntries(ctx, b, u, body)
	return u.origin, lines, err
}

func (a *Auditor) addEntries(ctx context.Context, b *book, u *upload, body *intake) ([]byte, error) {
	s, err := a.standing(ctx, b)
	if err != nil {
		return nil, err
	}
	if len(s.pendings) == 0 {
		return nil, &NoPendingError{b.origin}
	}
	p, err := s.fits(u)
	if err != nil {
		return nil, err
	}
	saved := false
	for start := u.start; start < u.end; {
		end := min(u.end, start/c2sp.TileWidth*c2sp.TileWidth+c2sp.TileWidth)
		err := body.next()
		var pk pack
		if err == nil {
			pk, err = readPack(body, start, end)
		}
		if err != nil { // it ended here
			if !saved {
				return nil, err
			}
			return nil, a.accepted(ctx, b, u.end)
		}
		stored, err := a.add(ctx, b, p.cp, pk)
		for errors.Is(err, witness.ErrMoved) {
			stored, err = a.add(ctx, b, p.cp, pk)
		}
		if err != nil {
			return nil, err
		}
		body.guest.free()
		if stored {
			body.guest.proved()
		}
		saved, start = true, end
	}
	return a.finish(ctx, b, p)
}

// accepted says how far an upload that ended early has come.
func (a *Auditor) accepted(ctx context.Context, b *book, end uint64) error {
	row, err := a.index.log(ctx, b.origin)
	if err != nil {
		return err
	}
	return &AcceptedError{Info{Size: end, Next: row.next}}
}

// fits returns the pending checkpoint of an upload, or a *ConflictError.
func (s *standing) fits(u *upload) (pending, error) {
	conflict := func(i Info, format string, args ...any) (pending, error) {
		return pending{}, &ConflictError{i, fmt.Sprintf(format, args...)}
	}
	var p *pending
	for i := range s.pendings {
		if s.pendings[i].cp.Size == u.end {
			p = &s.pendings[i]
		}
	}
	switch {
	case p == nil:
		return conflict(s.info(), "upload_end %d is the size of no pending checkpoint", u.end)
	case s.head != nil && u.end < s.head.Size:
		return conflict(s.info(), "upload_end %d is below the %d entries that are cosigned", u.end, s.head.Size)
	}
	valid := Info{Size: u.end, Next: s.next}
	switch {
	case u.start > s.next:
		return conflict(valid, "upload_start %d is beyond the next entry, %d", u.start, s.next)
	case min(u.end, s.next)-u.start > maxExcess:
		return conflict(valid, "more than %d of the entries are here already: the next one is %d", maxExcess, s.next)
	}
	return *p, nil
}

// A Dir is an auditor on disk: its keys and its memory of what it cosigned, of
// the kind that a witness has and under other names, so that the two are never
// taken for each other; its index; and the mirror.
type Dir struct {
	Path    string
	Ed25519 *c2sp.Signer
	MLDSA   *c2sp.Signer
	Store   *witness.Store
	index   *index
	since   time.Time

	testBeforeStep func(string) error
}

// The names in an auditor's directory.
const (
	KeyFile      = "auditor.key"       // one line, PRIVATE+KEY+...: Ed25519; mode 0600
	MLDSAKeyFile = "auditor-mldsa.key" // the same: ML-DSA-44
	DatabaseFile = "auditor.db"        // what was cosigned; see witness.Store
	MarkFile     = "auditor.mark"      // see witness.Store.CreateMark
	indexFile    = "audit.db"          // see index.go
	mirrorDir    = "mirror"
)

func (d *Dir) signers() []*c2sp.Signer { return []*c2sp.Signer{d.Ed25519, d.MLDSA} }

// Keys returns the public keys, Ed25519 first.
func (d *Dir) Keys() []*c2sp.Key { return []*c2sp.Key{d.Ed25519.Key(), d.MLDSA.Key()} }

// CreateDir makes a new auditor: two keys of this name, and empty databases that
// belong to them. It refuses a directory that holds any of it, or a witness.
func CreateDir(ctx context.Context, path, name string, now time.Time) (_ *Dir, err error) {
	d := &Dir{Path: path, since: now}
	if d.Ed25519, err = c2sp.GenerateSigner(name, c2sp.AlgEd25519Cosig); err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	if d.MLDSA, err = c2sp.GenerateSigner(name, c2sp.AlgMLDSA44); err != nil {
		return nil, fmt.Errorf("name %q: %w", name, err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making the auditor's directory: %w", err)
	}
	for _, file := range []string{KeyFile, MLDSAKeyFile, DatabaseFile, indexFile, mirrorDir, witness.KeyFile, witness.DatabaseFile} {
		if _, err := os.Lstat(filepath.Join(path, file)); err == nil {
			return nil, fmt.Errorf("%s already holds %s: an auditor is made once, in a directory of its own", path, file)
		}
	}
	var written []string // and has signed nothing
	defer func() {
		if err != nil {
			for _, file := range written {
				os.Remove(file)
			}
		}
	}()
	for file, signer := range map[string]*c2sp.Signer{KeyFile: d.Ed25519, MLDSAKeyFile: d.MLDSA} {
		file = filepath.Join(path, file)
		if err := writeKey(file, signer); err != nil {
			return nil, err
		}
		written = append(written, file)
	}
	if d.Store, err = witness.CreateStore(ctx, filepath.Join(path, DatabaseFile), d.Keys(), now); err != nil {
		return nil, err
	}
	if d.index, err = openIndex(ctx, filepath.Join(path, indexFile)); err != nil {
		return nil, errors.Join(err, d.Store.Close())
	}
	return d, nil
}

func writeKey(path string, signer *c2sp.Signer) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing the key: %w", err)
	}
	_, err = f.WriteString(signer.SKey() + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(path)
		return fmt.Errorf("writing the key: %w", err)
	}
	return syncDirs(filepath.Dir(path))
}

// OpenDir opens an existing auditor. It refuses keys that its database was not
// made with (witness.ErrOtherKey): those of a witness, say.
func OpenDir(ctx context.Context, path string) (_ *Dir, err error) {
	d := &Dir{Path: path}
	if d.Ed25519, err = witness.ReadKey(filepath.Join(path, KeyFile)); err != nil {
		return nil, err
	}
	if d.MLDSA, err = witness.ReadKey(filepath.Join(path, MLDSAKeyFile)); err != nil {
		return nil, err
	}
	if d.Ed25519.Key().Alg() != c2sp.AlgEd25519Cosig || d.MLDSA.Key().Alg() != c2sp.AlgMLDSA44 {
		return nil, fmt.Errorf("%s and %s are keys of types %s and %s: put the files back that were made with this auditor", KeyFile, MLDSAKeyFile, d.Ed25519.Key().Alg(), d.MLDSA.Key().Alg())
	}
	if d.Store, err = witness.OpenStore(filepath.Join(path, DatabaseFile)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Store.Close())
		}
	}()
	if d.since, err = d.Store.MadeFor(d.Keys()); err != nil {
		return nil, err
	}
	d.index, err = openIndex(ctx, filepath.Join(path, indexFile))
	return d, err
}

// Close closes the databases.
func (d *Dir) Close() error { return errors.Join(d.index.close(), d.Store.Close()) }

// SetURL says where a log, already added to the Store, is read; empty: nowhere,
// it pushes.
func (d *Dir) SetURL(ctx context.Context, origin, at string) error {
	return d.index.setURL(ctx, origin, at)
}
