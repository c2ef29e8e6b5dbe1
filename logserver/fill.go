package logserver

// Filling a directory with the tiles of one signed tree. Backup, restore and
// repair are the same work: from the root downwards, each tile and bundle is
// taken from the directory if it is what the tree has, else from elsewhere, and
// nothing is written that does not hash to what is above it. So it does not
// matter who gives the bytes, and it may be interrupted and run again.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"
)

// ErrNotThere says that neither the directory nor the source has what the tree
// needs.
var ErrNotThere = errors.New("not what the tree has")

// Source gives tiles, bundles and a checkpoint by their paths
// (c2sp.org/tlog-tiles). Nothing that it gives is believed unverified.
type Source struct {
	name string
	read func(ctx context.Context, path string, most int) ([]byte, error)
}

// OpenSource opens a mirror, a backup, a log's own directory, or a URL.
func OpenSource(where string) (*Source, error) {
	if strings.HasPrefix(where, "https://") || strings.HasPrefix(where, "http://") {
		u, err := url.Parse(where)
		if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("%q is not a URL without query and fragment", where)
		}
		return webSource(strings.TrimSuffix(where, "/")), nil
	}
	if s, err := os.Stat(where); err != nil {
		return nil, fmt.Errorf("source: %w", err)
	} else if !s.IsDir() {
		return nil, fmt.Errorf("source %s is no directory", where)
	}
	if _, err := os.Stat(filepath.Join(where, engineDir, "tile")); err == nil {
		return ownSource(where), nil
	}
	return &Source{where, func(_ context.Context, path string, most int) ([]byte, error) { return readBounded(where, path, most) }}, nil
}

// ownSource reads a log's own directory, which may be served meanwhile.
func ownSource(dir string) *Source {
	return &Source{dir, func(_ context.Context, path string, most int) ([]byte, error) {
		if path == checkpointFile {
			return readBounded(dir, path, most)
		}
		return readBounded(filepath.Join(dir, engineDir), path, most)
	}}
}

func readBounded(dir, path string, most int) ([]byte, error) {
	f, err := os.Open(filepath.Join(dir, filepath.FromSlash(path)))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return limited(f, most)
}

func limited(r io.Reader, most int) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err == nil && len(raw) > most {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrNotThere, most)
	}
	return raw, err
}

func webSource(base string) *Source {
	client := &http.Client{
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: 8, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true},
	}
	once := func(ctx context.Context, path string, most int) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/"+path, nil)
		if err != nil {
			return nil, err
		}
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		switch res.StatusCode {
		case http.StatusOK:
			return limited(res.Body, most)
		case http.StatusNotFound, http.StatusGone:
			return nil, fs.ErrNotExist
		}
		return nil, fmt.Errorf("%s answered %s", base, res.Status)
	}
	return &Source{base, func(ctx context.Context, path string, most int) (raw []byte, err error) {
		for try := range 4 {
			if try > 0 && !sleep(ctx, time.Duration(try)*300*time.Millisecond) {
				return nil, ctx.Err()
			}
			raw, err = once(ctx, path, most)
			if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotThere) {
				break
			}
		}
		return raw, err
	}}
}

const (
	maxTileBytes   = tileWidth * 32
	maxBundleBytes = tileWidth * (2 + 65535)
)

// tile reads a tile or bundle at its width, cut from the full one where the
// narrower one is gone.
func (s *Source) tile(ctx context.Context, t c2sp.Tile) ([]byte, error) {
	most := maxTileBytes
	if t.Level < 0 {
		most = maxBundleBytes
	}
	raw, err := s.read(ctx, t.Path(), most)
	if err == nil || t.Width == tileWidth || !errors.Is(err, fs.ErrNotExist) {
		return raw, err
	}
	whole := t
	whole.Width = tileWidth
	full, ferr := s.read(ctx, whole.Path(), most)
	if ferr != nil {
		return nil, err
	}
	return cutTile(full, t)
}

// checkpoint is the source's checkpoint, if the log signed it.
func (s *Source) checkpoint(ctx context.Context, own *keyring) (c2sp.Checkpoint, []byte, error) {
	raw, err := s.read(ctx, checkpointFile, c2sp.MaxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return c2sp.Checkpoint{}, nil, fmt.Errorf("%s has no checkpoint", s.name)
	}
	if err != nil {
		return c2sp.Checkpoint{}, nil, fmt.Errorf("%w: checkpoint of %s: %w", ErrStorage, s.name, err)
	}
	cp, err := signedCheckpoint(raw, own)
	if err != nil {
		return cp, nil, fmt.Errorf("checkpoint of %s: %w", s.name, err)
	}
	return cp, raw, nil
}

// signedCheckpoint reads a signed checkpoint of a log.
func signedCheckpoint(raw []byte, own *keyring) (cp c2sp.Checkpoint, err error) {
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return cp, err
	}
	if cp, err = c2sp.ParseCheckpoint(note.Text); err != nil {
		return cp, err
	}
	if cp.Origin != own.origin {
		return cp, fmt.Errorf("it is of log %q, not of %q", cp.Origin, own.origin)
	}
	return cp, own.signed(note)
}

// filler fills one directory with one tree.
type filler struct {
	to       string // holds tile/
	local    *Source
	from     *Source // nil: only to is looked at, and nothing written
	size     int64
	root     [32]byte
	progress func(done, size int64)

	wrote atomic.Int64 // files
	mu    sync.Mutex   // held while progress is told
	done  int64        // guarded by mu; entries
}

// fill makes every tile and bundle of the tree of size and root be in the
// directory to, durably. It returns how many files it wrote.
func fill(ctx context.Context, to string, from *Source, size int64, root [32]byte, progress func(done, size int64)) (int64, error) {
	f := &filler{to: to, from: from, size: size, root: root, progress: progress,
		local: &Source{to, func(_ context.Context, path string, most int) ([]byte, error) { return readBounded(to, path, most) }}}
	edge, err := f.edge(ctx)
	if err != nil {
		return 0, err
	}
	for level := len(edge) - 1; level >= 0; level-- {
		if row := edge[level]; len(row) > 0 {
			index := size >> (level * tileHeight) / tileWidth
			if err := f.below(ctx, level, index, row); err != nil {
				return f.wrote.Load(), err
			}
		}
	}
	if f.wrote.Load() == 0 {
		return 0, nil
	}
	return f.wrote.Load(), syncFileSystem(to)
}

// edge finds the partial tiles at the right edge, by level: together they give
// the root. Each may be the directory's or the source's.
func (f *filler) edge(ctx context.Context) ([][]tlog.Hash, error) {
	var tiles []c2sp.Tile // the top first
	levels := 0
	for level := 0; f.size>>(level*tileHeight) > 0 && level*tileHeight < 63; level++ {
		levels++
		if n := f.size >> (level * tileHeight); n%tileWidth > 0 {
			tiles = append([]c2sp.Tile{{Level: level, Index: uint64(n / tileWidth), Width: int(n % tileWidth)}}, tiles...)
		}
	}
	sources := []*Source{f.local}
	if f.from != nil {
		sources = append(sources, f.from)
	}
	choices := make([][][]byte, len(tiles))
	var problems []error
	for i, t := range tiles {
		for _, s := range sources {
			raw, err := s.tile(ctx, t)
			if err == nil && len(raw) == 32*t.Width {
				choices[i] = append(choices[i], raw)
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNotThere) {
				problems = append(problems, err)
			}
		}
		if len(choices[i]) == 0 {
			if len(problems) > 0 {
				return nil, fmt.Errorf("%w: %s: %w", ErrStorage, t.Path(), errors.Join(problems...))
			}
			return nil, fmt.Errorf("%w: %s is nowhere", ErrNotThere, t.Path())
		}
	}
	pick := make([]int, len(tiles))
	for {
		rows := make([][]tlog.Hash, len(tiles))
		for i := range tiles {
			rows[i] = hashes(choices[i][pick[i]])
		}
		if rootOf(rows) == f.root {
			edge := make([][]tlog.Hash, levels)
			for i, t := range tiles {
				edge[t.Level] = rows[i]
				if err := f.put(t, choices[i][pick[i]]); err != nil {
					return nil, err
				}
			}
			return edge, nil
		}
		i := 0
		for i < len(pick) && pick[i] == len(choices[i])-1 {
			pick[i] = 0
			i++
		}
		if i == len(pick) {
			return nil, fmt.Errorf("%w: no tiles at the right edge give the root %x of size %d", ErrNotThere, f.root, f.size)
		}
		pick[i]++
	}
}

func hashes(raw []byte) []tlog.Hash {
	row := make([]tlog.Hash, len(raw)/32)
	for i := range row {
		copy(row[i][:], raw[i*32:])
	}
	return row
}

// rootOf is the root of the tree whose partial tiles, the top first, are rows.
func rootOf(rows [][]tlog.Hash) [32]byte {
	var peaks []tlog.Hash
	for _, row := range rows {
		for len(row) > 0 {
			n := 1
			for 2*n <= len(row) {
				n *= 2
			}
			peaks = append(peaks, perfect(row[:n]))
			row = row[n:]
		}
	}
	if len(peaks) == 0 {
		return c2sp.EmptyRoot
	}
	h := peaks[len(peaks)-1]
	for i := len(peaks) - 2; i >= 0; i-- {
		h = tlog.NodeHash(peaks[i], h)
	}
	return h
}

// perfect is the root of 2^k hashes.
func perfect(row []tlog.Hash) tlog.Hash {
	if len(row) == 1 {
		return row[0]
	}
	return tlog.NodeHash(perfect(row[:len(row)/2]), perfect(row[len(row)/2:]))
}

// fillWorkers read, hash and write at once.
const fillWorkers = 8

// below goes through what is below a verified tile.
func (f *filler) below(ctx context.Context, level int, index int64, row []tlog.Hash) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if level == 0 {
		return f.bundle(ctx, c2sp.Tile{Level: -1, Index: uint64(index), Width: len(row)}, row)
	}
	one := func(i int) error {
		t := c2sp.Tile{Level: level - 1, Index: uint64(index*tileWidth + int64(i)), Width: tileWidth}
		raw, err := f.find(ctx, t, func(raw []byte) bool { return len(raw) == 32*tileWidth && perfect(hashes(raw)) == row[i] })
		if err != nil {
			return err
		}
		return f.below(ctx, level-1, int64(t.Index), hashes(raw))
	}
	if level > 1 {
		for i := range row {
			if err := one(i); err != nil {
				return err
			}
		}
		return nil
	}
	var next atomic.Int64
	var working sync.WaitGroup
	errs := make([]error, fillWorkers)
	for w := range errs {
		working.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(row)) && errs[w] == nil; i = next.Add(1) - 1 {
				errs[w] = one(int(i))
			}
		})
	}
	working.Wait()
	return errors.Join(errs...)
}

// bundle brings the entries of a tile of leaf hashes.
func (f *filler) bundle(ctx context.Context, t c2sp.Tile, row []tlog.Hash) error {
	_, err := f.find(ctx, t, func(raw []byte) bool {
		leaves, err := c2sp.ParseBundle(raw, t.Width)
		if err != nil {
			return false
		}
		for i, leaf := range leaves {
			if row[i] != entry.LeafHash(leaf) {
				return false
			}
		}
		return true
	})
	if err == nil && f.progress != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.done += int64(len(row))
		f.progress(f.done, f.size)
	}
	return err
}

// find returns what is good of a tile or bundle, the directory's own or the
// source's, which is then written.
func (f *filler) find(ctx context.Context, t c2sp.Tile, good func([]byte) bool) ([]byte, error) {
	raw, err := f.local.tile(ctx, t)
	if err == nil && good(raw) {
		return raw, f.put(t, raw)
	}
	if f.from == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotThere, t.Path())
	}
	raw, err = f.from.tile(ctx, t)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNotThere):
		return nil, fmt.Errorf("%w: %s of %s: %w", ErrStorage, t.Path(), f.from.name, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %s: it is missing or damaged here, and %s does not have it", ErrNotThere, t.Path(), f.from.name)
	case !good(raw):
		return nil, fmt.Errorf("%w: %s: what %s has does not hash to what the tree has", ErrNotThere, t.Path(), f.from.name)
	}
	return raw, f.put(t, raw)
}

// put writes a tile if the directory does not have it so. It is durable once the
// file system has been synced.
func (f *filler) put(t c2sp.Tile, raw []byte) error {
	path := filepath.Join(f.to, filepath.FromSlash(t.Path()))
	if have, err := os.ReadFile(path); err == nil && string(have) == string(raw) || f.from == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(raw)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	f.wrote.Add(1)
	return nil
}

// syncFileSystem makes all that was written to dir's file system durable.
func syncFileSystem(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
