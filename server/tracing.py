"""Requests as OpenTelemetry traces, sent by OTLP over HTTP.  Needs ``redraft[otel]``; imported only when asked for.

A request is one span with OpenTelemetry's attributes for generative AI, the child of the span that its client sent in
``traceparent``, and has for each choice the spans queue, prefill and decode.  Spans are made once the request has
ended, from the times that were taken anyway.  No prompt and no text is in them.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from redraft.server.engine.types import RedraftError
from redraft.server.observe import Asked, Observed

SERVER_ERROR = 500
EXPORT_SECONDS = 3.0
"""For a batch, tries again included; a server that ends waits no longer for a collector that is not there."""


def to_endpoint(endpoint: str) -> SpanProcessor:
    """Batches to an OTLP collector, such as ``http://localhost:4318``; a bare address gets the path ``/v1/traces``."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RedraftError(f"--otlp-endpoint {endpoint} is not an address such as http://localhost:4318")
    whole = endpoint if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1/traces"
    asked = {"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"} & os.environ.keys()
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=whole, timeout=None if asked else EXPORT_SECONDS))


class Tracing:
    """Makes spans of requests."""

    def __init__(self, processor: SpanProcessor, model_name: str) -> None:
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "redraft"}
        # its own, so that what else the process may trace stays apart
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("redraft")
        self._model_name = model_name

    def request(self, observed: Observed) -> None:
        """Spans of ``observed``, which has just ended."""
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in observed.headers
            if name in (b"traceparent", b"tracestate")
        }
        operation = "chat" if "chat" in observed.path else "text_completion"
        span = self._tracer.start_span(
            f"{operation} {self._model_name}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=trace.SpanKind.SERVER,
            start_time=observed.started_ns,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "redraft",
                "gen_ai.request.model": self._model_name,
                "http.request.method": observed.method,
                "url.path": observed.path,
                "http.response.status_code": observed.status or 0,
                "redraft.request_id": observed.request_id,
            },
        )
        if observed.status is not None and observed.status >= SERVER_ERROR:
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        if observed.asked is not None:
            span.set_attributes(_attributes(observed.asked))
            self._choices(observed, observed.asked, trace.set_span_in_context(span))
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _choices(self, observed: Observed, asked: Asked, parent: Context) -> None:
        for index, record in enumerate(asked.records):
            times = record.times
            if times is None:
                continue
            start = observed.started_ns + round((record.submitted - observed.begun) * 1e9)
            for name, seconds in (("queue", times.queue), ("prefill", times.prefill), ("decode", times.decode)):
                end = start + round(seconds * 1e9)
                span = self._tracer.start_span(
                    name, context=parent, start_time=start, attributes={"redraft.choice": index}
                )
                span.end(end)
                start = end


def _attributes(asked: Asked) -> dict[str, AttributeValue]:
    counts = asked.counts
    attributes: dict[str, AttributeValue] = {
        "gen_ai.response.id": asked.reply_id,
        "gen_ai.request.choice.count": len(asked.records),
        "gen_ai.request.temperature": asked.body.temperature,
        "gen_ai.request.top_p": asked.body.top_p,
        "gen_ai.usage.input_tokens": asked.prompt_tokens,
        "gen_ai.usage.output_tokens": asked.tokens,
        "gen_ai.response.finish_reasons": asked.finish.split(","),
        "redraft.draft": asked.draft,
        "redraft.rounds": counts.rounds,
        "redraft.draft_tokens": counts.drafted,
        "redraft.accepted_tokens": counts.accepted,
    }
    if counts.rounds:
        attributes["redraft.acceptance_length"] = counts.committed / counts.rounds
    return attributes
