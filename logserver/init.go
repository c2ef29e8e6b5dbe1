package logserver

// How a log comes into being, and what it is known by afterwards.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// The files of a log's directory.
const (
	identityFile   = "log.json"   // origin, key and anchor; written last by Init
	engineDir      = "log"        // Tessera's: tiles, bundles and its state
	checkpointFile = "checkpoint" // the public one
	slotsFile      = "slots.db"
	lookupFile     = "lookup.db"
	lockFileName   = "lock"
	// TokensFile holds the credentials; KeyFile the signing key, unless it is elsewhere.
	TokensFile = "tokens.json"
	KeyFile    = "log.key"
)

// Identity is what a log directory belongs to.
type Identity struct {
	Origin string `json:"origin"`
	VKey   string `json:"vkey"`
	Anchor string `json:"anchor"` // absolute path
}

// ErrNoLog says that a directory holds no log.
var ErrNoLog = errors.New("no log here")

// ReadIdentity reads what log the directory belongs to.
func ReadIdentity(dir string) (Identity, error) {
	var id Identity
	raw, err := os.ReadFile(filepath.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return id, fmt.Errorf("%w: %s has no %s: make a log with portbook-log init, or mount the file system it is on", ErrNoLog, dir, identityFile)
	}
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(raw, &id); err != nil {
		return id, fmt.Errorf("%s: %w", filepath.Join(dir, identityFile), err)
	}
	return id, nil
}

// Init makes a new log, empty, in a directory that has none: its storage, its
// anchor, and last the identity file, so that an interrupted Init leaves no log.
// It does not write the key.
func Init(ctx context.Context, dir, anchorPath string, key *c2sp.Key) error {
	anchorPath, err := filepath.Abs(anchorPath)
	if err != nil {
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
	for _, name := range []string{identityFile, engineDir, checkpointFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s holds a log already (%s exists): a log is made once; choose another directory", dir, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := createAnchor(anchorPath, key.Name()); err != nil {
		return err
	}
	if err := initEngine(ctx, filepath.Join(dir, engineDir)); err != nil {
		return errors.Join(err, os.Remove(anchorPath))
	}
	raw, err := json.MarshalIndent(Identity{Origin: key.Name(), VKey: key.String(), Anchor: anchorPath}, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(dir, identityFile), append(raw, '\n'), 0o644)
}

// AnchorIsBeside reports whether an anchor is on the file system of the log's
// own directory, where a restored backup would bring both back together.
func AnchorIsBeside(dir, anchorPath string) (bool, error) { return sameFileSystem(dir, anchorPath) }

// initEngine makes an empty Tessera log in dir.
func initEngine(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	e, err := newPOSIX(ctx, dir)
	if err != nil {
		return err
	}
	// Tessera writes its first checkpoint on the side; closing before that is
	// done would leave a file half made.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "checkpoint")); err == nil {
			return e.close(ctx)
		}
		if time.Now().After(deadline) {
			return errors.Join(errors.New("the storage engine did not come up"), e.close(ctx))
		}
	}
}
