"""Rounds with log-probabilities, recorded once and replayed for others, tell what they tell op by op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.kernels.paged_attention import PagedTwin
from redraft.kernels.rows import Rows
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.round import Plan
from redraft.server.engine.scores import round_scores
from redraft.server.engine.types import Request, SamplingParams, TokenLogprobs

ASKED = (2, None, 20, 0, 3, None, None, 1, 5, None, 4, 7)
"""Of requests as they come, how many of the likeliest tokens each wants to have named."""
PLAN = Plan(rows=0, context_bound=0, requests=0, sampled=False, filtered=False)
Told = dict[str, list[tuple[int, TokenLogprobs | None]]]


def attention(rows: Rows, page_table: Tensor, position_bound: int, head_dim: int) -> PagedTwin:
    return PagedTwin(rows, page_table, position_bound)


@pytest.fixture
def make_engine(
    quick_config: Callable[..., EngineConfig],
    random_target: Callable[[str], Path],
    random_draft: Callable[..., Path],
    twins: None,
) -> Callable[[str], Engine]:
    def make(draft: str) -> Engine:
        name = str(random_draft(random_target("llama"))) if draft == "dflash" else draft
        engine = build_engine(quick_config(draft=name, max_num_seqs=4, max_nodes=5, max_model_len=200))
        engine.make_attention = attention
        return engine

    return make


def run(engine: Engine) -> Told:
    """Every token with its scores, of requests that come while others are on their way, so that slots change hands."""
    told: Told = {str(number): [] for number in range(len(ASKED))}
    waiting = [
        Request(
            str(number),
            tuple(20 + (number * 31 + i) % (2 + number % 4) for i in range(9)),
            SamplingParams(10 + number % 3 * 7, temperature=0.8 * (number % 2), seed=number, logprobs=asked),
        )
        for number, asked in enumerate(ASKED)
    ]
    while waiting or engine.busy:
        for request in waiting[:2]:
            engine.submit(request)
        del waiting[:2]
        for _ in range(4):
            for output in engine.step().outputs:
                scores: Sequence[TokenLogprobs | None] = output.logprobs or [None] * len(output.tokens)
                told[output.request_id] += zip(output.tokens, scores, strict=True)
    return told


@pytest.mark.parametrize(("draft", "lag"), [("none", 0), ("ngram", 1), ("dflash", 1)])
def test_replayed_for_other_slots_they_tell_the_same_bytes(
    draft: str, lag: int, make_engine: Callable[[str], Engine], recording: Any
) -> None:
    wanted = run(make_engine(draft))
    for name, all_of in wanted.items():
        assert [scores is None for _, scores in all_of] == [ASKED[int(name)] is None] * len(all_of)
    engine = make_engine(draft)
    engine.lag, recorder = lag, recording(engine)
    asked, plans, replays = [()], [PLAN], list[tuple[tuple[int, ...], tuple[int, ...]]]()
    run_plan, set_asked = engine.graphs.run, engine.state.set_asked

    def noted(slots: Sequence[int]) -> None:
        set_asked(slots)
        asked.append(tuple(slots))

    def planned(plan: Plan) -> Any:
        plans.append(plan)
        return run_plan(plan)

    def record(run: Callable[[], Any]) -> Callable[[], Any]:
        launch, first = recorder(run), asked[-1]
        if not plans[-1].scored:
            return launch
        return lambda: replays.append((first, asked[-1])) or launch()

    engine.state.set_asked, engine.graphs.run = noted, planned  # type: ignore[method-assign]
    engine.graphs.make_recorder = lambda: record
    assert run(engine) == wanted
    assert engine.graphs.failure is None
    assert sum(now != first for first, now in replays) > 5
    assert any(len(now) != len(first) for first, now in replays), "more or fewer than when it was recorded"


def test_who_asks_when_it_is_recorded_would_be_noticed(
    make_engine: Callable[[str], Engine], recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(logits: Tensor, choice: Tensor, committed: Any, slots: Tensor, top: int) -> Any:
        return round_scores(logits, choice, committed, torch.tensor(slots.tolist()), top)

    wanted = run(make_engine("none"))
    monkeypatch.setattr("redraft.server.engine.round.round_scores", careless)
    assert run(make_engine("none")) == wanted
    engine = make_engine("none")
    recording(engine)
    assert run(engine) != wanted
