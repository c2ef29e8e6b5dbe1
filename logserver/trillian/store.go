package trillian

// Where tiles are kept: a directory here, an S3-compatible bucket in package
// bucket. Both keep two promises: an object that was created is never
// overwritten, and the few that change are changed by compare-and-swap.

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// Store keeps the objects of a log under slash-separated relative names.
//
// Tiles and bundles are named by index and width, so that in one tree a name has
// one content for ever. Create relies on it: two integrators that do not know of
// each other write the same bytes, or one of them is refused.
type Store interface {
	// Get returns an object, or an error that is fs.ErrNotExist.
	Get(ctx context.Context, name string) ([]byte, error)
	// Create writes objects durably: they are readable after a power cut once it
	// returns. One that exists with the same bytes is left alone; with other bytes
	// the error is a *ConflictError, and nothing is overwritten. Objects may be
	// written in any order, and some may have been when it fails.
	Create(ctx context.Context, objects ...Object) error
	// Swap durably replaces an object whose content is old (nil: that is absent),
	// in one step; if it is not, the error is ErrChanged. Another error may leave
	// either content.
	Swap(ctx context.Context, name string, old, content []byte) error
	// RemoveAll removes every object whose name begins with prefix, which ends
	// with a slash.
	RemoveAll(ctx context.Context, prefix string) error
}

// Object is a name with its content.
type Object struct {
	Name    string
	Content []byte
}

// ErrChanged says that an object is not what it was taken to be.
var ErrChanged = errors.New("the object was changed by somebody else")

// ConflictError says that a tile or bundle exists with other bytes than the tree
// has.
type ConflictError struct{ Name string }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s is in the tile store with other bytes: %v; if it lies beyond every published checkpoint it is the remains of entries that the database has lost, and may be removed", e.Name, ErrTampering)
}

// Is makes it an ErrTampering.
func (e *ConflictError) Is(target error) bool { return target == ErrTampering }

// Dir is a Store in a directory, which several processes of one machine, or of
// several by a file system with flock and link (NFSv4), may share.
type Dir string

const (
	tempDir  = ".state/tmp"
	lockName = ".state/lock"
)

func (d Dir) path(name string) (string, error) {
	if !filepath.IsLocal(filepath.FromSlash(name)) {
		return "", fmt.Errorf("bad object name %q", name)
	}
	return filepath.Join(string(d), filepath.FromSlash(name)), nil
}

// Get implements Store.
func (d Dir) Get(_ context.Context, name string) ([]byte, error) {
	p, err := d.path(name)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(p)
}

// Create implements Store.
func (d Dir) Create(ctx context.Context, objects ...Object) error {
	temp, err := d.path(tempDir)
	if err != nil {
		return err
	}
	if err := mkdirAll(temp); err != nil {
		return err
	}
	g, _ := errgroup.WithContext(ctx)
	g.SetLimit(8)
	dirs := map[string]bool{}
	for _, o := range objects {
		p, err := d.path(o.Name)
		if err != nil {
			return err
		}
		if dir := filepath.Dir(p); !dirs[dir] {
			if err := mkdirAll(dir); err != nil {
				return err
			}
			dirs[dir] = true
		}
		g.Go(func() error { return createFile(temp, p, o) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for dir := range dirs {
		g.Go(func() error { return syncDir(dir) })
	}
	return g.Wait()
}

// createFile makes p with o's bytes appear in one step, or finds it there.
func createFile(temp, p string, o Object) error {
	if have, err := os.ReadFile(p); err == nil {
		return sameContent(o, have)
	}
	t, err := writeTemp(temp, o.Content)
	if err != nil {
		return err
	}
	err = os.Link(t, p)
	if e := os.Remove(t); err == nil && e != nil {
		err = e
	}
	if errors.Is(err, fs.ErrExist) {
		have, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return sameContent(o, have)
	}
	return err
}

func sameContent(o Object, have []byte) error {
	if !bytes.Equal(have, o.Content) {
		return &ConflictError{o.Name}
	}
	return nil
}

// writeTemp writes a new file durably, except for its directory.
func writeTemp(dir string, content []byte) (name string, err error) {
	random := make([]byte, 16)
	rand.Read(random)
	name = filepath.Join(dir, hex.EncodeToString(random))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(name))
	}
	return name, nil
}

// swapTurn is how long a Swap waits for its turn.
const swapTurn = 2 * time.Second

// Swap implements Store. Processes take turns by a lock on a file.
//
// A process that is stopped in the middle of its turn holds the lock for as long
// as it is stopped, so after swapTurn the others go on without. When it wakes it
// finds that its turn is over. One that was stopped between that look and the
// rename replaces a newer object by its own, older one: no loss to this package,
// whose integrator then takes over again from the older size and finds every tile
// as it would write it, and a publisher writes its checkpoint again.
func (d Dir) Swap(ctx context.Context, name string, old, content []byte) (err error) {
	p, err := d.path(name)
	if err != nil {
		return err
	}
	temp, _ := d.path(tempDir)
	lock, _ := d.path(lockName)
	for _, dir := range []string{temp, filepath.Dir(p)} {
		if err := mkdirAll(dir); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(lock, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := takeTurn(ctx, f); err != nil {
		return err
	}
	begun := time.Now() // monotonic: it goes on while we are stopped
	have, err := os.ReadFile(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		have = nil
	case err != nil:
		return err
	}
	if !bytes.Equal(have, old) || (have == nil) != (old == nil) {
		return ErrChanged
	}
	t, err := writeTemp(temp, content)
	if err != nil {
		return err
	}
	if time.Since(begun) > swapTurn/2 {
		return errors.Join(fmt.Errorf("writing %s took longer than a turn, and was given up", name), os.Remove(t))
	}
	if err := os.Rename(t, p); err != nil {
		return errors.Join(err, os.Remove(t))
	}
	return syncDir(filepath.Dir(p))
}

// takeTurn locks f, or waits for swapTurn.
func takeTurn(ctx context.Context, f *os.File) error {
	for begun := time.Now(); ; {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return err
		}
		if time.Since(begun) > swapTurn {
			return nil
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// RemoveAll implements Store.
func (d Dir) RemoveAll(_ context.Context, prefix string) error {
	p, err := d.path(path.Clean(prefix))
	if err != nil {
		return err
	}
	if !strings.HasSuffix(prefix, "/") {
		return fmt.Errorf("bad prefix %q", prefix)
	}
	return os.RemoveAll(p)
}

// mkdirAll makes a directory and those above it, durably.
func mkdirAll(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := mkdirAll(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
