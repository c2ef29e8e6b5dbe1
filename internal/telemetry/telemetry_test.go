package telemetry_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/telemetry"
	"go.opentelemetry.io/otel"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// span is one span with the service that sent it.
type span struct {
	service string
	*tracepb.Span
}

// collector is an OTLP collector that keeps what it gets.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []span // guarded by mu
}

func (c *collector) Export(_ context.Context, req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.ResourceSpans {
		service := ""
		for _, a := range r.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, s := range r.ScopeSpans {
			for _, one := range s.Spans {
				c.spans = append(c.spans, span{service, one})
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

// find returns a span of the service that fits.
func (c *collector) find(service string, fits func(span) bool) *span {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if s.service == service && fits(s) {
			return &s
		}
	}
	return nil
}

// TestTraceFromIndexToWitness runs a log and a witness as programs and follows
// one submission through the spans that all three sides export: index → log,
// linked to the round that published it → witness.
func TestTraceFromIndexToWitness(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it is about other processes, which the race detector does not see")
	}
	dir := t.TempDir()
	for _, name := range []string{"portbook-log", "portbook-witness"} {
		run(t, "go", "build", "-o", filepath.Join(dir, name), "github.com/portbook/portbook/cmd/"+name)
	}
	c := &collector{}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(srv, c)
	go srv.Serve(lis)
	t.Cleanup(srv.Stop)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+lis.Addr().String())
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50") // milliseconds

	var made struct{ VKey string }
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := json.Unmarshal(run(t, at("portbook-log"), "init", "--origin", "log.example/trace", "--dir", at("log"), "--anchor", at("anchor"), "--json"), &made); err != nil {
		t.Fatal(err)
	}
	run(t, at("portbook-witness"), "init", "--name", "witness.example/w", "--dir", at("witness"))
	run(t, at("portbook-witness"), "add-log", "--dir", at("witness"), "--yes", made.VKey)
	witnessKey := ""
	for word := range strings.FieldsSeq(string(run(t, at("portbook-witness"), "show", "--dir", at("witness")))) {
		if strings.HasPrefix(word, "witness.example/w+") {
			witnessKey = word
		}
	}
	witness, http1, grpc1 := free(t), free(t), free(t)
	start(t, at("portbook-witness"), "serve", "--dir", at("witness"), "--mark-beside", "--listen", witness)
	if err := os.WriteFile(at("policy"), fmt.Appendf(nil, "witness w %s http://%s\nquorum w\n", witnessKey, witness), 0o600); err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(run(t, at("portbook-log"), "token", "create", "--dir", at("log"), "--registry", "index.example")))
	start(t, at("portbook-log"), "serve", "--dir", at("log"), "--policy", at("policy"), "--http", http1, "--grpc", grpc1, "--anchor-beside")
	await(t, "http://"+http1+"/readyz")

	stop, err := telemetry.Setup(t.Context(), "index", slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, root := otel.Tracer("test").Start(t.Context(), "upload")
	client, err := submit.Dial("http://"+grpc1, token)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Submit(ctx, &entry.Entry{
		Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "secret-project", Version: "1.0", File: "secret_project-1.0.tar.gz",
		Size: entry.Uint(3), SHA256: strings.Repeat("ab", 32), Time: "2026-11-21T05:00:00Z",
	})
	root.End()
	if err != nil {
		t.Fatal(err)
	}
	stop()

	trace := root.SpanContext().TraceID()
	var server, publish, cosign *span
	eventually(t, "the log's span of the submission, in the index's trace", func() bool {
		server = c.find("portbook-log", func(s span) bool {
			return s.Kind == tracepb.Span_SPAN_KIND_SERVER && hex.EncodeToString(s.TraceId) == trace.String()
		})
		return server != nil
	})
	if len(server.Links) != 1 {
		t.Fatalf("the submission's span has %d links, want one to the round that published it", len(server.Links))
	}
	if !strings.Contains(server.String(), "sequenced") {
		t.Error("the span does not say when the entry was sequenced")
	}
	eventually(t, "the round that it links to", func() bool {
		publish = c.find("portbook-log", func(s span) bool { return string(s.SpanId) == string(server.Links[0].SpanId) })
		return publish != nil
	})
	eventually(t, "the round's request to the witness", func() bool {
		cosign = c.find("portbook-log", func(s span) bool { return s.Name == "cosign" && string(s.ParentSpanId) == string(publish.SpanId) })
		return cosign != nil
	})
	eventually(t, "the witness's span of that request", func() bool {
		return c.find("portbook-witness", func(s span) bool { return string(s.ParentSpanId) == string(cosign.SpanId) }) != nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans {
		if text := s.String(); strings.Contains(text, "secret") || strings.Contains(text, token) {
			t.Errorf("a span of %s names a project or a credential: %s", s.service, text)
		}
	}
}

// TestOffByDefault: without a collector in the environment nothing is set up.
func TestOffByDefault(t *testing.T) {
	before := otel.GetTracerProvider()
	for _, env := range []map[string]string{
		{},
		{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
		{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
	} {
		t.Run(fmt.Sprint(env), func(t *testing.T) {
			for k, v := range env {
				t.Setenv(k, v)
			}
			stop, err := telemetry.Setup(t.Context(), "x", slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			stop()
			if otel.GetTracerProvider() != before {
				t.Error("a provider was set")
			}
		})
	}
}

func TestOnlyGRPC(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	if _, err := telemetry.Setup(t.Context(), "x", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "only grpc") {
		t.Errorf("%v, want a refusal", err)
	}
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", filepath.Base(name), args, err, out)
	}
	return out
}

// start runs a server until the test ends.
func start(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", filepath.Base(name), err)
		}
	})
}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func await(t *testing.T, url string) {
	t.Helper()
	eventually(t, url, func() bool {
		res, err := http.Get(url)
		if err != nil {
			return false
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}
