package main

// The real auditor, killed at random moments while it follows a log that grows,
// and started again.

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/evillog"
	"github.com/portbook/portbook/witness/auditor"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
)

func TestAuditorKilled(t *testing.T) {
	const origin = "log.test/audited"
	signer, err := c2sp.GenerateSigner(origin, c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	log := evillog.New(evillog.Config{Signer: signer})
	srv := httptest.NewServer(log)
	defer srv.Close()
	grow := func(n int) {
		var list []*entry.Entry
		for i := range n {
			k := int(log.Size()) + i
			list = append(list, &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: "index.test/simple", Ecosystem: entry.PyPI, Project: "demo",
				Version: fmt.Sprint(k), File: fmt.Sprintf("demo-%d.tar.gz", k), Size: entry.Uint(1), SHA256: fmt.Sprintf("%064x", k), Time: "2026-11-29T12:00:00Z"})
		}
		log.Upload(list...)
	}
	dir := filepath.Join(t.TempDir(), "a")
	d, err := auditor.CreateDir(t.Context(), dir, "auditor.example/a1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(dir, auditor.MarkFile)
	if err := d.Store.CreateMark(t.Context(), mark); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Store.AddLog(t.Context(), origin, []*c2sp.Key{signer.Key()}); err != nil {
		t.Fatal(err)
	}
	if err := d.SetURL(t.Context(), origin, srv.URL); err != nil {
		t.Fatal(err)
	}
	keys := d.Keys()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	// mirrored reads all that is served, and returns its size; 0: nothing yet.
	last := uint64(0)
	mirrored := func(addr string) uint64 {
		base := "http://" + addr + "/" + c2sp.OriginHash(origin) + "/"
		status, text, err := exchange(starting, http.MethodGet, base+"checkpoint", nil)
		if err != nil || status != 200 && status != 404 {
			t.Fatalf("%d %s: %v", status, text, err)
		}
		if status == 404 {
			return 0
		}
		note, err := c2sp.ParseNote([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		cp, err := c2sp.ParseCheckpoint(note.Text)
		if err != nil {
			t.Fatal(err)
		}
		for i, k := range append([]*c2sp.Key{signer.Key()}, keys...) {
			if err := k.VerifyLog(note.Text, note.Sigs[i]); err != nil {
				t.Error(err)
			}
		}
		tree := testonly.New(rfc6962.DefaultHasher)
		for at := uint64(0); at < cp.Size; at += 256 {
			b := c2sp.Tile{Level: -1, Index: at / 256, Width: int(min(256, cp.Size-at))}
			status, text, err := exchange(starting, http.MethodGet, base+b.Path(), nil)
			if err != nil || status != 200 {
				t.Fatalf("%s of %d: %d %s: %v", b.Path(), cp.Size, status, text, err)
			}
			leaves, err := c2sp.ParseBundle([]byte(text), b.Width)
			if err != nil {
				t.Fatal(err)
			}
			tree.AppendData(leaves...)
		}
		if [32]byte(tree.HashAt(cp.Size)) != cp.Root {
			t.Fatalf("at size %d what is served does not hash to what was cosigned", cp.Size)
		}
		if cp.Size < last {
			t.Fatalf("cosigned %d, after %d", cp.Size, last)
		}
		last = cp.Size
		return cp.Size
	}

	rounds := *crashRounds
	for round := range rounds + 1 {
		addr, err := freeAddress()
		if err != nil {
			t.Fatal(err)
		}
		cmd := program(t, "audit", "serve", "--dir", dir, "--mark-beside", "--listen", addr, "--poll", "100ms")
		mirrored(addr)
		if round == rounds { // left alone, it comes to the end
			for deadline := time.Now().Add(starting); mirrored(addr) < log.Size(); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("cosigned %d of %d", last, log.Size())
				}
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(250))*time.Millisecond)
		for ctx.Err() == nil {
			grow(1 + rand.IntN(150))
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		cmd.Wait()
	}
}
