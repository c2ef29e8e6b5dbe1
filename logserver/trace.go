package logserver

// OpenTelemetry spans. A submission's trace goes from its index through the
// queue to its acknowledgement; a round of publishing, which covers many
// submissions, is a trace of its own that goes on to the witnesses. The
// submission's span links to the round that published it.

import (
	"context"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// tracer gives no-op spans until the program sets a provider.
var tracer = otel.Tracer("github.com/portbook/portbook/logserver")

// endSpan ends a span with its outcome.
func endSpan(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// noteSequenced says in the span in ctx, if it is recorded, that a submission
// has its index.
func noteSequenced(ctx context.Context, index uint64) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.AddEvent("sequenced", trace.WithAttributes(attribute.Int64("portbook.index", int64(index))))
	}
}

// linkPublished links the span in ctx, if it is recorded, to the round that
// published p.
func linkPublished(ctx context.Context, p Published) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() && p.span.IsValid() {
		span.AddLink(trace.Link{SpanContext: p.span})
	}
}
