"""The peers on a tiny target: they answer as the engine's plain decoding does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.benchmarks import peers
from redraft.benchmarks.launches import default_draft
from redraft.benchmarks.local import decode
from redraft.benchmarks.peers import WITH_DRAFT, peer_speed
from redraft.benchmarks.suite_prompts import random_prompts
from redraft.benchmarks.tiny import VOCAB, make_tiny_target
from redraft.drafts.none import NoDrafter
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import SamplingParams

CPU, TOKENS = torch.device("cpu"), 6
PROMPT = "Q: A farmer has 17 cows and buys 5 more. How many cows does he have now? A:"


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


def test_transformers_decodes_with_our_draft(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its assistant gets the draft right: fewer passes of the target than with prompt lookup, and the same text."""
    pytest.importorskip("transformers.models.muse_glimmer_assistant")
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

    calls: list[int] = []
    forward = LlamaForCausalLM.forward

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    monkeypatch.setattr(peers, "WAYS", {"transformers, eager": {}})
    run = peers._run
    passes: list[int] = []

    def noted(*arguments: Any) -> Any:
        calls.clear()
        found = run(*arguments)
        passes.append(len(calls))
        return found

    monkeypatch.setattr(peers, "_run", noted)
    prompt = Tokenizer.from_file(str(smollm2 / "tokenizer.json")).encode(PROMPT).ids
    found = peer_speed(smollm2, [prompt], 32, CPU, torch.float32, default_draft())
    assert found[WITH_DRAFT]["agree"] == 1
    # each way runs twice, the first time to warm up
    assert passes[0] == 2 * found["transformers, eager"]["tokens"]
    # a wrong draft saves none
    assert passes[1] < 0.7 * passes[0]


def test_a_draft_that_transformers_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers.models.muse_glimmer_assistant")
    monkeypatch.setattr(peers, "WAYS", {})
    draft = default_draft()
    causal = replace(draft, config=replace(draft.config, causal=True))
    found = peer_speed(make_tiny_target(tmp_path), random_prompts(VOCAB, 1), TOKENS, CPU, torch.float32, causal)
    assert "both ways" in found[WITH_DRAFT]["skipped"]
