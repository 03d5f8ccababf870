"""Log-probabilities in replies: OpenAI's shapes, whole and streamed, with stop strings and half characters."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from redraft.server.engine.types import FinishReason, TokenLogprobs
from redraft.server.text import TextTokenizer

TEXT = "Hello, wörld! 日本語"
TURNS = [{"role": "user", "content": "hi"}]
INF = float("inf")


def score(token: int, top: int) -> TokenLogprobs:
    """What the toy engine says of a token; its likeliest are the next ids, one of them impossible."""
    tops = [(token + 1, -0.25), (token + 2, -0.5), (0, -INF), *((number, -8.0) for number in range(40, 60))]
    return TokenLogprobs(-token / 128, 2, tuple(tops[:top]))


def scored(canned, request, text, **settings):
    """``text`` in rounds, each token with its score if the request asks for it."""
    top = request.params.logprobs
    return [
        replace(output, logprobs=() if top is None else tuple(score(token, top) for token in output.tokens))
        for output in canned.rounds(text, **settings)
    ]


@pytest.fixture(scope="module")
def server(running, canned):
    """Answers what the prompt says."""

    def answer(request):
        text = canned.tokenizer.decode(request.prompt)
        return scored(canned, request, text if ">" not in text else text.split(">", 1)[1].split("\n")[0])

    with running(canned.scripted(answer)) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_of_a_chat(client, tokenizer):
    turns = [{"role": "user", "content": TEXT}]
    reply = client.chat.completions.create(model="toy", messages=turns, logprobs=True, top_logprobs=3)
    (choice,) = reply.choices
    ids = tokenizer.encode(TEXT)
    content = choice.logprobs.content
    assert choice.message.content == TEXT
    assert bytes(chain.from_iterable(entry.bytes for entry in content)) == TEXT.encode()
    assert [entry.logprob for entry in content] == [-token / 128 for token in ids]
    assert choice.logprobs.refusal is None
    for entry, token in zip(content, ids, strict=True):
        assert [top.logprob for top in entry.top_logprobs] == [-0.25, -0.5, -9999.0]
        assert bytes(entry.top_logprobs[0].bytes) == tokenizer.token_bytes(token + 1)
    # the merged token of the first two bytes of "日" and the token of its third
    halves = [entry.token for entry in content if entry.token.startswith("bytes:")]
    assert halves[:2] == ["bytes:\\xe6\\x97", "bytes:\\xa5"]


def test_of_a_completion(client, tokenizer):
    reply = client.completions.create(model="toy", prompt=TEXT, logprobs=2)
    told = reply.choices[0].logprobs
    ids = tokenizer.encode(TEXT)
    assert told.token_logprobs == [-token / 128 for token in ids]
    assert told.tokens[:6] == ["H", "e", "ll", "o", ",", " "]
    # all tokens of a character begin where it does
    ends = [14, 14, 15, 15, 15, 16, 16, 16]
    assert told.text_offset == [0, 1, 2, *range(4, 14), *ends]
    for token, offset, logprob, top in zip(
        told.tokens, told.text_offset, told.token_logprobs, told.top_logprobs, strict=True
    ):
        assert token.startswith("bytes:") or TEXT[offset : offset + len(token)] == token
        assert top[token] == logprob
        assert len(top) <= 3
    zero = client.completions.create(model="toy", prompt=TEXT, logprobs=0).choices[0].logprobs
    assert zero.top_logprobs == [{t: p} for t, p in zip(zero.tokens, zero.token_logprobs, strict=True)]


def test_nothing_is_told_that_was_not_asked_for(server, client):
    turns = [{"role": "user", "content": TEXT}]
    for asked in ({}, {"logprobs": False}, {"logprobs": None, "top_logprobs": 0}):
        body = {"model": "toy", **asked}
        for path, more in (("completions", {"prompt": TEXT}), ("chat/completions", {"messages": turns})):
            reply = server.http.post(f"/v1/{path}", json={**body, **more})
            assert reply.json()["choices"][0]["logprobs"] is None
            stream = server.http.post(f"/v1/{path}", json={**body, **more, "stream": True}).text
            chunks = [json.loads(line[6:]) for line in stream.split("\n\n") if line.startswith("data: {")]
            assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)


def events(server, path, body):
    stream = server.http.post(f"/v1/{path}", json={**body, "stream": True}).text
    return [json.loads(line[6:])["choices"][0] for line in stream.split("\n\n") if line.startswith("data: {")]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text("abl é日🦊", min_size=1, max_size=24),
    stop=st.sampled_from([None, "b", "la", "日", "é ", ["al", "🦊", "ba"]]),
    shown=st.booleans(),
)
def test_streamed_are_the_whole_replys_and_stop_where_the_text_does(server, tokenizer, text, stop, shown):
    body = {"model": "toy", "stop": stop, "include_stop_str_in_output": shown}
    chat = {**body, "messages": [{"role": "user", "content": text}], "logprobs": True, "top_logprobs": 2}
    (whole,) = server.http.post("/v1/chat/completions", json=chat).json()["choices"]
    content, told = whole["message"]["content"], whole["logprobs"]["content"]
    parts = events(server, "chat/completions", chat)
    assert "".join(part["delta"].get("content") or "" for part in parts) == content
    assert [entry for part in parts for entry in (part["logprobs"] or {"content": []})["content"]] == told
    # the literal rule: tokens of the text, up to the last that begins inside what is shown
    raw = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text)))
    assert raw == text.encode()
    expected, at = [], 0
    for token in tokenizer.encode(text):
        begins = len(raw[:at].decode(errors="ignore"))
        if begins < len(content):
            expected.append(list(tokenizer.token_bytes(token)))
        at += len(tokenizer.token_bytes(token))
    assert [entry["bytes"] for entry in told] == expected

    plain = {**body, "prompt": text, "logprobs": 2}
    (whole,) = server.http.post("/v1/completions", json=plain).json()["choices"]
    parts = events(server, "completions", plain)
    assert "".join(part["text"] for part in parts) == whole["text"] == content
    for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        streamed = [entry for part in parts if part["logprobs"] for entry in part["logprobs"][field]]
        assert streamed == (whole["logprobs"][field] if whole["logprobs"] else [])
    seen = ""
    for part in parts:
        seen += part["text"]
        assert all(offset < len(seen) for offset in (part["logprobs"] or {"text_offset": []})["text_offset"])


def test_a_stop_token_is_told_when_it_is_shown(serve, canned, tokenizer):
    (last,) = tokenizer.encode("c")

    def script(request):
        rounds = scored(canned, request, "abc", finish=FinishReason.LENGTH)
        return [replace(o, finish_reason=FinishReason.STOP if last in o.tokens else None) for o in rounds]

    server = serve(canned.scripted(script))
    body = {"model": "toy", "prompt": "hi", "logprobs": 1, "stop_token_ids": [last]}
    for shown, tokens in ((False, ["a", "b"]), (True, ["a", "b", "c"])):
        (choice,) = server.http.post(
            "/v1/completions", json={**body, "include_stop_str_in_output": shown}
        ).json()["choices"]  # fmt: skip
        assert choice["logprobs"]["tokens"] == tokens
        assert choice["text"] == "".join(tokens)


def test_only_an_end_and_nothing_else(serve, canned):
    server = serve(canned.scripted(lambda request: scored(canned, request, "")))
    turns = {"model": "toy", "messages": TURNS, "logprobs": True}
    assert server.http.post("/v1/chat/completions", json=turns).json()["choices"][0]["logprobs"]["content"] == []
    text = {"model": "toy", "prompt": "hi", "logprobs": 1}
    assert server.http.post("/v1/completions", json=text).json()["choices"][0]["logprobs"] is None


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=30))
def test_tokens_bytes_are_the_texts(tokenizer, text):
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


def test_bytes_of_other_tokenizers():
    names = ["<unk>", "▁", "▁the", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {name: number for number, name in enumerate(names)}
    fallback = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    fallback.add_special_tokens(["<s>"])
    fallback.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    read = TextTokenizer(fallback, None).token_bytes
    ids = [
        vocab["▁the"],
        vocab["s"],
        *(vocab[f"<0x{byte:02X}>"] for byte in "日".encode()),
        fallback.token_to_id("<s>"),
    ]
    assert [read(token) for token in ids] == [b" the", b"s", b"\xe6", b"\x97", b"\xa5", b"<s>"]
    assert read(10**6) == b""
    words = Tokenizer(models.WordLevel({"a": 0, "é": 1}, unk_token="a"))
    assert [TextTokenizer(words, None).token_bytes(token) for token in (0, 1)] == [b"a", "é".encode()]
