"""`/tokenize` and `/detokenize` say what the model reads."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.server import limits
from redraft.server.chat_template import ChatTemplate
from redraft.server.text import TextTokenizer

TURNS = [{"role": "user", "content": "hi"}]


def test_a_text_there_and_back(server, tokenizer):
    for text in ("Hello, wörld! 日本語", "", "a<|end|>b", "\u0000"):
        ids = server.http.post("/tokenize", json={"model": "toy", "prompt": text}).json()
        expected = list(tokenizer.encode(text))
        assert ids == {"count": len(expected), "max_model_len": 512, "tokens": expected, "token_strs": None}
        back = server.http.post("/detokenize", json={"model": "toy", "tokens": ids["tokens"]})
        assert back.json() == {"prompt": text}


@settings(deadline=None, max_examples=25)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_there_and_back(lasting, text):
    ids = lasting.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert lasting.http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": text}


def test_a_conversation_is_what_a_chat_reads(server, tokenizer):
    for body in (
        {},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
    ):
        reply = server.http.post("/tokenize", json={"messages": TURNS, **body})
        server.service.engine.requests.clear()
        assert server.http.post("/v1/chat/completions", json={"model": "toy", "messages": TURNS, **body}).is_success
        assert tuple(reply.json()["tokens"]) == server.service.engine.requests[0].prompt


def test_tools_and_variables_are_shown(serve, canned, tokenizer):
    template = ChatTemplate("{{ tools[0].function.name }}{{ enable_thinking }}", {})
    server = serve(canned.engine("ok"), TextTokenizer(tokenizer._tokenizer, template))
    tool = {"type": "function", "function": {"name": "add"}}
    body = {"messages": TURNS, "tools": [tool], "chat_template_kwargs": {"enable_thinking": False}}
    reply = server.http.post("/tokenize", json=body)
    assert tuple(reply.json()["tokens"]) == tokenizer.encode("addFalse")


def test_tokens_as_the_vocabulary_writes_them(server):
    reply = server.http.post("/tokenize", json={"prompt": "ö ll<|end|>", "return_token_strs": True})
    assert reply.json()["token_strs"] == ["Ã¶", "Ġ", "ll", "<|end|>"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("tokenize", {}, 400, "prompt"),
        ("tokenize", {"prompt": None}, 400, "prompt"),
        ("tokenize", {"prompt": 5}, 400, "prompt"),
        ("tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("tokenize", {"prompt": "x" * (limits.MAX_TOKENIZED + 1)}, 400, "prompt"),
        ("tokenize", {"prompt": "x", "messages": TURNS}, 400, "prompt"),
        ("tokenize", {"prompt": "x", "model": "other"}, 404, "model"),
        ("tokenize", {"prompt": "x", "add_special_tokens": "yes"}, 400, "add_special_tokens"),
        ("tokenize", {"prompt": "x", "temperature": 1}, 400, "temperature"),
        ("tokenize", {"prompt": "x", "add_generation_prompt": False}, 400, "add_generation_prompt"),
        ("tokenize", {"messages": []}, 400, "messages"),
        ("tokenize", {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ("tokenize", {"messages": TURNS, "chat_template": "{{ 1 }}"}, 400, "chat_template"),
        ("tokenize", {"messages": TURNS, "tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ("tokenize", [], 400, None),
        ("detokenize", {}, 400, "tokens"),
        ("detokenize", {"tokens": "x"}, 400, "tokens"),
        ("detokenize", {"tokens": [True]}, 400, "tokens"),
        ("detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("detokenize", {"tokens": [260]}, 400, "tokens"),
        ("detokenize", {"tokens": [2**63]}, 400, "tokens"),
        ("detokenize", {"tokens": [1] * (limits.MAX_TOKENIZED + 1)}, 400, "tokens"),
        ("detokenize", {"tokens": [1], "skip_special_tokens": True}, 400, "skip_special_tokens"),
    ],
)
def test_what_is_refused(server, check, goes_on, path, body, status, param):
    check(server.http.post(f"/{path}", json=body), status, param)
    goes_on(server)


def test_other_ways_of_asking(serve, canned):
    server = serve(canned.engine("ok"), api_keys=("key",))
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
        assert server.http.post(path, json=body).status_code == 401
        keyed = {"Authorization": "Bearer key"}
        assert server.http.post(path, json=body, headers=keyed).status_code == 200
        assert server.http.get(path, headers=keyed).status_code == 405
        assert server.http.post(path, content="{}", headers=keyed).status_code == 415
    server.service.draining = True
    assert server.http.post("/tokenize", json={"prompt": "x"}, headers=keyed).status_code == 503
