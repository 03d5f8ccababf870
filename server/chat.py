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
from redraft.server.describe import GENERATION
from redraft.server.engine.types import EngineInfo
from redraft.server.errors import invalid
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
from redraft.server.reply_logprobs import ChatLogprobs, TokenBytes, chat_logprobs, prompt_logprobs
from redraft.server.respond import respond
from redraft.server.schemas import ChatRequest, Message
from redraft.server.service import ServiceDep
from redraft.server.structured import enforced
from redraft.server.text import TextTokenizer

router = APIRouter(route_class=StrictRoute, tags=["generation"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=GENERATION,
)
async def create_chat_completion(body: ChatRequest, request: Request, service: ServiceDep) -> Response:
    """Answer a conversation.  With `stream`, server-sent events that each hold a chunk, then `[DONE]`."""
    info = service.ready()
    service.check_model(body.model)
    service.check_room(info)
    text = await _render(service.tokenizer, body.messages)
    prompt = await tokenise(service.tokenizer, text, info, "messages", special_tokens=False)
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    sized = [(prompt, room(prompt, asked, None, info, "messages"))]
    grammar = await enforced(body)
    form = ChatForm(info, body, prompt, service.tokenizer.token_bytes)
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

    def __init__(self, info: EngineInfo, body: ChatRequest, prompt: Sequence[int], read: TokenBytes) -> None:
        """``read`` gives tokens' bytes, for log-probabilities."""
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._body = body
        self._prompt = prompt
        self._fingerprint = info.fingerprint
        self._read = read
        self._begun: set[int] = set()
        """Choices whose first chunk, with the role, was made."""

    def chunks(self, delta: Delta) -> Sequence[ChatChunk]:
        """The role first, then text, then an empty delta with the finish."""
        choices: list[ChatChunkChoice] = []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            choices.append(ChatChunkChoice(index=delta.index, delta=ChatDelta(role="assistant", content="")))
        if delta.text or delta.scored:
            new = ChatDelta(content=delta.text)
            choices.append(ChatChunkChoice(index=delta.index, delta=new, logprobs=self._logprobs(delta)))
        if delta.finish_reason is not None:
            choices.append(ChatChunkChoice(index=delta.index, delta=ChatDelta(), finish_reason=delta.finish_reason))
        return [self._chunk([choice]) for choice in choices]

    def usage_chunk(self) -> ChatChunk:
        """No choices."""
        return self._chunk([])

    def whole(self, deltas: Sequence[Delta]) -> ChatCompletion:
        """All choices."""
        told, top = None, self._body.prompt_logprobs
        if top is not None:
            told = prompt_logprobs(self._prompt, deltas[0].prompt, top, self._read)
        return ChatCompletion(
            id=self.id,
            created=self._created,
            model=self._body.model,
            system_fingerprint=self._fingerprint,
            choices=[
                ChatChoice(
                    index=delta.index,
                    message=AssistantMessage(content=delta.text),
                    logprobs=self._logprobs(delta),
                    # a whole reply is only made of choices that ended
                    finish_reason=cast("Finish", delta.finish_reason),
                )
                for delta in deltas
            ],
            prompt_logprobs=told,
        )

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        return None if self._body.tops is None else chat_logprobs(delta.scored, self._read)

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self._created,
            model=self._body.model,
            system_fingerprint=self._fingerprint,
            choices=choices,
        )
