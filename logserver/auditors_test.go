package logserver

// The log as a client of auditing mirrors: publishing never waits for one, what
// it signs is attached afterwards, and nothing that one says is believed.

import (
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	auditing "github.com/portbook/portbook/witness/auditor"
)

// withAuditor adds a real auditor to the rig and its policy. The log has to push:
// the auditor follows nothing.
func (r *rig) withAuditor(name string) *rigWitness {
	r.t.Helper()
	ctx := r.t.Context()
	dir, err := auditing.CreateDir(ctx, filepath.Join(r.t.TempDir(), name), "auditor.example/"+name, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := dir.Store.AddLog(ctx, r.signer.Key().Name(), []*c2sp.Key{r.signer.Key()}); err != nil {
		r.t.Fatal(err)
	}
	a, err := auditing.New(ctx, auditing.Config{Dir: dir})
	if err != nil {
		r.t.Fatal(err)
	}
	w := &rigWitness{name: name, key: dir.Keys()[0], real: a.Handler()}
	w.server = httptest.NewServer(w)
	r.t.Cleanup(func() { w.server.Close(); dir.Close() })
	r.policy = fmt.Sprintf("auditor %s %s %s\n%s", name, w.key, w.server.URL, r.policy)
	return w
}

// proof is the checkpoint of the proof that GetProof builds of an entry now.
func proofNote(t *testing.T, l *Log, index uint64) *c2sp.Note {
	t.Helper()
	left := maxAnswer
	proofs, err := l.view(t.Context()).proofs(&pb.GetProofRequest{By: &pb.GetProofRequest_Index{Index: index}}, &left)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c2sp.ParseProof(proofs[0].Proof)
	if err != nil {
		t.Fatal(err)
	}
	note, err := c2sp.ParseNote(p.Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	return note
}

// lines counts the lines on a note that say they are by k; each must verify.
func lines(t *testing.T, n *c2sp.Note, k *c2sp.Key) (count int) {
	t.Helper()
	for _, s := range n.Sigs {
		if k.Matches(s) {
			count++
			if _, err := k.VerifyNote(n.Text, s); err != nil {
				t.Error(err)
			}
		}
	}
	return count
}

// TestLyingAuditor: whatever an auditor does, uploads are acknowledged, nothing
// of it is published, and once it is honest its cosignature is attached.
func TestLyingAuditor(t *testing.T) {
	t.Parallel()
	sample := newRig(t, 2, 1)
	bad := badWitnesses(t, sample)
	says := func(kind, body string, status int) func(*rigWitness) {
		return func(w *rigWitness) {
			w.pretend(func(rw http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if strings.HasSuffix(r.URL.Path, "add-checkpoint") {
					return // 200
				}
				rw.Header().Set("Content-Type", kind)
				rw.WriteHeader(status)
				io.WriteString(rw, body)
			})
		}
	}
	const info = "text/x.tlog.mirror-info"
	for name, lie := range map[string]func(*rigWitness){
		"202 for ever, without progress": says(info, "1\n0\n\n", 202),
		"409 for ever":                   says(info, "1\n0\n\n", 409),
		"409 of another size":            says(info, "77\n0\n\n", 409),
		"409 without its three lines":    says(info, "1\n0\n", 409),
		"409 with a huge entry":          says(info, "1\n9223372036854775807\n\n", 409),
		"409 with a size that is none":   says(info, "1\n-1\n\n", 409),
		"422":                            says("text/plain", "no", 422),
	} {
		bad[name] = lie
	}
	for name, lie := range bad {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 2, 1)
			a := r.withAuditor("a1")
			lie(a)
			l := r.ready()
			r.must(l, nth(1))
			asked := func() bool { return a.asked.Load() > 0 }
			waitFor(t, "the auditor to be asked", asked)
			r.must(l, nth(2))
			note, err := c2sp.ParseNote(l.Published().Note)
			if err != nil {
				t.Fatal(err)
			}
			lines(t, note, a.key) // what is there verifies
			a.pretend(nil)
			waitFor(t, "its cosignature on the proof of an early entry", func() bool { return lines(t, proofNote(t, l, 0), a.key) == 1 })
			waitFor(t, "its cosignature on the public checkpoint", func() bool {
				note, err := c2sp.ParseNote(l.Published().Note)
				return err == nil && lines(t, note, a.key) == 1
			})
			// "the client MUST ignore any cosignatures from unknown keys": its second
			// key is not in the policy.
			for _, s := range proofNote(t, l, 0).Sigs {
				if s.Name == a.key.Name() && !a.key.Matches(s) {
					t.Error("a line of a key that the policy does not name is published")
				}
			}
		})
	}
}

// TestAuditorsCatchUp: an auditor that begins late gets the whole log, in several
// requests, and one that knew more than is good gets what it lacks.
func TestAuditorsCatchUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 1)
	a, b := r.withAuditor("a1"), r.withAuditor("a2")
	b.down()
	l := r.ready()
	var submitting sync.WaitGroup
	for n := range 600 {
		submitting.Go(func() {
			if _, err := r.submit(l, nth(n)); err != nil {
				t.Error(err)
			}
		})
	}
	submitting.Wait()
	r.must(l, nth(600))
	both := func(w *rigWitness) func() bool {
		return func() bool {
			note, err := c2sp.ParseNote(l.Published().Note)
			return err == nil && l.Published().Size >= 601 && lines(t, note, w.key) == 1
		}
	}
	waitFor(t, "the first auditor", both(a))
	b.pretend(nil)
	waitFor(t, "the second", both(b))
	waitFor(t, "the first still", both(a))

	// Cosigned anew, the checkpoint loses nothing; the newer lines take the place of
	// the older ones.
	was, _ := l.board.get()
	if err := l.pub.attempt(t.Context(), was.Size); err != nil {
		t.Fatal(err)
	}
	now, err := c2sp.ParseNote(l.Published().Note)
	if err != nil {
		t.Fatal(err)
	}
	if lines(t, now, a.key) != 1 || lines(t, now, b.key) != 1 {
		t.Errorf("cosigned anew, it has %d and %d lines of the auditors", lines(t, now, a.key), lines(t, now, b.key))
	}

	// While a newer one has not, proofs are built from it, but not under another
	// policy.
	a.down()
	b.down()
	r.must(l, nth(601))
	if note := proofNote(t, l, 0); lines(t, note, a.key) != 1 || lines(t, note, b.key) != 1 {
		t.Error("once the auditors are gone, the proof of an entry that they have signed has lost their lines")
	}
	if err := l.SetPolicy(r.config().Policy); err != nil {
		t.Fatal(err)
	}
	if note := proofNote(t, l, 0); lines(t, note, a.key) != 0 || !strings.Contains(note.Text, "\n602\n") {
		t.Errorf("under a new policy the proof is under the old checkpoint:\n%s", note.Text)
	}
	a.pretend(nil)
	b.pretend(nil)
	waitFor(t, "the auditors again", func() bool {
		note := proofNote(t, l, 601)
		return lines(t, note, a.key) == 1 && lines(t, note, b.key) == 1
	})

	// After a restart too.
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	a.down()
	b.down()
	l = r.ready()
	if note := proofNote(t, l, 0); lines(t, note, a.key) != 1 {
		t.Error("after a restart the proof has no auditor's line")
	}
}

// TestAuditorThatGoesBack: what an auditor has confirmed it is never sent again,
// however often it asks; the operator is told once; and an honest one that has
// caught up is asked as before.
func TestAuditorThatGoesBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 1)
	a := r.withAuditor("a1")
	told := &operatorLog{}
	l := r.ready(told.config)
	for n := range 5 {
		r.must(l, nth(n))
	}
	audited := func() bool {
		note, err := c2sp.ParseNote(l.Published().Note)
		return err == nil && lines(t, note, a.key) == 1
	}
	waitFor(t, "its cosignature", audited)
	const confirmed = 5

	var lies, again atomic.Int64
	a.pretend(func(rw http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, "add-checkpoint") {
			io.Copy(io.Discard, req.Body)
			return // 200
		}
		zr, err := gzip.NewReader(req.Body)
		if err != nil {
			t.Error(err)
			return
		}
		body, err := io.ReadAll(zr)
		if err != nil {
			t.Error(err)
			return
		}
		at := 2 + int(binary.BigEndian.Uint16(body))
		if binary.BigEndian.Uint64(body[at:]) < confirmed {
			again.Add(1)
		}
		lies.Add(1)
		rw.Header().Set("Content-Type", "text/x.tlog.mirror-info")
		rw.WriteHeader(http.StatusConflict)
		fmt.Fprintf(rw, "%d\n0\n\n", binary.BigEndian.Uint64(body[at+8:]))
	})
	for n := range 3 {
		before := lies.Load()
		r.must(l, nth(confirmed+n))
		waitFor(t, "it to lie", func() bool { return lies.Load() > before })
	}
	if n := again.Load(); n > 0 {
		t.Errorf("entries that it has confirmed were sent again, %d times", n)
	}
	const says = "asks again for what it has confirmed"
	var said string
	waitFor(t, "the operator to be told", func() bool { said += told.take(); return strings.Contains(said, says) })
	a.pretend(nil)
	waitFor(t, "its cosignature again", audited)
	if n := strings.Count(said+told.take(), says); n != 1 {
		t.Errorf("the operator was told %d times", n)
	}
}

// TestAuditorsLeaveTheTileCache: what an auditor is sent is read beside the cache
// that proofs are made from.
func TestAuditorsLeaveTheTileCache(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 1)
	a := r.withAuditor("a1")
	a.down()
	l := r.ready()
	for n := range 5 {
		r.must(l, nth(n))
	}
	a.pretend(nil)
	list, err := newAuditors(r.config().Policy, false)
	if err != nil {
		t.Fatal(err)
	}
	p, proofs := l.Published(), l.tree(int64(l.Published().Size))
	proofs.cache = newTileCache()
	if sigs, err := list[0].audit(t.Context(), p, proofs); err != nil || len(sigs) != 1 {
		t.Fatalf("%d signatures, %v", len(sigs), err)
	}
	if n := len(proofs.cache.tiles); n != 0 {
		t.Errorf("%d tiles of the audit are in the cache of proofs", n)
	}
	if len(list[0].tiles.tiles) == 0 {
		t.Error("the auditor's own cache is not used")
	}
}

// TestAuditorInTheQuorumIsRefused: it could never publish.
func TestAuditorInTheQuorumIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 1)
	r.withAuditor("a1")
	good := r.policy
	for _, quorum := range []string{"quorum a1\n", "group h any g a1\nquorum h\n"} {
		r.policy = strings.Replace(good, "quorum g\n", quorum, 1)
		if l, err := Open(t.Context(), r.config()); err == nil || !strings.Contains(err.Error(), "auditor a1 is in a group or the quorum") {
			t.Errorf("%v", err)
			if err == nil {
				l.Close()
			}
		}
	}
	r.policy = good
	private := r.config()
	private.Private = true
	if l, err := Open(t.Context(), private); err == nil || !strings.Contains(err.Error(), "serves its mirror to everybody") {
		t.Errorf("a private log: %v", err)
		if err == nil {
			l.Close()
		}
	}
	l := r.ready()
	r.policy = strings.Replace(good, "quorum g\n", "group h all g a1\nquorum h\n", 1)
	if err := l.SetPolicy(r.config().Policy); err == nil {
		t.Error("SetPolicy takes it")
	}
	r.policy = good
	r.must(l, nth(1))
}

// TestLastCheckpointIsAudited: nothing comes after the end of a log, so its last
// checkpoint waits a moment for the auditor.
func TestLastCheckpointIsAudited(t *testing.T) {
	t.Parallel()
	r := newRig(t, 1, 1)
	a := r.withAuditor("a1")
	l := r.ready()
	r.must(l, nth(1))
	next := testSuccessor(t)
	r.freeze(next)
	r.ended(next)
	select {
	case <-l.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("publishing has not ended")
	}
	note, err := c2sp.ParseNote(r.ended(next).Note)
	if err != nil {
		t.Fatal(err)
	}
	if lines(t, note, a.key) != 1 {
		t.Error("the last checkpoint has no line of the auditor")
	}
}

// TestSharedAuditor: the elected server of a shared log asks the auditors, and
// every frontend's proofs and checkpoint have their cosignatures, also after
// another one was elected.
func TestSharedAuditor(t *testing.T) {
	r := newSharedRig(t, 2, 1)
	a := r.withAuditor("a1")
	publisher, frontend := r.ready(), r.ready(frontendOnly)
	audited := func(index uint64) func() bool {
		return func() bool {
			note, err := c2sp.ParseNote(frontend.Published().Note)
			return err == nil && lines(t, note, a.key) == 1 && frontend.Published().Size > index && lines(t, proofNote(t, frontend, index), a.key) == 1
		}
	}
	by := r.all(entry.ClaimIndex)
	submit := func(n int) uint64 {
		t.Helper()
		ack, err := frontend.Submit(t.Context(), by, nth(n), Cosigned)
		if err != nil {
			t.Fatal(err)
		}
		return ack.Index
	}
	waitFor(t, "the auditor's cosignature", audited(submit(1)))
	next := r.ready()
	if err := publisher.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "another publisher", func() bool { return next.Status().Writable && frontend.Status().Writable })
	waitFor(t, "it after the election", audited(submit(2)))
}
