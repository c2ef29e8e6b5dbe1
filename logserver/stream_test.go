package logserver

// Wait levels, streams that are resumed, and statuses that must name what is
// logged.

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// TestWaitLevels: a receipt needs no quorum and has no proof; an acknowledgement
// waits for it, and the same submission later gets the same index.
func TestWaitLevels(t *testing.T) {
	s := newRig(t, 1, 1).serve(func(c *Config) { c.RoundLimit, c.MaxWait = 200*time.Millisecond, 500*time.Millisecond })
	s.must(s.log, nth(0))
	s.witnesses[0].down()
	res, err := s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: pbEntry(nth(1)), Wait: pb.Wait_SEQUENCED})
	if err != nil || res.Index != 1 || len(res.Proof) != 0 {
		t.Fatalf("receipt: %v, %v", res, err)
	}
	if s.log.Published().Size > 1 {
		t.Fatal("published without its quorum")
	}
	if _, err := s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: pbEntry(nth(1))}); status.Code(err) != codes.Unavailable {
		t.Errorf("an acknowledgement without a quorum: %v", err)
	}
	// The caller's own deadline ends the waiting.
	ctx, cancel := context.WithTimeout(s.auth(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = s.client.Submit(ctx, &pb.SubmitRequest{Entry: pbEntry(nth(1))})
	if c := status.Code(err); c != codes.DeadlineExceeded && c != codes.Unavailable || time.Since(start) > 400*time.Millisecond {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	if _, err := s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: pbEntry(nth(1)), Wait: 7}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an unknown wait level: %v", err)
	}
	s.witnesses[0].pretend(nil)
	waitFor(t, "the quorum", func() bool {
		res, err = s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: pbEntry(nth(1))})
		return err == nil
	})
	if res.Index != 1 || len(res.Proof) == 0 {
		t.Errorf("later: %v", res)
	}
}

// named opens a named stream and returns where it stands.
func (s *served) named(bearer, name string) (pb.Log_SubmitStreamClient, uint64, error) {
	s.t.Helper()
	ctx := metadata.AppendToOutgoingContext(s.t.Context(), "authorization", "Bearer "+bearer)
	stream, err := s.client.SubmitStream(ctx)
	if err != nil {
		return nil, 0, err
	}
	if err := stream.Send(&pb.SubmitStreamRequest{Stream: name, Wait: pb.Wait_SEQUENCED}); err != nil {
		return nil, 0, err
	}
	res, err := stream.Recv()
	if err != nil {
		return nil, 0, err
	}
	if res.Accepted == nil || len(res.Results) > 0 {
		s.t.Fatalf("first answer: %v", res)
	}
	return stream, *res.Accepted, nil
}

func several(from, n int) (out []*pb.Entry) {
	for i := range n {
		out = append(out, pbEntry(nth(from+i)))
	}
	return out
}

// TestNamedStreamResumes after a broken connection, a crash at any answer, and a
// restart; each credential has its own.
func TestNamedStreamResumes(t *testing.T) {
	r := newRig(t, 0, 0)
	s := r.serve()
	stream, at, err := s.named(s.bearer, "backfill-1")
	if err != nil || at != 0 {
		t.Fatal(at, err)
	}
	crashes := t.TempDir()
	for n := range 5 {
		if err := stream.Send(&pb.SubmitStreamRequest{Entries: several(100*n, 100)}); err != nil {
			t.Fatal(err)
		}
		res, err := stream.Recv()
		if err != nil || res.Position != uint64(100*n) || len(res.Results) != 100 {
			t.Fatal(res, err)
		}
		// What kill -9 here leaves: never more than the log has, never less than
		// was answered.
		copyDir(t, filepath.Join(r.dir, streamsFile), filepath.Join(crashes, streamsFile))
		size, err := s.log.taken(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		j, err := openStreams(filepath.Join(crashes, streamsFile), func(context.Context) (uint64, error) { return size, nil })
		if err != nil {
			t.Fatal(err)
		}
		id := strings.Split(s.bearer, "_")[1]
		if p, err := j.open(t.Context(), id, "backfill-1"); err != nil || p.accepted != uint64(100*n+100) || p.accepted > size {
			t.Errorf("after %d answers a crash leaves %+v, %v; the log has %d", n+1, p, err, size)
		}
		// The same journal beside a log that went back claims nothing.
		j.store.(*streamFile).size = func(context.Context) (uint64, error) { return size - 1, nil }
		if p, err := j.open(t.Context(), id, "backfill-1"); err != nil || p.accepted != 0 {
			t.Errorf("beside a shorter log: %+v, %v", p, err)
		}
	}
	stream.CloseSend()
	if _, at, err := s.named(s.newToken(0), "backfill-1"); err != nil || at != 0 {
		t.Errorf("another credential's stream of this name stands at %d, %v", at, err)
	}
	if _, _, err := s.named(s.bearer, "../x"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a bad name: %v", err)
	}
	stream, at, err = s.named(s.bearer, "backfill-1")
	if err != nil || at != 500 {
		t.Fatalf("it stands at %d, %v", at, err)
	}
	stream.Send(&pb.SubmitStreamRequest{Entries: several(0, 1), Position: 501})
	if _, err := stream.Recv(); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a gap: %v", err)
	}
	bearer := s.bearer
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = r.serve()
	stream, at, err = s.named(bearer, "backfill-1")
	if err != nil || at != 500 {
		t.Fatalf("after a restart it stands at %d, %v", at, err)
	}
	// Sent again from before: the same indexes, and it stands no lower.
	stream.Send(&pb.SubmitStreamRequest{Entries: several(450, 100), Position: 450})
	res, err := stream.Recv()
	if err != nil || res.Position != 450 || res.Results[0].Index != 450 || res.Results[99].Index != 549 {
		t.Fatal(res, err)
	}
	stream.Send(&pb.SubmitStreamRequest{Entries: several(0, maxStreamEntries+1)})
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("too many in a message: %v", err)
	}
}

// TestStreamJournal: a torn or damaged record ends what is believed.
func TestStreamJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), streamsFile)
	size := func(context.Context) (uint64, error) { return 1000, nil }
	j, err := openStreams(path, size)
	if err != nil {
		t.Fatal(err)
	}
	p, err := j.open(t.Context(), "me", "a")
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []uint64{10, 20, 30} {
		if err := p.advance(at, at); err != nil {
			t.Fatal(err)
		}
	}
	j.close()
	raw := readFile(t, path)
	for name, row := range map[string]struct {
		raw  string
		want uint64
	}{
		"whole":   {raw, 30},
		"torn":    {raw[:len(raw)-5], 20},
		"flipped": {raw[:streamRecordSize+30] + string(raw[streamRecordSize+30]^1) + raw[streamRecordSize+31:], 10},
		"empty":   {"", 0},
	} {
		if err := os.WriteFile(path, []byte(row.raw), 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := openStreams(path, size)
		if err != nil {
			t.Fatal(err)
		}
		p, err := j.open(t.Context(), "me", "a")
		if err != nil || p.accepted != row.want {
			t.Errorf("%s: %d, %v; want %d", name, p.accepted, err, row.want)
		}
		if err := p.advance(40, 40); err != nil {
			t.Fatal(err)
		}
		j.close()
		if j, err = openStreams(path, size); err != nil {
			t.Fatal(err)
		}
		if p, err := j.open(t.Context(), "me", "a"); err != nil || p.accepted != 40 {
			t.Errorf("%s: written anew: %d, %v", name, p.accepted, err)
		}
		j.close()
	}
}

// TestStreamsOfALogThatWentBack: what was told of entries that the log has lost
// is not told again when it has as many others.
func TestStreamsOfALogThatWentBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), streamsFile)
	size := uint64(1000)
	at := func(context.Context) (uint64, error) { return size, nil }
	accepted := func(name string) uint64 {
		t.Helper()
		j, err := openStreams(path, at)
		if err != nil {
			t.Fatal(err)
		}
		defer j.close()
		p, err := j.open(t.Context(), "me", name)
		if err != nil {
			t.Fatal(err)
		}
		return p.accepted
	}
	j, err := openStreams(path, at)
	if err != nil {
		t.Fatal(err)
	}
	for name, position := range map[string]uint64{"old": 700, "new": 900} {
		p, err := j.open(t.Context(), "me", name)
		if err == nil {
			err = p.advance(position, position)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	j.close()
	if old, new := accepted("old"), accepted("new"); old != 700 || new != 900 {
		t.Fatalf("%d and %d", old, new)
	}
	for _, size = range []uint64{800, 2000} {
		if old, new := accepted("old"), accepted("new"); old != 700 || new != 0 {
			t.Errorf("size %d: the streams stand at %d and %d; want 700 and 0", size, old, new)
		}
	}
	if other := func() uint64 {
		j, err := openStreams(path, at)
		if err != nil {
			t.Fatal(err)
		}
		defer j.close()
		p, err := j.open(t.Context(), "somebody else", "old")
		if err != nil {
			t.Fatal(err)
		}
		return p.accepted
	}(); other != 0 {
		t.Errorf("another credential's stream of this name stands at %d", other)
	}
}

// stuckSubmitter never reads an answer.
type stuckSubmitter struct {
	pb.Log_SubmitStreamServer
	ctx     context.Context
	release chan struct{}
}

func (s *stuckSubmitter) Context() context.Context { return s.ctx }
func (s *stuckSubmitter) Send(*pb.SubmitStreamResponse) error {
	<-s.release
	return nil
}

// TestStuckSubmitterIsCut: who sends entries and reads no answers keeps its place
// only for a while.
func TestStuckSubmitterIsCut(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	by, err := l.queue(t.Context(), r.token, nth(0))
	if err != nil {
		t.Fatal(err)
	}
	<-by.group.done
	stuck := &stuckSubmitter{ctx: t.Context(), release: make(chan struct{})}
	defer close(stuck.release)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	s := &streaming{service: &service{log: l}, stream: stuck, ctx: ctx, wait: Sequenced, ahead: semaphore.NewWeighted(streamAhead)}
	if err := s.ahead.Acquire(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.answer(by); status.Code(err) != codes.Aborted {
		t.Errorf("%v", err)
	}
	if n := l.admission.count(); n != 0 {
		t.Errorf("%d submissions in flight", n)
	}
}

// TestStatusNamesWhatIsLogged: each refusal, and what is taken.
func TestStatusNamesWhatIsLogged(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	index, observed := r.all(entry.ClaimIndex), r.all(entry.ClaimObserved)
	a := upload("demo", "demo-1.0.tar.gz", "a")
	r.step(l, index, a, 0)
	next := 1
	n := 0
	about := func(kind entry.Kind, change func(e *entry.Entry)) *entry.Entry {
		n++
		e := plainEntry(kind, n)
		e.Project = "demo"
		change(e)
		return e
	}
	file := func(e *entry.Entry) { e.Version, e.File, e.SHA256 = a.Version, a.File, a.SHA256 }
	take := func(by Token, e *entry.Entry) { t.Helper(); r.step(l, by, e, next); next++ }
	refuse := func(by Token, e *entry.Entry, field string) {
		t.Helper()
		_, err := l.Submit(t.Context(), by, e, Sequenced)
		var needs *PreconditionError
		if !errors.As(err, &needs) || needs.Field != field {
			t.Errorf("%s: %v; want %s refused", e.Kind, err, field)
		}
	}
	for _, kind := range []entry.Kind{entry.KindYank, entry.KindUnyank, entry.KindQuarantine, entry.KindUnquarantine, entry.KindDeprecate, entry.KindUndeprecate, entry.KindRemove} {
		take(index, about(kind, file))
		take(index, about(kind, func(e *entry.Entry) { e.Version = "1.0" }))
		take(observed, about(kind, file)) // logged by the index
		refuse(index, about(kind, func(e *entry.Entry) { file(e); e.File = "demo-2.0.tar.gz" }), "file")
		refuse(index, about(kind, func(e *entry.Entry) { file(e); e.SHA256 = strings.Repeat("0", 64) }), "sha256")
		refuse(index, about(kind, func(e *entry.Entry) { file(e); e.Version = "2.0" }), "version")
		refuse(index, about(kind, func(e *entry.Entry) { e.Version = "9.9" }), "version")
		refuse(observed, about(kind, func(e *entry.Entry) { e.Version = "9.9" }), "version")
	}
	for _, kind := range []entry.Kind{entry.KindArchive, entry.KindUnarchive, entry.KindQuarantine, entry.KindDeprecate, entry.KindRemove} {
		take(index, about(kind, func(*entry.Entry) {}))
		refuse(index, about(kind, func(e *entry.Entry) { e.Project = "other" }), "project")
	}
	tag := func(version string) *entry.Entry {
		return about(entry.KindDistTag, func(e *entry.Entry) { e.Ecosystem, e.Tag, e.Version = entry.NPM, "latest", version })
	}
	refuse(index, tag("1.0.0"), "version")
	refuse(index, tag(""), "project")
	npm := upload("demo", "demo-1.0.0.tgz", "n")
	npm.Ecosystem, npm.Version = entry.NPM, "1.0.0"
	take(index, npm)
	take(index, tag("1.0.0"))
	take(index, tag(""))
	refuse(index, tag("1.0.1"), "version")

	// A baseline: there are files from before the log. Those logged stay checked.
	base := plainEntry(entry.KindBaseline, 9000)
	base.Count, base.SHA256 = entry.Uint(3), a.SHA256
	take(index, base)
	take(index, about(entry.KindYank, func(e *entry.Entry) { e.Version = "0.1" }))
	take(index, about(entry.KindYank, func(e *entry.Entry) { file(e); e.File = "demo-0.1.tar.gz" }))
	take(index, about(entry.KindArchive, func(e *entry.Entry) { e.Project = "older" }))
	refuse(index, about(entry.KindYank, func(e *entry.Entry) { file(e); e.SHA256 = strings.Repeat("0", 64) }), "sha256")
	refuse(index, tag("1.0.1"), "version") // of another ecosystem

	// Of the log alone.
	for _, kind := range []entry.Kind{entry.KindConflict, entry.KindCanary, entry.KindSuccessor, entry.KindPredecessor} {
		var denied *NotAllowedError
		if _, err := l.Submit(t.Context(), index, about(kind, func(*entry.Entry) {}), Sequenced); !errors.As(err, &denied) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	r.replayed(l)
}

// TestStatusWaitsForItsUpload: a status that follows its upload at once is
// decided when the upload stands, not refused before.
func TestStatusWaitsForItsUpload(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	by := r.all(entry.ClaimIndex)
	yank := plainEntry(entry.KindYank, 1)
	yank.Project, yank.Version = "demo", "1.0"
	wrong := plainEntry(entry.KindYank, 2)
	wrong.Project, wrong.Version = "demo", "2.0"
	errs := r.race(l, by, demo("d1"), yank, wrong)
	if errs[0] != nil || errs[1] != nil {
		t.Fatal(errs)
	}
	wantPrecondition(t, errs[2], "version")
	r.replayed(l)
}
