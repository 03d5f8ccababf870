"""Forms that a client may ask of a reply: what reaches the engine, and what is refused."""

from __future__ import annotations

import json

import pytest
from llguidance import LLMatcher

from redraft.server.limits import MAX_GRAMMAR_CHARS

GOOD = {"model": "toy", "prompt": "hi"}
GOOD_CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
NAMED = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True, "description": "x"}}
BOTH_WAYS = [("/v1/completions", GOOD), ("/v1/chat/completions", GOOD_CHAT)]


@pytest.fixture(scope="module")
def lasting(running, canned):
    with running(canned.engine("fine")) as server:
        yield server


@pytest.fixture
def server(lasting):
    """Its engine has seen nothing yet."""
    lasting.service.engine.requests.clear()
    return lasting


def grammar_of(server, tokenizer_folder, body) -> LLMatcher:
    """A matcher of what the engine was asked to enforce."""
    from llguidance import LLTokenizer

    (request,) = server.service.engine.requests
    tokenizer = LLTokenizer((tokenizer_folder / "tokenizer.json").read_text(), eos_token=request_end(server))
    matcher = LLMatcher(tokenizer, request.grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def request_end(server) -> int:
    return server.service.engine.info.eos_token_ids[0]


def takes(matcher: LLMatcher, tokenizer, text: str) -> bool:
    """Whether the grammar takes all of ``text`` and may end there."""
    state = matcher.deep_copy()
    return state.consume_tokens(list(tokenizer.encode(text))) and state.is_accepting()


FORMS = [
    ({"response_format": {"type": "json_object"}}, ['{"x": [1, null]}', "{}"], ["[1]", '{"x":1}', '{"x": 1']),
    ({"response_format": NAMED}, ['{"a": 12}'], ['{"a": "12"}', '{"a": 1, "b": 2}', "{}"]),
    ({"structured_outputs": {"json": SCHEMA}}, ['{"a": 12}'], ['{"a":12}', "{}"]),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, ['{"a": 12}'], ["{}"]),
    ({"structured_outputs": {"json": True}}, ["[1, 2]", '"x"', "{}"], ["[1,2]", "x"]),
    ({"structured_outputs": {"json_object": True}}, ["{}"], ["[]"]),
    ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " *"}}, ['{  "a":12 }'], ['{\n"a": 12}']),
    ({"structured_outputs": {"regex": "(a|b)+c"}}, ["abac"], ["ab", "abacc", "xc"]),
    ({"structured_outputs": {"choice": ["yes", 'no "way" \\', "日本"]}}, ["yes", 'no "way" \\', "日本"], ["no", "日"]),
    ({"structured_outputs": {"grammar": 'root ::= "a" | "b" root'}}, ["bba"], ["bb", "ab"]),
    ({"structured_outputs": {"grammar": 'start: "a" | "b" start'}}, ["bba"], ["bb", "ab"]),
    ({"guided_json": SCHEMA}, ['{"a": 12}'], ["{}"]),
    ({"guided_regex": "x{2}"}, ["xx"], ["x", "xxx"]),
    ({"guided_choice": ["l", "ö"]}, ["l", "ö"], ["lö"]),
    ({"guided_grammar": 'start: "a"+'}, ["aa"], ["ab", ""]),
]


@pytest.mark.parametrize(("asked", "good", "bad"), FORMS, ids=range(len(FORMS)))
@pytest.mark.parametrize(("path", "body"), BOTH_WAYS)
def test_what_the_engine_enforces(server, tokenizer, tokenizer_folder, path, body, asked, good, bad) -> None:
    reply = server.http.post(path, json=body | asked)
    assert reply.status_code == 200, reply.text
    matcher = grammar_of(server, tokenizer_folder, body)
    assert [takes(matcher, tokenizer, text) for text in good] == [True] * len(good)
    assert [takes(matcher, tokenizer, text) for text in bad] == [False] * len(bad)


NO_FORM = [{}, {"response_format": {"type": "text"}}, {"response_format": None}, {"structured_outputs": None}]


@pytest.mark.parametrize("asked", NO_FORM, ids=json.dumps)
def test_free_text_has_no_grammar(server, asked) -> None:
    assert server.http.post("/v1/chat/completions", json=GOOD_CHAT | asked).status_code == 200
    assert server.service.engine.requests[0].grammar is None


def named(schema: object) -> dict[str, object]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


REFUSED = [
    *[
        ({"response_format": value}, "response_format")
        for value in ({}, {"type": "xml"}, {"type": []}, "json_object", 5, [])
    ],
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
    (named(5), "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
    ({"response_format": {"type": "text", "(text)": {}}}, "response_format.(text)"),
    ({"guided_json": 3}, "guided_json"),
    ({"structured_outputs": {"json": ""}}, "structured_outputs.json"),
    ({"(text)": 1}, "(text)"),
    (named({"type": "objekt"}), "response_format"),
    (named({"$ref": "http://example.com/schema.json"}), "response_format"),
    (named({"$ref": "#/nowhere"}), "response_format"),
    (named({"type": "object", "unevaluatedProperties": False}), "response_format"),
    (named({"type": "object", "unevaluatedProperties": False, "x-guidance": {"lenient": True}}), "response_format"),
    (named(False), "response_format"),
    *[({"structured_outputs": value}, None) for value in ({}, {"json_object": False}, {"regex": "a", "choice": ["b"]})],
    *[({"structured_outputs": value}, None) for value in ({"choice": []}, {"choice": [""]}, {"choice": ["a"] * 1025})],
    ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, None),
    ({"structured_outputs": {"regex": "a", "backend": "x"}}, None),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
    ({"structured_outputs": {"json": "[" * 10000}}, "structured_outputs"),
    ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": "(["}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "(["}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a(?=b)"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a" * (MAX_GRAMMAR_CHARS + 1)}}, None),
    ({"structured_outputs": {"grammar": "(((("}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs"),
    ({"structured_outputs": {"grammar": "start: <|end|>"}}, "structured_outputs"),
    ({"guided_json": {"type": 5}}, "guided_json"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ({"guided_regex": "a", "min_tokens": 2, "max_tokens": 5}, "min_tokens"),
]


@pytest.mark.parametrize(("asked", "param"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_enforced_is_refused(server, asked, param) -> None:
    for path, body in BOTH_WAYS:
        reply = server.http.post(path, json=body | asked)
        assert reply.status_code == 400, reply.text
        assert len(reply.content) < 4096
        error = reply.json()["error"]
        assert error["message"].isprintable()
        if param is not None:
            assert error["param"] == param
    assert not server.service.engine.requests
