package logserver

// FAULTS rules 2 and 3: the guarded signer, and what a log refuses at start.

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/transparency-dev/tessera"
)

// bulk logs the entries nth(from) to nth(from+n-1), at once, and waits for all.
func (r *rig) bulk(l *Log, from, n int) []*Ack {
	r.t.Helper()
	tickets := make([]*ticket, n)
	for i := range n {
		t, err := l.queue(r.t.Context(), r.token, nth(from+i))
		if err != nil {
			r.t.Fatal(err)
		}
		tickets[i] = t
	}
	acks := make([]*Ack, n)
	for i, t := range tickets {
		ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
		var err error
		if acks[i], err = t.one(ctx, Cosigned); err != nil {
			r.t.Fatal(err)
		}
		cancel()
	}
	return acks
}

// filled is a rig whose log has n entries and is closed.
func filled(t testing.TB, n int) *rig {
	r := newRig(t, 3, 2)
	l := r.ready()
	r.bulk(l, 0, n)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return r
}

// copyDir copies a directory tree, as a backup does.
func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// restore puts the backup of the log's directory in its place.
func (r *rig) restore(backup string) {
	r.t.Helper()
	if err := os.RemoveAll(r.dir); err != nil {
		r.t.Fatal(err)
	}
	copyDir(r.t, backup, r.dir)
}

func flip(t testing.TB, path string, at int64) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if at < 0 {
		at += int64(len(raw))
	}
	raw[at] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// addBeneath puts entries into the storage of a closed log, unsigned.
func (r *rig) addBeneath(from, n int) {
	r.t.Helper()
	e, err := openPOSIX(r.t.Context(), filepath.Join(r.dir, engineDir))
	if err != nil {
		r.t.Fatal(err)
	}
	entries := make([]*tessera.Entry, n)
	for i := range n {
		x := nth(from + i)
		x.Registry, x.Claim = testRegistry, "index"
		leaf, err := x.Marshal()
		if err != nil {
			r.t.Fatal(err)
		}
		entries[i] = tessera.NewEntry(leaf)
	}
	if _, err := e.append(r.t.Context(), entries); err != nil {
		r.t.Fatal(err)
	}
	if err := e.close(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// witnessed is the largest size that any witness has cosigned.
func (r *rig) witnessed() (most uint64) {
	r.t.Helper()
	for _, w := range r.witnesses {
		res, err := http.Get(w.server.URL + "/" + c2sp.OriginHash(r.signer.Key().Name()) + "/checkpoint")
		if err != nil {
			r.t.Fatal(err)
		}
		body := make([]byte, 8<<10)
		n, _ := res.Body.Read(body)
		res.Body.Close()
		if res.StatusCode != 200 {
			continue
		}
		note, err := c2sp.ParseNote(body[:n])
		if err != nil {
			r.t.Fatal(err)
		}
		cp, err := c2sp.ParseCheckpoint(note.Text)
		if err != nil {
			r.t.Fatal(err)
		}
		most = max(most, cp.Size)
	}
	return most
}

// refusesToSign opens the log and checks that it latches for a reason that says
// want, signs nothing, goes on serving reads of a published size, and says so
// on /readyz without naming a path.
func (r *rig) refusesToSign(want string, published uint64) {
	r.t.Helper()
	before, anchorBefore := r.witnessed(), readFile(r.t, r.anchor)
	l := r.open()
	waitFor(r.t, "the guard", func() bool { return l.Status().Latched })
	r.latchedFor(l, want)
	if p := l.Published(); p.Size != published {
		r.t.Errorf("reads show size %d, want %d", p.Size, published)
	}
	if published > 0 && published < 1<<20 {
		h := r.handler(l)
		for _, path := range []string{"/checkpoint", c2spPath(published)} {
			if res := get(h, path); res.Code != 200 {
				r.t.Errorf("reading %s: %d %s", path, res.Code, res.Body)
			}
		}
	}
	time.Sleep(50 * time.Millisecond)
	if err := l.Close(); err != nil {
		r.t.Error(err)
	}
	if after := r.witnessed(); after != before {
		r.t.Errorf("witnesses went from size %d to %d: something was signed", before, after)
	}
	if a, err := parseAnchor([]byte(anchorBefore)); err == nil {
		now, err := parseAnchor([]byte(readFile(r.t, r.anchor)))
		if err != nil || now.size != a.size || now.root != a.root {
			r.t.Errorf("the anchor moved from %d to %d: something was signed", a.size, now.size)
		}
	}
}

// latchedFor checks what a latched log says and does.
func (r *rig) latchedFor(l *Log, want string) {
	r.t.Helper()
	if s := l.Status(); s.Writable || !s.Latched || !strings.Contains(s.Reason.Error(), want) {
		r.t.Fatalf("latched=%v: %v; want %q", s.Latched, s.Reason, want)
	}
	select {
	case <-l.Guard():
	default:
		r.t.Error("Guard is not closed")
	}
	if _, err := r.submit(l, nth(0)); !errors.Is(err, ErrReadOnly) {
		r.t.Errorf("submitting to a latched log: %v", err)
	}
	res := get(r.handler(l), "/readyz")
	if res.Code != 503 || !strings.Contains(unescape(res.Body.String()), want) {
		r.t.Errorf("/readyz: %d %s; want 503 and %q", res.Code, res.Body, want)
	}
	if s := res.Body.String(); strings.Contains(s, filepath.Dir(r.dir)) {
		r.t.Errorf("/readyz names a path: %s", s)
	}
}

func unescape(json string) string { return strings.ReplaceAll(json, `\u003c`, "<") }

func c2spPath(size uint64) string {
	return "/" + c2sp.Tile{Level: 0, Index: 0, Width: int(min(size, 256))}.Path()
}

// handler is the log's HTTP side, without REST.
func (r *rig) handler(l *Log) http.Handler {
	r.t.Helper()
	h, err := l.Handler(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

func get(h http.Handler, path string) *httptest.ResponseRecorder {
	res := httptest.NewRecorder()
	h.ServeHTTP(res, httptest.NewRequest("GET", path, nil))
	return res
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(raw)
}

// TestNothingIsSignedAtStart: one row for each state that rules 2 and 3 name.
func TestNothingIsSignedAtStart(t *testing.T) {
	base := filled(t, 300)
	state := t.TempDir()
	save := func() {
		copyDir(t, base.dir, filepath.Join(state, "log"))
		copyDir(t, base.anchor, filepath.Join(state, "anchor"))
	}
	save()
	write := func(t *testing.T, a anchorState) {
		if err := os.WriteFile(base.anchor, a.bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	anchorNow := func(t *testing.T) anchorState {
		a, err := readAnchor(base.anchor)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	in := func(parts ...string) string { return filepath.Join(append([]string{base.dir}, parts...)...) }
	for _, row := range []struct {
		name   string
		damage func(t *testing.T)
		want   string
		size   uint64
	}{
		{"anchor lost", func(t *testing.T) { os.Remove(base.anchor) }, "anchor is missing", 300},
		{"anchor's file system not mounted", func(t *testing.T) {
			id := strings.Replace(readFile(t, in(identityFile)), base.anchor, "/nowhere/anchor", 1)
			if err := os.WriteFile(in(identityFile), []byte(id), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "anchor is missing", 300},
		{"anchor empty", func(t *testing.T) { os.Truncate(base.anchor, 0) }, "damaged", 300},
		{"anchor of another log", func(t *testing.T) { a := anchorNow(t); a.origin = "other.example"; write(t, a) }, "other.example", 300},
		{"anchor ahead of the log", func(t *testing.T) { a := anchorNow(t); a.size = 301; write(t, a) }, "has signed 301", 300},
		{"anchor behind what is published", func(t *testing.T) { a := anchorNow(t); a.size, a.root = 0, c2sp.EmptyRoot; write(t, a) }, "the anchor knows of 0", 300},
		{"anchor with another root", func(t *testing.T) { a := anchorNow(t); a.root[0] ^= 1; os.Remove(in(checkpointFile)); write(t, a) }, "do not extend the signed tree", 0},
		{".state missing", func(t *testing.T) { os.RemoveAll(in(engineDir, ".state")) }, "no state", 300},
		{"storage missing", func(t *testing.T) { os.RemoveAll(in(engineDir)) }, "no state", 300},
		{"tile missing", func(t *testing.T) { os.RemoveAll(in(engineDir, "tile", "0")); os.Remove(in(checkpointFile)) }, "is missing", 0},
		{"published tree not ours", func(t *testing.T) {
			// The same key has signed another tree of this size.
			cp := c2sp.Checkpoint{Origin: base.signer.Key().Name(), Size: 300, Root: [32]byte{1}}
			sig, err := base.signer.Sign(cp.Text())
			if err != nil {
				t.Fatal(err)
			}
			os.WriteFile(in(checkpointFile), (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes(), 0o644)
		}, "its root differs from ours", 300},
		{"index ahead", func(t *testing.T) {
			x, err := openIndex(in(indexDir), nil, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			for range 100 {
				x.append(nil)
			}
			if err := x.close(); err != nil {
				t.Fatal(err)
			}
		}, "the log went back", 300},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := *base
			r.t = t
			r.restore(filepath.Join(state, "log"))
			os.Remove(r.anchor)
			copyDir(t, filepath.Join(state, "anchor"), r.anchor)
			row.damage(t)
			skipRead := row.size
			if strings.HasPrefix(row.name, "storage missing") {
				skipRead = 300 | 1<<30 // no tiles left to read
			}
			if skipRead != row.size {
				l := r.open()
				waitFor(t, "the guard", func() bool { return l.Status().Latched })
				r.latchedFor(l, row.want)
				if res := get(r.handler(l), "/checkpoint"); res.Code != 200 {
					t.Errorf("the checkpoint is not served: %d", res.Code)
				}
				l.Close()
				return
			}
			r.refusesToSign(row.want, row.size)
		})
	}

	t.Run("anchor with any bit flipped", func(t *testing.T) {
		good := readFile(t, filepath.Join(state, "anchor"))
		for at := range len(good) {
			for bit := range 8 {
				b := []byte(good)
				b[at] ^= 1 << bit
				if a, err := parseAnchor(b); err == nil {
					t.Fatalf("byte %d bit %d: taken as %+v", at, bit, a)
				}
			}
		}
	})
	t.Run("intact", func(t *testing.T) {
		r := *base
		r.t = t
		r.restore(filepath.Join(state, "log"))
		os.Remove(r.anchor)
		copyDir(t, filepath.Join(state, "anchor"), r.anchor)
		l := r.ready()
		if ack := r.must(l, nth(300)); ack.Index != 300 {
			t.Errorf("the undamaged log gave index %d", ack.Index)
		}
	})
}

// TestRestoredLogSignsNothing: -1, -100 and -10 % with the anchor intact, and
// with an anchor restored along: then the witnesses know.
func TestRestoredLogSignsNothing(t *testing.T) {
	for name, back := range map[string]int{"-1": 1, "-100": 100, "-10 %": 40} {
		t.Run(name, func(t *testing.T) {
			const n = 400
			r := filled(t, n-back)
			backup, oldAnchor := t.TempDir(), filepath.Join(t.TempDir(), "anchor")
			copyDir(t, r.dir, filepath.Join(backup, "log"))
			copyDir(t, r.anchor, oldAnchor)
			l := r.ready()
			r.bulk(l, n-back, back)
			l.Close()
			r.restore(filepath.Join(backup, "log"))
			r.refusesToSign("has signed 400", uint64(n-back))

			t.Run("anchor restored too", func(t *testing.T) {
				r := *r
				r.t = t
				copyDir(t, oldAnchor, r.anchor)
				r.refusesToSign("holds a checkpoint signed by this log's key that this log does not have", uint64(n-back))
			})
		})
	}
}

// TestDamagedTreeIsNotSigned flips bytes in what was integrated but not signed
// yet: leaves, leaf hashes, and nodes above them.
func TestDamagedTreeIsNotSigned(t *testing.T) {
	for _, row := range []struct {
		name, file string
		at         int64
		want       string
	}{
		{"a leaf", "tile/entries/001", 100, "entry"},
		{"a leaf's length", "tile/entries/001", 0, "entry"},
		{"a leaf hash, new", "tile/0/001", 40 * 32, "does not hash to its leaf"},
		{"a leaf hash, signed before", "tile/0/000", 3 * 32, "do not extend the signed tree"},
		{"a node above, new", "tile/1/000.p/2", 63, "does not hash to its node"},
		{"bundle cut short", "tile/entries/002.p/88", -1, "entry bundle"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := filled(t, 100)
			r.addBeneath(100, 500)
			// The level 1 node of the first tile is new too: 100 was signed.
			path := filepath.Join(r.dir, engineDir, row.file)
			if row.at == -1 {
				raw := readFile(t, path)
				if err := os.WriteFile(path, []byte(raw[:len(raw)-3]), 0o644); err != nil {
					t.Fatal(err)
				}
			} else {
				flip(t, path, row.at)
			}
			r.refusesToSign(row.want, 100)
		})
	}
}

// TestDamagedNameIsNotFree: an entry whose file name is damaged, by one bit, still
// pins the name that was logged, whether the index knows it or is made anew.
func TestDamagedNameIsNotFree(t *testing.T) {
	for _, anew := range []bool{false, true} {
		r := filled(t, 10)
		path := filepath.Join(r.dir, engineDir, "tile/entries/000.p/10")
		flip(t, path, int64(strings.Index(readFile(t, path), nth(3).File)))
		if anew {
			removeIndex(t, r.dir, indexDir)
		}
		l := r.open()
		waitFor(t, "the log to take submissions, or to refuse to", func() bool { return l.Status().Writable || l.Status().Latched })
		if anew != l.Status().Latched {
			t.Errorf("index made anew %v: latched %v", anew, l.Status().Latched)
		}
		other := nth(3)
		other.SHA256 = strings.Repeat("e", 64)
		if ack, err := r.submit(l, other); !errors.Is(err, ErrStorage) && !errors.Is(err, ErrReadOnly) {
			t.Errorf("index made anew %v: other bytes are answered with %v, %v", anew, ack, err)
		}
		l.Close()
	}
}

// TestGuardWhileRunning damages a log that is being served.
func TestGuardWhileRunning(t *testing.T) {
	for _, row := range []struct {
		name   string
		damage func(r *rig)
		want   string
	}{
		{"anchor lost", func(r *rig) { os.Remove(r.anchor) }, "anchor is missing"},
		{"anchor damaged", func(r *rig) { flip(r.t, r.anchor, 30) }, "damaged"},
		{"second server moved the anchor", func(r *rig) {
			a, _ := readAnchor(r.anchor)
			a.fence++
			os.WriteFile(r.anchor, a.bytes(), 0o600)
		}, "two servers on one log"},
		{"anchor put back", func(r *rig) {
			a, _ := readAnchor(r.anchor)
			a.size, a.root = 0, c2sp.EmptyRoot
			os.WriteFile(r.anchor, a.bytes(), 0o600)
		}, "two servers on one log"},
		{"tile flipped", func(r *rig) { flip(r.t, filepath.Join(r.dir, engineDir, "tile/0/000.p/20"), 70) }, "do not extend"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, 3, 2)
			l := r.ready()
			r.bulk(l, 0, 20)
			waitFor(t, "size 20", func() bool { return l.Published().Size == 20 })
			row.damage(r)
			before := r.witnessed()
			start := time.Now()
			if _, err := r.submit(l, nth(100)); !errors.Is(err, ErrReadOnly) && !errors.Is(err, ErrStorage) {
				t.Errorf("submission: %v", err)
			}
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("the submitter heard of it after %v", d)
			}
			waitFor(t, "the guard", func() bool { return l.Status().Latched })
			r.latchedFor(l, row.want)
			if after := r.witnessed(); after != before {
				t.Errorf("witnesses went from %d to %d", before, after)
			}
		})
	}
}

// TestDamagedPublicCheckpointIsMadeAnew: it follows from the rest.
func TestDamagedPublicCheckpointIsMadeAnew(t *testing.T) {
	r := filled(t, 10)
	path := filepath.Join(r.dir, checkpointFile)
	for name, damage := range map[string]func(){
		"flipped":        func() { flip(t, path, 30) },
		"emptied":        func() { os.Truncate(path, 0) },
		"of another log": func() { os.WriteFile(path, []byte("x\n"), 0o644) },
		"lost":           func() { os.Remove(path) },
		"no quorum": func() {
			note, err := c2sp.ParseNote([]byte(readFile(t, path)))
			if err != nil {
				t.Fatal(err)
			}
			note.Sigs = note.Sigs[:1]
			os.WriteFile(path, note.Bytes(), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.t = t
			damage()
			l := r.ready()
			if ack := r.must(l, nth(3)); ack.Proof == nil {
				t.Error("no proof")
			}
			l.Close()
			if _, err := r.config().Policy.Verify([]byte(readFile(t, path))); !errors.Is(err, c2sp.ErrUnknownLog) {
				t.Errorf("what is published now: %v", err) // the rig's policy names no log: only that is amiss
			}
		})
	}
}

func TestAnchorOnTheLogsFileSystemIsRefused(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.open(func(c *Config) { c.AnchorBeside = false })
	r.latchedFor(l, "on the log's own file system")
}

// TestSignIsIdempotent: the same tree is signed again with the same signature,
// and the anchor stays as it is.
func TestSignIsIdempotent(t *testing.T) {
	r := filled(t, 5)
	l := r.ready(func(c *Config) { c.Interval = time.Hour })
	waitFor(t, "the first round", func() bool { return !l.Published().At.IsZero() })
	before := readFile(t, r.anchor)
	a, _, err := l.pub.sign(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := l.pub.sign(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	if string(a.Bytes()) != string(b.Bytes()) || readFile(t, r.anchor) != before {
		t.Error("signing again is not the same")
	}
}

// TestAnchorOutAtStart: an anchor that cannot be read or locked when the server
// starts is trouble that passes; one that is missing, or another server's, is not.
func TestAnchorOutAtStart(t *testing.T) {
	for _, name := range []string{"", ".lock"} {
		t.Run("anchor"+name, func(t *testing.T) {
			r := newRig(t, 1, 1)
			l := r.ready()
			ack := r.must(l, nth(0))
			l.Close()
			path, aside := r.anchor+name, filepath.Join(t.TempDir(), "aside")
			if err := errors.Join(os.Rename(path, aside), os.Mkdir(path, 0o700)); err != nil { // reads and opens fail
				t.Fatal(err)
			}
			signed := r.witnesses[0].asked.Load()
			l = r.open()
			waitFor(t, "the reason", func() bool { return errors.Is(l.Status().Reason, ErrStorage) })
			if s := l.Status(); s.Writable || s.Latched || strings.Contains(l.Ready().Error(), r.anchor) {
				t.Errorf("%+v", s)
			}
			if r.witnesses[0].asked.Load() != signed {
				t.Error("witnesses were asked without an anchor")
			}
			if err := errors.Join(os.Remove(path), os.Rename(aside, path)); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the log to take submissions", func() bool { return l.Status().Writable })
			if again := r.must(l, nth(0)); again.Index != ack.Index {
				t.Errorf("index %d became %d", ack.Index, again.Index)
			}
			if l := r.must(l, nth(1)); l.Index != 1 {
				t.Errorf("index %d", l.Index)
			}
		})
	}
}

// TestReasonNamesNoPath: why the engine does not open is told to everybody.
func TestReasonNamesNoPath(t *testing.T) {
	r := newRig(t, 0, 0)
	version := filepath.Join(r.dir, engineDir, ".state", "version")
	if err := errors.Join(os.Remove(version), os.Mkdir(version, 0o700)); err != nil {
		t.Fatal(err)
	}
	l, err := Open(t.Context(), r.config())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Ready(); err == nil || strings.Contains(err.Error(), r.dir) || strings.Contains(err.Error(), "version") {
		t.Errorf("ready: %v", err)
	}
}

// TestAnchorAfterUncertainWrite: a write that failed may have happened.
func TestAnchorAfterUncertainWrite(t *testing.T) {
	r := newRig(t, 0, 0)
	a, err := openAnchor(r.anchor, r.signer.Key().Name())
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	next := a.last
	next.size = 7
	a.tried = next // as after a failed fsync of the directory
	if err := os.WriteFile(r.anchor, next.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := a.check(); err != nil || got != next {
		t.Errorf("after an uncertain write: %+v, %v", got, err)
	}
	next.size = 8
	if err := a.swap(next); err != nil || a.last != next {
		t.Errorf("the next write: %v", err)
	}
	next.size = 9
	os.WriteFile(r.anchor, next.bytes(), 0o600)
	if err := a.swap(next); !errors.Is(err, errAnchorMoved) {
		t.Errorf("somebody else's write: %v", err)
	}
}
