"""The product against its twin, and each row against its neighbours, byte for byte.

The interpreter multiplies fp32 and fp16 as a GPU would, bf16 wrongly, so bf16 is for the GPU suite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.benchmarks.shapes import TARGETS, products
from redraft.kernels.matmul import matmul_kernel, matmul_twin, workspace
from redraft.kernels.matmul_plan import PROGRAMS, SHARED, plan

# fp32: sums of K numbers in another order, results around 1.  fp16: both sides sum in fp32 and round once, which is
# 2^-10 at most; a normed row that rounds the other way here and there moves the sum by less than that.
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float16: {"rtol": 2**-10, "atol": 2**-10}}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> None:
    """What nobody wrote is NaN: fresh outputs and the workspace."""
    real = torch.empty

    def poisoned(*size: Any, **options: Any) -> Tensor:
        made: Tensor = real(*size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    workspace(kernel_device)[0].fill_(torch.nan)


@pytest.fixture
def _ordered_products(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes BLAS for ``tl.dot``, whose bits depend on where in a tile a row stands.

    mma.sync's do not; so here K is added up one by one.
    """
    if kernel_device.type != "cpu":
        return
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        # a sum over an axis that is not the last one goes along it in order
        products = a.data[:, :, None].astype(np.float32) * b.data[None]
        return TensorHandle(products.sum(1, dtype=np.float32) + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def arguments(
    device: torch.device, dtype: torch.dtype, R: int, N: int, K: int, *parts: str, seed: int = 0
) -> dict[str, Any]:
    """Random arguments with what ``parts`` names: norm, bias, residual, gated."""
    random = torch.Generator().manual_seed(seed)
    gated = "gated" in parts

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    made = {"x": normal(R, K), "weight": normal(N * (1 + gated), K) * K**-0.5}
    if "norm" in parts:
        # rows of very different sizes: a norm that took its neighbour's would show
        made["x"] *= (1 + torch.arange(R) % 5).unsqueeze(1)
    if "bias" in parts:
        made["bias"] = normal(N * (1 + gated))
    if "residual" in parts:
        made["residual"] = normal(R, N)
    found: dict[str, Any] = {name: tensor.to(device, dtype) for name, tensor in made.items()}
    if "norm" in parts:
        found |= {"norm": (normal(K) * 0.3 + 1).to(device), "eps": 1e-5}
    return found | ({"gated": True} if gated else {})


CASES: list[tuple[int, int, int, tuple[str, ...]]] = [
    (1, 1, 1, ()),
    (63, 40, 576, ("norm", "bias")),
    (3, 70, 100, ("residual",)),
    (33, 24, 1536, ("norm", "gated")),
    (1, 24, 4096, ("residual", "bias")),
    (65, 40, 1100, ("norm", "gated", "bias", "residual")),
    (70, 2060, 20, ("residual",)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "outputs", "inner", "parts"), CASES, ids=str)
def test_kernel_is_the_twin(
    kernel_device: torch.device, rows: int, outputs: int, inner: int, parts: tuple[str, ...], dtype: str
) -> None:
    given = arguments(kernel_device, DTYPES[dtype], rows, outputs, inner, *parts)
    made = matmul_kernel(**given)
    assert made.dtype == DTYPES[dtype]
    torch.testing.assert_close(made, matmul_twin(**given), **CLOSE[DTYPES[dtype]])
    assert not workspace(kernel_device)[1].any(), "a ticket was left behind"


def test_a_vocabulary(kernel_device: torch.device) -> None:
    given = arguments(kernel_device, torch.float16, 3, 49152, 16)
    torch.testing.assert_close(matmul_kernel(**given), matmul_twin(**given), **CLOSE[torch.float16])


ROWS_CASES = {
    # in 4 and 2 parts: up to 64 rows by ticket, beyond that in turn
    "parts": (torch.float16, 24, 2048, ("residual",)),
    "gated-parts": (torch.float16, 20, 1100, ("norm", "gated")),
    "norm": (torch.float16, 40, 576, ("norm", "bias")),
    "fp32": (torch.float32, 12, 1056, ("norm", "residual")),
}


@pytest.mark.usefixtures("_ordered_products")
@pytest.mark.parametrize("case", ROWS_CASES)
def test_neighbours_leave_no_trace(kernel_device: torch.device, case: str) -> None:
    dtype, outputs, inner, parts = ROWS_CASES[case]
    given = arguments(kernel_device, dtype, 97, outputs, inner, *parts)
    assert plan(outputs, inner, "gated" in parts, dtype.itemsize).parts == inner // 512 if inner > 1000 else 1

    def run(which: list[int]) -> Tensor:
        mine = {name: given[name][which] for name in ("x", "residual") if name in given}
        return matmul_kernel(**given | mine)

    whole = run(list(range(97)))
    assert torch.isfinite(whole).all()
    for row in (0, 41, 96):
        assert torch.equal(run([row])[0], whole[row])
    for others in (2, 3, 16, 17, 33, 64):
        # the row stands elsewhere each time
        place = others * 2 // 3
        among = [(7 * i) % 97 for i in range(others)]
        among.insert(place, 41)
        assert torch.equal(run(among), whole[among]), f"among {others}"


@pytest.mark.usefixtures("_ordered_products")
def test_a_neighbour_of_nans_leaves_no_trace(kernel_device: torch.device) -> None:
    given = arguments(kernel_device, torch.float16, 5, 24, 1536, "norm", "gated")
    whole = matmul_kernel(**given)
    given["x"][2] = torch.nan
    made = matmul_kernel(**given)
    assert torch.isnan(made[2]).all()
    assert torch.equal(made[[0, 1, 3, 4]], whole[[0, 1, 3, 4]])


def test_extreme_gates(kernel_device: torch.device) -> None:
    weight = torch.eye(32, device=kernel_device)[[0] * 16 + [1] * 16].half()
    x = torch.zeros(3, 32, device=kernel_device).half()
    x[:, 0], x[:, 1] = torch.tensor([-200.0, 0.0, 200.0]), 2.0
    made = matmul_kernel(x, weight, gated=True)
    assert made[:, 0].tolist() == [0.0, 0.0, 400.0]


def test_no_rows_no_launch(kernel_device: torch.device) -> None:
    assert matmul_kernel(**arguments(kernel_device, torch.float16, 0, 8, 16)).shape == (0, 8)


SHAPES = [(960, 576), (576, 576), (576, 1536), (49152, 576), (4096, 2048), (2048, 6144), (4096, 12288), (151936, 4096)]


@pytest.mark.parametrize(("outputs", "inner"), SHAPES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_plans_cover_all_of_a_weight_and_fit(outputs: int, inner: int, gated: bool, itemsize: int) -> None:
    made = plan(outputs, inner, gated, itemsize)
    assert made.part % made.block_k == 0
    assert made.part * (made.parts - 1) < inner <= made.part * made.parts
    assert made.parts == 1 or made.blocks(outputs) * made.parts < 2 * PROGRAMS
    for tiles in (1, 2):
        buffers = made.stages(tiles) - 1
        assert buffers * (made.stage + tiles * 32 * made.block_k * itemsize) <= SHARED


def test_plans_are_those_the_reasons_are_about() -> None:
    """Blocks and parts of kernels/matmul_plan.py's table: whoever changes the plan argues anew."""
    made = {}
    for name, spec in TARGETS.items():
        sizes = products(spec)
        del sizes["head"]
        found = []
        for product, (outputs, inner, _) in sizes.items():
            gated = product == "gate_up"
            how = plan(outputs // (1 + gated), inner, gated, 2)
            found.append((how.blocks(outputs // (1 + gated)), how.parts))
        made[name] = found
    assert made == {
        "SmolLM2-135M": [(60, 1), (36, 1), (96, 1), (36, 2)],
        "Qwen3-1.7B": [(64, 2), (32, 4), (96, 1), (32, 4)],
        "Qwen3-8B": [(96, 1), (64, 2), (192, 1), (64, 2)],
    }


Change = Callable[[dict[str, Any]], None]
BAD: dict[str, tuple[Change, str]] = {
    "inner": (lambda given: given.update(weight=given["weight"][:, :-1].contiguous()), "they do not multiply"),
    "odd-gate": (lambda given: given.update(weight=given["weight"][:-1], gated=True), "they do not multiply"),
    "dtype": (lambda given: given.update(weight=given["weight"].float()), r"weight must be torch\.float16"),
    "strides": (lambda given: given.update(x=given["x"].T.contiguous().T), "x must be contiguous"),
    "bias": (lambda given: given.update(bias=given["bias"][:-1]), r"bias must be \[8\], but is \[7\]"),
    "residual": (lambda given: given.update(residual=given["residual"][:-1]), r"residual must be \[2, 8\]"),
    "norm": (lambda given: given.update(norm=given["norm"].half()), r"norm must be torch\.float32"),
}


@pytest.mark.parametrize("case", BAD)
def test_names_what_does_not_fit(kernel_device: torch.device, case: str) -> None:
    change, message = BAD[case]
    given = arguments(kernel_device, torch.float16, 2, 8, 16, "norm", "bias", "residual")
    change(given)
    with pytest.raises(ValueError, match=message):
        matmul_kernel(**given)
