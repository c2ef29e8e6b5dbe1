package trillian

import (
	"bytes"
	"context"
	"encoding/binary"
	"io/fs"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// FuzzState: what is read as a state is written as the same bytes.
func FuzzState(f *testing.F) {
	f.Add(state{TreeID: 1, Root: emptyRoot}.marshal())
	f.Add(state{TreeID: -5, Size: 1<<63 + 1, Token: 1<<64 - 1}.marshal())
	f.Add([]byte(`{"tree":"01","size":1,"root":"00","token":1}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseState(raw)
		if err == nil && !bytes.Equal(s.marshal(), raw) {
			t.Fatalf("%q is read as %q", raw, s.marshal())
		}
	})
}

// FuzzEdge: an edge that grows by arbitrary leaves has tlog's root, is the same
// when it is read back from what it emitted, and is refused when a byte of that
// is another.
func FuzzEdge(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint16(2), uint16(3))
	f.Add([]byte("leaf"), uint16(300), uint16(256))
	f.Add([]byte{}, uint16(0), uint16(515))
	f.Fuzz(func(t *testing.T, seed []byte, first, more uint16) {
		store := memory{}
		e := new(edge)
		var stored []tlog.Hash
		for _, to := range []uint64{uint64(first % 700), uint64(first%700) + uint64(more%700)} {
			from := e.size
			emit := func(o Object) { store[o.Name] = o.Content }
			for e.size < to {
				leaf := binary.AppendUvarint(bytes.Clone(seed[:min(len(seed), maxLeaf-10)]), e.size)
				new, err := tlog.StoredHashes(int64(e.size), leaf, hashes(stored))
				if err != nil {
					t.Fatal(err)
				}
				stored = append(stored, new...)
				e.append(leaf, tlog.RecordHash(leaf), emit)
			}
			e.partials(from, emit)
			want, err := tlog.TreeHash(int64(e.size), hashes(stored))
			if err != nil || e.root() != want {
				t.Fatalf("size %d: root %x, want %x (%v)", e.size, e.root(), want[:], err)
			}
			got, err := loadEdge(context.Background(), store, e.size, want)
			if err != nil || got.root() != want || !bytes.Equal(got.bundle, e.bundle) {
				t.Fatalf("size %d, read back: %v", e.size, err)
			}
		}
		wrong := e.root()
		wrong[0] ^= 1
		if _, err := loadEdge(context.Background(), store, e.size, wrong); err == nil {
			t.Fatal("another root is accepted")
		}
	})
}

type hashes []tlog.Hash

func (r hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, n := range indexes {
		out[i] = r[n]
	}
	return out, nil
}

// memory is a Store of which Get is used.
type memory map[string][]byte

func (m memory) Get(_ context.Context, name string) ([]byte, error) {
	if raw, ok := m[name]; ok {
		return raw, nil
	}
	return nil, fs.ErrNotExist
}

func (m memory) Create(context.Context, ...Object) error            { panic("not used") }
func (m memory) Swap(context.Context, string, []byte, []byte) error { panic("not used") }
func (m memory) RemoveAll(context.Context, string) error            { panic("not used") }
