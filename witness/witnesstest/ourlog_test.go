package witnesstest_test

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/witness/witnesstest"
)

// TestOurLogAsksLitewitness: a Portbook log whose quorum is a litewitness: it is
// heard at start, cosigns what grows, and is heard again after a restart.
func TestOurLogAsksLitewitness(t *testing.T) {
	lite, err := witnesstest.StartLitewitness(t.Context(), "lite.example/w")
	if err != nil {
		t.Fatal(err)
	}
	defer lite.Close()
	signer, err := c2sp.GenerateSigner("log.example/lite", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	if err := lite.AddLog(t.Context(), signer.Key()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := logserver.Init(t.Context(), filepath.Join(dir, "log"), filepath.Join(dir, "anchor"), signer.Key()); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("log %s\nwitness lite %s %s\nquorum lite\n", signer.Key(), lite.Key, lite.URL)
	policy, err := c2sp.ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var token logserver.Token
	for start := range 2 {
		l, err := logserver.Open(t.Context(), logserver.Config{Dir: filepath.Join(dir, "log"), Signer: signer, Policy: policy, AnchorBeside: true,
			Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Interval: 5 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log to take submissions", func() error {
			if s := l.Status(); !s.Writable {
				return errors.Join(errors.New("not writable"), s.Reason)
			}
			return nil
		})
		if start == 0 {
			if token, _, err = l.Tokens.Create(logserver.Token{Registry: "index.example", Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 5 {
			n := start*5 + i
			ack, err := l.Submit(t.Context(), token, &entry.Entry{
				Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "demo", Version: fmt.Sprint("1.", n), File: fmt.Sprintf("demo-1.%d.tar.gz", n),
				Size: entry.Uint(3), SHA256: strings.Repeat(fmt.Sprintf("%02x", n), 32), Time: "2026-11-21T05:00:00Z",
			}, logserver.Cosigned)
			if err != nil {
				t.Fatal(err)
			}
			v, err := policy.Verify(ack.Proof.Checkpoint)
			if err != nil || ack.Index != uint64(n) {
				t.Fatalf("entry %d at %d: %v", n, ack.Index, err)
			}
			if err := c2sp.VerifyInclusion(ack.Index, v.Size, entry.LeafHash(ack.Proof.Extra), ack.Proof.Hashes, v.Root); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
