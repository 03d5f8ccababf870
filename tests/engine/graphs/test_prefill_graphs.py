"""Passes with prefill, recorded once and replayed with other chunks, give what the same passes give op by op.

What stands in for a CUDA graph here has the property that matters: it is a list of ops on tensors.  Replayed, no line
of Python runs, so what the host decided when it was recorded stays, and what changes has to come from declared memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.kernels.rows import Rows, cells
from redraft.kernels.tree_attention import TwinAttention
from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.costs import Work
from redraft.server.engine.load import build_engine
from redraft.server.engine.pace import Pace, Pacer
from redraft.server.engine.planning import make_plan
from redraft.server.engine.prefill_table import Chunk, PrefillTable
from redraft.server.engine.round import Plan
from redraft.server.engine.rows_plan import RECORDED, recorded_rows
from redraft.server.engine.sequence import Sequence as Running
from redraft.server.engine.types import Request, SamplingParams

MOST_ROWS = 64
OF_THE_HOST = {"aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero"}
"""Tensors made of lists, numbers that are read, and shapes that follow data."""


def attention(rows: Rows, page_table: Tensor, position_bound: int, head_dim: int) -> TwinAttention:
    return TwinAttention(rows, page_table, position_bound)


class Watched:
    """An engine, what it says, what it leaves in its caches, and what its passes with prefill were."""

    def __init__(self, config: EngineConfig, tape: Callable[[], Any], *, records: bool, lag: int = 0) -> None:
        self.make_tape = tape
        self.engine = engine = build_engine(config)
        engine.make_attention, engine.lag = attention, lag
        self.chunks: list[tuple[Chunk, ...]] = []
        self.replayed: list[tuple[Plan, tuple[Chunk, ...], tuple[Chunk, ...]]] = []
        """Of every pass with prefill that was replayed, with the chunks at recording and those of now."""
        self.of_the_host = set[str]()
        """Ops of recorded passes of prefill alone that have to do with the host."""
        self.caches: dict[str, tuple[Tensor, Tensor]] = {}
        if records:
            engine.graphs.make_recorder = lambda: self.record
            engine.pacer.recorded = recorded_rows(MOST_ROWS, 1)
        write, release, run = engine.state.prefill.write, engine._release, engine.graphs.run

        def planned(plan: Plan) -> Any:
            self.plan = plan
            return run(plan)

        def noted(chunks: Sequence[Chunk], padded: int) -> None:
            self.chunks.append(tuple(chunks))
            write(chunks, padded)

        def kept(request_id: str) -> None:
            sequence = engine.scheduler.running[request_id]
            logical = torch.arange(len(sequence.tokens) - 1)
            at = cells(engine.state.page_table, torch.full_like(logical, sequence.running_slot), logical, PAGE)
            self.caches[request_id] = engine.state.kv[:, :, at], engine.state.draft_kv[:, :, at]
            release(request_id)

        engine.state.prefill.write, engine._release, engine.graphs.run = noted, kept, planned  # type: ignore[method-assign]

    def record(self, run: Callable[[], Any]) -> Callable[[], Any]:
        tape, first = self.make_tape(), self.chunks[-1]
        with tape:
            made = run()
        plan = self.plan
        if plan.prefill and not plan.rows:
            # twins of a round's kernels do have constants
            self.of_the_host |= {op[0]._schema.name for op in tape.ops} & OF_THE_HOST
        # unlike a GPU's, this recording has run what it recorded, which stands for its first launch
        launches = count()

        def launch() -> Any:
            if next(launches):
                tape.play()
                if plan.prefill:
                    self.replayed.append((plan, first, self.chunks[-1]))
            # as the copies to the host that a GPU makes before the next launch
            return copy.deepcopy(made)

        return launch

    def run(self, waves: Sequence[Sequence[Request]]) -> dict[str, list[int]]:
        """Outputs of requests that come wave by wave: the first ones a few steps apart, then each after the other."""
        said: dict[str, list[int]] = {}
        waiting = list(waves)
        while waiting or self.engine.busy:
            if waiting and (len(waiting) > len(APART) or not self.engine.busy):
                for request in waiting.pop(0):
                    self.engine.submit(request)
            for _ in range(3):
                for output in self.engine.step().outputs:
                    said.setdefault(output.request_id, []).extend(output.tokens)
        self.engine.scheduler.check_integrity()
        return said


CROWDED = [
    [9, 14, 5],
    [130, 21],
    [40, 11, 6],
    [7, 13],
    [150, 30],
    [12, 8, 5],
    [9, 14, 5],
    [40, 11, 6],
    [8, 12],
    [12, 8, 5],
    [7, 13, 6],
]
"""Lengths of prompts that come together; a pass takes the chunks of several, and long ones take several passes."""
APART = [[20, 9], [30], [150], [12, 15, 4], [152], [17, 10], [149], [28], [151]]


def requests() -> list[list[Request]]:
    """Some begin alike, so that a prefix is reused and chunks begin behind it."""
    names = count()
    made = []
    for lengths in CROWDED + APART:
        made.append([])
        for length in lengths:
            number = next(names)
            seed = 7 if length > PAGE else number
            prompt = tuple(20 + (seed * 31 + i * (1 + seed % 3)) % 300 for i in range(length))
            params = SamplingParams(max_tokens=5 + number % 7, temperature=0.8 * (number % 5 > 0), seed=number)
            made[-1].append(Request(str(number), prompt, params))
    return made


@pytest.fixture
def make_config(
    quick_config: Callable[..., EngineConfig],
    random_target: Callable[[str], Path],
    random_draft: Callable[..., Path],
    twins: None,
) -> Callable[[str], EngineConfig]:
    sizes = {"max_num_seqs": 4, "max_nodes": 5, "max_model_len": 300, "max_num_batched_tokens": MOST_ROWS}

    def make(draft: str) -> EngineConfig:
        trained = draft in ("dflash", "eagle3")
        return quick_config(draft=str(random_draft(random_target("llama"), kind=draft)) if trained else draft, **sizes)

    return make


@pytest.mark.parametrize(("draft", "lag"), [("none", 1), ("ngram", 0), ("dflash", 1), ("eagle3", 0)])
def test_replayed_with_other_chunks_they_leave_the_same_tokens_and_cache(
    draft: str, lag: int, make_config: Callable[[str], EngineConfig], tape: Callable[[], Any]
) -> None:
    """``lag`` 1 is how a GPU is read: one round behind."""
    config = make_config(draft)
    plain, recording = Watched(config, tape, records=False), Watched(config, tape, records=True, lag=lag)
    wanted = plain.run(requests())
    assert recording.run(requests()) == wanted
    assert recording.engine.graphs.failure is None
    assert not recording.of_the_host
    for name, caches in plain.caches.items():
        assert all(map(torch.equal, caches, recording.caches[name])), name
    others = [(plan, now) for plan, first, now in recording.replayed if now != first]
    assert sum(plan.rows == 0 for plan, _ in others) > 1, "alone"
    assert sum(plan.rows > 0 for plan, _ in others) > 1, "beside a round"
    assert any(len(now) > 1 for _, now in others), "of several requests"
    assert any(chunk.start > 0 for _, now in others for chunk in now), "behind what was prefilled before"
    assert any(sum(chunk.count for chunk in now) < plan.prefill for plan, now in others), "padded"


def test_what_a_recording_keeps_of_its_chunks_is_noticed(
    make_config: Callable[[str], EngineConfig], tape: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, config = PrefillTable.read, make_config("none")

    def known_to_the_host(self: PrefillTable, padded: int) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(part.tolist()) for part in read(self, padded))

    wanted = Watched(config, tape, records=False).run(requests())
    monkeypatch.setattr(PrefillTable, "read", known_to_the_host)
    assert Watched(config, tape, records=False).run(requests()) == wanted
    careless = Watched(config, tape, records=True)
    assert careless.run(requests()) != wanted
    assert careless.of_the_host == {"aten::lift_fresh"}


def test_what_passes_with_prefill_take_is_learned_of_replays(
    make_config: Callable[[str], EngineConfig], tape: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the sizes that they have; the first of a kind compiles and the second is recorded."""
    recording = Watched(make_config("none"), tape, records=True)
    pacer, beside, told = recording.engine.pacer, list[Work](), list[Work]()
    work = pacer.work

    def noted(decoding: Sequence[Running], rows: int, drafting: bool, prefill: int = 0, start: int = 0) -> Work:
        made = work(decoding, rows, drafting, prefill, start)
        if prefill and decoding:
            beside.append(made)
        return made

    monkeypatch.setattr(pacer, "work", noted)
    monkeypatch.setattr(pacer, "took", lambda work, seconds: told.append(work))
    recording.run(requests())
    known = [one for one in told if any(one is other for other in beside)]
    replays = [plan for plan, *_ in recording.replayed if plan.rows]
    assert [one.rows for one in known] == [plan.rows + plan.prefill for plan in replays]
    assert len(beside) > len(known) > 5
    assert {one.rows for one in known} <= set(RECORDED)


def test_what_is_too_large_or_scored_is_planned_to_be_launched_op_by_op() -> None:
    """And is not padded to the sizes of recordings."""
    pacer = Pacer(2048, 7, "auto", None, recorded=1024)
    settings = {"proposed": 7, "eos": (), "unread": 0, "forced": 0}

    def planned(count: int, scored: int | None = None) -> tuple[int, bool]:
        plan = make_plan(pacer, [], Pace(prefill=count), [Chunk(0, 0, count, scored)], **settings)
        return plan.prefill, plan.by_op

    assert planned(800) == (1024, False)
    assert planned(1024) == (1024, False)
    assert planned(1030) == (1152, True)
    assert planned(800, scored=3) == (896, True)
    pacer.recorded = 0
    assert planned(800) == (896, True)
