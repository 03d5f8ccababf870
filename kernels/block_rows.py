"""A draft's blocks as the rows of a pass: the anchor and masks behind it, where they stand and what they see.

Row k predicts the token k places behind the anchor.  A causal block is a chain.  Else every row is given the last
row's place, and so sees them all; where it stands itself, for rotation and for the cell of its key, is told apart.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.kernels.rows import Rows, cells
from redraft.kernels.tree_attention import CHUNK
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton


@dataclass(frozen=True, slots=True)
class BlockRows:
    """N blocks of B rows, int64."""

    rows: Rows
    """What attention reads.  ``parent``, ``first_row`` and ``row_count`` are empty, for nobody walks a block."""
    position: Tensor
    """[N * B] where a row stands, for its rotation."""
    cell: Tensor
    """[N * B] where its key and value go; cell 0 for the trash slot's."""


def block_rows(
    slot: Tensor, anchor: Tensor, root: Tensor, page_table: Tensor, *, size: int, mask: int, causal: bool
) -> BlockRows:
    """The rows of a block of ``size`` behind every anchor.

    Args:
        slot: [N] int64, S for the trash slot.
        anchor: [N] int64, the tokens of the blocks' first rows.
        root: [N] int64, their positions.
        page_table: [S+1, P] int64 page ids; it reaches as far as the blocks do.
        size: B.
        mask: the token of all other rows.
        causal: whether a row sees only rows before it.
    """
    op = block_rows_kernel if use_triton(slot, anchor, root, page_table) else block_rows_twin
    return op(slot, anchor, root, page_table, size=size, mask=mask, causal=causal)


def block_rows_twin(
    slot: Tensor, anchor: Tensor, root: Tensor, page_table: Tensor, *, size: int, mask: int, causal: bool
) -> BlockRows:
    """``block_rows`` in plain torch."""
    blocks = len(slot)
    row = torch.arange(size, device=slot.device)
    depth = (row if causal else torch.full_like(row, size - 1)).expand(blocks, size)
    position = (root.unsqueeze(1) + row).flatten()
    row_slot = slot.repeat_interleave(size)
    rows = Rows(
        token=torch.where(row == 0, anchor.unsqueeze(1), mask).flatten(),
        slot=row_slot,
        position=(root.unsqueeze(1) + depth).flatten(),
        depth=depth.flatten(),
        parent=slot[:0],
        index=row.repeat(blocks),
        path=torch.where(row <= depth.unsqueeze(-1), row, -1).flatten(0, 1),
        first_row=slot[:0],
        row_count=slot[:0],
    )
    return BlockRows(rows, position, cells(page_table, row_slot, position, CHUNK))


@jit(do_not_specialize=["S", "P"])  # type: ignore[untyped-decorator]
def _block_rows(
    p_slot, p_anchor, p_root, p_page_table,
    p_token, p_row_slot, p_seen, p_depth, p_index, p_path, p_position, p_cell,
    S, P, SIZE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per block; ``p_seen`` is where a row stands for attention."""
    block = tl.program_id(0).to(tl.int64)
    o_row = tl.arange(0, BLOCK)
    m_row = o_row < SIZE
    slot = tl.load(p_slot + block)
    root = tl.load(p_root + block)
    b_row = o_row.to(tl.int64)
    b_depth = b_row
    if not CAUSAL:
        b_depth = tl.zeros([BLOCK], tl.int64) + (SIZE - 1)
    b_position = root + b_row
    b_number = b_position // PAGE
    # the trash slot's all go to cell 0
    m_real = m_row & (slot < S)
    b_page = tl.load(p_page_table + slot * P + tl.minimum(b_number, P - 1), mask=m_real, other=0)
    b_cell = tl.where(m_real, b_page * PAGE + b_position - b_number * PAGE, 0)
    o_out = block * SIZE + o_row
    tl.store(p_token + o_out, tl.where(o_row == 0, tl.load(p_anchor + block), MASK), mask=m_row)
    tl.store(p_row_slot + o_out, tl.zeros([BLOCK], tl.int64) + slot, mask=m_row)
    tl.store(p_seen + o_out, root + b_depth, mask=m_row)
    tl.store(p_depth + o_out, b_depth, mask=m_row)
    tl.store(p_index + o_out, b_row, mask=m_row)
    tl.store(p_position + o_out, b_position, mask=m_row)
    tl.store(p_cell + o_out, b_cell, mask=m_row)
    b_path = tl.where(b_row[None, :] <= b_depth[:, None], b_row[None, :], -1)
    tl.store(p_path + o_out[:, None] * SIZE + o_row[None, :], b_path, mask=m_row[:, None] & m_row[None, :])


def block_rows_kernel(
    slot: Tensor, anchor: Tensor, root: Tensor, page_table: Tensor, *, size: int, mask: int, causal: bool
) -> BlockRows:
    """``block_rows`` in one Triton launch.  Raises ``ValueError`` for tensors the kernel cannot take."""
    check_tensor("page_table", page_table, 2, torch.int64)
    for name, tensor in (("slot", slot), ("anchor", anchor), ("root", root)):
        check_tensor(name, tensor, 1, torch.int64, like=page_table)
        if tensor.shape != slot.shape:
            raise ValueError(f"{name} has {len(tensor)} elements, slot has {len(slot)}: they must agree")
    N, (slots, P) = len(slot), page_table.shape
    token, row_slot, seen, depth, index, position, cell = (slot.new_empty(N * size) for _ in range(7))
    path = slot.new_empty(N * size, size)
    if N:
        _block_rows[(N,)](
            slot, anchor, root, page_table, token, row_slot, seen, depth, index, path, position, cell, slots - 1, P,
            SIZE=size, MASK=mask, CAUSAL=causal, PAGE=CHUNK, BLOCK=next_power_of_2(size), num_warps=1,
        )  # fmt: skip
    nobody = slot[:0]
    rows = Rows(token, row_slot, seen, depth, nobody, index, path, nobody, nobody)
    return BlockRows(rows, position, cell)


_OUTPUTS = ("token", "row_slot", "seen", "depth", "index", "path", "position", "cell")
_TYPES = {
    **{f"p_{name}": "*i64" for name in ("slot", "anchor", "root", "page_table", *_OUTPUTS)},
    **dict.fromkeys(("S", "P"), "i32"),
}
COMPILE_CASES = [
    CompileCase(
        _block_rows,
        _TYPES,
        {"SIZE": size, "MASK": 16, "CAUSAL": causal, "PAGE": CHUNK, "BLOCK": next_power_of_2(size)},
        num_warps=1,
    )
    for size, causal in ((8, False), (32, True))
]
