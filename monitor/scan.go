// Scanning: bundles are fetched, hashed and parsed in parallel, put in order,
// and handed on only after their hashes have been proven part of the
// checkpoint's tree. Fetched and verified positions are never confused: what
// is fetched lives in this function alone.

package monitor

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// Source is a log as a monitor reads it; *client.Reader is one.
type Source interface {
	// Checkpoint returns the log's signed checkpoint, unverified.
	Checkpoint(ctx context.Context) ([]byte, error)
	// Bundle returns exactly width leaves, the first at 256·index.
	Bundle(ctx context.Context, index uint64, width int) ([][]byte, error)
	TileReader
	// Inclusion returns a proof built from tiles (RFC 6962 section 2.1.1).
	Inclusion(ctx context.Context, index, size uint64) ([][32]byte, error)
}

// A Leaf is one verified leaf. Entry is nil where Err says why it cannot be
// read (entry.ErrVersion, *entry.SyntaxError, *entry.FieldError).
type Leaf struct {
	Index uint64
	Bytes []byte
	Entry *entry.Entry
	Err   error
}

// ScanOptions tunes [Scan]. Zero values are good ones.
type ScanOptions struct {
	Workers int // bundles fetched, hashed and parsed at once; default 4 a processor
	Chunk   int // bundles verified and handed on at once; default 32 (8 192 leaves, at most 32 MiB)

	// Fetched, if set, is told how far leaves have been fetched: a position
	// for a progress display, from which nothing may be concluded.
	Fetched func(size uint64)
}

const bundleWidth = 256

// Scan reads the leaves from a position up to a verified checkpoint and calls
// fn with each run of leaves once they are proven part of it, in order, from
// one goroutine. The position passed to fn is the one behind those leaves;
// fn may keep it and the leaves. Scan returns the last position that fn
// accepted, and an error that is
//
//   - *InconsistentError where the log serves leaves other than it signed,
//   - fn's own, or
//   - the source's, wrapped, where the log cannot be read.
//
// See TestScanNothingBeforeRoot.
func Scan(ctx context.Context, src Source, from Position, to c2sp.Checkpoint, o ScanOptions, fn func([]Leaf, Position) error) (Position, error) {
	if to.Size < from.Size {
		return from, fmt.Errorf("%w: from %d to %d", errBackwards, from.Size, to.Size)
	}
	if to.Size == from.Size {
		if to.Root != from.Root {
			return from, &InconsistentError{from.Size, to.Size, "another root for the size already verified"}
		}
		return from, nil
	}
	if o.Workers <= 0 {
		o.Workers = 4 * runtime.GOMAXPROCS(0)
	}
	if o.Chunk <= 0 {
		o.Chunk = 32
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	// Each job has its own channel; reading them in order puts the bundles in order.
	type result struct {
		leaves []Leaf
		hashes [][32]byte
		full   [32]byte // root of the bundle, if whole
		whole  bool
		err    error
	}
	type job struct {
		index uint64
		skip  int // leaves of the bundle before from
		width int
		out   chan result
	}
	jobs := make(chan job)
	order := make(chan job, o.Chunk+o.Workers)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer close(jobs)
		defer close(order)
		for i := from.Size / bundleWidth; i*bundleWidth < to.Size; i++ {
			j := job{index: i, width: int(min(bundleWidth, to.Size-i*bundleWidth)), out: make(chan result, 1)}
			if i*bundleWidth < from.Size {
				j.skip = int(from.Size - i*bundleWidth)
			}
			select {
			case order <- j:
			case <-ctx.Done():
				return
			}
			select {
			case jobs <- j:
			case <-ctx.Done():
				return
			}
		}
	}()
	for range o.Workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range jobs {
				var r result
				raw, err := src.Bundle(ctx, j.index, j.width)
				switch {
				case err != nil:
					r.err = fmt.Errorf("read entries from %d: %w", j.index*bundleWidth, err)
				case len(raw) != j.width:
					r.err = fmt.Errorf("read entries from %d: %d entries, must be %d", j.index*bundleWidth, len(raw), j.width)
				default:
					r.leaves = make([]Leaf, 0, j.width-j.skip)
					r.hashes = make([][32]byte, 0, j.width-j.skip)
					for k, b := range raw[j.skip:] {
						l := Leaf{Index: j.index*bundleWidth + uint64(j.skip+k), Bytes: b}
						l.Entry, l.Err = entry.Parse(b)
						r.leaves = append(r.leaves, l)
						r.hashes = append(r.hashes, entry.LeafHash(b))
					}
					if r.whole = len(r.hashes) == bundleWidth; r.whole {
						r.full = perfectRoot(r.hashes)
					}
				}
				j.out <- r
			}
		}()
	}

	done := from.clone()
	ahead := from.clone() // hashed, not yet proven
	var leaves []Leaf
	n := 0
	for {
		var j job
		var ok bool
		select {
		case j, ok = <-order:
		case <-ctx.Done():
			return done, ctx.Err()
		}
		if !ok {
			return done, ctx.Err()
		}
		var r result
		select {
		case r = <-j.out:
		case <-ctx.Done():
			return done, ctx.Err()
		}
		if r.err != nil {
			return done, r.err
		}
		if r.whole {
			ahead.add(r.full, 8)
		} else {
			for _, h := range r.hashes {
				ahead.add(h, 0)
			}
		}
		leaves = append(leaves, r.leaves...)
		n++
		if o.Fetched != nil {
			o.Fetched(ahead.Size)
		}
		if n < o.Chunk && ahead.Size < to.Size {
			continue
		}
		ahead.seal()
		if err := prove(ctx, src, done.Size, ahead, to); err != nil {
			return done, err
		}
		p := ahead.clone()
		if err := fn(leaves, p); err != nil {
			return done, err
		}
		done, leaves, n = p, nil, 0
	}
}

// perfectRoot overwrites hashes, whose number is a power of two, and returns
// their root.
func perfectRoot(hashes [][32]byte) [32]byte {
	for n := len(hashes); n > 1; n /= 2 {
		for i := range n / 2 {
			hashes[i] = nodeHash(&hashes[2*i], &hashes[2*i+1])
		}
	}
	return hashes[0]
}

// prove checks that the tree hashed so far is the checkpoint's, or a prefix of
// it: completed by the log's own tiles it must have the checkpoint's root.
func prove(ctx context.Context, src Source, from uint64, p Position, to c2sp.Checkpoint) error {
	q := p.clone()
	if _, err := newTree(src, to.Size).extend(ctx, &q, to.Size); err != nil {
		return fmt.Errorf("prove that %d entries are a prefix of %d: %w", p.Size, to.Size, err)
	}
	if q.Root != to.Root {
		return &InconsistentError{from, p.Size, "the entries served do not hash to the root of the signed checkpoint"}
	}
	return nil
}
