package logserver

// How a log that was served on another storage engine becomes one of a
// directory: see package migrate.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// adoptingFile is the identity of a log that is being moved into a directory,
// until that is done. No server takes such a directory.
const adoptingFile = "log.json.adopting"

// ErrTaken says that a log cannot be moved to where something else is.
var ErrTaken = errors.New("the place is taken")

// Adopted is a log that is moved into a directory.
type Adopted struct {
	Identity           // Anchor is where to make it
	Size      uint64   // of the whole tree
	Root      [32]byte // of the whole tree
	Published []byte   // the newest public checkpoint; nil if there is none
}

// EngineDir is the storage engine's directory in a log's.
func EngineDir(dir string) string { return filepath.Join(dir, engineDir) }

// PublicCheckpoint reads the public checkpoint of a log's directory;
// fs.ErrNotExist if nothing was published.
func PublicCheckpoint(dir string) ([]byte, error) {
	return os.ReadFile(filepath.Join(dir, checkpointFile))
}

// Adopt moves a log into a directory that has none: fill fills the engine's
// directory with the tree, and is called again after an interruption. The anchor
// is made at the whole tree, so that nothing smaller or different is ever signed.
// The key, the credentials and the databases that follow from the entries are
// not moved.
func Adopt(dir string, log Adopted, fill func(engineDir string) error) error {
	var err error
	if log.Anchor, err = filepath.Abs(log.Anchor); err != nil {
		return err
	}
	if err := log.Identity.checkKeys(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(dir, lockFileName))
	if err != nil {
		return err
	}
	defer lock.release()
	identity, err := json.MarshalIndent(log.Identity, "", "  ")
	if err != nil {
		return err
	}
	adopting, engine := filepath.Join(dir, adoptingFile), EngineDir(dir)
	switch have, err := os.ReadFile(adopting); {
	case errors.Is(err, fs.ErrNotExist):
		if err := log.refuse(dir); err != nil {
			return err
		}
		if err := writeDurably(adopting, identity, 0o644); err != nil {
			return err
		}
	case err != nil:
		return err
	case string(have) != string(identity):
		return fmt.Errorf("%w: another log, or one with another anchor, is being moved into %s (see %s): go on with that, or choose another directory", ErrTaken, dir, adopting)
	}
	if err := os.Mkdir(engine, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := fill(engine); err != nil {
		return err
	}
	if log.Published != nil {
		if err := writeDurably(filepath.Join(dir, checkpointFile), log.Published, 0o644); err != nil {
			return err
		}
	}
	anchor := anchorState{origin: log.Origin, size: log.Size, root: log.Root}
	switch have, err := readAnchor(log.Anchor); {
	case errors.Is(err, errNoAnchor):
		if err := writeDurably(log.Anchor, anchor.bytes(), 0o600); err != nil {
			return fmt.Errorf("anchor: %w", err)
		}
	case err != nil:
		return err
	case have != anchor: // not what an interrupted move has left
		return anchorTaken(log.Anchor)
	}
	if err := os.Rename(adopting, filepath.Join(dir, identityFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

// refuse says why a log cannot be moved into a directory.
func (log Adopted) refuse(dir string) error {
	for _, name := range []string{identityFile, unfinishedFile, engineDir, checkpointFile, indexDir, journalDir, streamsFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%w: %s holds a log, or parts of one (%s exists): move the log into an empty directory", ErrTaken, dir, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return anchorTaken(log.Anchor)
}

func anchorTaken(path string) error {
	if err := noAnchorYet(path); err != nil {
		return fmt.Errorf("%w: %w", ErrTaken, err)
	}
	return nil
}
