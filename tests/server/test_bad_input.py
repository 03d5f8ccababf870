"""Every bad input gets its own clear 4xx in OpenAI's form, the engine never sees it, and the server goes on."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from redraft.server.limits import MAX_BODY_BYTES

GOOD = {"model": "toy", "prompt": "hi"}
GOOD_CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
TWO_MAXIMA = {**GOOD_CHAT, "max_tokens": 5, "max_completion_tokens": 6}
USAGE_NOT_BOOL = {**GOOD, "stream": True, "stream_options": {"include_usage": 1}}
HUGE = 2**63


@pytest.fixture(scope="module")
def lasting(running, canned):
    """One server for all bad inputs: what one of them breaks, the next test sees."""
    with running(canned.engine("fine")) as server:
        yield server


@pytest.fixture
def server(lasting):
    """A server whose engine answers anything that reaches it, and has seen nothing yet."""
    lasting.service.engine.requests.clear()
    return lasting


def check(reply, status, param):
    """An error of OpenAI's form, of bounded size, about ``param``."""
    assert reply.status_code == status, reply.text[:300]
    assert len(reply.content) < 16 * 1024
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert error["message"].isprintable()
    return error


def goes_on(server):
    """A good request is still answered, and it is the only one that the engine saw."""
    assert server.http.post("/v1/completions", json=GOOD).json()["choices"][0]["text"] == "fine"
    assert len(server.service.engine.requests) == 1


BIASES = [
    {"x": 1}, {"1.0": 1}, {"-1": 1}, {"260": 1}, {"01": 1}, {" 1": 1}, {"١": 1}, {"9" * 5000: 1}, {"1": None},
    {"1": "5"}, {"1": True}, {"1": 100.1}, {"1": -101}, {"1": 10**400}, {str(i): 1 for i in range(1000)}, [], [[1, 1]],
    "x", 5,
]  # fmt: skip
BOTH = [
    ("model", [None, 5, [], {}]),
    ("temperature", [-0.1, 2.1, 1e308, "1", True, [1]]),
    ("top_p", [0, -1, 1.01, "1", False]),
    ("top_k", [-2, HUGE, 1.5, "5", True]),
    ("min_p", [-0.1, 1.1, "0"]),
    ("seed", [2**64, -(2**63) - 1, 1.5, "1", True, 10**400]),
    ("stop", ["", [""], ["a"] * 500_000, "x" * 1_000_000, [1], {"a": 1}, 5, ["a", None]]),
    ("n", [0, -1, 10**9, 1.5, "2", True]),
    ("stream", ["true", 1, []]),
    ("stream_options", [{"include_usage": True}, "x", [1]]),
    ("user", ["u" * 10_000, 5]),
    ("include_metrics", ["yes", 1]),
    ("speculation", ["off", 5, True, [], {"enabled": False, "max_nodes": 1}]),
    ("cache_salt", ["", "s" * 257, 5, True, ["s"]]),
    ("max_tokens", [0, -1, HUGE, 10**400, "5", 5.5, True]),
    ("frequency_penalty", [2.1, -2.1, "0", True, False, 1e308]),
    ("presence_penalty", [2.01, -3, [0]]),
    ("repetition_penalty", [0, -1, True, 1e-320, 101, "1"]),
    ("logit_bias", BIASES),
    ("logprobs", [0, 1, -1, 10**9, True, "5"]),
    ("top_logprobs", [1, -1]),
    ("response_format", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}]),
    ("tools", [[{"type": "function", "function": {"name": "f"}}], "x"]),
    ("tool_choice", ["required", {"type": "function"}]),
    ("best_of", [2, 0, True]),
    ("echo", [True, 0]),
    ("suffix", ["tail"]),
    ("store", [True]),
    ("metadata", [{"a": "b"}]),
    ("service_tier", ["flex"]),
    ("stop_token_ids", [[10**9], [-1], [260], [1.0], [True], ["1"], 5, "5", [1] * 65, [10**400]]),
    ("min_tokens", [-1, 10**9, HUGE, 1.5, "1", True]),
    ("ignore_eos", [1, "true"]),
    ("include_stop_str_in_output", [0, "yes"]),
    ("prompt_logprobs", [-1]),
    ("prompt_embeds", ["gASVAAAA"]),
    ("guided_regex", ["(a+)+"]),
    ("chat_template", ["{{ 1 }}"]),
    ("chat_template_kwargs", [{"a": 1}]),
    ("documents", [[]]),
    ("no_such_parameter", [0, False, "", "x"]),
]
SPECULATION = [
    ("enabled", [1, 0, "false", [True]]),
    ("max_nodes", [-1, 64, HUGE, 10**400, 1.5, "5", True]),
    ("method", ["ngram", 0]),
    ("Enabled", [True]),
]
CASES = [(name, {name: value}) for name, values in BOTH for value in values] + [
    (f"speculation.{name}", {"speculation": {name: value}}) for name, values in SPECULATION for value in values
]


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_wrong_values_and_unsupported_parameters(server, path):
    good = GOOD if path == "completions" else GOOD_CHAT
    for name, body in CASES:
        error = check(server.http.post(f"/v1/{path}", json={**good, **body}), 400, name)
        assert name in error["message"], (name, body)
    goes_on(server)


PROMPTS = [
    None, "", [], [[]], [""], ["a", ""], ["a", 1], [1, "a"], [[1], "a"], [[1], []], [[[1]]], {"a": 1}, 5, True,
    [-1], [260], [HUGE], [10**400], [True], [1.0], [[1, -1]], ["x"] * 1_000_000, "x" * 512, [1] * 512, "日" * 100_000,
]  # fmt: skip


def test_prompts(server):
    for prompt in PROMPTS:
        check(server.http.post("/v1/completions", json={**GOOD, "prompt": prompt}), 400, "prompt")
    goes_on(server)


def test_a_text_with_a_token_that_the_target_lacks(serve, canned):
    engine = canned.engine("fine")
    engine.info = replace(canned.info, vocab_size=256)
    server = serve(engine)
    for text in ("日", "日" * 80):
        check(server.http.post("/v1/completions", json={**GOOD, "prompt": text}), 400, "prompt")
        chat = {**GOOD_CHAT, "messages": [{"role": "user", "content": text}]}
        error = check(server.http.post("/v1/chat/completions", json=chat), 400, "messages")
        assert error["code"] == "invalid_token_id"
    goes_on(server)


MESSAGES = [
    (None, "messages"),
    ([], "messages"),
    ("hi", "messages"),
    ([5], "messages[0]"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"content": "x"}], "messages[0].role"),
    ([{"role": "wizard", "content": "x"}], "messages[0].role"),
    ([{"role": "tool", "content": "x"}], "messages[0].role"),
    ([{"role": "user", "content": None}], "messages[0].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "user", "content": 5}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages[0].content"),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}],
        "messages[0].content",
    ),
    ([{"role": "user", "content": "x", "name": "me"}], "messages[0].name"),
    ([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls"),
    ([{"role": "user", "content": "x"}] * 10_000, "messages"),
    ([{"role": "user", "content": "x" * 600}], "messages"),
]


def test_messages(server):
    for messages, param in MESSAGES:
        check(server.http.post("/v1/chat/completions", json={**GOOD_CHAT, "messages": messages}), 400, param)
    goes_on(server)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        pytest.param("completions", {**GOOD, "max_tokens": 511}, "prompt", id="does-not-fit"),
        pytest.param("completions", {**GOOD, "max_completion_tokens": 5}, "max_completion_tokens", id="chats-name"),
        pytest.param("completions", {**GOOD, "prompt": ["a"] * 65, "n": 2}, "n", id="prompts-times-n"),
        pytest.param("completions", {**GOOD, "min_tokens": 17}, "min_tokens", id="min-beyond-default"),
        pytest.param("completions", {**GOOD, "max_tokens": 4, "min_tokens": 5}, "min_tokens", id="min-beyond-max"),
        pytest.param("chat/completions", {**GOOD_CHAT, "min_tokens": 505}, "min_tokens", id="min-beyond-context"),
        pytest.param("completions", {**GOOD, "n": 2, "include_metrics": True}, "include_metrics", id="metrics-of-n"),
        pytest.param("completions", {**GOOD, "prompt": ["a", "b"], "include_metrics": True}, "include_metrics", id="2"),
        pytest.param("completions", {**GOOD, "n": 2, "best_of": 3}, "best_of", id="best-of"),
        pytest.param("completions", {**GOOD, "stream": True, "stream_options": {"x": 1}}, "stream_options.x", id="opt"),
        pytest.param("completions", USAGE_NOT_BOOL, "stream_options.include_usage", id="usage-not-bool"),
        pytest.param("chat/completions", TWO_MAXIMA, "max_tokens", id="two-maxima"),
        pytest.param("chat/completions", {**GOOD_CHAT, "max_tokens": 511}, "messages", id="chat-does-not-fit"),
        pytest.param("completions", {**GOOD, "x" * 100_000: 1}, "x" * 99 + "…", id="long-name"),
        pytest.param("completions", {**GOOD, "\u0000\u202e\n": 1}, "\u0000\u202e\n", id="odd-name"),
        pytest.param("completions", {**GOOD, **{f"p{i}": 1 for i in range(100_000)}}, None, id="many-names"),
        pytest.param("completions", [GOOD], None, id="list"),
        pytest.param("completions", "text", None, id="text"),
        pytest.param("completions", {}, "model", id="empty"),
    ],
)  # fmt: skip
def test_combinations_and_shapes(server, path, body, param):
    check(server.http.post(f"/v1/{path}", json=body), 400, param)
    goes_on(server)


@pytest.mark.parametrize("model", ["gpt-4", "../toy", "TOY", "", "m" * 1_000_000, "\u0000"])
def test_unknown_model(server, model):
    assert check(server.http.post("/v1/completions", json={**GOOD, "model": model}), 404, "model")["code"] == (
        "model_not_found"
    )
    goes_on(server)


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
def test_json_that_is_none(server, content, param):
    headers = {"Content-Type": "application/json"}
    check(server.http.post("/v1/completions", content=content, headers=headers), 400, param)
    goes_on(server)


def test_content_types(server):
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


def test_body_over_the_limit(server):
    declared = HEAD + f"Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode()
    endless = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for head, parts in [(declared, []), (endless, [part] * (MAX_BODY_BYTES // 0x10000 + 1))]:
        status, body = exchange(server, head, parts)
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
    goes_on(server)


def test_a_body_that_does_not_arrive(server, monkeypatch):
    monkeypatch.setattr("redraft.server.body.BODY_SECONDS", 0.2)
    status, body = exchange(server, HEAD + b"Content-Length: 100\r\n\r\n", [b"{"])
    assert (status, "did not arrive" in json.loads(body)["error"]["message"]) == (408, True)
    goes_on(server)


def test_unknown_paths_and_methods(server):
    for path in [
        "/v1",
        "/v1/embeddings",
        "/v1/completions/",
        "/v1/completions/../../etc/passwd",
        "/" + "x" * 9000,
    ]:
        assert check(server.http.post(path, json=GOOD), 404, None)["code"] == "not_found"
    for method, path in [("GET", "/v1/completions"), ("PUT", "/v1/chat/completions"), ("DELETE", "/v1/models"),
                         ("POST", "/"), ("POST", "/health"), ("OPTIONS", "/v1/completions"),
                         ("PATCH", "/metrics")]:  # fmt: skip
        reply = server.http.request(method, path)
        assert check(reply, 405, None)["code"] == "method_not_allowed"
        assert reply.headers["allow"]
    assert server.http.head("/v1/completions").status_code == 405
    goes_on(server)


def test_odd_but_good(server):
    """What looks odd and is honoured: neutral values, extreme numbers, NUL and special tokens inside a text."""
    neutral = {
        "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "logprobs": False, "top_logprobs": 0, "n": 1,
        "response_format": {"type": "text"}, "tools": [], "tool_choice": "auto", "store": False, "echo": False,
        "best_of": 1, "suffix": None, "metadata": {}, "service_tier": "auto", "parallel_tool_calls": True,
        "unknown": None, "stream_options": None, "max_tokens": None, "seed": None, "stop": None, "user": "me",
        "speculation": None, "cache_salt": None, "repetition_penalty": 1, "min_tokens": 0, "stop_token_ids": [],
        "ignore_eos": False, "include_stop_str_in_output": False,
    }  # fmt: skip
    extreme = {
        "temperature": 1e-320, "top_p": 1e-320, "top_k": -1, "min_p": -0.0, "seed": -(2**63), "stop": ["a"] * 16,
        "presence_penalty": -2, "frequency_penalty": 2.0, "repetition_penalty": 0.01, "min_tokens": 16,
        "max_tokens": 16, "logit_bias": {str(token): -100 for token in range(260)}, "stop_token_ids": [0] * 64,
    }  # fmt: skip
    salted = {"cache_salt": "\u0000日" * 128, "speculation": {"max_nodes": 63, "enabled": None, "unknown": None}}
    for body in [neutral, extreme, salted, {"seed": 2**64 - 1}, {"prompt": "a\u0000b<|end|>"}, {"prompt": "x" * 511}]:
        reply = server.http.post("/v1/completions", json={**GOOD, **body})
        assert reply.status_code == 200, reply.text
    reply = server.http.post("/v1/chat/completions", json={**GOOD_CHAT, **neutral, "max_completion_tokens": None})
    assert reply.status_code == 200, reply.text
