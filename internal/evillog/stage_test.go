package evillog_test

// What each cell of the matrix stands on: a log of 300 entries that the reader
// already knows, ten entries later, with three witnesses of whom two must sign.

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/evillog"
	"github.com/portbook/portbook/witness"
)

const (
	origin    = "log.test/evil"
	registry  = "index.test/simple"
	project   = "demo"
	file      = "demo-1.0-py3-none-any.whl"
	fileIndex = 7
	known     = 300 // entries that the reader has seen
	grown     = 310 // entries when the lie begins
)

var day0 = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// keys are made once: each stage is the same log again.
var keys = sync.OnceValue(func() (k struct {
	log, second *c2sp.Signer
	witnesses   []*c2sp.Signer
	policy      *c2sp.Policy
	leaves      [][]byte
}) {
	generate := func(name string, alg c2sp.Alg) *c2sp.Signer { return must(c2sp.GenerateSigner(name, alg)) }
	k.log = generate(origin, c2sp.AlgEd25519)
	k.second = generate("log.test/second", c2sp.AlgEd25519)
	text := "log " + k.log.Key().String() + "\nlog " + k.second.Key().String() + "\n"
	for i := range 3 {
		w := generate(fmt.Sprintf("witness%d.test", i+1), c2sp.AlgEd25519Cosig)
		k.witnesses = append(k.witnesses, w)
		text += fmt.Sprintf("witness w%d %s\n", i+1, w.Key())
	}
	k.policy = must(c2sp.ParsePolicy([]byte(text + "group g 2 w1 w2 w3\nquorum g\n")))
	for i := range grown {
		k.leaves = append(k.leaves, marshal(filler("filler", i)))
	}
	k.leaves[fileIndex] = marshal(upload(goodContent))
	return k
})

var (
	goodContent = []byte("the file that was uploaded")
	evilContent = []byte("the file that nobody uploaded, with a present inside")
)

func upload(content []byte) *entry.Entry {
	sum := sha256.Sum256(content)
	return &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: registry, Ecosystem: entry.PyPI,
		Project: project, Version: "1.0", File: file, Size: entry.Uint(uint64(len(content))),
		SHA256: hex.EncodeToString(sum[:]), Time: day0.Format(entry.TimeFormat)}
}

func filler(name string, i int) *entry.Entry {
	e := upload(fmt.Appendf(nil, "%s %d", name, i))
	e.Project, e.Version, e.File = name, fmt.Sprint(i), fmt.Sprintf("%s-%d.tar.gz", name, i)
	return e
}

func marshal(e *entry.Entry) []byte { return must(e.Marshal()) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// A stage is one log before one reader.
type stage struct {
	t      testing.TB
	fresh  bool      // the reader has never seen the log
	lied   time.Time // when the lie stood
	ctx    context.Context
	clock  *clock
	log    *evillog.Log
	srv    *httptest.Server
	policy *c2sp.Policy
	first  []byte // the checkpoint that the reader knows

	// What the reader is offered. Lies may change it.
	content []byte
	index   uint64
	proof   func() []byte
	beside  bool // the proof lies beside the file; else the log must be asked
	trickle bool // what lies beside the file comes a byte at a time

	// read lets the reader look once before it looks for good. It does nothing
	// for readers that have no memory.
	read func()

	mu   sync.Mutex
	from net.IP // address that the reader's connections come from
}

func newStage(t testing.TB, r *row) *stage {
	k := keys()
	s := &stage{t: t, fresh: r.fresh, clock: &clock{t: day0}, policy: k.policy, content: goodContent, index: fileIndex,
		beside: true, read: func() {}, from: net.IPv4(127, 0, 0, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	t.Cleanup(cancel)
	s.ctx = ctx
	ws := colluding()
	if r.honest {
		for i, w := range k.witnesses {
			ws[i] = evillog.Honest{Witness: newWitness(t, w, s.clock).Witness}
		}
	}
	s.log = evillog.New(evillog.Config{Signer: k.log, Witnesses: ws, Now: s.clock.Now})
	s.log.Append(k.leaves[:known]...)
	s.first = s.log.Note()
	s.proof = func() []byte { return s.log.Proof(s.index) }
	s.srv = httptest.NewServer(s.log)
	t.Cleanup(func() {
		s.srv.Close()
		s.srv, s.log, s.first, s.proof, s.read = nil, nil, nil, nil, nil // package testing keeps this function
	})
	return s
}

// lie begins: the log has grown, and f makes it evil.
func (s *stage) lie(f func(*stage)) {
	s.log.Append(keys().leaves[known:]...)
	f(s)
	s.lied = time.Now()
}

// evil returns the leaves from index at up to size of another history, in which
// the file has other contents. From now on the reader is offered those.
func (s *stage) evil(at, size int) (leaves [][]byte) {
	for i := at; i < size; i++ {
		if i == fileIndex {
			leaves = append(leaves, marshal(upload(evilContent)))
			s.content = evilContent
		} else {
			leaves = append(leaves, marshal(filler("evil", i)))
		}
	}
	return leaves
}

// dialFrom moves the reader to another address.
func (s *stage) dialFrom(ip string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from = net.ParseIP(ip)
}

// transport is the reader's network: no connection outlives a request.
func (s *stage) transport() *http.Transport {
	t := &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		s.mu.Lock()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: s.from}}
		s.mu.Unlock()
		return d.DialContext(ctx, network, addr)
	}
	return t
}

// reader reads the log. The bound on a request is shorter than the programs'
// 30 s, for slow answers to be told apart from none within a test's patience.
func (s *stage) reader() *client.Reader {
	return must(client.NewReader(s.srv.URL, &http.Client{Transport: s.transport(), Timeout: 1500 * time.Millisecond}))
}

func (s *stage) file() client.File {
	return client.File{Registry: registry, Ecosystem: entry.PyPI, Project: project, Name: file, SHA256: sha256.Sum256(s.content)}
}

// A testWitness is a real witness that knows the log.
type testWitness struct {
	*witness.Witness
	store *witness.Store
}

func newWitness(t testing.TB, signer *c2sp.Signer, c *clock) *testWitness {
	t.Helper()
	ctx := t.Context()
	store, err := witness.CreateStore(ctx, filepath.Join(t.TempDir(), "witness.db"), []*c2sp.Key{signer.Key()}, c.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	if _, err := store.AddLog(ctx, origin, []*c2sp.Key{keys().log.Key()}); err != nil {
		t.Fatal(err)
	}
	w, err := witness.New(witness.Config{Signer: signer, Store: store, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	return &testWitness{w, store}
}

// What lies are made of.

const tenYears = 10 * 365 * 24 * time.Hour

func stranger(name string) *c2sp.Signer { return must(c2sp.GenerateSigner(name, c2sp.AlgEd25519)) }

func cosigner(name string) *c2sp.Signer { return must(c2sp.GenerateSigner(name, c2sp.AlgEd25519Cosig)) }

// move shows readers at one address another history than those at another, and
// has the reader look from both.
func move(s *stage) {
	other := s.log.SplitView(evillog.From("127.0.0.2"))
	other.Fork(known, s.evil(known, grown)...)
	s.read()
	s.dialFrom("127.0.0.2")
	s.log.Fork(known, s.evil(known, grown)...) // what is pushed to witnesses, or handed out
}

// mix answers requests for one resource from another history.
func mix(s *stage, res evillog.Resource) {
	s.log.SplitView(evillog.Asking(res)).Fork(305, s.evil(305, grown)...)
}

// noteAt is the honest checkpoint of an earlier size.
func noteAt(s *stage, size int) []byte {
	l := evillog.New(evillog.Config{Signer: keys().log, Witnesses: colluding(), Now: s.clock.Now})
	l.Append(keys().leaves[:size]...)
	return l.Note()
}

func colluding() (ws []evillog.Witness) {
	for _, w := range keys().witnesses {
		ws = append(ws, evillog.Colluding{Signer: w})
	}
	return ws
}

// dateAgain has one witness sign a checkpoint again, today.
func dateAgain(s *stage, note []byte, witness int) []byte {
	n := must(c2sp.ParseNote(note))
	n.Sigs[1+witness] = must(keys().witnesses[witness].Cosign(must(c2sp.ParseCheckpoint(n.Text)), s.clock.Now()))
	return n.Bytes()
}

// otherLog is the checkpoint of a log that nobody asked for.
func otherLog(s *stage, signer *c2sp.Signer) []byte {
	l := evillog.New(evillog.Config{Signer: signer, Witnesses: colluding(), Now: s.clock.Now})
	l.Append(keys().leaves...)
	return l.Note()
}

// collide adds a signature by another key that has the log's name and key ID.
func collide(s *stage) {
	s.log.SignedBy(stranger(origin))
	s.log.Signatures(func(_ string, sigs []c2sp.Signature) []c2sp.Signature {
		sigs[0].KeyID = keys().log.Key().ID()
		return sigs
	})
}

func more(n int) (leaves [][]byte) {
	for i := range n {
		leaves = append(leaves, marshal(filler("more", i)))
	}
	return leaves
}

// offer logs an entry about contents that nobody uploaded as the file, and
// offers the reader those, with the proof of that entry.
func (s *stage) offer(change func(*entry.Entry)) {
	e := upload(evilContent)
	change(e)
	s.content, s.index = evilContent, s.log.Upload(e)
}

// offerLeaf is offer for leaves that are no entries.
func (s *stage) offerLeaf(leaf string) { s.content, s.index = evilContent, s.log.Append([]byte(leaf)) }

// otherProof is the log's answer about another file.
func otherProof(s *stage) []byte {
	e := must(entry.Parse(s.log.Leaf(8)))
	r := httptest.NewRequest(http.MethodGet, "/v1/proof?sha256="+e.SHA256, nil)
	w := httptest.NewRecorder()
	s.log.ServeHTTP(w, r)
	return w.Body.Bytes()
}

// cutHash makes the first hash of a proof a byte shorter.
func cutHash(b []byte) []byte {
	lines := strings.Split(string(b), "\n")
	for i, l := range lines {
		if len(l) == 44 {
			lines[i] = base64.StdEncoding.EncodeToString(must(base64.StdEncoding.DecodeString(l))[:31])
			break
		}
	}
	return []byte(strings.Join(lines, "\n"))
}
