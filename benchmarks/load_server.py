"""A server with OpenAI's chat API under load: many streams at once, events stamped as they arrive.

Servers differ in what they take beside OpenAI's parameters.  What is worth having is asked for, and whatever a server
refuses by name is left out from then on.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from redraft.benchmarks.load_clients import Answer, Event, now
from redraft.benchmarks.measure import Ask
from redraft.benchmarks.openai_client import CONNECT_SECONDS, MAX_EVENT, SILENT_SECONDS, _events, _message
from redraft.server.engine.types import RedraftError

METRICS = "include_metrics"
"""Redraft's: what speculation did, with the last event."""
RUNNING_USAGE = "continuous_usage_stats"
"""vLLM's and SGLang's: tokens so far, with every event."""
SALT = "cache_salt"
"""Keeps prompts that are asked again from being found computed: in process they are not either."""


@dataclass(slots=True)
class Transcript:
    """What a stream held."""

    moments: list[tuple[float, int | None]] = field(default_factory=list)
    """When text or tokens came, and how many tokens there were by then where the server says so."""
    text: str = ""
    ended: float = 0.0
    """When the stream said why it ends."""
    usage: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def take(self, event: dict[str, Any], at: float) -> None:
        """Note one event that arrived at ``at`` seconds."""
        text = "".join(_text(choice) for choice in event.get("choices") or [])
        if any(choice.get("finish_reason") for choice in event.get("choices") or []):
            self.ended = at
        self.usage = event.get("usage") or self.usage
        self.metrics = event.get("metrics") or self.metrics
        running = self.usage.get("completion_tokens") if event.get("choices") else None
        grown = running is not None and running > max((tokens or 0 for _, tokens in self.moments), default=0)
        if text or grown:
            self.text += text
            self.moments.append((at, running))


def answer_of(transcript: Transcript) -> Answer:
    """The answer that a transcript tells of; raises ``RedraftError`` where tokens cannot be counted."""
    total = transcript.usage.get("completion_tokens")
    if total is None:
        raise RedraftError("the server sends no usage with stream_options.include_usage; tokens cannot be counted")
    # an end of turn shows no text
    moments = transcript.moments or ([(transcript.ended, None)] if transcript.ended else [])
    if not moments or total < 1:
        raise RedraftError("the server answered without a token")
    counts = _told(moments, total)
    told = counts is not None
    events = zip(moments, counts or _spread(len(moments), total, transcript.metrics), strict=True)
    speculation = transcript.metrics.get("speculative_decoding") or {}
    # the histogram counts accepted tokens from 0 up; a round commits one more
    rounds = speculation.get("acceptance_histogram")
    return Answer(
        tuple(Event(at, tokens) for (at, _), tokens in events),
        total,
        (transcript.text,),
        tuple(rounds) if rounds else None,
        speculation.get("num_draft_tokens"),
        counted=told,
    )


def _told(moments: Sequence[tuple[float, int | None]], total: int) -> list[float] | None:
    """Tokens of each event, where the server told how many there were by then; the last gets what no event showed."""
    running = [0, *(tokens for _, tokens in moments if tokens is not None)]
    if len(running) <= len(moments):
        return None
    running[-1] = total
    return [float(after - before) for before, after in zip(running, running[1:], strict=False)]


def _spread(events: int, total: int, metrics: dict[str, Any]) -> list[float]:
    """``total`` tokens evenly over the events; the first one's apart where metrics tell how many came after it."""
    mean, generating = metrics.get("mean_itl_ms"), metrics.get("generation_time_ms")
    later = round(generating / mean) if mean and generating and events > 1 else 0
    if 0 < later < total:
        return [float(total - later), *[later / (events - 1)] * (events - 1)]
    return [total / events] * events


def _text(choice: dict[str, Any]) -> str:
    """Text that a chunk adds; some servers send what a model thinks to itself apart from what it says."""
    delta = choice.get("delta") or {}
    return "".join(delta.get(name) or "" for name in ("reasoning", "reasoning_content", "content"))


class ServerUnderLoad:
    """A running server, and an async context manager that holds its connections."""

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        """``url`` with or without a trailing ``/v1``; without ``model`` the server's first one is taken."""
        base = url.rstrip("/")
        self.base = base if base.endswith("/v1") else f"{base}/v1"
        self.model = model
        self.extras = [METRICS, RUNNING_USAGE, SALT]
        """What is asked for beside OpenAI's parameters and was not refused."""
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def __aenter__(self) -> Self:
        # the loop decides how many requests run: no limit of connections on top
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS),
            read_bufsize=MAX_EVENT,
        )
        try:
            self.model = self.model or await self._first_model()
        except BaseException as error:
            await self._session.close()
            raise self._mendable(error) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def answer(self, prompt: str, ask: Ask) -> Answer:
        """Ask ``prompt``; raises ``RedraftError`` when the server cannot be reached, refuses or breaks off."""
        try:
            while True:
                extras = tuple(self.extras)
                transcript = await self._ask(self._body(prompt, ask, extras), extras)
                if transcript is not None:
                    return answer_of(transcript)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise self._mendable(error) from error

    def _body(self, prompt: str, ask: Ask, extras: Sequence[str]) -> dict[str, Any]:
        running = {RUNNING_USAGE: True} if RUNNING_USAGE in extras else {}
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "stream": True,
            "stream_options": {"include_usage": True, **running},
        }
        own = {METRICS: True, SALT: uuid.uuid4().hex}
        return body | {name: value for name, value in own.items() if name in extras}

    async def _ask(self, body: dict[str, Any], extras: Sequence[str]) -> Transcript | None:
        """What the server streams; None when it refused some of ``extras``, which are left out from then on."""
        async with self._session.post(f"{self.base}/chat/completions", json=body) as response:
            if response.status in (400, 422):
                text = await response.text()
                refused = [name for name in extras if name in text]
                self.extras = [name for name in self.extras if name not in refused]
                if refused:
                    return None
            await _check(response)
            transcript = Transcript()
            async for event in _events(response):
                if "error" in event:
                    raise RedraftError(f"{self.base}: {_message(event)}")
                transcript.take(event, now())
            return transcript

    async def _first_model(self) -> str:
        async with self._session.get(f"{self.base}/models") as response:
            await _check(response)
            models = (await response.json(content_type=None)).get("data")
        if not models:
            raise RedraftError(f"{self.base}/models lists no model; name one with --model")
        return str(models[0]["id"])

    def _mendable(self, error: BaseException) -> BaseException:
        if not isinstance(error, aiohttp.ClientError | TimeoutError | ValueError):
            return error
        reason = str(error) or type(error).__name__
        return RedraftError(f"{self.base} does not answer as an OpenAI server would ({reason})")


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = await response.text()
    try:
        message = _message(json.loads(text))
    except ValueError:
        message = text
    raise RedraftError(f"{response.method} {response.url} gave status {response.status}: {message[:300]}")
