package world_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/world"
)

// TestAuditedProof: a client that asks for two witnesses and an auditor. The log
// publishes without the auditor, and what it acknowledges is below that quorum;
// a moment after the auditor has signed, the log's proof satisfies it.
func TestAuditedProof(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"pushed by the log", "pulled by the auditor, which the log reaches late"} {
		t.Run(way, func(t *testing.T) {
			ctx := t.Context()
			w, err := world.New(ctx, t.TempDir(), world.Options{Witnesses: 3, Quorum: 2, Auditors: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			auditor := w.Auditors[0]
			if err := auditor.Stop(); err != nil { // so that there is a before
				t.Fatal(err)
			}
			if strings.HasPrefix(way, "pulled") {
				if err := auditor.Follow(ctx, w.LogKey.Key().Name(), w.Log.URL); err != nil {
					t.Fatal(err)
				}
			}
			c, err := w.Log.Submitter("index.test/simple")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			f := client.File{Registry: "index.test/simple", Ecosystem: entry.PyPI, Name: "demo-1.0.tar.gz", SHA256: sha256.Sum256([]byte("demo"))}
			e := &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: f.Registry, Ecosystem: f.Ecosystem, Project: "demo", Version: "1.0",
				File: f.Name, Size: entry.Uint(4), SHA256: hex.EncodeToString(f.SHA256[:]), Time: time.Now().UTC().Format(entry.TimeFormat)}
			first, err := c.Submit(ctx, e)
			if err != nil {
				t.Fatal(err) // publishing waited for the auditor
			}
			if _, err := client.Verify(w.ParsedPolicy(), f, first.Proof); err != nil {
				t.Fatal(err)
			}
			policy := w.AuditedPolicy()
			below := func(proof []byte) {
				t.Helper()
				var refusal *client.Refusal
				if _, err := client.Verify(policy, f, proof); !errors.As(err, &refusal) || refusal.Code != client.CodeQuorum {
					t.Fatalf("%v, want %s", err, client.CodeQuorum)
				}
			}
			below(first.Proof)
			below(proofOf(t, w, 0))

			if err := auditor.Start(); err != nil {
				t.Fatal(err)
			}
			await(t, "a proof with the auditor's cosignature", func() bool {
				v, err := client.Verify(policy, f, proofOf(t, w, 0))
				return err == nil && v.Index == 0
			})
			below(first.Proof) // it stays what it is
			// The public checkpoint carries it too, for those who follow the log.
			reader, err := client.NewReader(w.Log.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			await(t, "a public checkpoint with it", func() bool {
				raw, err := reader.Checkpoint(ctx)
				if err != nil {
					t.Fatal(err)
				}
				_, err = policy.Verify(raw)
				return err == nil
			})

			// The auditor goes, and uploads go on. What it has signed stays provable.
			if err := auditor.Stop(); err != nil {
				t.Fatal(err)
			}
			next := *e
			next.File, next.Version = "demo-1.1.tar.gz", "1.1"
			if _, err := c.Submit(ctx, &next); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Verify(policy, f, proofOf(t, w, 0)); err != nil {
				t.Errorf("once the auditor is gone: %v", err)
			}
			if err := auditor.Start(); err != nil {
				t.Fatal(err)
			}
			g := f
			g.Name = next.File
			await(t, "the auditor's catching up", func() bool {
				_, err := client.Verify(policy, g, proofOf(t, w, 1))
				return err == nil
			})
		})
	}
}

// proofOf is the proof of an entry that the log gives now.
func proofOf(t *testing.T, w *world.World, index uint64) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte("demo"))
	res, err := http.Get(w.Log.URL + "/v1/proof?sha256=" + hex.EncodeToString(digest[:]))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var answer struct {
		Proofs []struct {
			Index string
			Proof []byte
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	for _, p := range answer.Proofs {
		if p.Index == strconv.FormatUint(index, 10) || p.Index == "" && index == 0 {
			return p.Proof
		}
	}
	t.Fatalf("the log has no proof of entry %d: %d %+v", index, res.StatusCode, answer)
	return nil
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("there was not within a minute: %s", what)
		}
	}
}
