package witness

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		r.must(r.post(r.log.request(n, n+1)), 200)
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
	// The database is ahead of the mark now, which is harmless: the next start
	// takes it, and the log is told the size that was written.
	if got := r.head(r.log.origin).Size; got != 6 {
		t.Errorf("the head is %d", got)
	}
	if err := r.dir.Store.UseMark(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	r.must(r.post(r.log.request(6, 7)), 200)
	if got := said(t, path, id); got != 7 {
		t.Errorf("the mark says %d, want 7", got)
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
	store.mark = nil
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := markRecord(record{id: store.markID(), n: 5}) // goes where 3 stands
	for cut := 0; cut <= markSlot; cut++ {
		torn := append([]byte{}, good...)
		copy(torn[markSlot:markSlot+cut], next[:cut])
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
