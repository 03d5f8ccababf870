"""What is broken on the way: bodies that are no JSON, too large or too slow, wrong types, paths and methods."""

from __future__ import annotations

import http.client
import json
import socket
from urllib.parse import urlsplit

import pytest

from redraft.server.limits import MAX_BODY_BYTES

GOOD = {"model": "toy", "prompt": "hi"}


def raw(value: str) -> bytes:
    return b'{"model": "toy", "prompt": "hi", ' + value.encode() + b"}"


@pytest.mark.parametrize(
    ("content", "param"),
    [
        pytest.param(raw('"temperature": NaN'), None, id="nan"),
        pytest.param(raw('"temperature": Infinity'), None, id="infinity"),
        pytest.param(raw('"top_p": -Infinity'), None, id="minus-infinity"),
        pytest.param(raw('"temperature": 1e400'), "temperature", id="overflow"),
        pytest.param(raw('"max_tokens": 1e400'), "max_tokens", id="overflowing-int"),
        pytest.param(raw('"seed": ' + "9" * 10_000), None, id="huge-integer"),
        pytest.param(raw('"user": "\\ud800"'), None, id="lone-surrogate"),
        pytest.param(raw('"tools": ' + "[" * 100_000), None, id="deep-unclosed"),
        pytest.param(raw('"tools": ' + "[" * 100_000 + "]" * 100_000), None, id="deep"),
        pytest.param(raw('"tools": ' + "[" * 150 + "]" * 150), "tools", id="nested"),
        pytest.param(b'{"model": "toy", "prompt": "\xff"}', None, id="invalid-utf8"),
        pytest.param(b'{"model": "toy", "prompt": "\x00"}', None, id="raw-nul"),
        pytest.param(b'{"model": "toy",', None, id="cut"),
        pytest.param(b"{'model': 'toy'}", None, id="quotes"),
        pytest.param(b"\xef\xbb\xbf{}", None, id="byte-order-mark"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"null", None, id="null"),
        pytest.param(b"\x1f\x8b\x08\x00", None, id="gzip"),
    ],
)
def test_json_that_is_none(server, check, goes_on, content, param):
    headers = {"Content-Type": "application/json"}
    check(server.http.post("/v1/completions", content=content, headers=headers), 400, param)
    goes_on(server)


def test_content_types(server, check):
    body = json.dumps(GOOD).encode()
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "application",
    ]:
        headers = {"Content-Type": kind} if kind else {}
        check(server.http.post("/v1/completions", content=body, headers=headers), 415, None)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    check(server.http.post("/v1/completions", content=body, headers=headers), 415, None)
    reply = server.http.post(
        "/v1/completions", content=body, headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert reply.status_code == 200


def exchange(server, head: bytes, parts: list[bytes]) -> tuple[int, bytes]:
    """Status and body of a request written by hand, sent until the server stops reading."""
    where = urlsplit(server.url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        connection.sendall(head)
        try:
            for part in parts:
                connection.sendall(part)
        except ConnectionError:
            pass
        reply = http.client.HTTPResponse(connection)
        reply.begin()
        return reply.status, reply.read()


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_body_over_the_limit(server, goes_on):
    declared = HEAD + f"Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
    endless = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for head, parts in [(declared, []), (endless, [part] * (MAX_BODY_BYTES // 0x10000 + 1))]:
        status, body = exchange(server, head, parts)
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
    goes_on(server)


def test_a_body_that_does_not_arrive(server, goes_on, monkeypatch):
    monkeypatch.setattr("redraft.server.body.BODY_SECONDS", 0.2)
    status, body = exchange(server, HEAD + b"Content-Length: 100\r\n\r\n", [b"{"])
    assert (status, "did not arrive" in json.loads(body)["error"]["message"]) == (408, True)
    goes_on(server)


def test_unknown_paths_and_methods(server, check, goes_on):
    for path in [
        "/",
        "/v1",
        "/v1/embeddings",
        "/v1/completions/",
        "/v1/completions/../../etc/passwd",
        "/" + "x" * 9000,
    ]:
        assert check(server.http.post(path, json=GOOD), 404, None)["code"] == "not_found"
    goes_on(server)


POSTS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
GETS = ("/v1/models", "/v1/models/toy", "/health", "/ready", "/version", "/metrics", "/docs", "/openapi.json")


def test_every_method_on_every_path(server, check, goes_on):
    for path in (*POSTS, *GETS):
        allowed = {"POST"} if path in POSTS else {"GET", "HEAD"}
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} - allowed:
            reply = server.http.request(method, path)
            if method == "HEAD":
                assert (reply.status_code, reply.content) == (405, b"")
            else:
                assert check(reply, 405, None)["code"] == "method_not_allowed", (method, path)
            assert reply.headers["allow"]
    goes_on(server)


def test_the_last_of_equal_keys_counts(server):
    """As everywhere in JSON; both are bounded, and the first is not honoured half."""
    headers = {"Content-Type": "application/json"}
    for keys, status in (('"n": 0, "n": 1', 200), ('"n": 1, "n": 0', 400)):
        content = '{"model": "toy", "prompt": "hi", ' + keys + "}"
        assert server.http.post("/v1/completions", content=content, headers=headers).status_code == status
