"""Decoding speed is timed when everything that comes is compiled and recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from redraft.benchmarks import suite_speed
from redraft.benchmarks.local import Decoded, decode
from redraft.benchmarks.suite_prompts import random_prompts
from redraft.benchmarks.suite_speed import same_answers, speed
from redraft.benchmarks.tiny import VOCAB
from redraft.drafts.base import Drafter
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import SamplingParams


@pytest.fixture
def engine(tiny_target: Path) -> Engine:
    sizes: dict[str, Any] = {"max_num_seqs": 3, "max_model_len": 512, "kv_pages": 24}
    quick: dict[str, Any] = {"dtype": "fp32", "device": "cpu", "self_check": False, "measure_costs": False}
    return build_engine(EngineConfig(str(tiny_target), "tiny", "", "ngram", **quick, **sizes))


def test_nothing_is_recorded_while_requests_are_timed_together(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of several requests are of other kinds than those of one."""
    # a recording that is replayed op by op
    monkeypatch.setattr(engine.graphs, "make_recorder", lambda: lambda run: run)
    timed, fresh = suite_speed._together, []

    def watched(*arguments: Any) -> float:
        before = set(engine.graphs.recorded), set(engine.graphs.seen)
        found = timed(*arguments)
        kinds = set(engine.graphs.recorded) - before[0] | set(engine.graphs.seen) - before[1]
        fresh.append(kinds)
        return found

    monkeypatch.setattr(suite_speed, "_together", watched)
    speed(engine, engine.drafter, "random", random_prompts(VOCAB, 5), 16, 1)
    assert engine.graphs.recorded
    assert fresh == [set(), set()]


def test_a_way_that_breaks_leaves_the_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(engine: Engine, drafter: Drafter, prompts: Any, params: SamplingParams) -> list[Decoded]:
        if drafter.name == "ngram":
            raise ValueError("no lookup")
        return decode(engine, drafter, prompts, params)

    monkeypatch.setattr(suite_speed, "decode", broken)
    found = same_answers(engine, engine.drafter, [[1, 2]], 4)
    assert found["plain"]["tokens"] == 4
    assert found["speculative"]["failed"] == "ValueError: no lookup"
