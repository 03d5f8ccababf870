"""The kernels that find cut-offs against their twin: which of a row's tokens are kept, of those that may be drawn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from redraft.kernels.cutoff import cutoff_kernel
from redraft.kernels.filters import FP32_MAX, cutoff_twin, scale_logits, sort_key

INF = float("inf")
LOWEST = -(2**63)
Filter = tuple[float, float, float, int]
"""Temperature, top_p, min_p, top_k."""


def cuts(logits: Tensor, filters: list[Filter], device: torch.device, **sizes: int) -> Tensor:
    """The kernels' cut-off of every row, whose filters are its slot's, one too many as the trash slot has them."""
    table = [torch.tensor(column, device=device) for column in zip(*filters, (1.0, 1.0, 0.0, 0), strict=True)]
    slot = torch.arange(len(filters), device=device)
    return cutoff_kernel(logits.to(device), slot, *table[:3], table[3], **sizes).cpu()


def assert_keeps_the_same(cut: Tensor, logits: Tensor, filters: list[Filter]) -> None:
    for row, (temperature, top_p, min_p, top_k) in enumerate(filters):
        if temperature == 0 or (top_p, min_p, top_k) == (1.0, 0.0, 0):
            assert cut[row] == LOWEST
            continue
        z = scale_logits(logits[row : row + 1], torch.tensor([temperature]))
        key = sort_key(z, torch.arange(z.shape[1]))[0]
        wanted = cutoff_twin(z, torch.tensor([top_p]), torch.tensor([min_p]), torch.tensor([top_k]))
        highest = float(z.max().clamp_min(-FP32_MAX))
        drawable = z[0] >= highest - 28 if abs(highest) < 2**20 else z[0] > -INF
        kept, twins = (drawable & (key >= one) for one in (cut[row], wanted))
        assert torch.equal(kept, twins), f"row {row}: {int(kept.sum())} tokens are kept, not {int(twins.sum())}"


@st.composite
def rows(draw: st.DrawFn) -> tuple[Tensor, list[Filter]]:
    """Flat, usual and steep rows, masked ones, broken ones, numbers beside which no noise counts; ties in 16 bits."""
    V = draw(st.sampled_from([1, 2, 17, 63, 64, 65, 200]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    logits, filters = [], []
    for _ in range(draw(st.integers(1, 4))):
        row = torch.randn(V, generator=g) * draw(st.sampled_from([0.0, 0.01, 3.0, 3.0, 30.0, 1e8, 1e30]))
        row += draw(st.sampled_from([0.0, -50.0, 1e6]))
        for share, broken in draw(st.sampled_from([(), (), ((0.7, -INF),), ((0.2, torch.nan), (0.1, INF))])):
            row[torch.rand(V, generator=g) < share] = broken
        logits.append(row)
        top_p = draw(st.sampled_from([1.0, 0.9, 0.5, 1e-9, 1 - 1e-6]))
        min_p, top_k = draw(st.sampled_from([0.0, 0.05, 1.0])), draw(st.sampled_from([0, 1, 5, 40, V, 10**6]))
        filters.append((draw(st.sampled_from([0.0, 0.3, 0.8, 1.5])), top_p, min_p, top_k))
    return torch.stack(logits).to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))), filters


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy's, in the interpreter
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=rows(), chunk=st.sampled_from([64, 128]), listed=st.sampled_from([8, 2048]))
def test_keeps_what_the_twin_keeps(
    kernel_device: torch.device,
    poisoned: Callable[..., AbstractContextManager[Any]],
    case: tuple[Tensor, list[Filter]],
    chunk: int,
    listed: int,
) -> None:
    """Where more than 8 are left, by sweeps."""
    with poisoned():
        cut = cuts(*case, kernel_device, chunk=chunk, listed=listed)
    assert_keeps_the_same(cut, *case)


@pytest.mark.parametrize("V", [300, 2500])
def test_equal_tokens_are_told_apart_by_their_ids(kernel_device: torch.device, V: int) -> None:
    """More than can be listed at 2,500; the cut-off is within one value in all rows."""
    logits = torch.full((4, V), 2.5)
    logits[1, V // 2 :] = 1.0
    logits[2, :-3] = -INF
    filters = [(1.0, 1.0, 0.0, 7), (0.7, 0.25, 0.0, 0), (1.0, 1.0, 0.0, 2), (1.3, 0.5, 0.0, V // 2)]
    cut = cuts(logits, filters, kernel_device)
    assert_keeps_the_same(cut, logits, filters)
    kept = [int((sort_key(scale_logits(row[None], torch.ones(1)), torch.arange(V)) >= one).sum()) for row, one in
            zip(logits[[0, 2]], cut[[0, 2]], strict=True)]  # fmt: skip
    assert kept == [7, 2]


@pytest.mark.parametrize("first", [0.0, -0.1095])
def test_among_close_tokens_what_is_above_counts(kernel_device: torch.device, first: float) -> None:
    """Dozens are left to the end; those before them are between the same first marks, or above."""
    close = first - torch.rand(300, generator=torch.Generator().manual_seed(1)) * 3e-3
    row = torch.cat((torch.zeros(3), close))
    filters = [(1.0, top_p, 0.0, top_k) for top_p in (0.1, 0.5, 0.9) for top_k in (0, 2, 150)]
    filters += [(1.0, 1.0, 0.0, 100), (1.0, 1.0, 0.0, 302)]
    logits = row.expand(len(filters), -1).contiguous()
    assert_keeps_the_same(cuts(logits, filters, kernel_device), logits, filters)


@pytest.mark.parametrize("top_k", [1, 3, 400])
def test_top_k_reaches_what_weighs_nothing(kernel_device: torch.device, top_k: int) -> None:
    """Of a steep row nothing but the best may be drawn; of one beyond noise's reach the k-th token is found."""
    logits = torch.stack([torch.arange(400.0) * 40, torch.arange(400.0) * 1e7])
    filters = [(1.0, 0.9, 0.0, top_k)] * 2
    cut = cuts(logits, [(1.0, 1.0, 0.0, top_k)] * 2, kernel_device)
    assert int((sort_key(logits[1:], torch.arange(400)) >= cut[1]).sum()) == top_k
    for asked in (filters, [(1.0, 1.0, 0.0, top_k)] * 2):
        assert_keeps_the_same(cuts(logits, asked, kernel_device), logits, asked)
