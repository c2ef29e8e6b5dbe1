package audit

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Config says what to audit. One of Dir, Mirror and URL is given.
type Config struct {
	Dir    string // a log's own directory: its anchor, engine and leftovers are checked too
	Mirror string // a directory with a checkpoint and tiles as a web server shows them
	URL    string // where a log is read
	Token  string // for URL, of a private log

	// Keys are the log's verifier keys, of one name: each is good by itself. None:
	// those that the log's directory names.
	Keys []Key

	History   string   // archive of checkpoints, read and added to; "": none
	Seen      []Seen   // other checkpoints
	Witnesses []string // URLs of witnesses, to be asked what they hold

	// Index is what the server's uniqueness index holds; nil: it is not checked.
	Index *IndexDigest
	// IndexTrouble is why the index could not be read, if it is there.
	IndexTrouble error

	Workers   int    // 0: one for each processor
	MaxMemory int    // bytes of records kept in memory; 0: 256 MiB
	TempDir   string // for records beyond; "": the system's

	Progress func(done, size int64) // called from one goroutine, often
}

// Key is an Ed25519 key of a log.
type Key struct {
	VKey    string // c2sp.org/signed-note
	Retired bool   // it has signed trees up to size UpTo, and none larger counts
	UpTo    int64
}

// signer is a key that can verify.
type signer struct {
	note.Verifier
	Key
}

// ErrConfig is what Run's error matches when the audit was asked for what
// cannot be.
var ErrConfig = errors.New("cannot audit that")

// Run audits a log. Its error is of the kind that leaves nothing to report: a
// mistake in the configuration, a checkpoint that cannot be read, a full disk.
// What is wrong with the log is in the report.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Workers == 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	if cfg.MaxMemory == 0 {
		cfg.MaxMemory = 256 << 20
	}
	a := &audit{cfg: cfg, out: newFindings(), report: &Report{}}
	if err := a.open(); err != nil {
		return nil, err
	}
	if err := a.run(ctx); !errors.Is(err, errStop) {
		return a.report, err
	}
	return a.report, nil
}

type audit struct {
	cfg    Config
	src    source
	home   *home // nil unless Config.Dir was given
	keys   []signer
	out    *findings
	report *Report
}

func (a *audit) open() (err error) {
	given := 0
	for _, s := range []string{a.cfg.Dir, a.cfg.Mirror, a.cfg.URL} {
		if s != "" {
			given++
		}
	}
	if given != 1 {
		return fmt.Errorf("%w: give one of a log's directory, a mirror and a URL", ErrConfig)
	}
	keys := a.cfg.Keys
	switch {
	case a.cfg.Dir != "":
		if a.home, err = openHome(a.cfg.Dir); err != nil {
			return err
		}
		a.src = a.home
		if len(keys) == 0 {
			keys = a.home.identity.keys()
		}
	case a.cfg.Mirror != "":
		a.src = directory(a.cfg.Mirror)
	default:
		if a.src, err = newSite(a.cfg.URL, a.cfg.Token); err != nil {
			return fmt.Errorf("%w: %w", ErrConfig, err)
		}
	}
	if len(keys) == 0 {
		return fmt.Errorf("%w: without the log's verifier key there is nothing to hold it to", ErrConfig)
	}
	for _, k := range keys {
		v, err := note.NewVerifier(k.VKey)
		if err != nil {
			return fmt.Errorf("%w: key %q: %w (this audit knows Ed25519 log keys)", ErrConfig, k.VKey, err)
		}
		if len(a.keys) > 0 && v.Name() != a.keys[0].Name() {
			return fmt.Errorf("%w: keys of two logs, %q and %q", ErrConfig, a.keys[0].Name(), v.Name())
		}
		a.keys = append(a.keys, signer{v, k})
	}
	a.report.Origin = a.keys[0].Name()
	return nil
}

// witnessWait is how long a log may take to publish what a witness has shown.
const witnessWait = 15 * time.Second

func (a *audit) run(ctx context.Context) error {
	defer func() { a.out.into(a.report) }()
	// What others were shown first: the log's own checkpoint must be newer.
	known := a.cfg.Seen
	if a.cfg.History != "" {
		old, err := readHistory(a.cfg.History)
		if err != nil {
			return fmt.Errorf("history: %w", err)
		}
		known = append(old, known...)
	}
	for _, w := range a.cfg.Witnesses {
		s, has, err := askWitness(ctx, w, a.report.Origin)
		if err != nil {
			a.out.cannot("witness %s: %v", w, plain(err))
		} else if has {
			known = append(known, s)
		}
	}
	others := readSeen(known, a.report.Origin, a.keys, a.out)

	published, raw, err := a.published(ctx, others)
	if err != nil {
		return err
	}
	a.report.Size, a.report.Root, a.report.RootHex = published.Size, published.Root, hex.EncodeToString(published.Root[:])
	mine := seen{Seen{From: "the published checkpoint", Raw: raw, Published: true}, published}

	w := &walk{src: a.src, size: published.Size, out: a.out, seed: maphash.MakeSeed(), targets: map[int64][]*target{}, workers: a.cfg.Workers, progress: a.cfg.Progress}
	if a.home != nil {
		w.size = a.home.covers(ctx, published, a.out)
	}
	a.report.Covered = w.size
	aim := func(size int64, root [32]byte) *target {
		t := &target{size: size, root: root}
		if size <= w.size {
			w.targets[size] = append(w.targets[size], t)
		}
		return t
	}
	ours := aim(published.Size, published.Root)
	theirs := make([]*target, len(others))
	for i, o := range others {
		theirs[i] = aim(o.checkpoint.Size, o.checkpoint.Root)
	}
	var inside []*target
	if a.home != nil {
		for _, m := range a.home.memories {
			inside = append(inside, aim(m.size, m.root))
		}
	}

	u := newUniqueness(a.out, a.cfg.MaxMemory, a.cfg.TempDir)
	defer u.close()
	u.at = w.size
	if a.cfg.Index != nil {
		u.at = a.cfg.Index.Size
	}
	w.take = u.take
	if a.home != nil {
		w.take = a.home.journal.held(u.take, a.out)
	}
	if err := w.run(ctx); err != nil {
		return err
	}
	a.report.Tiles = w.tiles
	for _, ts := range w.targets { // of an empty tree nothing was walked
		for _, t := range ts {
			if t.size == 0 {
				t.got = emptyRoot
			}
		}
	}

	if ours.got != ours.root {
		class, why := Tampering, "the tiles and entries agree with each other and not with the checkpoint: it was signed over another tree"
		if w.hurt || len(a.out.unread) > 0 {
			class, why = Damage, "what is damaged or missing may be why"
		}
		a.out.add(class, "root", checkpoint, "the tree of size %d has root %x, the checkpoint says %x: %s", ours.size, ours.got, ours.root, why)
	}
	a.hold(others, theirs, mine, ours, w)
	if a.home != nil {
		a.home.judge(inside, published, w, a.out)
		shown := map[int64]bool{published.Size: true}
		for _, o := range others {
			shown[o.checkpoint.Size] = true
		}
		if err := a.home.leftovers(ctx, published.Size, w.size, shown, a.cfg.Workers, a.out, a.report); err != nil {
			return err
		}
	}
	if err := a.uniqueness(u, w); err != nil {
		return err
	}
	return a.archive(others, mine)
}

// published reads the log's checkpoint. If somebody holds a newer one it waits
// for a moment: the log publishes only when its quorum has cosigned.
func (a *audit) published(ctx context.Context, others []seen) (Checkpoint, []byte, error) {
	var most int64
	if len(others) > 0 {
		most = others[len(others)-1].checkpoint.Size
	}
	for deadline := time.Now().Add(witnessWait); ; {
		raw, err := a.src.read(ctx, checkpoint, maxNote)
		if err != nil && missing(err) && a.home != nil {
			return Checkpoint{}, nil, fmt.Errorf("the log has no public checkpoint: a log that was never served has none, and one that was makes it anew when it is served")
		}
		if err != nil {
			return Checkpoint{}, nil, fmt.Errorf("checkpoint: %w", plain(err))
		}
		c, err := parseCheckpoint(raw, a.keys)
		if err == nil && c.Origin != a.report.Origin {
			err = fmt.Errorf("is of log %q", c.Origin)
		}
		if err != nil {
			a.out.add(Damage, "checkpoint", checkpoint, "%v", err)
			return Checkpoint{}, nil, errStop
		}
		if c.Size >= most || a.cfg.URL == "" || time.Now().After(deadline) {
			return c, raw, nil
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return Checkpoint{}, nil, ctx.Err()
		}
	}
}

// errStop ends an audit whose report says why.
var errStop = errors.New("nothing more can be checked")

// hold holds the tree against what others were shown.
func (a *audit) hold(others []seen, theirs []*target, mine seen, ours *target, w *walk) {
	a.report.Seen = len(others)
	for i, o := range others {
		t := theirs[i]
		switch {
		case o.checkpoint.Size == mine.checkpoint.Size && o.checkpoint.Root != mine.checkpoint.Root:
			a.out.add(Tampering, "fork", o.From, "the log signed another tree of size %d than it publishes. Keep both notes: they prove it to anyone", t.size)
		case o.Published && o.checkpoint.Size > mine.checkpoint.Size:
			a.out.add(Tampering, "rollback", o.From, "the log has shown %d entries and shows %d now: it went back", o.checkpoint.Size, mine.checkpoint.Size)
		case o.checkpoint.Size > w.size:
			a.out.cannot("%s: the log signed %d entries and shows %d: it waits for its witnesses, or it went back", o.From, o.checkpoint.Size, mine.checkpoint.Size)
		case t.got != t.root && ours.got == ours.root:
			a.out.add(Tampering, "fork", o.From, "at size %d the log signed root %x; the tree that it publishes has %x there. Keep both notes: they prove it to anyone", t.size, t.root, t.got)
		case t.got != t.root && !w.hurt:
			a.out.add(Tampering, "fork", o.From, "at size %d the log signed root %x; its tree has %x there", t.size, t.root, t.got)
		case t.got != t.root:
			a.out.cannot("%s: at size %d it cannot be compared with a damaged tree", o.From, t.size)
		}
	}
}

func (a *audit) uniqueness(u *uniqueness, w *walk) error {
	d, err := u.judge(w.size, a.cfg.Workers, a.report)
	if err != nil {
		return err
	}
	if len(u.gaps) > 0 {
		a.out.note("%d bundles could not be used: uniqueness and references were checked in the rest", len(u.gaps))
	}
	i := a.cfg.Index
	if err := a.cfg.IndexTrouble; err != nil {
		a.out.add(Damage, "index", "uniqueness index", "it cannot be read: %v", plain(err))
	}
	if i == nil {
		return nil
	}
	a.report.IndexRows = d.Rows
	switch {
	case len(u.gaps) > 0:
		a.out.note("the uniqueness index was not checked: some entries that it follows from cannot be read")
	case i.Size > w.size:
		a.out.add(Damage, "index", "uniqueness index", "it says it follows from %d entries, the log has %d", i.Size, w.size)
	case i.Rows != d.Rows || i.Sum != d.Sum:
		a.out.add(Damage, "index", "uniqueness index", "its %d rows are not the %d that the log's first %d entries give: stop the server and run rebuild-index", i.Rows, d.Rows, i.Size)
	default:
		a.report.IndexChecked = true
		if i.Size < w.size {
			a.out.note("the uniqueness index was checked as far as it is on the disk, %d of %d entries: a running server has the rest in memory", i.Size, w.size)
		}
	}
	return nil
}

// archive keeps what was seen, also what convicts the log.
func (a *audit) archive(others []seen, mine seen) error {
	if a.cfg.History == "" {
		return nil
	}
	for _, s := range append(others, mine) {
		if s.archived {
			continue
		}
		if err := addHistory(a.cfg.History, s); err != nil {
			return fmt.Errorf("history: %w", err)
		}
	}
	return nil
}

// plain drops what a person does not need to read in an error.
func plain(err error) error {
	if s := err.Error(); strings.Contains(s, "\n") {
		return errors.New(strings.ReplaceAll(s, "\n", "; "))
	}
	return err
}
