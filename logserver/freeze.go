package logserver

// How a log ends: "portbook-log freeze" writes into log.json which log takes
// over; the server, the one that runs or the next one, then
//
//	refuses submissions ─▶ settles what is in flight ─▶ logs the successor leaf
//	as the last entry ─▶ publishes the checkpoint that ends with it ─▶ signs no more
//
// A server that is killed anywhere on the way goes on at its next start. Once
// the leaf is in the tree, the mark in log.json does not matter any more: the
// leaf says that the log has ended, and the guard signs nothing after it.

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera"
)

// Successor is the log that takes over from one that ends.
type Successor struct {
	Origin string   `json:"origin"`
	VKeys  []string `json:"vkeys"` // of its checkpoints, sorted
	URL    string   `json:"url"`   // where its tiles are read
}

// FreezeMark is the operator's decision that a log ends.
type FreezeMark struct {
	Successor
	ID   string `json:"id"`   // of the leaf
	Time string `json:"time"` // of the leaf
}

// leaf is the entry that the log ends with.
func (m *FreezeMark) leaf() *entry.Entry {
	return &entry.Entry{Kind: entry.KindSuccessor, Claim: entry.ClaimLog, ID: m.ID, Time: m.Time,
		Origin: m.Origin, VKeys: m.VKeys, URL: m.URL}
}

// FrozenError refuses a submission: the log has ended, or is about to.
type FrozenError struct {
	Origin, Next, URL string // this log, and where it goes on
}

func (e *FrozenError) Error() string {
	return fmt.Sprintf("the log %s takes no more entries, now or later: it goes on as %s at %s; submit there", e.Origin, e.Next, e.URL)
}

const (
	freezeLockFile = "freeze.lock"
	markPoll       = 500 * time.Millisecond // how soon a running server sees a mark
	endRetry       = time.Second
)

// Freeze decides that the log in dir ends, and that next takes over. It cannot
// be undone. The server of the log does the rest: the one that runs now, within
// a second, or the next. Freezing again for the same successor is no error.
func Freeze(dir string, next Successor, now time.Time) error {
	lock, err := lockFile(filepath.Join(dir, freezeLockFile)) // between two freezes; the server holds another
	if err != nil {
		return err
	}
	defer lock.release()
	// Nobody changes log.json beneath us: not a command that needs the server
	// stopped, nor a server that starts and would miss the mark.
	serving, err := lockFile(filepath.Join(dir, lockFileName))
	var locked *LockedError
	if err == nil {
		defer serving.release()
	} else if !errors.As(err, &locked) { // it is served: the server reads log.json, and writes it not
		return err
	}
	id, err := ReadIdentity(dir)
	if err != nil {
		return err
	}
	if again, err := id.end(next, now); again || err != nil {
		return err
	}
	return writeIdentity(dir, id)
}

// end decides that the log ends, unless that is decided already for the same
// successor.
func (id *Identity) end(next Successor, now time.Time) (again bool, err error) {
	if err := next.check(*id); err != nil {
		return false, err
	}
	if id.Freeze != nil {
		if id.Freeze.Origin == next.Origin && slices.Equal(id.Freeze.VKeys, next.VKeys) && id.Freeze.URL == next.URL {
			return true, nil
		}
		return false, fmt.Errorf("the log ends already, and goes on as %s at %s: that cannot be changed", id.Freeze.Origin, id.Freeze.URL)
	}
	var leafID [16]byte
	rand.Read(leafID[:])
	id.Freeze = &FreezeMark{next, hex.EncodeToString(leafID[:]), now.UTC().Format(entry.TimeFormat)}
	_, err = id.Freeze.leaf().Marshal()
	return false, err
}

// check refuses a successor that no client could follow, and sorts its keys.
func (s *Successor) check(old Identity) error {
	if s.Origin == old.Origin {
		return fmt.Errorf("%s is this log: its successor is another one, made with portbook-log init", s.Origin)
	}
	if len(s.VKeys) == 0 {
		return errors.New("a successor has at least one key: give the vkey that portbook-log init printed")
	}
	own := map[string]bool{}
	for _, k := range old.Keys {
		own[string(k.key.Raw())] = true
	}
	s.VKeys = slices.Clone(s.VKeys)
	slices.Sort(s.VKeys)
	for i, v := range s.VKeys {
		k, err := c2sp.ParseVKey(v)
		switch {
		case err != nil:
			return fmt.Errorf("successor's key: %w", err)
		case k.Name() != s.Origin:
			return fmt.Errorf("key %s is of %s, not of the successor %s", v, k.Name(), s.Origin)
		case k.Alg() != c2sp.AlgEd25519 && k.Alg() != c2sp.AlgMLDSA44:
			return fmt.Errorf("key %s is of type %s: it signs no checkpoints of a log", v, k.Alg())
		case own[string(k.Raw())]:
			return fmt.Errorf("key %s is this log's own under another name: a successor has a key of its own", v)
		case i > 0 && v == s.VKeys[i-1]:
			return fmt.Errorf("key %s is given twice", v)
		}
	}
	return nil
}

// Ended tells whether the public checkpoint in dir is the last of a log that
// has ended: then next is the leaf it ends with. It needs no lock.
func Ended(dir string) (p Published, next *entry.Entry, err error) {
	raw, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil, nil
	}
	if err != nil {
		return p, nil, err
	}
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return p, nil, err
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return p, nil, err
	}
	p = Published{Size: cp.Size, Root: cp.Root, Note: raw}
	next, err = lastLeaf(tree{context.Background(), directory(filepath.Join(dir, engineDir)), int64(cp.Size), nil})
	return p, next, err
}

// Served reports whether a server has the log in dir now.
func Served(dir string) (bool, error) {
	lock, err := lockFile(filepath.Join(dir, lockFileName))
	var locked *LockedError
	if errors.As(err, &locked) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	lock.release()
	return false, nil
}

// lastLeaf returns the successor leaf that the tree ends with; nil if it does not.
func lastLeaf(t tree) (*entry.Entry, error) {
	if t.size == 0 {
		return nil, nil
	}
	leaves, err := t.leaves(t.size-1, 1)
	if err != nil {
		return nil, err
	}
	return successorLeaf(leaves[0]), nil
}

// successorKind is in the bytes of every successor leaf, and in those of few
// others: strings in a leaf hold no quotes.
var successorKind = []byte(`"kind":"` + string(entry.KindSuccessor) + `"`)

// successorLeaf is leaf as the entry that ends a log; nil if it is another one.
func successorLeaf(leaf []byte) *entry.Entry {
	if !bytes.Contains(leaf, successorKind) {
		return nil
	}
	e, err := entry.Parse(leaf)
	if err != nil || e.Kind != entry.KindSuccessor {
		return nil
	}
	return e
}

// errAfterEnd is a failed guard.
var errAfterEnd = errors.New("there are entries after the leaf that ends the log: nothing is signed after it")

// setFrozen refuses submissions from now on.
func (l *Log) setFrozen(next *entry.Entry) {
	l.setStatus(Status{Reason: &FrozenError{l.Origin(), next.Origin, next.URL}})
}

// closedBy is err, a refusal because the sequencer has ended, or, if that is
// because the log ends, the refusal that says so.
func (l *Log) closedBy(err error) error {
	var frozen *FrozenError
	if errors.Is(err, ErrReadOnly) && errors.As(l.Status().Reason, &frozen) {
		return frozen
	}
	return err
}

// openEnded opens a log whose last checkpoint is published: for reading alone,
// with nothing that could write or sign. It reports whether it is one.
func (l *Log) openEnded() bool {
	p, _ := l.board.get()
	if p.Note == nil {
		return false
	}
	next, err := lastLeaf(l.freshTree(int64(p.Size)))
	if err != nil || next == nil {
		return false // damage is for makeSure to judge
	}
	l.setFrozen(next)
	l.cfg.Logger.Info("this log has ended and is served for reading; it signs nothing more", "origin", l.Origin(), "size", p.Size, "successor", next.Origin, "url", next.URL)
	return true
}

// awaitMark stops the sequencer once the operator has decided that the log ends.
func (l *Log) awaitMark(ctx context.Context, stop func()) {
	said := ""
	for sleep(ctx, markPoll) {
		id, err := ReadIdentity(l.cfg.Dir)
		if err != nil {
			if err.Error() != said {
				said = err.Error()
				l.cfg.Logger.Error("cannot see whether the log is to end", "err", err)
			}
			continue
		}
		if id.Freeze != nil {
			l.mark.Store(id.Freeze)
			l.setFrozen(id.Freeze.leaf())
			stop()
			return
		}
	}
}

// endedLeaf is the leaf that the integrated tree ends with, if it ends the log.
func (l *Log) endedLeaf(ctx context.Context) (next *entry.Entry, size uint64, err error) {
	if size, err = l.engine.size(ctx); err != nil {
		return nil, 0, fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
	}
	t := l.freshTree(int64(size))
	t.ctx = ctx
	next, err = lastLeaf(t)
	return next, size, err
}

// end makes the successor leaf the last entry, unless it is, and has the
// publisher publish it as its last checkpoint. Nothing else may be writing. If
// ctx ends first, the next start goes on.
func (l *Log) end(ctx context.Context) {
	said := ""
	for !l.Status().Latched { // else nothing is written any more
		err := l.tryEnd(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		var damaged *entry.FieldError
		if errors.Is(err, errUnreadable) || errors.Is(err, ErrBehind) || errors.As(err, &damaged) {
			l.latch(fmt.Errorf("ending the log: %w", err))
			return
		}
		if err.Error() != said {
			said = err.Error()
			l.cfg.Logger.Error("the log cannot be ended yet; trying again", "err", err)
		}
		if !sleep(ctx, endRetry) {
			return
		}
	}
}

func (l *Log) tryEnd(ctx context.Context) error {
	if err := l.takeIn(ctx); err != nil { // what the engine did not take before
		return err
	}
	next, size, err := l.endedLeaf(ctx)
	if err != nil {
		return err
	}
	if next == nil {
		next = l.mark.Load().leaf()
		leaf, err := next.Marshal()
		if err != nil {
			return fmt.Errorf("%s: freeze: %w", identityFile, err)
		}
		if l.cfg.testEnding != nil {
			l.cfg.testEnding("drained")
		}
		// Like every other entry it has its index from the journal.
		index, err := l.journal.Load().append([]*submission{{leaf: leaf}})
		if err != nil {
			return err
		}
		if index != size {
			return fmt.Errorf("%w: the last entry got index %d, the log had %d entries", ErrBehind, index, size)
		}
		if err := l.feeder().write(ctx, size, []*tessera.Entry{tessera.NewEntry(leaf)}); err != nil {
			return err // the journal has it: takeIn goes on
		}
		who := l.who.(*attributionFile)
		who.expect([]Attributed{{First: size, Count: 1}}) // the log itself
		if err := who.flush(); err != nil {
			return fmt.Errorf("%w: %w", ErrStorage, err)
		}
		if err := l.journal.Load().free(size + 1); err != nil {
			return err
		}
		if l.cfg.testEnding != nil {
			l.cfg.testEnding("logged")
		}
		for size <= index {
			if size, err = l.engine.size(ctx); err != nil {
				return fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
			}
			if size <= index && !sleep(ctx, time.Millisecond) {
				return ctx.Err()
			}
		}
	}
	l.setFrozen(next)
	l.cfg.Logger.Info("the log ends here; publishing its last checkpoint", "size", size, "successor", next.Origin, "url", next.URL)
	l.pub.last.Store(size)
	l.pub.grown()
	return nil
}

// done reports whether the last checkpoint of a log that ends is published:
// then nothing more is signed, whatever the policy of now says of it.
func (p *publisher) done() bool {
	last := p.last.Load()
	was, _ := p.board.get()
	return last > 0 && was.Size >= last
}
