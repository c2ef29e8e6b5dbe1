// Package submit is a client of a log's submission API (proto/portbook/v1).
// It is apart from package client because it links gRPC, which an installer
// must not have to.
package submit

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Ack is an acknowledgement: the entry is in the log at Index, and Proof is a
// tlog-proof (c2sp.org/tlog-proof) against a cosigned checkpoint. It has not
// been verified: package client does that, under a policy of its own.
type Ack struct {
	Index uint64
	Proof []byte
}

// ErrUnauthorized says that the token is not valid.
var ErrUnauthorized = errors.New("the log does not know this token")

// Conflict says that the file name is pinned to other bytes, or the id to
// another entry. Submitting again does not help.
type Conflict struct {
	FirstIndex uint64
	Reason     string
}

func (e *Conflict) Error() string { return e.Reason }

// Invalid says which field of the entry the log refuses, and why.
type Invalid struct {
	Field, Reason string
	Denied        bool // the entry is well formed; the token does not reach so far
}

func (e *Invalid) Error() string { return e.Reason }

// Unavailable says that the log, or its quorum of witnesses, is out. The same
// entry submitted later gets the same index.
type Unavailable struct {
	RetryAfter time.Duration
	Reason     string
}

func (e *Unavailable) Error() string { return "log unavailable: " + e.Reason }

// Client submits entries to one log on behalf of one credential.
type Client struct {
	conn  *grpc.ClientConn
	log   pb.LogClient
	token string
}

// Dial prepares a client for target, without connecting yet:
//
//	https://log.example.com[:port]   gRPC over TLS
//	http://127.0.0.1:port            gRPC in the clear, loopback addresses only
//
// The token would travel in the clear, so http to another machine is refused.
func Dial(target, token string, opts ...grpc.DialOption) (*Client, error) {
	scheme, address, ok := strings.Cut(target, "://")
	if !ok || address == "" || strings.ContainsAny(address, "/?#@") {
		return nil, fmt.Errorf("log %q: want https://HOST[:PORT] or, on this machine, http://127.0.0.1:PORT", target)
	}
	var creds credentials.TransportCredentials
	switch scheme {
	case "https":
		creds = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
		if _, _, err := net.SplitHostPort(address); err != nil {
			address = net.JoinHostPort(strings.Trim(address, "[]"), "443")
		}
	case "http":
		host, _, err := net.SplitHostPort(address)
		if ip := net.ParseIP(host); err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("log %q: http carries the token in the clear: only to a loopback address with a port", target)
		}
		creds = insecure.NewCredentials()
	default:
		return nil, fmt.Errorf("log %q: unknown scheme %q: want https or http", target, scheme)
	}
	opts = append([]grpc.DialOption{grpc.WithTransportCredentials(creds), grpc.WithUserAgent("portbook")}, opts...)
	opts = append(opts, grpc.WithStatsHandler(otelgrpc.NewClientHandler())) // no-op until the program traces
	conn, err := grpc.NewClient("passthrough:///"+address, opts...)
	if err != nil {
		return nil, fmt.Errorf("log %q: %w", target, err)
	}
	return &Client{conn: conn, log: pb.NewLogClient(conn), token: token}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) auth(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
}

// Submit logs e and waits for its acknowledgement, as long as ctx and the log
// let it. Errors are *Conflict, *Invalid, *Unavailable, or ErrUnauthorized.
func (c *Client) Submit(ctx context.Context, e *entry.Entry) (*Ack, error) {
	if err := sendable(e); err != nil {
		return nil, err
	}
	res, err := c.log.Submit(c.auth(ctx), &pb.SubmitRequest{Entry: toProto(e)})
	if err != nil {
		return nil, fromStatus(err)
	}
	return &Ack{Index: res.Index, Proof: res.Proof}, nil
}

// Ready tells whether the log takes entries now (grpc.health.v1): nil, or
// *Unavailable.
func (c *Client) Ready(ctx context.Context) error {
	res, err := healthpb.NewHealthClient(c.conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return fromStatus(err)
	}
	if res.Status != healthpb.HealthCheckResponse_SERVING {
		return &Unavailable{Reason: "it is up, but takes no entries now"}
	}
	return nil
}

// Result is the answer to one entry of a stream.
type Result struct {
	Ack *Ack
	Err error // as of Submit
}

// Stream logs many entries. next yields them and ends with io.EOF; each is
// given what it became, in order. Stream returns when all are answered, or with
// the error that ended the stream: entries not answered then may or may not be
// logged, and can be submitted again. next is called from another goroutine,
// and not after Stream has returned: Stream waits for it.
func (c *Client) Stream(ctx context.Context, next func() (*entry.Entry, error), each func(sequence uint64, r Result) error) error {
	ctx, cancel := context.WithCancel(c.auth(ctx))
	defer cancel()
	stream, err := c.log.SubmitStream(ctx)
	if err != nil {
		return fromStatus(err)
	}
	var sent uint64
	var sendErr error
	var sending sync.WaitGroup
	sending.Go(func() {
		for {
			e, err := next()
			if err == nil {
				err = sendable(e)
			}
			if err == nil {
				if err = stream.Send(&pb.SubmitRequest{Entry: toProto(e)}); err == nil {
					sent++
					continue
				}
				if errors.Is(err, io.EOF) {
					return // the receiving side learns why
				}
			} else if errors.Is(err, io.EOF) {
				sendErr = stream.CloseSend()
				return
			}
			sendErr = err
			cancel()
			return
		}
	})
	stop := func() { cancel(); sending.Wait() }
	defer stop()
	var got uint64
	for {
		res, err := stream.Recv()
		if err != nil {
			stop()
			switch {
			case sendErr != nil:
				return sendErr
			case !errors.Is(err, io.EOF):
				return fromStatus(err)
			case got != sent:
				return &Unavailable{Reason: fmt.Sprintf("the log ended the stream after answering %d of %d entries", got, sent)}
			}
			return nil
		}
		if res.Sequence != got {
			return fmt.Errorf("the log answered entry %d where %d was due", res.Sequence, got)
		}
		r := Result{}
		switch o := res.Outcome.(type) {
		case *pb.SubmitStreamResponse_Logged:
			r.Ack = &Ack{Index: o.Logged.Index, Proof: o.Logged.Proof}
		case *pb.SubmitStreamResponse_Error:
			r.Err = fromParts(codes.Code(o.Error.Code), o.Error.Message, o.Error.Field, o.Error.GetFirstIndex(), 0)
		default:
			return fmt.Errorf("the log's answer to entry %d says nothing", got)
		}
		if err := each(got, r); err != nil {
			return err
		}
		got++
	}
}

// fromStatus turns the log's status into one of this package's errors.
func fromStatus(err error) error {
	st := status.Convert(err)
	var field string
	var first uint64
	var retry time.Duration
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			field = d.Metadata["field"]
			if n, err := strconv.ParseUint(d.Metadata["first_index"], 10, 63); err == nil {
				first = n
			}
		case *errdetails.RetryInfo:
			retry = d.RetryDelay.AsDuration()
		}
	}
	return fromParts(st.Code(), st.Message(), field, first, retry)
}

// maxRetryAfter caps what a log may ask for.
const maxRetryAfter = 5 * time.Minute

func fromParts(code codes.Code, message, field string, first uint64, retry time.Duration) error {
	switch {
	case code == codes.AlreadyExists:
		return &Conflict{FirstIndex: first, Reason: message}
	case code == codes.InvalidArgument, code == codes.FailedPrecondition:
		return &Invalid{Field: field, Reason: message}
	case code == codes.PermissionDenied:
		return &Invalid{Field: field, Reason: message, Denied: true}
	case code == codes.Unauthenticated:
		return fmt.Errorf("%w: %s", ErrUnauthorized, message)
	case code == codes.Canceled:
		return context.Canceled
	}
	return &Unavailable{RetryAfter: min(max(retry, 0), maxRetryAfter), Reason: message}
}

// sendable refuses what the API has no words for: fields of entries that only
// a log makes.
func sendable(e *entry.Entry) error {
	for field, set := range map[string]bool{
		"origin": e.Origin != "", "vkeys": e.VKeys != nil, "url": e.URL != "", "root": e.Root != "",
		"slot_claim": e.SlotClaim != "", "first_index": e.FirstIndex != nil,
	} {
		if set {
			return &Invalid{Field: field, Reason: field + ": only a log itself makes entries with this field"}
		}
	}
	return nil
}

// toProto is e as the API takes it.
func toProto(e *entry.Entry) *pb.Entry {
	p := &pb.Entry{
		Kind: string(e.Kind), Claim: string(e.Claim), Registry: e.Registry, Ecosystem: e.Ecosystem, Project: e.Project,
		Version: e.Version, File: e.File, Size: e.Size, Sha256: e.SHA256, Sha512: e.SHA512, Time: e.Time, UploadTime: e.UploadTime,
		MetadataSha256: e.MetadataSHA256, Auth: e.Auth, Uploader: e.Uploader, AttestationSha256: e.AttestationSHA256,
		SourcesSha256: e.SourcesSHA256, Replaces: e.Replaces, Id: e.ID, Reason: e.Reason, Index: e.Index, Tag: e.Tag,
		Subject: e.Subject, Overwrite: e.Overwrite, Count: e.Count,
	}
	if b := e.Publisher; b != nil {
		p.Publisher = &pb.Publisher{
			Kind: b.Kind, Issuer: b.Issuer, Subject: b.Subject, Repository: b.Repository,
			RepositoryId: b.RepositoryID, OwnerId: b.OwnerID, Workflow: b.Workflow, Environment: b.Environment,
		}
	}
	return p
}
