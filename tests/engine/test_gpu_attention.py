"""The GPU's attention where the engine and its drafts use it, interpreted: they fit, and give the CPU's tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from redraft.benchmarks.local import decode
from redraft.drafts.none import NoDrafter
from redraft.kernels import attention
from redraft.kernels.paged_attention import PagedAttention
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import Attention, TwinAttention
from redraft.kernels.triton_support import HAS_TRITON
from redraft.server.engine.config import EngineConfig
from redraft.server.engine.load import build_engine
from redraft.server.engine.types import SamplingParams

PROMPTS = ([5, 9] * 63,)
"""Its tree crosses a page."""


@pytest.mark.usefixtures("own_sums")
@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
@pytest.mark.parametrize("kind", ["dflash", "eagle3"])
def test_tokens_are_those_of_the_cpus_attention(
    kind: str, tiny_target: Callable[[str], Path], random_draft: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_target("llama")
    config = EngineConfig(
        target=str(folder),
        target_name="tiny",
        target_sha="0",
        draft=str(random_draft(folder, kind=kind)),
        draft_ngram=False,
        dtype="fp32",
        device="cpu",
        speculation="3",
        max_num_seqs=2,
        measure_costs=False,
        self_check=False,
    )
    engine = build_engine(config)
    drafter = engine.drafter
    params = SamplingParams(max_tokens=3, temperature=0.0)
    plain = [one.tokens for one in decode(engine, NoDrafter(), PROMPTS, params)]
    used = set()

    class Noted(PagedAttention):
        def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
            used.add((len(q), self.first))
            return super().__call__(q, key, value, dtype)

    def few_rows(rows: Rows, page_table: Tensor, bound: int, head_dim: int) -> Attention:
        """Prefill would take the interpreter a minute."""
        if len(rows.token) > 16:
            return TwinAttention(rows, page_table, bound)
        return attention.block_attention(rows, page_table, bound, head_dim)

    monkeypatch.setattr(attention, "use_triton", lambda *tensors: True)
    monkeypatch.setattr(attention, "PagedAttention", Noted)
    engine.make_attention = few_rows
    assert [one.tokens for one in decode(engine, drafter, PROMPTS, params)] == plain
    assert len(used) > 1, "the target's passes and the draft's"
    assert any(first for _, first in used) == (kind == "eagle3")
