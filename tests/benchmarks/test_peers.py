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
from redraft.benchmarks.peers import KEPT, STATIC, WITH_DRAFT, fastest_compiled, peer_speed, run_way
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
    assert all("skipped" in found[name] for name in (STATIC, KEPT))
    assert fastest_compiled(found) is None
    config = EngineConfig(
        str(folder), "tiny", "", "none", dtype="fp32", device="cpu", self_check=False, measure_costs=False
    )
    params = SamplingParams(TOKENS, temperature=0.0, ignore_eos=True)
    wanted = decode(build_engine(config), NoDrafter(), prompts, params)
    for name in ("transformers, eager", "transformers, prompt lookup"):
        assert found[name]["tokens"] == sum(len(one.tokens) for one in wanted) == 2 * TOKENS
        assert found[name]["agree"] == found[name]["prompts"] == 2
        assert found[name]["tokens_per_second"] > 0
        assert found[name]["compiled"] == 0


def test_nothing_is_compiled_while_the_clock_runs(tmp_path: Path) -> None:
    """Prompts that get longer one by one: ``generate``'s own cache would grow with them, and compile again."""
    from transformers import AutoModelForCausalLM, CompileConfig

    prompts = random_prompts(VOCAB, 4)
    assert [len(prompt) for prompt in prompts] == sorted({len(prompt) for prompt in prompts})
    model = AutoModelForCausalLM.from_pretrained(make_tiny_target(tmp_path), dtype=torch.float32).eval()
    # Dynamo alone, without what it hands graphs to; on a CPU only on this private demand
    compiling = CompileConfig(backend="eager", mode=None)
    compiling._compile_all_devices = True
    model.generation_config.eos_token_id = None
    _, eager, compiled = run_way(model, prompts, TOKENS, CPU, {})
    assert compiled == 0
    assert all(len(answer) == TOKENS for answer in eager)
    for way in (STATIC, KEPT):
        torch._dynamo.reset()
        options = {**peers.WAYS[way], "compile_config": compiling}
        before = peers.compiled_graphs()
        _, answers, compiled = run_way(model, prompts, TOKENS, CPU, options)
        assert peers.compiled_graphs() > before
        assert (answers, compiled) == (eager, 0)


def test_a_way_that_no_longer_fits_is_said_to_be_left_out(tmp_path: Path) -> None:
    prompts = random_prompts(VOCAB, 1)
    found = peer_speed(make_tiny_target(tmp_path), prompts, TOKENS, CPU, torch.float32, fits=lambda seconds: False)
    assert {found[name]["skipped"] for name in found if name not in (STATIC, KEPT)} == {"no time left"}


def test_ours_is_compared_with_the_faster_of_two() -> None:
    found = {STATIC: {"tokens_per_second": 400.0}, KEPT: {"tokens_per_second": 500.0}}
    assert fastest_compiled(found) == 500.0
    assert fastest_compiled({STATIC: {"tokens_per_second": 400.0}, KEPT: {"failed": "no"}}) == 400.0


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
    run = peers.run_way
    passes: list[int] = []

    def noted(*arguments: Any) -> Any:
        calls.clear()
        found = run(*arguments)
        passes.append(len(calls))
        return found

    monkeypatch.setattr(peers, "run_way", noted)
    prompt = Tokenizer.from_file(str(smollm2 / "tokenizer.json")).encode(PROMPT).ids
    found = peer_speed(smollm2, [prompt], 32, CPU, torch.float32, default_draft())
    assert found[WITH_DRAFT]["agree"] == 1
    # each way answers three times, twice to warm up
    assert passes[0] == 3 * found["transformers, eager"]["tokens"]
    # a wrong draft saves none
    assert passes[1] < 0.7 * passes[0]


def test_a_draft_that_transformers_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers.models.muse_glimmer_assistant")
    monkeypatch.setattr(peers, "WAYS", {})
    draft = default_draft()
    causal = replace(draft, config=replace(draft.config, causal=True))
    found = peer_speed(make_tiny_target(tmp_path), random_prompts(VOCAB, 1), TOKENS, CPU, torch.float32, causal)
    assert "both ways" in found[WITH_DRAFT]["skipped"]
