"""Recorded rounds in the engine.  A CPU records nothing, so a recorder that runs again stands in for a GPU's: what is
shown is that rounded plans, graphs of one drafter and rounds read in time give what plain rounds give."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from redraft.benchmarks.local import decode
from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.none import NoDrafter
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.round import Ran
from redraft.server.engine.types import SamplingParams

PROMPTS = [list(range(1, 9)) * 2, list(range(30, 37)), [5, 6] * 70]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    folder = make_tiny_target(tmp_path_factory.mktemp("tiny"))
    return EngineConfig(
        str(folder), "tiny", "", "ngram", device="cpu", dtype="fp32", self_check=False, measure_costs=False
    )


@pytest.fixture(params=[0, 1], ids=["read at once", "read one round behind"])
def recording(config: EngineConfig, request: pytest.FixtureRequest) -> tuple[Engine, list[str]]:
    """An engine whose rounds are recorded, and the drafters whose rounds were."""
    engine, recorded = build_engine(config), list[str]()

    def record(run: Callable[[], Ran]) -> Callable[[], Ran]:
        recorded.append(engine.drafter.name)
        return run

    engine.recorder, engine.lag = record, request.param
    return engine, recorded


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_recorded_rounds_commit_what_others_do(
    config: EngineConfig, recording: tuple[Engine, list[str]], temperature: float
) -> None:
    engine, recorded = recording
    plain, params = build_engine(config), SamplingParams(max_tokens=60, temperature=temperature, seed=3)
    wanted = [one.tokens for one in decode(plain, NoDrafter(), PROMPTS, params)]
    ngram = engine.drafter
    for drafter in (ngram, NoDrafter(), ngram):
        assert [one.tokens for one in decode(engine, drafter, PROMPTS, params)] == wanted
    # each time anew: a graph holds its drafter
    assert set(recorded) == {"ngram", "none"}
    assert recorded.index("none") > 0
    assert "ngram" in recorded[recorded.index("none") :]
