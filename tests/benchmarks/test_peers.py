"""The peers on a tiny target: they answer as the engine's plain decoding does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from redraft.benchmarks import peers
from redraft.benchmarks.local import decode
from redraft.benchmarks.peers import peer_speed
from redraft.benchmarks.suite_prompts import random_prompts
from redraft.benchmarks.tiny import VOCAB, make_tiny_target
from redraft.drafts.none import NoDrafter
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import SamplingParams

CPU, TOKENS = torch.device("cpu"), 6


def test_ways_to_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, prompts = make_tiny_target(tmp_path), random_prompts(VOCAB, 2)
    monkeypatch.setitem(peers.WAYS, "broken", {"no_such_option": 1})
    found = peer_speed(folder, prompts, TOKENS, CPU, torch.float32)
    assert "no_such_option" in found["broken"]["failed"]
    assert "skipped" in found["transformers, static cache and compile"]
    config = EngineConfig(
        str(folder), "tiny", "", "none", dtype="fp32", device="cpu", self_check=False, measure_costs=False
    )
    wanted = decode(build_engine(config), NoDrafter(), prompts, SamplingParams(TOKENS, temperature=0.0))
    for name in ("transformers, eager", "transformers, prompt lookup"):
        assert found[name]["tokens"] == sum(len(one.tokens) for one in wanted)
        assert found[name]["agree"] == found[name]["prompts"] == 2
        assert found[name]["tokens_per_second"] > 0
