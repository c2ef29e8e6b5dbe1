package audit

// A log's own directory: besides the tiles it has what the log remembers. Its
// layout (docs/running.md):
//
//	log.json            origin, keys, path of the anchor
//	checkpoint          the public checkpoint
//	log/                tiles and bundles, written by the storage engine (Tessera)
//	log/.state/         its own state: treeState is the size and root it has integrated
//	log/checkpoint      the engine's own, under a key that nobody knows; not ours
//	journal/            entries that may not be in the tiles yet (journal.go)
//	the anchor          elsewhere: the last tree that was signed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"
)

// home is a log's own directory. It is a source: the public checkpoint is beside
// the tiles.
type home struct {
	dir      string
	identity identity
	memories []memory // sizes and roots that the log remembers
	journal  *journal // nil: not readable, which was told
	sized    bool     // the engine's state was read
}

type identity struct {
	Origin string `json:"origin"`
	VKey   string `json:"vkey"`
	Anchor string `json:"anchor"`
	Keys   []struct {
		VKey  string `json:"vkey"`
		State string `json:"state"`
		UpTo  int64  `json:"up_to"`
	} `json:"keys"`
}

// keys are the Ed25519 keys that have signed: this audit knows no others.
func (id *identity) keys() []Key {
	if len(id.Keys) == 0 {
		return []Key{{VKey: id.VKey}}
	}
	var keys []Key
	for _, k := range id.Keys {
		if _, err := note.NewVerifier(k.VKey); err != nil {
			continue
		}
		key := Key{VKey: k.VKey}
		if k.State == "retired" {
			key.Retired, key.UpTo = true, k.UpTo
		}
		keys = append(keys, key)
	}
	return keys
}

// memory is a tree that the log says it had.
type memory struct {
	what string
	path string
	size int64
	root hash
}

const engineDir = "log"

func openHome(dir string) (*home, error) {
	raw, err := directory(dir).read(context.Background(), "log.json", maxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s has no log.json: it is not a log's directory; a copy of what the log serves is a mirror", ErrConfig, dir)
	}
	if err != nil {
		return nil, err
	}
	h := &home{dir: dir}
	if err := json.Unmarshal(raw, &h.identity); err != nil {
		return nil, fmt.Errorf("%s: %w: give the log's keys, and restore it", filepath.Join(dir, "log.json"), err)
	}
	return h, nil
}

func (h *home) read(ctx context.Context, path string, most int) ([]byte, error) {
	if path == checkpoint {
		return directory(h.dir).read(ctx, path, most)
	}
	return directory(filepath.Join(h.dir, engineDir)).read(ctx, path, most)
}

// covers reads what the log remembers, and says how much of it there is to audit:
// what is integrated, if that can be believed, else what is published.
func (h *home) covers(ctx context.Context, published Checkpoint, out *findings) int64 {
	size := published.Size
	h.journal = readJournal(h.dir, h.identity.Origin, out)
	state, err := h.engineState(ctx)
	if err != nil {
		h.trouble(out, "engine-state", "log/.state/treeState", err)
	} else {
		h.memories = append(h.memories, state)
		h.sized = true
	}
	if h.identity.Anchor != "" {
		anchor, err := readAnchor(h.identity.Anchor, h.identity.Origin)
		if err != nil {
			h.trouble(out, "anchor", h.identity.Anchor, err)
		} else {
			h.memories = append(h.memories, anchor)
			if anchor.size < published.Size {
				out.add(Damage, "anchor", anchor.path, "it remembers %d entries, %d are published: it was put back, and could let the log sign a second history", anchor.size, published.Size)
			}
		}
	} else {
		out.cannot("log.json names no anchor")
	}
	for _, m := range h.memories {
		// A size that nothing supports is not walked: each missing tile would be told.
		if m.size <= size {
			continue
		}
		edge := tile{-1, (m.size - 1) / perTile, int((m.size-1)%perTile) + 1}
		if _, _, err := readTile(ctx, h, edge); err == nil {
			size = m.size
		}
	}
	return size
}

func (h *home) trouble(out *findings, kind, where string, err error) {
	var perr *fs.PathError
	if errors.As(err, &perr) && !errors.Is(err, fs.ErrNotExist) {
		out.cannot("%s: %v", where, err)
		return
	}
	out.add(Damage, kind, where, "%v", plain(err))
}

// engineState reads the engine's idea of the integrated tree: a JSON object with
// its size and its root in base64.
func (h *home) engineState(ctx context.Context) (memory, error) {
	m := memory{what: "the storage engine's state", path: "log/.state/treeState"}
	raw, err := h.read(ctx, ".state/treeState", 4<<10)
	if err != nil {
		return m, err
	}
	var state struct {
		Size *uint64 `json:"size"`
		Root string  `json:"root"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&state); err != nil || d.More() || state.Size == nil || *state.Size > 1<<62 {
		return m, errors.New("is not what the engine writes")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(state.Root)
	if err != nil || len(root) != len(m.root) {
		return m, errors.New("its root is not base64 of 32 bytes")
	}
	m.size, m.root = int64(*state.Size), hash(root)
	return m, nil
}

// readAnchor reads an anchor: seven lines, the last of them a SHA-256 of the
// others and then nothing.
func readAnchor(path, origin string) (memory, error) {
	m := memory{what: "the anchor", path: path}
	raw, err := directory(filepath.Dir(path)).read(context.Background(), filepath.Base(path), 4<<10)
	if err != nil {
		return m, err
	}
	lines := strings.Split(string(raw), "\n")
	if len(lines) != 7 || lines[0] != "portbook anchor v1" || lines[6] != "" {
		return m, errors.New("is not an anchor")
	}
	sum := sha256.Sum256(raw[:max(0, len(raw)-len(lines[5])-1)])
	if lines[5] != hex.EncodeToString(sum[:]) {
		return m, errors.New("its checksum is wrong: it is damaged")
	}
	if lines[1] != origin {
		return m, fmt.Errorf("it belongs to log %q", lines[1])
	}
	root, err := hex.DecodeString(lines[3])
	if err != nil || len(root) != len(m.root) || !isDecimal([]byte(lines[2])) {
		return m, errors.New("is not an anchor")
	}
	if m.size, err = strconv.ParseInt(lines[2], 10, 64); err != nil {
		return m, errors.New("is not an anchor")
	}
	m.root = hash(root)
	return m, nil
}

// judge compares what the log remembers with its tree.
func (h *home) judge(trees []*target, published Checkpoint, w *walk, out *findings) {
	h.journal.judge(w.size, h.sized, out)
	for i, t := range trees {
		m := h.memories[i]
		switch {
		case t.size > w.size:
			out.add(Damage, "behind", m.path, "%s knows of %d entries, the log has %d: it was restored from a backup, or its newest tiles are lost", m.what, t.size, w.size)
		case t.got != t.root && w.hurt:
			out.add(Damage, "memory", m.path, "%s has another root at size %d; what is damaged may be why", m.what, t.size)
		case t.got != t.root:
			out.add(Damage, "memory", m.path, "%s has root %x at size %d, the tree has %x there", m.what, t.root, t.size, t.got)
		case t.size < published.Size && m.what != "the anchor": // the anchor's case is told
			out.add(Damage, "behind", m.path, "%s knows of %d entries, %d are published", m.what, t.size, published.Size)
		}
	}
}

// leftovers looks at every file below the engine's directory: whether a tree of
// the audited size needs it, and if a wider tile replaces it, that they agree:
// a reader who asks for the narrower one is given that.
//
// One that does not is what a killed server leaves: it had written a batch that
// was never integrated, and another took its place. No tree of that size was
// ever signed, unless shown, the sizes of checkpoints that somebody saw, says so.
func (h *home) leftovers(ctx context.Context, published, size int64, shown map[int64]bool, workers int, out *findings, r *Report) error {
	root := filepath.Join(h.dir, engineDir)
	partials := make(chan []tile)
	var working sync.WaitGroup
	for range workers {
		working.Go(func() {
			for group := range partials {
				h.compare(ctx, group, size, shown, out)
			}
		})
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) { // a live log removes partial tiles
				return nil
			}
			out.cannot("%v", err)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		switch {
		case d.IsDir() && strings.HasSuffix(rel, ".p"):
			group, err := h.partials(rel, path, published, size, out, r)
			if err != nil {
				return err
			}
			if len(group) > 0 {
				partials <- group
			}
			return fs.SkipDir
		case d.IsDir(), engineFiles[rel]:
		default:
			t, ok := parsePath(rel)
			if !ok || !d.Type().IsRegular() {
				out.add(Leftover, "stray", rel, "is no file of a log: perhaps of a write that was interrupted")
			} else {
				r.beyond(t, published, size, rel, out)
			}
		}
		return nil
	})
	close(partials)
	working.Wait()
	return err
}

// engineFiles are the engine's own.
var engineFiles = map[string]bool{
	"checkpoint": true, ".state/treeState": true, ".state/treeState.lock": true, ".state/publish.lock": true,
	".state/gcState": true, ".state/gcState.lock": true, ".state/version": true,
}

// beyond counts a tile that no published size needs. What is integrated and not
// published yet is normal; what is not even integrated was interrupted.
func (r *Report) beyond(t tile, published, size int64, path string, out *findings) bool {
	if t.within(published) {
		return false
	}
	r.Unpublished++
	if !t.within(size) {
		out.add(Leftover, "not-integrated", path, "holds more than the log's %d entries: a write that was interrupted, or is under way", size)
		return true
	}
	return false
}

// partials lists the partial tiles of one tile.
func (h *home) partials(rel, path string, published, size int64, out *findings, r *Report) ([]tile, error) {
	files, err := os.ReadDir(path)
	if err != nil {
		out.cannot("%v", err)
		return nil, nil
	}
	var group []tile
	for _, f := range files {
		name := rel + "/" + f.Name()
		t, ok := parsePath(name)
		switch {
		case !ok || !f.Type().IsRegular():
			out.add(Leftover, "stray", name, "is no file of a log: perhaps of a write that was interrupted")
		case r.beyond(t, published, size, name, out):
		default:
			if index, width := last(max(t.level, 0), size); t.index != index || t.width != width {
				r.Superseded++
				group = append(group, t)
			}
		}
	}
	return group, nil
}

// compare holds partial tiles against the widest that the audited tree has.
func (h *home) compare(ctx context.Context, group []tile, size int64, shown map[int64]bool, out *findings) {
	whole := group[0]
	index, width := last(max(whole.level, 0), size)
	if whole.width = perTile; whole.index == index {
		whole.width = width
	}
	full, _, err := readTile(ctx, h, whole)
	if err != nil {
		return // told by the walk
	}
	var ends []int
	if whole.level < 0 {
		if ends, err = splitBundle(full, whole.width, nil); err != nil {
			return // told by the walk
		}
	}
	for _, t := range group {
		n := 32 * t.width
		if t.level < 0 {
			n = ends[t.width-1]
		}
		raw, err := h.read(ctx, t.path(), maxBundle)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil && !missing(err):
			out.cannot("%s: %v", t.path(), err)
		case n <= len(full) && bytes.Equal(raw, full[:n]):
		case t.level <= 0 && shown[t.index*perTile+int64(t.width)]:
			out.add(Damage, "partial", t.path(), "is not the beginning of %s, and the log has shown a tree that ends with it; a wider one is there, so it may be removed", whole.path())
		default:
			out.add(Leftover, "partial", t.path(), "is not the beginning of %s: of a write that was interrupted; it may be removed", whole.path())
		}
	}
}
