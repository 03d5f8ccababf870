"""Requests as OpenTelemetry traces: to an exporter in memory, and over HTTP to a collector that counts."""

from __future__ import annotations

import http.server
import itertools
import socket
import sys
import threading
import time

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from redraft.server import launch
from redraft.server.engine.types import RedraftError
from redraft.server.observe import Observed
from redraft.server.settings import ServerSettings
from redraft.server.tracing import Tracing, to_endpoint

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODY = {"model": "toy", "prompt": "a secret", "temperature": 0.5}


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


def finished(exporter, count):
    """Spans in the order of their ends; the last of a request is its own, and is made after the answer."""
    done = threading.Event()
    for _ in range(500):
        if len(exporter.get_finished_spans()) >= count:
            break
        done.wait(0.01)
    spans = exporter.get_finished_spans()
    assert len(spans) == count
    return spans


def test_a_request_is_a_span_with_its_stages(serve, canned, exporter):
    server = serve(canned.engine("Hello, wörld! 日本語"), traces=Tracing(SimpleSpanProcessor(exporter), "toy"))
    headers = {"traceparent": PARENT, "X-Request-Id": "mine"}
    reply = server.http.post("/v1/completions", json=BODY, headers=headers).json()
    *stages, span = finished(exporter, 4)
    assert (span.name, span.kind, span.status.status_code) == (
        "text_completion toy",
        SpanKind.SERVER,
        StatusCode.UNSET,
    )
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "redraft",
        "gen_ai.request.model": "toy",
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.response.id": reply["id"],
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 8,
        "gen_ai.usage.output_tokens": 22,
        "http.request.method": "POST",
        "url.path": "/v1/completions",
        "http.response.status_code": 200,
        "redraft.request_id": "mine",
        "redraft.draft": "canned-1",
        "redraft.rounds": 10,
        "redraft.draft_tokens": 40,
        "redraft.accepted_tokens": 12,
        "redraft.acceptance_length": 2.2,
    }
    assert [stage.name for stage in stages] == ["queue", "prefill", "decode"]
    assert all(stage.parent.span_id == span.context.span_id for stage in stages)
    times = [span.start_time, *(stage.start_time for stage in stages), stages[-1].end_time, span.end_time]
    # the stages are measured by another clock than the span
    assert all(later >= earlier - 10_000_000 for earlier, later in itertools.pairwise(times))
    assert span.resource.attributes["service.name"] == "redraft"


def test_failures_are_marked_and_what_was_refused_has_no_stages(serve, canned, exporter):
    server = serve(canned.engine(), traces=Tracing(SimpleSpanProcessor(exporter), "toy"))
    assert server.http.post("/v1/chat/completions", json={"model": "toy"}).status_code == 400
    (span,) = finished(exporter, 1)
    assert (span.name, span.status.status_code) == ("chat toy", StatusCode.UNSET)
    server.service.engine.script = lambda request: [canned.failure("boom")]
    server.http.post("/v1/completions", json=BODY)
    span = finished(exporter, 2)[-1]
    assert (span.status.status_code, span.attributes["http.response.status_code"]) == (StatusCode.ERROR, 500)
    server.http.get("/health")
    assert len(exporter.get_finished_spans()) == 2
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_spans_reach_a_collector(serve, canned, path):
    received = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{collector.server_port}{path}"
            tracing = launch.open_tracing(ServerSettings("toy", otlp_endpoint=endpoint))
            server = serve(canned.engine("abc"), traces=tracing)
            server.http.post("/v1/completions", json={**BODY, "stream": True})
            for _ in range(3):
                # the span is made after the last byte of the answer, on the same loop
                server.http.get("/health")
            tracing.close()
        finally:
            collector.shutdown()
            thread.join()
    ((where, spans),) = received
    assert where == "/v1/traces"
    assert b"text_completion toy" in spans
    assert b"secret" not in spans


def test_nobody_waits_long_for_a_collector_that_is_not_there(monkeypatch):
    monkeypatch.setattr("redraft.server.tracing.EXPORT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    tracing = launch.open_tracing(ServerSettings("toy", otlp_endpoint=f"http://127.0.0.1:{port}"))
    tracing.request(Observed("mine", "POST", "/v1/completions", status=200))
    begun = time.monotonic()
    tracing.close()
    assert time.monotonic() - begun < 2


def test_no_endpoint_no_traces():
    assert launch.open_tracing(ServerSettings("toy")) is None


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://x", "http://", ""])
def test_an_endpoint_that_is_none_is_refused(endpoint):
    with pytest.raises(RedraftError, match="--otlp-endpoint"):
        to_endpoint(endpoint)


def test_absent_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "redraft.server.tracing", None)
    with pytest.raises(RedraftError, match=r"pip install 'redraft\[otel\]'"):
        launch.open_tracing(ServerSettings("toy", otlp_endpoint="http://localhost:4318"))
