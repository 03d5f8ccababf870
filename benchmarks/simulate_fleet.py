"""Replicas behind a router, and those who ask: discrete events on SimPy's clock.

Users of a closed loop ask again the moment they are answered; what reaches a replica while it is in a step is taken in
with its next.  Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from redraft.benchmarks.load_clients import Answer, Event, histogram
from redraft.benchmarks.load_run import Pass, Record
from redraft.benchmarks.simulate_replica import Replica
from redraft.benchmarks.simulate_script import Job
from redraft.server.engine.types import RoundOutput

ROUTERS = ("round-robin", "least-loaded")
Process = Generator[simpy.Event, Any, None]


@dataclass(slots=True)
class _Asked:
    """A request that is not answered yet."""

    replica: int
    answered: simpy.Event
    events: list[Event] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    drafted: int = 0


class Fleet:
    """Replicas as processes, and a router in front of them."""

    def __init__(self, clock: simpy.Environment, replicas: Sequence[Replica], router: str) -> None:
        """``router`` is one of ``ROUTERS``; raises ``ValueError`` for another."""
        if router not in ROUTERS:
            raise ValueError(f"{router} is none of {', '.join(ROUTERS)}")
        self.clock, self.replicas, self.router = clock, replicas, router
        self.routed = [0] * len(replicas)
        """Requests that each replica was given."""
        self._open = [0] * len(replicas)
        self._asked: dict[str, _Asked] = {}
        self._wake = [clock.event() for _ in replicas]
        for number in range(len(replicas)):
            clock.process(self._serve(number))

    def answer(self, job: Job) -> Generator[simpy.Event, Any, Answer]:
        """Ask and wait for the end; raises ``RedraftError`` for what can never run."""
        number = self._route()
        name = self.replicas[number].submit(job)
        self.routed[number] += 1
        self._open[number] += 1
        asked = self._asked[name] = _Asked(number, self.clock.event())
        if not self._wake[number].triggered:
            self._wake[number].succeed()
        yield asked.answered
        tokens = sum(asked.committed)
        return Answer(tuple(asked.events), tokens, (), histogram(asked.committed), asked.drafted, counted=True)

    def _route(self) -> int:
        if self.router == "round-robin":
            return sum(self.routed) % len(self.replicas)
        return min(range(len(self.replicas)), key=lambda number: (self._open[number], number))

    def _serve(self, number: int) -> Process:
        replica = self.replicas[number]
        while True:
            if not replica.busy:
                self._wake[number] = self.clock.event()
                yield self._wake[number]
            ends, outputs = replica.step(self.clock.now)
            yield self.clock.timeout(max(ends - self.clock.now, 0.0))
            for output in outputs:
                self._deliver(output)
            # who was answered asks again before the next step begins
            yield self.clock.timeout(0)

    def _deliver(self, output: RoundOutput) -> None:
        asked = self._asked[output.request_id]
        asked.events.append(Event(self.clock.now, len(output.tokens)))
        asked.committed.append(len(output.tokens))
        asked.drafted += output.drafted
        if output.finish_reason is not None:
            del self._asked[output.request_id]
            self._open[asked.replica] -= 1
            asked.answered.succeed()


def simulate(
    replicas: Sequence[Replica],
    router: str,
    jobs: Sequence[Job],
    users: int | None,
    arrivals: Sequence[float] | None,
    advance: Callable[[int], None] = lambda _: None,
) -> Pass:
    """Run all ``jobs``; what came of them, in simulated seconds.

    Args:
        replicas: idle ones, made for this run.
        router: one of ``ROUTERS``.
        jobs: in the order in which they are asked.
        users: of a closed loop; None for an open one.
        arrivals: seconds from the start at which the jobs of an open loop arrive.
        advance: told of every request that ended.
    """
    clock = simpy.Environment()
    fleet = Fleet(clock, replicas, router)
    into = Pass(users)

    def ask(job: Job, user: int) -> Process:
        sent = clock.now
        answer = yield from fleet.answer(job)
        into.records.append(Record(job.number, user, sent, clock.now, answer))
        advance(1)

    def use(queue: Iterator[Job], user: int) -> Process:
        for job in queue:
            yield from ask(job, user)

    def arrive(job: Job, at: float) -> Process:
        yield clock.timeout(at)
        yield from ask(job, job.number)

    if arrivals is None:
        queue = iter(jobs)
        asking = [clock.process(use(queue, user)) for user in range(users or 1)]
    else:
        asking = [clock.process(arrive(job, at)) for job, at in zip(jobs, arrivals, strict=True)]
    clock.run(until=clock.all_of(asking))
    into.complete = True
    return into
