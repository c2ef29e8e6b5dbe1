package witnesstest_test

// Witness software of others, and log software of others, for real:
// litewitness beside our witness under one policy, and Tessera's witness client
// against ours.

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness"
	"github.com/portbook/portbook/witness/witnesstest"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"k8s.io/klog/v2"
)

// TestTesseraAsksOurWitness: a Tessera log with Tessera's own witness client
// publishes only what our witness has cosigned.
func TestTesseraAsksOurWitness(t *testing.T) {
	klog.LogToStderr(false)
	const origin = "tessera.example/log"
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	logKey, err := c2sp.ParseVKey(vkey)
	if err != nil {
		t.Fatal(err)
	}
	d, err := witness.CreateDir(t.Context(), filepath.Join(t.TempDir(), "w"), "witness.example/w1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Store.AddLog(t.Context(), origin, []*c2sp.Key{logKey}); err != nil {
		t.Fatal(err)
	}
	w, err := witness.New(witness.Config{Signer: d.Signer, MLDSA: d.MLDSA, Store: d.Store})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(w.Handler())
	defer server.Close()
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := tessera.NewWitness(d.Signer.Key().String(), at)
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	appender, shutdown, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(signer).WithCheckpointInterval(200*time.Millisecond).WithBatching(16, 5*time.Millisecond).
		WithWitnesses(tessera.NewWitnessGroup(1, theirs), &tessera.WitnessOptions{FailOpen: false}))
	if err != nil {
		t.Fatal(err)
	}
	var last uint64
	for i := range 40 {
		index, err := appender.Add(ctx, tessera.NewEntry(fmt.Appendf(nil, "entry %d", i)))()
		if err != nil {
			t.Fatal(err)
		}
		last = max(last, index.Index)
	}
	policy, err := c2sp.ParsePolicy([]byte("log " + vkey + "\nwitness w " + d.Signer.Key().String() + "\nquorum w\n"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a checkpoint of all entries, cosigned by our witness", func() error {
		raw, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
		if err != nil {
			return err
		}
		v, err := policy.Verify(raw)
		if err == nil && v.Size <= last {
			err = fmt.Errorf("size %d", v.Size)
		}
		return err
	})
	known, err := d.Store.Log(t.Context(), origin)
	if err != nil || known.Head == nil || known.Head.Size != last+1 {
		t.Errorf("our witness holds %+v: %v", known.Head, err)
	}
	if err := shutdown(ctx); err != nil {
		t.Error(err)
	}
}

// TestOnePolicyTwoMakes: a checkpoint cosigned by our witness and by litewitness
// satisfies a policy that wants both, and litewitness answers as ours does where
// the specification leaves no choice.
func TestOnePolicyTwoMakes(t *testing.T) {
	lite, err := witnesstest.StartLitewitness(t.Context(), "lite.example/w")
	if err != nil {
		t.Fatal(err)
	}
	defer lite.Close()
	d, err := witness.CreateDir(t.Context(), filepath.Join(t.TempDir(), "w"), "witness.example/w1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	signer, err := c2sp.GenerateSigner("log.example/both", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Store.AddLog(t.Context(), signer.Key().Name(), []*c2sp.Key{signer.Key()}); err != nil {
		t.Fatal(err)
	}
	if err := lite.AddLog(t.Context(), signer.Key()); err != nil {
		t.Fatal(err)
	}
	w, err := witness.New(witness.Config{Signer: d.Signer, MLDSA: d.MLDSA, Store: d.Store})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(w.Handler())
	defer server.Close()

	cp := c2sp.Checkpoint{Origin: signer.Key().Name(), Size: 1, Root: [32]byte{1, 2, 3}}
	sig, err := signer.Sign(cp.Text())
	if err != nil {
		t.Fatal(err)
	}
	n := &c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}
	body := (&c2sp.AddCheckpoint{Checkpoint: n.Bytes()}).Bytes()
	for _, at := range []string{server.URL, lite.URL} {
		status, answer, _ := ask(t, "POST", at+"/add-checkpoint", body)
		if status != 200 {
			t.Fatalf("%s: %d %s", at, status, answer)
		}
		sigs, err := c2sp.ParseSignatureLines([]byte(answer))
		if err != nil {
			t.Fatal(err)
		}
		n.Sigs = append(n.Sigs, sigs...)
	}
	policy, err := c2sp.ParsePolicy(fmt.Appendf(nil, "log %s\nwitness ours %s\nwitness pq %s\nwitness lite %s\ngroup all all ours pq lite\nquorum all\n",
		signer.Key(), d.Signer.Key(), d.MLDSA.Key(), lite.Key))
	if err != nil {
		t.Fatal(err)
	}
	v, err := policy.Verify(n.Bytes())
	if err != nil || len(v.Cosignatures) != 3 {
		t.Fatalf("%+v: %v", v, err)
	}

	// The same question, the same answer.
	fork := cp
	fork.Root = [32]byte{9}
	sig, _ = signer.Sign(fork.Text())
	forked := (&c2sp.AddCheckpoint{Old: 1, Checkpoint: (&c2sp.Note{Text: fork.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()}).Bytes()
	stranger, err := c2sp.GenerateSigner("stranger.example/log", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	theirs := c2sp.Checkpoint{Origin: "stranger.example/log", Size: 1, Root: [32]byte{1}}
	sig, _ = stranger.Sign(theirs.Text())
	unknown := (&c2sp.AddCheckpoint{Checkpoint: (&c2sp.Note{Text: theirs.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()}).Bytes()
	sig, _ = stranger.Sign(cp.Text())
	unsigned := (&c2sp.AddCheckpoint{Old: 1, Checkpoint: (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()}).Bytes()
	for name, row := range map[string]struct {
		body   []byte
		status int
	}{"a stale old size": {body, 409}, "a fork": {forked, 422}, "an unknown log": {unknown, 404}, "another's signature": {unsigned, 403}, "garbage": {[]byte("old\n"), 400}} {
		for _, at := range []string{server.URL, lite.URL} {
			status, answer, header := ask(t, "POST", at+"/add-checkpoint", row.body)
			if status != row.status {
				t.Errorf("%s, %s: %d %s, want %d", name, at, status, answer, row.status)
			}
			if status == 409 && (answer != "1\n" || header.Get("Content-Type") != "text/x.tlog.size") {
				t.Errorf("%s, %s: %q, %s", name, at, answer, header.Get("Content-Type"))
			}
		}
	}
}
