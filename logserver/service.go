package logserver

// The gRPC service of proto/portbook/v1/log.proto, and its REST face.

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc/filters"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// service implements pb.LogServer.
type service struct {
	pb.UnimplementedLogServer
	log  *Log
	rest *restCalls // of the inner server, which answers REST calls; nil of the outer one
}

const (
	maxMessage = 256 << 10 // of one message: a stream's has up to 256 entries
	maxCall    = 64 << 10  // of one REST call with one entry, which is at most 4 KiB
	maxStream  = 16 << 20  // of one REST stream
	retryAfter = 2 * time.Second
)

// GRPC returns the log's gRPC server.
func (l *Log) GRPC(opts ...grpc.ServerOption) *grpc.Server { return l.grpcServer(nil, opts...) }

// grpcServer is the log's gRPC server; with rest, the inner one of REST calls.
func (l *Log) grpcServer(rest *restCalls, opts ...grpc.ServerOption) *grpc.Server {
	opts = append([]grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(16 << 10),
		grpc.MaxConcurrentStreams(1024),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 15 * time.Minute, Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithFilter(filters.Not(filters.HealthCheck())))),
	}, opts...)
	s := grpc.NewServer(opts...)
	pb.RegisterLogServer(s, &service{log: l, rest: rest})
	healthpb.RegisterHealthServer(s, health{log: l})
	return s
}

// health implements grpc.health.v1 Check: serving while the log takes entries.
type health struct {
	healthpb.UnimplementedHealthServer
	log *Log
}

// Check implements healthpb.HealthServer.
func (h health) Check(context.Context, *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if h.log.Ready() != nil {
		return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}, nil
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

// Submit implements pb.LogServer.
func (s *service) Submit(ctx context.Context, req *pb.SubmitRequest) (*pb.SubmitResponse, error) {
	by, err := s.credential(ctx)
	if err != nil {
		return nil, s.fail(err)
	}
	wait, err := waitOf(req.GetWait())
	if err != nil {
		return nil, s.fail(err)
	}
	ack, err := s.log.Submit(ctx, by, fromProto(req.GetEntry()), wait)
	if err != nil {
		return nil, s.fail(s.refusedEntry(ctx, by, err))
	}
	res := &pb.SubmitResponse{Index: ack.Index}
	if ack.Proof != nil {
		res.Proof = ack.Proof.Bytes()
	}
	return res, nil
}

// notFoundError says that the published log has no such entry.
type notFoundError struct{ what string }

func (e *notFoundError) Error() string { return e.what }

// errorDomain is the ErrorInfo domain of the API's errors.
const errorDomain = "portbook"

// fail counts a failed call and turns its error into a status.
func (s *service) fail(err error) error {
	err = s.status(s.log.closedBy(err))
	s.log.metrics.refusal(reasonOf(err))
	return err
}

// status turns an error into the status that says what was wrong, with what, and
// whether to try again. Refusals of an entry, of a caller, and trouble of ours
// have different codes.
func (s *service) status(err error) error {
	var (
		field    *entry.FieldError
		denied   *NotAllowedError
		conflict *ConflictError
		needs    *PreconditionError
		missing  *notFoundError
		beyond   *outOfRangeError
		frozen   *FrozenError
	)
	info := func(code codes.Code, reason string, meta map[string]string, more ...protoadapt.MessageV1) error {
		st := status.New(code, err.Error())
		details := append([]protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: errorDomain, Reason: reason, Metadata: meta}}, more...)
		if with, derr := st.WithDetails(details...); derr == nil {
			st = with
		}
		return st.Err()
	}
	retry := &errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)}
	var limit *limitError
	if errors.As(err, &limit) && limit.after > retryAfter {
		retry.RetryDelay = durationpb.New(limit.after)
	}
	switch {
	case errors.As(err, &field):
		return info(codes.InvalidArgument, "INVALID_ENTRY", map[string]string{"field": field.Field})
	case errors.As(err, &denied):
		return info(codes.PermissionDenied, "NOT_ALLOWED", map[string]string{"field": denied.Field})
	case errors.As(err, &needs):
		return info(codes.FailedPrecondition, "PRECONDITION", map[string]string{"field": needs.Field})
	case errors.As(err, &frozen):
		return info(codes.FailedPrecondition, "FROZEN", map[string]string{"successor_origin": frozen.Next, "successor_url": frozen.URL})
	case errors.As(err, &conflict):
		return info(codes.AlreadyExists, "DIGEST_CONFLICT", map[string]string{"first_index": strconv.FormatUint(conflict.FirstIndex, 10)})
	case errors.As(err, &missing):
		return info(codes.NotFound, "NOT_FOUND", nil)
	case errors.As(err, &beyond):
		return info(codes.OutOfRange, "OUT_OF_RANGE", map[string]string{"size": strconv.FormatUint(beyond.size, 10)})
	case errors.Is(err, errSlowReader):
		return info(codes.Aborted, "OVERLOADED", nil, retry)
	case errors.Is(err, errNoCredential):
		return info(codes.Unauthenticated, "UNAUTHENTICATED", nil)
	case errors.Is(err, errCannotCheck):
		return info(codes.Unavailable, "CANNOT_CHECK", nil, retry)
	case limit != nil && limit.reason == reasonQuota:
		return info(codes.ResourceExhausted, "QUOTA", nil, retry)
	case errors.Is(err, ErrOverloaded):
		return info(codes.ResourceExhausted, "OVERLOADED", nil, retry)
	case errors.Is(err, ErrNotPublished):
		return info(codes.Unavailable, "NOT_PUBLISHED", nil, retry)
	case errors.Is(err, ErrReadOnly):
		return info(codes.Unavailable, "READ_ONLY", nil, retry)
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the caller went away")
	case errors.Is(err, context.DeadlineExceeded):
		return info(codes.Unavailable, "NOT_PUBLISHED", nil, retry)
	}
	var full *fullError
	if errors.As(err, &full) { // the log said so once; a line for each would fill the disk
		return info(codes.Unavailable, "STORAGE", nil, retry)
	}
	s.log.cfg.Logger.Error("request failed", "err", err)
	err = ErrStorage // what failed is in the server's own log, not in the answer
	return info(codes.Unavailable, "STORAGE", nil, retry)
}

func streamError(err error) *pb.StreamError {
	st := status.Convert(err)
	out := &pb.StreamError{Code: int32(st.Code()), Message: st.Message()}
	for _, d := range st.Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok {
			out.Reason, out.Field = i.Reason, i.Metadata["field"]
			if n, err := strconv.ParseUint(i.Metadata["first_index"], 10, 64); err == nil {
				out.FirstIndex = &n
			}
		}
	}
	return out
}

// fromProto is the entry that a request asks for, not yet checked.
func fromProto(p *pb.Entry) *entry.Entry {
	e := &entry.Entry{
		Kind: entry.Kind(p.GetKind()), Claim: entry.Claim(p.GetClaim()),
		Registry: p.GetRegistry(), Ecosystem: p.GetEcosystem(), Project: p.GetProject(), Version: p.GetVersion(), File: p.GetFile(),
		SHA256: p.GetSha256(), SHA512: p.GetSha512(), Time: p.GetTime(), UploadTime: p.GetUploadTime(), MetadataSHA256: p.GetMetadataSha256(),
		Auth: p.GetAuth(), Uploader: p.GetUploader(), AttestationSHA256: p.GetAttestationSha256(), SourcesSHA256: p.GetSourcesSha256(),
		ID: p.GetId(), Reason: p.GetReason(), Tag: p.GetTag(), Subject: p.GetSubject(), Overwrite: p.GetOverwrite(),
	}
	if p != nil {
		e.Size, e.Replaces, e.Index, e.Count = p.Size, p.Replaces, p.Index, p.Count
	}
	if b := p.GetPublisher(); b != nil {
		e.Publisher = &entry.Publisher{
			Kind: b.Kind, Issuer: b.Issuer, Subject: b.Subject, Repository: b.Repository,
			RepositoryID: b.RepositoryId, OwnerID: b.OwnerId, Workflow: b.Workflow, Environment: b.Environment,
		}
	}
	return e
}
