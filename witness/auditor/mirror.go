package auditor

// The copy of one log on disk: checkpoint, tiles and bundles under the paths of
// c2sp.org/tlog-tiles, so that any web server can serve them, and any audit
// read them. A file gets its name once it is whole and durable, and only when
// its bytes were proven part of a tree that the log signed. Of a partial tile
// the widest is kept; narrower ones are its beginning, and are cut from it.

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/portbook/portbook/c2sp"
)

// A mirror is the copy of one log.
type mirror struct {
	dir string
	// testBeforeStep, if set, is called before each step of writing, with its
	// name; an error is that of the disk. It makes a crash certain.
	testBeforeStep func(step string) error
}

func (m *mirror) step(name string) error {
	if m.testBeforeStep == nil {
		return nil
	}
	return m.testBeforeStep(name)
}

// open makes the directory, and removes what a killed process left half written.
func (m *mirror) open() error {
	tmp := filepath.Join(m.dir, "tmp")
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("mirror: %w", err)
	}
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return fmt.Errorf("mirror: %w", err)
	}
	return syncDirs(m.dir, filepath.Dir(m.dir))
}

func (m *mirror) path(t c2sp.Tile) string { return filepath.Join(m.dir, filepath.FromSlash(t.Path())) }

// put makes a file durable under its final name. What is there already with
// other bytes was of a checkpoint that is pending no more, and is replaced.
func (m *mirror) put(t c2sp.Tile, raw []byte) error {
	path := m.path(t)
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, raw) {
		return m.settle(filepath.Dir(path)) // perhaps of a process that was killed just here
	}
	fail := func(err error) error { return fmt.Errorf("mirror: writing %s: %w", t.Path(), err) }
	if err := m.step("write " + t.Path()); err != nil {
		return fail(err)
	}
	f, err := os.CreateTemp(filepath.Join(m.dir, "tmp"), "")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(raw)
	if err = errors.Join(err, m.step("sync "+t.Path())); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fail(err)
	}
	made, err := m.makeDirs(filepath.Dir(path))
	if err != nil {
		return fail(err)
	}
	if err := m.step("rename " + t.Path()); err != nil {
		return fail(err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fail(err)
	}
	if err := m.step("sync the directory of " + t.Path()); err != nil {
		return fail(err)
	}
	if err := syncDirs(append(made, filepath.Dir(path))...); err != nil {
		return fail(err)
	}
	return m.narrower(t)
}

// settle makes durable that dir is there, with what is in it.
func (m *mirror) settle(dir string) error {
	dirs := []string{m.dir}
	for ; dir != m.dir; dir = filepath.Dir(dir) {
		dirs = append(dirs, dir)
	}
	if err := syncDirs(dirs...); err != nil {
		return fmt.Errorf("mirror: %w", err)
	}
	return nil
}

// publish writes the checkpoint beside the tiles. It is a copy, for those who read
// the directory: what was cosigned stands in the database.
func (m *mirror) publish(note []byte) error {
	path := filepath.Join(m.dir, "checkpoint")
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, note) {
		return nil
	}
	tmp := filepath.Join(m.dir, "tmp", "checkpoint")
	err := os.WriteFile(tmp, note, 0o644)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("mirror: writing the checkpoint: %w", err)
	}
	return nil
}

// makeDirs makes a directory with those above it, and returns where a new name
// has to be made durable.
func (m *mirror) makeDirs(dir string) (parents []string, err error) {
	for at := dir; at != m.dir; at = filepath.Dir(at) {
		if _, err := os.Stat(at); err == nil {
			break
		}
		parents = append(parents, filepath.Dir(at))
	}
	return parents, os.MkdirAll(dir, 0o755)
}

// narrower removes the partial tiles that t takes the place of.
func (m *mirror) narrower(t c2sp.Tile) error {
	full := t
	full.Width = c2sp.TileWidth
	dir := m.path(full) + ".p"
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mirror: %w", err)
	}
	for _, e := range list {
		if w, err := strconv.Atoi(e.Name()); err == nil && w < t.Width {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("mirror: %w", err)
			}
		}
	}
	if t.Width == c2sp.TileWidth {
		os.Remove(dir) // it is empty
	}
	return nil
}

// errNotHere means that the copy has no such tile, as wide as that.
var errNotHere = errors.New("the mirror does not have it")

// read returns a tile or bundle of exactly its width, cut from a wider one if
// need be.
func (m *mirror) read(t c2sp.Tile) ([]byte, error) {
	full := t
	full.Width = c2sp.TileWidth
	if raw, err := m.file(full); !errors.Is(err, fs.ErrNotExist) {
		return cut(raw, t, err)
	}
	if t.Width == c2sp.TileWidth {
		return nil, fmt.Errorf("%s: %w", t.Path(), errNotHere)
	}
	for attempt := 0; ; attempt++ {
		list, err := os.ReadDir(m.path(full) + ".p")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("mirror: %w", err)
		}
		widest := 0
		for _, e := range list {
			if w, err := strconv.Atoi(e.Name()); err == nil && w < c2sp.TileWidth {
				widest = max(widest, w)
			}
		}
		from := t
		if from.Width = widest; widest < t.Width {
			from = full // it may have come meanwhile
		}
		raw, err := m.file(from)
		switch {
		case !errors.Is(err, fs.ErrNotExist):
			return cut(raw, t, err)
		case attempt == 3: // a wider one took its place each time
			return nil, fmt.Errorf("%s: %w", t.Path(), errNotHere)
		}
	}
}

func (m *mirror) file(t c2sp.Tile) ([]byte, error) {
	f, err := os.Open(m.path(t))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, c2sp.MaxBundle+1))
	if err != nil {
		return nil, err
	}
	if t.Level >= 0 && len(raw) != 32*t.Width {
		return nil, fmt.Errorf("mirror: %s has %d bytes instead of %d: the disk has changed it", t.Path(), len(raw), 32*t.Width)
	}
	return raw, nil
}

// cut returns the beginning of a tile or bundle.
func cut(raw []byte, t c2sp.Tile, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	if t.Level >= 0 {
		return raw[:32*t.Width], nil
	}
	at := 0
	for range t.Width {
		if len(raw)-at < 2 || len(raw)-at-2 < int(binary.BigEndian.Uint16(raw[at:])) {
			return nil, fmt.Errorf("mirror: %s ends early: the disk has changed it", t.Path())
		}
		at += 2 + int(binary.BigEndian.Uint16(raw[at:]))
	}
	return raw[:at], nil
}

// Tile implements tileReader.
func (m *mirror) Tile(_ context.Context, t c2sp.Tile) ([]byte, error) { return m.read(t) }

// leaves returns the entries [from, to), which are of one bundle.
func (m *mirror) leaves(from, to uint64) ([][]byte, error) {
	if from == to {
		return nil, nil
	}
	index := from / c2sp.TileWidth
	t := c2sp.Tile{Level: -1, Index: index, Width: int(to - index*c2sp.TileWidth)}
	raw, err := m.read(t)
	if err != nil {
		return nil, err
	}
	all, err := c2sp.ParseBundle(raw, t.Width)
	if err != nil {
		return nil, fmt.Errorf("mirror: %s: %w", t.Path(), err)
	}
	return all[from-index*c2sp.TileWidth:], nil
}

// leaf returns one entry.
func (m *mirror) leaf(index uint64) ([]byte, error) {
	l, err := m.leaves(index, index+1)
	if err != nil {
		return nil, err
	}
	return l[0], nil
}

// save stores a run of entries, the bundle that they end and its level 0 tile.
// leaves are all of the bundle so far, the first at 256*index.
func (m *mirror) save(index uint64, leaves [][]byte, hashes []hash) error {
	var bundle, tile []byte
	for i, l := range leaves {
		bundle = append(binary.BigEndian.AppendUint16(bundle, uint16(len(l))), l...)
		tile = append(tile, hashes[i][:]...)
	}
	if err := m.put(c2sp.Tile{Level: -1, Index: index, Width: len(leaves)}, bundle); err != nil {
		return err
	}
	return m.put(c2sp.Tile{Level: 0, Index: index, Width: len(leaves)}, tile)
}

// raise writes the tiles above level 0 of the tree of the given size, of which
// those of the tree of size from are there, and returns its root as the files
// have it.
func (m *mirror) raise(ctx context.Context, from, size uint64) (hash, error) {
	for level := 1; size>>(8*level) > 0; level++ {
		end := size >> (8 * level)
		for index := from >> (8 * level) / c2sp.TileWidth; index*c2sp.TileWidth < end; index++ {
			if err := ctx.Err(); err != nil {
				return hash{}, err
			}
			t := c2sp.Tile{Level: level, Index: index, Width: int(min(c2sp.TileWidth, end-index*c2sp.TileWidth))}
			raw, err := m.above(t, from>>(8*level))
			if err != nil {
				return hash{}, err
			}
			if err := m.put(t, raw); err != nil {
				return hash{}, err
			}
		}
	}
	return newTree(ctx, m, size).root()
}

// above computes a tile from the full tiles below it. What it had when its level
// had the given number of hashes is taken from its file.
func (m *mirror) above(t c2sp.Tile, had uint64) ([]byte, error) {
	first := t.Index * c2sp.TileWidth
	var raw []byte
	if had > first {
		old := t
		old.Width = int(min(had-first, uint64(t.Width)))
		var err error
		if raw, err = m.read(old); err != nil && !errors.Is(err, errNotHere) {
			return nil, err
		}
		raw = raw[:len(raw):len(raw)]
	}
	for i := len(raw) / 32; i < t.Width; i++ {
		below, err := m.read(c2sp.Tile{Level: t.Level - 1, Index: first + uint64(i), Width: c2sp.TileWidth})
		if err != nil {
			return nil, err
		}
		row := make([]hash, c2sp.TileWidth)
		for k := range row {
			row[k] = hash(below[32*k:])
		}
		h := perfect(row)
		raw = append(raw, h[:]...)
	}
	return raw, nil
}

// syncDirs makes the names in directories durable.
func syncDirs(dirs ...string) error {
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

// hashDir reports whether name can be that of a mirror's directory.
func hashDir(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// prune removes what is beyond the entries that count: what a killed process
// wrote and did not record, or what belonged to a checkpoint that is pending no
// more. next entries are stored, and head of them were cosigned.
func (m *mirror) prune(next, head uint64) error {
	for level := -1; level < 8; level++ {
		have := next
		if level > 0 {
			have = head >> (8 * level)
		}
		for index := have / c2sp.TileWidth; ; index++ {
			keep := 0
			if index == have/c2sp.TileWidth {
				keep = int(have % c2sp.TileWidth)
			}
			t := c2sp.Tile{Level: level, Index: index, Width: c2sp.TileWidth}
			if keep > 0 { // perhaps there is only a wider one, of which this is the beginning
				kept := t
				kept.Width = keep
				raw, err := m.read(kept)
				if err == nil {
					err = m.put(kept, raw)
				}
				if err != nil {
					return err
				}
			}
			found, err := m.dropWider(t, keep)
			if err != nil {
				return fmt.Errorf("mirror: %w", err)
			}
			if !found && index > have/c2sp.TileWidth { // they are written in order
				break
			}
		}
	}
	return nil
}

// dropWider removes a tile's files that are wider than keep; found says that
// there were any.
func (m *mirror) dropWider(full c2sp.Tile, keep int) (found bool, err error) {
	path := m.path(full)
	if err := os.Remove(path); err == nil {
		found = true
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	list, err := os.ReadDir(path + ".p")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	for _, e := range list {
		if w, err := strconv.Atoi(e.Name()); err == nil && w > keep {
			found = true
			if err := os.Remove(filepath.Join(path+".p", e.Name())); err != nil {
				return false, err
			}
		}
	}
	return found, nil
}
