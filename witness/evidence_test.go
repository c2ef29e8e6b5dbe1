package witness

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
)

// proven reads an evidence file as a stranger does, who has the log's key alone.
func proven(t *testing.T, l *testLog, file string) (first, second c2sp.Checkpoint) {
	t.Helper()
	policy, err := c2sp.ParsePolicy([]byte("log " + l.signer.Key().String() + "\nquorum none\n"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := c2sp.ParseEvidence([]byte(file))
	if err != nil {
		t.Fatalf("%v:\n%s", err, file)
	}
	var notes []c2sp.Checkpoint
	if err := e.VerifyFork(func(note []byte) (c2sp.Checkpoint, error) {
		v, err := policy.VerifyLog(note)
		if err != nil {
			return c2sp.Checkpoint{}, err
		}
		notes = append(notes, v.Checkpoint)
		return v.Checkpoint, nil
	}); err != nil {
		t.Fatalf("%v:\n%s", err, file)
	}
	if strings.Contains(file, "did not verify") || strings.Contains(file, "does not verify") {
		t.Errorf("evidence must say what contradicts, not that something failed:\n%s", file)
	}
	return notes[0], notes[1]
}

// get asks with a header.
func (r *rig) get(path, header, value string) answer {
	req := httptest.NewRequest("GET", path, nil)
	req.Header.Set(header, value)
	rec := httptest.NewRecorder()
	r.h.ServeHTTP(rec, req)
	return answer{rec.Code, rec.Header(), rec.Body.String()}
}

// TestEvidenceIsPublished: what was refused can be read by anyone, for ever, and
// convinces with the log's key alone; see portbook evidence verify.
func TestEvidenceIsPublished(t *testing.T) { eachStore(t, evidenceIsPublished) }

func evidenceIsPublished(t *testing.T, r *rig) {
	if a := r.must(r.get("/evidence/", "Accept", "*/*"), 200); a.body != `{"witness":"witness.example/w1","evidence":[]}`+"\n" || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("%s %v", a.body, a.header)
	}
	if a := r.must(r.get("/evidence/", "Accept", "text/html,*/*"), 200); !strings.Contains(a.body, "None: no log has shown this witness two histories") {
		t.Error(a.body)
	}
	r.must(r.post(r.log.request(0, 6)), 200)
	evil := r.log.evil(3)
	if a := r.must(r.post(evil.request(6, 11)), 422); !strings.Contains(a.body, "a tree of size 11 that does not begin with the tree of size 6 it signed before") {
		t.Error(a.body)
	}
	if a := r.must(r.post(evil.request(6, 6)), 422); !strings.Contains(a.body, "two different trees of size 6") {
		t.Error(a.body)
	}
	r.restart()

	var list struct {
		Evidence []struct {
			File, Log, Claim, Seen  string
			First_Size, Second_Size uint64
		}
	}
	if err := json.Unmarshal([]byte(r.must(r.get("/evidence/", "Accept", ""), 200).body), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Evidence) != 2 {
		t.Fatalf("%+v", list)
	}
	for i, want := range []struct {
		claim         string
		first, second c2sp.Checkpoint
	}{
		{c2sp.ClaimSameSize, r.log.checkpoint(6), evil.checkpoint(6)}, // the newest first
		{c2sp.ClaimInconsistent, r.log.checkpoint(6), evil.checkpoint(11)},
	} {
		e := list.Evidence[i]
		if e.Claim != want.claim || e.Log != r.log.origin || e.First_Size != want.first.Size || e.Second_Size != want.second.Size || e.Seen != "2026-11-20T12:00:00Z" {
			t.Errorf("%+v", e)
		}
		a := r.must(r.do("GET", "/evidence/"+e.File, nil), 200)
		if first, second := proven(t, r.log, a.body); first.Root != want.first.Root || second.Root != want.second.Root {
			t.Errorf("%s is about other trees:\n%s", e.File, a.body)
		}
		if !strings.Contains(a.body, "\n# ") || !strings.Contains(a.body, r.log.signer.Key().String()+"\n") || !strings.Contains(a.body, "witness.example/w1 ") {
			t.Errorf("it does not say whose key it needs, or lacks our cosignature:\n%s", a.body)
		}
		if h := a.header; h.Get("Content-Type") != "text/plain; charset=utf-8" || !strings.Contains(h.Get("Cache-Control"), "immutable") || h.Get("ETag") == "" {
			t.Errorf("%v", h)
		}
		if again := r.get("/evidence/"+e.File, "If-None-Match", a.header.Get("ETag")); again.status != http.StatusNotModified || again.body != "" {
			t.Errorf("status %d for a file that the client has", again.status)
		}
	}
	if a := r.must(r.get("/evidence/", "Accept", "text/html"), 200); !strings.Contains(a.body, `<a href="1.txt">`) || !strings.Contains(a.body, "size 11, which does not begin with its size 6") ||
		!strings.Contains(a.header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Error(a.body, a.header)
	}
	for _, name := range []string{"3.txt", "0.txt", "-1.txt", "01.txt", "1", "1.html", "+1.txt", "x.txt", "1.txt/", "checkpoint", "99999999999999999999.txt", "%31.txt%00"} {
		r.must(r.do("GET", "/evidence/"+name, nil), 404)
	}
	for _, m := range []string{"POST", "HEAD", "PUT", "DELETE"} {
		r.must(r.do(m, "/evidence/", nil), 405)
		r.must(r.do(m, "/evidence/1.txt", nil), 405)
	}
	for _, bad := range []string{"x", "0", "-1", "1.5", "99999999999999999999"} {
		r.must(r.do("GET", "/evidence/?before="+bad, nil), 400)
	}
	// What is published stays what it is.
	for _, q := range []string{"DELETE FROM fork", "UPDATE fork SET theirs = ours"} {
		if _, err := r.dir.Store.write.Exec(q); err == nil {
			t.Errorf("%s: done", q)
		}
	}
}

// TestEvidenceFromProofs: the proof that a forked log sends by itself convicts
// it, from every size to every size; unless the smaller is a power of two, where
// a proof leaves out what would.
func TestEvidenceFromProofs(t *testing.T) { eachStore(t, evidenceFromProofs) }

func evidenceFromProofs(t *testing.T, r *rig) {
	const fork = 3
	for m := uint64(fork + 1); m < 18; m++ {
		for _, n := range []uint64{m + 1, m + 2, 31, 32, 33} {
			l := newLog(t, fmt.Sprintf("example.com/%d-%d", m, n))
			r.trust(l)
			r.must(r.post(l.request(0, m)), 200)
			evil := l.evil(fork)
			r.must(r.post(evil.request(m, n)), 422)
			forks, err := r.dir.Store.Forks(t.Context(), l.origin)
			want := 1
			if m&(m-1) == 0 {
				want = 0
			}
			if err != nil || len(forks) != want {
				t.Errorf("from %d to %d: %d pieces of evidence, want %d (%v)", m, n, len(forks), want, err)
			}
			for _, f := range forks {
				if a, b := proven(t, l, r.do("GET", "/evidence/"+f.Name(), nil).body); a.Root != l.tree.root(m) || b.Root != evil.tree.root(n) {
					t.Errorf("from %d to %d: about other trees", m, n)
				}
			}
			r.must(r.post(l.request(m, n)), 200) // the honest history goes on
		}
	}
}

// TestGarbageIsNoEvidence: whatever a stranger makes of what an honest log has
// signed, nothing is held against that log.
func TestGarbageIsNoEvidence(t *testing.T) {
	r := newRig(t)
	r.must(r.post(r.log.request(0, 13)), 200)
	rnd := rand.New(rand.NewPCG(1, 2))
	evil := r.log.evil(3) // its hashes, without its signatures
	old := uint64(13)
	for range 1500 {
		n := 1 + rnd.Uint64N(40)
		from := old
		if rnd.IntN(4) == 0 {
			from = rnd.Uint64N(n + 1)
		}
		var proof [][32]byte
		if from > 0 && from < n {
			proof = slices.Clone([]*testLog{r.log, evil}[rnd.IntN(2)].tree.consistency(from, n))
		}
		switch rnd.IntN(5) {
		case 0:
			proof = append(proof, [32]byte{})
		case 1:
			if len(proof) > 0 {
				proof[rnd.IntN(len(proof))][rnd.IntN(32)] ^= 1 << rnd.IntN(8)
			}
		case 2:
			if len(proof) > 0 {
				proof = proof[1:]
			}
		case 3:
			rnd.Shuffle(len(proof), func(i, j int) { proof[i], proof[j] = proof[j], proof[i] })
		}
		if a := r.post(body(from, proof, r.log.note(r.log.checkpoint(n)))); a.status == 200 {
			old = n
		}
		r.do("POST", "/add-checkpoint", body(from, proof, newLog(t, r.log.origin).note(evil.checkpoint(n)))) // not its key
	}
	// An impossible tree of size 0 is refused, and no fork: nobody can read its note as a checkpoint.
	r.must(r.post(body(0, nil, r.log.note(c2sp.Checkpoint{Origin: r.log.origin}))), 409)
	other := newLog(t, "example.com/empty")
	r.trust(other)
	r.must(r.post(other.request(0, 0)), 200)
	r.must(r.post(body(0, nil, other.note(c2sp.Checkpoint{Origin: other.origin}))), 422)
	for _, l := range []*testLog{r.log, other} {
		if forks, err := r.dir.Store.Forks(t.Context(), l.origin); err != nil || len(forks) != 0 {
			t.Errorf("%s: %d pieces of evidence (%v)", l.origin, len(forks), err)
		}
	}
}

// TestEvidenceIsKeptBeforeTheRefusal: what could not be kept is not answered as
// a refusal; the log has to ask again.
func TestEvidenceIsKeptBeforeTheRefusal(t *testing.T) {
	r := newRig(t)
	r.must(r.post(r.log.request(0, 6)), 200)
	if _, err := r.dir.Store.write.Exec(`CREATE TRIGGER full BEFORE INSERT ON fork BEGIN SELECT raise(ABORT, 'disk full'); END`); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{6, 11} {
		r.must(r.post(r.log.evil(3).request(6, n)), 500)
	}
	if _, err := r.dir.Store.write.Exec(`DROP TRIGGER full`); err != nil {
		t.Fatal(err)
	}
	r.must(r.post(r.log.evil(3).request(6, 11)), 422)
	other, err := OpenStore(r.dir.Store.path) // as another process sees the disk
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if forks, err := other.Forks(context.Background(), r.log.origin); err != nil || len(forks) != 1 {
		t.Errorf("%d (%v)", len(forks), err)
	}
}

// TestEvidenceIsBounded: a log that signs the largest notes there can be does
// not fill the disk, and what is kept of them is still a file that can be read.
func TestEvidenceIsBounded(t *testing.T) { eachStore(t, evidenceIsBounded) }

func evidenceIsBounded(t *testing.T, r *rig) {
	fat := func(l *testLog, n uint64) []byte {
		cp := l.checkpoint(n)
		cp.Extensions = slices.Repeat([]string{"x"}, (MaxBody-2000)/2) // quoted, it is twice as long
		return l.note(cp)
	}
	r.must(r.post(body(0, nil, fat(r.log, 100))), 200)
	evil := r.log.evil(3)
	for n := uint64(101); n < 107; n++ {
		r.must(r.post(body(100, evil.tree.consistency(100, n), fat(evil, n))), 422)
	}
	forks, err := r.dir.Store.Forks(t.Context(), r.log.origin)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, f := range forks {
		total += len(f.Ours) + len(f.Theirs)
	}
	if len(forks) < 3 || total > maxForkBytes {
		t.Errorf("%d pieces of %d bytes kept", len(forks), total)
	}
	a := r.must(r.do("GET", "/evidence/"+forks[0].Name(), nil), 200)
	if len(a.body) < 1<<20+1<<19 {
		t.Errorf("a file of %d bytes tests no bound", len(a.body))
	}
	proven(t, r.log, a.body)
}

// TestEvidenceIsListedInParts: a list is bounded, and leads to the rest.
func TestEvidenceIsListedInParts(t *testing.T) { eachStore(t, evidenceIsListedInParts) }

func evidenceIsListedInParts(t *testing.T, r *rig) {
	for i := range 2 {
		l := newLog(t, fmt.Sprintf("example.com/%d", i))
		r.trust(l)
		r.must(r.post(l.request(0, 100)), 200)
		for n := uint64(101); n < 180; n++ {
			r.must(r.do("POST", "/add-checkpoint", l.evil(3).request(100, n)), 422)
		}
	}
	seen := map[string]bool{}
	pages := 0
	for next := "/evidence/"; next != ""; pages++ {
		var list struct {
			Evidence []struct{ File string }
			Next     string
		}
		if err := json.Unmarshal([]byte(r.must(r.do("GET", next, nil), 200).body), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Evidence) > listedEvidence {
			t.Errorf("%d on one page", len(list.Evidence))
		}
		for _, e := range list.Evidence {
			if seen[e.File] {
				t.Errorf("%s is listed twice", e.File)
			}
			seen[e.File] = true
		}
		if next = ""; list.Next != "" {
			next = "/evidence/" + list.Next
		}
	}
	if len(seen) != 2*79 || pages != 2 {
		t.Errorf("%d files on %d pages", len(seen), pages)
	}
}
