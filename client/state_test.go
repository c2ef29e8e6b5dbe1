package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

func newState(t testing.TB) *State {
	return must(OpenState(filepath.Join(t.TempDir(), "state")))
}

// wantNewest checks what is remembered, in memory and by who opens the file.
func wantNewest(t testing.TB, s *State, origin string, size int) {
	t.Helper()
	for _, s := range []*State{s, must(OpenState(s.path))} {
		r, at, ok := s.Newest(origin)
		if !ok || r.Checkpoint.Size != uint64(size) || !at.Equal(r.QuorumTime) {
			t.Errorf("remembers size %d (%v), want %d", r.Checkpoint.Size, ok, size)
		}
	}
}

const origin = "log.example/packages"

func TestStateFollowsALogThatGrows(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, origin)
	l.fill(520, "log")
	r := l.reader()
	s := newState(t)
	if _, _, ok := s.Newest(origin); ok {
		t.Error("remembers a log it has never seen")
	}
	for i, size := range []int{0, 1, 1, 2, 3, 255, 256, 257, 300, 512, 520} {
		if err := s.Update(ctx, l.policy, l.note(size, t0.Add(time.Duration(i)*time.Minute), 1, 3), r); err != nil {
			t.Fatalf("size %d: %v", size, err)
		}
		wantNewest(t, s, origin, size)
	}
	// Older ones that agree change nothing, at whatever time they were signed.
	for _, size := range []int{0, 1, 255, 256, 257, 519} {
		if err := s.Update(ctx, l.policy, l.note(size, t0.Add(time.Hour), 1, 2), r); err != nil {
			t.Fatalf("older size %d: %v", size, err)
		}
		wantNewest(t, s, origin, 520)
	}
	// The log's own head moves on.
	l.fill(3, "log, later")
	l.setHead(l.note(523, t0.Add(time.Hour), 1, 2, 3))
	if err := s.Latest(ctx, l.policy, r); err != nil {
		t.Fatal(err)
	}
	wantNewest(t, s, origin, 523)
	if note, _, _ := s.Newest(origin); !bytes.Equal(note.Note, l.head) {
		t.Error("does not remember the whole note")
	}
	// A quiet log is cosigned again: the tree is the same, but newer.
	l.setHead(l.note(523, t0.Add(2*time.Hour), 1, 2))
	if err := s.Latest(ctx, l.policy, r); err != nil {
		t.Fatal(err)
	}
	if _, at, _ := s.Newest(origin); !at.Equal(t0.Add(2 * time.Hour)) {
		t.Errorf("quorum time %v", at)
	}
	// And not older again.
	if err := s.Update(ctx, l.policy, l.note(523, t0, 1, 2), r); err != nil {
		t.Fatal(err)
	}
	if _, at, _ := s.Newest(origin); !at.Equal(t0.Add(2 * time.Hour)) {
		t.Errorf("quorum time went back to %v", at)
	}
	// Two logs do not mix.
	o := newTestLog(t, "log.example/other")
	o.fill(3, "other")
	if err := s.Update(ctx, o.policy, o.note(3, t0, 1, 2), o.reader()); err != nil {
		t.Fatal(err)
	}
	wantNewest(t, s, origin, 523)
	wantNewest(t, s, "log.example/other", 3)
}

// wantEvidence checks that the refusal left a file that proves the fork to
// others, and nothing to those who hold other keys.
func wantEvidence(t testing.TB, r *Refusal, l *testLog) {
	t.Helper()
	b, err := os.ReadFile(r.Evidence)
	if err != nil {
		t.Fatalf("no evidence: %v", err)
	}
	if !strings.Contains(r.Error(), r.Evidence) {
		t.Error("the words do not name the evidence")
	}
	if err := VerifyEvidence(b, l.policy); err != nil {
		t.Errorf("the evidence proves nothing: %v", err)
	}
	// The log's key alone is enough.
	alone := must(c2sp.ParsePolicy([]byte("log " + l.signer.Key().String() + "\nquorum none\n")))
	if err := VerifyEvidence(b, alone); err != nil {
		t.Errorf("the evidence needs more than the log's key: %v", err)
	}
	if err := VerifyEvidence(b, newTestLog(t, origin).policy); err == nil {
		t.Error("the evidence accuses another log of the same name")
	}
	if fi := must(os.Stat(r.Evidence)); fi.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		t.Errorf("evidence has mode %v", fi.Mode())
	}
}

func TestStateRefusesForks(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name       string
		at, common int   // remembered size, leaves in common
		size       int   // of the fork's checkpoint
		witnesses  []int // who cosigned the fork
		code       string
	}{
		{"same size", 10, 5, 10, []int{1, 2}, CodeForkSameSize},
		{"same size, nothing in common", 10, 0, 10, []int{1, 2}, CodeForkSameSize},
		{"same size, last leaf", 300, 299, 300, []int{2, 3}, CodeForkSameSize},
		{"larger", 10, 5, 12, []int{1, 2}, CodeForkPrefix},
		{"larger, last leaf", 256, 255, 257, []int{1, 2}, CodeForkPrefix},
		{"larger, first leaf", 257, 0, 600, []int{1, 2}, CodeForkPrefix},
		{"same size, below the quorum", 10, 5, 10, []int{1}, CodeForkSameSize},
		{"same size, no witness", 10, 5, 10, nil, CodeForkSameSize},
		{"larger, no witness", 10, 5, 12, nil, CodeForkPrefix},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newTestLog(t, origin)
			l.fill(tc.at, "log")
			s := newState(t)
			if err := s.Update(ctx, l.policy, l.note(tc.at, t0, 1, 2), l.reader()); err != nil {
				t.Fatal(err)
			}
			before := must(os.ReadFile(s.path))
			f := l.fork(tc.common)
			f.fill(tc.size-tc.common, "fork")
			note := f.note(tc.size, t0.Add(time.Minute), tc.witnesses...)

			for range 2 { // the second time finds the file there
				r := wantRefusal(t, s.Update(ctx, l.policy, note, f.reader()), tc.code)
				wantEvidence(t, r, l)
			}
			f.setHead(note)
			wantEvidence(t, wantRefusal(t, s.Latest(ctx, l.policy, f.reader()), tc.code), l)
			if n := len(must(os.ReadDir(filepath.Join(filepath.Dir(s.path), "evidence")))); n != 1 {
				t.Errorf("%d evidence files for one fork", n)
			}
			if !bytes.Equal(before, must(os.ReadFile(s.path))) {
				t.Error("the fork changed the state")
			}
			wantNewest(t, s, origin, tc.at)
			if tc.size == tc.at {
				r := wantRefusal(t, s.Observe(l.policy, note), tc.code)
				wantEvidence(t, r, l)
			}
		})
	}

	// A smaller checkpoint that was never on the way to the remembered one.
	t.Run("smaller", func(t *testing.T) {
		l := newTestLog(t, origin)
		l.fill(300, "log")
		s := newState(t)
		r := l.reader()
		if err := s.Update(ctx, l.policy, l.note(300, t0, 1, 2), r); err != nil {
			t.Fatal(err)
		}
		f := l.fork(100)
		f.fill(100, "fork")
		refusal := wantRefusal(t, s.Update(ctx, l.policy, f.note(200, t0, 2, 3), r), CodeForkPrefix)
		wantEvidence(t, refusal, l)
		m := must(must(ParseEvidence(must(os.ReadFile(refusal.Evidence)))).Verify(l.policy))
		if len(m.Witnesses) != 1 || m.Witnesses[0] != "w2" || m.First.Size != 200 || m.Second.Size != 300 {
			t.Errorf("%+v", m)
		}
		// As the log's own head it is a fork as well, and says so.
		l.setHead(f.note(200, t0, 1, 2))
		wantRefusal(t, s.Latest(ctx, l.policy, r), CodeForkPrefix)
	})
}

// TestStateWithoutProofStillRefuses: where the log serves tiles that do not fit
// what it signed there is nothing to show to others, and still no trust.
func TestStateWithoutProofStillRefuses(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, origin)
	l.fill(10, "log")
	s := newState(t)
	if err := s.Update(ctx, l.policy, l.note(10, t0, 1, 2), l.reader()); err != nil {
		t.Fatal(err)
	}
	f := l.fork(5)
	f.fill(7, "fork")
	l.fill(2, "log, later") // tiles of the honest tree under the fork's checkpoint
	r := wantRefusal(t, s.Update(ctx, l.policy, f.note(12, t0, 1, 2), l.reader()), CodeTilesMismatch)
	if r.Evidence != "" {
		t.Error("evidence of what proves nothing")
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(s.path), "evidence")); err == nil {
		t.Error("a directory for evidence, and none in it")
	}
	wantNewest(t, s, origin, 10)
	// Without tiles at all nothing can be said.
	wantCannot(t, s.Update(ctx, l.policy, l.note(12, t0, 1, 2), nil), CodeUnreachable)
	broken := l.reader()
	l.intercept = func(w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true }
	wantCannot(t, s.Update(ctx, l.policy, l.note(12, t0, 1, 2), broken), CodeMissing)
	wantCannot(t, s.Update(ctx, l.policy, l.note(12, t0, 1, 2), shortTiles{}), CodeBadAnswer)
	wantNewest(t, s, origin, 10)
}

type shortTiles struct{}

func (shortTiles) Tile(context.Context, int, uint64, int) ([]byte, error) { return []byte("x"), nil }

// TestForkAfterRotation: what was remembered is signed by a key that the policy
// does not have, so nobody is accused of a fork; it is refused all the same.
func TestForkAfterRotation(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, origin)
	l.fill(10, "log")
	s := newState(t)
	if err := s.Update(ctx, l.policy, l.note(10, t0, 1, 2), l.reader()); err != nil {
		t.Fatal(err)
	}
	next := newTestLog(t, origin)
	next.add(l.leaves...)
	next.fill(2, "later")
	if err := s.Update(ctx, next.policy, next.note(12, t0, 1, 2), next.reader()); err != nil {
		t.Fatalf("a new key for the same tree: %v", err)
	}
	fork := next.fork(3)
	fork.signer, fork.witnesses = l.signer, l.witnesses // remembered by the new key, forked by the old
	fork.fill(9, "fork")
	r := wantRefusal(t, s.Update(ctx, l.policy, fork.note(12, t0, 1, 2), fork.reader()), CodeOtherKey)
	if r.Evidence != "" || !strings.Contains(r.Detail, "another --state file") {
		t.Errorf("%+v", r)
	}
}

// TestForkWithoutEvidence: a fork that too few witnesses cosigned is a fork also
// where its evidence cannot be written.
func TestForkWithoutEvidence(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, origin)
	l.fill(10, "log")
	s := newState(t)
	if err := s.Update(ctx, l.policy, l.note(10, t0, 1, 2), l.reader()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(s.path), "evidence"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fork := l.fork(3)
	fork.fill(7, "fork")
	r := wantRefusal(t, s.Update(ctx, l.policy, fork.note(10, t0), fork.reader()), CodeForkSameSize)
	if r.Evidence != "" || !strings.Contains(r.Detail, "evidence") {
		t.Errorf("%+v", r)
	}
}

// TestAnotherLogOfTheSameName: a log begun anew under its old name, smaller or
// larger, is not accused of anything, and is not believed either.
func TestAnotherLogOfTheSameName(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, origin)
	l.fill(10, "log")
	for name, size := range map[string]int{"smaller": 4, "same size": 10, "larger": 14} {
		s := newState(t)
		l.setHead(l.note(10, t0, 1, 2))
		if err := s.Latest(ctx, l.policy, l.reader()); err != nil {
			t.Fatal(err)
		}
		other := newTestLog(t, origin)
		other.fill(size, "other")
		other.setHead(other.note(size, t0, 1, 2))
		if r := wantRefusal(t, s.Latest(ctx, other.policy, other.reader()), CodeOtherKey); r.Evidence != "" {
			t.Errorf("%s: evidence %s", name, r.Evidence)
		}
	}
}

func TestStateRefusesRollback(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, origin)
	l.fill(300, "log")
	s := newState(t)
	r := l.reader()
	if err := s.Update(ctx, l.policy, l.note(300, t0, 1, 2), r); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{299, 256, 1, 0} {
		// All witnesses cosigned it, later, and it is a true prefix.
		l.setHead(l.note(size, t0.Add(time.Hour), 1, 2, 3))
		wantRefusal(t, s.Latest(ctx, l.policy, r), CodeRollback)
	}
	// Honest witnesses cosign no tree smaller than one they have cosigned.
	l.setHead(l.note(299, t0.Add(time.Hour)))
	wantRefusal(t, s.Latest(ctx, l.policy, r), CodeRollback)
	// Restored from a backup: the tiles of the larger tree are gone too.
	old := l.fork(256)
	old.setHead(old.note(256, t0.Add(time.Hour), 1, 2, 3))
	wantRefusal(t, s.Latest(ctx, l.policy, old.reader()), CodeRollback)
	wantNewest(t, s, origin, 300)
}

func TestHeadThatDoesNotStand(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, origin)
	l.fill(10, "log")
	r := l.reader()
	other := newTestLog(t, "log.example/other")
	sameName := newTestLog(t, origin)
	good := l.note(10, t0, 1, 2)
	bad := must(c2sp.ParseNote(good))
	bad.Sigs[2].Sig[9] ^= 1

	for name, tc := range map[string]struct {
		head []byte
		code string
	}{
		"garbage":              {[]byte("garbage"), CodeNotCheckpoint},
		"nothing":              {nil, CodeNotCheckpoint},
		"web page":             {[]byte("<!DOCTYPE html>\n<title>Log in</title>\n"), CodeNotCheckpoint},
		"CRLF":                 {bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), CodeNotCheckpoint},
		"size with zero":       {bytes.Replace(good, []byte("\n10\n"), []byte("\n010\n"), 1), CodeNotCheckpoint},
		"size 2^63":            {bytes.Replace(good, []byte("\n10\n"), []byte("\n9223372036854775808\n"), 1), CodeNotCheckpoint},
		"101 signatures":       {append(bytes.Clone(good), bytes.Repeat([]byte("— k AAAAAAA=\n"), 101)...), CodeNotCheckpoint},
		"empty tree, any root": {l.sign(c2sp.Checkpoint{Origin: origin, Root: [32]byte{1}}, t0, 1, 2), CodeNotCheckpoint},
		"another log":          {other.note(0, t0, 1, 2), CodeOtherLog},
		"below the quorum":     {l.note(10, t0, 3), CodeHeadQuorum},
		"other key":            {sameName.note(0, t0, 1, 2), CodeHeadSignature},
		"bad cosignature":      {bad.Bytes(), CodeHeadSignature},
		"changed":              {bytes.Replace(good, []byte("\n10\n"), []byte("\n11\n"), 1), CodeHeadSignature},
	} {
		t.Run(name, func(t *testing.T) {
			s := newState(t)
			l.setHead(tc.head)
			for _, err := range []error{s.Latest(ctx, l.policy, r), s.Update(ctx, l.policy, tc.head, r)} {
				if tc.code[2] == '2' {
					wantRefusal(t, err, tc.code)
				} else {
					wantCannot(t, err, tc.code)
				}
			}
			if name != "below the quorum" && s.Observe(l.policy, tc.head) == nil {
				t.Error("Observe accepts it")
			}
			if _, err := os.Stat(s.path); err == nil {
				t.Error("it was remembered")
			}
		})
	}
	s := newState(t)
	l.setHead(bytes.Repeat([]byte("x"), c2sp.MaxNote+1))
	wantCannot(t, s.Latest(ctx, l.policy, r), CodeBadAnswer)
	l.setHead(good)
	if err := s.Latest(ctx, l.policy, r); err != nil {
		t.Error(err)
	}
}

// TestObserveLeavesTheStateAlone: a file's own proof neither begins a history
// nor makes it fresher.
func TestObserveLeavesTheStateAlone(t *testing.T) {
	l := newTestLog(t, origin)
	l.fill(12, "log")
	s := newState(t)
	if err := s.Observe(l.policy, l.note(10, t0, 1, 2)); err != nil {
		t.Fatal(err)
	}
	if f := s.Freshness(origin, t0); f.Kind != NoHistory {
		t.Errorf("%+v", f)
	}
	if err := s.Update(context.Background(), l.policy, l.note(10, t0, 1, 2), nil); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{9, 10, 12} {
		if err := s.Observe(l.policy, l.note(size, t0.Add(time.Hour), 1, 2)); err != nil {
			t.Error(err)
		}
	}
	wantNewest(t, s, origin, 10)
	if _, at, _ := s.Newest(origin); !at.Equal(t0) {
		t.Error("the state got fresher")
	}
}

// TestDamagedStateIsNotReset: whatever byte of the file changes, wherever it is
// cut off, it is an error and the file stays as it is.
func TestDamagedStateIsNotReset(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, origin)
	l.fill(10, "log")
	s := newState(t)
	if err := s.Update(ctx, l.policy, l.note(10, t0, 1, 2), nil); err != nil {
		t.Fatal(err)
	}
	good := must(os.ReadFile(s.path))
	damage := map[string][]byte{"empty": {}, "garbage": []byte("garbage"), "doubled": append(bytes.Clone(good), good...)}
	for i := 0; i < len(good); i += 7 {
		b := bytes.Clone(good)
		b[i] ^= 1
		damage[fmt.Sprintf("byte %d changed", i)] = b
		damage[fmt.Sprintf("cut off after %d", i)] = good[:i]
	}
	for name, b := range damage {
		if err := os.WriteFile(s.path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenState(s.path)
		c := wantCannot(t, err, CodeStateUnreadable)
		if !strings.Contains(c.Reason, s.path) || !strings.Contains(c.Reason, "move it away") {
			t.Errorf("does not say what to do: %v", c)
		}
		wantCannot(t, s.Update(ctx, l.policy, l.note(10, t0.Add(time.Hour), 1, 2), nil), CodeStateUnreadable)
		if !bytes.Equal(b, must(os.ReadFile(s.path))) {
			t.Fatalf("%s: the file was changed", name)
		}
	}
	// What is whole but says nonsense.
	for name, body := range map[string]string{
		"unknown field":    `{"logs":{},"more":1}`,
		"no note":          `{"logs":{"` + origin + `":{"note":"x"}}}`,
		"no checkpoint":    `{"logs":{"` + origin + `":{"note":"a\n\n— k AAAAAAA=\n"}}}`,
		"under other name": `{"logs":{"x":{"note":` + strconv.Quote(string(l.note(1, t0))) + `}}}`,
	} {
		if err := os.WriteFile(s.path, sealed(body), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenState(s.path); err == nil {
			t.Errorf("%s: read", name)
		}
	}
	if err := os.WriteFile(s.path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	wantNewest(t, s, origin, 10)
	_, err := OpenState("")
	wantCannot(t, err, CodeStateUnreadable)
	_, err = OpenState(t.TempDir()) // a directory
	wantCannot(t, err, CodeStateUnreadable)
}

func TestStateFileIsPrivateAndWhole(t *testing.T) {
	l := newTestLog(t, origin)
	l.fill(10, "log")
	s := must(OpenState(filepath.Join(t.TempDir(), "new", "dir", "state")))
	if err := s.Update(context.Background(), l.policy, l.note(10, t0, 1, 2), nil); err != nil {
		t.Fatal(err)
	}
	for _, e := range must(os.ReadDir(filepath.Dir(s.path))) {
		fi := must(e.Info())
		if runtime.GOOS != "windows" && fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), fi.Mode())
		}
		if strings.Contains(e.Name(), ".tmp") {
			t.Errorf("left %s behind", e.Name())
		}
	}
}

func TestStateThatCannotBeWritten(t *testing.T) {
	l := newTestLog(t, origin)
	l.fill(10, "log")
	note := l.note(10, t0, 1, 2)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &State{path: filepath.Join(file, "state")} // its directory is a file
	err := s.Update(context.Background(), l.policy, note, nil)
	var c *CannotCheck
	if !errors.As(err, &c) {
		t.Fatal(err)
	}
	// The lock is held by another: here, by another descriptor.
	s = newState(t)
	unlock, err := lockState(context.Background(), s.path+".lock")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	wantCannot(t, s.Update(ctx, l.policy, note, nil), CodeStateUnwritable)
	unlock()
	if err := s.Update(context.Background(), l.policy, note, nil); err != nil {
		t.Error(err)
	}
}

// Two processes and their goroutines update one file at once: it is never
// damaged, never goes back, and ends at the largest size.

const childState = "PORTBOOK_TEST_STATE"

// raceLog is the same log in every process.
func raceLog() *testLog {
	l := &testLog{}
	skey := func(name string, alg c2sp.Alg) *c2sp.Signer {
		s, err := c2sp.ParseSKey(os.Getenv("PORTBOOK_TEST_" + name))
		if err != nil {
			s = must(c2sp.GenerateSigner("example/"+strings.ToLower(name), alg))
			os.Setenv("PORTBOOK_TEST_"+name, s.SKey())
		}
		return s
	}
	l.signer = skey("LOG", c2sp.AlgEd25519)
	l.witnesses = []*c2sp.Signer{skey("W1", c2sp.AlgEd25519Cosig)}
	l.policy = must(c2sp.ParsePolicy(fmt.Appendf(nil, "log %s\nwitness w1 %s\nquorum w1\n", l.signer.Key(), l.witnesses[0].Key())))
	l.fill(raceSize, "race")
	return l
}

const raceSize = 300

// Tile makes a testLog a TileReader without HTTP.
func (l *testLog) Tile(_ context.Context, level int, index uint64, width int) ([]byte, error) {
	b := l.tile(c2sp.Tile{Level: level, Index: index, Width: width})
	if b == nil {
		return nil, &CannotCheck{Code: CodeMissing, Reason: "no such tile"}
	}
	return b, nil
}

// race updates the state from four goroutines, in an order of their own.
func race(path string) error {
	l := raceLog()
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			errs <- func() error {
				s, err := OpenState(path)
				if err != nil {
					return err
				}
				for range 40 {
					size := 1 + rand.IntN(raceSize)
					if err := s.Update(context.Background(), l.policy, l.note(size, t0, 1), l); err != nil {
						return err
					}
					if r, _, _ := s.Newest(l.signer.Key().Name()); r.Checkpoint.Size < uint64(size) {
						return fmt.Errorf("remembers %d after %d", r.Checkpoint.Size, size)
					}
				}
				return s.Update(context.Background(), l.policy, l.note(raceSize, t0, 1), l)
			}()
		}()
	}
	var all error
	for range cap(errs) {
		all = errors.Join(all, <-errs)
	}
	return all
}

func updateInChild() int {
	if err := race(os.Getenv(childState)); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func TestConcurrentProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	raceLog() // makes the keys, for the children as well
	exe := must(os.Executable())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), childState+"="+path)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	if err := race(path); err != nil {
		t.Error(err)
	}
	wg.Wait()
	s := must(OpenState(path))
	wantNewest(t, s, raceLog().signer.Key().Name(), raceSize)
	for _, e := range must(os.ReadDir(filepath.Dir(path))) {
		if strings.Contains(e.Name(), ".tmp") {
			t.Errorf("left %s behind", e.Name())
		}
	}
}

// interrupting is a TileReader during whose first call something happens.
type interrupting struct {
	TileReader
	once func()
}

func (r *interrupting) Tile(ctx context.Context, level int, index uint64, width int) ([]byte, error) {
	if r.once != nil {
		once := r.once
		r.once = nil
		once()
	}
	return r.TileReader.Tile(ctx, level, index, width)
}

// TestUpdateThatIsOvertaken: while one process asks the log, another remembers
// something. The first compares again: it neither loses a larger tree nor takes
// what has become a fork.
func TestUpdateThatIsOvertaken(t *testing.T) {
	ctx := context.Background()
	l := newTestLog(t, origin)
	l.fill(30, "log")
	s := newState(t)
	if err := s.Update(ctx, l.policy, l.note(10, t0, 1, 2), l); err != nil {
		t.Fatal(err)
	}
	other := must(OpenState(s.path))
	r := &interrupting{TileReader: l, once: func() {
		if err := other.Update(ctx, l.policy, l.note(30, t0, 1, 2), l); err != nil {
			t.Error(err)
		}
	}}
	if err := s.Update(ctx, l.policy, l.note(20, t0, 1, 2), r); err != nil {
		t.Fatal(err)
	}
	wantNewest(t, s, origin, 30)

	f := l.fork(30)
	f.fill(10, "fork")
	l.fill(5, "log, later")
	r = &interrupting{TileReader: f, once: func() {
		if err := other.Update(ctx, l.policy, l.note(35, t0, 1, 2), l); err != nil {
			t.Error(err)
		}
	}}
	wantEvidence(t, wantRefusal(t, s.Update(ctx, l.policy, f.note(40, t0, 1, 2), r), CodeForkPrefix), l)
	if n, _, _ := must(OpenState(s.path)).Newest(origin); n.Checkpoint.Size != 35 {
		t.Errorf("remembers size %d", n.Checkpoint.Size)
	}
}

func TestFreshness(t *testing.T) {
	l := newTestLog(t, origin)
	l.fill(10, "log")
	s := newState(t)
	at := func(now time.Time) Freshness { return s.Freshness(origin, now) }
	if f := at(t0); f.Kind != NoHistory {
		t.Errorf("%+v", f)
	}
	if err := s.Update(context.Background(), l.policy, l.note(10, t0, 1, 2), nil); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		age  time.Duration
		want FreshnessKind
	}{
		{0, Fresh}, {24 * time.Hour, Fresh}, {24*time.Hour + time.Second, Aging}, {7 * 24 * time.Hour, Aging},
		{7*24*time.Hour + time.Second, Stale}, {10 * 365 * 24 * time.Hour, Stale},
		{-time.Minute, Fresh}, {-5 * time.Minute, Fresh}, {-6 * time.Minute, ClockOff}, {-10 * 365 * 24 * time.Hour, ClockOff},
	} {
		f := at(t0.Add(tc.age))
		if f.Kind != tc.want || !f.AsOf.Equal(t0) || f.String() == "" {
			t.Errorf("after %v: %+v, want %s", tc.age, f, tc.want)
		}
		if wantAge := max(tc.age, 0); tc.want != ClockOff && f.Age != wantAge {
			t.Errorf("after %v: age %v", tc.age, f.Age)
		}
	}
	// One witness with a clock in the future does not make an old state fresh.
	c := l.checkpoint(10)
	n := c2sp.Note{Text: c.Text(), Sigs: []c2sp.Signature{must(l.signer.Sign(c.Text())),
		must(l.witnesses[0].Cosign(c, t0)), must(l.witnesses[1].Cosign(c, t0.Add(100*24*time.Hour)))}}
	s = newState(t)
	if err := s.Update(context.Background(), l.policy, n.Bytes(), nil); err != nil {
		t.Fatal(err)
	}
	if f := at(t0.Add(50 * 24 * time.Hour)); f.Kind != Stale {
		t.Errorf("%+v", f)
	}
	// Under quorum none nobody dates anything.
	s = newState(t)
	none := must(c2sp.ParsePolicy([]byte("log " + l.signer.Key().String() + "\nquorum none\n")))
	if err := s.Update(context.Background(), none, l.note(10, t0), nil); err != nil {
		t.Fatal(err)
	}
	if f := at(t0); f.Kind != NoWitness {
		t.Errorf("%+v", f)
	}
}

func TestReadPolicy(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "policy")
	_, err := ReadPolicy(path)
	wantCannot(t, err, CodePolicy)
	if err := os.WriteFile(path, []byte("quorum none\nquorum none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = ReadPolicy(path)
	c := wantCannot(t, err, CodePolicy)
	if !strings.Contains(c.Reason, path) || !strings.Contains(c.Reason, "line 2") {
		t.Error(c)
	}
	_, err = ReadPolicy(dir)
	wantCannot(t, err, CodePolicy)
	if err := os.WriteFile(path, []byte("quorum none\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := ReadPolicy(path); err != nil || p.Quorum != c2sp.QuorumNone {
		t.Error(p, err)
	}
}
