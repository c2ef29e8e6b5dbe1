package logserver

// Servers that only read, beside a writer and on copies; storage that goes back,
// forks, or is not the log's.

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (r *rig) readOnly(dir, state string, change ...func(*ReadOnlyConfig)) (*Log, error) {
	cfg := ReadOnlyConfig{Dir: dir, State: state, Every: 2 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(r.t.Output(), nil))}
	for _, c := range change {
		c(&cfg)
	}
	l, err := OpenReadOnly(r.t.Context(), cfg)
	if err == nil {
		r.t.Cleanup(func() { l.Close() })
	}
	return l, err
}

func (r *rig) mustReadOnly(dir, state string, change ...func(*ReadOnlyConfig)) *Log {
	r.t.Helper()
	l, err := r.readOnly(dir, state, change...)
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// TestReadOnlyBesideTheWriter: two of them, while the writer writes.
func TestReadOnlyBesideTheWriter(t *testing.T) {
	r := newRig(t, 3, 2)
	before := r.mustReadOnly(r.dir, t.TempDir()) // nothing is published yet
	if err := before.Ready(); err == nil {
		t.Error("ready with nothing to serve")
	}
	w := r.serve()
	r.bulk(w.log, 0, 300)
	state := t.TempDir()
	servers := make([]*served, 2)
	for i, l := range []*Log{before, r.mustReadOnly(r.dir, state)} {
		servers[i] = r.serveOpen(l)
	}
	if l, err := r.readOnly(r.dir, state); err == nil {
		l.Close()
		t.Error("two servers have one state directory")
	}
	r.bulk(w.log, 300, 300)
	ack := r.must(w.log, nth(600))
	for _, s := range servers {
		waitFor(t, "what the writer has published", func() bool { return s.log.Published().Size == w.log.Published().Size })
		refetch(t, s.url, r.signer.Key())
		if err := s.log.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
		got, err := s.client.GetProof(t.Context(), &pb.GetProofRequest{By: &pb.GetProofRequest_Sha256{Sha256: nth(600).SHA256}})
		if err != nil || len(got.Proofs) != 1 || got.Proofs[0].Index != ack.Index {
			t.Fatalf("proof: %v, %v", got, err)
		}
		s.checkProof(got.Proofs[0])
		list, err := s.client.Lookup(t.Context(), &pb.LookupRequest{Registry: testRegistry, Ecosystem: "pypi", Project: "p3"})
		if err != nil || len(list.Entries) != 60 {
			t.Errorf("lookup: %d, %v", len(list.GetEntries()), err)
		}
		// It takes nothing.
		if _, err := s.client.Submit(w.auth(), &pb.SubmitRequest{Entry: pbEntry(nth(700))}); status.Code(err) != codes.Unavailable {
			t.Errorf("a submission to a server that only reads: %v", err)
		}
		if code, _, out := s.rest("POST", "/v1/entries", w.bearer, restEntry(nth(700))); code != 503 || out["reason"] != "READ_ONLY" {
			t.Errorf("a submission to a server that only reads: %d %v", code, out)
		}
	}
	w.stop()
	for _, s := range servers { // and goes on without the writer
		refetch(t, s.url, r.signer.Key())
	}
}

// TestReadOnlyNeverGoesBack: what the storage may not show any more, each way, and
// that it is not forgotten by a restart.
func TestReadOnlyNeverGoesBack(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	r.bulk(l, 0, 100)
	small := l.Published().Note
	r.bulk(l, 100, 300)
	full := l.Published()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	sign := func(signer *c2sp.Signer, cp c2sp.Checkpoint) []byte {
		sig, err := signer.Sign(cp.Text())
		if err != nil {
			t.Fatal(err)
		}
		return (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()
	}
	thief, err := c2sp.GenerateSigner(r.signer.Key().Name(), c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := c2sp.GenerateSigner("other.example", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	origin := r.signer.Key().Name()
	path := filepath.Join(r.dir, checkpointFile)
	write := func(raw []byte) {
		if err := writeDurably(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	state := t.TempDir()
	ro := r.mustReadOnly(r.dir, state)
	if ro.Published().Size != full.Size || ro.Ready() != nil {
		t.Fatalf("size %d, %v", ro.Published().Size, ro.Ready())
	}
	for _, row := range []struct {
		name string
		raw  []byte
		want error
	}{
		{"a smaller one of its own", small, ErrWentBack},
		{"another tree of the same size", sign(r.signer, c2sp.Checkpoint{Origin: origin, Size: full.Size, Root: [32]byte{1}}), ErrWentBack},
		{"a larger one without its tiles", sign(r.signer, c2sp.Checkpoint{Origin: origin, Size: full.Size + 7, Root: [32]byte{1}}), nil},
		{"another key", sign(thief, c2sp.Checkpoint{Origin: origin, Size: full.Size + 1, Root: full.Root}), ErrWentBack},
		{"another log", sign(stranger, c2sp.Checkpoint{Origin: "other.example", Size: full.Size + 1, Root: full.Root}), ErrWentBack},
		{"garbage", []byte("nothing\n"), ErrWentBack},
		{"nothing", nil, ErrWentBack},
	} {
		write(row.raw)
		for restart := range 2 {
			waitFor(t, row.name, func() bool { return ro.Ready() != nil })
			if err := ro.Ready(); row.want != nil && !errors.Is(err, row.want) {
				t.Errorf("%s: %v", row.name, err)
			}
			if p := ro.Published(); p.Size != full.Size || p.Root != full.Root {
				t.Errorf("%s: it is served", row.name)
			}
			if restart == 0 {
				if err := ro.Close(); err != nil {
					t.Fatal(err)
				}
				ro = r.mustReadOnly(r.dir, state)
			}
		}
		write(full.Note)
		waitFor(t, "the good one again", func() bool { return ro.Ready() == nil })
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its absence", func() bool { return ro.Ready() != nil })
	write(full.Note)
	waitFor(t, "the good one again", func() bool { return ro.Ready() == nil })

	// Another history altogether: larger, signed, whole, and not of what was seen.
	fork := &rig{t: t, dir: filepath.Join(t.TempDir(), "log"), anchor: filepath.Join(t.TempDir(), "anchor"), signer: r.signer, policy: r.policy, token: r.token}
	if err := Init(t.Context(), fork.dir, fork.anchor, r.signer.Key()); err != nil {
		t.Fatal(err)
	}
	other := fork.ready()
	fork.bulk(other, 5000, 500)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ro.Close(); err != nil {
		t.Fatal(err)
	}
	ro = r.mustReadOnly(fork.dir, state)
	if err := ro.Ready(); !errors.Is(err, ErrWentBack) || ro.Published().Root != full.Root {
		t.Errorf("a fork: %v", err)
	}
	if fresh := r.mustReadOnly(fork.dir, t.TempDir()); fresh.Ready() != nil {
		t.Errorf("the same for one that has seen nothing: %v", fresh.Ready()) // only witnesses could tell
	}
}

// TestReadOnlyTilesFirst: a checkpoint that arrives before its tiles is served
// once they are there.
func TestReadOnlyTilesFirst(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	r.bulk(l, 0, 50)
	first := l.Published().Note
	copied := filepath.Join(t.TempDir(), "copy")
	r.bulk(l, 50, 50)
	last := l.Published()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	copyDir(t, filepath.Join(r.dir, engineDir), copied) // static files alone, as a mirror
	tiles, away := filepath.Join(copied, "tile/0/000.p/100"), filepath.Join(copied, "away")
	if err := errors.Join(os.Rename(tiles, away), os.WriteFile(filepath.Join(copied, checkpointFile), first, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.readOnly(copied, t.TempDir()); err == nil || !strings.Contains(err.Error(), "whose log") {
		t.Fatalf("without a key: %v", err)
	}
	ro := r.mustReadOnly(copied, t.TempDir(), func(c *ReadOnlyConfig) { c.VKeys = []*c2sp.Key{r.signer.Key()} })
	if err := ro.Ready(); err != nil || ro.Published().Size != 50 {
		t.Fatalf("%v, size %d", err, ro.Published().Size)
	}
	if err := writeDurably(filepath.Join(copied, checkpointFile), last.Note, 0o644); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "trouble", func() bool { return ro.Ready() != nil })
	if ro.Published().Size != 50 {
		t.Errorf("size %d is served without its tiles", ro.Published().Size)
	}
	if err := os.Rename(away, tiles); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the tiles", func() bool { return ro.Ready() == nil && ro.Published().Size == last.Size })
}

type dirFiles string

func (d dirFiles) Get(_ context.Context, name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(d), name))
}

// TestReadOnlyFiles: the same from files by name, as of a bucket.
func TestReadOnlyFiles(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	r.bulk(l, 0, 300)
	note := l.Published().Note
	l.Close()
	dir := filepath.Join(r.dir, engineDir)
	if err := os.WriteFile(filepath.Join(dir, checkpointFile), note, 0o644); err != nil {
		t.Fatal(err)
	}
	ro := r.mustReadOnly("", t.TempDir(), func(c *ReadOnlyConfig) { c.Files, c.VKeys = dirFiles(dir), []*c2sp.Key{r.signer.Key()} })
	s := r.serveOpen(ro)
	refetch(t, s.url, r.signer.Key())
	for _, path := range []string{"/tile/0/000", "/tile/0/000.p/9", "/tile/entries/001.p/44"} {
		res, body := ask(t, "GET", s.url+path, "Range", "bytes=0-31")
		if res.StatusCode != 206 || len(body) != 32 {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
}

// TestReadOnlyRefusesToStart: whom to believe, and where to remember it.
func TestReadOnlyRefusesToStart(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	r.bulk(l, 0, 5)
	l.Close()
	other := newRig(t, 0, 0)
	o := other.ready()
	other.bulk(o, 0, 5)
	o.Close()
	used := t.TempDir()
	r.mustReadOnly(r.dir, used).Close()
	other.signer, _ = c2sp.GenerateSigner("other.example", c2sp.AlgEd25519)
	for name, do := range map[string]func() (*Log, error){
		"no directory":     func() (*Log, error) { return r.readOnly(filepath.Join(r.dir, "nowhere"), t.TempDir()) },
		"no state":         func() (*Log, error) { return r.readOnly(r.dir, "") },
		"state of a log":   func() (*Log, error) { return r.readOnly(r.dir, r.dir) },
		"no key":           func() (*Log, error) { return r.readOnly(t.TempDir(), t.TempDir()) },
		"state of another": func() (*Log, error) { return r.readOnly(other.dir, used) },
		"keys of two logs": func() (*Log, error) {
			return r.readOnly(r.dir, t.TempDir(), func(c *ReadOnlyConfig) { c.VKeys = []*c2sp.Key{r.signer.Key(), other.signer.Key()} })
		},
	} {
		if l, err := do(); err == nil {
			l.Close()
			t.Errorf("%s: it starts", name)
		}
	}
	// A pinned key is what counts, not what the directory says of itself.
	ro := r.mustReadOnly(r.dir, t.TempDir(), func(c *ReadOnlyConfig) { c.VKeys = []*c2sp.Key{other.signer.Key()} })
	if ro.Ready() == nil || ro.Published().Note != nil {
		t.Error("another key's checkpoint is served")
	}
}

// TestReadOnlyJudgesTheQuorum: with a policy it moves to no checkpoint below it,
// nor serves one that it saw without; what it served before is served on.
func TestReadOnlyJudgesTheQuorum(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.ready()
	r.bulk(l, 0, 20)
	first := l.Published()
	r.bulk(l, 20, 20)
	full := l.Published()
	l.Close()
	dir := filepath.Join(r.dir, engineDir)
	put := func(raw []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, checkpointFile), raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// few is the newest note with so many of its cosignatures: below the quorum.
	few := func(cosignatures int) []byte {
		n, err := c2sp.ParseNote(full.Note)
		if err != nil {
			t.Fatal(err)
		}
		return (&c2sp.Note{Text: n.Text, Sigs: n.Sigs[:1+cosignatures]}).Bytes()
	}
	judging := func(c *ReadOnlyConfig) {
		c.VKeys, c.Policy = []*c2sp.Key{r.signer.Key()}, r.config().Policy
	}
	put(first.Note)
	state := t.TempDir()
	ro := r.mustReadOnly(dir, state, judging)
	if err := ro.Ready(); err != nil || ro.Published().Size != first.Size {
		t.Fatalf("a quorum is refused: %v", err)
	}
	for n := range 2 {
		put(few(n))
		waitFor(t, "the refusal", func() bool { return errors.Is(ro.Ready(), ErrBelowQuorum) })
		if errors.Is(ro.Ready(), ErrWentBack) || string(ro.Published().Note) != string(first.Note) {
			t.Errorf("with %d cosignatures: %v, size %d", n, ro.Ready(), ro.Published().Size)
		}
		put(first.Note)
		waitFor(t, "it to go on", func() bool { return ro.Ready() == nil })
	}
	put(full.Note)
	waitFor(t, "the quorum", func() bool { return ro.Ready() == nil && ro.Published().Size == full.Size })

	// Seen without a policy: not served with one, and not gone back behind.
	put(few(1))
	trusting := t.TempDir()
	ro = r.mustReadOnly(dir, trusting, func(c *ReadOnlyConfig) { c.VKeys = []*c2sp.Key{r.signer.Key()} })
	if err := ro.Ready(); err != nil || ro.Published().Size != full.Size {
		t.Fatalf("without a policy: %v", err)
	}
	ro.Close()
	ro = r.mustReadOnly(dir, trusting, judging)
	if err := ro.Ready(); !errors.Is(err, ErrBelowQuorum) || ro.Published().Note != nil {
		t.Errorf("with a policy: %v, size %d", err, ro.Published().Size)
	}
	put(first.Note)
	waitFor(t, "the step back to be seen", func() bool { return errors.Is(ro.Ready(), ErrWentBack) })
	put(full.Note)
	waitFor(t, "the quorum", func() bool { return ro.Ready() == nil && string(ro.Published().Note) == string(full.Note) })

	stranger, err := c2sp.GenerateSigner("other.example", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := r.readOnly(dir, t.TempDir(), judging, func(c *ReadOnlyConfig) { c.Policy.Logs = []c2sp.PolicyLog{{Key: stranger.Key()}} }); err == nil {
		l.Close()
		t.Error("a policy of another log is taken")
	}
}
