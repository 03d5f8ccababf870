"""What a chat's reply has to follow: its form, calls that it must make, and before either the model's reasoning.

The parts are grammars of their own, put together as llguidance allows: ``reasoning? (answer | calls)``.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from llguidance import LLMatcher

from redraft.server.errors import invalid
from redraft.server.limits import MAX_GRAMMAR_CHARS
from redraft.server.output.calls import CallParser
from redraft.server.output.reasoning import Tags
from redraft.server.schema_chat import ChatRequest
from redraft.server.schema_tools import NamedTool, Tool
from redraft.server.service import Service
from redraft.server.structured import PLAIN_JSON, check_ends, enforced, refused
from redraft.server.text import TextTokenizer

SPACE = r"SPACE: /\s{0,4}/"
"""What may stand between reasoning and the answer."""


async def chat_grammar(service: Service, body: ChatRequest, tools: list[Tool], opened: bool) -> str | None:
    """The grammar for a reply that may call ``tools``; None for free text.

    ``opened``: the prompt ends inside the model's reasoning.  400 when what is asked for cannot be enforced.
    """
    answer, must_call = await enforced(body), bool(tools) and body.tool_choice != "auto"
    if must_call and body.form is not None:
        raise invalid(
            "tool_choice", f"cannot demand a call beside {body.form.param}: one reply is not both.", "conflict"
        )
    if answer is None and not must_call:
        return None
    tags, calls = service.formats.tags, service.formats.calls
    if must_call:
        check_ends(body, "tool_choice")
    if tags is None and not tools:
        return answer
    parts = []
    if answer is not None:
        parts.append({"name": "answer", **_as_part(answer)})
    if tools and calls is not None:
        parts.append({"name": "call", "json_schema": _calls_schema(calls, _callable(body, tools))})
    outer = _outer(service.tokenizer, body, tags, opened, calls if tools else None, answer is not None)
    made = json.dumps({"grammars": [{"name": "reply", "lark_grammar": outer}, *parts]})
    # the form itself was checked before it became a part
    param = "tools" if tools or body.form is None else body.form.param
    if len(made) > MAX_GRAMMAR_CHARS:
        raise refused(param, f"all of it together is longer than {MAX_GRAMMAR_CHARS} characters")
    failed, found = await asyncio.to_thread(LLMatcher.validate_grammar_with_warnings, made)
    if failed:
        raise refused(param, found[0])
    return made


def _outer(
    tokenizer: TextTokenizer,
    body: ChatRequest,
    tags: Tags | None,
    opened: bool,
    calls: type[CallParser] | None,
    answers: bool,
) -> str:
    """How the parts stand together, in Lark's form."""
    kinds, rules = (["@answer"] if answers else []), list[str]()
    if calls is not None:
        kinds.append("calls")
        several = "" if calls.separator is None or not body.parallel_tool_calls else f"({_text(calls.separator)} one)*"
        rules.append(f"calls: one {several}")
        before, after = (_mark(tokenizer, mark) for mark in (calls.before, calls.after))
        rules.append(f"one: {before} @call {after}")
    start = "reply"
    if tags is not None:
        thought = "thought SPACE"
        start = f"{thought} reply" if opened else f"({_mark(tokenizer, tags.open)} {thought})? reply"
        end = tokenizer.special_id(tags.close)
        if end is None:
            rules.append(f"thought[suffix={_text(tags.close)}]: /(?s:.*)/")
        else:
            rules += [f"thought: THOUGHT <[{end}]>", "THOUGHT: /(?s:.*)/"]
        rules.append(SPACE)
    return "\n".join([f"start: {start}", f"reply: {' | '.join(kinds)}", *rules])


def _callable(body: ChatRequest, tools: list[Tool]) -> list[Tool]:
    """The tools of which one has to be called, or may be."""
    if not isinstance(body.tool_choice, NamedTool):
        return tools
    return [tool for tool in tools if tool.function.name == body.tool_choice.function.name]


def _calls_schema(calls: type[CallParser], tools: list[Tool]) -> dict[str, Any]:
    """Of the object that stands for a call; 400 for models that write calls as something else."""
    if calls.arguments_key is None:
        raise invalid(
            "tool_choice",
            "This server cannot hold a model to the way in which this one writes tool calls: only tool_choice auto and "
            "none, without a form of the reply, are supported.",
            "unsupported_parameter",
        )
    kinds = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                # a resource of its own: what it refers to stands in itself
                calls.arguments_key: {"type": "object", **(tool.function.parameters or {}), "$id": f"tool:{number}"},
            },
            "required": ["name", calls.arguments_key],
            "additionalProperties": False,
        }
        for number, tool in enumerate(tools)
    ]
    return {"anyOf": kinds, "x-guidance": PLAIN_JSON}


def _as_part(grammar: str) -> dict[str, Any]:
    """A grammar as one of several, under another name."""
    if not grammar.startswith("{"):
        return {"lark_grammar": grammar}
    (only,) = json.loads(grammar)["grammars"]
    return {key: value for key, value in only.items() if key != "name" and value is not None}


def _mark(tokenizer: TextTokenizer, text: str) -> str:
    """``text``, which may begin with a tag that is a token of its own, and line breaks around it."""
    if not text:
        return ""
    bare = text.strip("\n")
    token = tokenizer.special_id(bare)
    if token is None:
        return _text(text)
    left, right = text[: text.index(bare)], text[text.index(bare) + len(bare) :]
    return " ".join([*([_text(left)] if left else []), f"<[{token}]>", *([_text(right)] if right else [])])


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
