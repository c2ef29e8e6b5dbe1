package logserver

// A log with real witnesses, for the tests of this package.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/witness"
	"k8s.io/klog/v2"
)

const testRegistry = "index.example"

// rig is a log's directory, its key and three witnesses.
type rig struct {
	t         testing.TB
	dir       string
	anchor    string
	signer    *c2sp.Signer
	witnesses []*rigWitness
	policy    string
	token     Token
}

// rigWitness is a real witness that can be taken away or replaced.
type rigWitness struct {
	name   string
	key    *c2sp.Key
	server *httptest.Server
	store  *witness.Store
	real   http.Handler
	fake   atomic.Pointer[http.HandlerFunc] // answers instead
	asked  atomic.Int64
}

func (w *rigWitness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.asked.Add(1)
	if f := w.fake.Load(); f != nil {
		(*f)(rw, r)
		return
	}
	w.real.ServeHTTP(rw, r)
}

// pretend replaces the witness by h; nil brings it back.
func (w *rigWitness) pretend(h http.HandlerFunc) {
	if h == nil {
		w.fake.Store(nil)
		return
	}
	w.fake.Store(&h)
}

func (w *rigWitness) down() {
	w.pretend(func(rw http.ResponseWriter, _ *http.Request) {
		http.Error(rw, "down", http.StatusServiceUnavailable)
	})
}

func newRig(t testing.TB, witnesses, quorum int) *rig {
	t.Helper()
	dir := t.TempDir()
	return newRigIn(t, filepath.Join(dir, "log"), filepath.Join(dir, "anchor"), witnesses, quorum)
}

// newRigIn is newRig with the log's directory and the anchor where they are said
// to be.
func newRigIn(t testing.TB, log, anchor string, witnesses, quorum int) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: log, anchor: anchor}
	var err error
	if r.signer, err = c2sp.GenerateSigner("log.example/test", c2sp.AlgEd25519); err != nil {
		t.Fatal(err)
	}
	if err := Init(t.Context(), r.dir, r.anchor, r.signer.Key()); err != nil {
		t.Fatal(err)
	}
	var lines, names []string
	for i := range witnesses {
		w := newRigWitness(t, fmt.Sprintf("w%d", i+1), filepath.Join(dir, fmt.Sprintf("witness%d.db", i)), r.signer.Key())
		r.witnesses = append(r.witnesses, w)
		lines = append(lines, fmt.Sprintf("witness %s %s %s", w.name, w.key, w.server.URL))
		names = append(names, w.name)
	}
	if witnesses == 0 {
		lines = append(lines, "quorum none")
	} else {
		lines = append(lines, fmt.Sprintf("group g %d %s", quorum, strings.Join(names, " ")), "quorum g")
	}
	r.policy = strings.Join(lines, "\n") + "\n"
	return r
}

func newRigWitness(t testing.TB, name, db string, log *c2sp.Key) *rigWitness {
	t.Helper()
	signer, err := c2sp.GenerateSigner("witness.example/"+name, c2sp.AlgEd25519Cosig)
	if err != nil {
		t.Fatal(err)
	}
	store, err := witness.CreateStore(t.Context(), db, []*c2sp.Key{signer.Key()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.AddLog(t.Context(), log.Name(), []*c2sp.Key{log}); err != nil {
		t.Fatal(err)
	}
	wit, err := witness.New(witness.Config{Signer: signer, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	w := &rigWitness{name: name, key: signer.Key(), store: store, real: wit.Handler()}
	w.server = httptest.NewServer(w)
	t.Cleanup(func() { w.server.Close(); store.Close() })
	return w
}

func (r *rig) config() Config {
	p, err := c2sp.ParsePolicy([]byte(r.policy))
	if err != nil {
		r.t.Fatal(err)
	}
	return Config{Dir: r.dir, Signer: r.signer, Policy: p, Logger: slog.New(slog.NewTextHandler(r.t.Output(), nil)), AnchorBeside: true,
		Interval: 5 * time.Millisecond, RoundLimit: 2 * time.Second, MaxWait: 5 * time.Second}
}

// open opens the log and makes a token for it; it closes with the test.
func (r *rig) open(change ...func(*Config)) *Log {
	r.t.Helper()
	cfg := r.config()
	for _, c := range change {
		c(&cfg)
	}
	l, err := Open(r.t.Context(), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	if r.token.ID == "" {
		if r.token, _, err = l.Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: entry.Kinds()[:1]}); err != nil {
			r.t.Fatal(err)
		}
	}
	return l
}

// ready opens the log and waits until it takes submissions.
func (r *rig) ready(change ...func(*Config)) *Log {
	r.t.Helper()
	l := r.open(change...)
	waitFor(r.t, "the log to take submissions", func() bool { return l.Status().Writable })
	return l
}

// embedded is the log's sequencer.
func embedded(l *Log) *sequencer { return l.seq.(*sequencer) }

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

// upload is an entry for a file whose bytes are content.
func upload(project, file, content string) *entry.Entry {
	sum := sha256.Sum256([]byte(content))
	return &entry.Entry{
		Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: project, Version: "1.0", File: file,
		Size: entry.Uint(uint64(len(content))), SHA256: hex.EncodeToString(sum[:]), Time: "2026-11-21T05:00:00Z",
	}
}

func nth(n int) *entry.Entry {
	return upload(fmt.Sprintf("p%d", n%10), fmt.Sprintf("p%d-%d.tar.gz", n%10, n), fmt.Sprint(n))
}

func (r *rig) submit(l *Log, e *entry.Entry) (*Ack, error) {
	return l.Submit(context.Background(), r.token, e, Cosigned)
}

// must submits and checks the acknowledgement as a reader would.
func (r *rig) must(l *Log, e *entry.Entry) *Ack {
	r.t.Helper()
	ack, err := r.submit(l, e)
	if err != nil {
		r.t.Fatalf("submit %s: %v", e.File, err)
	}
	r.check(ack)
	return ack
}

// check verifies an acknowledgement under the policy, from its bytes.
func (r *rig) check(ack *Ack) {
	r.t.Helper()
	p, err := c2sp.ParseProof(ack.Proof.Bytes())
	if err != nil {
		r.t.Fatal(err)
	}
	policy := r.config().Policy
	policy.Logs = []c2sp.PolicyLog{{Key: r.signer.Key()}}
	v, err := policy.Verify(p.Checkpoint)
	if err != nil {
		r.t.Fatal(err)
	}
	if p.Index != ack.Index {
		r.t.Fatalf("proof is of entry %d, acknowledged was %d", p.Index, ack.Index)
	}
	if err := c2sp.VerifyInclusion(p.Index, v.Size, entry.LeafHash(p.Extra), p.Hashes, v.Root); err != nil {
		r.t.Fatal(err)
	}
}

func removeIndex(t testing.TB, dir, name string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func TestMain(m *testing.M) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // Tessera's own log
	if os.Getenv(fillEnv) != "" {
		if err := fillMain(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(childEnv) != "" {
		if err := childMain(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	stopSharedPostgres()
	os.Exit(code)
}
