package evillog

// Lies in what the log hands out one by one: tlog-proofs, and the requests it
// sends to witnesses. c2sp.org/tlog-proof, c2sp.org/tlog-witness.

import (
	"bytes"
	"crypto/sha256"

	"github.com/portbook/portbook/c2sp"
)

// AlterProof changes each proof before it is written.
func (l *Log) AlterProof(f func(*c2sp.Proof)) {
	l.change(func(ls *lies) { ls.proof = append(ls.proof, f) })
}

// ProofBytes changes each proof as it is written.
func (l *Log) ProofBytes(f func([]byte) []byte) {
	l.change(func(ls *lies) { ls.proofB = append(ls.proofB, f) })
}

// ProveLeaf carries another leaf than the one that is proven.
func (l *Log) ProveLeaf(leaf []byte) { l.AlterProof(func(p *c2sp.Proof) { p.Extra = leaf }) }

// ProveIndex claims another place in the tree.
func (l *Log) ProveIndex(index uint64) { l.AlterProof(func(p *c2sp.Proof) { p.Index = index }) }

// ProveHashes gives a proof of n hashes: the true ones, then garbage.
func (l *Log) ProveHashes(n int) {
	l.AlterProof(func(p *c2sp.Proof) {
		for len(p.Hashes) < n {
			p.Hashes = append(p.Hashes, sha256.Sum256([]byte{byte(len(p.Hashes))}))
		}
		p.Hashes = p.Hashes[:n]
	})
}

// ProveGarbage replaces the first hash of the proof.
func (l *Log) ProveGarbage() {
	l.AlterProof(func(p *c2sp.Proof) { p.Hashes[0] = sha256.Sum256([]byte("garbage")) })
}

// ProveUnder puts another checkpoint into each proof.
func (l *Log) ProveUnder(note []byte) { l.AlterProof(func(p *c2sp.Proof) { p.Checkpoint = note }) }

// ReplaceInProof changes the text of each proof once.
func (l *Log) ReplaceInProof(old, new string) {
	l.ProofBytes(func(b []byte) []byte {
		if !bytes.Contains(b, []byte(old)) {
			panic("evillog: the proof does not contain " + old)
		}
		return bytes.Replace(b, []byte(old), []byte(new), 1)
	})
}

// AlterRequest changes each request to a witness.
func (l *Log) AlterRequest(f func(*c2sp.AddCheckpoint)) {
	l.change(func(ls *lies) { ls.request = append(ls.request, f) })
}

// ClaimOld asks witnesses to start from this size.
func (l *Log) ClaimOld(old uint64) {
	l.AlterRequest(func(a *c2sp.AddCheckpoint) { a.Old = old })
}

// RequestHashes gives consistency proofs of n hashes: the true ones, then garbage.
func (l *Log) RequestHashes(n int) {
	l.AlterRequest(func(a *c2sp.AddCheckpoint) {
		for len(a.Proof) < n {
			a.Proof = append(a.Proof, sha256.Sum256([]byte{byte(len(a.Proof))}))
		}
		a.Proof = a.Proof[:n]
	})
}
