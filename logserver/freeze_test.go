package logserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"github.com/transparency-dev/tessera"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func testSuccessor(t testing.TB) Successor {
	t.Helper()
	s, err := c2sp.GenerateSigner("next.example/log", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	return Successor{"next.example/log", []string{s.Key().String()}, "https://next.example/log"}
}

func (r *rig) freeze(next Successor) {
	r.t.Helper()
	if err := Freeze(r.dir, next, time.Now()); err != nil {
		r.t.Fatal(err)
	}
}

// ended waits for the last checkpoint and checks it as a reader would.
func (r *rig) ended(next Successor) Published {
	r.t.Helper()
	var p Published
	waitFor(r.t, "the last checkpoint", func() bool {
		var leaf *entry.Entry
		var err error
		if p, leaf, err = Ended(r.dir); err != nil {
			r.t.Fatal(err)
		}
		if leaf != nil && (leaf.Origin != next.Origin || leaf.URL != next.URL || leaf.VKeys[0] != next.VKeys[0]) {
			r.t.Fatalf("ended with %+v", leaf)
		}
		return leaf != nil
	})
	policy := r.config().Policy
	policy.Logs = []c2sp.PolicyLog{{Key: r.signer.Key()}}
	v, err := policy.Verify(p.Note)
	if err != nil {
		r.t.Fatal(err)
	}
	if strings.Count(v.Note.Text, "\n") != 3 {
		r.t.Errorf("extension lines in the last checkpoint: %q", v.Note.Text)
	}
	return p
}

// TestFreezeRunningLog: submissions under way are acknowledged or refused with
// the successor's name; the leaf is the last; nothing is signed after it, also
// after a restart, without the anchor, and with the mark gone.
func TestFreezeRunningLog(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.ready()
	next := testSuccessor(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	acks := map[uint64]*Ack{}
	refused := 0
	for w := range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				ack, err := r.submit(l, nth(w*10000+n))
				var frozen *FrozenError
				if errors.As(err, &frozen) {
					if frozen.Next != next.Origin || frozen.URL != next.URL {
						t.Errorf("refused with %v", err)
					}
					mu.Lock()
					refused++
					mu.Unlock()
					return
				}
				if err != nil {
					t.Errorf("neither logged nor refused as frozen: %v", err)
					return
				}
				mu.Lock()
				acks[ack.Index] = ack
				mu.Unlock()
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	r.freeze(next)
	wg.Wait()
	if refused != 8 || len(acks) == 0 {
		t.Fatalf("%d refused, %d acknowledged", refused, len(acks))
	}
	p := r.ended(next)
	for i, ack := range acks {
		if i >= p.Size-1 {
			t.Errorf("entry %d was acknowledged in a log of %d", i, p.Size)
		}
		r.check(ack)
	}
	waitFor(t, "publishing to end", func() bool {
		select {
		case <-l.ended:
			return true
		default:
			return false
		}
	})
	if err := l.Ready(); err == nil || !strings.Contains(err.Error(), next.Origin) {
		t.Errorf("ready: %v", err)
	}
	l.Close()

	// Never again: each of these restarts serves the same bytes and signs nothing.
	signed := func() int {
		n := 0
		for _, w := range r.witnesses {
			n += int(w.asked.Load())
		}
		return n
	}
	before := signed()
	restart := func(what string) {
		t.Helper()
		l := r.open(func(c *Config) { c.Republish = time.Millisecond })
		time.Sleep(50 * time.Millisecond)
		var frozen *FrozenError
		if _, err := r.submit(l, nth(77)); !errors.As(err, &frozen) || frozen.Next != next.Origin {
			t.Errorf("%s: submit: %v", what, err)
		}
		if s := l.Status(); s.Writable || s.Latched {
			t.Errorf("%s: %+v", what, s)
		}
		if !bytes.Equal(l.Published().Note, p.Note) {
			t.Errorf("%s: another checkpoint is published", what)
		}
		l.Close()
	}
	restart("as it is")
	id, err := ReadIdentity(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	id.Freeze = nil
	if err := writeIdentity(r.dir, id); err != nil {
		t.Fatal(err)
	}
	restart("the mark is deleted")
	if err := os.Rename(r.anchor, r.anchor+".away"); err != nil {
		t.Fatal(err)
	}
	restart("the anchor is gone")
	if after := signed(); after != before {
		t.Errorf("the witnesses were asked %d times after the end", after-before)
	}
	if raw, err := os.ReadFile(filepath.Join(r.dir, checkpointFile)); err != nil || !bytes.Equal(raw, p.Note) {
		t.Errorf("the public checkpoint changed: %v", err)
	}

	// The public checkpoint is lost and the mark too: the leaf says so, and the
	// same last checkpoint is made again.
	if err := errors.Join(os.Rename(r.anchor+".away", r.anchor), os.Remove(filepath.Join(r.dir, checkpointFile))); err != nil {
		t.Fatal(err)
	}
	l = r.open()
	if again := r.ended(next); again.Size != p.Size || again.Root != p.Root {
		t.Errorf("ended at %d, now at %d", p.Size, again.Size)
	}
	l.Close()

	// Somebody adds an entry behind the leaf's back: the guard refuses.
	if err := os.Remove(filepath.Join(r.dir, checkpointFile)); err != nil {
		t.Fatal(err)
	}
	e, err := openPOSIX(t.Context(), filepath.Join(r.dir, engineDir))
	if err != nil {
		t.Fatal(err)
	}
	late := nth(5)
	late.Claim, late.Registry = entry.ClaimIndex, testRegistry
	leaf, err := late.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.append(context.Background(), []*tessera.Entry{tessera.NewEntry(leaf)}); err != nil {
		t.Fatal(err)
	}
	e.close(context.Background())
	l = r.open()
	waitFor(t, "the guard", func() bool { return l.Status().Latched })
	if !errors.Is(l.Status().Reason, errAfterEnd) {
		t.Errorf("latched by %v", l.Status().Reason)
	}
	if _, err := os.Stat(filepath.Join(r.dir, checkpointFile)); err == nil {
		t.Error("a checkpoint was published after the end")
	}
}

// TestGuardSignsNothingAfterTheEnd: the leaf in the middle of what is new.
func TestGuardSignsNothingAfterTheEnd(t *testing.T) {
	r := newRig(t, 0, 0)
	mark := FreezeMark{testSuccessor(t), strings.Repeat("ab", 16), "2026-11-21T05:00:00Z"}
	leaf, err := mark.leaf().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	e, err := openPOSIX(t.Context(), filepath.Join(r.dir, engineDir))
	if err != nil {
		t.Fatal(err)
	}
	late := nth(5)
	late.Claim, late.Registry = entry.ClaimIndex, testRegistry
	other, err := late.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{leaf, other} {
		if _, err := e.append(context.Background(), []*tessera.Entry{tessera.NewEntry(b)}); err != nil {
			t.Fatal(err)
		}
	}
	e.close(context.Background())
	l := r.open()
	waitFor(t, "the guard", func() bool { return l.Status().Latched })
	if !errors.Is(l.Status().Reason, errAfterEnd) || l.Published().Size > 0 {
		t.Errorf("latched by %v, published %d", l.Status().Reason, l.Published().Size)
	}
}

// TestFreezeWithoutQuorum: the log ends, and its last checkpoint is published
// when the witnesses are back; a restart meanwhile goes on.
func TestFreezeWithoutQuorum(t *testing.T) {
	r := newRig(t, 3, 2)
	next := testSuccessor(t)
	l := r.ready()
	r.must(l, nth(1))
	r.witnesses[0].down()
	r.witnesses[1].down()
	r.freeze(next)
	waitFor(t, "the leaf", func() bool {
		leaf, _, err := l.endedLeaf(t.Context())
		return err == nil && leaf != nil
	})
	if p, leaf, err := Ended(r.dir); err != nil || leaf != nil {
		t.Fatalf("published without a quorum: size %d, %v", p.Size, err)
	}
	l.Close()
	l = r.open()
	r.witnesses[0].pretend(nil)
	r.witnesses[1].pretend(nil)
	if p := r.ended(next); p.Size != 2 {
		t.Errorf("ended at %d", p.Size)
	}
	var frozen *FrozenError
	waitFor(t, "the refusal", func() bool {
		_, err := r.submit(l, nth(2))
		return errors.As(err, &frozen)
	})
}

// TestFreezeKilled: SIGKILL before the leaf, and after it; a stopped log.
func TestFreezeKilled(t *testing.T) {
	for _, step := range []string{"marked", "drained", "logged"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t, 3, 2)
			next := testSuccessor(t)
			l := r.ready()
			r.must(l, nth(1))
			l.Close()
			r.freeze(next)
			if step != "marked" {
				os.Setenv(dieEnv, step)
				c, err := r.spawn()
				os.Unsetenv(dieEnv)
				if err == nil { // else it was killed before it said where it serves
					var exit *exec.ExitError
					if err := c.cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
						t.Fatalf("it was not killed: %v", err)
					}
				}
				e, err := openPOSIX(t.Context(), filepath.Join(r.dir, engineDir))
				if err != nil {
					t.Fatal(err)
				}
				size, err := e.size(t.Context())
				e.close(t.Context())
				if want := map[string]uint64{"drained": 1, "logged": 2}[step]; err != nil || size != want {
					t.Fatalf("killed at %d entries, want %d: %v", size, want, err)
				}
				if _, leaf, err := Ended(r.dir); err != nil || leaf != nil {
					t.Fatalf("published before it was killed: %v", err)
				}
			}
			r.open()
			if p := r.ended(next); p.Size != 2 {
				t.Errorf("ended at %d entries, want 2", p.Size)
			}
		})
	}
}

func TestFreezeRefuses(t *testing.T) {
	r := newRig(t, 0, 0)
	good := testSuccessor(t)
	mistyped := strings.Replace(r.signer.Key().String(), "log.example/test", "next.example/log", 1)
	raw := append([]byte{byte(c2sp.AlgEd25519)}, r.signer.Key().Raw()...)
	sum := sha256.Sum256(append([]byte("next.example/log\n"), raw...))
	own := fmt.Sprintf("next.example/log+%x+%s", sum[:4], base64.StdEncoding.EncodeToString(raw))
	cosigner, err := c2sp.GenerateSigner("next.example/log", c2sp.AlgEd25519Cosig)
	if err != nil {
		t.Fatal(err)
	}
	for want, s := range map[string]Successor{
		"is this log":      {"log.example/test", good.VKeys, good.URL},
		"at least one key": {good.Origin, nil, good.URL},
		"successor's key":  {good.Origin, []string{mistyped}, good.URL}, "own under another name": {good.Origin, []string{own}, good.URL},
		"not of the successor":     {"other.example", good.VKeys, good.URL},
		"signs no checkpoints":     {good.Origin, []string{cosigner.Key().String()}, good.URL},
		"given twice":              {good.Origin, []string{good.VKeys[0], good.VKeys[0]}, good.URL},
		"does not start with http": {good.Origin, good.VKeys, "ftp://x"},
	} {
		if err := Freeze(r.dir, s, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if id, err := ReadIdentity(r.dir); err != nil || id.Freeze != nil {
		t.Fatalf("a refused freeze left a mark: %v", err)
	}
	r.freeze(good)
	r.freeze(good)
	if err := Freeze(r.dir, testSuccessor(t), time.Now()); err == nil || !strings.Contains(err.Error(), "cannot be changed") {
		t.Errorf("frozen twice for different logs: %v", err)
	}
	if err := Freeze(t.TempDir(), good, time.Now()); !errors.Is(err, ErrNoLog) {
		t.Errorf("no log: %v", err)
	}
}

// TestFrozenReachesTheSubmitter over gRPC, in a stream and through the client.
func TestFrozenReachesTheSubmitter(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	_, secret, err := l.Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c, err := r.spawn()
	if err != nil {
		t.Fatal(err)
	}
	defer c.kill()
	next := testSuccessor(t)
	r.freeze(next)
	r.ended(next)
	conn, err := grpc.NewClient("passthrough:///"+c.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+secret)
	_, err = pb.NewLogClient(conn).Submit(ctx, &pb.SubmitRequest{Entry: pbEntry(nth(1))})
	st := status.Convert(err)
	var info *errdetails.ErrorInfo
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.RetryInfo:
			t.Error("a refusal for good has a hint to retry")
		}
	}
	if st.Code() != codes.FailedPrecondition || info.GetReason() != "FROZEN" || info.GetMetadata()["successor_origin"] != next.Origin || info.GetMetadata()["successor_url"] != next.URL {
		t.Errorf("%v %v", st, info)
	}
	cl, err := submit.Dial("http://"+c.grpc, secret)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var frozen *submit.Frozen
	if _, err := cl.Submit(t.Context(), nth(1)); !errors.As(err, &frozen) || frozen.Origin != next.Origin || frozen.URL != next.URL {
		t.Errorf("client: %v", err)
	}
	for _, name := range []string{"", "named"} {
		one := []*entry.Entry{nth(1)}
		var told error
		err := cl.Stream(t.Context(), submit.StreamOptions{Name: name}, func() (*entry.Entry, error) {
			if len(one) == 0 {
				return nil, io.EOF
			}
			e := one[0]
			one = nil
			return e, nil
		}, func(_ uint64, res submit.Result) error {
			told = res.Err
			return nil
		})
		frozen = nil
		if !errors.As(errors.Join(err, told), &frozen) || !strings.Contains(frozen.Error(), next.URL) {
			t.Errorf("stream %q: %v, %v", name, err, told)
		}
	}
}

// TestSuccessorBegins: the predecessor leaf is at index 0, or nothing is.
func TestSuccessorBegins(t *testing.T) {
	r := newRig(t, 3, 2)
	old := c2sp.Checkpoint{Origin: "old.example/log", Size: 12, Root: [32]byte{1, 2, 3}}
	if err := AwaitPredecessor(r.dir, r.signer.Key().Name()); err == nil {
		t.Error("a log takes over from itself")
	}
	if err := AwaitPredecessor(r.dir, old.Origin); err != nil {
		t.Fatal(err)
	}
	l := r.open()
	waitFor(t, "waiting for the predecessor", func() bool { return strings.Contains(fmt.Sprint(l.Status().Reason), "portbook-log successor") })
	if _, err := r.submit(l, nth(1)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("before its first entry: %v", err)
	}
	var locked *LockedError
	if err := Begin(t.Context(), r.dir, old, time.Now()); !errors.As(err, &locked) {
		t.Errorf("while it is served: %v", err)
	}
	l.Close()
	other, itself := old, old
	other.Origin, itself.Origin = "other.example", r.signer.Key().Name()
	for _, c := range []c2sp.Checkpoint{other, itself} {
		if err := Begin(t.Context(), r.dir, c, time.Now()); err == nil {
			t.Errorf("took over from %s", c.Origin)
		}
	}
	for range 2 {
		if err := Begin(t.Context(), r.dir, old, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	bigger := old
	bigger.Size++
	if err := Begin(t.Context(), r.dir, bigger, time.Now()); err == nil {
		t.Error("took over twice, from two sizes")
	}
	l = r.ready()
	if ack := r.must(l, nth(1)); ack.Index != 1 {
		t.Errorf("first upload at %d", ack.Index)
	}
	first, err := l.lookup.entryAt(0)
	if err != nil || first.Kind != entry.KindPredecessor || *first.Size != 12 || first.Origin != old.Origin {
		t.Errorf("%+v, %v", first, err)
	}
	l.Close()

	used := newRig(t, 0, 0)
	l = used.ready()
	used.must(l, nth(1))
	l.Close()
	if err := Begin(t.Context(), used.dir, old, time.Now()); err == nil || !strings.Contains(err.Error(), "init --successor-of") {
		t.Errorf("a log with entries: %v", err)
	}
}

// TestDamagedMark: a mark that makes no leaf stops writing, not reading.
func TestDamagedMark(t *testing.T) {
	r := newRig(t, 0, 0)
	id, err := ReadIdentity(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	id.Freeze = &FreezeMark{Successor: Successor{Origin: "x"}}
	raw, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, identityFile), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	l := r.open()
	waitFor(t, "the trouble to be told", func() bool {
		_, err := r.submit(l, nth(1))
		return err != nil && l.Status().Latched && strings.Contains(l.Status().Reason.Error(), "freeze")
	})
}
