package witness

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/fullfile"
)

// marked is a rig whose store has a mark, with the mark's path.
func marked(t *testing.T) (*rig, string) {
	t.Helper()
	r := newRig(t)
	path := filepath.Join(t.TempDir(), "mark")
	if err := r.dir.Store.CreateMark(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := r.dir.Store.UseMark(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return r, path
}

func said(t *testing.T, path, id string) uint64 {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var n uint64
	for i := range 2 {
		if r, ok := parseMark(raw[i*markSlot : (i+1)*markSlot]); ok && r.id == id {
			n = max(n, r.n)
		}
	}
	return n
}

// TestMarkBeforeSignature: when a signature is there, the mark remembers it;
// when the mark cannot be raised, there is no signature.
func TestMarkBeforeSignature(t *testing.T) {
	r, path := marked(t)
	id := r.dir.Store.markID()
	for n := range uint64(5) {
		r.must(r.do("POST", "/add-checkpoint", r.log.request(n, n+1)), 200) // and nobody has read it
		have, err := r.dir.Store.Generation(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := said(t, path, id); got != have || got != n+1 {
			t.Fatalf("after %d signatures the mark says %d, the database %d", n+1, got, have)
		}
	}
	r.must(r.post(r.log.request(3, 9)), 409) // a refusal writes nothing
	if got := said(t, path, id); got != 5 {
		t.Errorf("the mark says %d after a refusal, want 5", got)
	}

	r.dir.Store.mark.file.Close() // as a disk that is gone
	r.must(r.do("POST", "/add-checkpoint", r.log.request(5, 6)), 500)
	// The database is ahead of the mark now: the next start takes it, the mark says
	// so before anything is shown, and the log is told the size that was written.
	if err := r.dir.Store.UseMark(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if got := said(t, path, id); got != 6 {
		t.Errorf("the mark says %d after a start, want 6", got)
	}
	if got := r.head(r.log.origin).Size; got != 6 {
		t.Errorf("the head is %d", got)
	}
	r.must(r.post(r.log.request(6, 7)), 200)
	if got := said(t, path, id); got != 7 {
		t.Errorf("the mark says %d, want 7", got)
	}
}

// fill makes the disk of a mark a full one.
func fill(t *testing.T, path string) (mend func()) {
	t.Helper()
	back, err := fullfile.Break(path)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := back(); err != nil {
			t.Fatal(err)
		}
	}
}

// counted is how often the database was written.
func counted(t *testing.T, s *Store) uint64 {
	t.Helper()
	n, err := s.Generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestNothingAboveTheMarkIsShown: while the mark cannot be written no signature
// that it does not know leaves by any way, and the database goes no further ahead
// of it; when it can again, all goes on by itself.
func TestNothingAboveTheMarkIsShown(t *testing.T) {
	eachStore(t, func(t *testing.T, r *rig) {
		store := r.dir.Store
		if !store.postgres {
			r.withMark(r.dir)
		}
		checkpoint := "/" + c2sp.OriginHash(r.log.origin) + "/checkpoint"
		other := newLog(t, "example.com/other")
		r.trust(other)
		r.must(r.post(r.log.request(0, 5)), 200)
		reference := []byte(r.do("GET", checkpoint, nil).body)
		mend := fill(t, r.mark)
		before := counted(t, store)
		r.must(r.do("POST", "/add-checkpoint", r.log.request(5, 7)), 500)
		if got := counted(t, store); got != before+1 {
			t.Fatalf("%d writes, want %d", got, before+1)
		}
		for what, a := range map[string]answer{
			"the read API":           r.do("GET", checkpoint, nil),
			"the same again":         r.do("POST", "/add-checkpoint", r.log.request(7, 7)),
			"the next":               r.do("POST", "/add-checkpoint", r.log.request(7, 8)),
			"another log's":          r.do("POST", "/add-checkpoint", other.request(0, 1)),
			"a fork from it":         r.do("POST", "/add-checkpoint", r.log.evil(6).request(7, 7)),
			"a subtree":              r.do("POST", "/sign-subtree", r.log.subtreeRequest(0, 4, 5, reference)),
			"the status page":        r.do("GET", "/", nil),
			"the statement, if ever": r.do("GET", "/retirement", nil),
		} {
			if a.status != 500 && what != "the statement, if ever" || strings.Contains(a.body, "— ") {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
		if got := counted(t, store); got != before+1 {
			t.Errorf("%d writes, and the mark stands at %d", got, before)
		}
		if got := said(t, r.mark, store.markID()); got > before {
			t.Fatalf("the mark says %d: it was not broken", got)
		}
		if forks, err := store.Forks(t.Context(), r.log.origin); err != nil || len(forks) != 0 {
			t.Errorf("evidence with the signature was published: %d %v", len(forks), err)
		}
		if err := store.Ping(t.Context()); !errors.Is(err, ErrMarkFails) || !strings.Contains(err.Error(), "the disk of "+r.mark+" ") || !strings.Contains(err.Error(), "no space") {
			t.Errorf("%v, want %v with its file and cause", err, ErrMarkFails)
		}
		for what, call := range map[string]func() error{
			"Log":    func() error { _, err := store.Log(t.Context(), r.log.origin); return err },
			"Logs":   func() error { _, err := store.Logs(t.Context()); return err },
			"Retire": func() error { _, err := store.Retire(t.Context(), "x", noon); return err },
		} {
			if err := call(); !errors.Is(err, ErrMarkFails) {
				t.Errorf("%s: %v, want %v", what, err, ErrMarkFails)
			}
		}

		mend()
		a := r.must(r.do("GET", checkpoint, nil), 200)
		if got := said(t, r.mark, store.markID()); got != before+1 || !strings.Contains(a.body, "\n7\n") {
			t.Errorf("the mark says %d of %d, and the read API serves %s", got, before+1, a.body)
		}
		if err := store.Ping(t.Context()); err != nil {
			t.Error(err)
		}
		r.must(r.post(r.log.request(7, 7)), 200)
		r.must(r.post(r.log.request(7, 8)), 200)
	})
}

// TestAnotherInstanceAboveTheMark: what one instance has written and died over is
// shown by another one once its own mark knows it.
func TestAnotherInstanceAboveTheMark(t *testing.T) {
	r := newPostgresRig(t, newDatabase(t))
	second := r.another()
	r.must(r.post(r.log.request(0, 5)), 200)
	mend, fill2 := fill(t, r.mark), fill(t, second.mark)
	defer fill2()
	second.must(second.do("POST", "/add-checkpoint", r.log.request(5, 7)), 500)
	checkpoint := "/" + c2sp.OriginHash(r.log.origin) + "/checkpoint"
	for _, one := range []*rig{r, second} {
		if a := one.do("GET", checkpoint, nil); a.status != 500 || strings.Contains(a.body, "— ") {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	r.must(r.do("POST", "/add-checkpoint", r.log.request(7, 7)), 500)
	mend()
	r.must(r.do("GET", checkpoint, nil), 200)
	if got, want := said(t, r.mark, r.dir.Store.markID()), counted(t, r.dir.Store); got != want {
		t.Errorf("it was shown, and the mark says %d of %d", got, want)
	}
}

// TestStartAfterAFailedMark: a witness that dies, or loses its mark's disk, between
// database and mark. After the start the mark knows what was written, by serve or
// by retire, before anybody sees it; a copy from before is an old one.
func TestStartAfterAFailedMark(t *testing.T) {
	for what, write := range map[string]func(r *rig){
		"a head": func(r *rig) { r.must(r.do("POST", "/add-checkpoint", r.log.request(5, 7)), 500) },
		"a retirement": func(r *rig) {
			for range 2 { // the second time it is in the database
				if end, err := r.dir.Store.Retire(context.Background(), "x", noon); !errors.Is(err, ErrMarkFails) {
					r.t.Errorf("%+v %v, want %v", end, err, ErrMarkFails)
				}
			}
			if a := r.do("GET", "/retirement", nil); a.status == 200 {
				r.t.Errorf("a statement that an old copy undoes: %s", a.body)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			r, path := marked(t)
			r.mark = path
			r.must(r.post(r.log.request(0, 5)), 200)
			store := r.dir.Store
			if _, err := store.write.Exec("VACUUM INTO ?", store.path+".old"); err != nil {
				t.Fatal(err)
			}
			mend := fill(t, path)
			r.t = t
			write(r)
			if n, have := said(t, path, store.markID()), counted(t, store); n != 1 || have != 2 {
				t.Fatalf("the mark says %d, the database %d", n, have)
			}
			mend()
			r.restart()
			if got := said(t, path, store.markID()); got != 2 {
				t.Errorf("after the start the mark says %d, want 2", got)
			}
			if what == "a retirement" {
				if end, err := r.dir.Store.Retire(t.Context(), "x", noon); err != nil || end.Reason != "x" {
					t.Errorf("%+v %v", end, err)
				}
			} else {
				r.must(r.post(r.log.request(7, 8)), 200) // a healthy witness is not refused
			}
			if err := r.dir.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(store.path+".old", 0o600); err != nil {
				t.Fatal(err)
			}
			old, err := OpenStore(store.path + ".old")
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			if err := old.UseMark(t.Context(), path); !errors.Is(err, ErrOldState) {
				t.Errorf("%v, want %v", err, ErrOldState)
			}
		})
	}
}

// TestOldCopyIsRefused: a database that was copied away and put back.
func TestOldCopyIsRefused(t *testing.T) {
	r, path := marked(t)
	r.must(r.post(r.log.request(0, 5)), 200)
	store := r.dir.Store
	if _, err := store.write.Exec("VACUUM INTO ?", store.path+".old"); err != nil {
		t.Fatal(err)
	}
	r.must(r.post(r.log.request(5, 6)), 200)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		os.Remove(store.path + suffix)
	}
	if err := errors.Join(os.Rename(store.path+".old", store.path), os.Chmod(store.path, 0o600)); err != nil {
		t.Fatal(err)
	}
	old, err := OpenStore(store.path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := old.UseMark(t.Context(), path); !errors.Is(err, ErrOldState) || !strings.Contains(err.Error(), "begin a new one") {
		t.Errorf("%v, want %v with its repair", err, ErrOldState)
	}
}

// TestMarkSurvivesTornWrites: whatever a crash leaves of the record being
// written, the other one counts; without either there is no mark.
func TestMarkSurvivesTornWrites(t *testing.T) {
	r, path := marked(t)
	for n := range uint64(4) {
		r.must(r.post(r.log.request(n, n+1)), 200)
	}
	store := r.dir.Store
	if err := store.mark.close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next, at := markRecord(record{id: store.markID(), n: 5}), (1-store.mark.slot)*markSlot // goes where 3 stands
	for cut := 0; cut <= markSlot; cut++ {
		torn := append([]byte{}, good...)
		copy(torn[at:at+cut], next[:cut])
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := openMark(path, store.markID())
		if err != nil {
			t.Fatalf("torn after %d bytes: %v", cut, err)
		}
		if m.said.n != 4 && m.said.n != 5 {
			t.Errorf("torn after %d bytes: it says %d", cut, m.said.n)
		}
		m.close()
	}
	store.mark = nil
	for at := range good { // one damaged byte never makes it say anything else
		bad := append([]byte{}, good...)
		bad[at] ^= 0x20
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := openMark(path, store.markID())
		if err != nil {
			t.Fatalf("byte %d: %v", at, err)
		}
		if m.said.n != 4 && m.said.n != 3 {
			t.Errorf("byte %d damaged: it says %d", at, m.said.n)
		}
		m.close()
	}
	for name, raw := range map[string][]byte{"empty": nil, "zeros": make([]byte, 2*markSlot), "short": good[:700]} {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := store.UseMark(context.Background(), path); !errors.Is(err, ErrNoMark) {
			t.Errorf("%s: %v, want %v", name, err, ErrNoMark)
		}
	}
}

// TestMarkInUse: a second program that takes the mark is refused, as if there
// were none.
func TestMarkInUse(t *testing.T) {
	r, path := marked(t)
	if m, err := openMark(path, r.dir.Store.markID()); err == nil || !strings.Contains(err.Error(), "in use") || !errors.Is(err, ErrNoMark) {
		t.Errorf("%v, %v", m, err)
	}
}
