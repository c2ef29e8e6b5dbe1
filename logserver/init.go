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
	"slices"
	"strings"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// The files of a log's directory.
const (
	identityFile   = "log.json"            // origin, key and anchor; there once Init is done
	unfinishedFile = "log.json.unfinished" // the same, until then
	engineDir      = "log"                 // Tessera's: tiles, bundles and its state
	checkpointFile = "checkpoint"          // the public one
	lockFileName   = "lock"
	// TokensFile holds the credentials; KeyFile the signing key, unless it is elsewhere.
	TokensFile = "tokens.json"
	KeyFile    = "log.key"
)

// Identity is what a log directory belongs to.
type Identity struct {
	Origin string   `json:"origin"`
	VKey   string   `json:"vkey"`           // the active Ed25519 key
	Keys   []LogKey `json:"keys,omitempty"` // all there ever were; absent while there is only VKey
	Anchor string   `json:"anchor"`         // absolute path

	// Private says whether the log is private, so that credentials which are lost
	// or damaged do not open it to everybody. Logs of older versions do not say.
	Private *bool `json:"private,omitempty"`

	Freeze      *FreezeMark `json:"freeze,omitempty"`       // the log ends; see Freeze
	SuccessorOf string      `json:"successor_of,omitempty"` // it begins with the predecessor leaf of this log
}

// ErrNoLog says that a directory holds no log.
var ErrNoLog = errors.New("no log here")

// ReadIdentity reads what log the directory belongs to.
func ReadIdentity(dir string) (Identity, error) {
	var id Identity
	raw, err := os.ReadFile(filepath.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(dir, frontendFile)); err == nil {
			return id, fmt.Errorf("%w: %s belongs to a frontend of a shared log, whose keys and credentials are in its database: this works on a log in a directory alone; see docs/running.md, Many frontends", ErrNoLog, dir)
		}
		return id, fmt.Errorf("%w: %s has no %s: make a log with portbook-log init, or mount the file system it is on", ErrNoLog, dir, identityFile)
	}
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(raw, &id); err != nil {
		return id, fmt.Errorf("%s: %w", filepath.Join(dir, identityFile), err)
	}
	if err := id.checkKeys(); err != nil {
		return id, fmt.Errorf("%s: %w", filepath.Join(dir, identityFile), err)
	}
	return id, nil
}

// ReadPublished reads the public checkpoint of the log in dir, as its server
// left it; nil if none is published yet.
func ReadPublished(dir string) ([]byte, error) {
	raw, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return raw, err
}

// private reports whether the log is known to be private.
func (id *Identity) private() bool { return id.Private != nil && *id.Private }

// MakePrivate records that the log in dir is private. It is served as such from
// its next start on, whatever becomes of its credentials. To open a log to
// everybody again somebody has to edit log.json.
func MakePrivate(dir string) error {
	// The server that runs does not write log.json, but Freeze may.
	lock, err := lockFileSoon(filepath.Join(dir, freezeLockFile))
	if err != nil {
		return err
	}
	defer lock.release()
	id, err := ReadIdentity(dir)
	if err != nil || id.private() {
		return err
	}
	yes := true
	id.Private = &yes
	return writeIdentity(dir, id)
}

// writeIdentity replaces the identity of a log, in one step.
func writeIdentity(dir string, id Identity) error {
	if err := id.checkKeys(); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(filepath.Join(dir, identityFile), append(raw, '\n'), 0o644)
}

// Init makes a new log, empty, in a directory that has none. An Init that was
// interrupted leaves no log: the next one says which files may be removed. It
// does not write the key; see InitWithKey.
//
// key is the log's Ed25519 key; also are keys that sign beside it.
func Init(ctx context.Context, dir, anchorPath string, key *c2sp.Key, also ...*c2sp.Key) error {
	return (&making{dir: dir, anchor: anchorPath, key: key, also: also}).run(ctx)
}

// InitWithKey is Init, and writes the key to KeyFile in dir before anything
// that needs it.
func InitWithKey(ctx context.Context, dir, anchorPath string, signer *c2sp.Signer) error {
	return (&making{dir: dir, anchor: anchorPath, key: signer.Key(), signer: signer}).run(ctx)
}

// making is a log that is being made. It begins with unfinishedFile, which says
// what is made, and ends when that file is renamed to identityFile.
type making struct {
	dir, anchor string
	key         *c2sp.Key
	also        []*c2sp.Key
	signer      *c2sp.Signer // nil: the key is kept elsewhere

	testStep func(step string) // called in tests after each step
}

func (m *making) run(ctx context.Context) (err error) {
	if m.anchor, err = filepath.Abs(m.anchor); err != nil {
		return err
	}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(m.dir, lockFileName))
	if err != nil {
		return err
	}
	defer lock.release()
	if err := m.refuse(); err != nil {
		return err
	}
	if err := noAnchorYet(m.anchor); err != nil { // before anything says that it is ours
		return err
	}
	id := Identity{Origin: m.key.Name(), VKey: m.key.String(), Anchor: m.anchor, Private: new(bool)}
	if len(m.also) > 0 {
		for _, k := range append([]*c2sp.Key{m.key}, m.also...) {
			id.Keys = append(id.Keys, LogKey{VKey: k.String(), State: KeyActive})
		}
	}
	if err := id.checkKeys(); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	unfinished, engine, keyFile := filepath.Join(m.dir, unfinishedFile), filepath.Join(m.dir, engineDir), filepath.Join(m.dir, KeyFile)
	steps := []struct {
		name string
		do   func() error
		undo func() error // removes what do made, and only if do made it
	}{
		{"begin", func() error { return writeDurably(unfinished, append(raw, '\n'), 0o644) }, func() error { return os.Remove(unfinished) }},
		{"key", func() error { return writeKey(keyFile, m.signer) }, func() error { return os.Remove(keyFile) }},
		{"anchor", func() error { return createAnchor(m.anchor, m.key.Name()) }, func() error { return os.Remove(m.anchor) }},
		{"directory", func() error { return os.Mkdir(engine, 0o755) }, func() error { return os.RemoveAll(engine) }},
		{"storage", func() error { return initEngine(ctx, engine) }, func() error { return nil }},
	}
	for i, s := range steps {
		if s.name == "key" && m.signer == nil {
			continue
		}
		if err := s.do(); err != nil {
			for _, done := range slices.Backward(steps[:i]) {
				if done.name != "key" || m.signer != nil {
					err = errors.Join(err, done.undo())
				}
			}
			return err
		}
		if m.testStep != nil {
			m.testStep(s.name)
		}
	}
	// If this fails it may have happened all the same: nothing is undone.
	if err := os.Rename(unfinished, filepath.Join(m.dir, identityFile)); err != nil {
		return err
	}
	return syncDir(m.dir)
}

// refuse says why no log can be made in the directory.
func (m *making) refuse() error {
	exists := func(names ...string) (string, error) {
		for _, name := range names {
			if _, err := os.Lstat(filepath.Join(m.dir, name)); err == nil {
				return name, nil
			} else if !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
		return "", nil
	}
	if name, err := exists(identityFile); err != nil {
		return err
	} else if name != "" {
		return fmt.Errorf("%s holds a log already (%s exists): a log is made once; choose another directory", m.dir, name)
	}
	// Only a log that was served, or given a token, has these, or a frontend.
	name, err := exists(frontendFile, checkpointFile, indexDir, journalDir, streamsFile, AttributionFile, TokensFile)
	if err != nil {
		return err
	}
	unfinished, err := exists(unfinishedFile)
	if err != nil {
		return err
	}
	if name == "" && unfinished == "" {
		have := []string{engineDir}
		if m.signer != nil {
			have = append(have, KeyFile)
		}
		if name, err = exists(have...); err != nil {
			return err
		}
	}
	if name == "" && unfinished == "" {
		return nil
	}
	if name == "" {
		var left []string
		if left, err = leftovers(m.dir); err == nil {
			return fmt.Errorf("%s holds no log: making one was interrupted, and nothing was signed; remove these and no others, then try again: %s", m.dir, strings.Join(left, ", "))
		}
		return fmt.Errorf("%s has no %s, and %w: remove nothing; restore %s, or choose another directory", m.dir, identityFile, err, identityFile)
	}
	return fmt.Errorf("%s holds parts of a log (%s exists) but no %s: remove nothing; restore %s, or choose another directory", m.dir, name, identityFile, identityFile)
}

// leftovers lists what an interrupted making of a log has left, in the order in
// which it may be removed: what says that it was interrupted comes last. It
// fails if any of it may be more than a leftover.
func leftovers(dir string) (paths []string, err error) {
	unfinished, engine, keyFile := filepath.Join(dir, unfinishedFile), filepath.Join(dir, engineDir), filepath.Join(dir, KeyFile)
	var id Identity
	raw, err := os.ReadFile(unfinished)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &id); err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", unfinished, err)
	}
	if _, err := os.Lstat(engine); err == nil {
		state, err := os.ReadFile(filepath.Join(engine, ".state", "treeState"))
		var tree struct{ Size *uint64 }
		if err == nil && (json.Unmarshal(state, &tree) != nil || tree.Size == nil || *tree.Size != 0) {
			return nil, fmt.Errorf("%s is not that of an empty log", engine)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if _, err := os.Lstat(filepath.Join(engine, "tile")); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s has entries", engine)
		}
		paths = append(paths, engine)
	}
	switch a, err := readAnchor(id.Anchor); {
	case errors.Is(err, errNoAnchor):
	case err != nil:
		return nil, fmt.Errorf("the anchor %s cannot be read: %w", id.Anchor, err)
	case a.origin == id.Origin && a == anchorState{origin: a.origin, root: c2sp.EmptyRoot}:
		paths = append(paths, id.Anchor)
	default: // a log has been served with it
		return nil, fmt.Errorf("the anchor %s is in use by log %q", id.Anchor, a.origin)
	}
	// A key is a leftover if it is the one that this log was to have, or was cut short.
	secret, err := os.ReadFile(keyFile)
	if err == nil {
		signer, err := c2sp.ParseSKey(strings.TrimSpace(string(secret)))
		if len(secret) == 0 || err == nil && signer.Key().String() == id.VKey {
			paths = append(paths, keyFile)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return append(paths, unfinished), nil
}

// writeKey creates a key file that only its owner can read. It replaces none,
// and leaves none half written unless it is interrupted.
func writeKey(path string, signer *c2sp.Signer) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, signer.SKey())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncDir(filepath.Dir(path))
}

// AnchorIsBeside reports whether an anchor is on the file system of the log's
// own directory, where a restored backup would bring both back together.
func AnchorIsBeside(dir, anchorPath string) (bool, error) { return sameFileSystem(dir, anchorPath) }

// initEngine makes an empty Tessera log in dir, which is empty.
func initEngine(ctx context.Context, dir string) error {
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
