package auditor

// A process that dies before each step of writing, and one that comes after it:
// no cosignature is ever without its entries, and the log is followed to its end.

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

var errDied = errors.New("the process died here")

// TestCrashAtEveryStep dies before the first step, then before the second, and so
// on until nothing is left to die at; every time another process opens what is on
// the disk. What died reports nothing, so it can have answered nothing.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grow(200)
	if err := r.round(); err != nil {
		t.Fatal(err)
	}
	for _, more := range []int{60, 300} { // over one boundary of a tile, and over two
		r.grow(more)
		size := int64(r.log.Size())
		steps := 0
		for n := 1; r.size() < size; n++ {
			left := n
			r.dir.testBeforeStep = func(string) error {
				if left--; left <= 0 {
					return errDied
				}
				return nil
			}
			r.use(r.dir)
			before := r.size()
			err := r.round()
			died := errors.Is(err, errDied)
			if err != nil && !died {
				t.Fatal(err)
			}
			if died && r.size() != before && left < -1 {
				t.Errorf("it went on after it died")
			}
			r.dir.testBeforeStep = nil
			r.restart()
			r.verify()
			steps = n
		}
		if steps < 12 {
			t.Errorf("it died at %d steps only", steps)
		}
		if r.size() != size {
			t.Errorf("cosigned %d of %d", r.size(), size)
		}
	}
}

// TestDeletedIndex: what is beside the mirror is made anew from it, and a name
// that was taken is still taken.
func TestDeletedIndex(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grow(600)
	if err := r.round(); err != nil {
		t.Fatal(err)
	}
	// Some entries are stored for a checkpoint that is pending, and of no other use.
	r.grow(300)
	r.want(r.addCheckpoint(600), 200)
	p := r.push(600, 900)
	p.packs = p.packs[:1]
	r.want(r.addEntries(p.body()), 202)

	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		os.Remove(filepath.Join(r.dir.Path, indexFile+suffix))
	}
	r.use(must(OpenDir(context.Background(), r.dir.Path)))
	r.verify()
	file := must(os.ReadFile(filepath.Join(r.a.books[origin].mirror.dir, "checkpoint")))
	if string(file) != r.get("/"+c2sp.OriginHash(origin)+"/checkpoint").body {
		t.Errorf("the mirror's checkpoint file is\n%s", file)
	}
	if list := must(r.dir.Standings(context.Background())); list[0].Next != 600 || list[0].Pending != 600 {
		t.Errorf("%+v", list[0])
	}
	r.log.Upload(uploadOf("demo-7.tar.gz", "another content"))
	var found *FindingError
	if err := r.round(); !errors.As(err, &found) || found.Kind != KindSecondDigest || *found.First != 7 {
		t.Errorf("%v", err)
	}
}

// TestChangedMirror: bytes that the disk has changed are not cosigned.
func TestChangedMirror(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grow(300)
	if err := r.round(); err != nil {
		t.Fatal(err)
	}
	// While it runs: a tile below the edge, of which the next checkpoint's root is made.
	full := filepath.Join(r.a.books[origin].mirror.dir, "tile/1/000.p/1")
	hashes := must(os.ReadFile(full))
	hashes[5] ^= 1
	if err := os.WriteFile(full, hashes, 0o644); err != nil {
		t.Fatal(err)
	}
	r.grow(300)
	r.clock.add(time.Second)
	src := newSource(r.url)
	if _, err := r.a.round(context.Background(), must(r.a.book(context.Background(), origin)), src); err == nil || r.size() != 300 {
		t.Errorf("with a changed tile it cosigned %d: %v", r.size(), err)
	}
	src.http.CloseIdleConnections()
	hashes[5] ^= 1
	for _, file := range must(filepath.Glob(filepath.Dir(full) + "/*")) { // as wide as it is by now
		raw := must(os.ReadFile(file))
		copy(raw, hashes)
		if err := os.WriteFile(file, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.round(); err != nil {
		t.Fatal(err)
	}
	tile := filepath.Join(r.a.books[origin].mirror.dir, "tile/0/002.p/88")
	raw := must(os.ReadFile(tile))
	raw[0] ^= 1
	if err := os.WriteFile(tile, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	d := must(OpenDir(context.Background(), r.dir.Path))
	if _, err := New(context.Background(), Config{Dir: d}); err == nil {
		t.Error("it starts with a mirror that does not hash to what it cosigned")
	}
	raw[0] ^= 1
	if err := os.WriteFile(tile, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	r.use(d)
	r.verify()
}
