"""A block draft through the GPU's kernels, interpreted: the same trees and context as in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from redraft.drafts import dflash
from redraft.drafts.base import Bounds, Candidates, DraftState, Passed
from redraft.drafts.checkpoint import read_draft
from redraft.drafts.dflash import DFlashDrafter
from redraft.kernels import active_slots, block_rows, layer_ops, linear, marginals
from redraft.kernels.layer_gpu import GpuOps
from redraft.kernels.sample import SamplingTable
from redraft.kernels.tree_attention import CHUNK
from redraft.kernels.triton_support import INTERPRETED

HIDDEN, VOCAB, POSITIONS = 64, 331, 160


def state(drafter: DFlashDrafter) -> DraftState:
    """Four slots, of which two are active, one at the end of a page; a context that nobody has computed."""
    torch.manual_seed(3)
    sampling = SamplingTable.greedy(4, "cpu")
    sampling.temperature[1], sampling.seed[1] = 9.0, -(2**40)
    context = drafter.context
    return DraftState(
        tokens=torch.randint(VOCAB, (5, POSITIONS)),
        length=torch.tensor([0, CHUNK - 2, 40, 9, 0]),
        active=torch.tensor([False, True, False, True, False]),
        page_table=torch.tensor([[0, 0], [2, 4], [0, 0], [3, 1], [0, 0]]),
        kv=torch.randn(context.layers, 2, 5 * CHUNK, context.kv_heads, context.head_dim),
        sampling=sampling,
    )


def run(checkpoint: Path, own_tokens: int) -> tuple[DFlashDrafter, DraftState, list[Candidates]]:
    """A drafter, its state after one ``absorb``, and trees with noise and without."""
    generator = torch.Generator().manual_seed(4)
    embedding, head = (torch.randn(VOCAB, HIDDEN, generator=generator) for _ in range(2))
    drafter = DFlashDrafter(read_draft(checkpoint), embedding, head, POSITIONS, 7, own_tokens=own_tokens)
    here = state(drafter)
    position = torch.tensor([60, 61, 3])
    cell = torch.tensor([2 * CHUNK + 60, 2 * CHUNK + 61, 3 * CHUNK + 3])
    taps = torch.randn(3, len(drafter.config.taps), HIDDEN, generator=generator)
    drafter.absorb(Passed(taps, here.tokens[0, :3], position, cell, before=cell), here.kv)
    # of three slots one is nobody's
    bounds = [Bounds(CHUNK, 3, sampled) for sampled in (False, True)]
    return drafter, here, [drafter.propose(here, one) for one in bounds]


@pytest.mark.parametrize("own_tokens", [0, 3])
def test_trees_are_those_of_plain_torch(
    own_tokens: int,
    random_target: Callable[[str], Path],
    random_draft: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not INTERPRETED:
        pytest.skip("on a GPU the suite's checks say it; here kernels are interpreted, which takes TRITON_INTERPRET=1")
    checkpoint = random_draft(random_target("llama"), kept=range(0, VOCAB, 4), layers=1, block_size=4)
    monkeypatch.setattr("redraft.kernels.linear.prepacks", lambda device, dtype: False)
    for module in ("layer_ops", "attention"):
        monkeypatch.setattr(f"redraft.kernels.{module}.load_fused", lambda: None)
    _drafter, plain, wanted = run(checkpoint, own_tokens)
    launched = []
    for module, kernel in ((active_slots, "active_slots"), (block_rows, "block_rows"), (marginals, "marginals")):
        real = getattr(module, f"{kernel}_kernel")

        def counted(*arguments: object, kernel: str = kernel, real: Callable[..., object] = real, **options: object):
            launched.append(kernel)
            return real(*arguments, **options)

        monkeypatch.setattr(module, f"{kernel}_kernel", counted)
    for module in (active_slots, block_rows, marginals, layer_ops, linear, dflash):
        monkeypatch.setattr(module, "use_triton", lambda *tensors: True)
    drafter, gpu, made = run(checkpoint, own_tokens)
    assert type(drafter.block_ops) is GpuOps
    assert launched == ["active_slots", "block_rows", "marginals"] * 2
    # fp32 sums in other orders, through a layer
    torch.testing.assert_close(gpu.kv, plain.kv, rtol=1e-4, atol=1e-4)
    assert not torch.equal(wanted[0].token, wanted[1].token), "the noise decides some"
    for one, other in zip(made, wanted, strict=True):
        assert torch.equal(one.token, other.token)
        assert torch.equal(one.parent, other.parent)
        torch.testing.assert_close(one.score, other.score, rtol=1e-3, atol=1e-6)
