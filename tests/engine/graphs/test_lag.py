"""On a GPU the host launches a round before it has heard of the last, and pages are there for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import Request, SamplingParams


@pytest.fixture(scope="module")
def config(quick_config: Callable[..., EngineConfig]) -> EngineConfig:
    return quick_config(draft="ngram", max_num_seqs=3, max_nodes=7, max_model_len=400, prefix_caching=False)


def on(device: str, config: EngineConfig) -> Engine:
    """An engine that is told that its state lies on ``device``, on which it launches nothing."""
    made = build_engine(config)
    made.state.device = torch.device(device)
    parts = made.state, made.scheduler, made.make_attention, made.pacer, made.grammars
    return Engine(made.info, made.target, made.drafter, *parts)


@pytest.mark.parametrize(("device", "lag"), [("cuda", 1), ("cuda:1", 1), ("cpu", 0)])
def test_a_gpu_is_read_one_round_behind(device: str, lag: int, config: EngineConfig) -> None:
    assert on(device, config).lag == lag


def lacking(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[int, int]], int]:
    """Rounds that pages were asked for with how many were unread; and how often a round had a cell without a page.

    What a round may write to follows from lengths on the device, which know more than the host.
    """
    asked, missing = list[tuple[int, int]](), 0
    grow, launch, state = engine.scheduler.grow, engine._launch, engine.state

    def grown(rounds: int) -> Any:
        asked.append((rounds, len(engine.pending)))
        return grow(rounds)

    def launched(decoding: Sequence[Any], *rest: Any) -> Any:
        nonlocal missing
        for sequence in decoding:
            slot = sequence.running_slot
            reach = int(state.length[slot]) + engine.scheduler.tree_rows
            missing += bool(state.active[slot]) and -(-reach // PAGE) > int((state.page_table[slot] > 0).sum())
        return launch(decoding, *rest)

    monkeypatch.setattr(engine.scheduler, "grow", grown)
    monkeypatch.setattr(engine, "_launch", launched)
    for number in range(5):
        # what repeats itself is accepted by the tree, and so comes to a page's end in large steps
        prompt = tuple(20 + i % (2 + number) for i in range(PAGE - 30 - number))
        engine.submit(Request(str(number), prompt, SamplingParams(max_tokens=150 + number, temperature=0.0)))
    while engine.busy:
        engine.step()
    return asked, missing


@pytest.mark.parametrize("lag", [0, 1])
def test_pages_are_there_for_every_round_that_the_host_has_not_heard_of(
    lag: int, config: EngineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine(config)
    engine.lag = lag
    asked, missing = lacking(engine, monkeypatch)
    assert missing == 0
    assert all(rounds == unread + 1 for rounds, unread in asked)
    assert {rounds for rounds, _ in asked} == {1, 1 + lag}


def test_pages_for_one_round_would_not_do(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build_engine(config)
    engine.lag, grow = 1, engine.scheduler.grow
    monkeypatch.setattr(engine.scheduler, "grow", lambda rounds: grow(1))
    assert lacking(engine, monkeypatch)[1] > 0
