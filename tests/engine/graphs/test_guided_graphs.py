"""Rounds with grammars, recorded in three parts and replayed with other trees and masks, commit the same tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from llguidance import LLMatcher
from torch import Tensor

from redraft.benchmarks.tiny import make_tiny_target
from redraft.kernels.paged_attention import PagedTwin
from redraft.kernels.rows import Rows
from redraft.server.engine import guiding
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.guiding import TreeMasks
from redraft.server.engine.load import build_engine
from redraft.server.engine.mask_table import MaskTable
from redraft.server.engine.rows_plan import recorded_rows
from redraft.server.engine.types import Request, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 6}, "kind": {"enum": ["first", "second"]}},
    "required": ["title", "kind"],
    "additionalProperties": False,
}
JSON = LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA))
CHOICE = LLMatcher.grammar_from_regex("(ab|ba){3,9}")
SIZES = {"max_num_seqs": 3, "max_nodes": 5, "max_model_len": 256, "max_num_batched_tokens": 64}


def attention(rows: Rows, page_table: Tensor, position_bound: int, head_dim: int) -> PagedTwin:
    return PagedTwin(rows, page_table, position_bound)


@pytest.fixture(autouse=True)
def _guided(twins: None, unhurried: None) -> None:
    """Everything is an op, and walks take the time that they need."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_target(tmp_path_factory.mktemp("tiny"), tokenizer=True)


@pytest.fixture
def make_engine(
    quick_config: Callable[..., EngineConfig], folder: Path, random_draft: Callable[..., Path]
) -> Callable[[str], Engine]:
    def make(draft: str) -> Engine:
        name = str(random_draft(folder)) if draft == "dflash" else draft
        engine = build_engine(quick_config(target=str(folder), draft=name, **SIZES))
        engine.make_attention = attention
        return engine

    return make


def requests(count: int) -> list[Request]:
    """With one grammar, another or none; greedy or not; what repeats itself gets whole trees."""
    made = []
    for number in range(count):
        params = SamplingParams(
            24, temperature=0.9 * (number % 2), seed=number, logprobs=2 if number % 5 == 4 else None
        )
        prompt = tuple(30 + (number * 7 + i) % (2 + number % 4) for i in range(6 + 9 * (number % 3)))
        made.append(Request(str(number), prompt, params, grammar=(JSON, "", CHOICE, "")[number % 4] or None))
    return made


def run(engine: Engine, asked: Sequence[Request]) -> dict[str, list[Any]]:
    """Tokens, scores and how it ended, of requests that come while others are on their way."""
    told = {request.request_id: list[Any]() for request in asked}
    waiting = list(asked)
    while waiting or engine.busy:
        if waiting:
            engine.submit(waiting.pop(0))
        for _ in range(3):
            for output in engine.step().outputs:
                told[output.request_id] += zip(output.tokens, output.logprobs or output.tokens, strict=True)
                told[output.request_id] += [output.finish_reason] * (output.finish_reason is not None)
    return told


@pytest.mark.parametrize(("draft", "lag"), [("none", 0), ("ngram", 1), ("dflash", 1)])
def test_replayed_they_commit_the_same(
    draft: str, lag: int, make_engine: Callable[[str], Engine], recording: Any
) -> None:
    wanted = run(make_engine(draft), requests(14))
    engine = make_engine(draft)
    recorder, engine.lag, engine.pacer.recorded = recording(engine), lag, recorded_rows(64, 1)
    assert run(engine, requests(14)) == wanted
    assert engine.graphs.failure is None
    plans = [plan for _, plan in engine.graphs.recorded]
    guided = [plan for plan in plans if plan.guided]
    assert recorder.recorded == len(plans) + 2 * len(guided)
    assert {plan.forced for plan in guided} == {False, draft != "none"}
    assert any(plan.prefill for plan in guided), "beside prefill"
    recorded = recorder.recorded
    assert run(engine, requests(14)) == wanted
    assert recorder.launched > 3 * recorded, "most rounds are replays"


def test_masks_are_made_while_the_targets_pass_runs(
    make_engine: Callable[[str], Engine], recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part by part: the tree is looked at before the pass is launched, and waited for behind that."""
    engine = make_engine("ngram")
    recorder, happened = recording(engine), list[str]()
    see, write = TreeMasks.see, TreeMasks.write

    def record(run: Callable[[], Any]) -> Callable[[], Any]:
        launch = recorder(run)
        return lambda: happened.append("launch") or launch()

    monkeypatch.setattr(TreeMasks, "see", lambda self, rows: happened.append("see") or see(self, rows))
    monkeypatch.setattr(TreeMasks, "write", lambda self, *there: happened.append("write") or write(self, *there))
    engine.graphs.make_recorder = lambda: record
    for _ in range(2):
        happened.clear()
        run(engine, requests(1))
    prompt, rounds = happened[:1], len(happened) // 5
    assert rounds > 2
    assert happened == prompt + ["launch", "see", "launch", "write", "launch"] * rounds


def test_what_a_walk_did_not_reach_is_not_accepted_in_a_replay_either(
    make_engine: Callable[[str], Engine], recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked = make_engine("ngram"), requests(1)[0]
    recorder = recording(engine)

    def accepted() -> tuple[list[int], int]:
        engine.submit(asked)
        outputs = [output for _ in iter(lambda: engine.busy, False) for output in engine.step().outputs]
        return [token for output in outputs for token in output.tokens], sum(output.accepted for output in outputs)

    for _ in range(3):
        wanted, usual = accepted()
    monkeypatch.setattr(guiding, "MASK_SECONDS", -math.inf)
    # rounds that commit less are of other kinds, until they have come often enough
    for _ in range(3):
        assert accepted() == (wanted, 0)
    assert usual > 3
    launched = recorder.launched
    assert accepted() == (wanted, 0)
    assert recorder.launched - launched == 1 + 3 * len(wanted), "all of them are replays, as is the prompt's pass"


def test_masks_that_a_recording_keeps_would_be_noticed(
    make_engine: Callable[[str], Engine], recording: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = MaskTable.read

    def known_to_the_host(self: MaskTable, rows: int) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(part.tolist(), dtype=torch.int32) for part in read(self, rows))

    wanted = run(make_engine("none"), requests(3))
    monkeypatch.setattr(MaskTable, "read", known_to_the_host)
    assert run(make_engine("none"), requests(3)) == wanted
    engine = make_engine("none")
    recording(engine)
    assert run(engine, requests(3)) != wanted
