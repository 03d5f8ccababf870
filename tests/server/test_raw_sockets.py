"""What is not quite HTTP, or too much of it, or never ends: answered in OpenAI's form or hung up on, and nobody else
notices."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from redraft.server.limits import MAX_HEAD_BYTES, MAX_HEADERS

BODY = json.dumps({"model": "toy", "prompt": "hi"}).encode()
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
REQUEST = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
GET = b"GET /version HTTP/1.1\r\nHost: x\r\n"
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"


@pytest.fixture(scope="module")
def lasting(running, canned):
    """One server for all: what one connection breaks, the next test sees."""
    with running(canned.engine("fine")) as server:
        yield server


@pytest.fixture(autouse=True)
def server(lasting):
    """After every test a good request is answered, and no connection but its own is left."""
    yield lasting
    assert lasting.http.post("/v1/completions", json={"model": "toy", "prompt": "hi"}).status_code == 200


class Raw:
    """A connection written by hand."""

    def __init__(self, server, *parts: bytes) -> None:
        where = urlsplit(server.url)
        self.socket = socket.create_connection((where.hostname, where.port), timeout=10)
        for part in parts:
            self.socket.sendall(part)

    def all(self) -> bytes:
        """Everything until the server closes."""
        got = b""
        try:
            while part := self.socket.recv(65536):
                got += part
        except ConnectionResetError:
            pass
        return got

    def trickle(self, piece: bytes, seconds: float = 0.05) -> Callable[[], float]:
        """Send ``piece`` over and over until the server hangs up; gives a function that waits and tells how long."""
        begun = time.monotonic()

        def send() -> None:
            try:
                while time.monotonic() < begun + 10:
                    self.socket.sendall(piece)
                    time.sleep(seconds)
            except OSError:
                pass

        sender = threading.Thread(target=send)
        sender.start()

        def wait() -> float:
            sender.join()
            return time.monotonic() - begun

        return wait

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def replies(data: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each reply in ``data``."""
    stream, found = io.BytesIO(data), []

    class Joined:
        def makefile(self, mode: str) -> io.BytesIO:
            return stream

    stream.close_for_good, stream.close = stream.close, lambda: None
    while stream.tell() < len(data):
        reply = http.client.HTTPResponse(Joined())
        reply.begin()
        found.append((reply.status, reply.read()))
    return found


def error(data: bytes) -> tuple[int, str | None]:
    """Status and code of the one reply in ``data``, an error of bounded size."""
    ((status, body),) = replies(data)
    assert len(body) < 16 * 1024
    return status, json.loads(body)["error"]["code"]


@pytest.fixture
def hurried(monkeypatch):
    """Limits of time short enough for a test."""
    monkeypatch.setattr("redraft.server.connection.HEAD_SECONDS", 0.4)
    monkeypatch.setattr("redraft.server.connection.LINGER_SECONDS", 0.3)
    monkeypatch.setattr("redraft.server.body.BODY_SECONDS", 0.4)


def test_a_head_that_does_not_end(server, hurried):
    with Raw(server, GET) as raw:
        sent = raw.trickle(b"X-A: b\r\n")
        assert error(raw.all()) == (408, None)
    assert sent() < 5


def test_a_connection_that_says_nothing(server, hurried):
    with Raw(server) as raw:
        assert raw.all() == b""


def test_a_second_head_that_does_not_end(server, hurried):
    with Raw(server, GET + b"\r\n") as raw:
        time.sleep(0.1)
        sent = raw.trickle(b"G")
        first, second = replies(raw.all())
        assert (first[0], second[0]) == (200, 408)
    assert sent() < 5


def test_a_body_that_does_not_end(server, hurried):
    with Raw(server, POST + b"Content-Length: 1000000\r\n\r\n") as raw:
        sent = raw.trickle(b" ")
        assert error(raw.all()) == (408, None)
    assert sent() < 5, "the connection is closed, however long its client goes on"


@pytest.mark.parametrize("head", [POST, GET], ids=["wanted", "unwanted"])
def test_chunks_without_end(server, hurried, head):
    with Raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n") as raw:
        sent = raw.trickle(CHUNK, 0.0)
        assert [status for status, _ in replies(raw.all())] == [413 if head == POST else 200]
    assert sent() < 5


FLOODS = {
    "one-line": [b"X: " + b"x" * 100_000 + b"\r\n"],
    "one-packet": [b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n"],
    "many": [b"X-%d: y\r\n" % number for number in range(MAX_HEADERS)],
    "path": [],
}


@pytest.mark.parametrize("flood", FLOODS)
def test_heads_over_the_limit(server, flood):
    head = b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n" if flood == "path" else GET
    with Raw(server, head + b"".join(FLOODS[flood]) + b"\r\n") as raw:
        assert error(raw.all()) == (431, "headers_too_large")


def test_headers_that_never_end(server):
    with Raw(server, GET) as raw:
        sent = raw.trickle(b"X-Y: " + b"z" * 1000 + b"\r\n", 0.001)
        assert error(raw.all()) == (431, "headers_too_large")
    assert sent() < 5


def test_heads_within_the_limit(server):
    many = b"".join(b"X-%d: y\r\n" % number for number in range(MAX_HEADERS - 2))
    long = b"X: " + b"x" * (MAX_HEAD_BYTES - 100) + b"\r\n"
    for headers in (many, long):
        with Raw(server, GET + headers + b"Connection: close\r\n\r\n") as raw:
            assert [status for status, _ in replies(raw.all())] == [200]


GARBAGE = {
    "binary": b"\x00\xff\xfe" * 100 + b"\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n",
    "words": b"hello\r\n\r\n",
    "no-host": b"GET /health HTTP/1.1\r\n\r\n",
    "bad-header": GET + b"no colon\r\n\r\n",
    "nul": GET + b"X: a\x00b\r\n\r\n",
    "two-lengths": POST + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\n",
    "negative-length": POST + b"Content-Length: -1\r\n\r\n",
    "endless-length": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "odd-encoding": POST + b"Transfer-Encoding: rot13\r\n\r\n",
    "length-and-chunked": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_http(server, garbage):
    with Raw(server, GARBAGE[garbage]) as raw:
        assert error(raw.all()) == (400, "invalid_http")


def test_a_body_that_breaks_off_into_garbage(server, hurried):
    """The request is being read already; its sender gets one answer and no second one."""
    with Raw(server, POST + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\n{\r\n") as raw:
        time.sleep(0.1)
        raw.socket.sendall(b"what is this\r\n" * 3)
        assert error(raw.all()) == (400, "invalid_http")


def test_garbage_behind_a_request_does_not_break_its_answer(server, canned):
    with Raw(server, REQUEST + b"\x00garbage\r\n\r\n") as raw:
        first, second = replies(raw.all())
        assert (first[0], second[0], json.loads(first[1])["choices"][0]["text"]) == (200, 400, "fine")


def test_another_version_of_http_is_answered_in_this_one(server):
    with Raw(server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") as raw:
        assert [status for status, _ in replies(raw.all())] == [404, 400]


def test_pipelined_requests_are_answered_in_order(server):
    bad = POST + b"Content-Length: 2\r\n\r\n{}"
    with Raw(server, (REQUEST + GET + b"\r\n" + bad) * 20, GET + b"Connection: close\r\n\r\n") as raw:
        assert [status for status, _ in replies(raw.all())] == [200, 200, 400] * 20 + [200]


@pytest.mark.parametrize("sent", [b"", GET, POST + b"Content-Length: 100\r\n\r\n{", b"\x16\x03"], ids=range(4))
def test_half_closed_connections_end(server, sent):
    with Raw(server, sent) as raw:
        raw.socket.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        raw.all()
        assert time.monotonic() - begun < 3


def test_half_closing_is_leaving(serve, canned):
    engine = canned.scripted(lambda request: [*canned.rounds("ab", sizes=(1,))[:1], None])
    with Raw(serve(engine), REQUEST) as raw:
        assert engine.waiting.wait(5)
        raw.socket.shutdown(socket.SHUT_WR)
        assert engine.freed.wait(2)


def test_many_idle_connections_do_not_keep_others_out(server):
    idle = [Raw(server, GET) for _ in range(200)]
    try:
        begun = time.monotonic()
        assert server.http.get("/health").status_code == 200
        assert time.monotonic() - begun < 2
    finally:
        for raw in idle:
            raw.socket.close()
