"""Calls that a chat must make, and forms behind reasoning: what the engine is given to enforce, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from redraft.server.chat_template import ChatTemplate
from redraft.server.text import TextTokenizer

TALK = '{% for message in messages %}{{ message.content }}{% endfor %}{{ tools or "" }}'
QUIET = "{% for message in messages %}{{ message.content }}{% endfor %}{% if tools %}!{% endif %}"
THINKS = TALK + "{# <think> </think> #}"
OPENS = TALK + "{{ '<think>' }}{# </think> #}"
HERMES, LLAMA, XML = "{# <tool_call> #}", "{# <|python_tag|> #}", "{# <tool_call> <function= #}"
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def tool(name: str, parameters: dict[str, object] | None = None) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("weather", CITY), tool("now", {"type": "object", "properties": {}, "additionalProperties": False})]
WEATHER = '{"name": "weather", "arguments": {"city": "Oslo"}}'
NOW = '{"name": "now", "arguments": {}}'
FORM = {"response_format": {"type": "json_object"}}


def hermes(*calls: str) -> str:
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


@pytest.fixture
def enforced(serve, canned, tokenizer):
    """Whether the grammar that the engine gets for a body takes each of some texts."""

    def ask(template, body, texts, special=()):
        inner = Tokenizer.from_str(tokenizer._tokenizer.to_str())
        inner.add_special_tokens([AddedToken(mark, special=True) for mark in special])
        engine = canned.engine("fine")
        engine.info = replace(engine.info, vocab_size=inner.get_vocab_size())
        server = serve(engine, TextTokenizer(inner, ChatTemplate(template, {})))
        reply = server.http.post("/v1/chat/completions", json={**CHAT, **body})
        assert reply.status_code == 200, reply.text
        (request,) = server.service.engine.requests
        if request.grammar is None:
            return None
        shared = LLTokenizer(inner.to_str(), eos_token=canned.info.eos_token_ids[0])

        def takes(text):
            matcher = LLMatcher(shared, request.grammar, log_level=0)
            assert not matcher.is_error(), matcher.get_error()
            ids = inner.encode(text, add_special_tokens=False).ids
            return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

        return [takes(text) for text in texts]

    return ask


MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
NAMED = {"type": "function", "function": {"name": "now"}}
LARGE = [tool(f"f{n}", {"type": "object", "properties": {"a" * 1500: {"type": "string"}}}) for n in range(100)]
"""More than a schema may have, all together."""
BROKEN = tool("f", {"type": "object", "properties": {"a": {"type": "nothing"}}})
MUST = {"tools": TOOLS, "tool_choice": "required"}


def nested(name: str, kind: str) -> dict[str, object]:
    """A tool whose schema refers to a part of itself, under a name that others have, too."""
    part = {"type": "object", "properties": {"x": {"type": kind}}, "required": ["x"], "additionalProperties": False}
    whole = {"$defs": {"Part": part}, "properties": {"p": {"$ref": "#/$defs/Part"}}, "required": ["p"]}
    return tool(name, {"$id": "https://example.org/tool", "type": "object", "additionalProperties": False, **whole})


def nested_call(name: str, x: object) -> str:
    return hermes(json.dumps({"name": name, "arguments": {"p": {"x": x}}}))


NESTED = {"tools": [nested("f", "integer"), nested("g", "string")], "tool_choice": "required"}
CASES = [
    # calls
    (TALK + HERMES, MUST, [hermes(WEATHER), hermes(NOW, WEATHER)], ["text", WEATHER, hermes(NOW) + "x", ""]),
    (TALK + HERMES, MUST, [], [hermes(WEATHER.replace("Oslo", "Rome")), hermes(NOW.replace("now", "other"))]),
    (TALK + HERMES, {**MUST, "parallel_tool_calls": False}, [hermes(NOW)], [hermes(NOW, NOW)]),
    (TALK + HERMES, {"tools": TOOLS, "tool_choice": NAMED}, [hermes(NOW)], [hermes(WEATHER)]),
    (TALK + LLAMA, MUST, [NOW.replace("arguments", "parameters")], [NOW, hermes(NOW)]),
    (QUIET + HERMES, NESTED, [nested_call("f", 1), nested_call("g", "a")], [nested_call("f", "a")]),
    # a form and tools: either
    (TALK + HERMES, {"tools": TOOLS, **FORM}, ['{"x": 1}', hermes(NOW)], ["text", '{"x": 1}' + hermes(NOW)]),
    (TALK + HERMES, {"tools": TOOLS, "tool_choice": "none", **FORM}, ['{"x": 1}'], [hermes(NOW)]),
    # reasoning first
    (THINKS, FORM, ['{"x": 1}', '<think>so {</think>\n\n{"x": 1}'], ["so {", '<think>so {"x": 1}']),
    (OPENS, FORM, ['so {</think>\n\n{"x": 1}'], ['{"x": 1}', 'so</think>no']),
    (OPENS + HERMES, MUST, ["so</think>\n" + hermes(NOW)], [hermes(NOW)]),
    (OPENS, {"guided_regex": "a+"}, ["so</think>aa"], ["so</think>ab", "aa"]),
    (OPENS, {"guided_choice": ["yes", 'n"o']}, ["</think>yes", 'so</think>\nn"o'], ["</think>no"]),
    (OPENS, {"guided_grammar": 'root ::= "a" | "b" root'}, ["</think>bba"], ["</think>bb"]),
    (OPENS, {"guided_grammar": 'start: "a" | "b" start'}, ["</think>bba"], ["</think>bb"]),
]  # fmt: skip


@pytest.mark.parametrize(("template", "body", "good", "bad"), CASES, ids=range(len(CASES)))
@pytest.mark.parametrize("special", [(), MARKS], ids=["text", "tokens"])
def test_what_the_engine_enforces(enforced, template, body, good, bad, special):
    assert enforced(template, body, good + bad, special) == [True] * len(good) + [False] * len(bad)


def test_nothing_is_enforced_where_nothing_is_asked(enforced):
    assert enforced(THINKS + HERMES, {"tools": TOOLS}, []) is None
    assert enforced(THINKS + HERMES, {"tools": TOOLS, "tool_choice": "none"}, []) is None


REFUSED = [
    (XML, MUST, "tool_choice"),
    (XML, {"tools": TOOLS, **FORM}, "tool_choice"),
    (HERMES, {**MUST, **FORM}, "tool_choice"),
    (HERMES, {**MUST, "ignore_eos": True}, "ignore_eos"),
    (HERMES, {**MUST, "min_tokens": 2}, "min_tokens"),
    (HERMES, {"tools": [BROKEN], "tool_choice": "required"}, "tools"),
    # the reply would end behind its first call
    (HERMES, {"tools": TOOLS, "parallel_tool_calls": False, "min_tokens": 2}, "min_tokens"),
    (HERMES, {"tools": TOOLS, "parallel_tool_calls": False, "ignore_eos": True}, "ignore_eos"),
]  # fmt: skip


@pytest.mark.parametrize(("template", "body", "param"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_enforced_is_refused(serve, canned, tokenizer, check, template, body, param):
    server = serve(canned.engine("fine"), TextTokenizer(tokenizer._tokenizer, ChatTemplate(TALK + template, {})))
    check(server.http.post("/v1/chat/completions", json={**CHAT, **body}), 400, param)
    assert not server.service.engine.requests


def test_all_tools_together_are_bounded(serve, canned, tokenizer, check):
    """Each of them may be large, but compiling holds up the engine."""
    server = serve(canned.engine("fine"), TextTokenizer(tokenizer._tokenizer, ChatTemplate(QUIET + HERMES, {})))
    body = {**CHAT, "tools": LARGE, "tool_choice": "required"}
    error = check(server.http.post("/v1/chat/completions", json=body), 400, "tools")
    assert "longer than" in error["message"]
    assert server.http.post("/v1/chat/completions", json={**body, "tool_choice": "auto"}).status_code == 200


def test_a_demanded_call_is_told_as_one(serve, canned, tokenizer):
    server = serve(canned.engine(hermes(WEATHER)), TextTokenizer(tokenizer._tokenizer, ChatTemplate(TALK + HERMES, {})))
    (choice,) = server.http.post("/v1/chat/completions", json={**CHAT, **MUST}).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"city": "Oslo"})
    assert choice["finish_reason"] == "tool_calls"
