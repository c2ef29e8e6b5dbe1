package auditor

// Following a log: being one's own mirror client. The checkpoint goes through
// AddCheckpoint and each bundle through the same door as a package of
// add-entries, with proofs made from the log's tiles.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness"
)

// prefetch is how many bundles are fetched ahead.
const prefetch = 4

// followState is how the following of a log goes, for people.
type followState struct {
	mu      sync.Mutex
	size    uint64    // guarded by mu; of the checkpoint that the log showed last
	seen    time.Time // guarded by mu; when
	trouble error     // guarded by mu; nil: the last round was good
	since   time.Time // guarded by mu; of the trouble
}

func (f *followState) set(size uint64, at time.Time, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.size, f.seen, f.trouble = size, at, nil
		return
	}
	if f.trouble == nil {
		f.since = at
	}
	f.trouble = err
}

func (f *followState) get() (size uint64, seen time.Time, trouble error, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size, f.seen, f.trouble, f.since
}

// Run follows every log that has a URL, also those added later, until ctx ends.
func (a *Auditor) Run(ctx context.Context) error {
	var following sync.WaitGroup
	defer following.Wait()
	at := map[string]string{} // origin: URL
	stop := map[string]context.CancelFunc{}
	tick := time.NewTicker(a.poll)
	defer tick.Stop()
	for {
		logs, err := a.store.Logs(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Error("the list of logs cannot be read", "error", err)
		}
		for _, l := range logs {
			b, err := a.book(ctx, l.Origin)
			if err == nil {
				var row *logRow
				if row, err = a.index.log(ctx, l.Origin); err == nil && row.url != at[l.Origin] {
					if s := stop[l.Origin]; s != nil {
						s()
					}
					at[l.Origin] = row.url
					one, cancel := context.WithCancel(ctx)
					stop[l.Origin] = cancel
					if row.url != "" {
						following.Go(func() { a.follow(one, b, row.url) })
					}
				}
			}
			if err != nil && ctx.Err() == nil {
				a.log.Error("a log cannot be opened", "origin", l.Origin, "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			for _, s := range stop {
				s()
			}
			return ctx.Err()
		}
	}
}

// follow follows one log. Trouble is told when it begins and when it ends.
func (a *Auditor) follow(ctx context.Context, b *book, url string) {
	src := newSource(url)
	defer src.http.CloseIdleConnections()
	for wait := a.poll; ; {
		size, err := a.round(ctx, b, src)
		if ctx.Err() != nil {
			return
		}
		_, _, before, _ := b.state.get()
		b.state.set(size, a.now(), err)
		switch {
		case err == nil && before != nil:
			a.log.Info("following the log again", "origin", b.origin, "size", size)
		case err != nil && (before == nil || before.Error() != err.Error()):
			a.log.Warn("the log was not followed to its newest checkpoint", "origin", b.origin, "error", err)
		}
		if wait = a.poll; err != nil {
			wait = min(8*a.poll, time.Minute)
			if wait < a.poll {
				wait = a.poll
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// An InconsistentError means that what the log serves is not what it signed, or
// that its checkpoint is not shown to contain the one before. It is no evidence
// that convinces a third party, and nothing of it is cosigned.
type InconsistentError struct{ Reason string }

func (e *InconsistentError) Error() string { return e.Reason }

// round goes to the newest checkpoint of a log, and returns its size.
func (a *Auditor) round(ctx context.Context, b *book, src *source) (uint64, error) {
	raw, err := src.checkpoint(ctx)
	if err != nil {
		return 0, err
	}
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return 0, err
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return 0, err
	}
	if cp.Origin != b.origin {
		return 0, fmt.Errorf("its URL shows the checkpoint of another log, %.100q", cp.Origin)
	}
	s, err := a.standing(ctx, b)
	if err != nil {
		return 0, err
	}
	old := s.info().Size
	if cp.Size < old {
		return cp.Size, a.older(ctx, b, s, cp, note)
	}
	proof, err := newTree(ctx, src, cp.Size).consistency(old)
	if err != nil {
		return 0, err
	}
	_, err = a.AddCheckpoint(ctx, (&c2sp.AddCheckpoint{Old: old, Proof: proof, Checkpoint: raw}).Bytes())
	var inconsistent *witness.ProofError
	var conflict *witness.ConflictError
	var fork *witness.ForkError
	switch {
	case errors.As(err, &conflict):
		return cp.Size, nil // a push came in between: the next round looks again
	case errors.As(err, &fork):
		return 0, &InconsistentError{err.Error()}
	case errors.As(err, &inconsistent):
		return 0, &InconsistentError{fmt.Sprintf("its checkpoint of %d entries does not contain the one of %d: %s", cp.Size, old, inconsistent.Reason)}
	case err != nil:
		return 0, err
	}
	if s.head != nil && s.head.Size == cp.Size && a.now().Sub(s.head.Time) < a.refresh {
		return cp.Size, nil
	}
	return cp.Size, a.fetch(ctx, b, src, cp)
}

// older looks at a checkpoint that is smaller than the one that is pending. A
// cache may lag, and a log that went back shows it when it grows again; but it
// must be of the one history. An error if it is not.
func (a *Auditor) older(ctx context.Context, b *book, s *standing, cp c2sp.Checkpoint, note *c2sp.Note) error {
	sigs, err := s.known.VerifyLog(note)
	if err != nil {
		return err
	}
	signed := (&c2sp.Note{Text: note.Text, Sigs: sigs}).Bytes()
	for _, p := range s.pendings {
		if p.cp.Size == cp.Size && p.cp.Root != cp.Root {
			err := a.keep(ctx, &witness.Fork{Origin: b.origin, Size: cp.Size, OursSize: cp.Size, Ours: p.note, Theirs: signed})
			return errors.Join(err, &witness.ForkError{Origin: b.origin, Old: cp.Size, Size: cp.Size})
		}
	}
	if s.head == nil || cp.Size == 0 || cp.Size >= s.head.Size {
		return nil
	}
	began, err := newTree(ctx, b.mirror, cp.Size).root()
	if err != nil || began == cp.Root {
		return err
	}
	path, err := newTree(ctx, b.mirror, s.head.Size).consistency(cp.Size)
	if err != nil {
		return err
	}
	err = a.keep(ctx, &witness.Fork{Origin: b.origin, Size: s.head.Size, OursSize: cp.Size, Ours: signed, Theirs: s.head.Note, Hashes: append([]hash{began}, path...)})
	return errors.Join(err, &InconsistentError{fmt.Sprintf("it shows a checkpoint of %d entries that is not of the tree that it signed before", cp.Size)})
}

// fetch stores what is missing of the pending checkpoint cp, and cosigns it.
func (a *Auditor) fetch(ctx context.Context, b *book, src *source, cp c2sp.Checkpoint) error {
	s, err := a.standing(ctx, b)
	if err != nil {
		return err
	}
	var p *pending
	for i := range s.pendings {
		if s.pendings[i].cp.Size == cp.Size {
			p = &s.pendings[i]
		}
	}
	if p == nil {
		return nil // outrun by pushes
	}
	if f, err := a.index.blocked(ctx, b.row.id); err != nil {
		return err
	} else if f != nil && f.File != nil && f.Index < s.next {
		return &FindingError{*f} // nothing more of this log is cosigned, so nothing more is read
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type got struct {
		leaves [][]byte
		err    error
	}
	type job struct {
		start, end uint64
		out        chan got
	}
	jobs := make(chan job, prefetch-1)
	go func() {
		defer close(jobs)
		canonical(s.next, cp.Size, func(start, end uint64) error {
			j := job{start, end, make(chan got, 1)}
			select {
			case jobs <- j:
			case <-ctx.Done():
				return ctx.Err()
			}
			go func() {
				first := start / c2sp.TileWidth
				leaves, err := src.bundle(ctx, first, int(end-first*c2sp.TileWidth))
				if err == nil {
					leaves = leaves[start-first*c2sp.TileWidth:]
				}
				j.out <- got{leaves, err}
			}()
			return nil
		})
	}()
	t := newTree(ctx, src, cp.Size)
	for j := range jobs {
		g := <-j.out
		if g.err != nil {
			return g.err
		}
		proof, err := t.path(j.start/c2sp.TileWidth*c2sp.TileWidth, j.end)
		if err != nil {
			return err
		}
		for {
			_, err = a.add(ctx, b, p.cp, pack{j.start, j.end, g.leaves, proof})
			if !errors.Is(err, witness.ErrMoved) {
				break
			}
		}
		var wrong *PackageError
		if errors.As(err, &wrong) {
			return &InconsistentError{"it serves other entries or tiles than it signed: " + err.Error()}
		}
		if err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err = a.finish(ctx, b, *p)
	var behind *ConflictError
	if errors.As(err, &behind) {
		return nil // a push has gone further
	}
	return err
}
