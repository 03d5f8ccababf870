"""What shows of a reply's text, how its tokens are told while it comes, and prompts for infilling."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, processors

from redraft.server.chat_template import ChatTemplate
from redraft.server.text import TextTokenizer

GOOD = {"model": "toy", "prompt": "hi"}
SPECIAL = ("<|end|>", "<|mark|>", "<think>", "</think>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<s>")
TEMPLATE = "{{ messages[0].content }}{# </think> #}"


@pytest.fixture(scope="module")
def special(tokenizer):
    """The toy tokenizer with more special tokens, one of which it puts before a text."""
    own = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    own.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    start = own.token_to_id("<s>")
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return TextTokenizer(own, ChatTemplate(TEMPLATE, {}))


@pytest.fixture
def ask(serve, canned, special):
    """The reply to ``body`` where the engine makes ``answer``, and its request; streams say the same."""

    def asked(answer, body, path="completions"):
        wide = replace(canned, tokenizer=special, info=replace(canned.info, vocab_size=512))
        ids = special.encode(answer, special_tokens=False)
        rounds = [replace(step, tokens=(token,)) for token in ids for step in wide.rounds("a")[:1]]
        end = replace(wide.rounds("a", sizes=(9,))[0], tokens=(special.token_id("<|end|>"),))
        server = serve(wide.scripted(lambda request: [*rounds, end]), special)
        given = GOOD if path == "completions" else {"model": "toy", "messages": [{"role": "user", "content": "x"}]}
        reply = server.http.post(f"/v1/{path}", json={**given, **body})
        assert reply.status_code == 200, reply.text
        choice = reply.json()["choices"][0]
        shown = choice["text"] if path == "completions" else choice["message"]["content"]
        events = server.http.post(f"/v1/{path}", json={**given, **body, "stream": True}).text.split("\n\n")[:-2]
        parts = [json.loads(event[6:])["choices"][0] for event in events]
        streamed = [part["text"] if path == "completions" else part["delta"].get("content", "") for part in parts]
        assert "".join(streamed) == shown
        return reply.json(), server.service.engine.requests[0]

    return asked


@pytest.mark.parametrize(
    ("stop", "include", "text", "tokens"),
    [("END", False, "a日", 6), ("END", True, "a日END", 6), (["N", "D"], True, "a日EN", 5), ("日", True, "a日", 3)],
)
def test_the_stop_string_shows_if_asked_for(ask, stop, include, text, tokens):
    reply, _ = ask("a日ENDb", {"stop": stop, "include_stop_str_in_output": include})
    assert (reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]) == (text, "stop")
    assert reply["usage"]["completion_tokens"] == tokens


@pytest.mark.parametrize(
    ("skip", "include", "text"),
    [
        (True, False, "ab"),
        (True, True, "ab"),
        (False, False, "a<|mark|>b"),
        (False, True, "a<|mark|>b<|end|>"),
    ],
)
def test_special_tokens_show_if_asked_for(ask, skip, include, text):
    body = {"skip_special_tokens": skip, "include_stop_str_in_output": include}
    for path in ("completions", "chat/completions"):
        reply, _ = ask("a<|mark|>b", body, path)
        choice = reply["choices"][0]
        assert (choice["text"] if path == "completions" else choice["message"]["content"]) == text


def test_tags_that_are_special_tokens_reach_the_reader(ask):
    reply, _ = ask("<think>Hm<|mark|></think>Yes", {}, "chat/completions")
    message = reply["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm", "Yes")


def test_spaces_between_special_tokens(serve, canned, special):
    server = serve(canned.engine("ok"))
    for body, status in [
        ({"spaces_between_special_tokens": True, "skip_special_tokens": False}, 200),
        ({"spaces_between_special_tokens": False}, 200),
        ({"spaces_between_special_tokens": False, "skip_special_tokens": False}, 400),
        ({"spaces_between_special_tokens": 0}, 400),
    ]:
        assert server.http.post("/v1/completions", json={**GOOD, **body}).status_code == status, body


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_the_tokenizers_own_special_tokens(ask, special, path):
    text = "hi" if path == "completions" else "x"
    for add in (True, False):
        _, request = ask("ok", {"add_special_tokens": add}, path)
        assert request.prompt == special.encode(text, special_tokens=add)
        assert (request.prompt[0] == special.token_id("<s>")) == add


@pytest.mark.parametrize("prompt", ["def f(", "", [1, 2]])
def test_a_suffix_becomes_a_prompt_for_infilling(ask, special, prompt):
    _, request = ask("ok", {"prompt": prompt, "suffix": "):é"})
    start, first, last, middle = (
        special.token_id(text) for text in ("<s>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    )
    before = tuple(prompt) if isinstance(prompt, list) else special.encode(prompt, special_tokens=False)
    behind = special.encode("):é", special_tokens=False)
    assert request.prompt == (start, first, *before, last, *behind, middle)


def test_a_suffix_is_read_once_for_all_prompts(serve, canned, special, tokenizer, check, monkeypatch):
    """It may be as long as a body, and there may be 128 prompts."""
    read = []
    encode = TextTokenizer.encode

    def noted(self, text, **options):
        read.append(text)
        return encode(self, text, **options)

    monkeypatch.setattr(TextTokenizer, "encode", noted)
    body = {"model": "toy", "prompt": ["a", "b", "c"], "suffix": "tail", "max_tokens": 2}
    wide = replace(canned, tokenizer=special, info=replace(canned.info, vocab_size=512))
    assert serve(wide.engine("ok"), special).http.post("/v1/completions", json=body).status_code == 200
    assert read.count("tail") == 1
    read.clear()
    check(serve(canned.engine("ok"), tokenizer).http.post("/v1/completions", json=body), 400, "suffix")
    assert not read, "there is nothing to read where it cannot be used"


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_usage_in_every_chunk(serve, canned, path):
    server = serve(canned.engine("Hello, wörld! 日本語"))
    prompt = {"prompt": ["hi", "you"]} if path == "completions" else {"messages": [{"role": "user", "content": "hi"}]}
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "toy", **prompt, "n": 2, "stream": True, "stream_options": options}
    events = server.http.post(f"/v1/{path}", json=body).text.split("\n\n")[:-2]
    chunks = [json.loads(event[6:]) for event in events]
    choices = 4 if path == "completions" else 2
    made = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert made == sorted(made)
    assert made[-1] == 22 * choices
    assert len(set(made)) > choices
    assert len({chunk["usage"]["prompt_tokens"] for chunk in chunks}) == 1
    for usage in (chunk["usage"] for chunk in chunks):
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    # a chunk's usage is that of the text up to it: one character of one byte is one token
    if path == "completions":
        assert made[0] == len(chunks[0]["choices"][0]["text"])
