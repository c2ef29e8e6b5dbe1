package logserver

// SubmitStream: many entries, answered in order.
//
//	Recv ─▶ queue, as far as there is room ─▶ [tickets, bounded] ─▶ wait ─▶
//	progress of a named stream, durably ─▶ Send
//
// One goroutine does the left half, one the right. At most streamAhead entries
// are between them, so a caller that does not read its answers is not read from.
// It holds its share of what may be in flight meanwhile, and so is cut off after
// a while: sendWithin.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
)

const (
	maxStreamEntries = 256  // of one message
	streamAhead      = 8192 // entries of one stream that wait for their answer
)

// SubmitStream implements pb.LogServer.
func (s *service) SubmitStream(stream grpc.BidiStreamingServer[pb.SubmitStreamRequest, pb.SubmitStreamResponse]) error {
	by, err := s.credential(stream.Context())
	if err != nil {
		return s.fail(err)
	}
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	r := &streaming{service: s, stream: stream, ctx: ctx, by: by, ahead: semaphore.NewWeighted(streamAhead), queue: make(chan *ticket, streamAhead)}
	if err := r.open(first); err != nil {
		return s.fail(s.refusedEntry(ctx, by, err))
	}
	go func() {
		defer close(r.queue)
		r.readErr = r.read(first)
	}()
	defer func() { // whatever is left when the caller has gone
		cancel()
		for t := range r.queue {
			t.abandon()
		}
	}()
	for t := range r.queue {
		err := r.answer(t)
		if err != nil {
			return err
		}
	}
	return r.readErr
}

// streaming is one SubmitStream call.
type streaming struct {
	*service
	stream   grpc.BidiStreamingServer[pb.SubmitStreamRequest, pb.SubmitStreamResponse]
	ctx      context.Context
	by       Credential
	wait     Wait
	progress *streamProgress // of a named stream, or nil
	accepted uint64          // when the call began
	ahead    *semaphore.Weighted
	queue    chan *ticket
	readErr  error // why reading ended; set before queue is closed

	// Owned by the answering goroutine once the first entries are queued.
	position uint64
}

// open takes what the first message says of the stream.
func (r *streaming) open(first *pb.SubmitStreamRequest) (err error) {
	if r.wait, err = waitOf(first.Wait); err != nil {
		return err
	}
	if first.Stream == "" {
		if first.Position != 0 {
			return &entry.FieldError{Field: "position", Reason: "only a stream with a name has one"}
		}
		return nil
	}
	if s := r.log.Status(); !s.Writable {
		return fmt.Errorf("%w: %w", ErrReadOnly, s.Reason)
	}
	if r.progress, err = r.log.streams.open(r.ctx, r.by.ID, first.Stream); err != nil {
		return err
	}
	r.accepted = r.progress.accepted
	return r.stream.Send(&pb.SubmitStreamResponse{Accepted: &r.accepted})
}

// waitOf is the wait level that a request asks for.
func waitOf(w pb.Wait) (Wait, error) {
	switch w {
	case pb.Wait_COSIGNED:
		return Cosigned, nil
	case pb.Wait_SEQUENCED:
		return Sequenced, nil
	}
	return 0, &entry.FieldError{Field: "wait", Reason: "want COSIGNED or SEQUENCED"}
}

// read queues what the caller sends, until it sends no more. The tickets it
// leaves in the queue are answered before its error is.
func (r *streaming) read(req *pb.SubmitStreamRequest) error {
	begun := false
	for {
		if len(req.Entries) > 0 && !begun {
			begun = true
			r.position = req.Position
			if req.Position > r.accepted {
				return r.fail(&PreconditionError{"position", fmt.Sprintf("the stream stands at %d", r.accepted)})
			}
		}
		if err := r.take(req); err != nil {
			return r.fail(r.refusedEntry(r.ctx, r.by, err))
		}
		var err error
		if req, err = r.stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// take queues the entries of one message, waiting while the server is full or
// the credential's rate is used up: a stream is slowed down, not refused.
func (r *streaming) take(req *pb.SubmitStreamRequest) error {
	if len(req.Entries) > maxStreamEntries {
		return &entry.FieldError{Field: "entries", Reason: fmt.Sprintf("%d entries in a message, at most %d", len(req.Entries), maxStreamEntries)}
	}
	if err := r.log.Tokens.stillGood(r.ctx, r.by); err != nil {
		return err // a stream is long: it was revoked since
	}
	entries := make([]*entry.Entry, len(req.Entries))
	for i, e := range req.Entries {
		entries[i] = fromProto(e)
	}
	for len(entries) > 0 {
		if err := r.ahead.Acquire(r.ctx, int64(len(entries))); err != nil {
			return err
		}
		t, err := r.log.queue(r.ctx, r.by, entries...)
		if err == nil {
			r.queue <- t // never full
			r.ahead.Release(int64(len(entries) - len(t.subs)))
			entries = entries[len(t.subs):]
			continue
		}
		r.ahead.Release(int64(len(entries)))
		if !errors.Is(err, ErrOverloaded) {
			return err
		}
		if !sleep(r.ctx, 20*time.Millisecond) {
			return r.ctx.Err()
		}
		if err := r.log.Tokens.stillGood(r.ctx, r.by); err != nil {
			return err
		}
	}
	return nil
}

// answer waits for a ticket and sends its results. Trouble, as opposed to the
// refusal of an entry, ends the stream: the caller submits again from there.
func (r *streaming) answer(t *ticket) error {
	n := len(t.subs)
	defer r.ahead.Release(int64(n))
	ctx, done := context.WithTimeout(r.ctx, r.log.cfg.MaxWait)
	defer done()
	out, err := t.wait(ctx, r.wait)
	if err != nil {
		return r.fail(err)
	}
	res := &pb.SubmitStreamResponse{Position: r.position, Results: make([]*pb.StreamResult, 0, n)}
	results := make([]pb.StreamResult, n)
	var least uint64 // entries that the log has
	for i := range out {
		o, x := &out[i], &results[i]
		if o.err != nil && !isRefusal(o.err) {
			err = o.err
			break
		}
		if o.err != nil {
			x.Error = streamError(r.fail(r.refusedEntry(ctx, r.by, o.err)))
		} else {
			x.Index = o.ack.Index
			least = max(least, o.ack.Index+1)
			if o.ack.Proof != nil {
				x.Proof = o.ack.Proof.Bytes()
			}
		}
		res.Results = append(res.Results, x)
	}
	r.position += uint64(len(res.Results))
	if len(res.Results) > 0 {
		if r.progress != nil {
			if err := r.progress.advance(r.position, least); err != nil {
				return r.fail(err)
			}
		}
		if err := sendWithin(r.ctx, r.stream, res); errors.Is(err, errSlowReader) {
			return r.fail(err)
		} else if err != nil {
			return err
		}
	}
	if err != nil {
		return r.fail(err)
	}
	return nil
}

// isRefusal tells a verdict on an entry, which stands, from trouble.
func isRefusal(err error) bool {
	var field *entry.FieldError
	var denied *NotAllowedError
	var limit *limitError
	return isVerdict(err) || errors.As(err, &field) || errors.As(err, &denied) ||
		errors.As(err, &limit) && limit.reason == reasonQuota // for the rest of the day: that is too long to wait
}
