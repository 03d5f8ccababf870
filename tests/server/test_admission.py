"""What the server takes on: how many choices, for how long, and for whom it makes text that nobody reads."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from redraft.server.chat_template import ChatTemplate
from redraft.server.text import TextTokenizer

GOOD = {"model": "toy", "prompt": "hi"}


def hits(server, limit):
    """How often ``limit`` was hit."""
    text = server.http.get("/metrics").text
    return float(text.split(f'redraft_limits_hit_total{{limit="{limit}",model_name="toy"}} ')[1].split("\n")[0])


def soon(true):
    """Wait until ``true()``, a few seconds at most."""
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def post(server, **body):
    return server.http.post("/v1/completions", json={**GOOD, **body})


def waiting_engine(canned):
    return canned.scripted(lambda request: [*canned.rounds("ab", sizes=(1,))[:1], None])


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_full_queue(serve, canned, path):
    engine = waiting_engine(canned)
    server = serve(engine, max_queue=2)
    content = {"messages": [{"role": "user", "content": "hi"}]} if path.startswith("chat") else {"prompt": "hi"}
    body = {"model": "toy", "stream": True, "n": 5, **content}
    with server.http.stream("POST", f"/v1/{path}", json=body), server.http.stream("POST", f"/v1/{path}", json=body):
        # 8 slots and 2 more are full; the engine never hears of the next
        soon(lambda: len(engine.requests) == 10)
        for stream in (True, False):
            reply = server.http.post(f"/v1/{path}", json={**body, "n": 1, "stream": stream})
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
            error = reply.json()["error"]
            assert (error["code"], error["type"]) == ("queue_full", "service_unavailable_error")
        assert server.http.get("/ready").status_code == 200
        assert server.http.get("/v1/models").status_code == 200
    assert len(engine.requests) == 10
    assert hits(server, "max_queue") == 2
    engine.script = lambda request: canned.rounds("ok")
    soon(lambda: post(server, n=10).status_code == 200)


def test_room_is_counted_by_choices(serve, canned):
    engine = waiting_engine(canned)
    server = serve(engine, max_queue=0)
    for body in ({"n": 9}, {"n": 3, "prompt": ["a", "b", "c"]}):
        reply = post(server, **body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "too_many_choices")
    with server.http.stream("POST", "/v1/completions", json={**GOOD, "stream": True, "n": 6}):
        soon(lambda: len(engine.requests) == 6)
        assert post(server, n=3).status_code == 503
        engine.script = lambda request: canned.rounds("ok")
        assert post(server, n=2).status_code == 200


def test_whatever_ends_makes_room(serve, canned):
    """Ends of every kind: done, failed, stopped by a text, cancelled before a task's first step."""
    engine = canned.engine("one STOP two")
    server = serve(engine, max_queue=0)
    ends = [{"n": 8}, {"n": 8, "stop": "STOP"}, {"n": 8, "stream": True}]
    for body in ends * 3:
        assert post(server, **body).status_code == 200
    engine.script = lambda request: [canned.failure("boom")]
    for _ in range(3):
        assert post(server, n=8).status_code == 500
    engine.script = lambda request: canned.rounds("ok")
    soon(lambda: post(server, n=8).status_code == 200)


def test_a_deadline(serve, canned):
    engine = waiting_engine(canned)
    server = serve(engine, request_timeout=0.3)
    reply = post(server, n=2)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"]) == (504, "request_timeout", "server_error")
    assert "0.3 s" in error["message"]
    soon(lambda: len(engine.cancelled) == 2)
    events = post(server, stream=True).text.split("\n\n")
    assert json.loads(events[0][6:])["choices"][0]["text"] == "a"
    assert json.loads(events[1][6:])["error"]["code"] == "request_timeout"
    assert events[2:] == ["data: [DONE]", ""]
    assert len(engine.cancelled) == 3
    assert hits(server, "request_timeout") == 2
    engine.script = lambda request: canned.rounds("ok")
    assert post(server).status_code == 200
    time.sleep(0.4)
    assert hits(server, "request_timeout") == 2


def test_a_deadline_counts_the_time_in_the_queue(serve, canned):
    engine = canned.scripted(lambda request: [None])
    server = serve(engine, request_timeout=0.2, max_queue=32)
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: post(server).status_code, range(20)))
    assert replies == [504] * 20
    soon(lambda: len(engine.cancelled) == 20)


SLOW_TEMPLATE = "{% for i in range(60000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}"
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}


def test_a_deadline_counts_the_time_before_the_queue(serve, canned, tokenizer):
    """What is rendered has not come to the engine yet, but it waits, too."""
    slow = TextTokenizer(tokenizer._tokenizer, ChatTemplate(SLOW_TEMPLATE, {}))
    engine = canned.engine("ok")
    server = serve(engine, slow, request_timeout=0.2)
    begun = time.monotonic()
    reply = server.http.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "request_timeout")
    assert time.monotonic() - begun < 5
    assert hits(server, "request_timeout") == 1
    assert not engine.requests
    assert post(server).status_code == 200


def test_what_is_being_rendered_takes_room(serve, canned, tokenizer):
    slow = TextTokenizer(tokenizer._tokenizer, ChatTemplate(SLOW_TEMPLATE, {}))
    server = serve(canned.engine("ok"), slow, max_queue=0, request_timeout=1)
    with ThreadPoolExecutor(9) as pool:
        replies = list(pool.map(lambda _: server.http.post("/v1/chat/completions", json=CHAT).status_code, range(9)))
    # 8 slots; the ninth is told at once
    assert sorted(replies) == [503] + [504] * 8
    assert post(server, n=8).status_code == 200


def never_reads(server, **body):
    """A connection that asks for a stream and reads nothing of it."""
    where = urlsplit(server.url)
    # the kernel would take megabytes for it
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect((where.hostname, where.port))
    content = json.dumps({**GOOD, "stream": True, **body}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    )
    connection.sendall(head.encode() + b"\r\n\r\n" + content)
    return connection


def endless(canned, seconds=0.0):
    """An engine whose requests get a token each turn of the loop, as long as anybody wants them."""
    engine = canned.scripted(lambda request: canned.rounds("x" * 400, sizes=(1,))[:-1] * 10_000)
    engine.pause = seconds
    return engine


@pytest.mark.parametrize("bound", ["time", "buffer"])
def test_a_reader_that_never_reads_is_cut_off(serve, canned, monkeypatch, bound):
    monkeypatch.setattr("redraft.server.reader.READER_CHECK_SECONDS", 0.1)
    name = "SLOW_READER_SECONDS" if bound == "time" else "FULL_READER_SECONDS"
    monkeypatch.setattr(f"redraft.server.reader.{name}", 0.5)
    engine = endless(canned, 0.0 if bound == "buffer" else 0.0005)
    server = serve(engine)
    with never_reads(server, n=2):
        assert engine.freed.wait(20)
        soon(lambda: len(engine.cancelled) == 2)
        assert hits(server, "slow_reader") == 1
        # others were served meanwhile, and are now
        engine.script = lambda request: canned.rounds("ok")
        assert post(server).json()["choices"][0]["text"] == "ok"


def test_what_waits_for_a_reader_is_bounded(serve, canned, monkeypatch):
    monkeypatch.setattr("redraft.server.reader.READER_CHECK_SECONDS", 0.05)
    monkeypatch.setattr("redraft.server.reader.MAX_PENDING_DELTAS", 500)
    monkeypatch.setattr("redraft.server.reader.FULL_READER_SECONDS", 0.5)
    most = []
    fail = "redraft.server.generation.Generation.cut_off"
    monkeypatch.setattr(fail, lambda self: most.append(self.pending) or self._cancel())
    engine = endless(canned, 0.001)
    server = serve(engine)
    with never_reads(server):
        assert engine.freed.wait(20)
    # at a token a millisecond, half a second's worth on top: what came before it was clear that nobody reads
    assert 500 < most[0] < 2000


def test_a_slow_reader_that_reads_is_kept(serve, canned, monkeypatch):
    monkeypatch.setattr("redraft.server.reader.READER_CHECK_SECONDS", 0.05)
    monkeypatch.setattr("redraft.server.reader.SLOW_READER_SECONDS", 1.0)
    rounds = canned.rounds("x" * 400, sizes=(1,))[:-1] * 5 + canned.rounds("end")
    server = serve(canned.scripted(lambda request: rounds))
    got = b""
    with never_reads(server, n=2) as connection:
        while not got.endswith(b"0\r\n\r\n"):
            got += connection.recv(8192)
            time.sleep(0.005)
    assert got.count(b'"finish_reason":"stop"') == 2
    assert hits(server, "slow_reader") == 0


def test_a_whole_reply_that_nobody_reads_is_dropped_by_the_kernel(serve, canned):
    """The app is done with it at once; it lies in the connection's buffers."""
    server = serve(canned.engine("x" * 2000, sizes=(1000,)), max_queue=300)
    server.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    whole = len(post(server, n=64).content)
    ended = 'redraft_requests_total{draft="canned-1",finish_reason="stop",model_name="toy"} 128.0'
    with never_reads(server, stream=False, n=64) as connection:
        soon(lambda: ended in server.http.get("/metrics").text)
        time.sleep(1.5)
        got = 0
        with suppress(ConnectionError):
            while part := connection.recv(65536):
                got += len(part)
        assert got < whole
