"""What the operator sees of a request: its id, its line in the log, its place in metrics and traces.

Pure ASGI, so that streams pass through untouched.  A route tells what it makes of a request by ``note``; everything is
read once the answer has ended, however it ended.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from redraft.server.errors import REQUEST_ID, clip
from redraft.server.limits import MAX_LOGGED_CHARS, MAX_REQUEST_ID_CHARS
from redraft.server.metrics import Metrics
from redraft.server.record import ChoiceRecord, Counts
from redraft.server.schemas import GenerationRequest
from redraft.server.settings import ServerSettings

CLIENT_CLOSED_REQUEST = 499
_UNSAFE = re.compile(r"[^A-Za-z0-9._:/+=@-]")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a route makes of a request."""

    reply_id: str
    body: GenerationRequest
    draft: str
    prompts: int
    records: Sequence[ChoiceRecord]
    """Of every choice, as many of each prompt, prompt by prompt."""

    @property
    def by_prompt(self) -> list[Sequence[ChoiceRecord]]:
        """The choices of each prompt."""
        each = len(self.records) // self.prompts
        return [self.records[first : first + each] for first in range(0, len(self.records), each)]

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each once."""
        return sum(records[0].prompt_tokens for records in self.by_prompt)

    @property
    def tokens(self) -> int:
        """Made for all choices."""
        return sum(record.tokens for record in self.records)

    @property
    def counts(self) -> Counts:
        """Of all choices."""
        return sum((record.counts for record in self.records), Counts())

    @property
    def finish(self) -> str:
        """How the choices ended, each way once; who has not ended by now was cancelled."""
        ends = {"cancelled" if record.finish is None else record.finish.value for record in self.records}
        return ",".join(sorted(ends))

    @property
    def prompt(self) -> str:
        """What was asked, as JSON that is safe to print, cut where it is long."""
        asked = self.body.model_dump(mode="json", include={"prompt", "messages"})
        return clip(json.dumps(next(iter(asked.values()), None)), MAX_LOGGED_CHARS)


@dataclass(slots=True)
class Observed:
    """One request on its way through the server."""

    request_id: str
    method: str
    path: str
    headers: Sequence[tuple[bytes, bytes]] = ()
    started_ns: int = field(default_factory=time.time_ns)
    """Nanoseconds since 1970."""
    begun: float = field(default_factory=time.perf_counter)
    status: int | None = None
    """None while there is no answer."""
    asked: Asked | None = None

    @property
    def generates(self) -> bool:
        """Whether it goes to a route that makes something, and so gets a line."""
        return self.method == "POST" and self.path.startswith("/v1/")


class Traces(Protocol):
    """Where requests go as traces (tracing.py)."""

    def request(self, observed: Observed) -> None:
        """``observed`` has ended."""


_current: ContextVar[Observed | None] = ContextVar("observed", default=None)


def note(asked: Asked) -> None:
    """Tell the observer what the request at hand asks for."""
    observed = _current.get()
    if observed is not None:
        observed.asked = asked


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's ``X-Request-Id``, cut and without what does not belong in an id; else one of our own."""
    given = next((value for name, value in headers if name == REQUEST_ID.encode()), b"")
    kept = _UNSAFE.sub("", given[: 4 * MAX_REQUEST_ID_CHARS].decode("ascii", "ignore"))
    return kept[:MAX_REQUEST_ID_CHARS] or uuid.uuid4().hex


class Observer:
    """The outermost part of the app."""

    def __init__(self, app: ASGIApp, metrics: Metrics, settings: ServerSettings, traces: Traces | None = None) -> None:
        self.app = app
        self._metrics = metrics
        self._settings = settings
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        observed = Observed(request_id(scope["headers"]), scope["method"], scope["path"], scope["headers"])
        # for the answer to what nobody caught, which is made outside
        scope[REQUEST_ID] = observed.request_id

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                observed.status = message["status"]
                own = (REQUEST_ID.encode(), observed.request_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), own]}
            await send(message)

        token = _current.set(observed)
        try:
            with structlog.contextvars.bound_contextvars(request_id=observed.request_id):
                await self.app(scope, receive, answer)
        except Exception:
            observed.status = 500 if observed.status is None else observed.status
            raise
        finally:
            _current.reset(token)
            self._ended(observed, scope)

    def _ended(self, observed: Observed, scope: Scope) -> None:
        if observed.status is None:
            observed.status = CLIENT_CLOSED_REQUEST
        self._metrics.answered(getattr(scope.get("route"), "path", "other"), observed.status)
        if not observed.generates:
            return
        if observed.asked is not None:
            self._count(observed.asked)
        log.info("request", **self._line(observed))
        if self._traces is not None:
            self._traces.request(observed)

    def _count(self, asked: Asked) -> None:
        """What is known of a prompt once all of its choices have ended."""
        recorder = self._metrics.recorder(asked.draft)
        for records in asked.by_prompt:
            if any(record.rounds for record in records):
                recorder.observe("request_params_n", asked.body.n)
                recorder.observe("request_max_num_generation_tokens", max(record.tokens for record in records))

    def _line(self, observed: Observed) -> dict[str, object]:
        """Of the log; what a request that was refused has not got is left out."""
        line: dict[str, object] = {
            "request_id": observed.request_id,
            "path": observed.path,
            "status": observed.status,
            "duration_ms": _ms(time.perf_counter() - observed.begun),
        }
        asked = observed.asked
        if asked is None:
            return line
        counts = asked.counts
        line |= {
            "reply_id": asked.reply_id,
            "model": self._settings.served_model_name,
            "draft": asked.draft,
            "stream": asked.body.stream,
            "choices": len(asked.records),
            "prompt_tokens": asked.prompt_tokens,
            "tokens": asked.tokens,
            "rounds": counts.rounds,
            "drafted": counts.drafted,
            "accepted": counts.accepted,
            "finish": asked.finish,
        }
        if counts.rounds:
            line["acceptance_length"] = round(counts.committed / counts.rounds, 3)
        times = [record.times for record in asked.records if record.times is not None]
        if times:
            # of the choice that came first
            soonest = min(times, key=lambda each: each.queue + each.prefill)
            line["queue_ms"] = _ms(soonest.queue)
            line["first_token_ms"] = _ms(soonest.queue + soonest.prefill)
            line["decode_ms"] = _ms(max(each.decode for each in times))
        if self._settings.log_prompts:
            line["prompt"] = asked.prompt
        return line


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
