"""Projections with rotation and cache in one launch: against the twin, and each row against itself among others."""

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
from redraft.kernels.matmul import workspace
from redraft.kernels.qkv import heads_plan, qkv_kernel
from redraft.kernels.rope import rope_table

EPS, POSITIONS, CELLS = 1e-5, 300, 90
# fp32: sums in another order; fp16: what either side rounds, and a norm of what was rounded
CLOSE = {torch.float32: {"rtol": 2e-5, "atol": 2e-5}, torch.float16: {"rtol": 2**-9, "atol": 2**-9}}

CASES: dict[str, tuple[torch.dtype, int, int, int, int, bool, bool]] = {
    # dtype, heads, key heads, head size, inner size, norm of heads, bias
    "smollm2": (torch.float16, 9, 3, 64, 576, False, False),
    "qwen2": (torch.float16, 4, 2, 64, 100, False, True),
    "qwen3": (torch.float16, 4, 1, 128, 1100, True, False),
    "bias-and-norm": (torch.float16, 2, 1, 32, 70, True, True),
    "fp32": (torch.float32, 3, 1, 32, 1030, False, True),
}


def arguments(device: torch.device, case: str, rows: int) -> dict[str, Any]:
    """Random arguments of ``qkv_kernel`` for one of ``CASES``."""
    dtype, heads, kv_heads, dim, inner, normed, bias = CASES[case]
    random = torch.Generator().manual_seed(rows)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    width = (heads + 2 * kv_heads) * dim
    cos, sin = rope_table(10000.0 ** (-torch.arange(dim // 2) / (dim // 2)), POSITIONS)
    real = {
        "x": normal(rows, inner) * (1 + torch.arange(rows) % 5).unsqueeze(1),
        "weight": normal(width, inner) * inner**-0.5,
        "bias": normal(width) if bias else None,
        "kv": torch.full((2, CELLS, kv_heads, dim), torch.nan),
    }
    exact = {
        "norm": normal(inner) * 0.3 + 1,
        "cos": cos,
        "sin": sin,
        "qk_norm": normal(heads + kv_heads, dim) if normed else None,
        "position": torch.randint(POSITIONS, (rows,), generator=random),
        "cell": torch.randperm(CELLS, generator=random)[:rows],
    }
    made: dict[str, Any] = {name: None if t is None else t.to(device, dtype) for name, t in real.items()}
    return (
        made | {name: None if t is None else t.to(device) for name, t in exact.items()} | {"heads": heads, "eps": EPS}
    )


def twin(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Queries and cache by ``TorchOps``."""
    monkeypatch.setattr("redraft.kernels.linear.prepacks", lambda device, dtype: False)
    kv = given["kv"].clone()
    ops = TorchOps(given["cos"], given["sin"], given["heads"], kv.shape[2], EPS)
    ops.turn(given["position"], given["cell"])
    linear = Linear(given["weight"], given["bias"])
    return ops.attention_inputs(given["x"], given["norm"], linear, given["qk_norm"], kv), kv


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [1, 33, 67])
def test_kernel_is_the_twin(
    case: str,
    rows: int,
    kernel_device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    poisoned: Callable[[], AbstractContextManager[Any]],
) -> None:
    given = arguments(kernel_device, case, rows)
    wanted, cache = twin(given, monkeypatch)
    workspace(kernel_device)[0].fill_(torch.nan)
    with poisoned():
        made = qkv_kernel(**given)
    assert made is not None
    torch.testing.assert_close(made, wanted, **CLOSE[given["x"].dtype])
    # other cells keep their NaN
    torch.testing.assert_close(given["kv"], cache, **CLOSE[given["x"].dtype], equal_nan=True)
    assert not workspace(kernel_device)[1].any(), "a ticket was left behind"


@pytest.mark.usefixtures("own_sums")
@pytest.mark.parametrize("case", ["smollm2", "qwen3", "fp32"])
def test_neighbours_leave_no_trace(case: str, kernel_device: torch.device) -> None:
    given = arguments(kernel_device, case, 67)
    every = qkv_kernel(**given)
    assert every is not None
    for rows in (1, 31, 64):
        part = slice(67 - rows, 67)
        mine = {name: given[name][part].contiguous() for name in ("x", "position", "cell")}
        kv = torch.full_like(given["kv"], torch.nan)
        made = qkv_kernel(**given | mine | {"kv": kv})
        assert made is not None
        assert torch.equal(made, every[part])
        assert torch.equal(kv[:, mine["cell"]], given["kv"][:, mine["cell"]])


@pytest.mark.parametrize("dim", [16, 48, 512])
def test_other_heads_are_rotated_apart(dim: int, kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "odd", (torch.float32, 2, 1, dim, 40, dim == 512, False))
    given = arguments(kernel_device, "odd", 3)
    assert heads_plan(2 * dim, 40, dim // 2, dim == 512, 4) is None
    wanted, cache = twin(given, monkeypatch)
    assert qkv_kernel(**given) is None
    assert given["kv"].isnan().all()
    ops = GpuOps(given["cos"], given["sin"], 2, EPS)
    ops.turn(given["position"], given["cell"])
    linear = Linear(given["weight"])
    made = ops.attention_inputs(given["x"], given["norm"], linear, given["qk_norm"], given["kv"])
    torch.testing.assert_close(made, wanted, **CLOSE[torch.float32])
    torch.testing.assert_close(given["kv"], cache, **CLOSE[torch.float32], equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_layers_of_keys_and_values_at_once(dtype: torch.dtype, kernel_device: torch.device) -> None:
    rows, layers, kv_heads, dim = 5, 3, 3, 64
    cos, sin = (t.to(kernel_device) for t in rope_table(torch.rand(dim // 2), 50))
    made = torch.randn(rows, layers, 2 * kv_heads * dim).to(kernel_device, dtype)
    k_norm = torch.randn(layers, kv_heads, dim).to(kernel_device)
    gpu, caches = GpuOps(cos, sin, 0, EPS), []
    for ops in (gpu, TorchOps(cos, sin, 0, kv_heads, EPS)):
        ops.turn(torch.tensor([7, 49, 0, 3, 3]).to(kernel_device), torch.tensor([4, 8, 0, 1, 2]).to(kernel_device))
        caches.append(torch.full((layers, 2, 9, kv_heads, dim), torch.nan, device=kernel_device, dtype=dtype))
        ops.cache_layers(made, k_norm, caches[-1])
    assert caches[0][:, :, [3, 5, 6, 7]].isnan().all()
    torch.testing.assert_close(*caches, **CLOSE[dtype], equal_nan=True)
    with pytest.raises(ValueError, match="of 3 layers go"):
        gpu.cache_layers(made, k_norm, caches[0][:2])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("weight", lambda t: t[:, 1:].contiguous(), "they do not multiply"),
        ("weight", lambda t: t[64:].contiguous(), "projections must be 512 wide, but are 448"),
        ("norm", lambda t: t[1:].contiguous(), r"norm must be \[100\], but is \[99\]"),
        ("bias", lambda t: t[1:].contiguous(), r"bias must be \[512\], but is \[511\]"),
        ("cell", lambda t: t[1:].contiguous(), "cell must have 3 rows, but has 2"),
    ],
)
def test_names_what_does_not_fit(
    name: str, change: Callable[[Tensor], Tensor], message: str, kernel_device: torch.device
) -> None:
    given = arguments(kernel_device, "qwen2", 3)
    given[name] = change(given[name])
    with pytest.raises(ValueError, match=message):
        qkv_kernel(**given)
