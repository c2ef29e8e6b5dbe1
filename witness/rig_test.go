package witness

// What the tests stand on: a log that can sign anything, trees computed
// straight from RFC 6962 (sharing no code with what is tested), and a rig that
// re-verifies everything after each step.

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// A tree is a Merkle tree of endless leaves, "<name> <i>"; from index fork on
// they are other leaves. RFC 6962, section 2.1, by the letter, with a memory.
type tree struct {
	name string
	fork uint64 // 0: never
	mu   sync.Mutex
	memo map[[2]uint64][32]byte
}

func newTree(name string, fork uint64) *tree {
	return &tree{name: name, fork: fork, memo: map[[2]uint64][32]byte{}}
}

// mth is MTH(D[lo:hi]).
func (t *tree) mth(lo, hi uint64) [32]byte {
	switch hi - lo {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		leaf := fmt.Sprintf("%s %d", t.name, lo)
		if t.fork > 0 && lo >= t.fork {
			leaf = "evil " + leaf
		}
		return sha256.Sum256(append([]byte{0}, leaf...))
	}
	t.mu.Lock()
	h, ok := t.memo[[2]uint64{lo, hi}]
	t.mu.Unlock()
	if ok {
		return h
	}
	k := split(hi - lo)
	l, r := t.mth(lo, lo+k), t.mth(lo+k, hi)
	h = sha256.Sum256(append(append([]byte{1}, l[:]...), r[:]...))
	t.mu.Lock()
	t.memo[[2]uint64{lo, hi}] = h
	t.mu.Unlock()
	return h
}

func (t *tree) root(n uint64) [32]byte { return t.mth(0, n) }

// consistency is PROOF(m, D[n]), section 2.1.2.
func (t *tree) consistency(m, n uint64) [][32]byte {
	if m == 0 || m == n {
		return nil
	}
	return t.subproof(m, 0, n, true)
}

func (t *tree) subproof(m, lo, hi uint64, b bool) [][32]byte {
	n := hi - lo
	if m == n {
		if b {
			return nil
		}
		return [][32]byte{t.mth(lo, hi)}
	}
	k := split(n)
	if m <= k {
		return append(t.subproof(m, lo, lo+k, b), t.mth(lo+k, hi))
	}
	return append(t.subproof(m-k, lo+k, hi, false), t.mth(lo, lo+k))
}

// split is the largest power of two smaller than n.
func split(n uint64) uint64 {
	k := uint64(1)
	for k<<1 < n {
		k <<= 1
	}
	return k
}

// A testLog signs whatever it is told to.
type testLog struct {
	origin string
	signer *c2sp.Signer
	tree   *tree
}

func newLog(t testing.TB, origin string) *testLog {
	t.Helper()
	return &testLog{origin, mustSigner(t, origin, c2sp.AlgEd25519), newTree(origin, 0)}
}

// evil is the same log with another history from index n on.
func (l *testLog) evil(n uint64) *testLog {
	return &testLog{l.origin, l.signer, newTree(l.tree.name, n)}
}

func (l *testLog) checkpoint(n uint64) c2sp.Checkpoint {
	return c2sp.Checkpoint{Origin: l.origin, Size: n, Root: l.tree.root(n)}
}

// note signs c, and appends more lines.
func (l *testLog) note(c c2sp.Checkpoint, more ...c2sp.Signature) []byte {
	s, err := l.signer.Sign(c.Text())
	if err != nil {
		panic(err)
	}
	return (&c2sp.Note{Text: c.Text(), Sigs: append([]c2sp.Signature{s}, more...)}).Bytes()
}

// request is the honest request from old to n.
func (l *testLog) request(old, n uint64) []byte {
	return body(old, l.tree.consistency(old, n), l.note(l.checkpoint(n)))
}

func body(old uint64, proof [][32]byte, note []byte) []byte {
	return (&c2sp.AddCheckpoint{Old: old, Proof: proof, Checkpoint: note}).Bytes()
}

func mustSigner(t testing.TB, name string, alg c2sp.Alg) *c2sp.Signer {
	t.Helper()
	s, err := c2sp.GenerateSigner(name, alg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A clock stands still until it is set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *clock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = t
}

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// A rig is a witness with one log, and a ledger of all it has ever cosigned.
type rig struct {
	t     testing.TB
	dir   *Dir
	mark  string // path; empty: none
	peers []Peer
	w     *Witness
	h     http.Handler
	clock *clock
	log   *testLog

	mu     sync.Mutex
	signed map[string]map[uint64][32]byte // origin, size: root
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, clock: &clock{t: noon}, log: newLog(t, "example.com/log"), signed: map[string]map[uint64][32]byte{}}
	d, err := CreateDir(context.Background(), filepath.Join(t.TempDir(), "w"), "witness.example/w1", noon.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	r.use(d)
	t.Cleanup(func() { r.dir.Close() })
	r.trust(r.log)
	return r
}

func (r *rig) use(d *Dir) {
	r.t.Helper()
	if r.mark != "" {
		if err := d.Store.UseMark(context.Background(), r.mark); err != nil {
			r.t.Fatal(err)
		}
	}
	none := Rate{PerSecond: 1e9, Burst: 1e9} // limits have tests of their own, and tests are faster than logs
	w, err := New(Config{Signer: d.Signer, MLDSA: d.MLDSA, Store: d.Store, Now: r.clock.now, PerLog: none, PerClient: none, Peers: r.peers})
	if err != nil {
		r.t.Fatal(err)
	}
	r.dir, r.w, r.h = d, w, w.Handler()
}

// restart closes the witness and opens it again from its directory.
func (r *rig) restart() {
	r.t.Helper()
	if err := r.dir.Close(); err != nil {
		r.t.Fatal(err)
	}
	d, err := OpenDir(r.dir.Path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.use(d)
}

func (r *rig) trust(l *testLog, more ...*c2sp.Key) {
	r.t.Helper()
	if _, err := r.dir.Store.AddLog(context.Background(), l.origin, append([]*c2sp.Key{l.signer.Key()}, more...)); err != nil {
		r.t.Fatal(err)
	}
}

// An answer is an HTTP response, read.
type answer struct {
	status int
	header http.Header
	body   string
}

func (r *rig) do(method, path string, body []byte) answer {
	rec := httptest.NewRecorder()
	r.h.ServeHTTP(rec, httptest.NewRequest(method, path, bytes.NewReader(body)))
	res := rec.Result()
	b, _ := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(b)}
}

func (r *rig) head(origin string) *Head {
	r.t.Helper()
	l, err := r.dir.Store.Log(context.Background(), origin)
	if err != nil {
		r.t.Fatal(err)
	}
	return l.Head
}

// post sends a request, writes what was cosigned into the ledger, and checks
// what must hold after any answer: a 200 and only a 200 moves the state, to
// exactly what was asked; nothing else carries a signature; and the read API
// serves the state.
func (r *rig) post(request []byte) answer {
	r.t.Helper()
	var origin string
	var cp c2sp.Checkpoint
	if _, note, ok := bytes.Cut(request, []byte("\n\n")); ok {
		if n, err := c2sp.ParseNote(note); err == nil {
			if cp, err = c2sp.ParseCheckpoint(n.Text); err == nil {
				origin = cp.Origin
			}
		}
	}
	known := func() *Head {
		if l, err := r.dir.Store.Log(context.Background(), origin); err == nil {
			return l.Head
		}
		return nil
	}
	before := known()
	a := r.do("POST", "/add-checkpoint", request)
	after := known()
	if a.status != http.StatusOK {
		if strings.Contains(a.body, "—") {
			r.t.Errorf("an answer of status %d carries a signature: %s", a.status, a.body)
		}
		if (before == nil) != (after == nil) || before != nil && !bytes.Equal(before.Note, after.Note) {
			r.t.Errorf("an answer of status %d changed the state", a.status)
		}
		return a
	}
	if after == nil || after.Size != cp.Size || after.Root != cp.Root || !after.Time.Equal(r.clock.now().Truncate(time.Second)) {
		r.t.Errorf("cosigned size %d, and the state is %+v", cp.Size, after)
	}
	r.enter(cp, a.body)
	r.audit(origin)
	return a
}

// enter verifies a cosignature and writes it into the ledger.
func (r *rig) enter(cp c2sp.Checkpoint, lines string) {
	r.t.Helper()
	sigs, err := c2sp.ParseSignatureLines([]byte(lines))
	if err != nil || len(sigs) != len(r.w.Keys()) {
		r.t.Errorf("%d signature lines, want one of each key: %v", len(sigs), err)
		return
	}
	for i, k := range r.w.Keys() {
		if _, err := k.VerifyNote(cp.Text(), sigs[i]); err != nil {
			r.t.Error(err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.signed[cp.Origin] == nil {
		r.signed[cp.Origin] = map[uint64][32]byte{}
	}
	if root, ok := r.signed[cp.Origin][cp.Size]; ok && root != cp.Root {
		r.t.Errorf("two roots cosigned for size %d of %s", cp.Size, cp.Origin)
	}
	r.signed[cp.Origin][cp.Size] = cp.Root
}

// audit checks what the read API serves for a log with a checkpoint.
func (r *rig) audit(origin string) *c2sp.Note {
	r.t.Helper()
	a := r.do("GET", "/"+c2sp.OriginHash(origin)+"/checkpoint", nil)
	if a.status != http.StatusOK {
		r.t.Fatalf("read API: %d %s", a.status, a.body)
	}
	n, err := c2sp.ParseNote([]byte(a.body))
	if err != nil {
		r.t.Fatal(err)
	}
	cp, err := c2sp.ParseCheckpoint(n.Text)
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := r.dir.Store.Log(context.Background(), origin)
	if err != nil {
		r.t.Fatal(err)
	}
	if cp.Origin != origin || cp.Size != l.Head.Size || cp.Root != l.Head.Root {
		r.t.Errorf("the read API serves size %d of %s, the state is %+v", cp.Size, cp.Origin, l.Head)
	}
	var logs, ours int
	for _, s := range n.Sigs {
		by := 0
		for _, k := range append(l.Keys, r.w.Keys()...) {
			if !k.Matches(s) {
				continue
			}
			by++
			if err := k.VerifyLog(n.Text, s); err != nil {
				r.t.Error(err)
			}
			if k.Name() == r.w.Keys()[0].Name() {
				ours++
			} else {
				logs++
			}
		}
		if by != 1 {
			r.t.Errorf("the read API serves a signature by an unknown key: %s %08x", s.Name, s.KeyID)
		}
	}
	if logs < 1 || ours != len(r.w.Keys()) {
		r.t.Errorf("the read API serves %d log signatures and %d cosignatures", logs, ours)
	}
	return n
}

// must fails the test unless the answer has this status.
func (r *rig) must(a answer, status int) answer {
	r.t.Helper()
	if a.status != status {
		r.t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	return a
}

// seededSKey is a log key made from a number, for tests that must agree on it.
func seededSKey(name string, seed byte) string {
	material := append([]byte{byte(c2sp.AlgEd25519)}, bytes.Repeat([]byte{seed}, ed25519.SeedSize)...)
	pub := ed25519.NewKeyFromSeed(material[1:]).Public().(ed25519.PublicKey)
	id := sha256.Sum256(slices.Concat([]byte(name+"\n"), material[:1], pub))
	return fmt.Sprintf("PRIVATE+KEY+%s+%x+%s", name, id[:4], base64.StdEncoding.EncodeToString(material))
}

// send posts a request that must be answered with 200.
func send(hc *http.Client, addr string, body []byte) error {
	res, err := hc.Post("http://"+addr+"/add-checkpoint", "", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d: %s", res.StatusCode, b)
	}
	return nil
}
