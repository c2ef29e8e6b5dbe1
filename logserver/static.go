package logserver

// The static half of a log, c2sp.org/tlog-tiles over HTTP: the checkpoint, tiles
// and entry bundles, with conditional requests, byte ranges, HEAD and gzip.
//
// An ETag is a hash of the bytes it stands for, never a file's time: two servers
// of one log, or a log and its mirror, give one name to one content.

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// What caches may do. A private log's answers are for the one who asked.
const (
	cacheForever   = "public, max-age=31536000, immutable"
	cacheAsk       = "no-cache" // keep it, and ask each time
	privateForever = "private, max-age=31536000, immutable"
	privateAsk     = "private, no-cache"
)

// static serves the files of one tile source.
type static struct {
	src     tileSource
	private bool
	// packing bounds how many bundles are compressed at once: a compressor has
	// most of a megabyte.
	packing chan struct{}

	mu     sync.Mutex
	tags   generations[c2sp.Tile, fileTag] // guarded by mu
	packed generations[c2sp.Tile, packed]  // guarded by mu
}

// fileTag is the ETag of a file as it was when somebody hashed it.
type fileTag struct {
	etag string
	info fs.FileInfo
}

// packed is a compressed bundle.
type packed struct {
	of    string // ETag of what was compressed
	etag  string
	bytes []byte
}

const (
	maxTags   = 16384   // in each of two generations, some 300 bytes each
	maxPacked = 8 << 20 // bytes in each of two generations
	packers   = 4
)

func newStatic(src tileSource, private bool) *static {
	return &static{src: src, private: private, packing: make(chan struct{}, packers),
		tags:   generations[c2sp.Tile, fileTag]{limit: maxTags},
		packed: generations[c2sp.Tile, packed]{limit: maxPacked}}
}

// generations is a cache that forgets what was not asked for since half of its
// room was last used up.
type generations[K comparable, V any] struct {
	limit       int // of the weights of one generation
	now, before map[K]V
	weight      int
}

func (g *generations[K, V]) get(k K, weight func(V) int) (V, bool) {
	v, ok := g.now[k]
	if !ok {
		if v, ok = g.before[k]; ok {
			g.put(k, v, weight(v))
		}
	}
	return v, ok
}

func (g *generations[K, V]) put(k K, v V, weight int) {
	if g.now == nil || g.weight+weight > g.limit {
		g.before, g.now, g.weight = g.now, map[K]V{}, 0
	}
	g.now[k] = v
	g.weight += weight
}

// strongTag is the ETag of some bytes.
func strongTag(b []byte) string {
	sum := sha256.Sum256(b)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}

// content is one representation of a tile, or of the checkpoint.
type content struct {
	etag string
	r    io.ReadSeeker
	file *os.File // if r is a file, to be closed
	size int64
	gzip bool
}

func (c content) close() {
	if c.file != nil {
		c.file.Close()
	}
}

func bytesContent(b []byte, etag string) content {
	return content{etag: etag, r: bytes.NewReader(b), size: int64(len(b))}
}

// open finds tile t, at its width. A file that holds exactly what is asked for
// is sent as it is; its bytes are read and checked once.
func (s *static) open(ctx context.Context, t c2sp.Tile) (content, error) {
	dir, ok := s.src.(directory)
	if !ok {
		return s.read(ctx, t)
	}
	f, err := os.Open(string(dir) + "/" + t.Path())
	if errors.Is(err, fs.ErrNotExist) && t.Width < tileWidth {
		return s.read(ctx, t) // cut from the full one
	}
	if err != nil {
		return content{}, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return content{}, err
	}
	s.mu.Lock()
	tag, ok := s.tags.get(t, func(fileTag) int { return 1 })
	s.mu.Unlock()
	if ok && os.SameFile(tag.info, info) && tag.info.Size() == info.Size() && tag.info.ModTime().Equal(info.ModTime()) {
		return content{etag: tag.etag, r: f, file: f, size: info.Size()}, nil
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, c2sp.MaxBundle+1))
	if err != nil {
		return content{}, err
	}
	whole, err := cutTile(raw, t)
	if err != nil {
		return content{}, err
	}
	etag := strongTag(whole)
	if len(whole) == len(raw) { // else the file is not sent as it is
		s.mu.Lock()
		s.tags.put(t, fileTag{etag, info}, 1)
		s.mu.Unlock()
	}
	return bytesContent(whole, etag), nil
}

// newest is open for a log of the given size. Of a partial tile that the log
// has outgrown it gives the beginning of the one that took its place: a killed
// server may have left a narrower file of a batch that was never integrated.
func (s *static) newest(ctx context.Context, t c2sp.Tile, size uint64) (content, error) {
	now := t
	now.Width = int(min(size>>(max(t.Level, 0)*tileHeight)-t.Index*tileWidth, tileWidth))
	if now.Width > t.Width {
		raw, err := readTile(ctx, s.src, now)
		if err == nil {
			if raw, err = cutTile(raw, t); err == nil {
				return bytesContent(raw, strongTag(raw)), nil
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return content{}, err
		}
	}
	return s.open(ctx, t)
}

func (s *static) read(ctx context.Context, t c2sp.Tile) (content, error) {
	raw, err := readTile(ctx, s.src, t)
	if err != nil {
		return content{}, err
	}
	if raw, err = cutTile(raw, t); err != nil {
		return content{}, err
	}
	return bytesContent(raw, strongTag(raw)), nil
}

// pack compresses c, which is tile t, or finds it compressed. It closes c.
func (s *static) pack(ctx context.Context, t c2sp.Tile, c content) (content, error) {
	defer c.close()
	s.mu.Lock()
	p, ok := s.packed.get(t, func(p packed) int { return len(p.bytes) })
	s.mu.Unlock()
	if !ok || p.of != c.etag {
		select {
		case s.packing <- struct{}{}:
			defer func() { <-s.packing }()
		case <-ctx.Done():
			return content{}, ctx.Err()
		}
		raw, err := io.ReadAll(io.LimitReader(c.r, c2sp.MaxBundle))
		if err != nil {
			return content{}, err
		}
		if strongTag(raw) != c.etag {
			return content{}, fmt.Errorf("%w: %s changed while it was read", ErrStorage, t.Path())
		}
		var out bytes.Buffer
		zw := packerPool.Get().(*gzip.Writer)
		defer packerPool.Put(zw)
		zw.Reset(&out)
		if _, err := zw.Write(raw); err != nil {
			return content{}, err
		}
		if err := zw.Close(); err != nil {
			return content{}, err
		}
		p = packed{of: c.etag, etag: strongTag(out.Bytes()), bytes: out.Bytes()}
		s.mu.Lock()
		s.packed.put(t, p, len(p.bytes))
		s.mu.Unlock()
	}
	z := bytesContent(p.bytes, p.etag)
	z.gzip = true
	return z, nil
}

var packerPool = sync.Pool{New: func() any { return gzip.NewWriter(nil) }}

// cutTile cuts what storage has, which may be wider, to the width of t.
func cutTile(raw []byte, t c2sp.Tile) ([]byte, error) {
	if t.Level < 0 {
		cut, err := truncateBundle(raw, t.Width)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", errUnreadable, t.Path(), err)
		}
		return cut, nil
	}
	if len(raw) < t.Width*sha256.Size {
		return nil, fmt.Errorf("%w: %s has %d bytes", errUnreadable, t.Path(), len(raw))
	}
	return raw[:t.Width*sha256.Size], nil
}

// covers reports whether a tree of the given size has tile t, at its width.
func covers(size uint64, t c2sp.Tile) bool {
	level := max(t.Level, 0)
	if level*tileHeight >= 64 {
		return false
	}
	have := size >> (level * tileHeight)
	return t.Index <= have/tileWidth && t.Index*tileWidth+uint64(t.Width) <= have
}

func (l *Log) serveCheckpoint(w http.ResponseWriter, r *http.Request) {
	p := l.Published()
	if p.Note == nil {
		writeProblem(w, problem{Status: http.StatusNotFound, Title: "no checkpoint", Detail: "the log has not published a checkpoint yet"})
		return
	}
	if _, identity := accepts(r.Header); !identity {
		notAcceptable(w)
		return
	}
	cache := cacheAsk
	if l.static.private {
		cache = privateAsk
	}
	serveContent(w, r, "text/plain; charset=utf-8", cache, bytesContent(p.Note, strongTag(p.Note)))
}

// serveTile serves a tile or entry bundle that some published size has. What is
// integrated but not published is not served: after a crash it might be written
// anew, and these answers are cached for ever.
func (l *Log) serveTile(w http.ResponseWriter, r *http.Request) {
	t, err := c2sp.ParseTilePath(strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil || r.URL.RawQuery != "" {
		writeProblem(w, problem{Status: http.StatusNotFound, Title: "not a tile path", Detail: "want /tile/<L>/<N>[.p/<W>] or /tile/entries/<N>[.p/<W>] (c2sp.org/tlog-tiles)"})
		return
	}
	if !covers(l.Published().Size, t) {
		writeProblem(w, problem{Status: http.StatusNotFound, Title: "no such tile", Detail: "no published checkpoint needs it"})
		return
	}
	zip, identity := false, true
	if r.Header["Accept-Encoding"] != nil {
		zip, identity = accepts(r.Header)
	}
	if t.Level >= 0 {
		zip = false // hashes do not shrink
	} else {
		w.Header().Set("Vary", "Accept-Encoding")
	}
	if !zip && !identity {
		notAcceptable(w)
		return
	}
	c, err := l.static.newest(r.Context(), t, l.Published().Size)
	if err == nil && zip {
		c, err = l.static.pack(r.Context(), t, c)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if t.Width == tileWidth { // a partial one may never have been published
			l.cfg.Logger.Error("tile is missing", "path", t.Path())
		}
		writeProblem(w, problem{Status: http.StatusNotFound, Title: "no such tile", Detail: "it is missing from storage"})
		return
	case err != nil:
		if r.Context().Err() == nil {
			l.cfg.Logger.Error("tile cannot be read", "path", t.Path(), "err", err)
		}
		writeProblem(w, problem{Status: http.StatusServiceUnavailable, Title: "storage failed", Detail: "the tile cannot be read now", RetryAfter: retryAfter})
		return
	}
	defer c.close()
	cache := cacheForever
	if l.static.private {
		cache = privateForever
	}
	serveContent(w, r, "application/octet-stream", cache, c)
}

func notAcceptable(w http.ResponseWriter) {
	writeProblem(w, problem{Status: http.StatusNotAcceptable, Title: "not acceptable", Detail: "it exists as it is, and entry bundles with gzip: Accept-Encoding allows neither"})
}

// serveContent answers a GET or HEAD, with its conditions and its range. A range
// is one of the representation that Accept-Encoding chose: with gzip, of the
// compressed bytes, whose ETag it goes by. Of several ranges, or
// other units, it answers none and sends the whole.
func serveContent(w http.ResponseWriter, r *http.Request, contentType, cache string, c content) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", cache)
	h.Set("ETag", c.etag)
	h.Set("X-Content-Type-Options", "nosniff")
	if c.gzip {
		h.Set("Content-Encoding", "gzip")
		h.Set("Content-Length", strconv.FormatInt(c.size, 10)) // net/http leaves it out where there is an encoding
	}
	if ranges := r.Header["Range"]; ranges != nil {
		if len(ranges) != 1 || strings.Contains(ranges[0], ",") || !strings.HasPrefix(ranges[0], "bytes=") {
			r.Header.Del("Range")
		} else {
			w = &rangeProblem{ResponseWriter: w}
		}
	}
	http.ServeContent(w, r, "", time.Time{}, c.r)
}

// rangeProblem says what is wrong with a range as all else is said here.
type rangeProblem struct {
	http.ResponseWriter
	refused bool
}

// WriteHeader implements http.ResponseWriter.
func (w *rangeProblem) WriteHeader(code int) {
	if code != http.StatusRequestedRangeNotSatisfiable {
		w.ResponseWriter.WriteHeader(code)
		return
	}
	w.refused = true
	w.Header().Del("ETag")
	w.Header().Del("Content-Encoding")
	writeProblem(w.ResponseWriter, problem{Status: code, Title: "no such range", Detail: "want bytes=FIRST-LAST inside the file; Content-Range says how long it is"})
}

// Write implements http.ResponseWriter.
func (w *rangeProblem) Write(b []byte) (int, error) {
	if w.refused {
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// accepts reads Accept-Encoding (RFC 9110, 12.5.3): whether gzip is wanted, not
// less than the file as it is; and whether the file as it is will do.
func accepts(h http.Header) (zip, identity bool) {
	if h["Accept-Encoding"] == nil {
		return false, true
	}
	const unset = -1
	gz, plain, star := unset, unset, unset
	for _, line := range h["Accept-Encoding"] {
		for element := range strings.SplitSeq(line, ",") {
			name, params, has := strings.Cut(element, ";")
			q := 1000
			if has {
				if q = quality(params); q < 0 {
					continue
				}
			}
			switch strings.ToLower(strings.Trim(name, " \t")) {
			case "gzip", "x-gzip":
				gz = q
			case "identity":
				plain = q
			case "*":
				star = q
			}
		}
	}
	if gz == unset {
		gz = max(star, 0)
	}
	identity = plain > 0 || plain == unset && star != 0
	return gz > 0 && (gz >= plain || !identity), identity
}

// quality reads a parameter q=0.8 in thousandths, or says -1.
func quality(s string) int {
	s = strings.ToLower(strings.Trim(s, " \t"))
	whole, part, _ := strings.Cut(strings.TrimPrefix(s, "q="), ".")
	if !strings.HasPrefix(s, "q=") || whole != "0" && whole != "1" || len(part) > 3 {
		return -1
	}
	n := 0
	for i := range 3 {
		d := byte('0')
		if i < len(part) {
			d = part[i]
		}
		if d < '0' || d > '9' {
			return -1
		}
		n = n*10 + int(d-'0')
	}
	if whole == "1" {
		if n > 0 {
			return -1
		}
		return 1000
	}
	return n
}
