"""The CPU kernels in C against their plain-torch twins, and each row against its neighbours, byte for byte."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from redraft.kernels import attention_cpu, fused_cpu
from redraft.kernels.attention_cpu import FusedAttention
from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.layer_cpu import FusedCpuOps
from redraft.kernels.layer_torch import TorchOps
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


@pytest.mark.parametrize("first", [1, 3, 130])
@pytest.mark.parametrize("start", [0, 126])
def test_positions_before_the_first_are_seen_by_their_own_rows_alone(
    library: ctypes.CDLL, start: int, first: int
) -> None:
    rows, pages = tree_rows(start), torch.tensor([[3, 1, 4], [2, 0, 0], [0, 0, 0]])
    key, value = torch.randn(2, 5 * CHUNK, 3, 64)
    q = torch.randn(10, 9, 64) / 8
    outs = [
        FusedAttention(library, rows, pages, start + 8, first)(q, key, value, torch.float32),
        TwinAttention(rows, pages, start + 8, first)(q, key, value, torch.float32),
    ]
    torch.testing.assert_close(outs[0][:9], outs[1][:9], rtol=1e-4, atol=1e-5)
    for row in range(9):
        slot, position = int(rows.slot[row]), int(rows.position[row])
        at = torch.arange(min(first, position), position + 1)
        base = position - int(rows.depth[row])
        logical = torch.tensor([base + int(rows.path[row, p - base]) if p >= base else p for p in at.tolist()])
        cell = pages[slot, logical // CHUNK] * CHUNK + logical % CHUNK
        score = torch.einsum("kgd,lkd->kgl", q[row].view(3, 3, 64), key[cell])
        seen = torch.einsum("kgl,lkd->kgd", score.softmax(-1), value[cell]).reshape(9, 64)
        torch.testing.assert_close(outs[0][row], seen, rtol=1e-4, atol=1e-5)


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


def runs(*parts: tuple[int, int], padding: int = 0) -> tuple[Rows, Tensor, int]:
    """One run of rows a request, of (first position, rows): rows as prefill has them, page table and bound."""
    slot = torch.tensor([s for s, (_, count) in enumerate(parts) for _ in range(count)] + [len(parts)] * padding)
    position = torch.tensor([start + i for start, count in parts for i in range(count)] + [0] * padding)
    zeros = torch.zeros_like(slot)
    bound = int(position.max()) + 1
    each = -(-bound // CHUNK)
    pages = torch.zeros(len(parts) + 1, each, dtype=torch.int64)
    pages[:-1] = (torch.randperm(len(parts) * each) + 1).view(len(parts), each)
    return Rows(zeros, slot, position, zeros, zeros, zeros, zeros.unsqueeze(1), zeros[:1], zeros[:1]), pages, bound


def pick(rows: Rows, which: Tensor) -> Rows:
    """Some of the rows, as a pass of their own."""
    return Rows(
        *(getattr(rows, name)[which] for name in ("token", "slot", "position", "depth", "parent", "index", "path")),
        rows.first_row,
        rows.row_count,
    )


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


PASSES: list[tuple[tuple[int, int], ...]] = [
    ((0, 1),),
    ((127, 1),),
    ((300, 2),),
    ((120, 13),),
    ((0, 150),),
    ((250, 64),),
    ((5, 1), (128, 7), (390, 9)),
    tuple((60 + 40 * i, 1) for i in range(8)),
    ((10, 1), (700, 1)),
]


@pytest.mark.parametrize("parts", PASSES, ids=str)
def test_neither_threads_nor_neighbours_leave_a_trace(
    library: ctypes.CDLL,
    threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[tuple[int, int], ...],
) -> None:
    rows, pages, bound = runs(*parts, padding=3)
    count = rows.slot.shape[0] - 3
    key, value = torch.randn(2, (int(pages.max()) + 1) * CHUNK, 3, 32)
    q = torch.randn(count + 3, 6, 32) * 32**-0.5

    def attend(which: Tensor, bound: int = bound, library: ctypes.CDLL = library) -> Tensor:
        return FusedAttention(library, pick(rows, which), pages, bound)(q[which], key, value, torch.float32)

    everything = torch.arange(count + 3)
    threads(1)
    out = attend(everything)
    twin = TwinAttention(rows, pages, bound)(q, key, value, torch.float32)
    torch.testing.assert_close(out[:count], twin[:count], rtol=1e-4, atol=1e-5)
    assert not out[count:].any()
    monkeypatch.setattr(attention_cpu, "ALONE", 0)
    for wanted in (2, 3, 5):
        threads(wanted)
        assert torch.equal(attend(everything), out)
    threads(2)
    for row in {0, count // 3, count - 1}:
        assert torch.equal(attend(torch.tensor([row]), int(rows.position[row]) + 1)[0], out[row])
    for some in (everything[: (count + 1) // 2], everything[count // 2 :], everything[1::3]):
        assert torch.equal(attend(some), out[some])


def test_a_build_without_threads_has_the_same_bits(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cpu, "ALONE", 0)
    rows, pages, bound = runs((100, 11), (300, 20))
    key, value = torch.randn(2, (int(pages.max()) + 1) * CHUNK, 3, 64)
    q, x = torch.randn(31, 9, 64), torch.randn(40, 3072)
    outs = []
    for threads in (fused_cpu.THREADS, ()):
        monkeypatch.setattr(fused_cpu, "THREADS", threads)
        built = load_fused.__wrapped__()
        assert built is not None
        swiglu = both(built, 1, 1, 16, 3072)[0].swiglu(x)
        outs.append((FusedAttention(built, rows, pages, bound)(q, key, value, torch.bfloat16), swiglu))
    assert torch.equal(outs[0][0], outs[1][0])
    assert torch.equal(outs[0][1], outs[1][1])


def test_threads_are_torchs_own(library: ctypes.CDLL) -> None:
    assert len(fused_cpu._runtimes()) <= 1


@pytest.mark.parametrize("n", [40, 1000, 1536])
def test_swiglu_of_many_rows_is_shared_without_a_trace(
    library: ctypes.CDLL, threads: Callable[[int], None], n: int
) -> None:
    fused, _ = both(library, 1, 1, 16, 2 * n)
    x = torch.randn(16384 // n + 3, 2 * n)
    alone = torch.cat([fused.swiglu(row) for row in x.split(1)])
    for wanted in (1, 2, 3):
        threads(wanted)
        assert torch.equal(fused.swiglu(x), alone)


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert load_fused.__wrapped__() is None
