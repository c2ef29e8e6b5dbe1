package c2sp

// This package against the libraries that speak the same formats. Whatever it
// accepts they must accept too, and understand alike; what they accept and it
// does not is declared here, with the reason. An undeclared difference fails.
//
// Declared: this package alone refuses
//
//   - checkpoints: leading zeros and sizes from 2^63; roots that are not 32
//     bytes; base64 that is not canonical; control characters and bytes that are
//     not UTF-8 (formats leaves those to the note); empty extension lines and a
//     missing last newline (formats hands the rest back unread).
//   - notes: base64 with carriage returns or set bits after the end; 512 KiB.
//     x/mod verifies only the first of several lines by one key; here all.
//   - vkeys: upper-case key IDs; base64 as above; Ed25519 keys of small order or
//     not in canonical form; control characters in the name. formats does not
//     compare the key ID of cosigner keys at all, and takes type 0x01 for one.
//   - cosignatures: time 0 and from 2^63; texts that are no strict checkpoint;
//     for ML-DSA-44 names and origins above 255 bytes (formats wraps the length).
//   - proofs: an empty extra line; indexes with leading zeros or from 2^63; what
//     follows is no signed checkpoint; carriage returns; more than 63 hashes.
//   - policies (formats reads Sigsum's dialect): there 'log' lines are not read,
//     witnesses need a URL, a comment may end any line, several quorum lines are
//     allowed, one key may have two names, a member may be named twice, a
//     threshold may be 0, and the names log, witness, group, any, all, quorum
//     are refused. Only what both accept is compared.
//   - tile paths: x/mod has data tiles and heights of its own; compared for
//     height 8 and levels up to 63.

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	fproof "github.com/transparency-dev/formats/proof"
	fwitness "github.com/transparency-dev/formats/witness"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func diffCheckpoint(t *testing.T, b []byte, c Checkpoint, err error) {
	var theirs log.Checkpoint
	rest, terr := theirs.Unmarshal(b)
	if err == nil {
		if terr != nil {
			t.Fatalf("formats refuses %q: %v", b, terr)
		}
		if theirs.Origin != c.Origin || theirs.Size != c.Size || !bytes.Equal(theirs.Hash, c.Root[:]) {
			t.Errorf("formats reads %q as %+v", b, theirs)
		}
		var ext strings.Builder
		for _, e := range c.Extensions {
			ext.WriteString(e + "\n")
		}
		if ext.String() != string(rest) {
			t.Errorf("formats leaves %q of %q", rest, b)
		}
		return
	}
	if terr != nil {
		return
	}
	// Refused by us alone: for a declared reason?
	size := strings.Split(string(b), "\n")[1]
	root := strings.Split(string(b), "\n")[2]
	declared := len(b) > MaxNote || checkText("", string(b)) != nil ||
		len(size) > 1 && size[0] == '0' || theirs.Size >= 1<<63 ||
		len(theirs.Hash) != 32 || base64.StdEncoding.EncodeToString(theirs.Hash) != root ||
		len(rest) > 0 && (rest[len(rest)-1] != '\n' || rest[0] == '\n' || bytes.Contains(rest, []byte("\n\n")))
	if !declared {
		t.Errorf("formats accepts %q, we refuse it for an undeclared reason: %v", b, err)
	}
}

func diffNote(t *testing.T, b []byte, n *Note, err error) {
	var unverified *note.UnverifiedNoteError
	_, terr := note.Open(b, note.VerifierList())
	theirsOK := errors.As(terr, &unverified)
	if err == nil {
		if !theirsOK {
			t.Fatalf("x/mod refuses %q: %v", b, terr)
		}
		if unverified.Note.Text != n.Text {
			t.Errorf("x/mod reads the text %q", unverified.Note.Text)
		}
		seen := map[string]bool{}
		var mine []Signature
		for _, s := range n.Sigs { // x/mod drops repeated lines
			if !seen[s.Line()] {
				mine = append(mine, s)
			}
			seen[s.Line()] = true
		}
		if len(mine) != len(unverified.Note.UnverifiedSigs) {
			t.Fatalf("x/mod reads %d signatures, we %d", len(unverified.Note.UnverifiedSigs), len(mine))
		}
		for i, s := range unverified.Note.UnverifiedSigs {
			if s.Name != mine[i].Name || s.Hash != mine[i].KeyID || sigPrefix+s.Name+" "+s.Base64+"\n" != mine[i].Line() {
				t.Errorf("x/mod reads signature %d as %+v", i, s)
			}
		}
		return
	}
	if !theirsOK {
		return
	}
	declared := len(b) > MaxNote
	for _, s := range unverified.Note.UnverifiedSigs {
		raw, _ := base64.StdEncoding.DecodeString(s.Base64)
		declared = declared || base64.StdEncoding.EncodeToString(raw) != s.Base64
	}
	if !declared {
		t.Errorf("x/mod accepts %q, we refuse it for an undeclared reason: %v", b, err)
	}
}

func diffVKey(t *testing.T, s string, err error) {
	v, terr := note.NewVerifier(s) // 0x01
	c, cerr := fnote.NewVerifierForCosignatureV1(s)
	if err == nil {
		k := must(ParseVKey(s))
		if k.IsCosigner() {
			if cerr != nil || c.Name() != k.Name() || c.KeyHash() != k.ID() {
				t.Errorf("formats reads %q otherwise: %v", s, cerr)
			}
		} else if terr != nil || v.Name() != k.Name() || v.KeyHash() != k.ID() {
			t.Errorf("x/mod reads %q otherwise: %v", s, terr)
		}
		return
	}
	if terr != nil {
		return
	}
	f := strings.SplitN(s, "+", 3)
	raw, _ := base64.StdEncoding.DecodeString(f[2])
	declared := f[1] != strings.ToLower(f[1]) || base64.StdEncoding.EncodeToString(raw) != f[2] ||
		weakEd25519(raw[1:]) || checkText("", f[0]) != nil
	if !declared {
		t.Errorf("x/mod accepts %q, we refuse it for an undeclared reason: %v", s, err)
	}
}

func diffCosignature(t *testing.T, k *Key, text string, s Signature, err error) {
	if !k.Matches(s) {
		return // a matter of which key to ask, which they leave to the caller
	}
	if k.Alg() == AlgEd25519 {
		if ok := must(note.NewVerifier(k.String())).Verify([]byte(text), s.Sig); ok != (err == nil) {
			t.Errorf("x/mod says %v, we say %v", ok, err)
		}
		return
	}
	ok := must(fnote.NewVerifierForCosignatureV1(k.String())).Verify([]byte(text), s.Sig)
	if ok == (err == nil) {
		return
	}
	_, cerr := ParseCheckpoint(text)
	declared := ok && (cerr != nil || bytes.Equal(s.Sig[:8], make([]byte, 8)) || s.Sig[0] >= 0x80 || len(strings.SplitN(text, "\n", 2)[0]) > 255)
	if !declared {
		t.Errorf("formats says %v, we say %v", ok, err)
	}
}

func diffProof(t *testing.T, b []byte, p *Proof, err error) {
	var theirs fproof.TLogProof
	terr := theirs.Unmarshal(b)
	if err == nil {
		long := slicesContainLongLine(b) // bufio.Scanner gives up at 64 KiB
		if terr != nil && !long {
			t.Fatalf("formats refuses %q: %v", b, terr)
		}
		if terr == nil && (theirs.Index != p.Index || !bytes.Equal(theirs.ExtraData, p.Extra) || !bytes.Equal(theirs.Checkpoint, p.Checkpoint) || len(theirs.Hashes) != len(p.Hashes)) {
			t.Errorf("formats reads %q as %+v", b, theirs)
		}
		return
	}
	if terr != nil {
		return
	}
	s := string(b)
	_, after, _ := strings.Cut(s, "index ")
	index, _, _ := strings.Cut(after, "\n")
	declared := len(b) > MaxProof || strings.Contains(s, "\r") || strings.Contains(s, "\nextra \n") || len(theirs.Hashes) > maxProofHashes ||
		strconv.FormatUint(theirs.Index, 10) != index || theirs.Index >= 1<<63 ||
		checkSignedCheckpoint(theirs.Checkpoint) != nil || !bytes.Equal(theirs.Marshal(), b)
	if !declared {
		t.Errorf("formats accepts %q, we refuse it for an undeclared reason: %v", b, err)
	}
}

func slicesContainLongLine(b []byte) bool {
	for line := range bytes.Lines(b) {
		if len(line) >= 64<<10 {
			return true
		}
	}
	return false
}

// diffPolicy compares the quorum of a policy that both accept, over every
// subset of its witnesses if they are few. formats decides by cosignatures, so
// only witnesses whose private keys are in the cast can take part.
func diffPolicy(t *testing.T, b []byte, p *Policy) {
	theirs, err := fwitness.ParsePolicy(b)
	if err != nil || len(p.Witnesses) > 4 {
		return
	}
	cast := map[string]*Signer{}
	for _, s := range []*Signer{testW1, testW2, testW3} {
		cast[s.Key().String()] = s
	}
	for subset := range 1 << len(p.Witnesses) {
		names := map[string]bool{}
		var sigs []Signature
		for i, w := range p.Witnesses {
			s := cast[w.Key.String()]
			if s == nil {
				return
			}
			if subset&(1<<i) != 0 {
				names[w.Name] = true
				sigs = append(sigs, cosign(s, testCP, 100))
			}
		}
		if have, want := p.Satisfied(names), theirs.Satisfied([]byte(signed(testCP, sigs...))); have != want {
			t.Errorf("%q with %v: formats says %v, we say %v", b, names, want, have)
		}
	}
}

func diffTilePath(t *testing.T, path string, tile Tile, err error) {
	if err != nil {
		return
	}
	// x/mod writes the height, and "data" for entries.
	theirs := tlog.Tile{H: 8, L: tile.Level, N: int64(tile.Index), W: tile.Width}
	want := strings.Replace(theirs.Path(), "tile/8/", "tile/", 1)
	want = strings.Replace(want, "tile/data/", "tile/entries/", 1)
	if path != want {
		t.Errorf("x/mod writes %q as %q", path, want)
	}
}

// TestDifferential runs the comparisons over all vectors. The fuzz targets run
// them over much more.
func TestDifferential(t *testing.T) {
	for _, v := range readVectors(t, "checkpoint") {
		c, err := ParseCheckpoint(string(v.bytes["input"]))
		diffCheckpoint(t, v.bytes["input"], c, err)
	}
	for _, kind := range []string{"note", "verify"} {
		for _, v := range readVectors(t, kind) {
			n, err := ParseNote(v.bytes["input"])
			diffNote(t, v.bytes["input"], n, err)
		}
	}
	for _, v := range readVectors(t, "vkey") {
		_, err := ParseVKey(string(v.bytes["input"]))
		diffVKey(t, string(v.bytes["input"]), err)
	}
	for _, v := range readVectors(t, "cosignature") {
		k := must(ParseVKey(string(v.bytes["vkey"])))
		s := must(ParseSignatureLines(v.bytes["input"]))[0]
		_, err := k.VerifyNote(string(v.bytes["text"]), s)
		diffCosignature(t, k, string(v.bytes["text"]), s, err)
	}
	for _, v := range readVectors(t, "proof") {
		p, err := ParseProof(v.bytes["input"])
		diffProof(t, v.bytes["input"], p, err)
	}
	for _, v := range readVectors(t, "tilepath") {
		tile, err := ParseTilePath(string(v.bytes["input"]))
		diffTilePath(t, string(v.bytes["input"]), tile, err)
	}
	// Policies that formats can read: witnesses with URLs.
	u := " https://w.example/\n"
	w := "witness w1 " + testW1.Key().String() + u + "witness w2 " + testW2.Key().String() + u + "witness w3 " + testW3.Key().String() + u
	for _, s := range []string{
		"quorum w1\n", "group g 2 w1 w2 w3\nquorum g\n", "group g all w1 w2 w3\nquorum g\n", "group g any w1 w2\nquorum g\n",
		"group a any w1 w2\ngroup b all a w3\nquorum b\n", "group a all w1 w2\ngroup b any a w3\nquorum b\n", "quorum none\n",
	} {
		b := []byte(w + s)
		if _, err := fwitness.ParsePolicy(b); err != nil {
			t.Fatalf("formats does not read %q: %v", b, err)
		}
		diffPolicy(t, b, must(ParsePolicy(b)))
	}
	// The other direction: their signers, our verifiers.
	for _, s := range []*Signer{testW1, testWPQ} {
		signer := must(fnote.NewSignerForCosignatureV1(s.SKey()))
		sig := must(signer.Sign([]byte(testCP.Text())))
		if signer.KeyHash() != s.Key().ID() {
			t.Errorf("formats gives key ID %08x, we %08x", signer.KeyHash(), s.Key().ID())
		}
		if _, err := s.Key().VerifyNote(testCP.Text(), Signature{signer.Name(), signer.KeyHash(), sig}); err != nil {
			t.Errorf("a cosignature by formats: %v", err)
		}
	}
	signer := must(note.NewSigner(testLog.SKey()))
	if _, err := testLog.Key().VerifyNote("text\n", Signature{signer.Name(), signer.KeyHash(), must(signer.Sign([]byte("text\n")))}); err != nil {
		t.Errorf("a signature by x/mod: %v", err)
	}
}
