"""The loops of ``bench load``: users who ask again, or requests that arrive; both ways, pass by pass.

What was measured stands in the ``LevelRun`` at any moment, so that whatever ends a run early takes nothing away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from redraft.benchmarks.cost_energy import EnergyMeter
from redraft.benchmarks.load_clients import Answer, Client, now
from redraft.benchmarks.load_plan import Job, Level
from redraft.benchmarks.measure import Ask
from redraft.server.engine.types import RedraftError

WARM_UP_TOKENS = 8
"""Short: a level of many users has every one of them ask."""
MOST_WARM_UP = 8
"""Requests that warm up an open level, which has no number of users."""

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one request."""

    number: int
    user: int
    """Who asked, in a closed loop; the request's own number in an open one."""
    sent: float
    """Seconds, by the loop's clock; in an open loop when it was due, so that a late client does not look fast."""
    ended: float
    answer: Answer | None = None
    error: str | None = None
    """Set where there is no answer."""


@dataclass(slots=True)
class Pass:
    """One run through a level's requests, by one client."""

    users: int | None = None
    """None in an open loop."""
    records: list[Record] = field(default_factory=list)
    """In the order of their ends."""
    complete: bool = False
    watts: float | None = None
    """Mean power of the GPU; None where there is none in this process, or none that tells."""


@dataclass(slots=True)
class LevelRun:
    """All that was measured at one level: the passes of each side, in order."""

    level: Level
    passes: dict[str, list[Pass]]


async def measure_level(
    run: LevelRun,
    clients: Mapping[str, Client],
    jobs: Sequence[Job],
    arrivals: Sequence[float] | None,
    repeat: int,
    advance: Advance,
    meter: Callable[[], EnergyMeter] | None = None,
) -> None:
    """Warm up, then ``repeat`` passes of each client; who goes first alternates, so that drift hits both alike.

    ``clients`` are known by side; ``meter`` makes what measures the power of a pass.  ``arrivals`` are seconds from the
    start for an open level, None for a closed one.  Raises ``RedraftError`` when every request of a pass failed;
    ``advance`` is told of every request that ended.
    """
    for side, client in clients.items():
        warm = Pass(run.level.concurrency or MOST_WARM_UP)
        await _closed(client, _short(jobs, run.level), warm, lambda _: None)
        _check(warm, side, run.level)
    for number in range(repeat):
        for side in list(clients) if number % 2 == 0 else list(clients)[::-1]:
            one = Pass(run.level.concurrency)
            run.passes[side].append(one)
            energy = meter() if meter is not None else None
            if arrivals is None:
                await _closed(clients[side], jobs, one, advance)
            else:
                await _open(clients[side], jobs, arrivals, one, advance)
            one.watts = energy.watts() if energy is not None else None
            _check(one, side, run.level)


def _short(jobs: Sequence[Job], level: Level) -> list[Job]:
    """One short request for each user."""
    chosen = jobs[: level.concurrency or MOST_WARM_UP]
    return [
        Job(job.number, job.prompt, Ask(min(WARM_UP_TOKENS, job.ask.max_tokens), job.ask.temperature, job.ask.seed))
        for job in chosen
    ]


async def _closed(client: Client, jobs: Sequence[Job], into: Pass, advance: Advance) -> None:
    """Users each of whom takes the next job as soon as the last was answered."""
    queue = iter(jobs)

    async def use(user: int) -> None:
        for job in queue:
            into.records.append(await _one(client, job, user, now()))
            advance(1)

    async with asyncio.TaskGroup() as group:
        for user in range(into.users or 1):
            group.create_task(use(user))
    into.complete = True


async def _open(client: Client, jobs: Sequence[Job], arrivals: Sequence[float], into: Pass, advance: Advance) -> None:
    """Every job at its time, however many are waiting."""
    started = now()

    async def arrive(job: Job, due: float) -> None:
        into.records.append(await _one(client, job, job.number, due))
        advance(1)

    async with asyncio.TaskGroup() as group:
        for job, seconds in zip(jobs, arrivals, strict=True):
            await asyncio.sleep(started + seconds - now())
            group.create_task(arrive(job, started + seconds))
    into.complete = True


async def _one(client: Client, job: Job, user: int, sent: float) -> Record:
    try:
        answer = await client.answer(job.prompt, job.ask)
    except RedraftError as error:
        return Record(job.number, user, sent, now(), error=str(error))
    return Record(job.number, user, sent, now(), answer)


def _check(one: Pass, side: str, level: Level) -> None:
    errors = [record.error for record in one.records if record.error is not None]
    if len(errors) == len(one.records):
        raise RedraftError(f"{level.name}: every request for {side} decoding failed; the first: {errors[0]}")
