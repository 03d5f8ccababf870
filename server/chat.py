"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import cast

from fastapi import APIRouter, Request, Response

from redraft.server.body import StrictRoute
from redraft.server.chat_grammar import chat_grammar
from redraft.server.choice import Delta
from redraft.server.conversation import callable_tools, encode, reader_of, render, thinks_already
from redraft.server.describe import GENERATION
from redraft.server.engine.types import EngineInfo
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
from redraft.server.reply_logprobs import ChatLogprobs, TokenBytes, chat_logprobs, prompt_logprobs
from redraft.server.respond import respond
from redraft.server.schema_chat import ChatRequest
from redraft.server.service import ServiceDep

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
    async with service.admission.preparing(info.max_num_seqs) as since:
        effort = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
        tools = callable_tools(service, body)
        text = await render(service, body, tools, body.chat_template_kwargs | effort)
        prompt = await encode(service, info, body, text)
        asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        sized = [(prompt, room(prompt, asked, None, info, "messages"))]
        opened = thinks_already(service, body, text)
        grammar = await chat_grammar(service, body, tools, opened)
    form = ChatForm(info, body, prompt, service.tokenizer.token_bytes)
    reader = reader_of(service, body, tools, opened=opened)
    generation = plan(service, info, body, form.id, sized, since, grammar, reader)
    return await respond(request, body, generation, form, info.max_nodes)


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
        """The role first, then reasoning, text and tool calls, then an empty delta with the finish."""
        choices: list[ChatChunkChoice] = []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            choices.append(ChatChunkChoice(index=delta.index, delta=ChatDelta(role="assistant", content="")))
        for number, new in enumerate(_deltas(delta)):
            # log-probabilities are of the text as it was made, whatever it became
            told = None if number else self._logprobs(delta)
            choices.append(ChatChunkChoice(index=delta.index, delta=new, logprobs=told))
        if delta.finish_reason is not None:
            choices.append(ChatChunkChoice(index=delta.index, delta=ChatDelta(), finish_reason=delta.finish_reason))
        if not choices:
            # a round that shows nothing yet
            choices.append(ChatChunkChoice(index=delta.index, delta=ChatDelta(content="")))
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
                    message=_message(delta),
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


def _deltas(delta: Delta) -> list[ChatDelta]:
    """What is new of a turn, one kind at a time."""
    new = [ChatDelta(reasoning_content=delta.reasoning)] if delta.reasoning else []
    if delta.text or (delta.scored and not (delta.reasoning or delta.calls)):
        new.append(ChatDelta(content=delta.text))
    return new + [ChatDelta(tool_calls=[_tool_delta(call)]) for call in delta.calls]


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
