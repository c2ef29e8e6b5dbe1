package logserver

// The index of a log, offline: it follows from the tiles, so it can be compared
// with them and made anew. Nothing is built from tiles
// that are not what the published checkpoint says.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// IndexDigest says what a uniqueness index holds, without its content: Sum is
// SHA-256 over its rows in ascending order of their keys, each the 32 bytes of
// the key and the index of the entry that has it, in 8 bytes, big-endian.
type IndexDigest struct {
	Size int64 // entries [0, Size) are in it
	Rows int64
	Sum  [32]byte
}

// ErrNoIndex says that a log has no uniqueness index yet, or not one of this
// version: serving the log makes it.
var ErrNoIndex = errors.New("no uniqueness index")

// DigestIndex sums up the uniqueness rows of the log in dir as the index on disk
// has them, which may be served meanwhile: what it still has in memory is not in.
// A row is a key that some entry is unique under, and the entry that the index
// says has it.
func DigestIndex(ctx context.Context, dir string) (d IndexDigest, err error) {
	var x *index
	var damage *indexDamage
	for range 10 { // a run may be merged away while we read
		x, err = readIndex(filepath.Join(dir, indexDir))
		if !errors.As(err, &damage) {
			break
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errOtherVersion) {
		return d, ErrNoIndex
	}
	if err != nil {
		return d, fmt.Errorf("index: %w", withoutPath(err))
	}
	defer x.closeRuns()
	d.Size = int64(x.size())
	t := tree{ctx: ctx, src: directory(filepath.Join(dir, engineDir)), size: d.Size}
	x.tree = func(size int64) tree { at := t; at.size = size; return at }
	x.readUpTo(func() (uint64, error) { return integratedSize(ctx, dir, uint64(d.Size)) })
	rows := rowSorter{most: rowsInMemory}
	defer rows.close()
	var adding sync.Mutex // held while rows is added to
	one := func(i uint64) error {
		e, err := x.entryAt(int64(i))
		if errors.Is(err, entry.ErrVersion) {
			return nil
		}
		if err != nil {
			return err
		}
		key, _, err := slotKey(e)
		if err != nil {
			return err
		}
		r, err := indexRows{x}.row(key)
		if err != nil || r == nil || r.index != i {
			return err
		}
		adding.Lock()
		defer adding.Unlock()
		return rows.add(digestRow(binary.BigEndian.AppendUint64(key[:], i)))
	}
	errs := make([]error, runtime.GOMAXPROCS(0))
	var working sync.WaitGroup
	var next atomic.Int64 // bundle
	for w := range errs {
		working.Go(func() {
			for n := next.Add(1) - 1; n*tileWidth < d.Size && errs[w] == nil; n = next.Add(1) - 1 {
				errs[w] = ctx.Err()
				for i := n * tileWidth; i < min((n+1)*tileWidth, d.Size) && errs[w] == nil; i++ {
					errs[w] = one(uint64(i))
				}
			}
		})
	}
	working.Wait()
	if err := errors.Join(errs...); err != nil {
		return d, err
	}
	h := sha256.New()
	if err := rows.sorted(func(r digestRow) { d.Rows++; h.Write(r[:]) }); err != nil {
		return d, err
	}
	h.Sum(d.Sum[:0])
	return d, nil
}

// digestRow is a key and, big-endian, the index of the entry that has it.
type digestRow [32 + 8]byte

func (r digestRow) compare(o digestRow) int { return bytes.Compare(r[:], o[:]) }

// rowsInMemory are 10 MiB.
const rowsInMemory = 1 << 18

// rowSorter sorts rows by their keys in bounded memory: what is more goes to a
// temporary file without a name, in sorted parts.
type rowSorter struct {
	most  int // rows in memory
	rows  []digestRow
	file  *os.File // nil: none is needed yet
	parts []*bufio.Reader
	end   int64 // of the file
}

func (s *rowSorter) add(r digestRow) error {
	if len(s.rows) < s.most {
		s.rows = append(s.rows, r)
		return nil
	}
	if err := s.spill(); err != nil {
		return fmt.Errorf("%w: temporary file in %s: %w", ErrStorage, os.TempDir(), withoutPath(err))
	}
	s.rows = append(s.rows[:0], r)
	return nil
}

func (s *rowSorter) spill() (err error) {
	if s.file == nil {
		if s.file, err = os.CreateTemp("", "portbook-index-*"); err != nil {
			return err
		}
		if err := os.Remove(s.file.Name()); err != nil {
			return err
		}
	}
	slices.SortFunc(s.rows, digestRow.compare)
	raw := make([]byte, 0, len(s.rows)*len(digestRow{}))
	for _, r := range s.rows {
		raw = append(raw, r[:]...)
	}
	if _, err := s.file.WriteAt(raw, s.end); err != nil {
		return err
	}
	s.parts = append(s.parts, bufio.NewReaderSize(io.NewSectionReader(s.file, s.end, int64(len(raw))), 16<<10))
	s.end += int64(len(raw))
	return nil
}

// sorted calls do with every row, in order, once.
func (s *rowSorter) sorted(do func(digestRow)) error {
	slices.SortFunc(s.rows, digestRow.compare)
	heads := make([]*digestRow, len(s.parts)) // the next of each part; nil: it has ended
	next := func(i int) error {
		heads[i] = new(digestRow)
		_, err := io.ReadFull(s.parts[i], heads[i][:])
		if err == io.EOF {
			heads[i], err = nil, nil
		}
		return err
	}
	for i := range s.parts {
		if err := next(i); err != nil {
			return err
		}
	}
	for rest := s.rows; ; {
		least, from := (*digestRow)(nil), -1
		if len(rest) > 0 {
			least = &rest[0]
		}
		for i, head := range heads { // few: one for 262 144 rows
			if head != nil && (least == nil || head.compare(*least) < 0) {
				least, from = head, i
			}
		}
		switch {
		case least == nil:
			return nil
		case from < 0:
			do(*least)
			rest = rest[1:]
			continue
		}
		do(*least)
		if err := next(from); err != nil {
			return err
		}
	}
}

func (s *rowSorter) close() {
	if s.file != nil {
		s.file.Close() // and with it it is gone
	}
}

// integratedSize is the size of the tree whose partial bundles are there.
func integratedSize(ctx context.Context, dir string, least uint64) (uint64, error) {
	raw, err := os.ReadFile(filepath.Join(dir, engineDir, ".state", "treeState"))
	if err != nil {
		return 0, err
	}
	var state struct {
		Size uint64 `json:"size"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return 0, fmt.Errorf("%w: tree state: %w", errUnreadable, err)
	}
	return max(state.Size, least), nil
}

// RebuildIndex makes the indexes of the log in dir anew from its tiles. No
// server may run on it meanwhile. The old ones stay until the new ones are
// whole, so that it can be interrupted, and run again, at any time. progress may
// be nil.
func RebuildIndex(ctx context.Context, dir string, progress func(what string, done, size int64)) (IndexDigest, error) {
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	id, err := ReadIdentity(dir)
	if err != nil {
		return IndexDigest{}, err
	}
	lock, err := lockFile(filepath.Join(dir, lockFileName))
	if err != nil {
		return IndexDigest{}, err
	}
	defer lock.release()
	t, err := publishedTree(ctx, dir, id)
	if err != nil {
		return IndexDigest{}, err
	}
	progress("verified", t.size, t.size)
	if err := rebuildIndex(ctx, dir, t, progress); err != nil {
		return IndexDigest{}, err
	}
	return DigestIndex(ctx, dir)
}

// publishedTree is the tree of the public checkpoint, after every entry, every
// tile and the root have been compared.
func publishedTree(ctx context.Context, dir string, id Identity) (tree, error) {
	raw, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return tree{}, errors.New("the log has no public checkpoint: there is nothing to build from; serving the log makes it")
	}
	if err != nil {
		return tree{}, fmt.Errorf("%w: public checkpoint: %w", ErrStorage, err)
	}
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return tree{}, fmt.Errorf("%w: public checkpoint: %w", errUnreadable, err)
	}
	t := tree{ctx: ctx, src: directory(filepath.Join(dir, engineDir)), cache: newTileCache()}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return t, fmt.Errorf("%w: public checkpoint: %w", errUnreadable, err)
	}
	if err := (&keyring{origin: id.Origin, keys: id.Keys}).signed(note); err != nil || cp.Origin != id.Origin {
		return t, fmt.Errorf("%w: public checkpoint: it is not this log's: %w", errUnreadable, errors.Join(err, errOtherOrigin(cp.Origin, id.Origin)))
	}
	t.size = int64(cp.Size)
	root, err := t.root()
	if err == nil && root != cp.Root {
		err = fmt.Errorf("%w: the tiles have root %x, the checkpoint says %x", errUnreadable, root, cp.Root)
	}
	if err == nil {
		err = leavesMatchTiles(t, 0)
	}
	if err == nil {
		err = tilesMatchTiles(t, 0)
	}
	if err != nil {
		return t, fmt.Errorf("the tiles are not what the checkpoint says, nothing is built from them: %w; portbook-log audit says what is damaged, portbook-log repair brings it back", err)
	}
	return t, nil
}

func errOtherOrigin(have, want string) error {
	if have == want {
		return nil
	}
	return fmt.Errorf("it is of log %q", have)
}

// rebuilding is the suffix of an index that is not whole yet.
const rebuilding = ".rebuilding"

func rebuildIndex(ctx context.Context, dir string, t tree, progress func(string, int64, int64)) error {
	path := filepath.Join(dir, indexDir+rebuilding)
	if err := os.RemoveAll(path); err != nil { // of one that was interrupted
		return err
	}
	at := func(size int64) tree {
		upTo := t
		upTo.size = size
		return upTo
	}
	x, err := openIndex(path, at, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	x.readUpTo(func() (uint64, error) { return uint64(t.size), nil })
	x.applying.Lock()
	err = x.replay(ctx, t, func(done, size int64) { progress("index", done, size) })
	x.applying.Unlock()
	if err = errors.Join(err, x.close()); err != nil {
		return errors.Join(err, os.RemoveAll(path))
	}
	progress("index", t.size, t.size)
	// Without the old one, and without the new one in its place, the next start
	// makes it.
	if err := os.RemoveAll(filepath.Join(dir, indexDir)); err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(dir, indexDir)); err != nil {
		return err
	}
	return syncDir(dir)
}
