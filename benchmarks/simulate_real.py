"""Runs a closed loop on a real engine in this process and takes it apart, to hold against its simulation.

Users ask again the moment they are answered and before the next step, as the simulated ones do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from redraft.benchmarks.load_clients import Answer, Event, histogram
from redraft.benchmarks.load_run import Pass, Record
from redraft.benchmarks.simulate_record import paced_by
from redraft.drafts.base import Drafter
from redraft.server.engine.costs import Costs, CostTable, Work
from redraft.server.engine.engine import Engine
from redraft.server.engine.pace import Pace, Pacer
from redraft.server.engine.rows_plan import row_bucket
from redraft.server.engine.sequence import Sequence as Running
from redraft.server.engine.types import FinishReason, RedraftError, Request, SamplingParams


@dataclass(frozen=True, slots=True)
class Taken:
    """What a step had to do and what it took."""

    work: Work
    seconds: float


@dataclass(slots=True)
class Parts:
    """Where the seconds of a run went."""

    rounds: dict[tuple[int, bool, bool], list[Taken]] = field(default_factory=dict)
    """Rounds by rows, draft and whether prefill went along, as the engine's own stopwatch has them."""
    prefill: list[Taken] = field(default_factory=list)
    """Steps of prefill alone."""
    outside: float = 0.0
    """Of steps with a round, beside the round: planning, reading back, learning.  On a GPU a step reads the round
    before, so there it says little."""


class _Timed(Pacer):
    """The engine's pacer, which also keeps what it hears."""

    def __init__(self, like: Pacer, table: CostTable, speculation: str | None = None) -> None:
        fixed = "auto" if like.fixed is None else str(like.fixed)
        super().__init__(like.most_rows, like.most_nodes, speculation or fixed, Costs(table))
        self.parts = Parts()
        self._took = 0.0
        self._alone: Work | None = None
        self._beside = False

    def step(self, decoding: Sequence[Running], prefilling: Sequence[Running]) -> Pace:
        pace = super().step(decoding, prefilling)
        self._beside = bool(decoding and pace.prefill)
        self._alone = None
        if not decoding and pace.prefill:
            self._alone = self.work((), row_bucket(pace.prefill), False, pace.prefill, prefilling[0].computed)
        return pace

    def took(self, work: Work, seconds: float) -> None:
        super().took(work, seconds)
        self._took = seconds
        kind = (work.rows, work.drafting, self._beside)
        self.parts.rounds.setdefault(kind, []).append(Taken(work, seconds))

    def stepped(self, seconds: float) -> None:
        """A step of the engine took so long in all."""
        if self._alone is not None:
            self.parts.prefill.append(Taken(self._alone, seconds))
        else:
            self.parts.outside += seconds - self._took
        self._took = 0.0


@dataclass(slots=True)
class _Asked:
    number: int
    user: int
    sent: float
    events: list[Event] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    drafted: int = 0


def run_real(
    engine: Engine,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    users: int,
    table: CostTable,
) -> tuple[Pass, Parts]:
    """Answer all ``prompts`` by a closed loop of ``users`` on an idle engine, from a pacer that knows only ``table``.

    ``drafter`` decides the side: one without nodes decodes plainly.  Raises ``RedraftError`` for a prompt that cannot
    run.
    """
    engine.drafter = drafter
    pacer = _Timed(engine.pacer, table, None if drafter.max_nodes else "off")
    into, open_now, queue = Pass(users), dict[str, _Asked](), iter(enumerate(prompts))

    def ask(user: int, now: float) -> None:
        for number, prompt in queue:
            engine.submit(Request(str(number), tuple(prompt), params, reuse=False))
            open_now[str(number)] = _Asked(number, user, now)
            return

    with paced_by(engine, pacer):
        for user in range(users):
            ask(user, time.perf_counter())
        while engine.busy:
            begun = time.perf_counter()
            outputs = engine.step().outputs
            now = time.perf_counter()
            pacer.stepped(now - begun)
            for output in outputs:
                asked = open_now[output.request_id]
                asked.events.append(Event(now, len(output.tokens)))
                asked.committed.append(len(output.tokens))
                asked.drafted += output.drafted
                if output.finish_reason is FinishReason.ERROR:
                    raise RedraftError(output.error or "the engine failed")
                if output.finish_reason is not None:
                    into.records.append(_record(open_now.pop(output.request_id), now))
                    ask(asked.user, now)
    into.complete = True
    return into, pacer.parts


def _record(asked: _Asked, now: float) -> Record:
    tokens, rounds = sum(asked.committed), histogram(asked.committed)
    answer = Answer(tuple(asked.events), tokens, (), rounds, asked.drafted, counted=True)
    return Record(asked.number, asked.user, asked.sent, now, answer)
