"""Decoding on an engine in this process leaves it idle and usable, however it ends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redraft.benchmarks.local import decode
from redraft.drafts.none import NoDrafter
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import RedraftError, Request, SamplingParams

PARAMS = SamplingParams(max_tokens=12, temperature=0.0)


@pytest.fixture(scope="module")
def engine(tiny_target: Path) -> Engine:
    return build_engine(
        EngineConfig(str(tiny_target), "tiny", "", draft="ngram", dtype="fp32", device="cpu", max_num_seqs=2)
    )


@pytest.fixture(autouse=True)
def _idle_afterwards(engine: Engine) -> Iterator[None]:
    yield
    assert not engine.busy
    engine.scheduler.check_integrity()


def test_more_prompts_than_slots(engine: Engine) -> None:
    prompts = [[5, 6, 7], [8] * 20, [9, 9, 10, 11]]
    together = decode(engine, engine.drafter, prompts, PARAMS)
    for one, prompt in zip(together, prompts, strict=True):
        (alone,) = decode(engine, NoDrafter(), [prompt], PARAMS)
        assert one.tokens == alone.tokens
        assert sum(one.committed) == len(one.tokens)
        assert alone.rounds == (len(alone.tokens),)
        assert alone.seconds > 0


def test_a_refused_prompt_takes_back_the_others(engine: Engine) -> None:
    with pytest.raises(RedraftError, match="the most that fits"):
        decode(engine, engine.drafter, [[1, 2], [3] * 5000], PARAMS)


def test_an_interrupted_request_is_given_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    passes, make = [], engine.make_attention

    def interrupted(*arguments: Any) -> Any:
        passes.append(arguments)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return make(*arguments)

    monkeypatch.setattr(engine, "make_attention", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(engine, NoDrafter(), [[1, 2, 3]], PARAMS)


def test_an_engine_at_work_is_not_touched(engine: Engine) -> None:
    engine.submit(Request("somebody", (1, 2), PARAMS))
    with pytest.raises(RuntimeError, match="idle"):
        decode(engine, NoDrafter(), [[1]], PARAMS)
    engine.cancel("somebody")


def test_an_engine_that_broke_can_be_asked_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a round not yet read back, as on a GPU."""
    monkeypatch.setattr(engine, "lag", 1)
    (wanted,) = decode(engine, NoDrafter(), [[1, 2, 3]], PARAMS)
    passes, make = [], engine.make_attention

    def broken(*arguments: Any) -> Any:
        passes.append(len(engine.pending))
        if len(passes) == 5:
            raise ValueError("no such kernel")
        return make(*arguments)

    monkeypatch.setattr(engine, "make_attention", broken)
    with pytest.raises(ValueError, match="no such kernel"):
        decode(engine, NoDrafter(), [[1, 2, 3]], PARAMS)
    assert passes[4] == 1
    assert decode(engine, NoDrafter(), [[1, 2, 3]], PARAMS)[0].tokens == wanted.tokens
