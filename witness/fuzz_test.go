package witness

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// FuzzAddCheckpoint sends arbitrary bytes to a witness that has cosigned size 5
// of one log and nothing of another. Nothing may panic; a 200 must be a
// checkpoint that the log really signed, of the tree it has; and the state moves
// exactly with the 200s.
func FuzzAddCheckpoint(f *testing.F) {
	ctx := context.Background()
	clk := &clock{t: noon}
	dir, err := CreateDir(ctx, filepath.Join(f.TempDir(), "w"), "witness.example/w1", noon.Add(-time.Hour))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { dir.Close() })
	r := &rig{t: f, clock: clk, log: seededLog(f, "example.com/log", 1), signed: map[string]map[uint64][32]byte{}}
	r.use(dir)
	r.trust(r.log)
	fresh := seededLog(f, "example.com/fresh", 2)
	r.trust(fresh)
	r.must(r.post(r.log.request(0, 5)), 200)

	evil := r.log.evil(3)
	mixed := c2sp.Signature{Name: r.log.origin, KeyID: 1, Sig: make([]byte, 64)}
	for _, b := range [][]byte{
		r.log.request(5, 8), r.log.request(5, 5), r.log.request(0, 8), r.log.request(8, 9), fresh.request(0, 0), fresh.request(2, 5),
		evil.request(5, 5), evil.request(5, 8), seededLog(f, "example.com/unknown", 3).request(0, 1),
		body(9, nil, r.log.note(r.log.checkpoint(5))), body(0, make([][32]byte, 2), fresh.note(fresh.checkpoint(3))),
		body(5, r.log.tree.consistency(5, 8), r.log.note(r.log.checkpoint(8), mixed)),
		[]byte("old 5\n\n"), []byte("old 05\n"), nil,
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &rig{t: t, dir: r.dir, w: r.w, h: r.h, clock: r.clock, log: r.log, signed: r.signed}
		a := r.post(b) // checks state, signature and read API
		switch a.status {
		case 200:
			_, note, _ := bytes.Cut(b, []byte("\n\n"))
			n, _ := c2sp.ParseNote(note)
			cp, err := c2sp.ParseCheckpoint(n.Text)
			if err != nil {
				t.Fatal(err)
			}
			// The fuzzer has no key: it can only send what the logs signed above.
			if l := map[string]*testLog{r.log.origin: r.log, fresh.origin: fresh}[cp.Origin]; l == nil || cp.Root != l.tree.root(cp.Size) {
				t.Errorf("cosigned %+v", cp)
			}
		case 400, 403, 404, 409, 413, 422:
		default:
			t.Errorf("status %d: %s", a.status, a.body)
		}
	})
}

// seededLog is a log whose key is the same in every process of a fuzz run, so
// that one worker's finds mean the same to another.
func seededLog(t testing.TB, origin string, seed byte) *testLog {
	t.Helper()
	s, err := c2sp.ParseSKey(seededSKey(origin, seed))
	if err != nil {
		t.Fatal(err)
	}
	return &testLog{origin, s, newTree(origin, 0)}
}
