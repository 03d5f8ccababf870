"""Speculation against plain decoding over many prompts: mismatches are counted, whatever they are in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.benchmarks import equality_run as module
from redraft.benchmarks.equality_run import FIRST_SECONDS, PART, equality_run
from redraft.benchmarks.kept_cache import kept_caches, same_cells
from redraft.benchmarks.local import Decoded, decode
from redraft.benchmarks.suite_prompts import random_prompts
from redraft.benchmarks.tiny import VOCAB
from redraft.drafts.none import NoDrafter
from redraft.server.engine.config import PAGE, EngineConfig
from redraft.server.engine.engine import Engine
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import SamplingParams

SLOTS, TOKENS = 4, 12
MANY, SAMPLED = f"speculative, batch {SLOTS}", f"speculative, batch {SLOTS}, T = 0.8"
WAYS = {"speculative, batch 1", f"plain, batch {SLOTS}", MANY, SAMPLED}


@pytest.fixture(scope="module")
def engine(tiny_target: Path) -> Iterator[Engine]:
    sizes = {"max_num_seqs": SLOTS, "max_model_len": 512, "kv_pages": 24}
    quick: dict[str, Any] = {"dtype": "fp32", "device": "cpu", "self_check": False, "measure_costs": False}
    engine = build_engine(EngineConfig(str(tiny_target), "tiny", "", "ngram", **quick, **sizes))
    yield engine
    assert engine.scheduler.stats().pages_used == 0


def test_speculation_is_plain_decoding(engine: Engine) -> None:
    prompts = random_prompts(VOCAB, 7)
    found = equality_run(engine, engine.drafter, prompts, TOKENS)
    assert set(found["ways"]) == WAYS
    assert (found["prompts"], found["max_tokens"]) == (7, TOKENS)
    assert "left_out" not in found
    for way in found["ways"].values():
        assert way["requests"] == 7
        assert way["tokens"] == 7 * TOKENS, "ends of text are ignored"
        assert way["tokens_that_differ"] == way["requests_that_differ"] == way["caches_that_differ"] == 0
        assert way["first"] is None


def test_one_wrong_token_is_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def meddling(engine: Engine, drafter: Any, prompts: Any, params: SamplingParams) -> list[Decoded]:
        found = decode(engine, drafter, prompts, params)
        if drafter.name == "ngram" and len(prompts) > 1 and params.temperature == 0:
            found[1].tokens[5] ^= 1
        return found

    monkeypatch.setattr(module, "decode", meddling)
    ways = equality_run(engine, engine.drafter, random_prompts(VOCAB, 3), TOKENS)["ways"]
    wrong = ways.pop(MANY)
    assert (wrong["tokens_that_differ"], wrong["requests_that_differ"]) == (1, 1)
    assert wrong["first"] == "prompt 1, token 5"
    assert wrong["caches_that_differ"] == 0, "up to there the keys and values are the same"
    assert not any(way["requests_that_differ"] for way in ways.values())


def test_one_wrong_byte_of_the_cache_is_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a key that nobody looks at any more, so that no token tells."""
    vacate = engine.scheduler.release
    prompts = random_prompts(VOCAB, 3)

    def spoiling(request_id: str) -> int | None:
        slot = vacate(request_id)
        # one at a time all are in slot 0
        if engine.drafter.name == "ngram" and slot == 2:
            page = int(engine.state.page_table[slot, 0])
            key = engine.state.kv[1, 0, page * PAGE + len(prompts[2]) - 1, 0, 3:4]
            key.view(torch.uint8)[0] ^= 1
        return slot

    monkeypatch.setattr(engine.scheduler, "release", spoiling)
    ways = equality_run(engine, engine.drafter, prompts, TOKENS)["ways"]
    assert {name: way["caches_that_differ"] for name, way in ways.items()} == {
        "speculative, batch 1": 0,
        f"plain, batch {SLOTS}": 0,
        MANY: 1,
        SAMPLED: 1,
    }
    assert not any(way["tokens_that_differ"] for way in ways.values())


def test_prompts_that_no_longer_fit_are_left_out(engine: Engine) -> None:
    begun = time.perf_counter()
    asked = []

    def fits(seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) < 2

    prompts = [[number % VOCAB] for number in range(PART + 3)]
    found = equality_run(engine, engine.drafter, prompts, 2, fits)
    assert found["prompts"] == PART
    assert found["left_out"] == f"3 of {PART + 3} prompts: no time left"
    assert asked[0] == FIRST_SECONDS
    # what the first part took is what the next one needs
    assert 0 < asked[1] < time.perf_counter() - begun


def test_a_cache_is_kept_by_logical_cell(engine: Engine) -> None:
    prompt = list(range(150))
    with kept_caches(engine) as kept:
        (one,) = decode(engine, NoDrafter(), [prompt], SamplingParams(4, temperature=0.0, ignore_eos=True))
    cells = kept.pop(one.request_id)
    assert not kept
    spec = engine.target.spec
    assert cells.shape[:2] == (spec.layers, 2)
    assert cells.shape[2] >= 256
    assert cells[:, :, :153].abs().amax((0, 1, 3, 4)).min() > 0, "all but the newest token's are there"
    other = cells.clone()
    other.view(torch.uint8)[0, 0, 153, 0, 0] ^= 1
    assert same_cells(cells, other, 153)
    assert not same_cells(cells, other, 154)
    decode(engine, NoDrafter(), [prompt], SamplingParams(4, temperature=0.0))
    assert not kept, "afterwards nothing is kept any more"
