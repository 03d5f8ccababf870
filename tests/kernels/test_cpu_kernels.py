"""The CPU kernels in C against their plain-torch twins, and each row against its neighbours, byte for byte."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from redraft.kernels.attention_cpu import FusedAttention
from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.layer_ops import FusedCpuOps, TorchOps
from redraft.kernels.rope import rope_table
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import CHUNK, TwinAttention

EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16]
# what one rounding of the result to bf16 may differ by, and what fp32 sums in another order may
CLOSE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-7, "atol": 1e-5}}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    found = load_fused()
    if found is None:
        pytest.skip("no C compiler here, so there are no CPU kernels in C")
    return found


def both(library: ctypes.CDLL, heads: int, kv_heads: int, dim: int, width: int) -> tuple[FusedCpuOps, TorchOps]:
    cos, sin = rope_table(10000.0 ** (-torch.arange(dim // 2) / (dim // 2)), 64)
    twin = TorchOps(cos, sin, heads, kv_heads, EPS)
    return FusedCpuOps(library, twin, width), twin


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("n", [1, 15, 16, 63, 576, 1000])
def test_norm(library: ctypes.CDLL, n: int, dtype: torch.dtype) -> None:
    fused, twin = both(library, 1, 1, 16, n)
    x, weight = torch.randn(9, n).mul_(30).to(dtype), torch.randn(n)
    x[3] = 0
    out = fused.norm(x, weight)
    torch.testing.assert_close(out, twin.norm(x, weight), **CLOSE[dtype])
    assert torch.equal(fused.norm(x[4:5], weight), out[4:5])


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize("n", [1, 17, 1536])
def test_swiglu(library: ctypes.CDLL, n: int, dtype: torch.dtype) -> None:
    fused, twin = both(library, 1, 1, 16, 2 * n)
    x = torch.randn(7, 2 * n).mul_(20).to(dtype)
    x[0, 0], x[1, 0], x[2, 0] = 200.0, -200.0, 0.0
    out = fused.swiglu(x)
    # the twin rounds silu(gate) to bf16 before the product, the kernel does not
    reference = twin.swiglu(x.float()).to(dtype)
    torch.testing.assert_close(out, reference, **CLOSE[dtype])
    assert torch.equal(fused.swiglu(x[4:5]), out[4:5])


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 16), (2, 1, 128)])
def test_rope_and_cache(
    library: ctypes.CDLL, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, normed: bool
) -> None:
    width = (heads + 2 * kv_heads) * dim
    fused, twin = both(library, heads, kv_heads, dim, width)
    qkv = torch.randn(5, width).to(dtype)
    qk_norm = torch.randn(heads + kv_heads, dim) if normed else None
    position, cell = torch.tensor([3, 60, 4, 0, 5]), torch.tensor([7, 1, 4, 0, 9])
    caches = torch.zeros(2, 2, 12, kv_heads, dim)
    queries = []
    for ops, cache in zip((fused, twin), caches, strict=True):
        ops.turn(position, cell)
        queries.append(ops.rope_and_cache(qkv, qk_norm, cache))
    torch.testing.assert_close(queries[0], queries[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(caches[0], caches[1], rtol=1e-5, atol=1e-5)
    assert not caches[0][:, [2, 3, 5, 6, 8, 10, 11]].any()


def tree_rows(start: int) -> Rows:
    """A root, a wrong child, and a branch of five behind it in slot 0; then two rows of slot 1 and one of padding."""
    paths = [[0], [0, 1], [0, 2], [0, 2, 3], [0, 2, 3, 4], [0, 2, 3, 4, 5], [0, 2, 3, 4, 5, 6]]
    table = torch.tensor([p + [-1] * (6 - len(p)) for p in [*paths, [0], [0, 1], [0]]])
    depth = torch.tensor([len(p) - 1 for p in paths] + [0, 1, 0])
    slot = torch.tensor([0] * 7 + [1, 1, 2])
    base = torch.tensor([start] * 7 + [5, 5, 0])
    index = torch.tensor([*range(7), 0, 1, 0])
    number = torch.arange(10)
    return Rows(
        number, slot, base + depth, depth, number, index, table, torch.tensor([0, 7, 9]), torch.tensor([7, 2, 0])
    )


@pytest.mark.parametrize("start", [0, 9, 14, 126, 200])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 16), (8, 1, 128), (10, 2, 48)])
def test_attention_along_tree_paths(library: ctypes.CDLL, heads: int, kv_heads: int, dim: int, start: int) -> None:
    rows, pages = tree_rows(start), torch.tensor([[3, 1, 4], [2, 0, 0], [0, 0, 0]])
    key, value = torch.randn(2, 5 * CHUNK, kv_heads, dim)
    q = torch.randn(10, heads, dim) * dim**-0.5
    out = FusedAttention(library, rows, pages, start + 8)(q, key, value, torch.float32)
    twin = TwinAttention(rows, pages, start + 8)(q, key, value, torch.float32)
    torch.testing.assert_close(out[:9], twin[:9], rtol=1e-4, atol=1e-5)
    assert not out[9].any()
    assert torch.equal(FusedAttention(library, rows, pages, start + 100)(q, key, value, torch.float32), out)


def test_a_branch_has_the_bits_of_the_same_text_in_order(library: ctypes.CDLL) -> None:
    start, rows, pages = 126, tree_rows(126), torch.tensor([[3, 1, 4], [2, 0, 0], [0, 0, 0]])
    key, value = torch.randn(2, 5 * CHUNK, 3, 64)
    q = torch.randn(10, 9, 64)
    out = FusedAttention(library, rows, pages, start + 8)(q, key, value, torch.bfloat16)

    # the same keys and values, where plain decoding would have put them: node 6 stands at depth 5
    def at(logical: int) -> int:
        return int(pages[0, logical // CHUNK]) * CHUNK + logical % CHUNK

    for depth in range(1, 6):
        for cache in (key, value):
            cache[at(start + depth)] = cache[at(start + depth + 1)]
    one = torch.tensor([0])
    alone = Rows(
        one, one, one + start + 5, one, one, one, one.unsqueeze(0), torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0])
    )
    assert torch.equal(FusedAttention(library, alone, pages, start + 6)(q[6:7], key, value, torch.bfloat16), out[6:7])


def test_stale_values_that_no_row_sees_do_not_matter(library: ctypes.CDLL) -> None:
    rows, pages = tree_rows(9), torch.tensor([[3, 1, 4], [2, 0, 0], [0, 0, 0]])
    key, value = torch.randn(2, 5 * CHUNK, 3, 64)
    q = torch.randn(10, 9, 64)
    attend = FusedAttention(library, rows, pages, 40)
    out = attend(q, key, value, torch.float32)
    unseen = torch.ones(5 * CHUNK, dtype=torch.bool)
    unseen[3 * CHUNK : 3 * CHUNK + 16] = False
    unseen[2 * CHUNK : 2 * CHUNK + 7] = False
    for cache in (key, value):
        cache[unseen] = torch.nan
    assert torch.equal(attend(q, key, value, torch.float32), out)


def test_many_rows_are_shared_among_threads_without_a_trace(library: ctypes.CDLL) -> None:
    count = 150
    number = torch.arange(count)
    path = torch.where(number <= number.unsqueeze(1), number, -1)
    zeros = torch.zeros_like(number)
    rows = Rows(number, zeros, number, number, number, number, path, torch.tensor([0, count]), torch.tensor([count, 0]))
    pages = torch.tensor([[1, 2], [0, 0]])
    key, value = torch.randn(2, 3 * CHUNK, 2, 32)
    q = torch.randn(count, 4, 32)
    threads = torch.get_num_threads()
    outs: list[Tensor] = []
    try:
        for wanted in (1, 2, 3):
            torch.set_num_threads(wanted)
            outs.append(FusedAttention(library, rows, pages, count)(q, key, value, torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert load_fused.__wrapped__() is None
