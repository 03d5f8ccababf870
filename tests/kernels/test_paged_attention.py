"""The GPU's attention: against its twin in plain torch, each row against itself in any company, what it compiles to.

Under the interpreter products go to the CPU's library, where a row's bits follow its place in the tile.  ``own_sums``
puts sums in their place that have what the tensor cores have: every element is made of its own row and column alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from redraft.kernels import paged_attention, sum_chunks
from redraft.kernels.attention_items import attention_items, attention_items_twin
from redraft.kernels.chunk_attention import lanes_of
from redraft.kernels.paged_attention import PagedAttention, PagedTwin
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import CHUNK, TwinAttention

# what sums in another order differ by; in fp16 weights are rounded, and one that lies near a tie may go the other way
CLOSE = {
    torch.float32: {"rtol": 1e-5, "atol": 2e-6},
    torch.float16: {"rtol": 0.0, "atol": 2**-11},
}
# against products of unrounded weights and queries: a few roundings to fp16, relative to values of about 3
COARSE = {
    torch.float32: {"rtol": 1e-5, "atol": 2e-6},
    torch.float16: {"rtol": 0.0, "atol": 3 * 2**-10},
}
EDGES = (0, 126, 127, 128, 129, 130, 254, 255, 256, 257, 258)
PAGES = 4
Tree = tuple[int, int, Sequence[int], Sequence[int]]
"""Slot, position of the root, parents of the nodes, and which nodes carry a wrong token."""


@pytest.fixture(autouse=True)
def own_sums(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's products, one addend after the other; of bf16, which it keeps as bits, too.

    It rounds to bf16 by cutting off, so bf16 is compared with itself alone here.
    """
    if kernel_device.type == "cuda":
        return
    from triton.runtime import interpreter

    def real(x: Any) -> Any:
        bits = x.dtype.scalar.name == "bf16"
        return (x.data.astype(np.uint32) << 16).view(np.float32) if bits else x.data.astype(np.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        left, right, total = real(a), real(b), d.data.copy()
        for k in range(left.shape[1]):
            total += left[:, k, None] * right[k]
        return interpreter.TensorHandle(total, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    # steps without a chunk take as long as others here
    monkeypatch.setattr(sum_chunks, "STEP", 2)


def chain(slot: int, start: int, count: int) -> Tree:
    return slot, start, [max(node - 1, 0) for node in range(count)], ()


def comb(slot: int, start: int, count: int) -> Tree:
    """A wrong sibling before every node but the root."""
    parents, right = [0], 0
    for _ in range(1, count):
        parents += [right, right]
        right = len(parents) - 1
    return slot, start, parents, [node for node in range(1, len(parents)) if node % 2]


@dataclass
class Case:
    """Rows, and a cache that holds what they see and NaN everywhere else."""

    rows: Rows
    pages: Tensor
    q: Tensor
    key: Tensor
    value: Tensor
    place: list[tuple[int, int] | None]
    """Slot and position of every row that carries the text's own token."""

    @property
    def bound(self) -> int:
        return int(self.rows.position.max()) + 1

    def to(self, device: torch.device) -> Case:
        rows = Rows(*(getattr(self.rows, field.name).to(device) for field in fields(Rows)))
        return Case(rows, *(x.to(device) for x in (self.pages, self.q, self.key, self.value)), self.place)

    def attend(self, bound: int = 0, programs: int = 3, first: int = 0) -> Tensor:
        attention = PagedAttention(self.rows, self.pages, bound or self.bound, first, programs=programs)
        return attention(self.q, self.key, self.value, torch.float32)


class Texts:
    """Queries, keys and values of the tokens of several texts, in whatever pass and cell they are computed."""

    def __init__(self, slots: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        g = torch.Generator().manual_seed(heads * dim + slots)
        length = PAGES * CHUNK
        self.q = torch.randn(slots, length, heads, dim, generator=g) * dim**-0.5
        self.kv = torch.randn(2, slots, length, kv_heads, dim, generator=g).to(dtype)
        self.pages = (torch.randperm(slots * PAGES, generator=g) + 1).view(slots, PAGES)
        self.pages = torch.cat((self.pages, torch.zeros_like(self.pages[:1])))

    def tree(self, *trees: Tree, padding: int = 0) -> Case:
        """A pass of trees, slots ascending."""
        return self._case([(*tree, True) for tree in trees], padding)

    def prefill(self, *runs: tuple[int, int, int], padding: int = 0) -> Case:
        """A pass of runs of rows without trees: slot, first position, rows."""
        return self._case([(*chain(*run), False) for run in runs], padding)

    def _case(self, trees: Sequence[tuple[int, int, Sequence[int], Sequence[int], bool]], padding: int) -> Case:
        trash = self.pages.shape[0] - 1
        slots, positions, depths, paths, queries = [], [], [], [], []
        place: list[tuple[int, int] | None] = []
        cache = torch.full((2, (trash * PAGES + 1) * CHUNK, *self.kv.shape[3:]), torch.nan, dtype=self.kv.dtype)

        def cell(slot: int, logical: int) -> int:
            return int(self.pages[slot, logical // CHUNK]) * CHUNK + logical % CHUNK

        for slot, start, parents, wrong, grown in trees:
            for logical in range(start):
                cache[:, cell(slot, logical)] = self.kv[:, slot, logical]
            own: list[list[int]] = []
            for node, parent in enumerate(parents):
                own.append([*own[parent], node] if node else [0])
                depth = len(own[node]) - 1
                position = start + depth
                text = self.kv[:, slot, position]
                cache[:, cell(slot, start + node)] = text.flip(0) * 2 if node in wrong else text
                queries.append(self.q[slot, position])
                slots.append(slot)
                positions.append(position)
                depths.append(depth if grown else 0)
                paths.append(own[node] if grown else [0])
                place.append(None if node in wrong else (slot, position))
        for values, value in ((slots, trash), (positions, 0), (depths, 0), (paths, [0]), (place, None)):
            values += [value] * padding  # type: ignore[list-item, attr-defined]
        queries += [torch.full_like(self.q[0, 0], 5.0)] * padding
        width = max(map(len, paths))
        path = torch.tensor([one + [-1] * (width - len(one)) for one in paths])
        slot_of, position_of, depth_of = map(torch.tensor, (slots, positions, depths))
        nothing = torch.zeros_like(slot_of)
        # attention reads nothing else of the rows
        rows = Rows(nothing, slot_of, position_of, depth_of, nothing, nothing, path, nothing[:0], nothing[:0])
        return Case(rows, self.pages, torch.stack(queries), cache[0], cache[1], place)


def mixed(texts: Texts) -> Case:
    """Trees of every kind side by side, and padding."""
    return texts.tree(comb(0, 126, 4), chain(1, 254, 5), chain(2, 0, 1), comb(3, 5, 3), padding=3)


def without_nan(case: Case) -> Case:
    """The plain twin looks at cells that nobody sees before it masks them."""
    return Case(case.rows, case.pages, case.q, case.key.nan_to_num(0.0), case.value.nan_to_num(0.0), case.place)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype"),
    [
        (2, 2, 64, torch.float32),
        (3, 1, 64, torch.float32),
        (8, 2, 128, torch.float16),
        (8, 1, 128, torch.float32),
        (20, 1, 48, torch.float16),
        (2, 1, 16, torch.float32),
    ],
    ids=str,
)
def test_kernel_is_its_twin(
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    kernel_device: torch.device,
    poisoned: Callable[[], AbstractContextManager[Any]],
) -> None:
    case = mixed(Texts(4, heads, kv_heads, dim, dtype)).to(kernel_device)
    with poisoned():
        out = case.attend()
    twin = PagedTwin(case.rows, case.pages, case.bound)(case.q, case.key, case.value, torch.float32)
    torch.testing.assert_close(out, twin, **CLOSE[dtype])
    assert not out[-3:].any(), "padding"
    clean = without_nan(case)
    plain = TwinAttention(clean.rows, clean.pages, clean.bound)(clean.q, clean.key, clean.value, torch.float32)
    torch.testing.assert_close(twin[:-3], plain[:-3], **COARSE[dtype])


@pytest.mark.parametrize(
    ("group", "dim", "dtype"),
    [(1, 128, torch.float32), (3, 64, torch.bfloat16), (4, 128, torch.float16), (8, 64, torch.bfloat16)],
    ids=str,
)
def test_a_row_has_its_bits_alone_in_prefill_in_chains_and_in_trees(
    group: int, dim: int, dtype: torch.dtype, kernel_device: torch.device
) -> None:
    texts = Texts(1, group, 1, dim, dtype)

    def bits(case: Case, bound: int = 0) -> dict[tuple[int, int], Tensor]:
        out = case.to(kernel_device).attend(bound)
        return {at: row for at, row in zip(case.place, out.cpu(), strict=True) if at is not None}

    alone = {position: bits(texts.tree(chain(0, position, 1)))[0, position] for position in EDGES}
    passes = (
        bits(texts.prefill((0, 0, 1)), bound=200),
        bits(texts.prefill((0, 121, 11), padding=2), bound=400),
        bits(texts.prefill((0, 254, 5))),
        bits(texts.tree(chain(0, 123, 8))),
        bits(texts.tree(chain(0, 251, 8), padding=1), bound=512),
        bits(texts.tree(comb(0, 125, 6))),
        bits(texts.tree(comb(0, 253, 6))),
    )
    met = set()
    for found in passes:
        for (_, position), row in found.items():
            if position in alone:
                met.add(position)
                assert torch.equal(row, alone[position]), f"position {position}"
    assert met == set(EDGES)


@pytest.mark.parametrize("neighbours", [2, 15, 64])
def test_neighbours_leave_no_trace(neighbours: int, kernel_device: torch.device) -> None:
    slots = 6
    texts = Texts(slots, 2, 1, 64)
    lengths = [neighbours // slots + (slot < neighbours % slots) for slot in range(slots)]
    together = texts.tree(*(chain(slot, 40 * slot, n) for slot, n in enumerate(lengths) if n)).to(kernel_device)
    out = together.attend(programs=5)
    assert torch.equal(together.attend(bound=together.bound + 3 * CHUNK, programs=64), out)
    for row in {0, neighbours // 2, neighbours - 1}:
        at = together.place[row]
        assert at is not None
        single = texts.tree(chain(*at, 1)).to(kernel_device)
        assert torch.equal(single.attend()[0], out[row])


def test_slabs_and_runs_move_no_bit(kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts(3, 2, 1, 64)
    case = texts.tree(comb(0, 120, 5), chain(1, 3, 10), chain(2, 200, 3), padding=4).to(kernel_device)
    out = case.attend()
    monkeypatch.setattr(paged_attention, "WORKSPACE_BYTES", 0)
    assert torch.equal(case.attend(), out), "slabs of 16 rows"
    monkeypatch.setattr(paged_attention, "FAR", 0)
    assert torch.equal(case.attend(), out), "runs of 64 rows"


@pytest.mark.parametrize("first", [1, 3, 130])
def test_positions_before_the_first_are_seen_by_their_own_rows_alone(first: int, kernel_device: torch.device) -> None:
    case = Texts(3, 4, 2, 64).tree(comb(0, 126, 4), chain(1, 0, 5), chain(2, 199, 2)).to(kernel_device)
    out = case.attend(first=first)
    clean = without_nan(case)
    for twin in (PagedTwin, TwinAttention):
        wanted = twin(clean.rows, clean.pages, clean.bound, first)(clean.q, clean.key, clean.value, torch.float32)
        torch.testing.assert_close(out, wanted, **CLOSE[torch.float32])


def test_rows_of_a_block_see_those_behind_them(kernel_device: torch.device) -> None:
    """As DFlash has it: every row is given the last row's place."""
    case = Texts(2, 4, 2, 64).tree(chain(0, 125, 6), chain(1, 30, 6))
    rows = case.rows
    depth = torch.full_like(rows.depth, 5)
    base = rows.position - rows.depth
    case.rows = Rows(
        rows.token, rows.slot, base + 5, depth, rows.parent, rows.index,
        torch.arange(6).expand(12, 6), rows.first_row, rows.row_count,
    )  # fmt: skip
    case = case.to(kernel_device)
    clean = without_nan(case)
    wanted = TwinAttention(clean.rows, clean.pages, clean.bound)(clean.q, clean.key, clean.value, torch.float32)
    torch.testing.assert_close(case.attend(), wanted, **CLOSE[torch.float32])


@pytest.mark.parametrize(("lanes", "run", "slab"), [(128, 16, 16), (64, 16, 48), (32, 64, 64)])
def test_items_are_the_twins_and_every_chunk_of_a_row_is_in_one(
    lanes: int, run: int, slab: int, kernel_device: torch.device, poisoned: Callable[[], AbstractContextManager[Any]]
) -> None:
    texts = Texts(5, 1, 1, 16)
    case = texts.tree(
        comb(0, 126, 9), chain(1, 3, 20), comb(2, 300, 4), chain(3, 200, 7), chain(4, 0, 1), padding=4
    ).to(kernel_device)
    chunks = -(-case.bound // lanes) + 1
    with poisoned():
        made, twin = (
            make(case.rows, case.pages, chunks, lanes=lanes, run=run, slab=slab)
            for make in (attention_items, attention_items_twin)
        )
    assert torch.equal(made.total, twin.total)
    assert torch.equal(made.row, twin.row)
    covered = []
    for number, count in enumerate(made.total.tolist()):
        items = made.table[:, number, :count]
        assert torch.equal(items, twin.table[:, number, :count])
        for row, end, chunk, page, seen in items.T.tolist():
            assert number * slab <= row < end <= (number + 1) * slab
            assert seen > chunk * lanes
            for one in range(row, end):
                if page < 0 or made.row[1, one] > chunk:
                    covered.append((one, chunk))
                    assert page < 0 or page == case.pages[case.rows.slot[one], chunk * lanes // CHUNK]
    position, slot = case.rows.position.tolist(), case.rows.slot.tolist()
    wanted = [(row, c) for row, at in enumerate(position) if slot[row] < 5 for c in range(at // lanes + 1)]
    assert sorted(covered) == wanted


def test_what_a_kernel_cannot_take_is_refused(kernel_device: torch.device) -> None:
    case = Texts(1, 4, 2, 64).tree(chain(0, 5, 2)).to(kernel_device)
    attention = PagedAttention(case.rows, case.pages, case.bound)
    with pytest.raises(ValueError, match="key must be"):
        attention(case.q, case.key.double(), case.value, torch.float32)
    with pytest.raises(ValueError, match="do not fit"):
        attention(case.q[:1], case.key, case.value, torch.float32)
    with pytest.raises(ValueError, match="one behind the other"):
        attention(case.q.transpose(1, 2).contiguous().transpose(1, 2), case.key, case.value, torch.float32)
    with pytest.raises(ValueError, match="whole runs"):
        attention_items(case.rows, case.pages, 1, lanes=128, run=16, slab=24)
    with pytest.raises(ValueError, match="no room for heads of 2048"):
        lanes_of(torch.bfloat16, 2048)


@pytest.mark.parametrize("gap", [0, 32])
def test_rows_of_queries_may_have_gaps(gap: int, kernel_device: torch.device) -> None:
    case = Texts(1, 4, 2, 64).tree(chain(0, 5, 3)).to(kernel_device)
    out = case.attend()
    wide = torch.full((3, 4 * 64 + gap), torch.nan, device=kernel_device)
    wide[:, : 4 * 64] = case.q.flatten(1)
    case.q = wide[:, : 4 * 64].view(3, 4, 64)
    assert torch.equal(case.attend(), out)


def test_compiles_to_one_class_of_products(assert_compiles: Callable[..., list[dict[str, Any]]]) -> None:
    names = [f"redraft.kernels.{name}" for name in ("attention_items", "chunk_attention", "sum_chunks")]
    usages = assert_compiles(*names)
    assert not any(usage["fused"] for usage in usages), "a fused multiply-add rounds once where the twin rounds twice"
    products = {product for usage in usages for product in usage["products"]}
    # wgmma and tcgen05 sum in other orders, and which one is taken follows the shape of the tile
    assert products == {
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    }
    assert all(len(usage["products"]) == 1 for usage in usages if usage["module"] == names[1])
