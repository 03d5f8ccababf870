"""Slots that are drafted for and their blocks' rows: against literal readings; the Triton kernels against the twins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from redraft.kernels.active_slots import active_slots, active_slots_kernel, active_slots_twin
from redraft.kernels.block_rows import BlockRows, block_rows, block_rows_kernel, block_rows_twin
from redraft.kernels.tree_attention import CHUNK

WIDTH = 9
SLOTS = st.lists(st.tuples(st.booleans(), st.integers(0, WIDTH)), min_size=0, max_size=9)


def state(slots: list[tuple[bool, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Texts, lengths and who is active; the trash slot, which is not, comes last and has a token, too."""
    tokens = torch.arange((len(slots) + 1) * WIDTH).view(-1, WIDTH)
    active, length = zip(*slots, (False, 2), strict=True)
    return tokens, torch.tensor(length), torch.tensor(active)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(slots=[(False, 3)] * 7, spare=2)
@example(slots=[(True, 1)] * 8, spare=0)
@example(slots=[(False, 0), (True, 0), (True, WIDTH)], spare=9)
@given(slots=SLOTS, spare=st.integers(0, 9))
def test_active_slots_are_the_active_ones_and_then_the_trash(
    slots: list[tuple[bool, int]],
    spare: int,
    kernel_device: torch.device,
    poisoned: Callable[..., Any],
) -> None:
    tokens, length, active = state(slots)
    live = [slot for slot, (one, _) in enumerate(slots) if one]
    requests = min(len(live) + spare, len(slots) + 1)
    wanted = []
    for slot in live + [len(slots)] * (requests - len(live)):
        last = max(int(length[slot]) - 1, 0)
        wanted.append((slot, slot * WIDTH + last, last if slot < len(slots) else 0))
    want = torch.tensor(wanted, dtype=torch.int64).view(-1, 3).unbind(1)
    here = [tensor.to(kernel_device) for tensor in (tokens, length, active)]
    with poisoned():
        made = active_slots_kernel(*here, len(live) + spare)  # type: ignore[arg-type]
    for got in (made, active_slots_twin(tokens, length, active, len(live) + spare)):
        for one, other in zip(got, want, strict=True):
            assert one.dtype == torch.int64
            assert one.tolist() == other.tolist()


def blocks(table: list[list[int]], places: list[tuple[int, int]], size: int) -> tuple[tuple[Tensor, ...], list[Any]]:
    """Slot, anchor, root and page table of blocks at (slot, root), and every row's (position, cell) by hand."""
    slot, root = (torch.tensor(column) for column in zip(*places, strict=True))
    by_hand = [
        (at + k, table[one][(at + k) // CHUNK] * CHUNK + (at + k) % CHUNK if one < len(table) - 1 else 0)
        for one, at in places
        for k in range(size)
    ]
    return (slot, slot * 100 + 7, root, torch.tensor(table)), by_hand


def on(device: torch.device, made: BlockRows) -> BlockRows:
    rows = {field.name: getattr(made.rows, field.name).to(device) for field in fields(made.rows)}
    return BlockRows(replace(made.rows, **rows), *(t.to(device) for t in (made.position, made.cell, made.hidden)))


TABLE = [[4, 9, 2], [3, 1, 8], [0, 0, 0]]
PLACES = [(1, 0), (0, CHUNK - 3), (2, 0), (1, 3 * CHUNK - 11)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [1, 5, 8, 11])
def test_blocks_of_rows(size: int, causal: bool, kernel_device: torch.device, poisoned: Callable[..., Any]) -> None:
    (slot, anchor, root, table), by_hand = blocks(TABLE, PLACES, size)
    asked = {"size": size, "mask": 55, "causal": causal}
    embedding = torch.randn(300, 37)
    inputs = slot, anchor, root, table, embedding
    twin = block_rows_twin(*inputs, **asked)  # type: ignore[arg-type]
    with poisoned():
        made = block_rows_kernel(*(t.to(kernel_device) for t in inputs), **asked)  # type: ignore[arg-type]
    for got in (twin, on(torch.device("cpu"), made)):
        rows = got.rows
        assert list(zip(got.position.tolist(), got.cell.tolist(), strict=True)) == by_hand
        number = torch.arange(len(PLACES) * size)
        assert torch.equal(rows.slot, slot[number // size])
        assert torch.equal(rows.token, torch.where(number % size == 0, anchor[number // size], 55))
        assert torch.equal(rows.index, number % size)
        assert torch.equal(rows.depth, rows.index if causal else torch.full_like(number, size - 1))
        assert torch.equal(rows.position - rows.depth, root[number // size])
        # a causal row sees those before it, any other the whole block
        for row, path in enumerate(rows.path.tolist()):
            seen = row % size + 1 if causal else size
            assert path == [*range(seen), *[-1] * (size - seen)]
        assert torch.equal(got.hidden, embedding[rows.token])
        assert len(rows.parent) == len(rows.first_row) == len(rows.row_count) == 0
        assert all(getattr(rows, field.name).dtype == torch.int64 for field in fields(rows))


def test_no_shape_needs_data() -> None:
    with FakeTensorMode():
        ids = torch.zeros(5, dtype=torch.int64)
        slot, anchor, root = active_slots(torch.zeros(5, 9, dtype=torch.int64), ids, ids > 0, 3)
        assert slot.shape == anchor.shape == root.shape == (3,)
        table, embedding = torch.zeros(5, 2, dtype=torch.int64), torch.zeros(9, 6)
        made = block_rows(slot, anchor, root, table, embedding, size=4, mask=0, causal=False)
        assert made.hidden.shape == (12, 6)
        assert made.cell.shape == (12,)
        assert made.rows.path.shape == (12, 4)


def test_kernels_name_what_does_not_fit(kernel_device: torch.device) -> None:
    ids = torch.zeros(3, dtype=torch.int64, device=kernel_device)
    table, embedding = ids.view(3, 1), torch.zeros(9, 6, device=kernel_device)
    with pytest.raises(ValueError, match="do not fit 3 rows of tokens"):
        active_slots_kernel(table, ids[:2], ids > 0, 2)
    with pytest.raises(ValueError, match=r"active must be torch\.bool"):
        active_slots_kernel(table, ids, ids, 2)
    with pytest.raises(ValueError, match="anchor has 2 elements, slot has 3"):
        block_rows_kernel(ids, ids[:2], ids, table, embedding, size=4, mask=0, causal=False)
    with pytest.raises(ValueError, match=r"root must be torch\.int64"):
        block_rows_kernel(ids, ids, ids.int(), table, embedding, size=4, mask=0, causal=False)
