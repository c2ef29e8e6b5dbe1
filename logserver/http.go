package logserver

// What the log serves over HTTP: the static files (static.go), the REST face of
// the API with RFC 9457 problems, its OpenAPI file, and health.
//
// A public log's reads carry Access-Control-Allow-Origin: *, so that a web page
// can verify a file by itself. Nothing else is open to other origins: no
// preflight is answered, so no page can submit, or present a token of its
// visitor's. A private log's reads are open to no other origin.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	_ "embed"
)

// Handler serves everything the log says over HTTP. REST calls go to rest, the
// log's own gRPC service.
func (l *Log) Handler(rest pb.LogClient) (http.Handler, error) {
	gw := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &jsonLines{&runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}, // index 0 is an index,
			UnmarshalOptions: protojson.UnmarshalOptions{},
		}}),
		runtime.WithErrorHandler(problemHandler),
		runtime.WithStreamErrorHandler(noteStreamError),
		runtime.WithRoutingErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
			writeProblem(w, problem{Status: code, Title: http.StatusText(code), Detail: "no such call: see /v1/openapi.json"})
		}),
		// The gateway hands on Authorization by itself; nothing else is wanted.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithMetadata(l.rest.annotate),
		// A form is not a call, and a header is not a method.
		runtime.WithDisablePathLengthFallback(),
	)
	if err := pb.RegisterLogHandlerClient(context.Background(), gw, rest); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/checkpoint", l.reading(l.serveCheckpoint))
	mux.HandleFunc("/tile/", l.reading(l.serveTile))
	mux.HandleFunc("/healthz", getOnly(func(w http.ResponseWriter, _ *http.Request) {
		plain200(w, "ok\n")
	}))
	mux.HandleFunc("/readyz", getOnly(func(w http.ResponseWriter, _ *http.Request) {
		if err := l.Ready(); err != nil {
			detail := err.Error()
			if l.cfg.Private {
				detail = "this log is private: the reason is in the server's log"
				l.cfg.Logger.Warn("not ready", "err", err)
			}
			writeProblem(w, problem{Status: http.StatusServiceUnavailable, Title: "not ready", Detail: detail, Reason: "READ_ONLY"})
			return
		}
		plain200(w, "ready\n")
	}))
	mux.HandleFunc("/v1/openapi.json", getOnly(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		serveContent(w, r, "application/json", cacheAsk, bytesContent(pb.OpenAPI, strongTag(pb.OpenAPI)))
	}))
	mux.Handle("/v1/", l.restHandler(gw))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, problem{Status: http.StatusNotFound, Title: "not found", Detail: "a Portbook log serves /checkpoint, /tile/ and /v1/"})
	})
	return mux, nil
}

// getOnly refuses other methods.
func getOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			methodNotAllowed(w, http.MethodGet, http.MethodHead)
			return
		}
		next(w, r)
	}
}

// reading is getOnly for a static file, and for those who may read it.
func (l *Log) reading(next http.HandlerFunc) http.HandlerFunc {
	return getOnly(func(w http.ResponseWriter, r *http.Request) {
		if !l.cfg.Private {
			w.Header().Set("Access-Control-Allow-Origin", "*")
		} else if _, err := l.mayRead(r.Context(), presentedBy(r)); err != nil {
			problemHandler(r.Context(), nil, nil, w, r, (&service{log: l}).fail(err))
			return
		}
		next(w, r)
	})
}

func methodNotAllowed(w http.ResponseWriter, allowed ...string) {
	allow := strings.Join(allowed, ", ")
	w.Header().Set("Allow", allow)
	writeProblem(w, problem{Status: http.StatusMethodNotAllowed, Title: "method not allowed", Detail: "this address takes " + allow})
}

// restMethods are the methods of each REST call. A HEAD of a stream has no
// length to tell, and is not there.
var restMethods = map[string][]string{
	"/v1/entries":        {http.MethodGet, http.MethodHead, http.MethodPost},
	"/v1/entries:stream": {http.MethodGet, http.MethodPost},
	"/v1/proof":          {http.MethodGet, http.MethodHead},
	"/v1/proofs":         {http.MethodPost}, // reads, by many queries at once
}

// restHandler sorts REST calls by method, and reads from submissions.
func (l *Log) restHandler(gw http.Handler) http.Handler {
	submissions := l.restBodies(gw)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		methods, ok := restMethods[r.URL.Path]
		if !ok {
			writeProblem(w, problem{Status: http.StatusNotFound, Title: "not found", Detail: "no such call: see /v1/openapi.json"})
			return
		}
		if !slices.Contains(methods, r.Method) {
			methodNotAllowed(w, methods...)
			return
		}
		if strings.HasSuffix(r.URL.Path, ":stream") {
			var failed error
			r = r.WithContext(context.WithValue(r.Context(), streamFailure{}, &failed))
			w = &streamWriter{ResponseWriter: w, failed: &failed, limit: r.Method == http.MethodGet}
		}
		if r.Method == http.MethodPost && r.URL.Path != "/v1/proofs" {
			submissions.ServeHTTP(w, r)
			return
		}
		if h := w.Header(); l.cfg.Private {
			h.Set("Cache-Control", "private, no-store")
		} else {
			h.Set("Access-Control-Allow-Origin", "*")
			h.Set("Cache-Control", cacheAsk)
		}
		r, leave := l.rest.enter(r, restCall{presented: presentedBy(r)})
		defer leave()
		switch r.Method {
		case http.MethodPost:
			l.restBody(gw, w, r)
		case http.MethodHead:
			r = r.Clone(r.Context())
			r.Method, r.Body = http.MethodGet, http.NoBody
			head := &headWriter{ResponseWriter: w, status: http.StatusOK}
			gw.ServeHTTP(head, r)
			head.finish()
		default:
			r.Body = http.NoBody
			gw.ServeHTTP(w, r)
		}
	})
}

// headWriter counts what it does not send.
type headWriter struct {
	http.ResponseWriter
	status, length int
}

// WriteHeader implements http.ResponseWriter.
func (w *headWriter) WriteHeader(code int) { w.status = code }

// Write implements http.ResponseWriter.
func (w *headWriter) Write(b []byte) (int, error) {
	w.length += len(b)
	return len(b), nil
}

func (w *headWriter) finish() {
	w.Header().Set("Content-Length", strconv.Itoa(w.length))
	w.ResponseWriter.WriteHeader(w.status)
}

// jsonLines gives a stream of JSON objects, one a line, its type.
type jsonLines struct{ *runtime.JSONPb }

// StreamContentType implements runtime.StreamContentType.
func (*jsonLines) StreamContentType(any) string { return "application/x-ndjson" }

// streamFailure is the context key under which the gateway's stream error
// handler leaves the error for streamWriter.
type streamFailure struct{}

func noteStreamError(ctx context.Context, err error) *status.Status {
	if at, ok := ctx.Value(streamFailure{}).(*error); ok {
		*at = err
	}
	return status.Convert(err)
}

// slowest is how long a reader may take for one chunk of a stream.
const slowest = 30 * time.Second

// streamWriter makes a stream that fails before it begins a problem like every
// other, and lets one that is read go on as long as it is read.
type streamWriter struct {
	http.ResponseWriter
	failed  *error
	limit   bool // reads: no limit on the whole, one on each chunk
	refused bool
}

// Unwrap is for http.ResponseController.
func (w *streamWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *streamWriter) WriteHeader(code int) {
	if code >= 400 && *w.failed != nil {
		w.refused = true
		w.Header().Del("Transfer-Encoding")
		problemHandler(context.Background(), nil, nil, w.ResponseWriter, nil, *w.failed)
		return
	}
	w.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (w *streamWriter) Write(b []byte) (int, error) {
	if w.refused {
		return len(b), nil
	}
	if w.limit {
		if err := http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now().Add(slowest)); err != nil {
			return 0, err
		}
	}
	return w.ResponseWriter.Write(b)
}

// restBodies admits the body of a REST call: from callers with a credential
// only, and bounded.
func (l *Log) restBodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown := presentedBy(r)
		by, err := l.Tokens.authenticate(r.Context(), shown)
		if err != nil {
			l.refused(shown.peer, "", err)
			problemHandler(r.Context(), nil, nil, w, r, (&service{log: l}).fail(err))
			return
		}
		r, leave := l.rest.enter(r, restCall{shown, &by})
		defer leave()
		if strings.HasSuffix(r.URL.Path, ":stream") {
			r.Body = http.MaxBytesReader(w, r.Body, maxStream)
			next.ServeHTTP(w, r)
			return
		}
		l.restBody(next, w, r)
	})
}

// restBody reads the bounded body of a call.
func (l *Log) restBody(next http.Handler, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCall))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		writeProblem(w, problem{Status: http.StatusRequestEntityTooLarge, Title: "body too large", Reason: "INVALID_REQUEST", Field: "body",
			Detail: fmt.Sprintf("a request has at most %d bytes, and an entry at most %d", maxCall, entry.MaxSize)})
		return
	case err != nil:
		writeProblem(w, problem{Status: http.StatusBadRequest, Title: "body unreadable", Reason: "INVALID_REQUEST", Field: "body", Detail: "the body did not arrive whole"})
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	next.ServeHTTP(w, r)
}

func plain200(w http.ResponseWriter, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Write([]byte(s))
}

// problem is an RFC 9457 problem.
type problem struct {
	Status     int           `json:"status"`
	Title      string        `json:"title"`
	Detail     string        `json:"detail"`
	Reason     string        `json:"reason,omitempty"` // of the API's ErrorInfo
	Field      string        `json:"field,omitempty"`
	FirstIndex string        `json:"first_index,omitempty"`
	RetryAfter time.Duration `json:"-"`
}

func writeProblem(w http.ResponseWriter, p problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Del("Content-Length")
	w.Header().Del("ETag")
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(p.RetryAfter.Seconds())))
	}
	w.WriteHeader(p.Status)
	json.NewEncoder(w).Encode(p)
}

// jsonField finds the field that protojson complains of.
var jsonField = regexp.MustCompile(`(?:field|parameter:) "?([A-Za-z0-9_]+)`)

// problemHandler turns a gRPC status into a problem.
func problemHandler(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	st := status.Convert(err)
	p := problem{Status: runtime.HTTPStatusFromCode(st.Code()), Title: st.Code().String(), Detail: st.Message()}
	if st.Code() == codes.InvalidArgument { // what the gateway could not decode; else ErrorInfo says more
		p.Reason, p.Field = "INVALID_REQUEST", "body"
		if m := jsonField.FindStringSubmatch(p.Detail); m != nil {
			p.Field = m[1]
		}
	}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			p.Reason, p.Field, p.FirstIndex = d.Reason, d.Metadata["field"], d.Metadata["first_index"]
		case *errdetails.RetryInfo:
			p.RetryAfter = d.RetryDelay.AsDuration()
		}
	}
	if st.Code() == codes.Unauthenticated {
		w.Header().Set("WWW-Authenticate", `Bearer realm="portbook log"`)
	}
	writeProblem(w, p)
}
