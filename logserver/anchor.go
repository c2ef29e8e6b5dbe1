package logserver

// The anchor is the log's own memory of the last tree it signed. It lives on
// another file system than the log, so that a log directory restored from a
// backup, or lost, cannot make the log sign a second history.
//
// Who can change the anchor file can at most stop the log from signing, or let
// it sign again what an older anchor allows: then the witnesses refuse.

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/portbook/portbook/c2sp"
)

// anchorState is what an anchor file says.
type anchorState struct {
	origin string
	size   uint64   // of the last signed tree
	root   [32]byte // of the last signed tree
	fence  uint64   // raised by every server that opens the anchor
}

const anchorMagic = "portbook anchor v1"

func (a anchorState) bytes() []byte {
	body := fmt.Sprintf("%s\n%s\n%d\n%s\n%d\n", anchorMagic, a.origin, a.size, hex.EncodeToString(a.root[:]), a.fence)
	sum := sha256.Sum256([]byte(body))
	return []byte(body + hex.EncodeToString(sum[:]) + "\n")
}

func parseAnchor(b []byte) (anchorState, error) {
	var a anchorState
	lines := strings.Split(string(b), "\n")
	if len(lines) != 7 || lines[0] != anchorMagic || lines[6] != "" {
		return a, errors.New("not an anchor file")
	}
	root, err := hex.DecodeString(lines[3])
	if err != nil || len(root) != len(a.root) {
		return a, errors.New("root is not 32 bytes of hex")
	}
	a.origin, a.root = lines[1], [32]byte(root)
	if a.size, err = strconv.ParseUint(lines[2], 10, 63); err != nil {
		return a, errors.New("size is no number")
	}
	if a.fence, err = strconv.ParseUint(lines[4], 10, 64); err != nil {
		return a, errors.New("fence is no number")
	}
	if string(a.bytes()) != string(b) {
		return a, errors.New("checksum does not match: the file is damaged")
	}
	return a, nil
}

// anchor is where a log remembers what it signed: a file, or a row of a shared
// log's database. Its owner is the publisher's goroutine.
type anchor interface {
	// known is what it said when it was last read or written.
	known() anchorState
	// check reads it, and refuses it if it says what we did not write.
	check() (anchorState, error)
	// swap replaces what it says by next, durably, only if nobody else has
	// written it. What it said before is the caller's to judge.
	swap(next anchorState) error
	close()
}

// anchorFile is an anchor file. Before take has succeeded nothing may be asked of it.
type anchorFile struct {
	path  string
	lock  *fileLock   // nil before take
	taken bool        // its fence is raised
	last  anchorState // what we know it to say
	tried anchorState // what we last tried to make it say; differs from last after a failed write
}

// noAnchorYet refuses a path at which there is an anchor.
func noAnchorYet(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("the anchor %s exists already: an anchor is never replaced; choose another path, or serve the log it belongs to", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("anchor: %w", err)
	}
	return nil
}

// createAnchor writes the anchor of a new log, of size 0. It refuses to replace one.
func createAnchor(path, origin string) error {
	if err := noAnchorYet(path); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("anchor: there is no directory %s: make it, on another file system than the log's", filepath.Dir(path))
	}
	if err := writeDurably(path, anchorState{origin: origin, root: c2sp.EmptyRoot}.bytes(), 0o600); err != nil {
		return fmt.Errorf("anchor: %w", err)
	}
	return nil
}

// openAnchor is take for who does not try again.
func openAnchor(path, origin string) (*anchorFile, error) {
	a := &anchorFile{path: path}
	if err := a.take(origin); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// take takes the anchor's lock and raises its fence, so that a server that
// believes it still holds the anchor fails its next compare-and-swap. After
// ErrStorage it may be called again; once it has succeeded it does nothing.
func (a *anchorFile) take(origin string) error {
	if a.taken {
		return nil
	}
	if a.lock == nil {
		lock, err := lockFile(a.path + ".lock")
		var held *LockedError
		switch {
		case errors.As(err, &held):
			return fmt.Errorf("anchor: %w", err)
		case errors.Is(err, fs.ErrNotExist):
			return errNoAnchor
		case err != nil:
			return fmt.Errorf("%w: locking the anchor: %w", ErrStorage, withoutPath(err))
		}
		a.lock = lock
	}
	now, err := readAnchor(a.path)
	if err != nil {
		return err
	}
	if now.origin != origin {
		return fmt.Errorf("%w: it belongs to log %q, not to %q", errBadAnchor, now.origin, origin)
	}
	a.last, a.tried = now, now
	now.fence++
	if err := a.swap(now); err != nil {
		return err
	}
	a.taken = true
	return nil
}

func readAnchor(path string) (anchorState, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return anchorState{}, errNoAnchor
	}
	if err != nil {
		return anchorState{}, fmt.Errorf("%w: reading the anchor: %w", ErrStorage, withoutPath(err))
	}
	s, err := parseAnchor(raw)
	if err != nil {
		return anchorState{}, fmt.Errorf("%w: %w", errBadAnchor, err)
	}
	return s, nil
}

// Each of these is a failed guard. None names the file: readers hear of it too.
var (
	errNoAnchor    = errors.New("the anchor is missing: mount its file system, or restore it; a log without its anchor signs nothing")
	errBadAnchor   = errors.New("the anchor is not this log's, or is damaged")
	errAnchorMoved = errors.New("the anchor was changed by somebody else: two servers on one log")
)

func (a *anchorFile) known() anchorState { return a.last }

// check implements anchor. After a write that failed it may say either.
func (a *anchorFile) check() (anchorState, error) {
	now, err := readAnchor(a.path)
	if err != nil {
		return now, err
	}
	if now != a.last && now != a.tried {
		return now, fmt.Errorf("%w: it says size %d fence %d, we wrote size %d fence %d", errAnchorMoved, now.size, now.fence, a.last.size, a.last.fence)
	}
	return now, nil
}

func (a *anchorFile) swap(next anchorState) error {
	now, err := a.check()
	if err != nil {
		return err
	}
	if next != now || now != a.last {
		a.tried = next
		if err := writeDurably(a.path, next.bytes(), 0o600); err != nil {
			return fmt.Errorf("%w: writing the anchor: %w", ErrStorage, withoutPath(err))
		}
	}
	a.last, a.tried = next, next
	return nil
}

func (a *anchorFile) close() {
	if a.lock != nil {
		a.lock.release()
	}
}

// writeDurably replaces the file at path in one step: after a crash it holds
// the old bytes or the new ones, and once writeDurably has returned, the new ones.
func writeDurably(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-"+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// syncDir makes what was created or renamed in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// sameFileSystem reports whether two existing paths are on one file system.
func sameFileSystem(a, b string) (bool, error) {
	var sa, sb syscall.Stat_t
	if err := syscall.Stat(a, &sa); err != nil {
		return false, &fs.PathError{Op: "stat", Path: a, Err: err}
	}
	if err := syscall.Stat(b, &sb); err != nil {
		return false, &fs.PathError{Op: "stat", Path: b, Err: err}
	}
	return sa.Dev == sb.Dev, nil
}
