"""What ``bench load`` sends: its levels, who is asked what in which order, and when requests arrive."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from redraft.benchmarks.measure import Ask
from redraft.benchmarks.prompts import PromptFile
from redraft.server.engine.types import RedraftError

MAX_CONCURRENCY = 1024
MAX_RATE = 10_000.0
TURNS_PER_USER = 3
"""Requests per user and level where nothing else is asked for: with fewer, a level is all start and end."""
ARRIVAL_SECONDS = 20
"""Arrivals of an open level cover as many seconds where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class Level:
    """One load.

    Closed, with ``concurrency``: so many users, each of whom asks again once answered.  Open, with ``rate``: requests
    arrive by chance, however many are waiting already.
    """

    requests: int
    concurrency: int | None = None
    rate: float | None = None
    """Requests per second, on average."""

    @property
    def name(self) -> str:
        """For people."""
        return f"concurrency {self.concurrency}" if self.rate is None else f"{self.rate:g} requests/s"


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a level."""

    number: int
    """Equal both ways: what is compared is what has the same number."""
    prompt: str
    ask: Ask


def read_concurrency(text: str) -> tuple[int, ...]:
    """``1,4,16`` -> users per level; raises ``RedraftError`` for anything else."""
    items = _items("--concurrency", text)
    # isdecimal() also takes other scripts' digits, and int() refuses thousands of digits
    if not all(item.isascii() and item.isdecimal() and len(item) < 5 for item in items):
        raise RedraftError(f"--concurrency {text!r} must be numbers from 1 to {MAX_CONCURRENCY}, such as 1,4,16")
    users = tuple(int(item) for item in items)
    if not all(1 <= user <= MAX_CONCURRENCY for user in users):
        raise RedraftError(f"--concurrency {text!r} must be numbers from 1 to {MAX_CONCURRENCY}, such as 1,4,16")
    _distinct("--concurrency", users)
    return users


def read_rates(text: str) -> tuple[float, ...]:
    """``0.5,2`` -> requests per second and level; raises ``RedraftError`` for anything else."""
    wrong = RedraftError(f"--rate {text!r} must be requests per second, above 0 and up to {MAX_RATE:g}, such as 0.5,2")
    try:
        rates = tuple(float(item) for item in _items("--rate", text))
    except ValueError:
        raise wrong from None
    if not all(math.isfinite(rate) and 0 < rate <= MAX_RATE for rate in rates):
        raise wrong
    _distinct("--rate", rates)
    return rates


def _items(option: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise RedraftError(f"{option} {text!r} must be numbers with commas between them")
    return items


def _distinct(option: str, values: Sequence[float]) -> None:
    if len(set(values)) < len(values):
        raise RedraftError(f"{option} names a level twice; --repeat measures every level several times")


def closed_levels(concurrency: Sequence[int], prompts: int, requests: int | None) -> list[Level]:
    """A level for each number of users; ``requests`` of each, by default enough to ask every prompt once."""
    return [Level(requests or max(TURNS_PER_USER * users, prompts), concurrency=users) for users in concurrency]


def open_levels(rates: Sequence[float], prompts: int, requests: int | None) -> list[Level]:
    """A level for each rate; ``requests`` of each, by default some seconds' worth and every prompt once."""
    return [Level(requests or max(math.ceil(ARRIVAL_SECONDS * rate), prompts), rate=rate) for rate in rates]


def round_robin(files: Sequence[PromptFile]) -> tuple[str, ...]:
    """First turns of all files: the first of each file, the second of each, and so on."""
    rows = zip_longest(*(file.conversations for file in files))
    return tuple(turns[0] for row in rows for turns in row if turns is not None)


def jobs(prompts: Sequence[str], requests: int, ask: Ask) -> tuple[Job, ...]:
    """``requests`` jobs that go through ``prompts`` in order, over and over; each has a seed of its own."""
    return tuple(
        Job(number, prompts[number % len(prompts)], Ask(ask.max_tokens, ask.temperature, ask.seed + number))
        for number in range(requests)
    )


def arrivals(rate: float, requests: int, seed: int) -> tuple[float, ...]:
    """Seconds from the start at which requests arrive, as a Poisson process has it; the first arrives at once."""
    chance = random.Random(seed)
    times = [0.0]
    while len(times) < requests:
        times.append(times[-1] + chance.expovariate(rate))
    return tuple(times)
