package client

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

// logWith returns a log of eleven leaves with the given one at index 5, and the
// proof of it under a note that w1 and w2 cosigned.
func logWith(t testing.TB, leaf []byte) (*testLog, c2sp.Proof) {
	l := newTestLog(t, "log.example/packages")
	l.fill(5, "before")
	l.add(leaf)
	l.fill(5, "after")
	return l, l.proof(5, 11, l.note(11, t0, 1, 2))
}

func TestVerify(t *testing.T) {
	leaf := must(testEntry().Marshal())
	l, p := logWith(t, leaf)
	v, err := Verify(l.policy, testFile(), p.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if v.Index != 5 || v.Checkpoint.Size != 11 || len(v.Cosignatures) != 2 || !v.LoggedAt.Equal(t0) || v.Entry.File != "Django-5.1.tar.gz" {
		t.Errorf("%+v", v)
	}
	// Any spelling of the project, or none.
	for _, project := range []string{"", "django", "DJANGO"} {
		f := testFile()
		f.Project = project
		if _, err := Verify(l.policy, f, p.Bytes()); err != nil {
			t.Errorf("project %q: %v", project, err)
		}
	}
	// Lines of unknown keys are ignored.
	stranger := must(c2sp.GenerateSigner("witness.example/stranger", c2sp.AlgEd25519Cosig))
	n := must(c2sp.ParseNote(p.Checkpoint))
	n.Sigs = append(n.Sigs, must(stranger.Cosign(l.checkpoint(11), t0)))
	p.Checkpoint = n.Bytes()
	if v, err := Verify(l.policy, testFile(), p.Bytes()); err != nil || len(v.Cosignatures) != 2 {
		t.Error(v, err)
	}
	// Without a quorum nothing dates the entry.
	none := must(c2sp.ParsePolicy([]byte("log " + l.signer.Key().String() + "\nquorum none\n")))
	if v, err := Verify(none, testFile(), p.Bytes()); err != nil || !v.LoggedAt.IsZero() {
		t.Error(v, err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	leaf := must(testEntry().Marshal())
	l, good := logWith(t, leaf)
	foreign := newTestLog(t, "log.example/packages") // same name, other keys
	foreign.add(l.leaves...)
	head := l.checkpoint(11)
	relabel := func(name string, w int) c2sp.Signature {
		s := must(l.witnesses[w-1].Cosign(head, t0))
		s.Name = name
		return s
	}
	withSigs := func(sigs ...c2sp.Signature) func(p *c2sp.Proof) {
		return func(p *c2sp.Proof) {
			n := must(c2sp.ParseNote(l.note(11, t0)))
			n.Sigs = append(n.Sigs, sigs...)
			p.Checkpoint = n.Bytes()
		}
	}
	w := func(i int) c2sp.Signature { return must(l.witnesses[i-1].Cosign(head, t0)) }
	otherEntry := testEntry()
	otherEntry.Version = "5.2"

	for _, tc := range []struct {
		name, code string
		change     func(p *c2sp.Proof)
	}{
		{"no leaf in the proof", CodeNoLeaf, func(p *c2sp.Proof) { p.Extra = nil }},
		{"a leaf longer than any", CodeNoLeaf, func(p *c2sp.Proof) { p.Extra = bytes.Repeat([]byte("x"), entry.MaxSize+1) }},
		{"an extra that does not hash to the leaf", CodeInclusion, func(p *c2sp.Proof) { p.Extra = must(otherEntry.Marshal()) }},
		{"wrong index", CodeInclusion, func(p *c2sp.Proof) { p.Index = 4 }},
		{"index beyond the tree", CodeInclusion, func(p *c2sp.Proof) { p.Index = 11 }},
		{"enormous index", CodeInclusion, func(p *c2sp.Proof) { p.Index = 1<<63 - 1 }},
		{"wrong hash", CodeInclusion, func(p *c2sp.Proof) { p.Hashes[1][0] ^= 1 }},
		{"a hash missing", CodeInclusion, func(p *c2sp.Proof) { p.Hashes = p.Hashes[1:] }},
		{"a hash too many", CodeInclusion, func(p *c2sp.Proof) { p.Hashes = append(p.Hashes, p.Hashes[0]) }},
		{"no hashes", CodeInclusion, func(p *c2sp.Proof) { p.Hashes = nil }},
		{"the checkpoint of another size", CodeInclusion, func(p *c2sp.Proof) { p.Checkpoint = l.note(10, t0, 1, 2) }},
		{"the checkpoint of an empty tree", CodeInclusion, func(p *c2sp.Proof) { p.Checkpoint = l.note(0, t0, 1, 2) }},
		{"a log of the same name with other keys", CodeNoLogSignature, func(p *c2sp.Proof) { p.Checkpoint = foreign.note(11, t0, 1, 2) }},
		{"the checkpoint of another log", CodeUnknownLog, func(p *c2sp.Proof) {
			o := newTestLog(t, "log.example/other")
			o.add(l.leaves...)
			p.Checkpoint = o.note(11, t0, 1, 2)
		}},
		{"not signed by the log", CodeNoLogSignature, func(p *c2sp.Proof) {
			n := c2sp.Note{Text: head.Text(), Sigs: []c2sp.Signature{w(1), w(2), w(3)}}
			p.Checkpoint = n.Bytes()
		}},
		{"a bad log signature", CodeBadSignature, func(p *c2sp.Proof) {
			n := must(c2sp.ParseNote(p.Checkpoint))
			n.Sigs[0].Sig[5] ^= 1
			p.Checkpoint = n.Bytes()
		}},
		{"a bad third cosignature", CodeBadSignature, func(p *c2sp.Proof) {
			bad := w(3)
			bad.Sig[20] ^= 1
			withSigs(w(1), w(2), bad)(p)
		}},
		{"below the quorum", CodeQuorum, withSigs(w(1))},
		{"no witness", CodeQuorum, withSigs()},
		{"a cosignature counted twice", CodeQuorum, withSigs(w(1), w(1))},
		{"one witness at two times", CodeQuorum, withSigs(w(1), must(l.witnesses[0].Cosign(head, t0.Add(time.Hour))))},
		{"a witness relabelled as a stranger", CodeQuorum, withSigs(w(1), relabel("witness.example/stranger", 2))},
		{"a witness under another's name and key ID", CodeBadSignature, func(p *c2sp.Proof) {
			s := w(1)
			s.Name, s.KeyID = l.witnesses[1].Key().Name(), l.witnesses[1].Key().ID()
			withSigs(w(1), s)(p)
		}},
		{"only strangers", CodeQuorum, func(p *c2sp.Proof) {
			var sigs []c2sp.Signature
			for _, name := range []string{"a", "b", "c"} {
				s := must(c2sp.GenerateSigner(name, c2sp.AlgEd25519Cosig))
				sigs = append(sigs, must(s.Cosign(head, t0)))
			}
			withSigs(sigs...)(p)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := must(c2sp.ParseProof(good.Bytes()))
			tc.change(p)
			_, err := Verify(l.policy, testFile(), p.Bytes())
			wantRefusal(t, err, tc.code)
			_, err = VerifyProof(l.policy, p.Bytes())
			wantRefusal(t, err, tc.code)
		})
	}

	for name, b := range map[string][]byte{
		"nothing":                  nil,
		"garbage":                  []byte("\x00\xff garbage"),
		"a web page":               []byte("<!DOCTYPE html><html>\n\n</html>\n"),
		"CRLF":                     bytes.ReplaceAll(good.Bytes(), []byte("\n"), []byte("\r\n")),
		"too long":                 append(good.Bytes(), make([]byte, c2sp.MaxProof)...),
		"size with a leading zero": bytes.Replace(good.Bytes(), []byte("\n11\n"), []byte("\n011\n"), 1),
		"checkpoint only":          good.Checkpoint,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Verify(l.policy, testFile(), b)
			wantRefusal(t, err, CodeProofMalformed)
		})
	}
}

func TestVerifyRefusesAnotherFile(t *testing.T) {
	l, p := logWith(t, must(testEntry().Marshal()))
	for _, tc := range []struct {
		name, code string
		change     func(f *File)
	}{
		{"another registry", CodeRegistry, func(f *File) { f.Registry = "pypi.example" }},
		{"no registry", CodeRegistry, func(f *File) { f.Registry = "" }},
		{"another ecosystem", CodeEcosystem, func(f *File) { f.Ecosystem = entry.NPM }},
		{"no ecosystem", CodeEcosystem, func(f *File) { f.Ecosystem = "" }},
		{"another project", CodeProject, func(f *File) { f.Project = "django-rest" }},
		{"a project that is no name", CodeProject, func(f *File) { f.Project = "../django" }},
		{"another file", CodeFileName, func(f *File) { f.Name = "Django-5.0.tar.gz" }},
		{"a file in other case", CodeFileName, func(f *File) { f.Name = "django-5.1.tar.gz" }},
		{"no file name", CodeFileName, func(f *File) { f.Name = "" }},
		{"other contents", CodeDigest, func(f *File) { f.SHA256 = sha256.Sum256([]byte("malware")) }},
		{"no digest", CodeDigest, func(f *File) { f.SHA256 = [32]byte{} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := testFile()
			tc.change(&f)
			_, err := Verify(l.policy, f, p.Bytes())
			wantRefusal(t, err, tc.code)
		})
	}
}

func TestVerifyRefusesOtherEntries(t *testing.T) {
	yank := testEntry()
	yank.Kind, yank.ID, yank.Reason = entry.KindYank, strings.Repeat("0f", 16), ""
	yank.Size = nil
	leaf, err := yank.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	l, p := logWith(t, leaf)
	_, err = Verify(l.policy, testFile(), p.Bytes())
	wantRefusal(t, err, CodeNotUpload)

	l, p = logWith(t, []byte("not an entry"))
	_, err = Verify(l.policy, testFile(), p.Bytes())
	wantRefusal(t, err, CodeEntryMalformed)

	// The right entry with a space in it: true in the log, but not canonical.
	l, p = logWith(t, bytes.Replace(must(testEntry().Marshal()), []byte(","), []byte(", "), 1))
	_, err = Verify(l.policy, testFile(), p.Bytes())
	wantRefusal(t, err, CodeEntryMalformed)

	// npm entries that were only observed may lack a SHA-256.
	e := &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimObserved, Time: "2026-11-21T11:59:00Z",
		Registry: "registry.npmjs.org", Ecosystem: entry.NPM, Project: "left-pad", Version: "1.0.0", File: "left-pad-1.0.0.tgz",
		SHA512: strings.Repeat("ab", 64)}
	l, p = logWith(t, must(e.Marshal()))
	_, err = Verify(l.policy, File{Registry: e.Registry, Ecosystem: e.Ecosystem, Name: e.File, SHA256: sha256.Sum256(testContents), Observed: true}, p.Bytes())
	wantRefusal(t, err, CodeNoDigest)
}

// TestObservedIsNotTheIndex: what a follower saw served may be the swapped file
// itself, so its entry vouches for nothing unless the caller says so.
func TestObservedIsNotTheIndex(t *testing.T) {
	e := testEntry()
	e.Claim = entry.ClaimObserved
	l, p := logWith(t, must(e.Marshal()))
	f := testFile()
	_, err := Verify(l.policy, f, p.Bytes())
	wantRefusal(t, err, CodeClaim)
	f.Observed = true
	if v, err := Verify(l.policy, f, p.Bytes()); err != nil || v.Entry.Claim != entry.ClaimObserved {
		t.Errorf("with Observed: %v, %v", v, err)
	}
}

// TestUnknownVersionRefusesThatLeafOnly: a log that has moved on to a later
// format goes on vouching for the entries of this one.
func TestUnknownVersionRefusesThatLeafOnly(t *testing.T) {
	leaf := must(testEntry().Marshal())
	v2 := bytes.Replace(leaf, []byte(`"v":1`), []byte(`"v":2`), 1)
	if bytes.Equal(leaf, v2) {
		t.Fatal("no version in the leaf")
	}
	l, _ := logWith(t, v2)
	l.add(leaf)
	note := l.note(12, t0, 1, 3)
	p := l.proof(5, 12, note)
	_, err := Verify(l.policy, testFile(), p.Bytes())
	r := wantRefusal(t, err, CodeEntryVersion)
	if !errors.Is(r, entry.ErrVersion) {
		t.Error("the cause is lost")
	}
	p = l.proof(11, 12, note)
	if _, err := Verify(l.policy, testFile(), p.Bytes()); err != nil {
		t.Error(err)
	}
}

// TestEveryByteCounts: whatever byte of a proof with a bare quorum is changed,
// and wherever it is cut off, it is refused.
func TestEveryByteCounts(t *testing.T) {
	l, p := logWith(t, must(testEntry().Marshal()))
	good := p.Bytes()
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1 << (i % 7)
		if v, err := Verify(l.policy, testFile(), b); err == nil {
			t.Errorf("byte %d changed from %q to %q: %+v", i, good[i], b[i], v)
		}
		if _, err := Verify(l.policy, testFile(), good[:i]); err == nil {
			t.Errorf("cut off after %d bytes", i)
		}
	}
}

func FuzzVerify(f *testing.F) {
	l, p := logWith(f, must(testEntry().Marshal()))
	f.Add(p.Bytes())
	f.Add(bytes.Replace(p.Bytes(), []byte("index 5"), []byte("index 6"), 1))
	p.Checkpoint = l.note(11, t0, 1)
	f.Add(p.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Verify(l.policy, testFile(), b)
		var r *Refusal
		if err != nil && !errors.As(err, &r) {
			t.Errorf("%T: %v", err, err)
		}
		if err == nil && (v.Index != 5 || v.Checkpoint.Size != 11) {
			t.Errorf("accepted %q", b)
		}
	})
}
