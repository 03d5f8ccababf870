"""Rows of logits in compiled C, against torch and against a literal reading of ties, NaN and infinities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.sample_cpu import greedy_rows
from redraft.kernels.vocab_cpu import best_of_rows, greedy, is_compiled_for

pytestmark = pytest.mark.skipif(load_fused() is None, reason="there is no C compiler")
DTYPES = [torch.float32, torch.bfloat16]
SPECIAL = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0, 1e-40])


def logits(rows: int, columns: int, dtype: torch.dtype, special: bool) -> Tensor:
    """Few different numbers, so that many are equal; with ``special`` rows of what is no ordinary number, too."""
    random = torch.Generator().manual_seed(rows * columns)
    made = torch.randn(rows, columns, generator=random).mul_(4).round_().div_(4)
    if special:
        picked = SPECIAL[torch.randint(len(SPECIAL), made.shape, generator=random)]
        made = torch.where(torch.rand(made.shape, generator=random) < 0.5, picked, made)
        made[0], made[1 % rows], made[2 % rows] = torch.nan, -torch.inf, -3.0
        made[2 % rows, columns // 2] = torch.nan
    return made.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 17), (8, 1000), (3, 49152)])
def test_the_largest_is_torchs(rows: int, columns: int, special: bool, dtype: torch.dtype) -> None:
    given = logits(rows, columns, dtype, special)
    assert torch.equal(greedy(given), greedy_rows(given))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(("columns", "kept"), [(1, 1), (9, 8), (40, 40), (1000, 8), (1003, 64), (16384, 32)])
def test_the_likeliest_of_every_row(columns: int, kept: int, special: bool, dtype: torch.dtype) -> None:
    given, scale = logits(6, columns, dtype, special).view(2, 3, columns), torch.tensor([0.5, 1.0, 1.7])
    z, column, total = best_of_rows(given, scale, kept)
    plain = given.float() / scale[:, None]
    plain = torch.where(plain.isnan(), -torch.inf, plain).clamp(max=torch.finfo(torch.float32).max)
    # stable: equals in the order of their columns
    wanted, order = plain.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(z, wanted[..., :kept])
    assert torch.equal(column, order[..., :kept])
    torch.testing.assert_close(total, plain.logsumexp(-1, keepdim=True), rtol=2e-6, atol=2e-6)


def test_who_is_taken() -> None:
    plain = torch.zeros(2, 3)
    assert is_compiled_for(plain)
    assert is_compiled_for(plain.bfloat16())
    assert not any(map(is_compiled_for, (plain.half(), plain.double(), plain[:0], torch.nn.Parameter(plain))))
    with torch._subclasses.FakeTensorMode():
        assert not is_compiled_for(torch.zeros(2, 3))
