"""Move the KV of accepted nodes to where plain decoding would have written it.

A node's KV is written to logical cell base + index, base being the root's position; once accepted at depth j it belongs
to cell base + j.  Along a path indices rise and index >= depth, so a move never goes upwards and never lands on a cell
that a deeper node of the path still has to be read from.  A chain has index = depth everywhere: nothing moves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from redraft.kernels.accept import Committed
from redraft.kernels.rows import Rows, cells
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, tl, use_triton

_DEPTHS, _FEATURES = 8, 256
"""Nodes and elements of each that one program holds at a time."""


def compact_kv(kv: Tensor, page_table: Tensor, rows: Rows, committed: Committed, page_size: int) -> None:
    """Move accepted nodes' KV in place, in all layers.

    Args:
        kv: [L, 2, cells, KVH, HD], any dtype; cell 0 belongs to the trash page.
        page_table: [S+1, P] int64 page ids.
        rows: the round's rows; ``index``, ``position`` and ``first_row`` are read.
        committed: what ``accept`` made of them; ``path_row`` is read.
        page_size: cells per page.
    """
    if use_triton(kv, page_table):
        compact_kv_kernel(kv, page_table, rows, committed, page_size)
    elif kv.device.type == "cpu":
        tables = rows.index, rows.position, rows.first_row, committed.path_row
        torch.ops.redraft.compact_kv_cpu(kv, page_table, *tables, page_size)
    else:
        compact_kv_twin(kv, page_table, rows, committed, page_size)


def compact_kv_twin(kv: Tensor, page_table: Tensor, rows: Rows, committed: Committed, page_size: int) -> None:
    """``compact_kv`` in plain torch: all of it read, then all of it written.  What stays copies cell 0 to itself."""
    slots, W = committed.path_row.shape
    depth = torch.arange(W, device=kv.device)
    index = rows.index[committed.path_row.clamp(min=0)]
    moves = (committed.path_row >= 0) & (index != depth)
    # the trash slot, last of all, stands in for what stays
    slot = torch.where(moves, torch.arange(slots, device=kv.device).unsqueeze(1), slots - 1)
    # a slot without rows may begin behind the last one; none of its nodes move
    start = rows.position[rows.first_row.clamp(max=rows.position.shape[0] - 1)].unsqueeze(1)
    source = cells(page_table, slot, (start + index) * moves, page_size)
    target = cells(page_table, slot, (start + depth) * moves, page_size)
    kv.index_copy_(2, target.flatten(), kv.index_select(2, source.flatten()))


def _compact_kv_cpu(
    kv: Tensor, page_table: Tensor, index: Tensor, position: Tensor, first_row: Tensor, path_row: Tensor, page_size: int
) -> None:
    """Look which nodes move, and touch only those.  The look is a host read, hence an operator of its own."""
    depth = torch.arange(path_row.shape[1])
    moved_index = index[path_row.clamp(min=0)]
    moves = (moved_index != depth).logical_and_(path_row >= 0)
    if not moves.any():
        return
    slot, to = moves.nonzero(as_tuple=True)
    start = position[first_row[slot]]
    source = cells(page_table, slot, start + moved_index[slot, to], page_size)
    target = cells(page_table, slot, start + to, page_size)
    planes = kv.view(-1, kv.shape[2], kv.shape[3] * kv.shape[4])
    planes.index_copy_(1, target, planes.index_select(1, source))


_LIBRARY: Any = torch.library.Library("redraft", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "compact_kv_cpu(Tensor(a!) kv, Tensor page_table, Tensor index, Tensor position, Tensor first_row, "
    "Tensor path_row, int page_size) -> ()"
)
_LIBRARY.impl("compact_kv_cpu", _compact_kv_cpu, "CPU")
torch.library.register_fake("redraft::compact_kv_cpu", lambda *arguments: None, lib=_LIBRARY)


@jit
def _move(  # type: ignore[no-untyped-def]
    p_kv, p_page_table, p_index, p_position, p_first_row, p_path_row, cells_total, P, F, PAGE,
    W: tl.constexpr, DEPTHS: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """One program per (layer and K or V, slot, part of the features); ``DEPTHS`` nodes of the path at a time.

    Going down the path no write hits a cell that is still to be read, but for the nodes that move together.
    """
    plane = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1).to(tl.int64)
    o_feature = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    p_page = p_page_table + slot * P
    p_plane = p_kv + plane * cells_total * F + o_feature[None, :]
    # a slot without rows has no path either, and its root may not be there
    has_path = tl.load(p_path_row + slot * W) >= 0
    base = tl.load(p_position + tl.load(p_first_row + slot), mask=has_path, other=0)
    start = tl.full([], 0, tl.int32)
    while start < W:
        o_depth = start + tl.arange(0, DEPTHS)
        b_row = tl.load(p_path_row + slot * W + o_depth, mask=o_depth < W, other=-1)
        b_index = tl.load(p_index + b_row, mask=b_row >= 0, other=0)
        m_moves = (b_row >= 0) & (b_index != o_depth)
        if tl.max(m_moves.to(tl.int32), 0) > 0:
            b_from = base + b_index
            b_to = base + o_depth
            b_source = tl.load(p_page + b_from // PAGE, mask=m_moves, other=0) * PAGE + b_from % PAGE
            b_target = tl.load(p_page + b_to // PAGE, mask=m_moves, other=0) * PAGE + b_to % PAGE
            m_tile = m_moves[:, None] & (o_feature < F)[None, :]
            b_kv = tl.load(p_plane + b_source[:, None] * F, mask=m_tile)
            # other threads write cells that this one reads
            tl.debug_barrier()
            tl.store(p_plane + b_target[:, None] * F, b_kv, mask=m_tile)
        # a path has no gaps: where it ended nothing follows
        start = tl.where(tl.min(b_row, 0) < 0, W, start + DEPTHS)


def compact_kv_kernel(kv: Tensor, page_table: Tensor, rows: Rows, committed: Committed, page_size: int) -> None:
    """``compact_kv`` in Triton.  Raises ``ValueError`` for tensors the kernel cannot take."""
    check_tensor("kv", kv, 5, kv.dtype)
    check_tensor("page_table", page_table, 2, torch.int64, like=kv)
    for name in ("index", "position", "first_row"):
        check_tensor(f"rows.{name}", getattr(rows, name), 1, torch.int64, like=kv)
    check_tensor("committed.path_row", committed.path_row, 2, torch.int64, like=kv)
    layers, two, cells_total, heads, head_dim = kv.shape
    slots, W = committed.path_row.shape
    begins = rows.first_row.shape[0]
    if not slots == page_table.shape[0] == begins:
        raise ValueError(
            f"path_row has {slots} slots, page_table {page_table.shape[0]} and first_row {begins}: they must agree"
        )
    features = heads * head_dim
    grid = (layers * two, slots - 1, -(-features // _FEATURES))
    _move[grid](
        kv, page_table, rows.index, rows.position, rows.first_row, committed.path_row, cells_total, page_table.shape[1],
        features, page_size, W=W, DEPTHS=_DEPTHS, BLOCK_F=_FEATURES,
    )  # fmt: skip


_TYPES = {
    "p_page_table": "*i64",
    "p_index": "*i64",
    "p_position": "*i64",
    "p_first_row": "*i64",
    "p_path_row": "*i64",
    "cells_total": "i32",
    "P": "i32",
    "F": "i32",
    "PAGE": "i32",
}
COMPILE_CASES = [
    CompileCase(_move, {"p_kv": dtype, **_TYPES}, {"W": W, "DEPTHS": _DEPTHS, "BLOCK_F": _FEATURES})
    for dtype, W in (("*bf16", 8), ("*fp32", 16), ("*bf16", 64))
]
