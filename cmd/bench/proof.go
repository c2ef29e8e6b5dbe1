package main

// Row verify-proof, and the proofs it needs.

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/internal/world"
)

func verifyProof(ctx context.Context, quick bool) (Row, error) {
	n := 3000
	if quick {
		n = 500
	}
	var ours, raw []float64
	var size, signatures int
	err := inTempDir(func(dir string) error {
		// All three witnesses are in the quorum, so that each proof has log + 3.
		w, err := world.New(ctx, dir, world.Options{Witnesses: 3, Quorum: 3})
		if err != nil {
			return err
		}
		defer w.Close()
		c, err := w.Log.Submitter(benchRegistry)
		if err != nil {
			return err
		}
		defer c.Close()
		e := uploadEntry(1)
		for i := range 20 {
			if _, err := c.Submit(ctx, uploadEntry(100+i)); err != nil {
				return err
			}
		}
		ack, err := c.Submit(ctx, e)
		if err != nil {
			return err
		}
		policy := w.ParsedPolicy()
		file := client.File{Registry: e.Registry, Ecosystem: e.Ecosystem, Project: e.Project, Name: e.File, SHA256: digest(e.SHA256)}
		v, err := client.Verify(policy, file, ack.Proof)
		if err != nil {
			return err
		}
		size, signatures = len(ack.Proof), 1+len(v.Cosignatures)
		pub, priv, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		msg := make([]byte, 150) // a cosigned checkpoint is about as long
		sig := ed25519.Sign(priv, msg)
		for range 15 {
			start := time.Now()
			for range n / 15 {
				for range signatures {
					if !ed25519.Verify(pub, msg, sig) {
						return fmt.Errorf("signature does not verify")
					}
				}
			}
			raw = append(raw, time.Since(start).Seconds()*1e6/float64(n/15))
			start = time.Now()
			for range n / 15 {
				if _, err := client.Verify(policy, file, ack.Proof); err != nil {
					return err
				}
			}
			ours = append(ours, time.Since(start).Seconds()*1e6/float64(n/15))
		}
		return nil
	})
	if err != nil {
		return Row{}, err
	}
	r := Row{Value: median(ours), Unit: "us", Aim: "ratio <= 1.25", Note: fmt.Sprintf("proof of %d B, %d signatures", size, signatures)}
	r = r.against(fmt.Sprintf("%d raw Ed25519 verifications", signatures), median(raw))
	r.Met = *r.Ratio <= 1.25
	return r, nil
}
