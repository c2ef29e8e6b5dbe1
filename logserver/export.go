package logserver

// A static export: the log's own files (checkpoint, tiles, bundles) and a proof
// for every upload, as plain files that any file server can serve.
//
//	tiles ─▶ every leaf against its tile ─▶ one proof an upload ─▶ checkpoint, last
//
// so that whoever reads the copy never meets a checkpoint before its tiles. The
// export is of the newest published checkpoint; the next one goes on where this
// one ended, also where it was interrupted. Nothing is written that has not been
// checked against that checkpoint.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// ExportConfig says what is exported, and where to.
type ExportConfig struct {
	// Dir, Files and VKeys are as in ReadOnlyConfig.
	Dir   string
	Files Files
	VKeys []*c2sp.Key

	To    string  // directory; made if it is not there
	Since *uint64 // look again from this entry on: what is there and good stays
	// Progress, if set, is called now and then with how many entries of how many
	// are done.
	Progress func(done, of uint64)
}

// ExportReport says what an export did.
type ExportReport struct {
	Size       uint64 `json:"size"`       // of the exported log
	Tiles      int    `json:"tiles"`      // files written: tiles and bundles
	Proofs     int    `json:"proofs"`     // files written
	Kept       int    `json:"kept"`       // proofs that were there
	Private    bool   `json:"private"`    // of a private log: whoever reaches the files reads it
	Unreadable int    `json:"unreadable"` // entries that this program does not understand: they have no proof file
}

// ErrExport says that a directory is no place for this log's export: it holds
// another log's, or a newer one of this log.
var ErrExport = errors.New("cannot export there")

// The files of an export beside "checkpoint" and "tile".
const (
	exportState = "export.json"
	exportLock  = "export.lock"
	proofsDir   = "proofs"
	// exportStep is how many entries are done between two records of progress.
	exportStep = 1024
)

// exported is the progress of an export: what of it is on the disk.
type exported struct {
	Origin string `json:"origin"`
	Tiles  uint64 `json:"tiles"`  // tree size whose tiles are there
	Proofs uint64 `json:"proofs"` // entries [0, Proofs) have their proofs
	// Private: of a private log, and serve --read-only serves it as such.
	Private bool `json:"private,omitempty"`
}

// ProofPath is where an export keeps the proof of an upload, below its directory:
//
//	proofs/<claim>/<registry>/<ecosystem>/<project>/<file>.tlog-proof
//
// with "," for every "/" inside a part. That is the upload's slot, one part each:
// names have neither "," nor "=", so no two slots meet, no file is where another
// slot needs a directory, and every part is one path element of at most 255
// bytes. A file whose name is too long for that stands under its SHA-256 in the
// directory "=long". What a slot held before, if an upload replaced it, stands
// beside it as <file>=<index>.tlog-proof.
func ProofPath(e *entry.Entry) (string, error) { return proofPath(e, "") }

func proofPath(e *entry.Entry, suffix string) (string, error) {
	if e.Kind != entry.KindUpload {
		return "", fmt.Errorf("an entry of kind %q has no file", e.Kind)
	}
	file := strings.ReplaceAll(e.File, "/", ",")
	parts := []string{proofsDir, string(e.Claim), strings.ReplaceAll(e.Registry, "/", ","), e.Ecosystem, strings.ReplaceAll(e.Project, "/", ",")}
	if len(file) > 220 {
		sum := sha256.Sum256([]byte(e.File))
		parts, file = append(parts, "=long"), hex.EncodeToString(sum[:])
	}
	parts = append(parts, file+suffix+".tlog-proof")
	for _, p := range parts {
		// Entries do not have such names; what comes from storage is not believed.
		if p == "" || p == "." || p == ".." || len(p) > 255 || strings.ContainsAny(p, "/\\\x00") {
			return "", fmt.Errorf("entry with a name that is no path element: %q", p)
		}
	}
	return path.Join(parts...), nil
}

// exporter is one export under way.
type exporter struct {
	cfg    ExportConfig
	log    *Log // what it reads from; no more than reading is set up
	cp     c2sp.Checkpoint
	note   []byte
	t      tree
	root   *os.Root // what it writes to: nothing leaves it, not even over links
	state  exported
	report ExportReport
}

// Export exports the newest published checkpoint's log. It may be interrupted at
// any moment, and run again. Its errors are ErrExport, ErrWentBack, ErrStorage or
// those of the target's file system.
func Export(ctx context.Context, cfg ExportConfig) (ExportReport, error) {
	x := &exporter{cfg: cfg}
	if err := x.open(ctx); err != nil {
		return x.report, err
	}
	mode := fs.FileMode(0o755)
	if x.report.Private {
		mode = 0o700
	}
	if err := os.MkdirAll(cfg.To, mode); err != nil {
		return x.report, err
	}
	lock, err := lockFile(filepath.Join(cfg.To, exportLock))
	if err != nil {
		return x.report, err
	}
	defer lock.release()
	if x.root, err = os.OpenRoot(cfg.To); err != nil {
		return x.report, err
	}
	defer x.root.Close()
	if err := x.resume(); err != nil {
		return x.report, err
	}
	if err := x.tiles(ctx); err != nil {
		return x.report, err
	}
	if err := x.proofs(ctx); err != nil {
		return x.report, err
	}
	if err := x.write(checkpointFile, x.note); err != nil {
		return x.report, err
	}
	x.report.Size = x.cp.Size
	return x.report, x.sync()
}

// open reads the published checkpoint, and makes sure of it and its tree.
func (x *exporter) open(ctx context.Context) error {
	var f follower
	from := ReadOnlyConfig{Dir: x.cfg.Dir, Files: x.cfg.Files, VKeys: x.cfg.VKeys}
	src, _, err := from.storage(&f)
	if err != nil {
		return err
	}
	x.report.Private = from.Private
	id, err := f.identity()
	if err != nil {
		return err
	}
	x.log = &Log{keys: &keyring{origin: id.Origin, keys: id.Keys}, src: src, tiles: newTileCache()}
	if x.note, err = f.checkpoint(ctx); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: the log has not published a checkpoint yet", ErrExport)
	} else if err != nil {
		return fmt.Errorf("%w: checkpoint: %w", ErrStorage, withoutPath(err))
	}
	if x.cp, err = signedCheckpoint(x.note, x.log.keys); err != nil {
		return fmt.Errorf("%w: the published checkpoint: %w", ErrWentBack, err)
	}
	x.t = x.log.tree(int64(x.cp.Size))
	x.t.ctx = ctx
	root, err := x.t.root()
	if err != nil {
		return err
	}
	if root != x.cp.Root {
		return fmt.Errorf("%w: the tiles are not those of the checkpoint of %d entries", ErrWentBack, x.cp.Size)
	}
	return nil
}

// resume reads how far the directory is, and refuses one that is not this log's.
func (x *exporter) resume() error {
	raw, err := x.root.ReadFile(exportState)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		dir, err := fs.ReadDir(x.root.FS(), ".")
		if err != nil {
			return err
		}
		for _, e := range dir {
			if e.Name() != exportLock && e.Name() != "=new" {
				return fmt.Errorf("%w: %s holds %s and was not made by an export: give an empty directory", ErrExport, x.cfg.To, e.Name())
			}
		}
		x.state.Origin = x.cp.Origin
	case err != nil:
		return err
	default:
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&x.state); err != nil {
			return fmt.Errorf("%w: %s in %s: %w", ErrExport, exportState, x.cfg.To, err)
		}
	}
	if x.state.Origin != x.cp.Origin {
		return fmt.Errorf("%w: %s holds the log %q", ErrExport, x.cfg.To, x.state.Origin)
	}
	if was, err := x.root.ReadFile(checkpointFile); err == nil {
		old, err := signedCheckpoint(was, x.log.keys)
		if err != nil {
			return fmt.Errorf("%w: the checkpoint in %s: %w", ErrExport, x.cfg.To, err)
		}
		if old.Size > x.cp.Size {
			return fmt.Errorf("%w: %s holds %d entries, and the log has published %d: it went back", ErrExport, x.cfg.To, old.Size, x.cp.Size)
		}
		proof, err := x.t.consistency(int64(old.Size))
		if err != nil {
			return err
		}
		if err := c2sp.VerifyConsistency(old.Size, x.cp.Size, proof, old.Root, x.cp.Root); err != nil {
			return fmt.Errorf("%w: %s holds another history: %w", ErrExport, x.cfg.To, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	x.state.Private = x.state.Private || x.report.Private
	if s := x.cfg.Since; s != nil {
		x.state.Tiles, x.state.Proofs = min(x.state.Tiles, *s), min(x.state.Proofs, *s)
	}
	if x.state.Tiles > x.cp.Size || x.state.Proofs > x.cp.Size {
		return fmt.Errorf("%w: %s is further than the log's %d entries: it went back", ErrExport, x.cfg.To, x.cp.Size)
	}
	return x.save()
}

func (x *exporter) save() error {
	raw, err := json.Marshal(x.state)
	if err != nil {
		return err
	}
	return x.write(exportState, append(raw, '\n'))
}

// write puts a file in its place in one step. Its bytes are on the disk after the
// next sync.
func (x *exporter) write(name string, raw []byte) error {
	dir, base := path.Split(name)
	temp := dir + "=new" // no other name has a "=" at its beginning, but the directory of long names
	f, err := x.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if errors.Is(err, fs.ErrNotExist) && dir != "" {
		if err := x.root.MkdirAll(strings.TrimSuffix(dir, "/"), 0o755); err != nil {
			return err
		}
		f, err = x.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil && dir == "" {
		err = f.Sync() // the checkpoint and the progress say what else is there
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return x.root.Rename(temp, dir+base)
}

// sync puts on the disk what was written.
func (x *exporter) sync() error { return syncFileSystem(x.cfg.To) }

// tiles copies the tiles and bundles that the directory does not have yet, and
// removes partial ones whose full one is there.
func (x *exporter) tiles(ctx context.Context) error {
	if err := tilesMatchTiles(x.t, int64(x.state.Tiles)); err != nil {
		return err
	}
	for level := -1; level*tileHeight < 63; level++ {
		height := max(level, 0) * tileHeight
		have := x.cp.Size >> height
		if have == 0 {
			break
		}
		for index := x.state.Tiles >> height / tileWidth; index*tileWidth < have; index++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			t := c2sp.Tile{Level: level, Index: index, Width: int(min(have-index*tileWidth, tileWidth))}
			raw, err := readTile(ctx, x.t.src, t)
			if err == nil {
				raw, err = cutTile(raw, t)
			}
			if err != nil {
				return unreadable(err, t.Path())
			}
			if old, err := x.root.ReadFile(t.Path()); err != nil || !bytes.Equal(old, raw) {
				if err := x.write(t.Path(), raw); err != nil {
					return err
				}
				x.report.Tiles++
			}
			if t.Width == tileWidth {
				if err := x.root.RemoveAll(t.Path() + ".p"); err != nil {
					return err
				}
			}
		}
	}
	if err := x.sync(); err != nil {
		return err
	}
	x.state.Tiles = x.cp.Size
	return x.save()
}

// proofs writes the proofs of the uploads that have none yet.
func (x *exporter) proofs(ctx context.Context) error {
	checked := x.state.Proofs
	return errors.Join(x.t.each(int64(x.state.Proofs), func(i int64, leaf []byte) error {
		tile, err := x.t.tile(0, i/tileWidth)
		if err != nil {
			return err
		}
		if tile[0][i%tileWidth] != entry.LeafHash(leaf) {
			return fmt.Errorf("%w: entry %d does not hash to its leaf in the tile", errUnreadable, i)
		}
		if err := x.proof(uint64(i), leaf); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		if checked = uint64(i) + 1; checked%exportStep != 0 && checked != x.cp.Size {
			return nil
		}
		if x.cfg.Progress != nil {
			x.cfg.Progress(checked, x.cp.Size)
		}
		if err := x.sync(); err != nil {
			return err
		}
		x.state.Proofs = checked
		return x.save()
	}), ctx.Err())
}

func (x *exporter) proof(index uint64, leaf []byte) error {
	e, err := entry.Parse(leaf)
	if err != nil {
		x.report.Unreadable++
		return nil
	}
	if e.Kind != entry.KindUpload {
		return nil
	}
	name, err := proofPath(e, "")
	if err != nil {
		return err
	}
	if old, ok := x.proven(name); ok && old.Index != index { // the slot was used twice
		earlier := min(old.Index, index)
		aside, err := proofPath(e, fmt.Sprintf("=%d", earlier))
		if err != nil {
			return err
		}
		if earlier == index {
			name = aside // this one is the older
		} else if err := x.root.Rename(name, aside); err != nil {
			return err
		}
	}
	// A proof that is there was made earlier: it dates the file better than a new
	// one, and is never replaced while it is good.
	if old, ok := x.proven(name); ok && old.Index == index && bytes.Equal(old.Extra, leaf) {
		x.report.Kept++
		return nil
	}
	proof, err := x.log.proveIn(x.t, Published{Size: x.cp.Size, Root: x.cp.Root, Note: x.note}, index, leaf)
	if err != nil {
		return err
	}
	x.report.Proofs++
	return x.write(name, proof.Bytes())
}

// proven is the proof in a file, if it is a whole and good one of this log.
func (x *exporter) proven(name string) (*c2sp.Proof, bool) {
	raw, err := x.root.ReadFile(name)
	if err != nil {
		return nil, false
	}
	p, err := c2sp.ParseProof(raw)
	if err != nil {
		return nil, false
	}
	cp, err := signedCheckpoint(p.Checkpoint, x.log.keys)
	if err != nil {
		return nil, false
	}
	return p, c2sp.VerifyInclusion(p.Index, cp.Size, entry.LeafHash(p.Extra), p.Hashes, cp.Root) == nil
}
