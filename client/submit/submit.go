// Package submit is a client of a log's submission API (proto/portbook/v1).
// It is apart from package client because it links gRPC, which an installer
// must not have to.
package submit

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
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
// been verified: package client does that, under a policy of its own. A receipt
// (Sequenced) has no Proof.
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

// Frozen says that the log has ended and another has taken over. Submitting
// again does not help, now or later: Dial that log, with a token of its own.
type Frozen struct {
	Origin, URL string // of the log that takes over, where the answer has them apart
	Reason      string
}

func (e *Frozen) Error() string { return e.Reason }

// frozen is the reason of such an answer.
const frozen = "FROZEN"

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
	if c.token == "" {
		return ctx // a client certificate says who calls
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
}

// Submit logs e and waits for its acknowledgement, as long as ctx and the log
// let it. Errors are *Conflict, *Invalid, *Frozen, *Unavailable, or ErrUnauthorized.
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

// Sequence logs e and returns its index as soon as it is durable in the log: a
// receipt, which proves nothing. Errors are those of Submit.
func (c *Client) Sequence(ctx context.Context, e *entry.Entry) (uint64, error) {
	if err := sendable(e); err != nil {
		return 0, err
	}
	res, err := c.log.Submit(c.auth(ctx), &pb.SubmitRequest{Entry: toProto(e), Wait: pb.Wait_SEQUENCED})
	if err != nil {
		return 0, fromStatus(err)
	}
	return res.Index, nil
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

// fromStatus turns the log's status into one of this package's errors.
func fromStatus(err error) error {
	st := status.Convert(err)
	var field string
	var first uint64
	var retry time.Duration
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.Reason == frozen {
				return &Frozen{Origin: d.Metadata["successor_origin"], URL: d.Metadata["successor_url"], Reason: st.Message()}
			}
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
	field := ""
	switch {
	case e.Origin != "":
		field = "origin"
	case e.VKeys != nil:
		field = "vkeys"
	case e.URL != "":
		field = "url"
	case e.Root != "":
		field = "root"
	case e.SlotClaim != "":
		field = "slot_claim"
	case e.FirstIndex != nil:
		field = "first_index"
	default:
		return nil
	}
	return &Invalid{Field: field, Reason: field + ": only a log itself makes entries with this field"}
}

// toProto is e as the API takes it.
func toProto(e *entry.Entry) *pb.Entry {
	p := new(pb.Entry)
	fill(p, e)
	return p
}

// fill sets every field of p.
func fill(p *pb.Entry, e *entry.Entry) {
	p.Kind, p.Claim, p.Registry, p.Ecosystem, p.Project = string(e.Kind), string(e.Claim), e.Registry, e.Ecosystem, e.Project
	p.Version, p.File, p.Size, p.Sha256, p.Sha512, p.Time, p.UploadTime = e.Version, e.File, e.Size, e.SHA256, e.SHA512, e.Time, e.UploadTime
	p.MetadataSha256, p.Auth, p.Uploader, p.AttestationSha256 = e.MetadataSHA256, e.Auth, e.Uploader, e.AttestationSHA256
	p.SourcesSha256, p.Replaces, p.Id, p.Reason, p.Index, p.Tag = e.SourcesSHA256, e.Replaces, e.ID, e.Reason, e.Index, e.Tag
	p.Subject, p.Overwrite, p.Count = e.Subject, e.Overwrite, e.Count
	b := e.Publisher
	if b == nil {
		p.Publisher = nil
		return
	}
	if p.Publisher == nil {
		p.Publisher = new(pb.Publisher)
	}
	q := p.Publisher
	q.Kind, q.Issuer, q.Subject, q.Repository = b.Kind, b.Issuer, b.Subject, b.Repository
	q.RepositoryId, q.OwnerId, q.Workflow, q.Environment = b.RepositoryID, b.OwnerID, b.Workflow, b.Environment
}
