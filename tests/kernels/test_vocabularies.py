"""Kernels that see the vocabulary, at the sizes and in the blocks that are deployed: a few rows against their twins.

49152 is 24 whole blocks of sampling; 151936 ends within one, as it does within those of all others; 1 and 63 are less.
Fresh memory is poisoned, so whatever a kernel leaves out shows.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.kernels.adjust import Bias, MinTokens, Penalties, adjust_kernel, adjust_twin
from redraft.kernels.block_tops import block_size, block_tops_kernel, block_tops_twin
from redraft.kernels.marginals import Noise, marginals_kernel, marginals_twin
from redraft.kernels.pack_tree import pack_tree_twin
from redraft.kernels.sample import SamplingTable, sample_kernel, sample_twin

Poison = Callable[..., AbstractContextManager[Any]]
SIZES = (1, 63, 49152, 151936)
BF16, FP32 = torch.bfloat16, torch.float32


def random_logits(rows: int, V: int, dtype: torch.dtype) -> Tensor:
    """Rows whose best token is anywhere, the last one, and a tie of the first and last beside broken numbers."""
    logits = torch.randn(rows, V, generator=torch.Generator().manual_seed(V)) * 3
    logits[1, V - 1] = 30.0
    logits[2, V // 2] = torch.nan
    logits[2, 0] = logits[2, V - 1] = 25.0
    return logits.to(dtype)


def drawn_table() -> SamplingTable:
    """Slots with all filters, with none, with top_p alone, greedy; and the trash slot."""
    table = SamplingTable.greedy(4, "cpu")
    table.temperature[:3] = torch.tensor([0.8, 1.2, 0.7])
    table.top_p[:3] = torch.tensor([0.9, 1.0, 0.95])
    table.min_p[0], table.top_k[0] = 0.01, 50
    table.seed.copy_(torch.tensor([2**62 + 5, -3, 11, 7, 0]))
    return table


def moved(parts: Any, device: torch.device) -> Any:
    """A dataclass of tensors on ``device``."""
    return type(parts)(*(getattr(parts, name).to(device) for name in parts.__dataclass_fields__))


@pytest.mark.parametrize(
    ("V", "dtype", "sampled", "filtered"),
    [
        *((V, BF16, sampled, False) for V in SIZES for sampled in (False, True)),
        *((V, BF16, True, True) for V in SIZES),
        (63, FP32, True, True),
    ],
)
def test_sample(
    kernel_device: torch.device, poisoned: Poison, V: int, dtype: torch.dtype, sampled: bool, filtered: bool
) -> None:
    logits, table = random_logits(4, V, dtype), drawn_table()
    slot, position = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 4000, 17, 5])
    if filtered and V > 100_000:
        # interpreted, a filtered row of these takes seconds: top_p alone, and a greedy one
        logits, slot, position = logits[2:], slot[2:], position[2:]
    there = [one.to(kernel_device) for one in (logits, slot, position)]
    with poisoned():
        made = sample_kernel(*there, moved(table, kernel_device), sampled=sampled, filtered=filtered)
    assert torch.equal(made.cpu(), sample_twin(logits, slot, position, table, sampled=sampled, filtered=filtered))


@pytest.mark.parametrize(("V", "dtype"), [*((V, BF16) for V in SIZES), (63, FP32)])
def test_adjust(kernel_device: torch.device, poisoned: Poison, V: int, dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, V - 1, V // 2], [0, 0, V - 1], [0, 0, 0]])
    active, length = torch.tensor([True, True, False]), torch.tensor([5, 9, 1])
    rows = pack_tree_twin(ids, torch.tensor([[0, 0, 1]] * 3), torch.ones(3, 3), active, length, 6)
    generator = torch.Generator().manual_seed(0)
    count = torch.randint(0, 4, (3, V), generator=generator, dtype=torch.int32)
    tables = {
        "penalties": Penalties(
            *(torch.tensor([x, y, z]) for x, y, z in ((0.4, 0, 0), (0, 0.3, 0), (1.2, 1, 1))), count
        ),
        "bias": Bias(torch.tensor([[V - 1], [0], [0]]), torch.tensor([[3.0], [-2.0], [0.0]])),
        "minimum": MinTokens(torch.tensor([9, 0, 0]), torch.tensor([[V - 1], [0], [-1]])),
    }
    allowed = torch.randint(-(2**31), 2**31, (len(rows.token), -(-V // 32)), generator=generator).to(torch.int32)
    logits = random_logits(len(rows.token), V, dtype)
    there = {name: moved(table, kernel_device) for name, table in tables.items()}
    with poisoned():
        made = adjust_kernel(
            logits.to(kernel_device), moved(rows, kernel_device), **there, allowed=allowed.to(kernel_device)
        )
    wanted = adjust_twin(logits, rows, **tables, allowed=allowed)
    assert torch.equal(made.cpu().view(torch.int32), wanted.view(torch.int32))


@pytest.mark.parametrize("V", SIZES)
@pytest.mark.parametrize("noisy", [False, True])
def test_marginals(kernel_device: torch.device, poisoned: Poison, V: int, noisy: bool) -> None:
    """Of fp32 logits, which hardly tie: the twin's order of equals is torch's."""
    logits = torch.randn(1, 2, V, generator=torch.Generator().manual_seed(V)) * 3
    logits[0, 1, V - 1], logits[0, 1, V // 3] = 30.0, torch.nan
    scale, key = torch.tensor([0.7, 1.9]), torch.tensor([77])
    noise = Noise(key, key, torch.tensor([0.9])) if noisy else None
    wanted = marginals_twin(logits, scale, 8, None, noise)
    there = None if noise is None else Noise(*(one.to(kernel_device) for one in (key, key, noise.temperature)))
    with poisoned():
        token, value = marginals_kernel(logits.to(kernel_device), scale.to(kernel_device), 8, None, there)
    seen = wanted[1] > -torch.inf
    assert torch.equal(token.cpu()[seen], wanted[0][seen])
    torch.testing.assert_close(value.cpu(), wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("V", SIZES)
def test_block_tops(kernel_device: torch.device, poisoned: Poison, V: int) -> None:
    """Equals in the order of their columns, in every block."""
    logits, scale, block = random_logits(3, V, BF16).unsqueeze(0), torch.tensor([0.7, 1.0, 1.9]), block_size(V)
    kept = min(8, block)
    wanted = block_tops_twin(logits, scale, kept, block)
    with poisoned():
        made = block_tops_kernel(logits.to(kernel_device), scale.to(kernel_device), kept, block)
    assert torch.equal(made.rank.cpu(), wanted.rank)
    real = made.column.cpu() < V
    assert torch.equal(made.column.cpu()[real], wanted.column[real])
    assert torch.equal(made.highest.cpu(), wanted.highest)
    torch.testing.assert_close(made.share.cpu(), wanted.share)
