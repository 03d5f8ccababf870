"""Which rounds are recorded, and that rounded plans commit what exact ones do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redraft.server.engine import graphs
from redraft.server.engine.config import PAGE
from redraft.server.engine.graphs import Graphs, rounded
from redraft.server.engine.prefill_rows import Chunk
from redraft.server.engine.round import Plan
from redraft.server.engine.scores import Asked

PLAN = Plan(rows=8, context_bound=200, requests=2, sampled=False, filtered=False)


class Recorder:
    """Records by keeping what to run."""

    def __init__(self) -> None:
        self.made = 0
        self.replayed = 0

    def __call__(self, run: Callable[[], Plan]) -> Callable[[], Plan]:
        self.made += 1

        def replay() -> Plan:
            self.replayed += 1
            return run()

        return replay


def make(recorder: Callable[[Callable[[], Plan]], Callable[[], Plan]]) -> Graphs[Plan]:
    return Graphs(lambda plan: plan, recorder, slots=6, positions=5000)


@given(bound=st.integers(0, 5000), requests=st.integers(0, 6))
def test_rounding_keeps_what_is_needed(bound: int, requests: int) -> None:
    plan = rounded(replace(PLAN, context_bound=bound, requests=requests), slots=6, positions=5000)
    assert bound <= plan.context_bound <= 5000
    assert plan.context_bound <= max(bound * 1.25 + PAGE, PAGE)
    assert requests <= plan.requests <= min(max(2 * requests - 1, requests), 6)
    assert (plan.requests > 1) == (requests > 1)
    assert rounded(plan, 6, 5000) == plan


def test_few_kinds_cover_a_long_context() -> None:
    bounds = {rounded(replace(PLAN, context_bound=n), 6, 32768).context_bound for n in range(1, 32769)}
    assert len(bounds) <= 32


def test_a_kind_is_run_then_recorded_then_replayed() -> None:
    recorder = Recorder()
    run = make(recorder)
    shown = [
        (run(replace(PLAN, context_bound=200 + n)).context_bound, recorder.made, recorder.replayed) for n in (0, 1, 2)
    ]
    assert shown == [(256, 0, 0), (256, 1, 1), (256, 1, 2)]
    assert run(replace(PLAN, sampled=True)).sampled
    assert recorder.made == 1


@pytest.mark.parametrize("special", [{"chunks": (Chunk(0, 0, 4),), "prefill": 8}, {"asked": Asked((1,), (2,))}])
def test_prefill_and_scores_are_never_recorded_nor_rounded(special: dict[str, Any]) -> None:
    recorder = Recorder()
    run = make(recorder)
    plan = replace(PLAN, **special)
    assert [run(plan) for _ in range(3)] == [plan] * 3
    assert not run.recorded


def test_the_least_used_graph_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    recorder = Recorder()
    run = make(recorder)
    for rows in (4, 4, 8, 8, 4, 16, 16, 4):
        run(replace(PLAN, rows=rows))
    assert recorder.made == 3
    assert [plan.rows for plan in run.recorded] == [16, 4]


def test_where_recording_fails_rounds_go_on() -> None:
    def fails(run: Callable[[], Plan]) -> Callable[[], Plan]:
        raise RuntimeError("operation not permitted when stream is capturing")

    run = make(fails)
    assert [run(PLAN).rows for _ in range(3)] == [8, 8, 8]
    assert run.failure == "operation not permitted when stream is capturing"
