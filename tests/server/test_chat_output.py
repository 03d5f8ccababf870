"""Reasoning and tool calls in replies: whole and streamed, with the official client, and what the model is shown."""

from __future__ import annotations

import json

import openai
import pytest

from redraft.server.chat_template import ChatTemplate
from redraft.server.engine.types import FinishReason
from redraft.server.text import TextTokenizer

TEMPLATE = """{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- for tool in tools or [] %}{{ tool | tojson }}{{ "<tool_call>" }}{% endfor %}
{%- for message in messages %}
{{- "<" + message.role + ">" }}
{%- if message.reasoning_content %}{{ "<think>" + message.reasoning_content + "</think>" }}{% endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- call.id + ":" + call.function.name + (call.function.arguments | tojson) }}{% endfor %}
{{- (message.tool_call_id or "") + (message.name or "") + "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<assistant>" }}{% if enable_thinking is defined and enable_thinking %}{{ "<think>\\n" }}{% endif %}
{{- reasoning_effort | default("") }}
{%- endif %}"""
TURNS = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CHAT = {"model": "toy", "messages": TURNS}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "}é"}}\n</tool_call>'


@pytest.fixture(scope="module")
def text(tokenizer):
    """The toy tokenizer with a template that knows tools and reasoning."""
    return TextTokenizer(tokenizer._tokenizer, ChatTemplate(TEMPLATE, {}))


@pytest.fixture
def ask(serve, canned, text):
    """The choice, usage and requests where the engine answers ``answer``; checks that streams say the same."""

    def asked(answer, body=None, finish=FinishReason.STOP, **settings):
        server = serve(canned.scripted(lambda request: canned.rounds(answer, finish=finish)), text, **settings)
        whole = server.http.post("/v1/chat/completions", json={**CHAT, **(body or {})})
        assert whole.status_code == 200, whole.text
        options = {"include_usage": True}
        streamed = {**CHAT, **(body or {}), "stream": True, "stream_options": options}
        events = server.http.post("/v1/chat/completions", json=streamed).text.split("\n\n")[:-2]
        *chunks, last = [json.loads(event[6:]) for event in events]
        message, finish = joined(chunks)
        (choice,) = whole.json()["choices"]
        theirs = choice["message"]
        for call in [*(theirs.get("tool_calls") or []), *message["tool_calls"]]:
            assert call.pop("id").startswith("call_")
        assert (theirs["content"] or "") == message["content"]
        assert theirs.get("reasoning_content", "") == message["reasoning_content"]
        assert theirs.get("tool_calls", []) == message["tool_calls"]
        assert choice["finish_reason"] == finish
        assert last["usage"] == whole.json()["usage"]
        return choice, whole.json()["usage"], server.service.engine.requests

    return asked


def joined(chunks):
    """The message that a stream's deltas make, and the finish."""
    message = {"content": "", "reasoning_content": "", "tool_calls": []}
    finish = None
    for chunk in chunks:
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        message["content"] += delta.get("content", "")
        message["reasoning_content"] += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", []):
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append(
                    {
                        "id": call["id"],
                        "type": call["type"],
                        "function": {"name": call["function"]["name"], "arguments": ""},
                    }
                )
            else:
                assert set(call) == {"index", "function"}
            message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        finish = choice["finish_reason"] or finish
    return message, finish


def test_a_call(ask):
    choice, _, (request, _) = ask(f"Let me see.\n{CALL}", {"tools": [TOOL]})
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    (call,) = choice["message"]["tool_calls"]
    assert call == {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "}é"}'}}
    assert request.prompt


def test_calls_alone_have_no_content(ask):
    choice, _, _ = ask(CALL * 2, {"tools": [TOOL]})
    assert choice["message"]["content"] is None
    assert len(choice["message"]["tool_calls"]) == 2


def test_a_call_that_is_cut_off(ask):
    choice, _, _ = ask(CALL[:50], {"tools": [TOOL]}, finish=FinishReason.LENGTH)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1, '


@pytest.mark.parametrize("body", [{"tools": [TOOL], "tool_choice": "none"}, {}, {"tools": []}])
def test_text_is_not_read_for_calls_where_there_are_no_tools(ask, text, body):
    choice, _, (request, _) = ask(CALL, body)
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert "tool_calls" not in choice["message"]
    assert request.prompt == text.encode("<user>hi\n<assistant>")


def test_what_only_looks_like_a_call(ask):
    answer = '<tool_call>{"name": "subtract", "arguments": {}}</tool_call>  '
    choice, _, _ = ask(answer, {"tools": [TOOL]})
    assert (choice["message"]["content"], choice["finish_reason"]) == (answer, "stop")


def test_one_call_only(ask, text):
    choice, usage, _ = ask(CALL * 3, {"tools": [TOOL], "parallel_tool_calls": False})
    assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (1, "tool_calls")
    # the reply ends with the token that completes the arguments
    end = CALL.index("}}\n") + 1
    assert usage["completion_tokens"] == len(text.encode(CALL[:end]))


def test_the_model_sees_tools_and_earlier_calls(ask, text):
    called = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        *TURNS,
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "2"},
    ]
    described = {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": {}, "strict": False},
    }
    _, _, (request, _) = ask("ok", {"messages": turns, "tools": [described]})
    shown = '{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}<tool_call>'
    assert request.prompt == text.encode(
        shown + '<user>hi\n<assistant><think>Hm.</think>c1:add{"a": 1}\n<tool>2c1add\n<assistant>'
    )


@pytest.mark.parametrize(
    ("answer", "body", "reasoning", "content", "tokens"),
    [
        pytest.param("<think>\nHmé.\n</think>\n\nYes.", {}, "Hmé.", "Yes.", 22, id="tagged"),
        pytest.param(
            "Hm.\n</think>\nYes.", {"chat_template_kwargs": {"enable_thinking": True}}, "Hm.", "Yes.", 12, id="opened"
        ),
        pytest.param("Yes.", {"chat_template_kwargs": {"enable_thinking": False}}, None, "Yes.", 0, id="none"),
        pytest.param("<think>Hm", {}, "Hm", "", 10, id="unfinished"),
        pytest.param(
            "<think>Hm</think>Yes", {"stop": ["Y"], "include_stop_str_in_output": True}, "Hm", "Y", 17, id="stopped"
        ),
    ],
)
def test_reasoning(ask, answer, body, reasoning, content, tokens):
    choice, usage, _ = ask(answer, body)
    message = choice["message"]
    assert (message.get("reasoning_content"), message["content"]) == (reasoning, content)
    assert usage["completion_tokens_details"] == {"reasoning_tokens": tokens}


def test_a_long_reasoning(ask):
    thought = "wäit " * 1400
    choice, usage, _ = ask(f"<think>{thought}</think>{CALL}", {"tools": [TOOL]})
    assert choice["message"]["reasoning_content"] == thought.strip()
    assert choice["finish_reason"] == "tool_calls"
    # "ä" is two bytes
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 15 + 6 * 1400


def test_the_operator_may_turn_the_readers_off(ask):
    answer = "<think>Hm</think>Yes"
    choice, usage, _ = ask(answer, reasoning_parser="none")
    assert choice["message"]["content"] == answer
    assert "completion_tokens_details" not in usage


def test_the_operator_may_choose_another_reader(ask):
    choice, _, _ = ask('{"name": "add", "parameters": {}}', {"tools": [TOOL]}, tool_parser="llama3")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}


def test_variables_of_the_template(serve, canned, check, ask, text):
    one, other = {"reasoning_effort": "low"}, {"chat_template_kwargs": {"reasoning_effort": "low"}}
    for body in (one, other, {**one, **other}):
        _, _, (request, _) = ask("ok", body)
        assert request.prompt == text.encode("<user>hi\n<assistant>low")
    both = {**CHAT, "reasoning_effort": "high", **other}
    check(serve(canned.engine("ok"), text).http.post("/v1/chat/completions", json=both), 400, "reasoning_effort")


def test_continuing_the_final_message(ask, text):
    turns = [*TURNS, {"role": "assistant", "content": "<think>so far "}]
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    choice, _, (request, _) = ask("and on</think>Yes", {"messages": turns, **flags})
    assert request.prompt == text.encode("<user>hi\n<assistant><think>so far ")
    assert choice["message"]["reasoning_content"] == "and on"
    _, _, (request, _) = ask("ok", {"add_generation_prompt": False})
    assert request.prompt == text.encode("<user>hi\n")


def test_the_official_client_reads_calls_and_reasoning(serve, canned, text):
    server = serve(canned.scripted(lambda request: canned.rounds(f"<think>Hm.</think>{CALL}")), text)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        message = client.chat.completions.create(model="toy", messages=TURNS, tools=[TOOL]).choices[0].message
        assert message.reasoning_content == "Hm."
        assert json.loads(message.tool_calls[0].function.arguments) == {"a": 1, "b": "}é"}
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "2"}
        again = client.chat.completions.create(model="toy", messages=[*TURNS, message, result], tools=[TOOL])
        assert again.choices[0].finish_reason == "tool_calls"
        with client.chat.completions.stream(model="toy", messages=TURNS, tools=[TOOL]) as stream:
            final = stream.get_final_completion().choices[0]
        assert final.message.tool_calls[0].function.arguments == '{"a": 1, "b": "}é"}'
