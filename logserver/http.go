package logserver

// What the log serves over HTTP: the c2sp.org/tlog-tiles files with the right
// cache headers, the REST face of the API with RFC 9457 problems, its OpenAPI
// file, and health.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/portbook/portbook/c2sp"
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
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}, // index 0 is an index,
			UnmarshalOptions: protojson.UnmarshalOptions{},
		}),
		runtime.WithErrorHandler(problemHandler),
		runtime.WithRoutingErrorHandler(func(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, code int) {
			writeProblem(w, problem{Status: code, Title: http.StatusText(code), Detail: "no such call: see /v1/openapi.json"})
		}),
		// The gateway hands on Authorization by itself; nothing else is wanted.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithMetadata(l.rest.annotate),
	)
	if err := pb.RegisterLogHandlerClient(context.Background(), gw, rest); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /checkpoint", l.serveCheckpoint)
	mux.HandleFunc("GET /tile/", l.serveTile)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		plain200(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := l.Ready(); err != nil {
			writeProblem(w, problem{Status: http.StatusServiceUnavailable, Title: "not ready", Detail: err.Error(), Reason: "READ_ONLY"})
			return
		}
		plain200(w, "ready\n")
	})
	mux.HandleFunc("GET /v1/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(pb.OpenAPI)
	})
	mux.Handle("/v1/", l.restBodies(gw))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, problem{Status: http.StatusNotFound, Title: "not found", Detail: "a Portbook log serves /checkpoint, /tile/ and /v1/"})
	})
	return mux, nil
}

// restBodies admits the body of a REST call: from callers with a credential
// only, and bounded.
func (l *Log) restBodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			r.Body = http.NoBody
			r, leave := l.rest.enter(r, restCall{presented: presentedBy(r)})
			defer leave()
			next.ServeHTTP(w, r)
			return
		}
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
	})
}

func plain200(w http.ResponseWriter, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Write([]byte(s))
}

func (l *Log) serveCheckpoint(w http.ResponseWriter, r *http.Request) {
	p := l.Published()
	if p.Note == nil {
		writeProblem(w, problem{Status: http.StatusNotFound, Title: "no checkpoint", Detail: "the log has not published a checkpoint yet"})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.Write(p.Note)
}

// serveTile serves a tile or entry bundle that some published size has. What is
// integrated but not published is not served: after a crash it might be written
// anew, and these answers are cached for ever.
func (l *Log) serveTile(w http.ResponseWriter, r *http.Request) {
	t, err := c2sp.ParseTilePath(strings.TrimPrefix(r.URL.Path, "/"))
	if err != nil || r.URL.RawQuery != "" {
		writeProblem(w, problem{Status: http.StatusNotFound, Title: "not a tile path", Detail: "want /tile/<L>/<N>[.p/<W>] or /tile/entries/<N>[.p/<W>] (c2sp.org/tlog-tiles)"})
		return
	}
	if !covers(l.Published().Size, t) {
		writeProblem(w, problem{Status: http.StatusNotFound, Title: "no such tile", Detail: "no published checkpoint needs it"})
		return
	}
	raw, err := readTile(r.Context(), l.src, t)
	if err == nil {
		raw, err = cutTile(raw, t)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		writeProblem(w, problem{Status: http.StatusNotFound, Title: "no such tile", Detail: "it is missing from storage"})
		return
	case err != nil:
		l.cfg.Logger.Error("tile cannot be read", "path", t.Path(), "err", err)
		writeProblem(w, problem{Status: http.StatusServiceUnavailable, Title: "storage failed", Detail: "the tile cannot be read now", RetryAfter: retryAfter})
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.Write(raw)
}

// covers reports whether a tree of the given size has tile t, at its width.
func covers(size uint64, t c2sp.Tile) bool {
	level := max(t.Level, 0)
	if level*tileHeight >= 64 {
		return false
	}
	have := size >> (level * tileHeight)
	return t.Index <= have/tileWidth && t.Index*tileWidth+uint64(t.Width) <= have
}

// cutTile cuts what storage has, which may be wider, to the width of t.
func cutTile(raw []byte, t c2sp.Tile) ([]byte, error) {
	if t.Level < 0 {
		return truncateBundle(raw, t.Width)
	}
	if len(raw) < t.Width*32 {
		return nil, errUnreadable
	}
	return raw[:t.Width*32], nil
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
