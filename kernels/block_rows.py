"""A draft's blocks as the rows of a pass: the anchor and masks behind it, where they stand, what they see and feed.

Row k predicts the token k places behind the anchor.  A causal block is a chain.  Else every row is given the last
row's place, and so sees them all; where it stands itself, for rotation and for the cell of its key, is told apart.
"""
# kernels' parameters are Triton's, not Python's
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.rows import Rows, cells
from redraft.kernels.tree_attention import CHUNK
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl, use_triton

_WIDTH = 1024
"""Numbers of a token's embedding that a program copies at a time, one vector of 8 for each of 128 threads."""


@dataclass(frozen=True, slots=True)
class BlockRows:
    """N blocks of B rows, int64."""

    rows: Rows
    """What attention reads.  ``parent``, ``first_row`` and ``row_count`` are empty, for nobody walks a block."""
    position: Tensor
    """[N * B] where a row stands, for its rotation."""
    cell: Tensor
    """[N * B] where its key and value go; cell 0 for the trash slot's."""
    hidden: Tensor
    """[N * B, H] the embedding of its token."""


def block_rows(
    slot: Tensor,
    anchor: Tensor,
    root: Tensor,
    page_table: Tensor,
    embedding: Tensor,
    *,
    size: int,
    mask: int,
    causal: bool,
) -> BlockRows:
    """The rows of a block of ``size`` behind every anchor.

    Args:
        slot: [N] int64, S for the trash slot.
        anchor: [N] int64, the tokens of the blocks' first rows.
        root: [N] int64, their positions.
        page_table: [S+1, P] int64 page ids; it reaches as far as the blocks do.
        embedding: [V, H] bf16, fp16 or fp32.
        size: B.
        mask: the token of all other rows.
        causal: whether a row sees only rows before it.
    """
    op = block_rows_kernel if use_triton(slot, anchor, root, page_table, embedding) else block_rows_twin
    return op(slot, anchor, root, page_table, embedding, size=size, mask=mask, causal=causal)


def block_rows_twin(
    slot: Tensor,
    anchor: Tensor,
    root: Tensor,
    page_table: Tensor,
    embedding: Tensor,
    *,
    size: int,
    mask: int,
    causal: bool,
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
    cell = cells(page_table, row_slot, position, CHUNK)
    return BlockRows(rows, position, cell, functional.embedding(rows.token, embedding))


@jit(do_not_specialize=["S", "P"])  # type: ignore[untyped-decorator]
def _block_rows(
    p_slot, p_anchor, p_root, p_page_table, p_embedding,
    p_token, p_row_slot, p_seen, p_depth, p_index, p_path, p_position, p_cell, p_hidden,
    S, P, H, SIZE: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, PAGE: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One program per row; ``p_seen`` is where it stands for attention."""
    row = tl.program_id(0).to(tl.int64)
    block, place = row // SIZE, row % SIZE
    slot = tl.load(p_slot + block)
    root = tl.load(p_root + block)
    token = tl.where(place == 0, tl.load(p_anchor + block), MASK)
    depth = place
    if not CAUSAL:
        depth = place * 0 + (SIZE - 1)
    position = root + place
    number = position // PAGE
    # the trash slot's all go to cell 0
    page = tl.load(p_page_table + slot * P + tl.minimum(number, P - 1), mask=slot < S, other=0)
    cell = tl.where(slot < S, page * PAGE + position - number * PAGE, 0)
    tl.store(p_token + row, token)
    tl.store(p_row_slot + row, slot)
    tl.store(p_seen + row, root + depth)
    tl.store(p_depth + row, depth)
    tl.store(p_index + row, place)
    tl.store(p_position + row, position)
    tl.store(p_cell + row, cell)
    o_depth = tl.arange(0, BLOCK)
    tl.store(p_path + row * SIZE + o_depth, tl.where(o_depth <= depth, o_depth, -1).to(tl.int64), mask=o_depth < SIZE)
    o_hidden = tl.arange(0, WIDTH)
    for start in range(0, H, WIDTH):
        m_hidden = o_hidden < H - start
        b_hidden = tl.load(p_embedding + token * H + start + o_hidden, mask=m_hidden, other=0.0)
        tl.store(p_hidden + row * H + start + o_hidden, b_hidden, mask=m_hidden)


def block_rows_kernel(
    slot: Tensor,
    anchor: Tensor,
    root: Tensor,
    page_table: Tensor,
    embedding: Tensor,
    *,
    size: int,
    mask: int,
    causal: bool,
) -> BlockRows:
    """``block_rows`` in one Triton launch.  Raises ``ValueError`` for tensors the kernel cannot take."""
    check_tensor("page_table", page_table, 2, torch.int64)
    for name, tensor in (("slot", slot), ("anchor", anchor), ("root", root)):
        check_tensor(name, tensor, 1, torch.int64, like=page_table)
        if tensor.shape != slot.shape:
            raise ValueError(f"{name} has {len(tensor)} elements, slot has {len(slot)}: they must agree")
    check_tensor("embedding", embedding, 2, torch.bfloat16, torch.float16, torch.float32, like=page_table)
    N, (slots, P), H = len(slot), page_table.shape, embedding.shape[1]
    token, row_slot, seen, depth, index, position, cell = (slot.new_empty(N * size) for _ in range(7))
    path = slot.new_empty(N * size, size)
    hidden = embedding.new_empty(N * size, H)
    if N:
        _block_rows[(N * size,)](
            slot, anchor, root, page_table, embedding,
            token, row_slot, seen, depth, index, path, position, cell, hidden, slots - 1, P, H,
            SIZE=size, MASK=mask, CAUSAL=causal, PAGE=CHUNK,
            BLOCK=next_power_of_2(size), WIDTH=min(next_power_of_2(H), _WIDTH), num_warps=4,
        )  # fmt: skip
    nobody = slot[:0]
    rows = Rows(token, row_slot, seen, depth, nobody, index, path, nobody, nobody)
    return BlockRows(rows, position, cell, hidden)


_OUTPUTS = ("token", "row_slot", "seen", "depth", "index", "path", "position", "cell")
_TYPES = {
    **{f"p_{name}": "*i64" for name in ("slot", "anchor", "root", "page_table", *_OUTPUTS)},
    **dict.fromkeys(("S", "P", "H"), "i32"),
}
COMPILE_CASES = [
    CompileCase(
        _block_rows,
        {"p_embedding": dtype, "p_hidden": dtype, **_TYPES},
        {"SIZE": size, "MASK": 16, "CAUSAL": causal, "PAGE": CHUNK, "BLOCK": next_power_of_2(size), "WIDTH": _WIDTH},
        divisible=("H",),
    )
    for dtype, size, causal in (("*bf16", 8, False), ("*fp32", 32, True))
]
