package enginetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"io/fs"
	"sync"

	"github.com/transparency-dev/tessera"
	"golang.org/x/mod/sumdb/tlog"
)

// Memory is a storage engine in memory: every tile is computed when it is read.
// It outlives its contexts, not the process. The zero value is an empty log.
type Memory struct {
	mu     sync.Mutex
	leaves [][]byte    // guarded by mu
	stored []tlog.Hash // guarded by mu; as tlog numbers them
}

// Appender implements what tessera.NewAppender asks of a driver.
func (m *Memory) Appender(ctx context.Context, opts *tessera.AppendOptions) (*tessera.Appender, tessera.LogReader, error) {
	r := &memoryReader{m: m}
	r.publish = opts.CheckpointPublisher(noCheckpoint{r}, nil)
	add := func(_ context.Context, e *tessera.Entry) tessera.IndexFuture {
		var index uint64
		err := ctx.Err()
		if err == nil {
			index, err = m.append(e.Data())
		}
		return func() (tessera.Index, error) { return tessera.Index{Index: index}, err }
	}
	return &tessera.Appender{Add: add}, r, nil
}

func (m *Memory) append(leaf []byte) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.leaves)
	hashes, err := tlog.StoredHashes(int64(n), leaf, storedHashes(m.stored))
	if err != nil {
		return 0, err
	}
	m.leaves, m.stored = append(m.leaves, bytes.Clone(leaf)), append(m.stored, hashes...)
	return uint64(n), nil
}

type storedHashes []tlog.Hash

// ReadHashes implements tlog.HashReader.
func (s storedHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		if n >= int64(len(s)) {
			return nil, fs.ErrNotExist
		}
		out[i] = s[n]
	}
	return out, nil
}

type memoryReader struct {
	m       *Memory
	publish func(context.Context, uint64, []byte) ([]byte, error)
}

// ReadCheckpoint implements tessera.LogReader: a new one each time.
func (r *memoryReader) ReadCheckpoint(ctx context.Context) ([]byte, error) {
	r.m.mu.Lock()
	size := int64(len(r.m.leaves))
	root, err := tlog.TreeHash(size, storedHashes(r.m.stored))
	r.m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return r.publish(ctx, uint64(size), root[:])
}

// noCheckpoint is what Tessera's publisher sees: it asks for the checkpoint
// before, and there is none.
type noCheckpoint struct{ *memoryReader }

// ReadCheckpoint implements tessera.LogReader.
func (noCheckpoint) ReadCheckpoint(context.Context) ([]byte, error) { return nil, fs.ErrNotExist }

// ReadTile implements tessera.LogReader.
func (r *memoryReader) ReadTile(_ context.Context, level, index uint64, p uint8) ([]byte, error) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	width := int(p)
	if p == 0 {
		width = 256
	}
	if have := uint64(len(r.m.leaves)) >> (8 * level); index*256+uint64(width) > have {
		return nil, fs.ErrNotExist
	}
	return tlog.ReadTileData(tlog.Tile{H: 8, L: int(level), N: int64(index), W: width}, storedHashes(r.m.stored))
}

// ReadEntryBundle implements tessera.LogReader.
func (r *memoryReader) ReadEntryBundle(_ context.Context, index uint64, p uint8) ([]byte, error) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	width := uint64(p)
	if p == 0 {
		width = 256
	}
	if index*256+width > uint64(len(r.m.leaves)) {
		return nil, fs.ErrNotExist
	}
	var out []byte
	for _, leaf := range r.m.leaves[index*256 : index*256+width] {
		out = binary.BigEndian.AppendUint16(out, uint16(len(leaf)))
		out = append(out, leaf...)
	}
	return out, nil
}

// NextIndex implements tessera.LogReader.
func (r *memoryReader) NextIndex(ctx context.Context) (uint64, error) { return r.IntegratedSize(ctx) }

// IntegratedSize implements tessera.LogReader.
func (r *memoryReader) IntegratedSize(context.Context) (uint64, error) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return uint64(len(r.m.leaves)), nil
}
