"""What a pass's attention has to do, as a list that the GPU's programs share: paged_attention.py walks it.

An *item* is one chunk of ``LANES`` positions and the rows that find its keys in the same cells: a run of rows of one
slot where the cells follow the positions, which they do in all chunks before a tree, and for the spine also in it; or a
single row that leaves the spine and has the chunk's cells from its own path.  A chunk's keys and values are read once
for all rows of an item, and chunks behind a row's position are nobody's item, however far the context is padded.

The list is made on the device, once per pass.  How items are cut and ordered moves no bit of the result: every row and
chunk is in exactly one item, and what is computed of the two together rests on nothing else in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.rows import Rows
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, next_power_of_2, tl

PAGE = 128
"""Cells of a page; ``tree_attention.CHUNK``."""
TILE = 16
"""Rows times query heads of one product: the instruction's own size, so that no other is chosen for it."""
ITEM_FIELDS = 5
ROW_FIELDS = 5
_OPERAND_BYTES = 2**15
"""Shared memory for a chunk's keys, and as much for its values: consumer cards have 99 KiB."""
_BLOCK = 128
"""Numbers that ``_fill`` reads or writes at a time."""


def block_of(HD: int) -> int:
    """``HD`` as tiles have it: a power of two."""
    return max(16, next_power_of_2(HD))


def lanes_of(dtype: torch.dtype, HD: int) -> int:
    """Positions of a chunk for a cache of ``dtype`` and head size ``HD``; it divides a page.

    Products of fp32 are made of three of tf32, which takes twice the room.  Raises ``ValueError`` for heads so large
    that no chunk fits.
    """
    lanes = _OPERAND_BYTES // (block_of(HD) * dtype.itemsize * (2 if dtype == torch.float32 else 1))
    if lanes < TILE:
        raise ValueError(f"attention's kernel has no room for heads of {HD} in {dtype}")
    return min(PAGE, lanes)


@dataclass(frozen=True, slots=True)
class Items:
    """The list, in slabs of rows whose partial results fit the workspace together; int32 on the device."""

    table: Tensor
    """[5, slabs, capacity] of every item: its first row, the row behind its last, the chunk, the page in which the
    chunk's cells follow one another, or -1 for those of the row's path, and the bound of positions that are seen."""
    total: Tensor
    """[slabs] items of a slab."""
    row: Tensor
    """[5, R] of every row: chunks up to its position, 0 for padding; how many of them have their cells in order; and of
    the run that begins with it, 0 where none does: chunks, row behind the last, bound of positions that are seen."""
    run: int
    """Rows of an item at most."""
    slab: int
    """Rows of a slab; the last may have fewer."""
    chunks: int
    """Bound of a row's chunks."""


def attention_items(rows: Rows, page_table: Tensor, chunks: int, *, lanes: int, run: int, slab: int) -> Items:
    """List the items of a pass in Triton: two launches.

    Args:
        rows: the pass's rows; ``slot``, ``position``, ``depth`` and ``path`` are read.
        page_table: [S+1, P] int64 page ids.
        chunks: bound of any row's chunks; chunks from there on are left out.
        lanes: positions of a chunk, which divide a page.
        run: rows of an item at most.
        slab: rows of a slab, a multiple of ``run``.

    Raises ``ValueError`` for tensors the kernels cannot take.
    """
    if slab % run or PAGE % lanes:
        raise ValueError(f"slabs of {slab} rows must hold whole runs of {run}, pages whole chunks of {lanes}")
    slot, position, depth, path = (getattr(rows, name).contiguous() for name in ("slot", "position", "depth", "path"))
    for name, tensor, rank in (("slot", slot, 1), ("position", position, 1), ("depth", depth, 1), ("path", path, 2)):
        check_tensor(f"rows.{name}", tensor, rank, torch.int64, like=slot)
    check_tensor("page_table", page_table, 2, torch.int64, like=slot)
    R, W = path.shape
    slots, P = page_table.shape
    slabs = -(-R // slab)
    capacity = min(slab, R) * chunks
    row = torch.empty(ROW_FIELDS, R, dtype=torch.int32, device=slot.device)
    table = torch.empty(ITEM_FIELDS, slabs, capacity, dtype=torch.int32, device=slot.device)
    total = torch.empty(slabs, dtype=torch.int32, device=slot.device)
    _count[(R,)](slot, position, depth, path, row, R, W, slots - 1, chunks, LANES=lanes, RUN=run, num_warps=1)
    _fill[(R,)](
        slot, position, page_table, row, table, total, R, P, slab, slabs, capacity,
        LANES=lanes, PAGE_SIZE=PAGE, BLOCK=_BLOCK, num_warps=1,
    )  # fmt: skip
    return Items(table, total, row, run, slab, chunks)


def attention_items_twin(rows: Rows, page_table: Tensor, chunks: int, *, lanes: int, run: int, slab: int) -> Items:
    """``attention_items`` in plain torch; what lies in ``table`` behind a slab's items is undefined in both."""
    R, slots = rows.slot.shape[0], page_table.shape[0]
    number = torch.arange(R, device=rows.slot.device)
    real = rows.slot < slots - 1
    position, base = rows.position, rows.position - rows.depth
    spine = rows.path.gather(1, rows.depth.unsqueeze(1)).squeeze(1) == rows.depth
    own_chunks = (position // lanes + 1).clamp_max(chunks) * real
    upto = torch.where(spine, own_chunks, (base // lanes).clamp_max(chunks)) * real
    seen = torch.where(spine, position + 1, upto * lanes) * real
    # [R, run] the rows that follow, as far as they belong to the run
    others = number.unsqueeze(1) + torch.arange(run, device=number.device)
    at = others.clamp_max(R - 1)
    belongs = (others < R) & (others // run == number.unsqueeze(1) // run) & (rows.slot[at] == rows.slot.unsqueeze(1))
    leads = real & ((number % run == 0) | (rows.slot != rows.slot.roll(1)))
    runs, ends, bounds = (
        field * leads for field in ((upto[at] * belongs).amax(1), number + belongs.sum(1), (seen[at] * belongs).amax(1))
    )
    fields = torch.stack((own_chunks, upto, runs, ends, bounds)).to(torch.int32)
    slabs, capacity = -(-R // slab), min(slab, R) * chunks
    count = functional.pad(runs + own_chunks - upto, (0, slabs * slab - R)).view(slabs, slab).cumsum(1)
    item = torch.arange(capacity, device=number.device).expand(slabs, capacity).contiguous()
    within = torch.searchsorted(count, item, right=True).clamp_max(slab - 1)
    row = (within + torch.arange(slabs, device=number.device).unsqueeze(1) * slab).clamp_max(R - 1)
    place = item - (count.gather(1, within) - (runs + own_chunks - upto)[row])
    of_run = place < runs[row]
    chunk = torch.where(of_run, place, upto[row] + place - runs[row])
    page = page_table[rows.slot[row], (chunk * lanes // PAGE).clamp(0, page_table.shape[1] - 1)]
    table = torch.stack(
        (
            row,
            torch.where(of_run, ends[row], row + 1),
            chunk,
            torch.where(of_run, page, -1),
            torch.where(of_run, bounds[row], position[row] + 1),
        )
    )
    return Items(table.to(torch.int32), count.amax(1).to(torch.int32), fields, run, slab, chunks)


@jit(do_not_specialize=["R", "W", "S", "C"])  # type: ignore[untyped-decorator]
def _count(  # type: ignore[no-untyped-def]
    p_slot, p_position, p_depth, p_path, p_row, R, W, S, C, LANES: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """One program per row: its own fields, and those of the run that begins with it.

    Along a path indices rise, so a row is on the spine if its own index is its depth.
    """
    row = tl.program_id(0)
    o_row = row + tl.arange(0, RUN)
    # runs end where a multiple of RUN or another slot's rows begin
    m_run = (o_row < R) & (o_row < row // RUN * RUN + RUN)
    slot = tl.load(p_slot + row)
    m_run = m_run & (tl.load(p_slot + o_row, mask=m_run, other=-1) == slot) & (slot < S)
    b_position = tl.load(p_position + o_row, mask=m_run, other=0)
    b_depth = tl.load(p_depth + o_row, mask=m_run, other=0)
    b_index = tl.load(p_path + o_row.to(tl.int64) * W + b_depth, mask=m_run, other=0)
    b_chunks = tl.minimum(b_position // LANES + 1, C)
    m_spine = b_index == b_depth
    b_upto = tl.where(m_spine, b_chunks, tl.minimum((b_position - b_depth) // LANES, C))
    b_seen = tl.where(m_spine, b_position + 1, b_upto * LANES)
    before = tl.load(p_slot + row - 1, mask=row % RUN > 0, other=-1)
    leads = ((before != slot) & (slot < S)).to(tl.int32)
    m_first = m_run & (o_row == row)
    tl.store(p_row + row, tl.sum(tl.where(m_first, b_chunks, 0).to(tl.int32), 0))
    tl.store(p_row + R + row, tl.sum(tl.where(m_first, b_upto, 0).to(tl.int32), 0))
    tl.store(p_row + 2 * R + row, tl.max(tl.where(m_run, b_upto, 0).to(tl.int32), 0) * leads)
    tl.store(p_row + 3 * R + row, (row + tl.sum(m_run.to(tl.int32), 0)) * leads)
    tl.store(p_row + 4 * R + row, tl.max(tl.where(m_run, b_seen, 0).to(tl.int32), 0) * leads)


@jit(do_not_specialize=["R", "P", "SLAB", "SLABS", "CAPACITY"])  # type: ignore[untyped-decorator]
def _fill(  # type: ignore[no-untyped-def]
    p_slot, p_position, p_page_table, p_row, p_table, p_total, R, P, SLAB, SLABS, CAPACITY,
    LANES: tl.constexpr, PAGE_SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row writes the items of the run that begins with it, then those of its own path."""
    row = tl.program_id(0)
    slab = row // SLAB
    o_block = tl.arange(0, BLOCK)
    # where its items begin: behind those of the slab's rows before it
    b_before = tl.zeros([BLOCK], tl.int32)
    for start in range(slab * SLAB, row, BLOCK):
        m_before = start + o_block < row
        p_before = p_row + start + o_block
        b_before += tl.load(p_before, mask=m_before, other=0) - tl.load(p_before + R, mask=m_before, other=0)
        b_before += tl.load(p_before + 2 * R, mask=m_before, other=0)
    offset = tl.sum(b_before, 0)
    chunks = tl.load(p_row + row)
    upto = tl.load(p_row + R + row)
    run = tl.load(p_row + 2 * R + row)
    end = tl.load(p_row + 3 * R + row)
    seen = tl.load(p_row + 4 * R + row)
    p_page = p_page_table + tl.load(p_slot + row) * P
    plane = SLABS * CAPACITY
    p_item = p_table + slab * CAPACITY + offset
    b_fill = tl.zeros([BLOCK], tl.int32)
    for start in range(0, run, BLOCK):
        b_chunk = start + o_block
        m_chunk = b_chunk < run
        b_number = tl.minimum(b_chunk * LANES // PAGE_SIZE, P - 1)
        b_page = tl.load(p_page + b_number, mask=m_chunk, other=0)
        tl.store(p_item + b_chunk, b_fill + row, mask=m_chunk)
        tl.store(p_item + plane + b_chunk, b_fill + end, mask=m_chunk)
        tl.store(p_item + 2 * plane + b_chunk, b_chunk, mask=m_chunk)
        tl.store(p_item + 3 * plane + b_chunk, b_page.to(tl.int32), mask=m_chunk)
        tl.store(p_item + 4 * plane + b_chunk, b_fill + seen, mask=m_chunk)
    own = chunks - upto
    seen = tl.load(p_position + row).to(tl.int32) + 1
    for start in range(0, own, BLOCK):
        b_chunk = start + o_block
        m_chunk = b_chunk < own
        tl.store(p_item + run + b_chunk, b_fill + row, mask=m_chunk)
        tl.store(p_item + plane + run + b_chunk, b_fill + row + 1, mask=m_chunk)
        tl.store(p_item + 2 * plane + run + b_chunk, b_chunk + upto, mask=m_chunk)
        tl.store(p_item + 3 * plane + run + b_chunk, b_fill - 1, mask=m_chunk)
        tl.store(p_item + 4 * plane + run + b_chunk, b_fill + seen, mask=m_chunk)
    if (row == R - 1) | (row % SLAB == SLAB - 1):
        tl.store(p_total + slab, offset + run + own)


_COUNT_TYPES: dict[str, Any] = {
    **{f"p_{name}": "*i64" for name in ("slot", "position", "depth", "path")},
    "p_row": "*i32",
    **dict.fromkeys(("R", "W", "S", "C"), "i32"),
}
_FILL_TYPES: dict[str, Any] = {
    **{f"p_{name}": "*i64" for name in ("slot", "position", "page_table")},
    **{f"p_{name}": "*i32" for name in ("row", "table", "total")},
    **dict.fromkeys(("R", "P", "SLAB", "SLABS", "CAPACITY"), "i32"),
}
COMPILE_CASES = [
    CompileCase(_count, _COUNT_TYPES, {"LANES": 128, "RUN": 64}, num_warps=1),
    CompileCase(_fill, _FILL_TYPES, {"LANES": 64, "PAGE_SIZE": PAGE, "BLOCK": _BLOCK}, num_warps=1),
]
