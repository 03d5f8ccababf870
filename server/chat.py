"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import cast

from fastapi import APIRouter, Request, Response

from redraft.server.body import StrictRoute
from redraft.server.choice import Delta
from redraft.server.conversation import callable_tools, encode, reader_of, render
from redraft.server.engine.types import EngineInfo
from redraft.server.errors import ErrorReply
from redraft.server.intake import plan, room
from redraft.server.output.piece import CallDelta
from redraft.server.replies import Finish
from redraft.server.replies_chat import (
    AssistantMessage,
    CalledFunction,
    CalledTool,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    FunctionDelta,
    ToolDelta,
)
from redraft.server.respond import respond
from redraft.server.schema_chat import ChatRequest
from redraft.server.service import ServiceDep

router = APIRouter(route_class=StrictRoute, tags=["generation"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={
        "4XX": {"model": ErrorReply, "description": "The request is at fault."},
        503: {"model": ErrorReply, "description": "Loading, draining, or the engine has ended."},
    },
)
async def create_chat_completion(body: ChatRequest, request: Request, service: ServiceDep) -> Response:
    """Answer a conversation.  With `stream`, server-sent events that each hold a chunk, then `[DONE]`."""
    info = service.ready()
    service.check_model(body.model)
    effort = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
    tools = callable_tools(service, body)
    text = await render(service, body, tools, body.chat_template_kwargs | effort)
    prompt = await encode(service, info, body, text)
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    sized = [(prompt, room(prompt, asked, None, info, "messages"))]
    form = ChatForm(info, body.model)
    generation = plan(service, info, body, form.id, sized, reader_of(service, body, tools, text))
    return await respond(request, body, generation, form, info.max_nodes)


class ChatForm:
    """A chat completion's chunks and whole reply."""

    def __init__(self, info: EngineInfo, model: str) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._fingerprint = info.fingerprint
        self._begun: set[int] = set()
        """Choices whose first chunk, with the role, was made."""

    def chunks(self, delta: Delta) -> Sequence[ChatChunk]:
        """The role first, then reasoning, text and tool calls, then an empty delta with the finish."""
        deltas: list[tuple[ChatDelta, Finish | None]] = []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            deltas.append((ChatDelta(role="assistant", content=""), None))
        if delta.reasoning:
            deltas.append((ChatDelta(reasoning_content=delta.reasoning), None))
        if delta.text:
            deltas.append((ChatDelta(content=delta.text), None))
        deltas += [(ChatDelta(tool_calls=[_tool_delta(call)]), None) for call in delta.calls]
        if delta.finish_reason is not None:
            deltas.append((ChatDelta(), delta.finish_reason))
        return [
            self._chunk([ChatChunkChoice(index=delta.index, delta=new, finish_reason=reason)]) for new, reason in deltas
        ]

    def usage_chunk(self) -> ChatChunk:
        """No choices."""
        return self._chunk([])

    def whole(self, deltas: Sequence[Delta]) -> ChatCompletion:
        """All choices."""
        return ChatCompletion(
            id=self.id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=[
                ChatChoice(
                    index=delta.index,
                    message=_message(delta),
                    # a whole reply is only made of choices that ended
                    finish_reason=cast("Finish", delta.finish_reason),
                )
                for delta in deltas
            ],
        )

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
        )


def _message(delta: Delta) -> AssistantMessage:
    """A whole turn."""
    calls = [
        CalledTool(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
        for call in delta.calls
    ]
    return AssistantMessage(
        content=None if calls and not delta.text else delta.text,
        reasoning_content=delta.reasoning or None,
        tool_calls=calls or None,
    )


def _tool_delta(call: CallDelta) -> ToolDelta:
    return ToolDelta(
        index=call.index,
        id=call.id or None,
        type="function" if call.id else None,
        function=FunctionDelta(name=call.name or None, arguments=call.arguments),
    )
