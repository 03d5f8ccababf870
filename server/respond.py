"""How a generation leaves the server: as server-sent events or as one JSON object, and never to a client that left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Protocol

import structlog
from fastapi import Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from redraft.server.choice import Delta
from redraft.server.errors import ApiError, internal_error
from redraft.server.generation import Generation
from redraft.server.limits import PING_SECONDS, THREAD_SCORES
from redraft.server.observe import CLIENT_CLOSED_REQUEST
from redraft.server.output.piece import CallDelta
from redraft.server.reader import Reader
from redraft.server.replies import Envelope, ReplyMetrics, Usage
from redraft.server.schemas import GenerationRequest

EVENTS_TOGETHER = 64
"""Most events in one write."""
log = structlog.get_logger(__name__)


class ReplyForm(Protocol):
    """One endpoint's way of writing a reply."""

    def chunks(self, delta: Delta) -> Sequence[Envelope]:
        """The chunks of a stream that show ``delta``."""

    def usage_chunk(self) -> Envelope:
        """A chunk without choices, to carry ``usage``."""

    def whole(self, deltas: Sequence[Delta]) -> Envelope:
        """The reply as one object; ``deltas`` has one per choice, with all of its text."""


async def respond(
    request: Request, body: GenerationRequest, generation: Generation, form: ReplyForm, max_nodes: int
) -> Response:
    """Run ``generation`` and answer ``request`` with it."""
    generation.start()
    if body.stream:
        return _EventStream(generation, _events(body, generation, form, max_nodes))
    work = asyncio.create_task(_collect(generation))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        deltas = generation.best(work.result())
        usage, metrics = generation.usage, _metrics(generation, max_nodes) if body.include_metrics else None
        write = partial(_whole, form, deltas, usage, metrics)
        text = await asyncio.to_thread(write) if _is_long(deltas) else write()
        return Response(text, media_type="application/json")
    finally:
        generation.close()
        work.cancel()
        gone.cancel()


def _whole(form: ReplyForm, deltas: Sequence[Delta], usage: Usage, metrics: ReplyMetrics | None) -> str:
    reply = form.whole(deltas)
    reply.usage, reply.metrics = usage, metrics
    if deltas[0].rounds:
        reply.rounds = list(deltas[0].rounds)
    return _json(reply, usage=True)


class _EventStream(EventSourceResponse):
    """A stream whose generation ends with it, however it ends."""

    def __init__(self, generation: Generation, events: AsyncIterator[bytes]) -> None:
        # as FastAPI's own event streams do: no cache, and no buffering by nginx
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(None) as limit:
                reader = Reader(send, lambda: self._generation.pending, lambda: limit.reschedule(0))
                try:
                    await super().__call__(scope, receive, reader.send)
                finally:
                    reader.close()
        except TimeoutError:
            if not limit.expired():
                raise
            # the response stays incomplete, for which uvicorn closes the connection
            log.warning("a client has stopped reading its stream and was cut off")
            self._generation.cut_off()
        finally:
            self._generation.close()


async def _events(
    body: GenerationRequest, generation: Generation, form: ReplyForm, max_nodes: int
) -> AsyncIterator[bytes]:
    made: list[bytes] = []
    try:
        while True:
            if made and (not generation.pending or len(made) >= EVENTS_TOGETHER):
                # what came meanwhile goes out together: a server that is behind catches up by it
                yield b"".join(made)
                made.clear()
                # neither a full queue nor a socket that takes everything lets go of the loop by itself
                await asyncio.sleep(0)
            try:
                async with asyncio.timeout(PING_SECONDS) as limit:
                    delta = await generation.next()
            except TimeoutError:
                if not limit.expired():
                    raise
                yield KEEPALIVE_COMMENT
                continue
            if delta is None:
                break
            is_last = delta.finish_reason is not None and body.include_metrics and not body.include_usage
            metrics = _metrics(generation, max_nodes) if is_last else None
            write = partial(_shown, form, delta, generation.usage if body.continuous_usage else None, metrics, body)
            made += await asyncio.to_thread(write) if _is_long([delta]) else write()
        if body.include_usage:
            last = form.usage_chunk()
            last.usage = generation.usage
            last.metrics = _metrics(generation, max_nodes) if body.include_metrics else None
            made.append(_event(last, body))
    except ApiError as error:
        made.append(format_sse_event(data_str=error.reply.model_dump_json()))
    except Exception:
        log.exception("stream failed")
        made.append(format_sse_event(data_str=internal_error().reply.model_dump_json()))
    made.append(format_sse_event(data_str="[DONE]"))
    yield b"".join(made)


def _shown(
    form: ReplyForm, delta: Delta, usage: Usage | None, metrics: ReplyMetrics | None, body: GenerationRequest
) -> list[bytes]:
    """The events that show ``delta``, each with ``usage``, the last one with ``metrics``."""
    chunks = form.chunks(delta)
    for chunk in chunks:
        chunk.usage = usage
    if metrics is not None:
        chunks[-1].metrics = metrics
    if delta.rounds:
        chunks[-1].rounds = list(delta.rounds)
    return [_event(chunk, body) for chunk in chunks]


def _is_long(deltas: Sequence[Delta]) -> bool:
    """Whether writing them would hold up other streams."""
    nodes = sum(len(each.nodes) for delta in deltas for each in delta.rounds)
    return nodes + sum(len(delta.scored) + len(delta.prompt) for delta in deltas) > THREAD_SCORES


def _event(chunk: Envelope, body: GenerationRequest) -> bytes:
    return format_sse_event(data_str=_json(chunk, usage=body.include_usage))


def _json(reply: Envelope, *, usage: bool) -> str:
    """``usage`` also where it is null, if at all; ``metrics`` and ``rounds`` only where there are some."""
    absent = {name for name in ("metrics", "rounds") if getattr(reply, name) is None} | (set() if usage else {"usage"})
    return reply.model_dump_json(exclude=absent)


def _metrics(generation: Generation, max_nodes: int) -> ReplyMetrics:
    (choice,) = generation.choices
    return choice.record.metrics(max_nodes)


async def _collect(generation: Generation) -> list[Delta]:
    """One delta per choice, in order, with all of its text."""
    parts: list[list[Delta]] = [[] for _ in generation.choices]
    while (delta := await generation.next()) is not None:
        parts[delta.index].append(delta)
    return [_joined(deltas) for deltas in parts]


def _joined(deltas: Sequence[Delta]) -> Delta:
    """A choice's deltas as one, which has a delta for each of its tool calls."""
    calls: dict[int, list[CallDelta]] = {}
    for delta in deltas:
        for call in delta.calls:
            calls.setdefault(call.index, []).append(call)
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        scored=tuple(chain.from_iterable(delta.scored for delta in deltas)),
        rounds=tuple(chain.from_iterable(delta.rounds for delta in deltas)),
        prompt=deltas[0].prompt,
        reasoning="".join(delta.reasoning for delta in deltas),
        calls=tuple(replace(parts[0], arguments="".join(part.arguments for part in parts)) for parts in calls.values()),
    )


async def _disconnected(request: Request) -> None:
    """Returns once the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
