"""The loops on a clock of their own: who is asked when, and what is kept."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from redraft.benchmarks.load_clients import Answer, Event, now
from redraft.benchmarks.load_figures import level_figures, pass_figures
from redraft.benchmarks.load_plan import Level, jobs
from redraft.benchmarks.load_run import LevelRun, measure_level
from redraft.benchmarks.measure import Ask
from redraft.server.engine.types import RedraftError

ASK = Ask(max_tokens=64, temperature=0.0, seed=0)


class SimulatedTime(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next thing that is due."""

    def __init__(self) -> None:
        self.seconds = 0.0
        loop = self

        class Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
            def select(self, timeout: float | None = None) -> Any:
                found = super().select(0)
                if not found and timeout:
                    loop.seconds += timeout
                return found

        super().__init__(Selector())

    def time(self) -> float:
        return self.seconds


def simulate(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    with asyncio.Runner(loop_factory=SimulatedTime) as runner:
        runner.run(main())


@dataclass
class FakeClient:
    """Answers after ``seconds`` with two events of two tokens, at half time and at the end."""

    seconds: Callable[[str], float] = lambda prompt: 1.0
    fails: Callable[[str], bool] = lambda prompt: False
    log: list[tuple[float, str, int]] = field(default_factory=list)
    busy: int = 0
    most: int = 0

    async def answer(self, prompt: str, ask: Ask) -> Answer:
        self.log.append((now(), prompt, ask.max_tokens))
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            half = self.seconds(prompt) / 2
            await asyncio.sleep(half)
            first = Event(now(), 2)
            await asyncio.sleep(half)
        finally:
            self.busy -= 1
        if self.fails(prompt):
            raise RedraftError(f"no {prompt}")
        return Answer((first, Event(now(), 2)), 4, (prompt,), (0, 2), 6, counted=True)


def measured(
    level: Level, clients: dict[str, Any], prompts: tuple[str, ...], times: Any = None, repeat: int = 1
) -> tuple[LevelRun, list[int]]:
    run = LevelRun(level, {side: [] for side in clients})
    done: list[int] = []
    simulate(lambda: measure_level(run, clients, jobs(prompts, level.requests, ASK), times, repeat, done.append))
    return run, done


def test_a_closed_loop_keeps_its_users_busy() -> None:
    client = FakeClient(seconds=lambda prompt: {"slow": 5.0, "quick": 1.0}[prompt])
    run, done = measured(Level(5, concurrency=2), {"plain": client}, ("slow", "quick"))
    (one,) = run.passes["plain"]
    # warm-up is short, has both users, and takes 5 s
    assert [(at, tokens) for at, _, tokens in client.log[:2]] == [(0, 8), (0, 8)]
    assert [(at - 5, prompt) for at, prompt, _ in client.log[2:]] == [
        (0, "slow"),
        (0, "quick"),
        (1, "slow"),
        (5, "quick"),
        (6, "slow"),
    ]
    assert client.most == 2
    assert one.complete
    assert done == [1] * 5
    found = pass_figures(one)
    # one user runs out after 6 s, when four requests were answered, and the other after 11 s
    assert (found["tokens"], found["seconds"], found["steady_tokens_per_second"]) == (20, 11, pytest.approx(16 / 6))
    assert found["tau"] == 2
    assert found["nodes_per_round"] == 3


def test_the_power_of_every_pass_is_kept() -> None:
    class Meter:
        made = 0

        def __init__(self) -> None:
            Meter.made += 1

        def watts(self) -> float:
            return 100.0 * self.made

    level = Level(2, concurrency=1)
    run = LevelRun(level, {"plain": [], "speculative": []})
    clients = {"plain": FakeClient(), "speculative": FakeClient()}
    work = measure_level(run, clients, jobs(("a",), 2, ASK), None, 2, lambda _: None, Meter)  # type: ignore[arg-type]
    simulate(lambda: work)
    assert [one.watts for one in (*run.passes["plain"], *run.passes["speculative"])] == [100, 400, 200, 300]
    found = level_figures(run)
    assert found is not None
    assert (found["plain"]["watts"], found["speculative"]["watts"]) == (250, 250)


def test_an_open_loop_sends_when_due_whoever_waits() -> None:
    client = FakeClient(seconds=lambda prompt: 10.0)
    run, _ = measured(Level(3, rate=1.0), {"plain": client}, ("a",), times=(0.0, 0.5, 4.0))
    assert [at - 10 for at, _, _ in client.log[3:]] == [0, 0.5, 4.0]
    assert client.most == 3
    (one,) = run.passes["plain"]
    assert [record.ended - record.sent for record in one.records] == [10, 10, 10]
    found = pass_figures(one)
    assert (found["ttft_p50"], found["seconds"], found["steady_tokens_per_second"]) == (5, 14, None)


def test_a_late_client_does_not_look_fast() -> None:
    class Blocks(FakeClient):
        async def answer(self, prompt: str, ask: Ask) -> Answer:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, SimulatedTime)
            # nobody else can run in the meantime
            loop.seconds += 3
            return await super().answer(prompt, ask)

    run, _ = measured(Level(2, rate=1.0), {"plain": Blocks()}, ("a",), times=(0.0, 1.0))
    sent = sorted(record.sent for record in run.passes["plain"][0].records)
    assert sent[1] - sent[0] == 1


def test_who_goes_first_alternates() -> None:
    log: list[tuple[float, str, int]] = []
    order: list[str] = []

    class Named(FakeClient):
        def __init__(self, name: str) -> None:
            super().__init__(log=log)
            self.name = name

        async def answer(self, prompt: str, ask: Ask) -> Answer:
            order.append(self.name)
            return await super().answer(prompt, ask)

    clients = {"plain": Named("plain"), "speculative": Named("speculative")}
    run, done = measured(Level(2, concurrency=1), clients, ("a", "b"), repeat=3)
    passes = order[2::2]
    assert order[:2] == ["plain", "speculative"], "warm-up"
    assert passes == ["plain", "speculative", "speculative", "plain", "plain", "speculative"]
    assert [len(one) for one in run.passes.values()] == [3, 3]
    assert sum(done) == 12
    found = level_figures(run)
    assert found is not None
    assert (found["parity"], found["compared"], found["speedup"]) == (1, 6, pytest.approx(1))


def test_failures_are_counted_and_stop_nothing() -> None:
    client = FakeClient(fails=lambda prompt: prompt == "bad")
    run, done = measured(Level(4, concurrency=2), {"plain": client}, ("good", "bad"))
    found = pass_figures(run.passes["plain"][0])
    assert (found["requests"], found["errors"], found["tokens"], sum(done)) == (2, 2, 8, 4)


def test_a_level_without_an_answer_is_an_error() -> None:
    client = FakeClient(fails=lambda prompt: True)
    with pytest.raises(RedraftError, match="concurrency 2: every request for plain decoding failed; the first: no a"):
        measured(Level(4, concurrency=2), {"plain": client}, ("a",))


def test_a_mistake_in_a_client_is_not_taken_for_a_failure() -> None:
    def broken(prompt: str) -> float:
        raise TypeError("broken")

    with pytest.raises(ExceptionGroup) as caught:
        measured(Level(4, concurrency=2), {"plain": FakeClient(seconds=broken)}, ("a",))
    assert caught.group_contains(TypeError)
