"""``bench load`` in process: engines in children of this process, on the tiny target."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from redraft.benchmarks.load import Settings, Sinks, run
from redraft.benchmarks.load_clients import EngineUnderLoad
from redraft.benchmarks.load_contest import engines
from redraft.benchmarks.load_plan import closed_levels, open_levels
from redraft.benchmarks.measure import Ask
from redraft.benchmarks.tiny import make_tiny_target
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.types import FinishReason, RedraftError, Request, RoundOutput

PROMPTS = ("Repeat a b c a b c a b c.", "What is two and two?", "Name a colour. " * 20)
ASK = Ask(max_tokens=5, temperature=0.5, seed=7)


class FakeEngine:
    """Plays ``outputs`` to everything."""

    def __init__(self, *outputs: RoundOutput) -> None:
        self.outputs = outputs
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> AsyncGenerator[RoundOutput, None]:
        self.requests.append(request)
        for output in self.outputs:
            yield replace(output, request_id=request.request_id)


def ask(engine: Any) -> Any:
    client = EngineUnderLoad(engine, lambda prompt: (1, 2, len(prompt)))
    return asyncio.run(client.answer("hello", ASK))


def test_rounds_become_events() -> None:
    engine = FakeEngine(
        RoundOutput("", (5,), prompt_seconds=0.1),
        RoundOutput("", (6, 7, 8), accepted=2, drafted=4),
        RoundOutput("", (9,), drafted=3, finish_reason=FinishReason.STOP),
        RoundOutput("", finish_reason=FinishReason.STOP),
    )
    answer = ask(engine)
    assert [event.tokens for event in answer.events] == [1, 3, 1]
    assert (answer.tokens, answer.units) == (5, (5, 6, 7, 8, 9))
    assert (answer.rounds, answer.drafted, answer.counted) == ((2, 0, 1), 7, True)
    (request,) = engine.requests
    assert request.prompt == (1, 2, 5)
    assert (request.params.max_tokens, request.params.temperature, request.params.seed) == (5, 0.5, 7)


def test_failures_are_told() -> None:
    broken = RoundOutput("", finish_reason=FinishReason.ERROR, error="the engine's process ended")
    with pytest.raises(RedraftError, match="process ended"):
        ask(FakeEngine(RoundOutput("", (5,)), broken))
    with pytest.raises(RedraftError, match="without a token"):
        ask(FakeEngine(RoundOutput("", finish_reason=FinishReason.STOP)))


def config(target: Path, **settings: Any) -> EngineConfig:
    common: dict[str, Any] = {"dtype": "fp32", "device": "cpu", "prefix_caching": False}
    # neither is what is tested, and both take seconds
    common |= {"self_check": False, "measure_costs": False}
    return EngineConfig(str(target), "tiny", "sha", **common, **settings)


def test_two_engines(
    tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # children inherit it; see conftest's one_thread
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    levels = [*closed_levels((1, 3), len(PROMPTS), None), *open_levels((50.0,), len(PROMPTS), 4)]
    opening = engines(config(tiny_target, draft="ngram", max_nodes=4, max_num_seqs=3), PROMPTS, 24)
    settings = Settings(max_tokens=24, temperature=0.8, repeat=1)
    sinks = Sinks(results=tmp_path)
    run(opening, PROMPTS, levels, settings, sinks, ["redraft", "bench", "load"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "load.jsonl").read_text()) == report
    (picture,) = tmp_path.glob("load-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    engine = report["engine"]
    assert (engine["draft"], engine["plain"]["draft"], engine["max_num_seqs"]) == ("ngram-1", "none", 3)
    assert engine["fingerprint"] == engine["plain"]["fingerprint"]
    for level in report["levels"]:
        plain, speculative = level["plain"], level["speculative"]
        assert level["parity"] == 1
        assert level["compared"] == level["requests"]
        assert (plain["errors"], speculative["errors"]) == (0, 0)
        assert plain["tokens"] == speculative["tokens"]
        assert plain["tau"] == 1 <= speculative["tau"]
        assert plain["nodes_per_round"] == 0 < speculative["nodes_per_round"]
        assert plain["event_tokens"] == speculative["event_tokens"] == "counted"
        for side in (plain, speculative):
            assert 0 < side["ttft_p50"] <= side["ttft_p90"] <= side["ttft_p99"]
            assert 0 < side["itl_p50"] <= side["itl_p90"] <= side["itl_p99"]
    assert report["levels"][0]["speculative"]["tau"] > 1, "the tiny target repeats itself"


def test_a_target_without_a_template(tmp_path: Path) -> None:
    folder = make_tiny_target(tmp_path / "target", tokenizer=True)
    (folder / "tokenizer_config.json").write_text("{}")

    async def main() -> None:
        async with engines(config(folder), PROMPTS, 24):
            pass

    with pytest.raises(RedraftError, match="tiny has no chat template"):
        asyncio.run(main())
