"""bf16 products and whole layers in compiled C: against torch in fp32, and each row against itself among others."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from redraft.kernels.attention import cpu_attention
from redraft.kernels.layer_cpu import FusedCpuOps
from redraft.kernels.layer_ops import layer_ops, run_layer
from redraft.kernels.linear import Linear
from redraft.kernels.linear_cpu import can_multiply, multiply, pack
from redraft.kernels.rope import rope_table
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import CHUNK

here = pytest.mark.skipif(
    not can_multiply(torch.zeros(1, 2, dtype=torch.bfloat16)),
    reason="this CPU has no AVX512-BF16, or tiles, or there is no C compiler",
)
SHAPES = [(1, 2), (15, 6), (32, 64), (33, 100), (960, 576), (576, 1536), (49152, 16)]


def bf16(*shape: int) -> Tensor:
    return torch.randn(*shape).bfloat16()


def case(outputs: int, inner: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(rows)
    return bf16(rows, inner), (bf16(outputs, inner) * inner**-0.5), bf16(outputs), bf16(rows, outputs)


@here
@pytest.mark.parametrize(("outputs", "inner"), SHAPES)
@pytest.mark.parametrize("rows", [1, 7, 12, 13, 31])
def test_a_product(outputs: int, inner: int, rows: int) -> None:
    x, weight, bias, residual = case(outputs, inner, rows)
    packed = pack(weight)
    plain = x.float() @ weight.float().T
    for add, more in ((None, None), (bias, None), (None, residual), (bias, residual)):
        made = multiply(x, packed, outputs, add, more)
        wanted = plain + (0 if add is None else add.float()) + (0 if more is None else more.float())
        # fp32 sums in another order, and one rounding
        torch.testing.assert_close(made, wanted.bfloat16(), rtol=2**-7, atol=2e-6 * inner**0.5)


@here
@pytest.mark.parametrize(("outputs", "inner"), [(33, 100), (576, 1536)])
def test_rows_have_their_own_bits(outputs: int, inner: int) -> None:
    x, weight, bias, residual = case(outputs, inner, 40)
    packed = pack(weight)
    whole = multiply(x, packed, outputs, bias, residual)
    threads = torch.get_num_threads()
    try:
        for count in range(1, 40):
            torch.set_num_threads(1 + count % 2)
            for part in (slice(0, count), slice(40 - count, 40)):
                assert torch.equal(multiply(x[part], packed, outputs, bias, residual[part]), whole[part])
    finally:
        torch.set_num_threads(threads)


@here
def test_a_neighbour_of_nans_leaves_no_trace() -> None:
    x, weight, bias, residual = case(64, 64, 9)
    packed = pack(weight)
    whole = multiply(x, packed, 64, bias, residual)
    x[4], residual[6] = torch.nan, torch.inf
    made = multiply(x, packed, 64, bias, residual)
    assert made[4].isnan().all()
    assert made[6].isinf().all()
    clean = [0, 1, 2, 3, 5, 7, 8]
    assert torch.equal(made[clean], whole[clean])


@here
def test_linear_takes_it_where_it_can() -> None:
    x, weight, bias, residual = case(40, 30, 5)
    linear = Linear(weight, bias)
    assert linear.compiled
    assert torch.equal(linear(x.T.contiguous().T, residual), multiply(x, pack(weight), 40, bias, residual))
    assert not Linear(weight.float()).compiled
    assert not Linear(weight[:, 1:].contiguous()).compiled, "pairs need an even number"


@dataclass(frozen=True)
class Weights:
    """A layer's; more than ``LayerWeights`` asks for nothing."""

    input_norm: Tensor
    qkv: Linear
    qk_norm: Tensor | None
    output: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear


@here
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_a_layer_in_one_call_is_its_parts(rows: int, normed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(rows)
    heads, kv_heads, dim, hidden, inner = 6, 2, 32, 96, 250
    cos, sin = rope_table(torch.rand(dim // 2), 100)
    sizes = {"heads": heads, "kv_heads": kv_heads, "width": 2 * inner + 400}
    ops = layer_ops(cos, sin, eps=1e-5, dtype=torch.bfloat16, **sizes)
    assert isinstance(ops, FusedCpuOps)

    def linear(outputs: int, width: int, bias: bool = False) -> Linear:
        return Linear(bf16(outputs, width) * width**-0.5, bf16(outputs) if bias else None)

    weights = Weights(
        1 + torch.rand(hidden),
        linear((heads + 2 * kv_heads) * dim, hidden, bias=True),
        torch.rand(heads + kv_heads, dim) if normed else None,
        linear(hidden, heads * dim),
        1 + torch.rand(hidden),
        linear(2 * inner, hidden),
        linear(hidden, inner),
    )
    number = torch.arange(rows)
    zeros = torch.zeros_like(number)
    first, count = torch.tensor([0, rows]), torch.tensor([rows, 0])
    packed = Rows(number, zeros, number, zeros, number, zeros, zeros.unsqueeze(1), first, count)
    x = bf16(rows, hidden)

    def run() -> tuple[Tensor, Tensor]:
        kv = torch.zeros(2, 2 * CHUNK, kv_heads, dim)
        ops.turn(number, CHUNK + number)
        attend = cpu_attention(packed, torch.tensor([[1], [0]]), rows, dim)
        # twice, as layers follow one another
        return run_layer(ops, weights, run_layer(ops, weights, x, kv, attend), kv, attend), kv

    calls: list[int] = []
    monkeypatch.setattr(
        ops, "rope_and_cache", lambda *a, **k: calls.append(1) or type(ops).rope_and_cache(ops, *a, **k)
    )
    whole = run()
    assert not calls
    monkeypatch.setattr(ops, "layer", lambda *arguments: None)
    parts = run()
    assert len(calls) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert whole[0].isfinite().all()
