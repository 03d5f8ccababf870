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

Sums.  A row's chunks can be added up in the same launch, by whoever did the last of them: a program that has done its
items draws a ticket for each of their rows, and of those whose tickets say that all chunks are done it is the one to
read them back.  The order is that of the chunks, whoever came when (attention_partial.py).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from redraft.kernels.attention_items import PAGE, TILE, Items, block_of, lanes_of
from redraft.kernels.attention_partial import TICKETS, Partial, tickets
from redraft.kernels.chunk_device import chunks_of_items
from redraft.kernels.dependent_launch import launch_options
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import lane_cells
from redraft.kernels.triton_support import CompileCase, check_tensor

LOG2E = math.log2(math.e)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_EXPONENT = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}
"""Bits that are all set in what is not finite."""
MERGE_STEP = 4
"""Chunks of a tile's rows that are read at a time as they are added up: as many as registers hold."""


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
    out: Tensor | None = None,
) -> None:
    """Fill ``into`` with the results of slab ``number`` of ``items``, and add them up if there is ``out``.

    Args:
        q: [R, HQ, HD], scaled; rows may have gaps between them.
        key, value: [cells, HKV, HD] in one of ``DTYPES``.
        rows: as the items were made of; contiguous.
        page_table: [S+1, P] int64 page ids.
        items: chunks of ``lanes_of`` positions.
        into: its rows are those of the slab, its chunks as many as ``items`` has.
        first: positions before it are seen by none but their own rows; what lies in their cells has to be finite.
        programs: how many share the work; as many as the GPU holds unless told.
        out: [R, HQ, HD], contiguous; the slab's rows are written as ``sum_chunks_kernel`` writes them, byte for byte.

    Raises ``ValueError`` for tensors the kernel cannot take, and for more than it can add up.
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
    if out is not None:
        check_tensor("out", out, 3, *DTYPES, like=page_table)
        if out.shape != q.shape:
            raise ValueError(f"out must be {list(q.shape)}, but is {list(out.shape)}")
        if not can_add_up(len(into.highest), items.run, items.chunks, HKV, HD):
            raise ValueError(
                f"one launch cannot add up {items.chunks} chunks of {len(into.highest)} rows and {HKV} KV heads, "
                f"items having {items.run} rows"
            )
    start = number * items.slab
    chunks_of_items[(programs or _programs(q.device, HD),)](
        q, key, value, items.table[:, number], items.total[number:], items.row, rows.position, rows.depth, rows.slot,
        rows.path, page_table, into.highest, into.weight, into.total,
        out, None if out is None else tickets(q.device),
        start, q.stride(0), items.table.stride(0), items.table.shape[2], R, items.chunks, rows.path.shape[1],
        page_table.shape[1], first, min(items.slab, R - start), **_constants(key.dtype, HKV, HQ // HKV, HD),
        **launch_options(q.device),
        MERGE=out is not None, STEP=MERGE_STEP, **_options(key.dtype, HD),
    )  # fmt: skip


def can_add_up(rows: int, run: int, chunks: int, HKV: int, HD: int) -> bool:
    """Whether one launch may add up slabs of ``rows``, items of ``run`` rows at most, and ``chunks``.

    There is a ticket for every row and KV head, a bit for every row of an item, and a column of a tile for every chunk.
    """
    return rows * HKV <= TICKETS and run <= 64 and chunks <= block_of(HD)


def _constants(dtype: torch.dtype, HKV: int, G: int, HD: int) -> dict[str, int]:
    sizes = {"HKV": HKV, "G": G, "HD": HD, "BLOCK_D": block_of(HD), "LANES": lanes_of(dtype, HD), "PAGE_SIZE": PAGE}
    return sizes | {"TILE": TILE, "EXPONENT": _EXPONENT[dtype], "THREADS": 32 * _warps(HD)}


def _options(dtype: torch.dtype, HD: int) -> dict[str, Any]:
    """So few registers that 512 threads run on an SM at once; products of fp32 would spill."""
    registers = None if dtype == torch.float32 else 128
    return {"num_warps": _warps(HD), "num_stages": 1, "maxnreg": registers, "enable_fp_fusion": False}


def _warps(HD: int) -> int:
    """With 4, a program with heads of 128 spills."""
    return 8 if block_of(HD) > 64 else 4


def resident(HD: int) -> int:
    """Programs that run on an SM at once, of 512 threads together."""
    return 16 // _warps(HD)


@cache
def _programs(device: torch.device, HD: int) -> int:
    """As many as run at once."""
    if device.type != "cuda":
        return resident(HD)
    return resident(HD) * int(torch.cuda.get_device_properties(device).multi_processor_count)


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


def _case(dtype: torch.dtype, G: int, HD: int, HKV: int, *, merge: bool, dependent: bool = False) -> CompileCase:
    name = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]
    tables = ("position", "depth", "slot", "path", "page_table")
    types = {
        **dict.fromkeys(("p_q", "p_highest", "p_weight", "p_sum"), "*fp32"),
        **dict.fromkeys(("p_key", "p_value", "p_out"), f"*{name}"),
        **dict.fromkeys(("p_item", "p_total", "p_row", "p_ticket"), "*i32"),
        **{f"p_{table}": "*i64" for table in tables},
        **dict.fromkeys(("first_row", "q_stride", "item_stride", "CAPACITY"), "i32"),
        **dict.fromkeys(("R", "C", "W", "P", "FIRST", "SLAB"), "i32"),
    }
    absent = {} if merge else {"p_out": None, "p_ticket": None}
    constants = {**_constants(dtype, HKV, G, HD), **absent, "MERGE": merge, "STEP": MERGE_STEP, "DEPENDENT": dependent}
    return CompileCase(
        chunks_of_items, types, constants, divisible=("q_stride",), least_capability=90 * dependent,
        **_options(dtype, HD),
    )  # fmt: skip


_BF16 = torch.bfloat16
SIZES = ((_BF16, 3, 64, 3), (_BF16, 4, 128, 8), (_BF16, 2, 128, 8), (torch.float32, 4, 128, 8))
"""Of SmolLM2-135M, Qwen3-8B and Qwen3-1.7B; and what fp32 is multiplied by."""
COMPILE_CASES = [
    *(_case(*sizes, merge=merge) for merge in (False, True) for sizes in SIZES),
    _case(*SIZES[1], merge=True, dependent=True),
]
"""The sizes in two launches, then in one; then launched early."""
