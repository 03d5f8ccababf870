"""From a conversation to a prompt: what the model's chat template can take, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redraft.server.chat_template import ChatTemplate, ChatTemplateError, RenderOptions
from redraft.server.engine.types import EngineInfo
from redraft.server.errors import invalid
from redraft.server.intake import tokenise
from redraft.server.output.reader import OutputReader
from redraft.server.output.reasoning import ReasoningSplitter
from redraft.server.schema_chat import ChatRequest, Conversation, Message
from redraft.server.schema_tools import Tool
from redraft.server.service import Service
from redraft.server.structured import check_ends
from redraft.server.template_process import TemplateProcess


async def render(service: Service, body: Conversation, tools: list[Tool], variables: dict[str, Any]) -> str:
    """The conversation as the target was taught to read it, with ``tools`` shown; 400 when it was not taught that."""
    renderer = _renderer(service)
    template = renderer.template
    _check(template, body, variables)
    options = RenderOptions(
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        tools=[tool.model_dump(exclude_none=True) for tool in tools] or None,
        variables=variables,
    )
    try:
        return await renderer.render([_turn(message) for message in body.messages], options)
    except ChatTemplateError as error:
        raise invalid("messages", str(error), "invalid_messages") from error


async def encode(service: Service, info: EngineInfo, body: Conversation, text: str) -> tuple[int, ...]:
    """Token ids of a rendered conversation."""
    return await tokenise(service.tokenizer, text, info, "messages", special_tokens=body.add_special_tokens)


def known_tools(service: Service, body: Conversation) -> list[Tool]:
    """The tools of ``body``; 400 when the model was not taught to read any."""
    if body.tools and not _renderer(service).template.knows_tools:
        raise invalid("tools", "This model's chat template knows no tools; leave them out.", "tools_not_supported")
    return body.tools


def callable_tools(service: Service, body: ChatRequest) -> list[Tool]:
    """The tools that the reply may call; 400 when that cannot be as asked for."""
    if not body.tools or body.tool_choice == "none":
        return []
    tools = known_tools(service, body)
    if service.formats.calls is None:
        raise invalid(
            "tools",
            "This server does not know how this model writes tool calls (see --tool-parser); leave the tools out, or "
            'give tool_choice: "none".',
            "tools_not_supported",
        )
    if not body.parallel_tool_calls:
        check_ends(body, "parallel_tool_calls: false")
    return tools


def thinks_already(service: Service, body: ChatRequest, prompt: str) -> bool:
    """Whether a reply to ``prompt`` begins inside the model's reasoning."""
    tags = service.formats.tags
    if tags is None:
        return False
    return tags.left_open(body.messages[-1].content or "") if body.continue_final_message else tags.opened_by(prompt)


def reader_of(
    service: Service, body: ChatRequest, tools: list[Tool], *, opened: bool
) -> Callable[[], OutputReader] | None:
    """Makes what reads a reply that may call ``tools``; None where a reply is nothing but text.

    ``opened``: it begins inside the model's reasoning (``thinks_already``).
    """
    tags, calls = service.formats.tags, service.formats.calls if tools else None
    if tags is None and calls is None:
        return None
    schemas = {tool.function.name: tool.function.parameters or {} for tool in tools}
    most = None if body.parallel_tool_calls else 1
    return lambda: OutputReader(
        None if tags is None else ReasoningSplitter(tags, opened=opened),
        None if calls is None else calls(schemas, most=most),
    )


def _renderer(service: Service) -> TemplateProcess:
    if service.templates is None:
        raise invalid(None, "This model has no chat template; use /v1/completions.", "no_chat_template")
    return service.templates


def _check(template: ChatTemplate, body: Conversation, variables: dict[str, Any]) -> None:
    """400 for what the template would pass over."""
    for name in variables:
        if name not in template.variables:
            param = name if name not in body.chat_template_kwargs else f"chat_template_kwargs.{name}"
            raise invalid(param, f"This model's chat template does not read '{name}'.", "unsupported_parameter")
    if template.knows_tools:
        return
    for number, message in enumerate(body.messages):
        if message.tool_calls is not None or message.role == "tool":
            param = f"messages[{number}].{'role' if message.role == 'tool' else 'tool_calls'}"
            raise invalid(param, "This model's chat template knows no tools.", "tools_not_supported")


def _turn(message: Message) -> dict[str, Any]:
    """One message as templates read it."""
    # beside tool calls the content may be missing, and templates join texts
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message.content or "",
    }
    if message.tool_calls is not None:
        turn["tool_calls"] = [
            {"type": call.type, "function": {"name": call.function.name, "arguments": call.function.parsed}}
            | ({} if call.id is None else {"id": call.id})
            for call in message.tool_calls
        ]
    for name in ("reasoning_content", "tool_call_id", "name"):
        if (value := getattr(message, name)) is not None:
            turn[name] = value
    return turn
