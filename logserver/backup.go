package logserver

// Backup, restore and repair of a log's directory.
//
// A backup is a mirror: a checkpoint and the tiles below it, with log.json and
// the credentials beside. The checkpoint is read first and written last: what
// it covers is immutable and there, and what a backup's checkpoint says the
// backup has. The anchor is in no backup, nor the key, nor the indexes, which
// follow from the tiles.
//
// What comes back is verified from the signed root down before it counts. A
// log restored to less than its anchor remembers signs nothing (Open); repair
// brings the rest from a mirror, byte for byte, up to what the anchor says.

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// Progress is told how far something has come; may be nil.
type Progress func(done, size int64)

// backupFile says of what time a backup is.
const backupFile = "backup.json"

// BackupInfo is what a backup says of itself.
type BackupInfo struct {
	Taken time.Time `json:"taken"`
	Size  uint64    `json:"size"`
}

// Outcome says what a backup, restore or repair did.
type Outcome struct {
	Size    uint64   // entries that are there now
	Root    [32]byte // of them
	Written int64    // files
}

// Backup makes the directory to hold what the log in dir has published. The log
// may be served meanwhile. It may be interrupted and run again; what is there
// already and right is kept, what is damaged is replaced. It refuses a backup
// that holds another history, or a newer one.
func Backup(ctx context.Context, dir, to string, progress Progress) (Outcome, error) {
	id, err := ReadIdentity(dir)
	if err != nil {
		return Outcome{}, err
	}
	own := &keyring{origin: id.Origin, keys: id.Keys}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return Outcome{}, err
	}
	lock, err := lockFile(filepath.Join(to, lockFileName))
	if err != nil {
		return Outcome{}, err
	}
	defer lock.release()
	from := ownSource(dir)
	cp, raw, err := from.checkpoint(ctx, own)
	if err != nil {
		return Outcome{}, err
	}
	if old, err := os.ReadFile(filepath.Join(to, checkpointFile)); err == nil {
		was, err := signedCheckpoint(old, own)
		if err != nil {
			return Outcome{}, fmt.Errorf("%s holds something else than a backup of this log: %w", to, err)
		}
		t := tree{ctx: ctx, src: directory(filepath.Join(dir, engineDir)), size: int64(cp.Size)}
		if err := containsNote(t, own, "the backup", old); err != nil {
			return Outcome{}, fmt.Errorf("the backup is kept as it is: it has %d entries, the log %d: %w", was.Size, cp.Size, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Outcome{}, err
	}
	wrote, err := fill(ctx, to, from, int64(cp.Size), cp.Root, progress)
	if err != nil {
		return Outcome{}, fmt.Errorf("the backup is not complete; what it had is kept: %w", err)
	}
	for _, name := range []string{identityFile, AttributionFile} {
		if err := copyFile(filepath.Join(dir, name), filepath.Join(to, name), nil); err != nil {
			return Outcome{}, err
		}
	}
	// Damaged credentials keep the entries from no backup, and replace no sound ones.
	tokens := copyFile(filepath.Join(dir, TokensFile), filepath.Join(to, TokensFile), suspend)
	if tokens != nil {
		tokens = fmt.Errorf("all is backed up but the credentials: %w", tokens)
	}
	info, err := json.Marshal(BackupInfo{time.Now().UTC().Truncate(time.Second), cp.Size})
	if err != nil {
		return Outcome{}, err
	}
	if err := errors.Join(writeDurably(filepath.Join(to, checkpointFile), raw, 0o644), writeDurably(filepath.Join(to, backupFile), append(info, '\n'), 0o644)); err != nil {
		return Outcome{}, err
	}
	return Outcome{cp.Size, cp.Root, wrote}, tokens
}

// copyFile copies a file that may be missing, as change makes it, which is given
// the time of now as credentials have it; a nil change changes nothing.
func copyFile(from, to string, change func(raw []byte, now string) ([]byte, error)) error {
	raw, err := os.ReadFile(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && change != nil {
		if raw, err = change(raw, time.Now().UTC().Format(entry.TimeFormat)); err != nil {
			return fmt.Errorf("%s: %w", from, err)
		}
	}
	if err != nil {
		return err
	}
	return writeDurably(to, raw, 0o600)
}

// ReadBackupInfo says of what time the backup in dir is.
func ReadBackupInfo(dir string) (BackupInfo, error) {
	var info BackupInfo
	raw, err := os.ReadFile(filepath.Join(dir, backupFile))
	if err != nil {
		return info, err
	}
	return info, json.Unmarshal(raw, &info)
}

// Restore makes a log's directory in to from a backup: tiles, the engine's state,
// checkpoint, credentials and, last, log.json; to is empty, or what an
// interrupted Restore left. It puts no key and no anchor there, and every
// credential is suspended until it is confirmed. newAnchor is the
// anchor's path from now on; "" keeps the one that log.json names.
func Restore(ctx context.Context, from, to, newAnchor string, progress Progress) (Outcome, error) {
	id, err := ReadIdentity(from)
	if err != nil {
		return Outcome{}, fmt.Errorf("%s is no backup: %w", from, err)
	}
	own := &keyring{origin: id.Origin, keys: id.Keys}
	src, err := OpenSource(from)
	if err != nil {
		return Outcome{}, err
	}
	cp, raw, err := src.checkpoint(ctx, own)
	if err != nil {
		return Outcome{}, err
	}
	if _, err := os.Lstat(filepath.Join(to, identityFile)); err == nil {
		return Outcome{}, fmt.Errorf("%s holds a log: restore into an empty directory, and put it in that one's place; or bring back what is missing with portbook-log repair", to)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return Outcome{}, err
	}
	lock, err := lockFile(filepath.Join(to, lockFileName))
	if err != nil {
		return Outcome{}, err
	}
	defer lock.release()
	if err := onlyRestored(to); err != nil {
		return Outcome{}, err
	}
	unfinished := filepath.Join(to, restoringFile)
	if err := writeDurably(unfinished, nil, 0o600); err != nil {
		return Outcome{}, err
	}
	engine := filepath.Join(to, engineDir)
	if err := os.MkdirAll(engine, 0o755); err != nil {
		return Outcome{}, err
	}
	wrote, err := fill(ctx, engine, src, int64(cp.Size), cp.Root, progress)
	if err != nil {
		return Outcome{}, err
	}
	if err := writeEngineState(engine, cp.Size, cp.Root); err != nil {
		return Outcome{}, err
	}
	if err := copyFile(filepath.Join(from, TokensFile), filepath.Join(to, TokensFile), suspend); err != nil {
		return Outcome{}, fmt.Errorf("%w: take that file out of the backup to restore the log without its credentials, and make new ones", err)
	}
	if err := copyFile(filepath.Join(from, AttributionFile), filepath.Join(to, AttributionFile), nil); err != nil {
		return Outcome{}, err
	}
	if err := writeDurably(filepath.Join(to, checkpointFile), raw, 0o644); err != nil {
		return Outcome{}, err
	}
	identity, err := os.ReadFile(filepath.Join(from, identityFile))
	if err != nil {
		return Outcome{}, err
	}
	if newAnchor != "" {
		if identity, err = withAnchor(identity, newAnchor); err != nil {
			return Outcome{}, err
		}
	}
	if err := writeDurably(filepath.Join(to, identityFile), identity, 0o644); err != nil {
		return Outcome{}, err
	}
	if err := os.Remove(unfinished); err != nil {
		return Outcome{}, err
	}
	return Outcome{cp.Size, cp.Root, wrote}, syncDir(to)
}

// restoringFile marks a directory that a Restore has begun to fill.
const restoringFile = "restoring"

// onlyRestored refuses a directory with anything in it that Restore did not put
// there. A key may have been.
func onlyRestored(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, restoringFile)); err == nil {
		return nil
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.Name() != lockFileName && f.Name() != KeyFile {
			return fmt.Errorf("%s is not empty (%s): restore into an empty directory", dir, f.Name())
		}
	}
	return nil
}

// withAnchor puts another anchor's path into log.json, and leaves all else.
func withAnchor(raw []byte, path string) ([]byte, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("%s: %w", identityFile, err)
	}
	if fields["anchor"], err = json.Marshal(path); err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(fields, "", "  ")
	return append(out, '\n'), err
}

// writeEngineState makes Tessera's directory one that has integrated a tree: its
// treeState, and the version of its layout.
func writeEngineState(engine string, size uint64, root [32]byte) error {
	state := filepath.Join(engine, ".state")
	if err := os.MkdirAll(state, 0o755); err != nil {
		return err
	}
	raw := `{"size":` + strconv.FormatUint(size, 10) + `,"root":"` + base64.StdEncoding.EncodeToString(root[:]) + `"}`
	return errors.Join(
		writeDurably(filepath.Join(state, "version"), []byte(engineVersion), 0o644),
		writeDurably(filepath.Join(state, "treeState"), []byte(raw), 0o644),
		syncDir(engine))
}

// engineVersion is the layout of Tessera's directory that we know to write; see
// TestEngineStateIsTesseras.
const engineVersion = "1"

// readEngineState reads Tessera's treeState.
func readEngineState(engine string) (size uint64, root [32]byte, err error) {
	raw, err := os.ReadFile(filepath.Join(engine, ".state", "treeState"))
	if err != nil {
		return 0, root, err
	}
	var s struct {
		Size uint64 `json:"size"`
		Root []byte `json:"root"`
	}
	if err := json.Unmarshal(raw, &s); err != nil || len(s.Root) != len(root) {
		return 0, root, errors.New("treeState is damaged")
	}
	return s.Size, [32]byte(s.Root), nil
}

// Missing says what a log lacks of what its anchor remembers.
type Missing struct {
	Anchor  uint64 // size that the anchor remembers
	Entries uint64 // so many fewer are published here
}

// BehindAnchor compares a published size with the log's anchor, which it only
// reads.
func BehindAnchor(id Identity, size uint64) (Missing, error) {
	a, err := readAnchor(id.Anchor)
	if err != nil {
		return Missing{}, err
	}
	if a.origin != id.Origin {
		return Missing{}, fmt.Errorf("%w: it belongs to log %q", errBadAnchor, a.origin)
	}
	return Missing{a.size, a.size - min(size, a.size)}, nil
}

// Repair brings back what the log in dir has lost of the tree that it signed
// last, as its anchor remembers: single tiles and bundles, the tail, the
// engine's state, the public checkpoint, the indexes. What is here and right is
// kept, the rest comes from a mirror; nothing counts before it is verified
// against the anchor's root. Without an anchor nothing says what was signed, and
// Repair goes no further than the newest checkpoint that is published here or
// by the mirror. No server may run on dir.
//
// What the log has beyond that tree was never signed, so nobody was told of it;
// if the engine's state cannot be believed, it is set aside.
func Repair(ctx context.Context, dir, mirror string, progress Progress) (Outcome, error) {
	id, err := ReadIdentity(dir)
	if err != nil {
		return Outcome{}, err
	}
	own := &keyring{origin: id.Origin, keys: id.Keys}
	lock, err := lockFile(filepath.Join(dir, lockFileName))
	if err != nil {
		return Outcome{}, err
	}
	defer lock.release()
	src, err := OpenSource(mirror)
	if err != nil {
		return Outcome{}, err
	}
	theirs, theirNote, err := src.checkpoint(ctx, own)
	if err != nil {
		return Outcome{}, err
	}
	published, note := theirs, theirNote
	if raw, err := os.ReadFile(filepath.Join(dir, checkpointFile)); err == nil {
		if cp, err := signedCheckpoint(raw, own); err == nil && cp.Size >= theirs.Size {
			published, note = cp, raw
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Outcome{}, err
	}
	goal := published
	switch a, err := readAnchor(id.Anchor); {
	case errors.Is(err, errNoAnchor), errors.Is(err, errBadAnchor):
		// Reads come back; the log goes on refusing to write without its anchor.
	case err != nil:
		return Outcome{}, err
	case a.origin != id.Origin:
		return Outcome{}, fmt.Errorf("%w: it belongs to log %q", errBadAnchor, a.origin)
	case a.size < published.Size:
		return Outcome{}, fmt.Errorf("%w: it remembers %d entries, %d are published: it was put back; nothing is changed", errBadAnchor, a.size, published.Size)
	default:
		goal.Size, goal.Root = a.size, a.root
	}
	engine := filepath.Join(dir, engineDir)
	if err := os.MkdirAll(engine, 0o755); err != nil {
		return Outcome{}, err
	}
	wrote, err := fill(ctx, engine, src, int64(goal.Size), goal.Root, progress)
	if err != nil {
		if goal.Size > theirs.Size {
			err = fmt.Errorf("%w (the log has signed %d entries, %s shows %d: wait until a mirror has them, or use another)", err, goal.Size, mirror, theirs.Size)
		}
		return Outcome{Written: wrote}, err
	}
	// The checkpoints must be of this tree; the mirror's may be of a fork.
	t := tree{ctx: ctx, src: directory(engine), size: int64(goal.Size)}
	for what, raw := range map[string][]byte{"the mirror": theirNote, "the checkpoint that is published": note} {
		if err := containsNote(t, own, what, raw); err != nil {
			return Outcome{Written: wrote}, fmt.Errorf("%w: keep that checkpoint: if it is genuine, the log has signed two histories", err)
		}
	}
	changed, err := settleEngine(ctx, dir, goal)
	if err != nil {
		return Outcome{Written: wrote}, err
	}
	if have, err := os.ReadFile(filepath.Join(dir, checkpointFile)); err != nil || string(have) != string(note) {
		if err := writeDurably(filepath.Join(dir, checkpointFile), note, 0o644); err != nil {
			return Outcome{Written: wrote}, err
		}
		changed = true
	}
	lock.release()
	if changed || wrote > 0 {
		if _, err := RebuildIndex(ctx, dir, nil); err != nil {
			return Outcome{Written: wrote}, err
		}
	}
	return Outcome{goal.Size, goal.Root, wrote}, nil
}

// settleEngine makes the engine's state say the tree that was repaired, unless
// what it says is a sound tree that contains it.
func settleEngine(ctx context.Context, dir string, goal c2sp.Checkpoint) (changed bool, err error) {
	engine := filepath.Join(dir, engineDir)
	size, root, err := readEngineState(engine)
	if err == nil && size >= goal.Size && size < 1<<62 {
		if _, err := fill(ctx, engine, nil, int64(size), root, nil); err == nil {
			whole := tree{ctx: ctx, src: directory(engine), size: int64(size)}
			part := whole
			part.size = int64(goal.Size)
			if r, err := part.root(); err == nil && r == goal.Root {
				if proof, err := whole.consistency(int64(goal.Size)); err == nil && c2sp.VerifyConsistency(goal.Size, size, proof, goal.Root, root) == nil {
					return false, nil
				}
			}
		}
	}
	if err := setAside(dir, int64(goal.Size)); err != nil {
		return true, err
	}
	return true, writeEngineState(engine, goal.Size, goal.Root)
}

// setAside moves the tiles that no tree of size has to a directory beside.
func setAside(dir string, size int64) error {
	engine := filepath.Join(dir, engineDir)
	var beyond []string
	err := filepath.WalkDir(filepath.Join(engine, "tile"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if errors.Is(err, fs.ErrNotExist) { // an empty log
				return nil
			}
			return err
		}
		rel, err := filepath.Rel(engine, path)
		if err != nil {
			return err
		}
		if t, err := c2sp.ParseTilePath(filepath.ToSlash(rel)); err == nil && !covers(uint64(size), t) {
			beyond = append(beyond, rel)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, rel := range beyond {
		to := filepath.Join(dir, "set-aside", rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(engine, rel), to); err != nil {
			return err
		}
	}
	if len(beyond) == 0 {
		return nil
	}
	return syncFileSystem(dir)
}

// DrillAnchor writes an anchor for a restored copy that is going to be looked
// at and removed. It replaces none.
func DrillAnchor(id Identity, o Outcome) error {
	if err := noAnchorYet(id.Anchor); err != nil {
		return err
	}
	return writeDurably(id.Anchor, anchorState{origin: id.Origin, size: o.Size, root: o.Root}.bytes(), 0o600)
}
