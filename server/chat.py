"""``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import cast

from fastapi import APIRouter, Request, Response

from redraft.server.body import StrictRoute
from redraft.server.chat_template import ChatTemplateError
from redraft.server.choice import Delta
from redraft.server.engine.types import EngineInfo
from redraft.server.errors import ErrorReply, invalid
from redraft.server.intake import plan, room, tokenise
from redraft.server.replies import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    Finish,
)
from redraft.server.respond import respond
from redraft.server.schemas import ChatRequest, Message
from redraft.server.service import ServiceDep
from redraft.server.structured import enforced
from redraft.server.text import TextTokenizer

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
    text = await _render(service.tokenizer, body.messages)
    prompt = await tokenise(service.tokenizer, text, info, "messages", special_tokens=False)
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    sized = [(prompt, room(prompt, asked, None, info, "messages"))]
    grammar = await enforced(body)
    form = ChatForm(info, body.model)
    return await respond(request, body, plan(service, info, body, form.id, sized, grammar), form, info.max_nodes)


async def _render(tokenizer: TextTokenizer, messages: Sequence[Message]) -> str:
    """The conversation as the target was taught to read it; in a thread, for a template is a program."""
    template = tokenizer.chat_template
    if template is None:
        raise invalid(None, "This model has no chat template; use /v1/completions.", "no_chat_template")
    turns = [
        {"role": "system" if message.role == "developer" else message.role, "content": message.content}
        for message in messages
    ]
    try:
        return await asyncio.to_thread(template.render, turns)
    except ChatTemplateError as error:
        raise invalid("messages", str(error), "invalid_messages") from error


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
        """The role first, then text, then an empty delta with the finish."""
        deltas: list[tuple[ChatDelta, Finish | None]] = []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            deltas.append((ChatDelta(role="assistant", content=""), None))
        if delta.text or delta.rounds:
            deltas.append((ChatDelta(content=delta.text), None))
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
                    message=AssistantMessage(content=delta.text),
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
