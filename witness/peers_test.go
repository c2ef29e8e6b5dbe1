package witness

// A witness whose database was put back, and its peers: real ones, and ones that
// lie.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// serveHTTP serves h to the test's end, and returns its URL.
func serveHTTP(t testing.TB, h http.Handler) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

// anotherWitness is a witness of the same log, with a name of its own, and how
// it is given as a peer.
func (r *rig) anotherWitness() (*rig, Peer) {
	r.t.Helper()
	p := &rig{t: r.t, clock: r.clock, log: r.log, signed: map[string]map[uint64][32]byte{}}
	d, err := CreateDir(context.Background(), r.t.TempDir()+"/p", fmt.Sprintf("peer.example/%d", time.Now().UnixNano()), noon.Add(-time.Hour))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { p.dir.Close() })
	p.use(d)
	p.trust(r.log)
	return p, Peer{p.w.Keys()[0], serveHTTP(r.t, http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) { p.h.ServeHTTP(rw, q) }))}
}

// keep copies the database away; putBack has it again.
func (r *rig) keep() (putBack func()) {
	r.t.Helper()
	path := r.dir.Store.path
	if _, err := r.dir.Store.write.Exec("VACUUM INTO ?", path+".old"); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.t.Helper()
		if err := r.dir.Close(); err != nil {
			r.t.Fatal(err)
		}
		for _, suffix := range []string{"", "-wal", "-shm"} {
			os.Remove(path + suffix)
		}
		if err := errors.Join(os.Rename(path+".old", path), os.Chmod(path, 0o600)); err != nil {
			r.t.Fatal(err)
		}
		d, err := OpenDir(r.dir.Path)
		if err != nil {
			r.t.Fatal(err)
		}
		r.use(d)
	}
}

// hears asks the peers once, and wants that many logs to wait for more.
func (r *rig) hears(waiting int, why ...string) {
	r.t.Helper()
	n, trouble, err := r.w.hear(context.Background())
	if err != nil || n != waiting {
		r.t.Fatalf("%d logs wait, want %d: %v %v", n, waiting, trouble, err)
	}
	for _, want := range why {
		if !strings.Contains(fmt.Sprint(trouble), want) {
			r.t.Errorf("trouble %v, want %q", trouble, want)
		}
	}
}

// conflict posts a request that must be sent on to another size.
func (r *rig) conflict(request []byte, size uint64) {
	r.t.Helper()
	if a := r.must(r.post(request), 409); a.body != fmt.Sprintf("%d\n", size) {
		r.t.Errorf("409 with %q, want %d", a.body, size)
	}
}

// restored is a rig that has cosigned size 9, and a peer that has as well; its
// database is that of size `back` again, and nothing was heard yet.
func restored(t *testing.T, back uint64) *rig {
	t.Helper()
	r := newRig(t)
	p, peer := r.anotherWitness()
	p.must(p.post(p.log.request(0, 9)), 200)
	if back > 0 {
		r.must(r.post(r.log.request(0, back)), 200)
	}
	putBack := r.keep()
	r.must(r.post(r.log.request(back, 9)), 200)
	r.peers = []Peer{peer}
	putBack()
	return r
}

// TestRestoredWitnessWithPeers: an old copy of the database cosigns nothing but
// what is proven to contain both, what it knows and what its peers show.
func TestRestoredWitnessWithPeers(t *testing.T) {
	t.Parallel()
	goesOn := func(r *rig) { // and it is an ordinary witness again
		r.t.Helper()
		r.must(r.post(r.log.request(12, 13)), 200)
		r.must(r.post(r.log.request(13, 20)), 200)
		if n := r.w.peers.held(); n != 0 {
			r.t.Errorf("%d logs are held", n)
		}
	}
	t.Run("own size first", func(t *testing.T) {
		t.Parallel()
		r := restored(t, 5)
		for _, n := range []uint64{5, 8, 12} { // before anything was heard
			if a := r.must(r.post(r.log.request(5, n)), 503); !strings.Contains(a.body, "peers have not been heard") || a.header.Get("Retry-After") == "" {
				t.Errorf("%v", a)
			}
		}
		r.hears(0)
		r.conflict(r.log.request(5, 5), 9) // not its own last again, either
		r.conflict(r.log.request(5, 8), 9)
		r.conflict(r.log.request(5, 12), 9)
		r.must(r.post(r.log.request(9, 12)), 200)
		goesOn(r)
	})
	t.Run("the peers' size first", func(t *testing.T) {
		t.Parallel()
		r := restored(t, 5)
		r.hears(0)
		r.conflict(r.log.request(9, 12), 5)
		r.conflict(r.log.request(3, 12), 5)
		r.must(r.post(r.log.request(5, 12)), 200)
		goesOn(r)
	})
	t.Run("as far as the peers", func(t *testing.T) {
		t.Parallel()
		r := restored(t, 5)
		r.hears(0)
		r.must(r.post(r.log.request(5, 9)), 200)
		r.must(r.post(r.log.request(9, 12)), 200)
		goesOn(r)
	})
	t.Run("nothing of its own", func(t *testing.T) {
		t.Parallel()
		r := restored(t, 0)
		r.hears(0)
		r.conflict(r.log.request(0, 7), 9)
		r.conflict(r.log.request(0, 12), 9)
		r.must(r.post(r.log.request(9, 12)), 200)
		goesOn(r)
	})
	t.Run("a log that forks", func(t *testing.T) {
		t.Parallel()
		r := restored(t, 5)
		r.hears(0)
		evil := r.log.evil(6)
		r.conflict(evil.request(5, 8), 9)
		r.conflict(evil.request(5, 9), 9)  // another tree of the peers' size: evidence
		r.conflict(evil.request(5, 12), 9) // what it knows is in it, what it has forgotten is not
		r.must(r.post(evil.request(9, 12)), 422)
		r.conflict(r.log.request(9, 12), 5) // one history each
		r.conflict(evil.request(5, 12), 9)
		r.must(r.post(body(9, nil, evil.note(evil.checkpoint(9)))), 422)
		forks, err := r.dir.Store.Forks(t.Context(), r.log.origin)
		if err != nil || len(forks) != 2 {
			t.Errorf("%d pieces of evidence: %v", len(forks), err)
		}
		if n := r.w.peers.held(); n != 1 {
			t.Errorf("%d logs are held, want 1", n)
		}
		r.must(r.post(r.log.request(5, 12)), 200) // both are proven of this one
		goesOn(r)
	})
	t.Run("another start", func(t *testing.T) {
		t.Parallel()
		r := restored(t, 5)
		r.hears(0)
		r.conflict(r.log.request(5, 12), 9)
		r.restart()
		r.must(r.post(r.log.request(9, 12)), 409) // it goes on from its own
		r.must(r.post(r.log.request(5, 12)), 503)
		r.hears(0)
		r.conflict(r.log.request(9, 12), 5)
		r.must(r.post(r.log.request(5, 12)), 200)
		goesOn(r)
	})
	t.Run("another instance moves its head", func(t *testing.T) {
		t.Parallel()
		r := restored(t, 5)
		r.hears(0)
		r.conflict(r.log.request(5, 12), 9)
		second := r.another()
		second.must(second.post(second.log.request(5, 7)), 200)
		r.must(r.post(r.log.request(9, 12)), 409)
		if a := r.must(r.post(r.log.request(7, 12)), 503); !strings.Contains(a.body, "has moved") {
			t.Errorf("%s", a.body)
		}
		r.hears(0)
		r.conflict(r.log.request(7, 12), 9)
		r.must(r.post(r.log.request(9, 12)), 200)
		goesOn(r)
	})
}

// TestPeersOfAnHonestWitness: one that was not put back goes on where it was, as
// soon as every peer was heard and one is as far.
func TestPeersOfAnHonestWitness(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p, peer := r.anotherWitness()
	var out atomic.Bool
	slow := serveHTTP(t, http.HandlerFunc(func(rw http.ResponseWriter, q *http.Request) {
		if out.Load() {
			panic(http.ErrAbortHandler) // no answer at all
		}
		p.h.ServeHTTP(rw, q)
	}))
	r.must(r.post(r.log.request(0, 5)), 200)
	p.must(p.post(p.log.request(0, 3)), 200)
	r.peers = []Peer{peer, {peer.Key, slow + "/"}}
	r.restart()
	r.hears(1, "its peers show size 3 and this witness has cosigned 5", "--mark")
	r.must(r.post(r.log.request(5, 6)), 503)
	r.must(r.post(r.log.request(5, 5)), 503)

	out.Store(true)
	p.must(p.post(p.log.request(3, 5)), 200)
	r.hears(1, "peer "+peer.Key.Name(), "every peer has to be heard", "--peer")
	if a := r.must(r.post(r.log.request(5, 6)), 503); !strings.Contains(a.body, peer.Key.Name()) {
		t.Errorf("the refusal does not name the peer: %s", a.body)
	}
	if page := r.must(r.do("GET", "/", nil), 200).body; !strings.Contains(page, "1 held") {
		t.Errorf("the status page does not say that a log is held: %s", page)
	}
	out.Store(false)
	r.hears(0)
	r.must(r.post(r.log.request(5, 6)), 200)

	// A log that comes later waits for them, too: who added it may have forgotten
	// that it was here before.
	late := newLog(t, "example.com/late")
	r.trust(late)
	p.trust(late)
	p.must(p.post(late.request(0, 9)), 200)
	r.must(r.post(late.request(0, 4)), 503)
	r.hears(0)
	r.conflict(late.request(0, 4), 9)
	r.must(r.post(late.request(0, 9)), 200)
	// One that nobody has cosigned begins.
	first := newLog(t, "example.com/first")
	r.trust(first)
	p.trust(first)
	r.hears(0)
	r.must(r.post(first.request(0, 4)), 200)
	p.must(p.post(p.log.request(5, 6)), 200)
	r.restart() // and then there must be a peer of it
	r.hears(1, "no peer has cosigned log", "--mark")
	r.must(r.post(first.request(4, 5)), 503)
}

// TestHearPeers: the witness asks by itself, at its start and when a log comes.
func TestHearPeers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	p, peer := r.anotherWitness()
	r.must(r.post(r.log.request(0, 5)), 200)
	p.must(p.post(p.log.request(0, 5)), 200)
	r.peers = []Peer{peer}
	r.restart()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.w.HearPeers(ctx) }()
	defer func() { cancel(); <-ended }()
	eventually := func(request []byte) {
		t.Helper()
		for end := time.Now().Add(time.Minute); r.do("POST", "/add-checkpoint", request).status != 200; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("held for a minute")
			}
		}
	}
	eventually(r.log.request(5, 6))
	late := newLog(t, "example.com/late")
	r.trust(late)
	eventually(late.request(0, 3))
}

// TestLyingPeers: whatever a peer says that the log did not sign or the peer did
// not cosign lifts no hold, and raises none.
func TestLyingPeers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(r.post(r.log.request(0, 5)), 200)
	honest, peer := r.anotherWitness()
	honest.must(honest.post(r.log.request(0, 5)), 200)
	cosigner := mustSigner(t, "liar.example/w", c2sp.AlgEd25519Cosig)
	cosigned := func(l *testLog, n uint64, by *c2sp.Signer) string {
		s, err := by.Cosign(l.checkpoint(n), noon)
		if err != nil {
			t.Fatal(err)
		}
		return string(l.note(l.checkpoint(n), s))
	}
	good := cosigned(r.log, 5, cosigner)
	other := newLog(t, "example.com/other")
	forged := &testLog{r.log.origin, mustSigner(t, r.log.origin, c2sp.AlgEd25519), r.log.tree}
	var sent atomic.Int64
	say := func(status int, body string) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(status); rw.Write([]byte(body)) }
	}
	for name, lie := range map[string]struct {
		says http.HandlerFunc
		why  string
	}{
		"garbage":                 {say(200, "hello\n"), "note"},
		"nothing":                 {say(200, ""), "note"},
		"another log":             {say(200, cosigned(other, 9, cosigner)), "of log"},
		"another key of the log":  {say(200, cosigned(forged, 9, cosigner)), "no signature by a trusted key"},
		"not cosigned":            {say(200, string(r.log.note(r.log.checkpoint(9)))), "without its own cosignature"},
		"cosigned by another":     {say(200, cosigned(r.log, 9, mustSigner(t, "peer.example/w", c2sp.AlgEd25519Cosig))), "without its own cosignature"},
		"cosigned with its name":  {say(200, cosigned(r.log, 9, mustSigner(t, "liar.example/w", c2sp.AlgEd25519Cosig))), "without its own cosignature"},
		"another tree's text":     {say(200, strings.Replace(good, "\n5\n", "\n6\n", 1)), "log"},
		"a size below zero":       {say(200, strings.Replace(good, "\n5\n", "\n-5\n", 1)), "size"},
		"an error":                {say(500, "no"), "HTTP 500"},
		"an answer that is empty": {say(204, ""), "HTTP 204"},
		"a redirect to the truth": {func(rw http.ResponseWriter, q *http.Request) {
			http.Redirect(rw, q, peer.URL+q.URL.Path, http.StatusFound)
		}, "HTTP 302"},
		"no answer": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		"a body without end": {func(rw http.ResponseWriter, _ *http.Request) {
			for chunk := make([]byte, 32<<10); ; {
				n, err := rw.Write(chunk)
				if sent.Add(int64(n)); err != nil {
					return
				}
			}
		}, "more than"},
	} {
		r.peers = []Peer{peer, {cosigner.Key(), serveHTTP(t, lie.says)}}
		r.restart()
		r.hears(1, "peer liar.example/w", lie.why)
		if a := r.post(r.log.request(5, 6)); a.status != 503 || !strings.Contains(a.body, "liar.example/w") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		r.conflict(r.log.request(9, 12), 5) // no 9 was believed
	}
	if n := sent.Load(); n > 64<<20 {
		t.Errorf("%d bytes of a body without end were taken", n)
	}
	r.peers = []Peer{peer, {cosigner.Key(), serveHTTP(t, say(200, good))}} // its trouble ends with it
	r.restart()
	r.hears(0)
	r.must(r.post(r.log.request(5, 6)), 200)
}

// TestForkShownByAPeer: a peer with another tree of one size is evidence, and
// this witness signs on neither.
func TestForkShownByAPeer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(r.post(r.log.request(0, 5)), 200)
	p, peer := r.anotherWitness()
	p.must(p.post(r.log.evil(3).request(0, 5)), 200)
	r.peers = []Peer{peer}
	r.restart()
	for range 2 {
		r.hears(1, "two different trees of size 5", "/evidence/")
	}
	r.must(r.post(r.log.request(5, 6)), 503)
	forks, err := r.dir.Store.Forks(t.Context(), r.log.origin)
	if err != nil || len(forks) != 1 {
		t.Errorf("%d pieces of evidence: %v", len(forks), err)
	}
}

func TestPeersThatAreNone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	key := r.w.Keys()[0].String()
	log := r.log.signer.Key().String()
	for _, bad := range []string{"", key, key + " ", key + " witness.example", key + "  https://w.example/", key + " ftp://w.example/", key + " https://w.example/?a=b", key + " https://me:pw@w.example/", "https://w.example/", log + " https://w.example/", key + " https://w.example/ more"} {
		if p, err := ParsePeer(bad); err == nil {
			t.Errorf("%q: %v", bad, p)
		}
	}
	self, err := ParsePeer(key + " https://w.example/a/")
	if err != nil || self.URL != "https://w.example/a" {
		t.Fatal(self, err)
	}
	if _, err := New(Config{Signer: r.dir.Signer, MLDSA: r.dir.MLDSA, Store: r.dir.Store, Peers: []Peer{self}}); err == nil || !strings.Contains(err.Error(), "itself") {
		t.Errorf("a witness is its own peer: %v", err)
	}
}
