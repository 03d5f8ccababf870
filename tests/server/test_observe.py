"""Requests as the operator sees them: ids, lines of the log, counts by status."""

from __future__ import annotations

import io
import json
import re
import sys
import time

import pytest
import structlog

from redraft.server.engine.config import EngineConfig
from redraft.server.engine.types import FinishReason
from redraft.server.launch import server_settings
from redraft.server.log_setup import log_to_stderr
from redraft.server.observe import request_id


def answers(server, path, status):
    labels = {"model_name": "toy", "path": path, "status": status}
    return server.service.metrics.registry.get_sample_value("redraft_http_responses_total", labels)


BODY = {"model": "toy", "prompt": "a secret"}


@pytest.fixture
def lines():
    """Lines about requests, as they come; an answer reaches its client before its line is written."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as captured:

        class Lines:
            def next(self, count=1):
                deadline = time.monotonic() + 5
                while len(found := [line for line in captured if line["event"] == "request"]) < count:
                    assert time.monotonic() < deadline, captured
                    time.sleep(0.005)
                del captured[:]
                return found[-1] if count == 1 else found

        yield Lines()


def test_a_line_for_each_request(serve, canned, lines):
    # 22 tokens in 10 rounds
    server = serve(canned.engine("Hello, wörld! 日本語"))
    reply = server.http.post("/v1/completions", json={**BODY, "n": 2}, headers={"X-Request-Id": "mine-1"})
    line = lines.next()
    durations = {name: line.pop(name) for name in tuple(line) if name.endswith("_ms")}
    assert line == {
        "event": "request",
        "log_level": "info",
        "request_id": "mine-1",
        "path": "/v1/completions",
        "status": 200,
        "reply_id": reply.json()["id"],
        "model": "toy",
        "draft": "canned-1",
        "stream": False,
        "choices": 2,
        "prompt_tokens": 8,
        "tokens": 44,
        "rounds": 20,
        "drafted": 80,
        "accepted": 24,
        "acceptance_length": 2.2,
        "finish": "stop",
    }
    assert durations.keys() == {"duration_ms", "queue_ms", "first_token_ms", "decode_ms"}
    assert durations["queue_ms"] <= durations["first_token_ms"] <= durations["duration_ms"]
    assert durations["duration_ms"] > 0


def test_what_is_refused_and_what_fails_has_a_line_too(serve, canned, lines):
    server = serve(canned.engine("abc"), api_keys=("key",))
    assert server.http.post("/v1/completions", json=BODY).status_code == 401
    assert (lines.next()["status"]) == 401
    server.http.headers["Authorization"] = "Bearer key"
    assert server.http.post("/v1/completions", json={**BODY, "n": 0}).status_code == 400
    line = lines.next()
    assert (line["status"], "finish" in line, "tokens" in line) == (400, False, False)
    server.service.engine.script = lambda request: [canned.failure("boom")]
    assert server.http.post("/v1/completions", json=BODY).status_code == 500
    line = lines.next()
    assert (line["status"], line["finish"], line["tokens"]) == (500, "error", 0)
    assert "acceptance_length" not in line
    assert answers(server, "/v1/completions", "400") == 1
    assert answers(server, "/v1/completions", "500") == 1
    # what a wrong key asked for is nobody's business
    assert answers(server, "other", "401") == 1


def test_a_client_that_leaves_is_logged_as_such(serve, canned, lines):
    server = serve(canned.scripted(lambda request: [*canned.rounds("abc", finish=FinishReason.LENGTH)[:1], None]))
    with server.http.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as stream:
        next(stream.iter_bytes())
    line = lines.next()
    assert (line["status"], line["finish"], line["rounds"], line["stream"]) == (200, "cancelled", 1, True)


def test_only_requests_for_something_have_lines(serve, canned, lines):
    server = serve(canned.engine())
    for path in ("/health", "/metrics", "/v1/models", "/nothing"):
        assert server.http.get(path).headers["x-request-id"]
    server.http.post("/v1/completions", json=BODY)
    assert lines.next()["path"] == "/v1/completions"
    assert answers(server, "other", "404") == 1
    assert answers(server, "/health", "200") == 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_prompts_are_logged_only_where_asked(serve, canned, lines, path):
    body = {"model": "toy", "prompt": "a secret\n\x1b[31m"}
    if "chat" in path:
        body = {"model": "toy", "messages": [{"role": "user", "content": "a secret\n\x1b[31m"}]}
    serve(canned.engine("abc")).http.post(path, json=body)
    assert "secret" not in str(lines.next())
    serve(canned.engine("abc"), log_prompts=True).http.post(path, json=body)
    prompt = lines.next()["prompt"]
    assert r"a secret\n\u001b[31m" in prompt
    assert prompt.isprintable()
    serve(canned.engine("abc"), log_prompts=True).http.post("/v1/completions", json={**BODY, "prompt": "x" * 490})
    assert len(lines.next()["prompt"]) < 600


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("abc-1.2_3:x/y@z=", "abc-1.2_3:x/y@z="),
        ("x" * 500, "x" * 128),
        ("a b\tc", "abc"),
        ('a"}{<script>', "ascript"),
    ],
    ids=["plain", "long", "blanks", "markup"],
)
def test_ids_go_in_and_out(serve, canned, lines, given, taken):
    server = serve(canned.engine("abc"))
    reply = server.http.post("/v1/completions", json=BODY, headers={"X-Request-Id": given})
    assert reply.headers["x-request-id"] == taken
    assert lines.next()["request_id"] == taken


def test_an_id_that_is_none_is_replaced():
    for headers in ([], [(b"x-request-id", b"")], [(b"x-request-id", b"\xff\xfe  ")]):
        assert re.fullmatch("[0-9a-f]{32}", request_id(headers))
    assert request_id([(b"x-request-id", b"a"), (b"x-request-id", b"b")]) == "a"


def test_what_nobody_caught_has_an_id_and_a_line(serve, canned, lines):
    server = serve(canned.scripted(lambda request: 1 // 0))
    reply = server.http.post("/v1/completions", json=BODY, headers={"X-Request-Id": "mine"})
    assert (reply.status_code, reply.headers["x-request-id"]) == (500, "mine")
    line = lines.next()
    assert (line["status"], line["request_id"], line["finish"]) == (500, "mine", "error")


@pytest.mark.parametrize(("form", "is_json"), [("json", True), ("text", False), (None, True)])
def test_forms_of_the_log(monkeypatch, form, is_json):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    before = structlog.get_config()
    try:
        log_to_stderr(form)
        structlog.get_logger().info("request", tokens=3)
    finally:
        structlog.configure(**before)
    line = stderr.getvalue()
    if is_json:
        assert json.loads(line)["tokens"] == 3
    else:
        assert re.search(r"request +tokens=3\n$", line)
        assert "\x1b" not in line


def test_options_reach_the_settings():
    options = {
        "metrics_names": "vllm",
        "price_per_hour": 2.5,
        "log_format": "text",
        "log_prompts": True,
        "otlp_endpoint": "http://localhost:4318",
    }
    http = {"api_key": None, "api_key_file": None, "guard": "none", "cors_origin": None}
    settings = server_settings({**options, **http, "target": "no field of it"})
    assert {name: getattr(settings, name) for name in options} == options
    assert EngineConfig.__dataclass_fields__.keys().isdisjoint(options)
