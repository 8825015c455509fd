package main

import (
	"context"
	"os"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/tracing/delegated"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// patience is how long buildkitd may take for the last spans.
const patience = 5 * time.Second

// traced begins a span below the one that TRACEPARENT names (https://www.w3.org/TR/trace-context/#traceparent-header).
// Without it there are none. buildkitd gets the spans, and sends them on with its own.
func traced(ctx context.Context) (context.Context, func()) {
	parent := os.Getenv("TRACEPARENT")
	if parent == "" {
		return ctx, func() {}
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": parent})
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "kiln-build"))),
		sdktrace.WithBatcher(delegated.DefaultExporter),
	)
	ctx, span := provider.Tracer("").Start(ctx, "build")
	return ctx, func() {
		span.End()
		bounded, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = provider.Shutdown(bounded)
	}
}

// tracing has a client tell buildkitd of the span that it works for.
func tracing(ctx context.Context) []client.ClientOpt {
	span := trace.SpanFromContext(ctx)
	if !span.SpanContext().IsValid() {
		return nil
	}
	return []client.ClientOpt{
		client.WithTracerProvider(span.TracerProvider()),
		client.WithTracerDelegate(delegated.DefaultExporter),
	}
}
