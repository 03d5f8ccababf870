"""What is timed when an engine starts: work as it is, or its recordings where rounds will be recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from redraft.server.engine.config import EngineConfig
from redraft.server.engine.costs import CostTable
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.measure_costs import Measurement, rising
from redraft.server.engine.recording import Recorder
from redraft.server.engine.rows_plan import row_bucket


@pytest.fixture
def engine(quick_config: Callable[..., EngineConfig]) -> Engine:
    return build_engine(quick_config(draft="ngram", max_num_seqs=2, max_num_batched_tokens=24))


def measured(engine: Engine, make_recorder: Callable[[], Recorder]) -> CostTable:
    measurement = Measurement(engine.state, engine.target, engine.drafter, engine.make_attention, make_recorder)
    with torch.inference_mode():
        return measurement.table(24)


def test_recordings_are_timed_each_in_memory_of_its_own(engine: Engine) -> None:
    recorders, runs, launched = [], [], []

    def make_recorder() -> Recorder:
        def record(run: Callable[[], Any]) -> Callable[[], Any]:
            runs.append(run)
            return lambda: launched.append(len(runs))

        recorders.append(record)
        return record

    table = measured(engine, make_recorder)
    # every pass, attention by few and by many rows, every draft, a round
    assert len(runs) == len(recorders) == len(table.rows) + 2 + len(table.drafts) + 1
    assert set(launched) == set(range(1, len(runs) + 1))


def test_fewer_rows_take_no_longer_than_more(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As measured beside other work: with 4 rows at 8.1 ms drafting looked dearer than it was, and was left out."""
    assert rising([8.1, 7.6, 6.4, 6.5, 8.2]) == [6.4, 6.4, 6.4, 6.5, 8.2]
    assert rising([]) == []
    seconds = iter(range(100, 0, -1))
    monkeypatch.setattr(Measurement, "_seconds", lambda self, run: float(next(seconds)))
    table = measured(engine, lambda: lambda run: run)
    assert len(set(table.passes)) == len(set(table.drafts)) == 1


def test_what_cannot_be_recorded_is_timed_as_it_is(engine: Engine) -> None:
    def fails(run: Callable[[], Any]) -> Callable[[], Any]:
        raise RuntimeError("operation not permitted when stream is capturing")

    assert min(measured(engine, lambda: fails).passes) > 0


def test_a_device_without_memory_is_not_taken_for_one_that_cannot_record(engine: Engine) -> None:
    def short(run: Callable[[], Any]) -> Callable[[], Any]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        measured(engine, lambda: short)


def test_logits_are_made_of_no_more_rows_than_a_round_has(quick_config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill needs none, and of all its rows they would take more memory than anything else."""
    engine = build_engine(quick_config(draft="ngram", max_num_seqs=1, max_num_batched_tokens=64, max_nodes=3))
    made = []
    logits = engine.target.logits
    monkeypatch.setattr(engine.target, "logits", lambda hidden: made.append(len(hidden)) or logits(hidden))
    with torch.inference_mode():
        table = Measurement(engine.state, engine.target, engine.drafter, engine.make_attention).table(64)
    assert table.rows[-1] == 64
    assert max(made) == row_bucket(1 + engine.drafter.max_nodes) < 64
