"""Decoder over any server with OpenAI's chat API: streams, counts by ``usage``, times from request to last event.

A server that takes ``include_metrics`` tells how many tokens its rounds committed; one that refuses it by name is asked
without.  Text alone comes back, so parity and loops are judged by words.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from redraft.benchmarks.measure import Ask, Message, Reply
from redraft.server.engine.types import RedraftError

CONNECT_SECONDS = 10
SILENT_SECONDS = 600
"""How long a server may say nothing; a queue in front of it counts."""
MAX_EVENT = 1 << 20
"""Longest event in bytes."""

T = TypeVar("T")


class OpenAIServer:
    """A server as a decoder, and a context manager that holds the connection."""

    def __init__(self, url: str, model: str | None = None, api_key: str | None = None) -> None:
        """``url`` with or without a trailing ``/v1``; without ``model`` the server's first one is taken."""
        base = url.rstrip("/")
        self.base = base if base.endswith("/v1") else f"{base}/v1"
        self.model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._take_metrics = True
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        try:
            self.model = self._run(self._open())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._runner.run(self._session.close())
        self._runner.close()

    def answer(self, messages: Sequence[Message], ask: Ask) -> Reply:
        """The assistant's next turn; raises ``RedraftError`` when the server cannot be reached or refuses."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return self._run(self._ask(body))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self._runner.run(work)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise RedraftError(f"{self.base} does not answer as an OpenAI server would ({reason})") from error

    async def _open(self) -> str:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout, read_bufsize=MAX_EVENT)
        if self.model is not None:
            return self.model
        async with self._session.get(f"{self.base}/models") as response:
            await self._check(response)
            models = (await response.json(content_type=None)).get("data")
        if not models:
            raise RedraftError(f"{self.base}/models lists no model; name one with --model")
        return str(models[0]["id"])

    async def _ask(self, body: dict[str, Any]) -> Reply:
        asked = {**body, "include_metrics": True} if self._take_metrics else body
        started = time.perf_counter()
        async with self._session.post(f"{self.base}/chat/completions", json=asked) as response:
            refused = response.status in (400, 422) and "include_metrics" in await response.text()
            if not (refused and self._take_metrics):
                await self._check(response)
                return await self._read(response, started)
        self._take_metrics = False
        return await self._ask(body)

    async def _read(self, response: aiohttp.ClientResponse, started: float) -> Reply:
        parts: list[str] = []
        usage: dict[str, Any] = {}
        metrics: dict[str, Any] = {}
        async for event in _events(response):
            if "error" in event:
                raise RedraftError(f"{self.base}: {_message(event)}")
            for choice in event.get("choices") or []:
                parts.append((choice.get("delta") or {}).get("content") or "")
            usage = event.get("usage") or usage
            metrics = event.get("metrics") or metrics
        seconds = time.perf_counter() - started
        if "completion_tokens" not in usage:
            raise RedraftError(
                f"{self.base} sends no usage with stream_options.include_usage, so its tokens cannot be counted"
            )
        text = "".join(parts)
        # the histogram counts accepted tokens from 0 up; a round commits one more
        rounds = (metrics.get("speculative_decoding") or {}).get("acceptance_histogram")
        return Reply(seconds, usage["completion_tokens"], tuple(text.split()), text, tuple(rounds) if rounds else None)

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status < 400:
            return
        text = await response.text()
        try:
            message = _message(json.loads(text))
        except ValueError:
            message = text
        raise RedraftError(f"{response.method} {response.url} gave status {response.status}: {message[:300]}")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON events of a stream, read to its end so that the connection can be used again."""
    async for line in response.content:
        name, _, data = line.decode().partition(":")
        data = data.strip()
        if name == "data" and data != "[DONE]":
            yield json.loads(data)


def _message(reply: Any) -> str:
    """The message of an error in OpenAI's layout, or all of it."""
    error = reply.get("error") if isinstance(reply, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or reply)
