"""What ``bench load`` asks: a client answers one prompt and tells when which tokens came.

A client stamps the events itself, where they arrive.  Seconds are those of the event loop's clock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from redraft.benchmarks.measure import Ask
from redraft.server.engine.client import EngineClient
from redraft.server.engine.types import RedraftError, Request, SamplingParams


@dataclass(frozen=True, slots=True)
class Event:
    """Tokens that arrived together."""

    at: float
    """Seconds."""
    tokens: float
    """Not a whole number where a server's total was spread over its events."""


@dataclass(frozen=True, slots=True)
class Answer:
    """All that came of one request."""

    events: tuple[Event, ...]
    """In order, at least one."""
    tokens: int
    units: tuple[Hashable, ...]
    """What parity is judged by: token ids, or the text where a server tells only that."""
    rounds: tuple[int, ...] | None
    """How many rounds committed 1, 2, 3 ... tokens; None where the server does not tell."""
    drafted: int | None
    """Nodes verified in all rounds, roots not counted; None where the server does not tell."""
    counted: bool
    """Whether the events' tokens were told one by one, not spread."""


class Client(Protocol):
    """Something under load: an engine's process or a server."""

    async def answer(self, prompt: str, ask: Ask) -> Answer:
        """Ask ``prompt`` as a user's first message; raises ``RedraftError`` when the request fails."""


def now() -> float:
    """Seconds, by the clock of the running loop."""
    return asyncio.get_running_loop().time()


def histogram(committed: Sequence[int]) -> tuple[int, ...]:
    """How many of ``committed`` are 1, 2, 3 ..."""
    counts = Counter(committed)
    return tuple(counts[tokens] for tokens in range(1, max(committed, default=0) + 1))


class EngineUnderLoad:
    """An engine's process; what is timed begins with the engine's ``submit``, tokenising is not in it."""

    def __init__(self, engine: EngineClient, encode: Callable[[str], tuple[int, ...]]) -> None:
        """``encode`` gives the token ids of a prompt in the chat template."""
        self._engine = engine
        self._encode = encode
        self._numbers = count()

    async def answer(self, prompt: str, ask: Ask) -> Answer:
        """Ask ``prompt``; raises ``RedraftError`` when the engine refuses or has ended."""
        params = SamplingParams(max_tokens=ask.max_tokens, temperature=ask.temperature, seed=ask.seed)
        request = Request(f"load-{next(self._numbers)}", self._encode(prompt), params)
        events: list[Event] = []
        committed: list[int] = []
        tokens: list[int] = []
        drafted = 0
        async with aclosing(self._engine.generate(request)) as outputs:
            async for output in outputs:
                if output.error is not None:
                    raise RedraftError(output.error)
                if output.tokens:
                    events.append(Event(now(), len(output.tokens)))
                    committed.append(len(output.tokens))
                    tokens += output.tokens
                drafted += output.drafted
        if not tokens:
            raise RedraftError("the engine answered without a token")
        return Answer(tuple(events), len(tokens), tuple(tokens), histogram(committed), drafted, counted=True)
