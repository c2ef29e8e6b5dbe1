package witness

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// notesOf reads a statement: the note under each log.
func notesOf(t *testing.T, statement string) map[string]string {
	t.Helper()
	notes, log := map[string]string{}, ""
	for line := range strings.Lines(statement) {
		if origin, ok := strings.CutPrefix(line, "log "); ok {
			log = strings.TrimSuffix(origin, "\n")
			notes[log] = ""
		} else if rest, ok := strings.CutPrefix(line, "| "); ok {
			notes[log] += rest
		}
	}
	return notes
}

// TestRetired: a witness that has ended signs nothing more, by no way and under
// no program, without its keys and after a restart; what it signed last stays
// to be read.
func TestRetired(t *testing.T) {
	r, path := marked(t)
	store := r.dir.Store
	r.trust(newLog(t, "example.com/quiet"))
	r.must(r.post(r.log.request(0, 5)), 200)
	r.must(r.do("GET", "/retirement", nil), 404)
	if err := store.WriteStatement(t.Context(), &bytes.Buffer{}); err == nil {
		t.Error("a statement of a witness that serves")
	}
	for _, bad := range []string{"", "two\nlines", "an \x1b escape", strings.Repeat("x", 501), "\xff"} {
		if _, err := store.Retire(t.Context(), bad, noon); err == nil {
			t.Errorf("reason %q is taken", bad)
		}
	}
	reference := []byte(r.do("GET", "/"+c2sp.OriginHash(r.log.origin)+"/checkpoint", nil).body)
	r.must(r.do("POST", "/sign-subtree", r.log.subtreeRequest(0, 4, 5, reference)), 200)
	if _, err := store.write.Exec("VACUUM INTO ?", store.path+".old"); err != nil {
		t.Fatal(err)
	}

	// Its clock is wrong: the end is not before what it signed.
	end, err := store.Retire(t.Context(), "moved to witness.example/w2", noon.Add(-10*time.Minute))
	if err != nil || !end.Time.Equal(noon) || end.Reason != "moved to witness.example/w2" {
		t.Fatalf("%+v %v", end, err)
	}
	if again, err := store.Retire(t.Context(), "another reason", noon.Add(time.Hour)); err != nil || *again != *end {
		t.Errorf("retired twice: %+v %v", again, err)
	}
	r.clock.set(noon.Add(time.Minute))
	var statement string
	gone := func(when string) {
		t.Helper()
		for what, a := range map[string]answer{
			"the next checkpoint": r.post(r.log.request(5, 8)), "the same": r.post(r.log.request(5, 5)), "of a log without any": r.post(newLog(t, "example.com/quiet").request(0, 1)),
			"a subtree": r.do("POST", "/sign-subtree", r.log.subtreeRequest(0, 4, 5, reference)),
		} {
			if a.status != 410 || !strings.Contains(a.body, "retired at 2026-11-20T12:00:00Z") || !strings.Contains(a.body, "moved to witness.example/w2") || strings.Contains(a.body, "\u2014 ") {
				t.Errorf("%s, %s: %d %s", when, what, a.status, a.body)
			}
		}
		if page := r.must(r.do("GET", "/", nil), 200).body; !strings.Contains(page, "<strong>Retired.</strong>") || !strings.Contains(page, "moved to witness.example/w2") || !strings.Contains(page, `href="retirement"`) {
			t.Errorf("%s: %s", when, page)
		}
		if got := r.do("GET", "/"+c2sp.OriginHash(r.log.origin)+"/checkpoint", nil); got.body != string(reference) {
			t.Errorf("%s: the last checkpoint is %d %s", when, got.status, got.body)
		}
		a := r.must(r.do("GET", "/retirement", nil), 200)
		if statement != "" && a.body != statement {
			t.Errorf("%s: another statement", when)
		}
		statement = a.body
	}
	gone("at once")
	notes := notesOf(t, statement)
	if len(notes) != 2 || notes[r.log.origin] != string(reference) || notes["example.com/quiet"] != "" {
		t.Errorf("%q", notes)
	}
	for _, line := range []string{"witness witness.example/w1\n", "retired 2026-11-20T12:00:00Z\n", "reason moved to witness.example/w2\n", "key " + r.w.Keys()[0].String() + "\n", "key " + r.w.Keys()[1].String() + "\n"} {
		if strings.Count(statement, line) != 1 {
			t.Errorf("not once: %s", line)
		}
	}

	// The database refuses by itself, whatever program has it open with the key.
	for _, q := range []string{"UPDATE head SET time = time + 1", "INSERT INTO head SELECT 'example.com/quiet', size, root, time, note FROM head", "INSERT INTO head SELECT 'example.com/quiet', size, root, time, note FROM head WHERE true ON CONFLICT DO NOTHING",
		"DELETE FROM retirement", "UPDATE retirement SET at = 1", "INSERT OR REPLACE INTO retirement VALUES (1, 1, 'x')"} {
		if _, err := store.write.Exec(q); err == nil {
			t.Errorf("%s: done", q)
		}
	}
	// Keys that are still there are not taken up again.
	r.restart()
	if r.dir.Signer != nil || r.dir.MLDSA != nil || len(r.w.signers) != 0 {
		t.Error("a retired witness has its keys in memory")
	}
	gone("after a restart")
	if err := errors.Join(os.Remove(filepath.Join(r.dir.Path, KeyFile)), os.Remove(filepath.Join(r.dir.Path, MLDSAKeyFile))); err != nil {
		t.Fatal(err)
	}
	r.restart()
	gone("without keys")
	if err := r.dir.Store.UseMark(t.Context(), path); err != nil {
		t.Error(err)
	}
	if err := r.dir.Store.Close(); err != nil {
		t.Fatal(err)
	}
	// A copy from before does not bring it back.
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
	if err := old.UseMark(t.Context(), path); !errors.Is(err, ErrOldState) {
		t.Errorf("%v, want %v", err, ErrOldState)
	}
}

// anotherProcess has the state of a rig open beside it.
func anotherProcess(t *testing.T, r *rig) *Store {
	t.Helper()
	s, err := OpenStoreOf(r.dir.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if s.postgres {
		path := filepath.Join(t.TempDir(), "mark")
		if err := s.CreateMark(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if err := s.UseMark(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); s.ready(t.Context()) != nil; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(s.ready(t.Context()))
			}
		}
	}
	return s
}

// TestRetiredUnderLoad: from the moment at which the end is on the disk no
// signature leaves, also of a server that was not told.
func TestRetiredUnderLoad(t *testing.T) { eachStore(t, testRetiredUnderLoad) }

func testRetiredUnderLoad(t *testing.T, r *rig) {
	other := anotherProcess(t, r)
	var logs []*testLog
	for _, origin := range []string{"example.com/a", "example.com/b", "example.com/c", "example.com/d"} {
		l := newLog(t, origin)
		r.trust(l)
		logs = append(logs, l)
	}
	var mu sync.Mutex
	ended := false
	enough := make(chan struct{}, 1000)
	var wg sync.WaitGroup
	for _, l := range logs {
		wg.Go(func() {
			for n := uint64(0); n < 10_000; n++ {
				mu.Lock()
				after := ended
				mu.Unlock()
				switch a := r.do("POST", "/add-checkpoint", l.request(n, n+1)); {
				case a.status == 200 && after:
					t.Errorf("%s: size %d was signed after the end", l.origin, n+1)
				case a.status == 410:
					return
				case a.status != 200:
					t.Errorf("%s: %d %s", l.origin, a.status, a.body)
					return
				}
				select {
				case enough <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 40 {
		<-enough
	}
	if _, err := other.Retire(t.Context(), "enough", noon.Add(time.Hour)); err != nil {
		t.Error(err)
	}
	mu.Lock()
	ended = true
	mu.Unlock()
	wg.Wait()
	var statement bytes.Buffer
	if err := other.WriteStatement(t.Context(), &statement); err != nil {
		t.Fatal(err)
	}
	for _, l := range logs {
		if h := r.head(l.origin); notesOf(t, statement.String())[l.origin] != string(h.Note) {
			t.Errorf("%s: the statement is not about the last checkpoint, of size %d", l.origin, h.Size)
		}
	}
}
