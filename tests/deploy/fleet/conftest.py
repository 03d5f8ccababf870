"""Load on a fleet: requests without a pause, half of them streamed, each remembered with how it ended."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

TOKENS = 600


@dataclass
class Attempt:
    prompt: str
    stream: bool
    started: float
    ended: float = 0.0
    text: str | None = None
    """None where it failed."""
    error: str = ""


class Load:
    """Clients of one address, and what all of their attempts have to have in common."""

    clients = 6

    @staticmethod
    async def ask(session: aiohttp.ClientSession, url: str, prompt: str, *, stream: bool) -> Attempt:
        """One request, through to its end."""
        attempt = Attempt(prompt, stream, time.monotonic())
        body = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        try:
            async with session.post(f"{url}/v1/completions", json=body | {"stream": stream}) as reply:
                raw = (await reply.read()).decode()
                if reply.status != 200:
                    raise ValueError(f"{reply.status} {raw[:200]}")
            if not stream:
                attempt.text = json.loads(raw)["choices"][0]["text"]
            else:
                events = [line.removeprefix("data: ") for line in raw.splitlines() if line.startswith("data: ")]
                if not events or events.pop() != "[DONE]":
                    raise ValueError("the stream was cut off")
                attempt.text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
        except (aiohttp.ClientError, ValueError, KeyError, TimeoutError) as error:
            attempt.error = f"{type(error).__name__}: {error}"
        attempt.ended = time.monotonic()
        return attempt

    @asynccontextmanager
    async def running(self, url: str) -> AsyncIterator[list[Attempt]]:
        """Requests without a pause while the context lasts; the list has all of them when it ends."""
        attempts: list[Attempt] = []
        stopping = asyncio.Event()

        async def client(number: int) -> None:
            while not stopping.is_set():
                prompt = f"prompt {number} {len(attempts) % 5}"
                attempts.append(await self.ask(session, url, prompt, stream=len(attempts) % 2 == 0))

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            clients = [asyncio.create_task(client(number)) for number in range(self.clients)]
            try:
                yield attempts
            finally:
                stopping.set()
                await asyncio.gather(*clients)

    @staticmethod
    def check_texts(attempts: list[Attempt]) -> None:
        """Whoever answers, streamed or not: the same prompt has the same text."""
        texts: dict[str, set[str]] = {}
        for attempt in attempts:
            if attempt.text is not None:
                assert attempt.text
                texts.setdefault(attempt.prompt, set()).add(attempt.text)
        assert [prompt for prompt, found in texts.items() if len(found) > 1] == []


@pytest.fixture(scope="session")
def load() -> Load:
    """See ``Load``."""
    return Load()


@pytest.fixture(scope="session")
def get() -> Callable[[str], str | None]:
    """What a URL answers with 200, else None."""

    def read(url: str) -> str | None:
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                return str(reply.read().decode())
        except (OSError, urllib.error.HTTPError):
            return None

    return read
