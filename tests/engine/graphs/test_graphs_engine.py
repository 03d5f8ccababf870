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
from redraft.server.engine.readback import Stopwatch
from redraft.server.engine.round import Plan, Ran
from redraft.server.engine.rows_plan import recorded_rows
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

    engine.graphs.make_recorder, engine.lag = lambda: record, request.param
    engine.pacer.recorded = recorded_rows(engine.pacer.most_rows, weights=1)
    return engine, recorded


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_recorded_rounds_commit_what_others_do(
    config: EngineConfig, recording: tuple[Engine, list[str]], temperature: float
) -> None:
    engine, recorded = recording
    plain, params = build_engine(config), SamplingParams(max_tokens=60, temperature=temperature, seed=3)
    wanted = [one.tokens for one in decode(plain, NoDrafter(), PROMPTS, params)]
    ngram, none, made = engine.drafter, NoDrafter(), list[list[str]]()
    for drafter in (ngram, none) * 3:
        recorded.clear()
        assert [one.tokens for one in decode(engine, drafter, PROMPTS, params)] == wanted
        made.append(list(recorded))
    assert [set(names) for names in made[:2]] == [{"ngram"}, {"none"}]
    # who comes again finds its graphs; the second time there were kinds that had come once
    assert made[4] == made[5] == []
    assert {kind[0] for kind in engine.graphs.recorded} == {ngram, none}


def test_what_rounds_take_is_learned_of_those_that_are_as_later_ones(
    recording: tuple[Engine, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of a kind compiles and the second is recorded: neither says anything of the third."""
    engine, recorded = recording
    run, rounds, told = engine.graphs.run, list[Plan](), list[float]()

    def counted(plan: Plan) -> Ran:
        rounds.append(plan)
        return run(plan)

    monkeypatch.setattr(Stopwatch, "seconds", 1.0)
    monkeypatch.setattr(engine.graphs, "run", counted)
    monkeypatch.setattr(engine.pacer, "took", lambda work, seconds: told.append(seconds))
    decode(engine, engine.drafter, PROMPTS, SamplingParams(max_tokens=60, temperature=0.9, seed=3))
    firsts = len(engine.graphs.seen) + len(engine.graphs.recorded)
    assert len(recorded) == len(engine.graphs.recorded) > 0
    assert len(told) == len(rounds) - firsts - len(recorded) > 5
    # all that were read while somebody was there
    assert 5 < engine.scheduler.stats().passes.round_seconds <= len(told)
