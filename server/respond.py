"""How a generation leaves the server: as server-sent events or as one JSON object, and never to a client that left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import structlog
from fastapi import Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from redraft.server.choice import Delta
from redraft.server.errors import ApiError, internal_error
from redraft.server.generation import Generation
from redraft.server.limits import PING_SECONDS
from redraft.server.observe import CLIENT_CLOSED_REQUEST
from redraft.server.replies import Envelope, ReplyMetrics
from redraft.server.schemas import GenerationRequest

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
        reply = form.whole(work.result())
        reply.usage = generation.usage
        if body.include_metrics:
            reply.metrics = _metrics(generation, max_nodes)
        return Response(_json(reply, usage=True), media_type="application/json")
    finally:
        generation.close()
        work.cancel()
        gone.cancel()


class _EventStream(EventSourceResponse):
    """A stream whose generation ends with it, however it ends."""

    def __init__(self, generation: Generation, events: AsyncIterator[bytes]) -> None:
        # as FastAPI's own event streams do: no cache, and no buffering by nginx
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.close()


async def _events(
    body: GenerationRequest, generation: Generation, form: ReplyForm, max_nodes: int
) -> AsyncIterator[bytes]:
    try:
        while True:
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
            chunks = form.chunks(delta)
            if delta.finish_reason is not None and body.include_metrics and not body.include_usage:
                chunks[-1].metrics = _metrics(generation, max_nodes)
            for chunk in chunks:
                yield _event(chunk, body)
            # neither a full queue nor a socket that takes everything lets go of the loop by itself
            await asyncio.sleep(0)
        if body.include_usage:
            last = form.usage_chunk()
            last.usage = generation.usage
            last.metrics = _metrics(generation, max_nodes) if body.include_metrics else None
            yield _event(last, body)
    except ApiError as error:
        yield format_sse_event(data_str=error.reply.model_dump_json())
    except Exception:
        log.exception("stream failed")
        yield format_sse_event(data_str=internal_error().reply.model_dump_json())
    yield format_sse_event(data_str="[DONE]")


def _event(chunk: Envelope, body: GenerationRequest) -> bytes:
    return format_sse_event(data_str=_json(chunk, usage=body.include_usage))


def _json(reply: Envelope, *, usage: bool) -> str:
    """``usage`` also where it is null, if at all; ``metrics`` only where there are some."""
    absent = ({"metrics"} if reply.metrics is None else set()) | (set() if usage else {"usage"})
    return reply.model_dump_json(exclude=absent)


def _metrics(generation: Generation, max_nodes: int) -> ReplyMetrics:
    (choice,) = generation.choices
    return choice.record.metrics(max_nodes)


async def _collect(generation: Generation) -> list[Delta]:
    """One delta per choice, in order, with all of its text."""
    texts: list[list[str]] = [[] for _ in generation.choices]
    ends: dict[int, Delta] = {}
    while (delta := await generation.next()) is not None:
        texts[delta.index].append(delta.text)
        if delta.finish_reason is not None:
            ends[delta.index] = delta
    return [Delta(index, "".join(text), ends[index].finish_reason) for index, text in enumerate(texts)]


async def _disconnected(request: Request) -> None:
    """Returns once the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
