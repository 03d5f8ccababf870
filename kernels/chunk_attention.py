"""Attention of packed rows over one chunk of positions at a time: what flash-decoding adds up afterwards.

For a row, a query head and a chunk, with s = log2(e) q·k over the chunk's visible positions:

    highest = max s,   p = 2^(s - highest),   weight = sum p,   total = sum p v

q, scaled already, and p are rounded to the cache's dtype for the products; sums are fp32.

Bits.  A row's result of a chunk comes from products of one shape, ``[TILE, HD] x [HD, lanes]`` and
``[TILE, lanes] x [lanes, HD]``, whoever the tile's other rows are and whether the keys are shared or of the row's own
path; at TILE = 16 that is ``mma.sync`` on every architecture, never ``wgmma`` or ``tcgen05`` (the tests look).  Each
key stands in the lane of its absolute position.  Lanes that a row does not see weigh exactly 0; what lies in cells that
no row of the item sees is not loaded.  Values that are not finite count as 0, for 0 times NaN is NaN, and one row's
broken token must not reach a row before it.

Work.  The items of attention_items.py, times KV heads, are dealt to as many programs as fit the GPU at once, so nothing
is launched for positions that nobody has.  With 8 KV heads, a tree of 16 rows at 8k is 8 x 63 items of shared chunks
and up to 8 x 32 of the rows' own; 64 requests of one row at 1k are 8 x 64 x 8 = 4,096; one row at 1k is 64.  An H100
runs 264 programs at once, with 64 KiB of keys and values each.  A program reads an item's keys and values once and
keeps them in shared memory for all its tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from redraft.kernels.attention_items import PAGE, TILE, Items, block_of, lanes_of
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import lane_cells
from redraft.kernels.triton_support import CompileCase, check_tensor, jit, tl

LOG2E = math.log2(math.e)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_EXPONENT = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}
"""Bits that are all set in what is not finite."""


@dataclass(frozen=True, slots=True)
class Partial:
    """Of rows, query heads and chunks; fp32.  Chunks that a row does not have are undefined."""

    highest: Tensor
    """[rows, HQ, C]"""
    weight: Tensor
    """[rows, HQ, C]"""
    total: Tensor
    """[rows, HQ, C, HD]"""


def make_partial(rows: int, HQ: int, chunks: int, HD: int, device: torch.device) -> Partial:
    """Room for results."""
    highest, weight = torch.empty(2, rows, HQ, chunks, device=device)
    return Partial(highest, weight, torch.empty(rows, HQ, chunks, HD, device=device))


def chunk_attention_kernel(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Rows,
    page_table: Tensor,
    items: Items,
    into: Partial,
    *,
    number: int = 0,
    first: int = 0,
    programs: int | None = None,
) -> None:
    """Fill ``into`` with the results of slab ``number`` of ``items``.

    Args:
        q: [R, HQ, HD], scaled; rows may have gaps between them.
        key, value: [cells, HKV, HD] in one of ``DTYPES``.
        rows: as the items were made of; contiguous.
        page_table: [S+1, P] int64 page ids.
        items: chunks of ``lanes_of`` positions.
        into: its rows are those of the slab, its chunks as many as ``items`` has.
        first: positions before it are seen by none but their own rows; what lies in their cells has to be finite.
        programs: how many share the work; as many as the GPU holds unless told.

    Raises ``ValueError`` for tensors the kernel cannot take.
    """
    check_tensor("key", key, 3, *DTYPES, like=page_table)
    check_tensor("value", value, 3, key.dtype, like=page_table)
    R, HQ, HD = q.shape
    HKV = key.shape[1]
    if key.shape != value.shape or key.shape[2] != HD or HQ % HKV or rows.position.shape[0] != R:
        raise ValueError(
            f"q {list(q.shape)}, key {list(key.shape)} and value {list(value.shape)} do not fit each other "
            f"and {rows.position.shape[0]} rows"
        )
    if q.stride(2) != 1 or q.stride(1) != HD or q.device != key.device:
        raise ValueError(f"heads of q must lie one behind the other on {key.device}, not {q.stride()} on {q.device}")
    block = block_of(HD)
    _chunks[(programs or _programs(q.device, block),)](
        q, key, value, items.table[:, number], items.total[number:], items.row, rows.position, rows.depth, rows.slot,
        rows.path, page_table, into.highest, into.weight, into.total,
        number * items.slab, q.stride(0), items.table.stride(0), items.table.shape[2], R, items.chunks,
        rows.path.shape[1], page_table.shape[1], first, HKV=HKV, G=HQ // HKV, HD=HD, BLOCK_D=block,
        LANES=lanes_of(key.dtype, HD), PAGE_SIZE=PAGE, TILE=TILE, EXPONENT=_EXPONENT[key.dtype],
        num_warps=_warps(block), maxnreg=_registers(key.dtype), num_stages=1, enable_fp_fusion=False,
    )  # fmt: skip


def _warps(block: int) -> int:
    """With 4, a program with heads of 128 spills."""
    return 8 if block > 64 else 4


def _registers(dtype: torch.dtype) -> int | None:
    """So few that 512 threads run on an SM at once; products of fp32 would spill."""
    return None if dtype == torch.float32 else 128


@cache
def _programs(device: torch.device, block: int) -> int:
    """As many as run at once, 512 threads an SM."""
    resident = 2 if block > 64 else 4
    if device.type != "cuda":
        return resident
    return resident * int(torch.cuda.get_device_properties(device).multi_processor_count)


def chunk_attention_twin(
    q: Tensor, key: Tensor, value: Tensor, rows: Rows, page_table: Tensor, chunks: int, first: int = 0
) -> Partial:
    """``chunk_attention_kernel`` for all rows in plain torch: fixed shapes, any device.

    Chunks that a row does not have are -inf, 0 and 0.
    """
    R, HQ, HD = q.shape
    lanes = lanes_of(key.dtype, HD)
    cells, visible = lane_cells(rows, page_table, chunks * lanes)
    at = torch.arange(chunks * lanes, device=q.device)
    visible = visible & (at >= rows.position.clamp_max(first).unsqueeze(1))
    grouped = q.to(key.dtype).float().reshape(R, key.shape[1], -1, HD)
    found = []
    for start in range(0, chunks * lanes, lanes):
        part = slice(start, start + lanes)
        seen = visible[:, None, None, part]
        score = torch.einsum("rkgd,rlkd->rkgl", grouped, key[cells[:, part]].float()) * LOG2E
        score = torch.where(seen, score, -torch.inf)
        highest = score.amax(-1, keepdim=True)
        p = torch.exp2(score - torch.where(highest == -torch.inf, 0.0, highest))
        v = value[cells[:, part]].float()
        v = torch.where(visible[:, part, None, None] & v.isfinite(), v, 0.0)
        total = torch.einsum("rkgl,rlkd->rkgd", p.to(key.dtype).float(), v)
        found.append((highest.reshape(R, HQ), p.sum(-1).reshape(R, HQ), total.reshape(R, HQ, HD)))
    return Partial(*(torch.stack(parts, 2) for parts in zip(*found, strict=True)))


@jit
def _entry(p_item, item, item_stride, CAPACITY):  # type: ignore[no-untyped-def]
    """Fields of an item; of none where there is no room for one."""
    p_field = p_item + item
    room = item < CAPACITY
    row = tl.load(p_field, mask=room, other=0)
    end = tl.load(p_field + item_stride, mask=room, other=0)
    chunk = tl.load(p_field + 2 * item_stride, mask=room, other=0)
    page = tl.load(p_field + 3 * item_stride, mask=room, other=0)
    seen = tl.load(p_field + 4 * item_stride, mask=room, other=0)
    return row, end, chunk, page, seen


@jit
def _queries(  # type: ignore[no-untyped-def]
    p_q, p_upto, p_position, row, start, width, kv_head, q_stride,
    G: tl.constexpr, HD: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A tile of an item's rows and heads: queries, positions, and how many chunks have their cells in order."""
    o_flat = start + tl.arange(0, TILE)
    o_d = tl.arange(0, BLOCK_D)
    b_row = row + o_flat // G
    m_row = o_flat < width
    b_head = kv_head * G + o_flat % G
    p_from = p_q + b_row.to(tl.int64)[:, None] * q_stride + b_head[:, None] * HD + o_d[None, :]
    b_q = tl.load(p_from, mask=m_row[:, None] & (o_d < HD)[None, :], other=0.0)
    b_position = tl.load(p_position + b_row, mask=m_row, other=-1)
    b_upto = tl.load(p_upto + b_row, mask=m_row, other=-1)
    return b_q, b_position, b_upto


@jit(
    do_not_specialize=["first_row", "item_stride", "CAPACITY", "R", "C", "W", "P", "FIRST"],
    do_not_specialize_on_alignment=["p_item", "p_total", "p_highest", "p_weight"],
)  # type: ignore[untyped-decorator]
def _chunks(  # type: ignore[no-untyped-def]
    p_q, p_key, p_value, p_item, p_total, p_row, p_position, p_depth, p_slot, p_path, p_page_table,
    p_highest, p_weight, p_sum, first_row, q_stride, item_stride, CAPACITY, R, C, W, P, FIRST,
    HKV: tl.constexpr, G: tl.constexpr, HD: tl.constexpr, BLOCK_D: tl.constexpr,
    LANES: tl.constexpr, PAGE_SIZE: tl.constexpr, TILE: tl.constexpr, EXPONENT: tl.constexpr,
):  # fmt: skip
    """Every program takes every so manieth pair of item and KV head.

    What the next pair and the next tile need is under way before this one is computed: at a few items a program, the
    time goes into waiting for memory.
    """
    BITS: tl.constexpr = tl.int32 if EXPONENT > 0xFFFF else tl.int16
    PRECISION: tl.constexpr = "tf32x3" if EXPONENT > 0xFFFF else "tf32"
    o_lane = tl.arange(0, LANES)
    o_d = tl.arange(0, BLOCK_D)
    o_tile = tl.arange(0, TILE)
    m_d = (o_d < HD)[None, :]
    p_upto = p_row + R
    work = tl.program_id(0)
    work_end = tl.load(p_total) * HKV
    row, end, chunk, page, seen = _entry(p_item, work // HKV, item_stride, CAPACITY)
    while work < work_end:
        kv_head = work % HKV
        work += tl.num_programs(0)
        next_row, next_end, next_chunk, next_page, next_seen = _entry(p_item, work // HKV, item_stride, CAPACITY)
        width = (end - row) * G
        b_q, b_position, b_upto = _queries(
            p_q, p_upto, p_position, row, 0, width, kv_head, q_stride, G, HD, BLOCK_D, TILE
        )
        b_at = (chunk * LANES + o_lane).to(tl.int64)
        m_seen = b_at < seen
        if page >= 0:
            b_cell = page.to(tl.int64) * PAGE_SIZE + b_at % PAGE_SIZE
        else:
            base = tl.load(p_position + row) - tl.load(p_depth + row)
            b_depth = b_at - base
            m_path = m_seen & (b_depth >= 0)
            b_index = tl.load(p_path + row.to(tl.int64) * W + b_depth, mask=m_path, other=0)
            b_logical = tl.where(m_path, base + b_index, b_at)
            p_page = p_page_table + tl.load(p_slot + row) * P + b_logical // PAGE_SIZE
            b_cell = tl.load(p_page, mask=m_seen, other=0) * PAGE_SIZE + b_logical % PAGE_SIZE
        b_offset = (b_cell * (HKV * HD) + kv_head * HD)[:, None] + o_d[None, :]
        m_load = m_seen[:, None] & m_d
        b_key = tl.trans(tl.load(p_key + b_offset, mask=m_load, other=0.0))
        b_value = tl.load(p_value + b_offset, mask=m_load, other=0.0)
        b_value = tl.where((b_value.to(BITS, bitcast=True) & EXPONENT) == EXPONENT, 0.0, b_value)
        for start in range(0, width, TILE):
            next_q, next_position, next_upto = _queries(
                p_q, p_upto, p_position, row, start + TILE, width, kv_head, q_stride, G, HD, BLOCK_D, TILE
            )
            b_score = tl.dot(b_q.to(b_key.dtype), b_key, input_precision=PRECISION) * 1.4426950408889634
            b_least = tl.minimum(b_position, FIRST)
            m_visible = (b_at[None, :] <= b_position[:, None]) & (b_at[None, :] >= b_least[:, None])
            b_score = tl.where(m_visible, b_score, float("-inf"))
            b_highest = tl.max(b_score, 1)
            # where nothing is visible: -inf - -inf would be NaN
            b_reference = tl.where(b_highest == float("-inf"), 0.0, b_highest)
            b_p = tl.exp2(b_score - b_reference[:, None])
            b_sum = tl.dot(b_p.to(b_value.dtype), b_value, input_precision=PRECISION)
            o_flat = start + o_tile
            m_row = (o_flat < width) & ((b_upto > chunk) | (page < 0))
            b_to = ((row - first_row + o_flat // G).to(tl.int64) * (HKV * G) + kv_head * G + o_flat % G) * C + chunk
            tl.store(p_highest + b_to, b_highest, mask=m_row)
            tl.store(p_weight + b_to, tl.sum(b_p, 1), mask=m_row)
            tl.store(p_sum + b_to[:, None] * HD + o_d[None, :], b_sum, mask=m_row[:, None] & m_d)
            b_q, b_position, b_upto = next_q, next_position, next_upto
        row, end, chunk, page, seen = next_row, next_end, next_chunk, next_page, next_seen


def _case(dtype: torch.dtype, G: int, HD: int, HKV: int = 8) -> CompileCase:
    name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    tables = ("position", "depth", "slot", "path", "page_table")
    types = {
        **dict.fromkeys(("p_q", "p_highest", "p_weight", "p_sum"), "*fp32"),
        **dict.fromkeys(("p_key", "p_value"), f"*{name}"),
        **dict.fromkeys(("p_item", "p_total", "p_row"), "*i32"),
        **{f"p_{table}": "*i64" for table in tables},
        **dict.fromkeys(("first_row", "q_stride", "item_stride", "CAPACITY", "R", "C", "W", "P", "FIRST"), "i32"),
    }
    sizes = {"HKV": HKV, "G": G, "HD": HD, "BLOCK_D": block_of(HD), "LANES": lanes_of(dtype, HD)}
    constants = {**sizes, "PAGE_SIZE": PAGE, "TILE": TILE, "EXPONENT": _EXPONENT[dtype]}
    warps, registers = _warps(block_of(HD)), _registers(dtype)
    return CompileCase(_chunks, types, constants, warps, num_stages=1, enable_fp_fusion=False, maxnreg=registers)


COMPILE_CASES = [
    _case(torch.bfloat16, G=3, HD=64, HKV=3),
    _case(torch.bfloat16, G=4, HD=128),
    _case(torch.float32, G=4, HD=128),
]
