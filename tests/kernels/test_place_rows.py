"""place_rows against cells looked up one by one; kernel against twin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch

from redraft.kernels.pack_tree import pack_tree_twin
from redraft.kernels.place_rows import place_rows, place_rows_kernel, place_rows_twin
from redraft.kernels.rows import Rows

PAGE = 4


def trees(slots: int, width: int, rows: int, seed: int) -> tuple[Rows, torch.Tensor]:
    """Rows of random trees, some at position 0, with padding, and a page table."""
    random = torch.Generator().manual_seed(seed)
    parent = torch.stack([torch.randint(max(i, 1), (slots + 1,), generator=random) for i in range(width)], 1)
    token, active = torch.zeros_like(parent), torch.rand(slots + 1, generator=random) < 0.8
    active[-1] = False
    length = torch.randint(1, 9, (slots + 1,), generator=random)
    packed = pack_tree_twin(token, parent, torch.rand(slots + 1, width, generator=random), active, length, rows)
    table = torch.randint(1, 2**33, (slots + 1, (9 + width) // PAGE + 1), generator=random)
    return packed, table


@pytest.mark.parametrize(("slots", "width", "rows"), [(1, 1, 1), (3, 7, 18), (9, 16, 140)])
def test_every_cell(
    slots: int,
    width: int,
    rows: int,
    kernel_device: torch.device,
    poisoned: Callable[[], AbstractContextManager[Any]],
) -> None:
    packed, table = trees(slots, width, rows, rows)
    cell, before = place_rows(packed, table, PAGE)
    for row in range(rows):
        slot, depth = int(packed.slot[row]), int(packed.depth[row])
        if slot == slots:
            assert cell[row] == before[row] == 0
            continue
        root = int(packed.position[row]) - depth

        def at(logical: int, slot: int = slot) -> int:
            return int(table[slot, logical // PAGE]) * PAGE + logical % PAGE

        assert cell[row] == at(root + int(packed.index[row]))
        above = root + int(packed.index[packed.parent[row]]) if depth else max(root - 1, 0)
        assert before[row] == at(above)
    there = Rows(*(getattr(packed, name).to(kernel_device) for name in Rows.__slots__))
    with poisoned():
        made = place_rows_kernel(there, table.to(kernel_device), PAGE)
    assert torch.equal(made[0].cpu(), cell)
    assert torch.equal(made[1].cpu(), before)


def test_kernel_names_the_argument_it_cannot_take(kernel_device: torch.device) -> None:
    packed, table = trees(2, 3, 5, 0)
    there = Rows(*(getattr(packed, name).to(kernel_device) for name in Rows.__slots__))
    table = table.to(kernel_device)
    with pytest.raises(ValueError, match=r"rows\.depth must be torch\.int64"):
        place_rows_kernel(replace(there, depth=there.depth.int()), table, PAGE)
    with pytest.raises(ValueError, match=r"rows\.index must have 5 rows, but has 4"):
        place_rows_kernel(replace(there, index=there.index[:-1]), table, PAGE)


def test_nothing_is_asked_of_the_host() -> None:
    packed, table = trees(2, 3, 5, 0)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        assert place_rows_twin(packed, table, PAGE)[0].shape == (5,)
