package logserver

// How a log begins that takes over from another: index 0 is the predecessor
// leaf. That the old log's last checkpoint is what it is said to be is for the
// caller to verify, before this is written: the log itself cannot.

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/tessera"
)

// Begin makes the log in dir, which is empty and not being served, begin with
// the predecessor leaf: it takes over from the log whose last checkpoint is old.
// To begin again with the same is no error.
func Begin(ctx context.Context, dir string, old c2sp.Checkpoint, now time.Time) (err error) {
	lock, err := lockFile(filepath.Join(dir, lockFileName))
	if err != nil {
		return err
	}
	defer lock.release()
	id, err := ReadIdentity(dir)
	if err != nil {
		return err
	}
	if err := id.mayTakeOver(old); err != nil {
		return err
	}
	engine, err := openPOSIX(ctx, filepath.Join(dir, engineDir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.close(context.WithoutCancel(ctx))) }()
	size, err := engine.size(ctx)
	if err != nil {
		return fmt.Errorf("%w: integrated size: %w", ErrStorage, withoutPath(err))
	}
	if n, err := InJournal(dir, id, size); err != nil {
		return err
	} else if n > 0 {
		return fmt.Errorf("%d entries of this log have their index and are not in its tiles yet: it has begun without a predecessor leaf, and can take over from no log", n)
	}
	if size > 0 {
		return begun(tree{ctx, directory(filepath.Join(dir, engineDir)), int64(size), nil}, old)
	}
	var leafID [16]byte
	rand.Read(leafID[:])
	leaf, err := predecessorLeaf(old, hex.EncodeToString(leafID[:]), now).Marshal()
	if err != nil {
		return err
	}
	index, err := engine.append(context.WithoutCancel(ctx), []*tessera.Entry{tessera.NewEntry(leaf)})
	if err != nil {
		return fmt.Errorf("%w: the first entry could not be written; try again: %w", ErrStorage, withoutPath(err))
	}
	if index != 0 {
		return fmt.Errorf("the predecessor leaf got index %d instead of 0: somebody else writes to this log; use it no more", index)
	}
	return nil
}

// mayTakeOver refuses to take over from a log that this one was not made for.
func (id Identity) mayTakeOver(old c2sp.Checkpoint) error {
	switch {
	case id.Origin == old.Origin:
		return fmt.Errorf("%s is this log: it cannot take over from itself", old.Origin)
	case id.SuccessorOf != "" && id.SuccessorOf != old.Origin:
		return fmt.Errorf("this log was made to take over from %s, not from %s", id.SuccessorOf, old.Origin)
	}
	return nil
}

// predecessorLeaf is the entry that a log begins with that takes over from old.
func predecessorLeaf(old c2sp.Checkpoint, id string, now time.Time) *entry.Entry {
	return &entry.Entry{Kind: entry.KindPredecessor, Claim: entry.ClaimLog, ID: id, Time: now.UTC().Format(entry.TimeFormat),
		Origin: old.Origin, Size: entry.Uint(old.Size), Root: hex.EncodeToString(old.Root[:])}
}

// begun is nil if the tree begins with the predecessor leaf for old.
func begun(t tree, old c2sp.Checkpoint) error {
	leaves, err := t.leaves(0, 1)
	if err != nil {
		return err
	}
	first, err := entry.Parse(leaves[0])
	if err != nil || first.Kind != entry.KindPredecessor {
		return errors.New("this log has entries, and the first is not a predecessor leaf: a log can take over only with its first entry; make a new one with portbook-log init --successor-of")
	}
	if first.Origin != old.Origin || *first.Size != old.Size || first.Root != hex.EncodeToString(old.Root[:]) {
		return fmt.Errorf("this log has taken over from %s at size %d, root %s, already", first.Origin, *first.Size, first.Root)
	}
	return nil
}

// AwaitPredecessor makes the log in dir, which was just made, take nothing
// before its predecessor leaf for the log origin is there.
func AwaitPredecessor(dir, origin string) error {
	lock, err := lockFile(filepath.Join(dir, lockFileName))
	if err != nil {
		return err
	}
	defer lock.release()
	id, err := ReadIdentity(dir)
	if err != nil {
		return err
	}
	if id.Origin == origin {
		return fmt.Errorf("%s is this log: it cannot take over from itself", origin)
	}
	id.SuccessorOf = origin
	return writeIdentity(dir, id)
}
