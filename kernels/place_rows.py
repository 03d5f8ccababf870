"""Where a pass's rows lie: each one's own cell, and the cell of the token before it.

A row's KV is written to its slot's logical cell (position of the root) + index.  The token before it is in a tree its
parent, whose cell is another of the pass, and for a root the newest one but it, which is committed.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
from torch import Tensor

from redraft.kernels.rows import Rows, cells
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, tl, use_triton

_BLOCK = 128


def place_rows(rows: Rows, page_table: Tensor, page_size: int) -> tuple[Tensor, Tensor]:
    """Physical cells of ``rows`` and of the tokens before them, [R] int64 each; 0, the trash page's, for padding.

    ``page_table``: [S+1, P] int64 page ids, as ``rows.cells`` reads it.  At position 0 the token before is the row's
    own.
    """
    op = place_rows_kernel if use_triton(rows.slot, page_table) else place_rows_twin
    return op(rows, page_table, page_size)


def place_rows_twin(rows: Rows, page_table: Tensor, page_size: int) -> tuple[Tensor, Tensor]:
    """``place_rows`` in plain torch."""
    cell = cells(page_table, rows.slot, rows.position - rows.depth + rows.index, page_size)
    committed = cells(page_table, rows.slot, (rows.position - 1).clamp_min(0), page_size)
    return cell, torch.where(rows.depth > 0, cell[rows.parent], committed)


@jit
def _cell(p_pages, b_logical, m_real, PAGE_SIZE: tl.constexpr):
    b_page = tl.load(p_pages + b_logical // PAGE_SIZE, mask=m_real, other=0)
    return tl.where(m_real, b_page * PAGE_SIZE + b_logical % PAGE_SIZE, 0)


@jit
def _place(
    p_slot, p_position, p_depth, p_index, p_parent, p_page_table, p_cell, p_before, R, S, P,
    PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per ``BLOCK`` rows; ``S`` is the trash slot, ``P`` the page table's width."""
    o_row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_row = o_row < R
    b_slot = tl.load(p_slot + o_row, mask=m_row, other=0)
    b_position = tl.load(p_position + o_row, mask=m_row, other=0)
    b_depth = tl.load(p_depth + o_row, mask=m_row, other=0)
    b_index = tl.load(p_index + o_row, mask=m_row, other=0)
    b_parent = tl.load(p_parent + o_row, mask=m_row, other=0)
    b_above = tl.load(p_index + b_parent, mask=m_row, other=0)
    m_real = m_row & (b_slot < S)
    p_pages = p_page_table + b_slot * P
    b_root = b_position - b_depth
    b_before = tl.where(b_depth > 0, b_root + b_above, tl.maximum(b_position - 1, 0))
    tl.store(p_cell + o_row, _cell(p_pages, b_root + b_index, m_real, PAGE_SIZE), mask=m_row)
    tl.store(p_before + o_row, _cell(p_pages, b_before, m_real, PAGE_SIZE), mask=m_row)


def place_rows_kernel(rows: Rows, page_table: Tensor, page_size: int) -> tuple[Tensor, Tensor]:
    """``place_rows`` in one launch.  Raises ``ValueError`` for tensors the kernel cannot take."""
    R = rows.slot.shape[0]
    for name in ("slot", "position", "depth", "index", "parent"):
        tensor = getattr(rows, name)
        check_tensor(f"rows.{name}", tensor, 1, torch.int64, like=page_table)
        if tensor.shape[0] != R:
            raise ValueError(f"rows.{name} must have {R} rows, but has {tensor.shape[0]}")
    check_tensor("page_table", page_table, 2, torch.int64)
    slots, pages = page_table.shape
    cell, before = rows.slot.new_empty(R), rows.slot.new_empty(R)
    if R:
        _place[(-(-R // _BLOCK),)](
            rows.slot, rows.position, rows.depth, rows.index, rows.parent, page_table, cell, before,
            R, slots - 1, pages, PAGE_SIZE=page_size, BLOCK=_BLOCK, num_warps=1,
        )  # fmt: skip
    return cell, before


_TYPES = {
    **{
        f"p_{name}": "*i64" for name in ("slot", "position", "depth", "index", "parent", "page_table", "cell", "before")
    },
    **dict.fromkeys(("R", "S", "P"), "i32"),
}
COMPILE_CASES = [CompileCase(_place, _TYPES, {"PAGE_SIZE": 128, "BLOCK": _BLOCK}, num_warps=1)]
