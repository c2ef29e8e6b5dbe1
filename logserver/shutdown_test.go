package logserver

import (
	"testing"
	"time"

	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestShutdownTellsWhoWaits: who waits for a quorum that is not there when the
// server is stopped gets UNAVAILABLE, which asks to come again, and the server
// ends without an error: it does not wait for the caller's own limit.
func TestShutdownTellsWhoWaits(t *testing.T) {
	t.Parallel()
	s := newRig(t, 1, 1).serve(func(c *Config) { c.MaxWait = time.Hour })
	s.witnesses[0].down()
	told := make(chan error, 1)
	go func() {
		_, err := s.client.Submit(s.auth(), &pb.SubmitRequest{Entry: pbEntry(nth(1))})
		told <- err
	}()
	waitFor(t, "the submission to wait", func() bool { size, err := s.log.engine.size(t.Context()); return err == nil && size > 0 })
	if err := s.stop(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
	if err := <-told; status.Code(err) != codes.Unavailable {
		t.Errorf("who waited was told %v", err)
	}
}
