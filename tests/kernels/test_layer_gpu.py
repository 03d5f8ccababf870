"""Norm and rotation with the cache against their twins; ``GpuOps`` asks for the right things."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.kernels.layer_gpu import GpuOps
from redraft.kernels.layer_torch import TorchOps
from redraft.kernels.linear import Linear
from redraft.kernels.rms_norm import rms_norm_kernel, rms_norm_twin
from redraft.kernels.rope import rope_table
from redraft.kernels.rope_cache import rope_cache_kernel

EPS = 1e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# one rounding of a result that fp32 arithmetic in another order has changed in its last bits
CLOSE = {
    torch.float32: {"rtol": 2e-6, "atol": 2e-6},
    torch.float16: {"rtol": 2**-10, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2**-7, "atol": 2e-6},
}


def both(device: torch.device, heads: int, kv_heads: int, dim: int) -> tuple[GpuOps, TorchOps]:
    cos, sin = rope_table(10000.0 ** (-torch.arange(dim // 2, device=device) / (dim // 2)), 64)
    return GpuOps(cos, sin, heads, EPS), TorchOps(cos, sin, heads, kv_heads, EPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 63, 1025])
def test_norm(
    kernel_device: torch.device, poisoned: Callable[[], AbstractContextManager[None]], width: int, dtype: torch.dtype
) -> None:
    x = torch.randn(5, width, device=kernel_device).mul_(30).to(dtype)
    x[3] = 0
    weight = torch.randn(width, device=kernel_device)
    with poisoned():
        made = rms_norm_kernel(x, weight, EPS)
    torch.testing.assert_close(made, rms_norm_twin(x, weight, EPS), **CLOSE[dtype])
    assert torch.equal(rms_norm_kernel(x[4:], weight, EPS), made[4:])
    with pytest.raises(ValueError, match="they must agree"):
        rms_norm_kernel(x, torch.ones(width + 1, device=kernel_device), EPS)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 16), (5, 1, 48), (0, 2, 128)])
def test_rope_and_cache(
    kernel_device: torch.device,
    poisoned: Callable[[], AbstractContextManager[None]],
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    normed: bool,
) -> None:
    ops, twin = both(kernel_device, heads, kv_heads, dim)
    # a part of wider rows, as the layers' keys and values of a draft are
    qkv = torch.randn(5, 2, (heads + 2 * kv_heads) * dim, device=kernel_device).to(dtype)[:, 1]
    qk_norm = torch.randn(heads + kv_heads, dim, device=kernel_device) if normed else None
    position = torch.tensor([3, 60, 4, 0, 5], device=kernel_device)
    cell = torch.tensor([7, 1, 4, 0, 9], device=kernel_device)
    caches = torch.full((2, 2, 12, kv_heads, dim), torch.nan, device=kernel_device).to(dtype)
    queries = []
    for one, cache in zip((ops, twin), caches, strict=True):
        one.turn(position, cell)
        with poisoned():
            queries.append(one.rope_and_cache(qkv, qk_norm, cache))
    torch.testing.assert_close(*queries, **CLOSE[torch.float32])
    torch.testing.assert_close(caches[0][:, cell], caches[1][:, cell], **CLOSE[dtype])
    assert caches[0][:, [2, 3, 5, 6, 8, 10, 11]].isnan().all()
    # values are only moved
    assert torch.equal(caches[0][1, cell], caches[1][1, cell])
    alone = torch.empty_like(caches[0])
    ops.turn(position[2:3], cell[2:3])
    assert torch.equal(ops.rope_and_cache(qkv[2:3], qk_norm, alone)[0], queries[0][2])
    assert torch.equal(alone[:, 4], caches[0][:, 4])


def rope_arguments(device: torch.device) -> dict[str, Any]:
    cos, sin = rope_table(torch.ones(8, device=device), 32)
    return {
        "qkv": torch.zeros(2, 4 * 16, device=device),
        "cos": cos,
        "sin": sin,
        "qk_norm": torch.zeros(3, 16, device=device),
        "position": torch.zeros(2, dtype=torch.int64, device=device),
        "cell": torch.zeros(2, dtype=torch.int64, device=device),
        "kv": torch.zeros(2, 8, 1, 16, device=device),
        "heads": 2,
        "eps": EPS,
    }


BAD: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "width": (lambda given: given.update(heads=3), "projections must be 80 wide, but are 64"),
    "strides": (lambda given: given.update(qkv=given["qkv"].T.contiguous().T), "rows in one piece"),
    "table": (lambda given: given.update(sin=given["sin"][..., :8].contiguous()), r"sin must be \[positions, 1, 16\]"),
    "cells": (lambda given: given.update(cell=given["cell"][:1]), "cell must have 2 rows, but has 1"),
    "int32": (lambda given: given.update(position=given["position"].int()), r"position must be torch\.int64"),
    "norm": (lambda given: given.update(qk_norm=given["qk_norm"][:2]), r"qk_norm must be \[3, 16\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_rope_names_what_does_not_fit(kernel_device: torch.device, case: str) -> None:
    given = rope_arguments(kernel_device)
    rope_cache_kernel(**given)
    change, message = BAD[case]
    change(given)
    with pytest.raises(ValueError, match=message):
        rope_cache_kernel(**given)


def test_norms_and_gates_are_inside_the_products(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redraft.kernels.linear.prepacks", lambda device, dtype: False)
    ops, twin = both(kernel_device, 1, 1, 16)
    x, norm = torch.randn(3, 48, device=kernel_device), torch.rand(48, device=kernel_device) + 0.5
    linear = Linear(torch.randn(20, 48, device=kernel_device), torch.randn(20, device=kernel_device))
    pairs: list[tuple[Tensor, Tensor]] = [
        (ops.norm(x, norm), twin.norm(x, norm)),
        (ops.project(x, norm, linear), twin.project(x, norm, linear)),
        (ops.gate(x, norm, linear), twin.gate(x, norm, linear)),
    ]
    for made, wanted in pairs:
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
