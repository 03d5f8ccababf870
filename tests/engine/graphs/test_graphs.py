"""Which rounds are recorded, and that rounded plans commit what exact ones do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redraft.server.engine import graphs
from redraft.server.engine.config import PAGE
from redraft.server.engine.graphs import Graphs, rounded
from redraft.server.engine.parts import Parts
from redraft.server.engine.round import Plan
from redraft.server.engine.types import MAX_LOGPROBS

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


def begin(plan: Plan) -> Parts[Plan]:
    """A pass that gives its plan, after whatever the host does in between."""
    for part in range(1, plan.parts):
        yield lambda allow, part=part: allow.see((plan, part))  # type: ignore[misc,arg-type]
    return plan


def make(recorder: Callable[[Callable[[], Plan]], Callable[[], Plan]]) -> Graphs[Plan]:
    return Graphs(begin, lambda: recorder, slots=6, positions=5000)


@given(bound=st.integers(0, 5000), requests=st.integers(0, 6))
def test_rounding_keeps_what_is_needed(bound: int, requests: int) -> None:
    plan = rounded(replace(PLAN, context_bound=bound, requests=requests), slots=6, positions=5000)
    assert bound <= plan.context_bound <= 5000
    assert plan.context_bound <= max(bound * 1.25 + PAGE, PAGE)
    assert requests <= plan.requests <= min(max(2 * requests - 1, requests), 6)
    assert (plan.requests > 1) == (requests > 1)
    assert rounded(plan, 6, 5000) == plan


@given(
    context=st.integers(1, 5000), prefill=st.integers(1, 5000), requests=st.integers(0, 70), slots=st.integers(70, 300)
)
def test_rounding_with_prefill_keeps_what_is_needed_in_fewer_kinds(
    context: int, prefill: int, requests: int, slots: int
) -> None:
    exact = replace(
        PLAN, context_bound=context if requests else 0, requests=requests, prefill=24, prefill_bound=prefill
    )
    plan = rounded(exact, slots, positions=5000)
    assert exact.context_bound <= plan.context_bound <= 5000
    assert prefill <= plan.prefill_bound <= 5000
    assert plan.context_bound in (0, plan.prefill_bound), "one bound for all"
    assert plan.prefill_bound in (1024, 2048, 4096, 5000)
    assert requests <= plan.requests <= max(4 * (requests - 1), requests)
    assert (plan.requests > 1) == (requests > 1)
    assert (plan.rows, plan.prefill) == (exact.rows, 24), "sizes are the pacer's"
    assert rounded(plan, slots, 5000) == plan


def test_few_kinds_cover_a_long_context() -> None:
    bounds = {rounded(replace(PLAN, context_bound=n), 6, 32768).context_bound for n in range(1, 32769)}
    assert len(bounds) <= 32
    plans = {rounded(replace(PLAN, prefill=24, prefill_bound=n), 6, 32768) for n in range(1, 32769)}
    assert len(plans) == 6


def test_a_kind_is_run_then_recorded_then_replayed() -> None:
    """And the two rounds that take longer than those to come say so."""
    recorder = Recorder()
    run = make(recorder)
    shown = []
    for n in range(4):
        plan, usual = run(replace(PLAN, context_bound=200 + n))
        shown.append((plan.context_bound, recorder.made, recorder.replayed, usual))
    assert shown == [(256, 0, 0, False), (256, 1, 1, False), (256, 1, 2, True), (256, 1, 3, True)]
    assert run(replace(PLAN, sampled=True))[0].sampled
    assert recorder.made == 1


@given(requests=st.integers(1, 100), data=st.data())
def test_there_is_room_for_the_scores_of_all_who_ask(requests: int, data: st.DataObject) -> None:
    asked, tops = data.draw(st.integers(1, requests)), data.draw(st.integers(0, MAX_LOGPROBS))
    plan = rounded(replace(PLAN, requests=requests, scored=asked, tops=tops), slots=100, positions=5000)
    assert asked <= plan.scored <= min(max(4 * (asked - 1), 1), plan.requests)
    assert plan.tops == MAX_LOGPROBS
    assert rounded(plan, 100, 5000) == plan


def test_who_asks_for_scores_makes_few_kinds() -> None:
    plans = {
        rounded(replace(PLAN, requests=8, scored=asked, tops=tops), 8, 5000)
        for asked in range(1, 9)
        for tops in range(MAX_LOGPROBS + 1)
    }
    assert {plan.scored for plan in plans} == {1, 4, 8}
    assert len(plans) == 3
    assert rounded(PLAN, 8, 5000).tops == 0, "nor does it cost those anything who do not ask"


def test_what_is_launched_op_by_op_is_never_recorded_nor_rounded() -> None:
    recorder = Recorder()
    run = make(recorder)
    plan = replace(PLAN, prefill=1001, by_op=True)
    assert [run(plan) for _ in range(3)] == [(plan, True)] * 3
    assert not recorder.made


class Seen(list[Any]):
    """A grammar that notes what it is shown."""

    see = list.append


def test_a_guided_kind_is_three_recordings_with_the_hosts_work_between_them() -> None:
    """Each time by whoever guides now."""
    recorder = Recorder()
    run, plan = make(recorder), replace(PLAN, guided=True)
    shown = []
    for _ in range(4):
        now = Seen()
        made, usual = run(plan, now)
        assert [part for _, part in now] == [1, 2]
        assert made == rounded(plan, 6, 5000)
        shown.append((recorder.made, recorder.replayed, usual))
    assert shown == [(0, 0, False), (3, 3, False), (3, 6, True), (3, 9, True)]
    run(PLAN)
    run(PLAN)
    assert (recorder.made, recorder.replayed) == (4, 10), "nobody else's is cut"
    with pytest.raises(ValueError, match="without its grammars"):
        run(plan)


def test_without_a_recorder_rounds_are_run_as_they_are() -> None:
    run: Graphs[Plan] = Graphs(begin, None, slots=6, positions=5000)
    assert [run(PLAN) for _ in range(3)] == [(PLAN, True)] * 3


def test_the_least_used_graph_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    recorder = Recorder()
    run = make(recorder)
    for rows in (4, 4, 8, 8, 4, 16, 16, 4):
        run(replace(PLAN, rows=rows))
    assert recorder.made == 3
    assert [plan.rows for _, plan in run.recorded] == [16, 4]
    # what made room is as any other kind that was not seen
    assert [run(replace(PLAN, rows=8))[1] for _ in range(3)] == [False, False, True]


def test_graphs_with_prefill_make_room_among_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many kinds come with it, rounds keep theirs."""
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    recorder = Recorder()
    run = make(recorder)
    for rows in (4, 8):
        for _ in range(2):
            run(replace(PLAN, rows=rows))
    for prefill in (8, 24, 56):
        for _ in range(2):
            run(replace(PLAN, prefill=prefill, prefill_bound=60))
    assert [(plan.rows, plan.prefill) for _, plan in run.recorded] == [(4, 0), (8, 0), (8, 24), (8, 56)]
    for rows in (4, 16, 16):
        run(replace(PLAN, rows=rows))
    assert [(plan.rows, plan.prefill) for _, plan in run.recorded] == [(8, 24), (8, 56), (4, 0), (16, 0)]


def test_what_comes_once_costs_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    monkeypatch.setattr(graphs, "MOST_SEEN", 3)
    recorder = Recorder()
    run = make(recorder)
    for rows in (4, 4, 8, 16, 32, 64, 128):
        run(replace(PLAN, rows=rows))
    assert [plan.rows for _, plan in run.recorded] == [4]
    assert [plan.rows for _, plan in run.seen] == [32, 64, 128]
    assert run(replace(PLAN, rows=4))[1]
    assert recorder.made == 1


def test_where_recording_fails_rounds_go_on_and_the_operator_hears_of_it_once(capfd: pytest.CaptureFixture) -> None:
    made = 0

    def fails(run: Callable[[], Plan]) -> Callable[[], Plan]:
        nonlocal made
        made += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    run = make(fails)
    assert [run(PLAN)[0].rows for _ in range(4)] == [8, 8, 8, 8]
    run.forget()
    assert [run(PLAN)[0].rows for _ in range(4)] == [8, 8, 8, 8]
    assert (run.failure, made) == ("operation not permitted when stream is capturing", 1)
    told = capfd.readouterr().err
    assert (
        told.count("\n")
        == told.count("op by op, which is slower: operation not permitted when stream is capturing")
        == 1
    )


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("no room"), torch.AcceleratorError("illegal access")])
def test_what_is_not_about_recording_is_raised_and_may_be_tried_again(fault: RuntimeError) -> None:
    faults, recorder = [fault], Recorder()

    def once(run: Callable[[], Plan]) -> Callable[[], Plan]:
        if faults:
            raise faults.pop()
        return recorder(run)

    run = make(once)
    run(PLAN)
    with pytest.raises(type(fault)):
        run(PLAN)
    assert run.failure is None
    assert [run(PLAN)[1] for _ in range(2)] == [False, True]


def test_forgotten_graphs_leave_nothing_to_the_next_ones() -> None:
    recorders: list[Recorder] = []

    def make_recorder() -> Recorder:
        recorders.append(Recorder())
        return recorders[-1]

    run = Graphs(begin, make_recorder, slots=6, positions=5000)
    assert not run.forget()
    for rows in (8, 8, 16, 16, 32):
        run(replace(PLAN, rows=rows))
    assert [recorder.made for recorder in recorders] == [2]
    assert run.forget()
    assert not run.forget()
    assert [run(replace(PLAN, rows=32))[1] for _ in range(3)] == [False, False, True]
    assert [recorder.made for recorder in recorders] == [2, 1]
