package evillog

// Lies in tiles and bundles, and what a server can do to its readers over HTTP
// without saying anything about the log at all.

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// A Resource is one kind of what the log serves.
type Resource string

const (
	Checkpoint Resource = "checkpoint"
	Tiles      Resource = "tiles"   // of hashes
	Bundles    Resource = "bundles" // of entries
	Proofs     Resource = "proofs"  // GET /v1/proof
	Everything Resource = "everything"
)

// has reports whether r asks for the resource.
func (res Resource) has(r *http.Request) bool {
	name := strings.TrimPrefix(r.URL.Path, "/")
	entries := strings.HasPrefix(name, "tile/entries/")
	switch res {
	case Checkpoint:
		return name == "checkpoint"
	case Tiles:
		return strings.HasPrefix(name, "tile/") && !entries
	case Bundles:
		return entries
	case Proofs:
		return name == "v1/proof"
	}
	return true
}

type bodyKey struct{}

// withBody carries the true answer to who distorts it.
func withBody(ctx context.Context, body []byte) context.Context {
	return context.WithValue(ctx, bodyKey{}, body)
}

func trueBody(r *http.Request) []byte { b, _ := r.Context().Value(bodyKey{}).([]byte); return b }

// Answer lets f answer all requests for a resource.
func (l *Log) Answer(res Resource, f http.HandlerFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wire[res] = f
}

// Status answers with this status and an error page.
func (l *Log) Status(res Resource, code int) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) { http.Error(w, http.StatusText(code), code) })
}

// RetryAfter answers with this status and asks to come back after d.
func (l *Log) RetryAfter(res Resource, code int, d time.Duration) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", fmt.Sprint(int64(d/time.Second)))
		w.WriteHeader(code)
	})
}

// HTML answers 200 with a web page, as captive portals do.
func (l *Log) HTML(res Resource) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.Write([]byte("<!DOCTYPE html>\n<html><body><h1>Welcome to the hotel</h1>\n\n</body></html>\n"))
	})
}

// Replace answers with this body.
func (l *Log) Replace(res Resource, body []byte) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) { w.Write(body) })
}

// Redirect sends readers to another address, where the true answer is.
func (l *Log) Redirect(res Resource) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("moved") {
			w.Write(trueBody(r))
			return
		}
		http.Redirect(w, r, r.URL.Path+"?moved", http.StatusFound)
	})
}

// Endless answers with a body that does not end.
func (l *Log) Endless(res Resource) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) {
		chunk := bytes.Repeat([]byte{0}, 64<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
}

// Trickle answers with the true body, one byte in 100 ms, and then goes on.
func (l *Log) Trickle(res Resource) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) {
		body := trueBody(r)
		for i := 0; ; i++ {
			b := byte('x')
			if i < len(body) {
				b = body[i]
			}
			if _, err := w.Write([]byte{b}); err != nil {
				return
			}
			http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}

// Hang takes requests and never answers.
func (l *Log) Hang(res Resource) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
}

// Drop closes the connection without a word.
func (l *Log) Drop(res Resource) {
	l.Answer(res, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
}

// BreakOff announces the true length and sends half of it.
func (l *Log) BreakOff(res Resource) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) {
		body := trueBody(r)
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body[:len(body)/2])
		panic(http.ErrAbortHandler)
	})
}

// HugeHeader sends 4 MiB of headers before the true answer.
func (l *Log) HugeHeader(res Resource) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) {
		for i := range 64 {
			w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 64<<10))
		}
		w.Write(trueBody(r))
	})
}

// Gzip sends the true answer compressed, asked or not: that is legal.
func (l *Log) Gzip(res Resource) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) {
		body := trueBody(r)
		if body == nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.Write(compress(body))
	})
}

// GzipBomb sends 1 GiB of zeros in about 1 MiB.
func (l *Log) GzipBomb(res Resource) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		for range 64 {
			if _, err := w.Write(bombMember()); err != nil {
				return
			}
		}
	})
}

// bombMember is 16 MiB of zeros; gzip members can be put one after another.
var bombMember = sync.OnceValue(func() []byte { return compress(make([]byte, 16<<20)) })

func compress(b []byte) []byte {
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	zw.Write(b)
	zw.Close()
	return z.Bytes()
}

// Encoding claims a Content-Encoding that the true answer does not have.
func (l *Log) Encoding(res Resource, name string) {
	l.Answer(res, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", name)
		w.Write(trueBody(r))
	})
}

// TileBytes changes each tile of hashes; nil stands for one that is not there.
func (l *Log) TileBytes(f func(c2sp.Tile, []byte) []byte) {
	l.change(func(ls *lies) { ls.tile = append(ls.tile, f) })
}

// TileLength serves tiles that are n bytes too long, or too short.
func (l *Log) TileLength(n int) {
	l.TileBytes(func(_ c2sp.Tile, b []byte) []byte {
		if b == nil {
			return nil
		}
		return append(bytes.Clone(b), make([]byte, max(n, 0))...)[:max(len(b)+n, 0)]
	})
}

// GarbageTiles serves tiles of the right length that are of no tree.
func (l *Log) GarbageTiles() {
	l.TileBytes(func(t c2sp.Tile, b []byte) []byte {
		for i := range len(b) / 32 {
			h := sha256.Sum256(b[32*i : 32*i+32])
			copy(b[32*i:], h[:])
		}
		return b
	})
}

// OneBit flips one bit in each tile at level 0, as a bad disk does.
func (l *Log) OneBit() {
	l.TileBytes(func(t c2sp.Tile, b []byte) []byte {
		if t.Level == 0 && len(b) > 0 {
			b[0] ^= 1
		}
		return b
	})
}

// FullForPartial answers requests for partial tiles with 256 hashes.
func (l *Log) FullForPartial() {
	l.TileBytes(func(t c2sp.Tile, b []byte) []byte {
		if b == nil {
			return nil
		}
		return append(bytes.Clone(b), make([]byte, 32*c2sp.TileWidth-len(b))...)
	})
}

// NoPartials has no partial tiles and bundles any more: legal where the full
// ones are there (c2sp.org/tlog-tiles, "Partial Tiles").
func (l *Log) NoPartials() {
	l.change(func(ls *lies) {
		ls.tile = append(ls.tile, func(t c2sp.Tile, b []byte) []byte {
			if t.Width < c2sp.TileWidth && t.Level == 0 {
				return nil
			}
			return b
		})
	})
}

// BundleBytes changes each bundle; nil: as it is. The first change that is not
// nil counts.
func (l *Log) BundleBytes(f func(t c2sp.Tile, entries [][]byte) []byte) {
	l.change(func(ls *lies) { ls.bundle = append(ls.bundle, f) })
}

// WrongLeaf serves other bytes for a leaf than are in the tree.
func (l *Log) WrongLeaf(index uint64, leaf []byte) {
	l.entries(func(first uint64, entries [][]byte) [][]byte {
		if index >= first && index < first+uint64(len(entries)) {
			entries[index-first] = leaf
		}
		return entries
	})
}

// SwapLeaves serves two leaves in each other's place.
func (l *Log) SwapLeaves(i, j uint64) {
	a, b := l.Leaf(i), l.Leaf(j)
	l.entries(func(first uint64, entries [][]byte) [][]byte {
		if i >= first && i < first+uint64(len(entries)) {
			entries[i-first] = b
		}
		if j >= first && j < first+uint64(len(entries)) {
			entries[j-first] = a
		}
		return entries
	})
}

// MoreEntries puts n more entries into each bundle; fewer, if n is negative.
func (l *Log) MoreEntries(n int) {
	l.entries(func(_ uint64, entries [][]byte) [][]byte {
		for range n {
			entries = append(entries, []byte("leftover"))
		}
		return entries[:len(entries)+min(n, 0)]
	})
}

// Entries makes each bundle n entries long.
func (l *Log) Entries(n int) {
	l.entries(func(_ uint64, entries [][]byte) [][]byte {
		for len(entries) < n {
			entries = append(entries, []byte("more"))
		}
		return entries[:n]
	})
}

// entries is BundleBytes for the list of leaves.
func (l *Log) entries(f func(first uint64, entries [][]byte) [][]byte) {
	l.BundleBytes(func(t c2sp.Tile, entries [][]byte) []byte {
		if entries == nil {
			return nil
		}
		return encodeBundle(f(t.Index*c2sp.TileWidth, append([][]byte(nil), entries...)))
	})
}

// LongEntry gives the last entry of each bundle a length past its end.
func (l *Log) LongEntry() {
	l.BundleBytes(func(_ c2sp.Tile, entries [][]byte) []byte {
		if len(entries) == 0 {
			return nil
		}
		last := len(entries) - 1
		b := binary.BigEndian.AppendUint16(encodeBundle(entries[:last]), 65535)
		return append(b, entries[last]...)
	})
}
