"""Drafts of a pruned vocabulary: the memory that is counted for them, and a request's own tokens beside theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.drafts.checkpoint import read_draft
from redraft.drafts.dflash_weights import pack
from redraft.kernels.linear import Linear
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.draft_choice import choose_draft
from redraft.server.engine.load import build_engine
from redraft.server.engine.target.spec import read_spec
from redraft.server.engine.types import RedraftError, Request, SamplingParams

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_target: Callable[[str], Path]) -> EngineConfig:
    return EngineConfig(str(tiny_target("llama")), "tiny", "0", dtype="fp32", device="cpu", max_num_seqs=2)


@pytest.mark.parametrize("kept", [None, range(40)])
def test_memory_is_counted_as_it_is_taken(
    config: EngineConfig, random_draft: Callable[..., Path], tmp_path: Path, kept: range | None
) -> None:
    folder = random_draft(Path(config.target), into=tmp_path / "d", kept=kept, layers=3)
    choice = choose_draft(replace(config, draft=str(folder)), read_spec(Path(config.target)), CPU)
    weights = pack(read_draft(folder), torch.zeros(512, 64), CPU, torch.float32)
    parts: list[Linear | torch.Tensor] = [weights.fuse, weights.context_kv, weights.head]
    parts += [weights.hidden_norm, weights.norm]
    for layer in weights.layers:
        parts += [layer.qkv, layer.output, layer.gate_up, layer.down, layer.input_norm, layer.post_norm]
    numbers = sum(p.out_features * p.in_features if isinstance(p, Linear) else p.numel() for p in parts)
    assert choice.context.weights == numbers + sum(2 * 16 for _ in weights.layers), (
        "norms of queries and keys are shared"
    )
    assert (choice.context.layers, choice.context.kv_heads, choice.context.head_dim) == (3, 2, 16)


def test_own_tokens_need_a_pruned_block_draft(
    config: EngineConfig, random_draft: Callable[..., Path], tmp_path: Path
) -> None:
    target = Path(config.target)
    whole = random_draft(target, into=tmp_path / "mine")
    pruned = random_draft(target, into=tmp_path / "pruned", kept=range(40))
    eagle3 = random_draft(target, kind="eagle3", into=tmp_path / "e", kept=range(40))
    for name in ("none", "ngram", str(whole), str(eagle3)):
        with pytest.raises(RedraftError, match="--draft-own-tokens needs a DFlash draft with a pruned vocabulary"):
            choose_draft(replace(config, draft=name, draft_own_tokens=4), read_spec(target), CPU)
    # what it proposes then lies outside of the vocabulary, and the output is what it was
    outputs = []
    for changes in ({"draft": "none"}, {"draft": str(pruned), "draft_own_tokens": 4, "draft_ngram": False}):
        engine = build_engine(replace(config, self_check=False, measure_costs=False, **changes))
        engine.submit(Request("a", tuple(range(100, 120)), SamplingParams(max_tokens=12, temperature=0.0)))
        outputs.append([token for output in iter_outputs(engine) for token in output])
    assert outputs[0] == outputs[1]


def iter_outputs(engine: Any) -> Iterator[list[int]]:
    while engine.busy:
        for output in engine.step().outputs:
            yield list(output.tokens)
