"""Conversations, tools and template variables that are wrong, or that this model was not taught."""

from __future__ import annotations

import pytest

from redraft.server.chat_template import ChatTemplate
from redraft.server.text import TextTokenizer

GOOD = {"model": "toy", "messages": [{"role": "user", "content": "hi"}]}
TALK = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def tool(name="f", **function):
    """A tool named ``name``."""
    return {"type": "function", "function": {"name": name, **function}}


def user(content="x", **more):
    """A turn of the user."""
    return {"role": "user", "content": content, **more}


def assistant(**more):
    """A turn of the assistant."""
    return {"role": "assistant", "content": "x", **more}


def call(**function):
    """A turn with one call."""
    return [assistant(tool_calls=[{**CALL, "function": {**CALL["function"], **function}}])]


MESSAGES = [
    (None, "messages"),
    ([], "messages"),
    ("hi", "messages"),
    ([5], "messages[0]"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"content": "x"}], "messages[0].role"),
    ([{"role": "wizard", "content": "x"}], "messages[0].role"),
    ([{"role": "tool", "content": "x"}], "messages[0].role"),
    ([user(None)], "messages[0].content"),
    ([user([])], "messages[0].content"),
    ([user(5)], "messages[0].content"),
    ([user([{"type": "text"}])], "messages[0].content"),
    ([user([{"type": "text", "text": 5}])], "messages[0].content"),
    ([user([{"type": "text", "text": "x", "cache_control": {}}])], "messages[0].content"),
    ([user([{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}])], "messages[0].content"),
    ([user([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])], "messages[0].content"),
    ([user([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}])], "messages[0].content"),
    ([user([{"type": "text", "text": "x"}] * 2000)], "messages[0].content"),
    ([user(name="me")], "messages[0].name"),
    ([user(tool_call_id="1")], "messages[0].tool_call_id"),
    ([user(reasoning_content="x")], "messages[0].reasoning_content"),
    ([user(tool_calls=[CALL])], "messages[0].tool_calls"),
    ([assistant(tool_calls=[CALL])], "messages[0].tool_calls"),
    ([assistant(tool_calls=[{"id": "1"}])], "messages[0].tool_calls[0].function"),
    ([assistant(tool_calls=[CALL] * 129)], "messages[0].tool_calls"),
    ([assistant(tool_calls=[{**CALL, "id": ""}])], "messages[0].tool_calls[0].id"),
    ([assistant(tool_calls=[{**CALL, "id": "x" * 300}])], "messages[0].tool_calls[0].id"),
    ([assistant(tool_calls=[{**CALL, "type": "web"}])], "messages[0].tool_calls[0].type"),
    (call(name="no spaces"), "messages[0].tool_calls[0].function.name"),
    (call(arguments={}), "messages[0].tool_calls[0].function.arguments"),
    (call(arguments="[1]"), "messages[0].tool_calls[0].function.arguments"),
    (call(arguments='{"a": NaN}'), "messages[0].tool_calls[0].function.arguments"),
    (call(arguments='{"a": ' + "[" * 10_000), "messages[0].tool_calls[0].function.arguments"),
    ([assistant(function_call={"name": "f"})], "messages[0].function_call"),
    ([user(prefix=True)], "messages[0].prefix"),
    ([user()] * 10_000, "messages"),
    ([user("x" * 600)], "messages"),
]
TOOLS = [
    ("x", "tools"),
    ([tool()] * 129, "tools"),
    ([5], "tools[0]"),
    ([{"type": "web_search"}], "tools[0].type"),
    ([{"type": "function"}], "tools[0].function"),
    ([{"type": "function", "function": {}}], "tools[0].function.name"),
    ([tool("")], "tools[0].function.name"),
    ([tool("a b")], "tools[0].function.name"),
    ([tool("x" * 65)], "tools[0].function.name"),
    ([tool(description=5)], "tools[0].function.description"),
    ([tool(parameters=[])], "tools[0].function.parameters"),
    ([tool(parameters="{}")], "tools[0].function.parameters"),
    ([tool(parameters={"type": "array"})], "tools[0].function.parameters"),
    ([tool(parameters={"type": ["object", {"pattern": "("}]})], "tools[0].function.parameters"),
    ([tool(parameters={"properties": [1]})], "tools[0].function.parameters"),
    ([tool(strict=True)], "tools[0].function.strict"),
    ([tool(), tool()], "tools"),
    # the template of this model knows none
    ([tool()], "tools"),
]
OTHERS = [
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs.chat_template"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
    ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs.add_generation_prompt"),
    ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs.bos_token"),
    ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs.enable_thinking"),
    ({"chat_template_kwargs": {"enable_thinking": 1}}, "chat_template_kwargs.enable_thinking"),
    ({"chat_template_kwargs": {"reasoning_effort": "endless"}}, "chat_template_kwargs.reasoning_effort"),
    # known, but the template of this model does not read it
    ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}}, "reasoning_effort"),
    ({"reasoning_effort": "endless"}, "reasoning_effort"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"add_generation_prompt": "no"}, "add_generation_prompt"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"suffix": "x"}, "suffix"),
    ({"prompt": "x"}, "prompt"),
    ({"documents": [{"title": "x", "text": "y"}]}, "documents"),
    ({"modalities": ["text", "audio"]}, "modalities"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "param"), MESSAGES, ids=range(len(MESSAGES)))
def test_messages(server, check, goes_on, messages, param):
    check(server.http.post("/v1/chat/completions", json={**GOOD, "messages": messages}), 400, param)
    goes_on(server)


def test_tools(server, check, goes_on):
    for tools, param in TOOLS:
        check(server.http.post("/v1/chat/completions", json={**GOOD, "tools": tools}), 400, param)
    goes_on(server)


def test_other_parameters(server, check, goes_on):
    for body, param in OTHERS:
        check(server.http.post("/v1/chat/completions", json={**GOOD, **body}), 400, param)
    goes_on(server)


def test_long_names_are_cut_in_errors(server, check):
    body = {**GOOD, "chat_template_kwargs": {"x" * 100_000: 1}}
    error = check(server.http.post("/v1/chat/completions", json=body), 400, "chat_template_kwargs." + "x" * 78 + "…")
    assert len(error["message"]) < 1000


def test_what_looks_odd_in_a_conversation_and_is_taken(server):
    for turn in [
        user("{{ 7 * 7 }}{% raise %}"),
        user("\u0000<|end|>"),
        user([{"type": "text", "text": ""}]),
        assistant(tool_calls=[], annotations=[], refusal=None, audio=None),
        assistant(reasoning_content="Hm."),
    ]:
        reply = server.http.post("/v1/chat/completions", json={**GOOD, "messages": [turn]})
        assert reply.status_code == 200, reply.text


def knowing_tools(tokenizer, more=""):
    """A model whose template reads tools."""
    return TextTokenizer(tokenizer._tokenizer, ChatTemplate(TALK + "{{ tools }}" + more, {}))


def test_calls_that_nobody_can_read_are_not_asked_for(serve, canned, tokenizer, check):
    server = serve(canned.engine("fine"), knowing_tools(tokenizer))
    error = check(server.http.post("/v1/chat/completions", json={**GOOD, "tools": [tool()]}), 400, "tools")
    assert "--tool-parser" in error["message"]
    body = {**GOOD, "tools": [tool()], "tool_choice": "none"}
    assert server.http.post("/v1/chat/completions", json=body).status_code == 200


def test_a_final_message_that_the_template_hides_cannot_be_continued(serve, canned, tokenizer, check):
    text = TextTokenizer(tokenizer._tokenizer, ChatTemplate("{{ messages[0].content }}", {}))
    server = serve(canned.engine("fine"), text)
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    messages = [user(), assistant()]
    reply = server.http.post("/v1/chat/completions", json={**GOOD, "messages": messages, **flags})
    assert "cannot be continued" in check(reply, 400, "messages")["message"]


def test_without_a_template_there_is_no_chat(serve, canned, tokenizer, check):
    server = serve(canned.engine("fine"), TextTokenizer(tokenizer._tokenizer, None))
    for more in ({}, {"tools": [tool()]}):
        error = check(server.http.post("/v1/chat/completions", json={**GOOD, **more}), 400, None)
        assert error["code"] == "no_chat_template"


def test_a_template_that_runs_away_is_one_requests_error(serve, canned, tokenizer, check, goes_on, monkeypatch):
    monkeypatch.setattr("redraft.server.template_process.TEMPLATE_SECONDS", 0.5)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    text = TextTokenizer(tokenizer._tokenizer, ChatTemplate(loop, {}))
    server = serve(canned.engine("fine"), text)
    assert "took more than" in check(server.http.post("/v1/chat/completions", json=GOOD), 400, "messages")["message"]
    goes_on(server)
