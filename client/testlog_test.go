package client

// A log in memory for the tests: it signs, its witnesses cosign, it serves its
// tiles over HTTP, and it can misbehave.

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// t0 is when the tests take place.
var t0 = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

type testLog struct {
	t         testing.TB
	signer    *c2sp.Signer
	witnesses []*c2sp.Signer
	policy    *c2sp.Policy // 2 of 3

	mu     sync.Mutex
	leaves [][]byte
	hashes [][]byte // of the leaves
	head   []byte   // what /checkpoint serves

	// Each may answer a request itself, and then reports true.
	intercept func(w http.ResponseWriter, r *http.Request) bool
	noPartial bool // partial tiles are gone once the full one is there
	gzip      bool
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newTestLog(t testing.TB, name string) *testLog {
	l := &testLog{t: t, signer: must(c2sp.GenerateSigner(name, c2sp.AlgEd25519))}
	text := "log " + l.signer.Key().String() + "\n"
	for i := range 3 {
		w := must(c2sp.GenerateSigner(fmt.Sprintf("witness.example/w%d", i+1), c2sp.AlgEd25519Cosig))
		l.witnesses = append(l.witnesses, w)
		text += fmt.Sprintf("witness w%d %s\n", i+1, w.Key())
	}
	l.policy = must(c2sp.ParsePolicy([]byte(text + "group g 2 w1 w2 w3\nquorum g\n")))
	return l
}

// fork returns a log with the same keys and the first n leaves.
func (l *testLog) fork(n int) *testLog {
	f := &testLog{t: l.t, signer: l.signer, witnesses: l.witnesses, policy: l.policy}
	f.add(l.leaves[:n]...)
	return f
}

func (l *testLog) add(leaves ...[]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, leaf := range leaves {
		l.leaves = append(l.leaves, leaf)
		l.hashes = append(l.hashes, rfc6962.DefaultHasher.HashLeaf(leaf))
	}
}

// fill adds n leaves that say who they are.
func (l *testLog) fill(n int, who string) {
	for i := range n {
		l.add(fmt.Appendf(nil, "leaf %d of %s", i, who))
	}
}

func mth(hashes [][]byte) [32]byte {
	r := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for _, h := range hashes {
		if err := r.Append(h, nil); err != nil {
			panic(err)
		}
	}
	if len(hashes) == 0 {
		return c2sp.EmptyRoot
	}
	return [32]byte(must(r.GetRootHash(nil)))
}

func (l *testLog) checkpoint(size int) c2sp.Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return c2sp.Checkpoint{Origin: l.signer.Key().Name(), Size: uint64(size), Root: mth(l.hashes[:size])}
}

// note signs the tree of this size; the given witnesses cosign at the time at.
func (l *testLog) note(size int, at time.Time, witnesses ...int) []byte {
	return l.sign(l.checkpoint(size), at, witnesses...)
}

func (l *testLog) sign(c c2sp.Checkpoint, at time.Time, witnesses ...int) []byte {
	n := c2sp.Note{Text: c.Text(), Sigs: []c2sp.Signature{must(l.signer.Sign(c.Text()))}}
	for _, w := range witnesses {
		n.Sigs = append(n.Sigs, must(l.witnesses[w-1].Cosign(c, at)))
	}
	return n.Bytes()
}

// proof makes the tlog-proof of a leaf in the tree of this size, by hand.
func (l *testLog) proof(index, size int, note []byte) c2sp.Proof {
	l.mu.Lock()
	defer l.mu.Unlock()
	nodes := must(proof.Inclusion(uint64(index), uint64(size)))
	var raw [][]byte
	for _, id := range nodes.IDs {
		begin, end := id.Coverage()
		h := mth(l.hashes[begin:end])
		raw = append(raw, h[:])
	}
	p := c2sp.Proof{Extra: l.leaves[index], Index: uint64(index), Checkpoint: note}
	for _, h := range must(nodes.Rehash(raw, rfc6962.DefaultHasher.HashChildren)) {
		p.Hashes = append(p.Hashes, [32]byte(h))
	}
	return p
}

// tile returns the bytes of a tile, or nil if the tree has no such tile.
func (l *testLog) tile(t c2sp.Tile) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b []byte
	if t.Level == -1 {
		first := int(t.Index) * 256
		if first+t.Width > len(l.leaves) {
			return nil
		}
		for _, leaf := range l.leaves[first : first+t.Width] {
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(leaf))), leaf...)
		}
		return b
	}
	span := 1 << (8 * t.Level)
	for i := range t.Width {
		begin := (int(t.Index)*256 + i) * span
		if begin+span > len(l.hashes) {
			return nil
		}
		h := mth(l.hashes[begin : begin+span])
		b = append(b, h[:]...)
	}
	return b
}

func (l *testLog) setHead(note []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head = note
}

func (l *testLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if l.intercept != nil && l.intercept(w, r) {
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/")
	if path == "checkpoint" {
		l.mu.Lock()
		defer l.mu.Unlock()
		w.Write(l.head)
		return
	}
	t, err := c2sp.ParseTilePath(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	full := t
	full.Width = 256
	b := l.tile(t)
	if b == nil || l.noPartial && t.Width < 256 && l.tile(full) != nil {
		http.NotFound(w, r)
		return
	}
	if l.gzip {
		var z bytes.Buffer
		zw := gzip.NewWriter(&z)
		zw.Write(b)
		zw.Close()
		w.Header().Set("Content-Encoding", "gzip")
		b = z.Bytes()
	}
	w.Write(b)
}

// reader serves the log and returns a reader of it.
func (l *testLog) reader() *Reader {
	srv := httptest.NewServer(l)
	l.t.Cleanup(srv.Close)
	return must(NewReader(srv.URL, nil))
}

// testFile is the file that the tests upload.
var testContents = []byte("contents of Django-5.1.tar.gz")

func testFile() File {
	return File{Registry: "pypi.org", Ecosystem: entry.PyPI, Project: "Django", Name: "Django-5.1.tar.gz", SHA256: sha256.Sum256(testContents)}
}

func testEntry() *entry.Entry {
	sum := sha256.Sum256(testContents)
	return &entry.Entry{
		Kind: entry.KindUpload, Claim: entry.ClaimIndex, Time: "2026-11-21T11:59:00Z",
		Registry: "pypi.org", Ecosystem: entry.PyPI, Project: "django", Version: "5.1", File: "Django-5.1.tar.gz",
		Size: entry.Uint(uint64(len(testContents))), SHA256: hex.EncodeToString(sum[:]),
	}
}
