package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
)

func sealed(body string) []byte {
	sum := sha256.Sum256([]byte(body))
	return []byte(stateHeader + hex.EncodeToString(sum[:]) + "\n" + body)
}

// forkEvidence returns evidence of each kind, and the logs it is about.
func forkEvidence(t testing.TB) (l, f *testLog, same, prefix *Evidence) {
	l = newTestLog(t, origin)
	l.fill(100, "log")
	f = l.fork(60)
	f.fill(90, "fork")
	same = &Evidence{First: l.note(100, t0, 1), Second: f.note(100, t0)}
	prefix = &Evidence{First: l.note(100, t0, 1, 2), Second: f.note(150, t0, 2),
		Hashes: must(prefixHashes(context.Background(), f, 100, 150))}
	return l, f, same, prefix
}

func TestEvidence(t *testing.T) {
	l, _, same, prefix := forkEvidence(t)
	for name, e := range map[string]*Evidence{"same": same, "prefix": prefix} {
		b := e.Bytes()
		if err := VerifyEvidence(b, l.policy); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		again := must(ParseEvidence(b))
		if !bytes.Equal(again.Bytes(), b) || !bytes.Equal(again.First, e.First) || !bytes.Equal(again.Second, e.Second) {
			t.Errorf("%s: changes when it is written and read", name)
		}
		// A person may add to the comments.
		if err := VerifyEvidence(bytes.Replace(b, []byte("# "), []byte("# found by me\n# "), 1), l.policy); err != nil {
			t.Errorf("%s: with a comment: %v", name, err)
		}
		// Cut off anywhere it proves nothing, except at the end of a comment-free
		// file, which there is not.
		for i := range b {
			if VerifyEvidence(b[:i], l.policy) == nil {
				t.Errorf("%s: cut off after %d of %d bytes it still proves something", name, i, len(b))
			}
		}
		if bytes.Contains(b, []byte("did not verify")) {
			t.Errorf("%s: evidence must say what contradicts, not that something failed", name)
		}
	}
	m := must(same.Verify(l.policy))
	if m.Code != CodeForkSameSize || len(m.Witnesses) != 0 {
		t.Errorf("%+v", m)
	}
	m = must(prefix.Verify(l.policy))
	if m.Code != CodeForkPrefix || len(m.Witnesses) != 1 || m.Witnesses[0] != "w2" {
		t.Errorf("%+v", m)
	}
}

// TestEvidenceMalformed: an entry that the log signed and no version of the
// format allows is evidence; one that keeps the grammar, or is of a version that
// nobody here knows, is none.
func TestEvidenceMalformed(t *testing.T) {
	l := newTestLog(t, origin)
	good := must((&entry.Entry{Kind: entry.KindCanary, Claim: entry.ClaimLog, ID: strings.Repeat("ab", 16), Time: "2026-11-21T05:00:00Z"}).Marshal())
	l.add(good, good, good)
	l.add([]byte(`{"kind":"upload","v":1}`), []byte(`{"v":2}`))
	claim := func(index int) *Evidence {
		return &Evidence{Claim: c2sp.ClaimMalformed, First: l.proven(index, 5, l.note(5, t0, 1))}
	}
	m, err := must(ParseEvidence(claim(3).Bytes())).Verify(l.policy)
	if err != nil || m.Code != CodeBadEntry || m.First.Size != 5 || m.Second != nil {
		t.Fatalf("%+v, %v", m, err)
	}
	met.Lock()
	met.codes[m.Code] = true
	met.Unlock()
	for name, e := range map[string]*Evidence{
		"a sound entry":      claim(1),
		"another version":    claim(4),
		"not what is proven": {Claim: c2sp.ClaimMalformed, First: bytes.Replace(claim(3).First, []byte("index 3"), []byte("index 2"), 1)},
		"no proof":           {Claim: c2sp.ClaimMalformed, First: l.note(5, t0, 1)},
		"a stranger's":       {Claim: c2sp.ClaimMalformed, First: strangersProof(t, good)},
	} {
		if m, err := e.Verify(l.policy); err == nil {
			t.Errorf("%s proves %+v", name, m)
		}
	}
}

// strangersProof is of a malformed entry, signed by a key of the log's name that
// nobody knows.
func strangersProof(t *testing.T, leaf []byte) []byte {
	s := newTestLog(t, origin)
	s.add(leaf, []byte("garbage"))
	return s.proven(1, 2, s.note(2, t0, 1))
}

// TestEvidenceAccusesNoHonestLog: whatever notes an honest log has signed, in
// whatever order, with whatever hashes, they prove nothing.
func TestEvidenceAccusesNoHonestLog(t *testing.T) {
	l, f, _, _ := forkEvidence(t)
	ctx := context.Background()
	for _, a := range []int{0, 1, 32, 64, 99, 100} {
		for _, b := range []int{0, 1, 32, 64, 99, 100} {
			for _, reader := range []*testLog{l, f} {
				e := &Evidence{First: l.note(a, t0, 1), Second: l.note(b, t0, 2)}
				if err := VerifyEvidence(e.Bytes(), l.policy); err == nil {
					t.Errorf("sizes %d and %d", a, b)
				}
				if a < b {
					e.Hashes = must(prefixHashes(ctx, reader, uint64(a), uint64(b)))
					if err := VerifyEvidence(e.Bytes(), l.policy); err == nil {
						t.Errorf("sizes %d and %d with hashes", a, b)
					}
				}
			}
		}
	}
}

func TestEvidenceRefuses(t *testing.T) {
	l, f, same, prefix := forkEvidence(t)
	other := newTestLog(t, "log.example/other")
	other.fill(100, "other")
	both := must(c2sp.ParsePolicy([]byte("log " + l.signer.Key().String() + "\nlog " + other.signer.Key().String() + "\nquorum none\n")))
	stranger := newTestLog(t, origin)
	stranger.fill(100, "stranger")
	changed := func(e *Evidence, change func(*Evidence)) []byte {
		c := must(ParseEvidence(e.Bytes()))
		change(c)
		return c.Bytes()
	}
	for name, b := range map[string][]byte{
		"nothing":                      nil,
		"garbage":                      []byte("garbage\n"),
		"another version":              bytes.Replace(same.Bytes(), []byte("/v1"), []byte("/v2"), 1),
		"an unknown claim":             bytes.Replace(same.Bytes(), []byte("claim same-size"), []byte("claim other"), 1),
		"the same note twice":          changed(same, func(e *Evidence) { e.Second = e.First }),
		"the same tree, signed twice":  changed(same, func(e *Evidence) { e.Second = l.note(100, t0.Add(1e9), 3) }),
		"two logs":                     changed(same, func(e *Evidence) { e.Second = other.note(100, t0) }),
		"a stranger under the name":    changed(same, func(e *Evidence) { e.Second = stranger.note(100, t0) }),
		"unsigned":                     changed(same, func(e *Evidence) { e.Second = bytes.Replace(e.Second, []byte(origin+" "), []byte("x "), 1) }),
		"signature changed":            changed(same, func(e *Evidence) { e.Second = bytes.Replace(e.Second, []byte("100"), []byte("101"), 1) }),
		"sizes differ, without hashes": changed(same, func(e *Evidence) { e.Second = f.note(101, t0) }),
		"hashes, but the same size":    changed(prefix, func(e *Evidence) { e.Second = f.note(100, t0) }),
		"larger one first":             changed(prefix, func(e *Evidence) { e.First, e.Second = e.Second, e.First }),
		"a hash changed":               changed(prefix, func(e *Evidence) { e.Hashes[0][0] ^= 1 }),
		"a hash missing":               changed(prefix, func(e *Evidence) { e.Hashes = e.Hashes[1:] }),
		"no hashes":                    changed(prefix, func(e *Evidence) { e.Hashes = [][32]byte{} }),
		"a hash too many":              changed(prefix, func(e *Evidence) { e.Hashes = append(e.Hashes, e.Hashes[0]) }),
		"129 hashes":                   changed(prefix, func(e *Evidence) { e.Hashes = make([][32]byte, 129) }),
		"hashes of the honest tree": changed(prefix, func(e *Evidence) {
			l := l.fork(100)
			l.fill(50, "more")
			e.Hashes = must(prefixHashes(context.Background(), l, 100, 150))
		}),
		"lines at the end": append(same.Bytes(), "more\n"...),
		"CRLF":             bytes.ReplaceAll(same.Bytes(), []byte("\n"), []byte("\r\n")),
		"too long":         append(same.Bytes(), bytes.Repeat([]byte("#\n"), MaxEvidence)...),
	} {
		for _, p := range []*c2sp.Policy{l.policy, both} {
			if err := VerifyEvidence(b, p); err == nil {
				t.Errorf("%s: proves something", name)
			} else if !strings.HasPrefix(err.Error(), "evidence: ") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestWriteEvidence(t *testing.T) {
	_, _, same, prefix := forkEvidence(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	first := must(WriteEvidence(dir, same))
	if again := must(WriteEvidence(dir, same)); again != first {
		t.Error("another name for the same evidence")
	}
	if other := must(WriteEvidence(dir, prefix)); other == first {
		t.Error("the same name for other evidence")
	}
	if n := len(must(os.ReadDir(dir))); n != 2 {
		t.Errorf("%d files", n)
	}
	// A file that a crash or a hand has spoilt is written again.
	if err := os.WriteFile(first, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	must(WriteEvidence(dir, same))
	if !bytes.Equal(must(os.ReadFile(first)), same.Bytes()) {
		t.Error("a spoilt file stays")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := WriteEvidence(file, same); err == nil {
		t.Error("wrote into a file")
	}
}

// TestForkIsRefusedWithoutADisk: that the evidence could not be written is
// said, and does not make the fork any better.
func TestForkIsRefusedWithoutADisk(t *testing.T) {
	l, f, _, _ := forkEvidence(t)
	s := newState(t)
	if err := s.Update(context.Background(), l.policy, l.note(100, t0, 1, 2), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(s.path), "evidence"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := wantRefusal(t, s.Observe(l.policy, f.note(100, t0, 1, 2)), CodeForkSameSize)
	if r.Evidence != "" || !strings.Contains(r.Detail, "writing evidence") {
		t.Errorf("%+v", r)
	}
}

func FuzzEvidence(f *testing.F) {
	l, _, same, prefix := forkEvidence(f)
	f.Add(same.Bytes())
	f.Add(prefix.Bytes())
	honest := &Evidence{First: l.note(50, t0), Second: l.note(100, t0), Hashes: must(prefixHashes(context.Background(), l, 50, 100))}
	f.Add(honest.Bytes())
	// Only notes of the honest log: whatever is made of them accuses nobody.
	alone := must(c2sp.GenerateSigner(origin, c2sp.AlgEd25519))
	quiet := must(c2sp.ParsePolicy([]byte("log " + alone.Key().String() + "\nquorum none\n")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if VerifyEvidence(b, quiet) == nil {
			t.Errorf("accuses a log that has signed nothing: %q", b)
		}
		if e, err := ParseEvidence(b); err == nil {
			if again, err := ParseEvidence(e.Bytes()); err != nil || !bytes.Equal(again.Bytes(), e.Bytes()) {
				t.Errorf("changes when it is written and read: %q", b)
			}
		}
	})
}

func FuzzState(f *testing.F) {
	l := newTestLog(f, origin)
	f.Add(string(must(os.ReadFile(func() string {
		s := newState(f)
		if err := s.Update(context.Background(), l.policy, l.note(0, t0, 1, 2), nil); err != nil {
			f.Fatal(err)
		}
		return s.path
	}()))[len(stateHeader)+65:]))
	f.Add(`{"logs":{}}`)
	f.Fuzz(func(t *testing.T, body string) {
		m, err := parseState(sealed(body))
		if err != nil {
			return
		}
		for name, r := range m.logs {
			if r.Checkpoint.Origin != name {
				t.Errorf("%q under %q", r.Checkpoint.Origin, name)
			}
		}
	})
}

// TestHandoverEvidenceAccusesNoOneAlone: a log can name an honest one that never
// meant to take over; and the thief of the new log's key can contradict an honest
// old log, without a single witness. So what is proven is about both.
func TestHandoverEvidenceAccusesNoOneAlone(t *testing.T) {
	a, b, _, _ := rotated(t)
	last := a.proven(300, 301, a.head)
	honest := newTestLog(t, "honest.example/log") // knows nothing of the log that names it
	honest.fill(3, "honest")
	honest.leaves[0] = must(testEntry().Marshal())
	honest = honest.fork(3)
	namer := newTestLog(t, origin)
	namer.end("honest.example/log", "http://127.0.0.1:1", honest.signer.Key().String())
	thief := b.fork(0)
	thief.add(must(testEntry().Marshal()))
	for name, tc := range map[string]struct {
		p             *c2sp.Policy
		first, second []byte
		secondOrigin  string
	}{
		"the old log is the liar":      {p: namer.policy, first: namer.proven(0, 1, namer.note(1, t0)), second: honest.proven(0, 3, honest.note(3, t0)), secondOrigin: "honest.example/log"},
		"the new log's key was stolen": {p: a.policy, first: last, second: thief.proven(0, 1, thief.note(1, t0)), secondOrigin: "next.example/log"},
	} {
		e := &Evidence{Claim: c2sp.ClaimHandover, First: tc.first, Second: tc.second}
		m, err := must(ParseEvidence(e.Bytes())).Verify(tc.p)
		if err != nil || m.Code != CodeHandover || m.First.Origin != origin || m.Second.Origin != tc.secondOrigin {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
		if b := string(e.Bytes()); strings.Contains(b, "An honest log never") || !strings.Contains(b, "Which of the two lied") {
			t.Errorf("%s: it accuses one alone:\n%s", name, b)
		}
	}
	// A submitter cannot end a log, so nothing he has logged is a claim.
	l := newTestLog(t, origin)
	l.add(must(testEntry().Marshal()), []byte(strings.Replace(string(a.leaves[300]), `"claim":"log"`, `"claim":"index"`, 1)))
	l.fill(1, "log")
	for i := range 3 {
		if m, err := AfterEnd(l.proven(i, 3, l.note(3, t0, 1, 2))).Verify(l.policy); err == nil {
			t.Errorf("entry %d: %+v", i, m)
		}
	}
}
