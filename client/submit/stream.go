package submit

// Streams: many entries over one call, which goes on where it was after the
// connection, or the log, was gone for a while.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// Wait says when an entry is answered.
type Wait int

const (
	// Cosigned: with index and proof. The default.
	Cosigned Wait = iota
	// Sequenced: with a receipt, the index alone, once the entry is durable.
	Sequenced
)

// StreamOptions say how a stream is run. The zero value waits for proofs and
// resumes for a minute.
type StreamOptions struct {
	Wait Wait

	// Name, if it is set, is one that the log remembers the stream by, for this
	// token: 1 to 64 of A-Z a-z 0-9 . _ -. A program that was restarted goes on
	// where the stream of this name stands: From is told once, before the first
	// entry is asked for, how many of its entries, from the first, were answered
	// before and are durable; the first entry asked for is the one after them.
	Name string
	From func(accepted uint64) error

	// Window is how many entries are on the way at most; 0 means 4096.
	Window int
	// Patience is how long, without any answer, a log that is unavailable is tried
	// again; 0 means a minute, less than 0 that the first trouble ends the stream.
	Patience time.Duration
}

// Result is the answer to one entry of a stream.
type Result struct {
	Ack *Ack
	Err error // *Conflict or *Invalid
}

// Stream logs many entries. next yields them and ends with io.EOF; each is
// given what they became, in order: position counts from the stream's first
// entry. Stream returns when all are answered, or with the error that ended it:
// of next, of each, or of Submit. Entries not answered then may or may not be
// logged, and can be submitted again. next is called from another goroutine,
// and not after Stream has returned: Stream waits for it.
//
// When the connection breaks, or the log is unavailable, what is not answered
// is sent again: an entry that was logged meanwhile is answered with its index.
func (c *Client) Stream(ctx context.Context, o StreamOptions, next func() (*entry.Entry, error), each func(position uint64, r Result) error) error {
	if o.Window <= 0 {
		o.Window = 4096
	}
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	ctx, cancel := context.WithCancel(c.auth(ctx))
	defer cancel()
	s := &streamer{client: c, StreamOptions: o, each: each}
	s.changed = sync.NewCond(&s.mu)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer s.stop(errStopped)
	defer context.AfterFunc(ctx, func() { s.stop(ctx.Err()) })()
	var trouble time.Time // since when nothing was answered; zero: all is well
	for pause := 50 * time.Millisecond; ; {
		before := s.base
		err := s.attempt(ctx, func() { reading.Go(func() { s.read(next) }) })
		if errors.Is(err, errForgotten) {
			s.Name = ""
			continue
		}
		var out *Unavailable
		if !errors.As(err, &out) || ctx.Err() != nil {
			return err
		}
		if s.base > before {
			trouble, pause = time.Time{}, 50*time.Millisecond
		}
		if trouble.IsZero() {
			trouble = time.Now()
		}
		if o.Patience < 0 || time.Since(trouble) > o.Patience {
			return err
		}
		select {
		case <-time.After(max(pause, min(out.RetryAfter, 5*time.Second))):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, 5*time.Second)
	}
}

var (
	errStopped   = errors.New("the stream has ended")
	errForgotten = errors.New("the log has forgotten the stream")
)

// streamer is one Stream call.
type streamer struct {
	client *Client
	StreamOptions
	each  func(uint64, Result) error
	begun bool   // the source is being read
	base  uint64 // position of unanswered[0]; written with mu held, by the receiving goroutine alone

	mu         sync.Mutex
	changed    *sync.Cond     // of mu
	unanswered []*entry.Entry // guarded by mu
	sent       int            // guarded by mu; of unanswered, on this connection
	ended      error          // guarded by mu; why the source yields no more: io.EOF or its error
	stopped    error          // guarded by mu; why the whole stream has ended
}

// stop ends all waiting for good.
func (s *streamer) stop(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped == nil {
		s.stopped = err
	}
	s.changed.Broadcast()
}

// read fills the window from the source.
func (s *streamer) read(next func() (*entry.Entry, error)) {
	for {
		s.mu.Lock()
		for len(s.unanswered) >= s.Window && s.stopped == nil {
			s.changed.Wait()
		}
		stopped := s.stopped != nil
		s.mu.Unlock()
		if stopped {
			return
		}
		e, err := next()
		if err == nil {
			err = sendable(e)
		}
		s.mu.Lock()
		if err == nil {
			s.unanswered = append(s.unanswered, e)
		} else {
			s.ended = err
		}
		s.changed.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

const (
	maxTogether = 256      // entries a message
	maxBytes    = 96 << 10 // of a message, before its last entry
)

// attempt runs the stream over one call until all is answered or it breaks.
// begin starts reading the source.
func (s *streamer) attempt(ctx context.Context, begin func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.client.log.SubmitStream(ctx)
	if err != nil {
		return fromStatus(err)
	}
	first := &pb.SubmitStreamRequest{Wait: pb.Wait(s.Wait)}
	var offset uint64 // of the log's positions from ours
	if s.Name != "" {
		accepted, err := s.enter(stream, first)
		if err != nil {
			return err
		}
		switch {
		case !s.begun:
			s.base = accepted
			if s.From != nil {
				if err := s.From(accepted); err != nil {
					return err
				}
			}
		case s.base > accepted:
			// The log has forgotten what it answered. It need not be told again: the
			// rest is sent on a stream without a name.
			return errForgotten
		}
		first = &pb.SubmitStreamRequest{Position: s.base}
	} else {
		offset = s.base
	}
	if !s.begun {
		s.begun = true
		begin()
	}
	s.mu.Lock()
	s.sent = 0
	s.mu.Unlock()
	var sending sync.WaitGroup
	gone := make(chan struct{})
	sending.Go(func() {
		defer close(gone)
		if err := s.send(ctx, stream, first); err != nil {
			cancel()
		}
	})
	defer sending.Wait()
	defer context.AfterFunc(ctx, func() { s.mu.Lock(); s.changed.Broadcast(); s.mu.Unlock() })()
	defer cancel()
	err = s.receive(stream, offset)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped != nil:
		return s.stopped
	case s.ended != nil && !errors.Is(s.ended, io.EOF):
		return s.ended
	}
	return err
}

// enter sends a named stream's first message and returns where it stands.
func (s *streamer) enter(stream grpc.BidiStreamingClient[pb.SubmitStreamRequest, pb.SubmitStreamResponse], first *pb.SubmitStreamRequest) (uint64, error) {
	first.Stream = s.Name
	if err := stream.Send(first); err != nil && !errors.Is(err, io.EOF) {
		return 0, fromStatus(err)
	}
	res, err := stream.Recv()
	if err != nil {
		return 0, fromStatus(err)
	}
	if res.Accepted == nil {
		return 0, errors.New("the log did not say where the stream stands")
	}
	return *res.Accepted, nil
}

// send sends what the source yields. It returns nil once that is all, or the
// call has ended, and else why the whole stream must end.
func (s *streamer) send(ctx context.Context, stream grpc.BidiStreamingClient[pb.SubmitStreamRequest, pb.SubmitStreamResponse], msg *pb.SubmitStreamRequest) error {
	var room [maxTogether]pb.Entry // used again for each message: Send encodes before it returns
	entries := make([]*pb.Entry, maxTogether)
	for i := range entries {
		entries[i] = &room[i]
	}
	batch := make([]*entry.Entry, 0, maxTogether)
	for {
		s.mu.Lock()
		for s.sent == len(s.unanswered) && s.ended == nil && s.stopped == nil && ctx.Err() == nil {
			s.changed.Wait()
		}
		switch {
		case s.stopped != nil, ctx.Err() != nil:
			s.mu.Unlock()
			return nil
		case s.ended != nil && !errors.Is(s.ended, io.EOF):
			s.mu.Unlock()
			return s.ended
		case s.sent == len(s.unanswered):
			s.mu.Unlock()
			return stream.CloseSend()
		}
		batch = batch[:0]
		for size := 0; s.sent < len(s.unanswered) && len(batch) < maxTogether && size < maxBytes; s.sent++ {
			e := s.unanswered[s.sent]
			batch = append(batch, e)
			size += sizeOf(e)
		}
		s.mu.Unlock()
		for i, e := range batch {
			fill(entries[i], e)
		}
		msg.Entries = entries[:len(batch)]
		if err := stream.Send(msg); err != nil {
			return nil // the receiving side learns why
		}
		msg = &pb.SubmitStreamRequest{}
	}
}

// sizeOf is about how long e is on the wire.
func sizeOf(e *entry.Entry) int {
	n := 400 + len(e.Project) + len(e.Version) + len(e.File) + len(e.SHA512) + 66*(len(e.AttestationSHA256)+len(e.SourcesSHA256))
	if p := e.Publisher; p != nil {
		n += len(p.Issuer) + len(p.Subject) + len(p.Repository) + len(p.Workflow) + len(p.Environment) + 60
	}
	return n
}

// receive hands on the answers until the log has no more.
func (s *streamer) receive(stream grpc.BidiStreamingClient[pb.SubmitStreamRequest, pb.SubmitStreamResponse], offset uint64) error {
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.ended == nil || len(s.unanswered) > 0 {
				return &Unavailable{Reason: fmt.Sprintf("the log ended the stream with %d entries unanswered", len(s.unanswered))}
			}
			return nil
		}
		if err != nil {
			return fromStatus(err)
		}
		if res.Position+offset != s.base {
			return fmt.Errorf("the log answered entry %d where %d was due", res.Position+offset, s.base)
		}
		for _, x := range res.Results {
			r := Result{Ack: &Ack{Index: x.Index, Proof: x.Proof}}
			if e := x.Error; e != nil && e.Reason == frozen {
				r = Result{Err: &Frozen{Reason: e.Message}}
			} else if e != nil {
				r = Result{Err: fromParts(codes.Code(e.Code), e.Message, e.Field, e.GetFirstIndex(), 0)}
			}
			if err := s.each(s.base, r); err != nil {
				return err
			}
			s.mu.Lock()
			if s.sent == 0 {
				s.mu.Unlock()
				return fmt.Errorf("the log answered entry %d, which it was not sent", s.base)
			}
			s.unanswered[0] = nil
			s.unanswered = s.unanswered[1:]
			s.sent--
			s.base++
			s.mu.Unlock()
		}
		s.mu.Lock()
		s.changed.Broadcast()
		s.mu.Unlock()
	}
}
