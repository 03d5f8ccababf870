"""A client that leaves frees its requests at once: streaming or not, in the queue or running, one choice or several."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import pytest


def send(server, body) -> socket.socket:
    """A request whose reply the test may abandon."""
    where = urlsplit(server.url)
    content = json.dumps({"model": "toy", "prompt": "hi", "max_tokens": 100, **body}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    connection = socket.create_connection((where.hostname, where.port), timeout=10)
    connection.sendall(head.encode() + b"\r\n\r\n" + content)
    return connection


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
@pytest.mark.parametrize("queued", [True, False], ids=["in-queue", "mid-reply"])
def test_leaving_cancels(serve, canned, stream, queued):
    before = [] if queued else canned.rounds("some text", sizes=(2,))[:3]
    engine = canned.scripted(lambda request: [*before, None])
    server = serve(engine)
    connection = send(server, {"stream": stream})
    assert engine.waiting.wait(5)
    assert not engine.freed.is_set()
    connection.close()
    assert engine.freed.wait(1)
    metrics = server.http.get("/metrics").text
    assert 'redraft_requests_total{draft="canned-1",finish_reason="cancelled",model_name="toy"} 1.0' in metrics


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
def test_leaving_cancels_every_choice(serve, canned, stream):
    engine = canned.scripted(lambda request: [*canned.rounds("ab", sizes=(1,))[:1], None])
    server = serve(engine)
    with send(server, {"stream": stream, "n": 3, "prompt": ["a", "b"]}):
        assert engine.waiting.wait(5)
    assert engine.freed.wait(1)
    # a good request runs through the same loop, so whatever was to be cancelled has been
    engine.script = lambda request: canned.rounds("ok")
    assert server.http.post("/v1/completions", json={"model": "toy", "prompt": "hi"}).status_code == 200
    assert sorted(engine.cancelled) == sorted(request.request_id for request in engine.requests[:6])


def test_a_reader_that_never_reads_is_freed_when_it_leaves(serve, canned):
    long = canned.rounds("x" * 400, sizes=(1,))[:-1]
    engine = canned.scripted(lambda request: [*long, None])
    connection = send(serve(engine), {"stream": True, "n": 8})
    assert engine.waiting.wait(10)
    connection.close()
    assert engine.freed.wait(1)


def test_a_failed_choice_frees_the_others(serve, canned):
    def script(request):
        return [canned.failure("boom")] if request.request_id.endswith("-1") else [None]

    engine = canned.scripted(script)
    reply = serve(engine).http.post("/v1/completions", json={"model": "toy", "prompt": "hi", "n": 3})
    assert (reply.status_code, "boom" in reply.json()["error"]["message"]) == (500, True)
    assert engine.freed.wait(1)
    assert {name[-2:] for name in engine.cancelled} == {"-0", "-2"}


def test_a_stop_string_cancels_the_rest(serve, canned):
    engine = canned.scripted(lambda request: [*canned.rounds("one STOP two", sizes=(3,))[:3], None])
    server = serve(engine)
    reply = server.http.post("/v1/completions", json={"model": "toy", "prompt": "hi", "stop": "STOP"}).json()
    assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == ("one ", "stop")
    # "one STOP" is eight tokens; the ninth came in the same round and is not part of the reply
    assert reply["usage"]["completion_tokens"] == 8
    assert engine.freed.wait(1)


def test_a_silent_stream_is_kept_open(serve, canned, monkeypatch):
    monkeypatch.setattr("redraft.server.respond.PING_SECONDS", 0.05)
    engine = canned.engine("ab", pause=0.3, sizes=(3,))
    body = {"model": "toy", "prompt": "hi", "stream": True}
    events = serve(engine).http.post("/v1/completions", json=body).text.split("\n\n")
    assert events[0] == ": ping"
    assert events[-2:] == ["data: [DONE]", ""]
    assert "".join(json.loads(event[6:])["choices"][0]["text"] for event in events if event[:7] == "data: {") == "ab"
