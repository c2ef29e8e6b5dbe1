package enginetest

import (
	"context"
	"flag"
	"runtime"
	"testing"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
)

var long = flag.Bool("long", false, "run what takes minutes")

func TestMemory(t *testing.T) {
	Run(t, Options{Long: *long, New: func(*testing.T) Place {
		m := new(Memory)
		return func(context.Context) (tessera.Driver, error) { return m, nil }
	}})
}

func TestPOSIX(t *testing.T) {
	Run(t, Options{Long: *long, New: func(t *testing.T) Place {
		dir := t.TempDir()
		return func(ctx context.Context) (tessera.Driver, error) { return posix.New(ctx, posix.Config{Path: dir}) }
	}})
}

// TestSuiteFails makes sure that the suite sees what it is there to see.
func TestSuiteFails(t *testing.T) {
	const size = 300
	m, ref := new(Memory), new(Reference)
	place := func(context.Context) (tessera.Driver, error) { return m, nil }
	l := Open(t, place)
	for i := range size {
		if _, err := l.Add(t.Context(), tessera.NewEntry(Leaf(i)))(); err != nil {
			t.Fatal(err)
		}
		ref.Append(Leaf(i))
	}
	ref.Check(t, l.Reader, size)
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	cut := func(b []byte) []byte { return b[:len(b)-1] }
	more := func(b []byte) []byte { return append(b, 0) }
	for name, liar := range map[string]*liar{
		"a bit of a tile":       {tile: flip},
		"a bit of a bundle":     {bundle: flip},
		"a short tile":          {tile: cut},
		"a short bundle":        {bundle: cut},
		"a long bundle":         {bundle: more},
		"the next index behind": {next: -1},
	} {
		liar.LogReader = l.Reader
		if !fails(t, func(t testing.TB) { ref.Check(t, liar, size) }) {
			t.Errorf("%s: the suite passes", name)
		}
	}
	other := new(Reference)
	for i := range size {
		other.Append(Leaf(size - i))
	}
	if !fails(t, func(t testing.TB) { other.Check(t, l.Reader, size) }) {
		t.Error("other entries: the suite passes")
	}
	if !fails(t, func(t testing.TB) { other.CheckProofs(t, l.Reader, 256, size) }) {
		t.Error("proofs of other entries: the suite passes")
	}
}

// liar reads what is not there.
type liar struct {
	tessera.LogReader
	tile, bundle func([]byte) []byte
	next         int
}

func (l *liar) ReadTile(ctx context.Context, level, index uint64, p uint8) ([]byte, error) {
	b, err := l.LogReader.ReadTile(ctx, level, index, p)
	if l.tile != nil && err == nil {
		b = l.tile(b)
	}
	return b, err
}

func (l *liar) ReadEntryBundle(ctx context.Context, index uint64, p uint8) ([]byte, error) {
	b, err := l.LogReader.ReadEntryBundle(ctx, index, p)
	if l.bundle != nil && err == nil {
		b = l.bundle(b)
	}
	return b, err
}

func (l *liar) NextIndex(ctx context.Context) (uint64, error) {
	n, err := l.LogReader.NextIndex(ctx)
	return uint64(int(n) + l.next), err
}

// fails reports whether a check calls Fatalf or Fatal.
func fails(t *testing.T, check func(testing.TB)) bool {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		check(r)
	}()
	<-done
	return r.failed
}

type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(string, ...any) {
	r.failed = true
	runtime.Goexit()
}

func (r *recorder) Fatal(...any) { r.Fatalf("") }
