"""A server with OpenAI's chat API under load: many streams at once, events stamped as they arrive.

Servers differ in what they take beside OpenAI's parameters.  What is worth having is asked for, and whatever a server
refuses by name is left out from then on.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

from redraft.benchmarks.load_clients import Answer, now
from redraft.benchmarks.load_stream import Transcript, answer_of
from redraft.benchmarks.measure import Ask
from redraft.benchmarks.openai_client import CONNECT_SECONDS, MAX_EVENT, SILENT_SECONDS, _events, _message
from redraft.server.engine.types import RedraftError

METRICS = "include_metrics"
"""Redraft's: what speculation did, with the last event."""
RUNNING_USAGE = "continuous_usage_stats"
"""vLLM's and SGLang's: tokens so far, with every event."""
SALT = "cache_salt"
"""Keeps prompts that are asked again from being found computed: in process they are not either."""


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
