"""What attention leaves of a row, a query head and a chunk (chunk_attention.py), and how a device adds it up:

    sum 2^(highest_c - m) total_c / sum 2^(highest_c - m) weight_c,   m = max highest_c

one chunk after the other from the first, in fp32, whatever the number of chunks: padding adds exact zeros.  Every
element goes through ``scale_of``, ``add_chunk`` and ``divide``, products and sums apart, whoever calls them: the
program that came last of a row's (``add_tile``), or a launch of its own (sum_chunks.py).  So the bytes are the same.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.kernels.triton_support import jit, tl

TICKETS = 2**12
"""Rows times KV heads that one launch may add up itself."""


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


@functools.cache
def tickets(device: torch.device) -> Tensor:
    """[TICKETS] int32: how many chunks of a row and KV head are done.  All launches on ``device``'s stream share it.

    A launch finds every ticket at 0 and leaves it so.  One that never began has drawn none, and after one that broke
    off the device is lost to the process, so there is nothing to repair.  The memory never moves, so graphs may hold
    its address; it must be asked for before one is captured, whose own memory it would be.
    """
    # whoever comes first, others may come outside of inference mode
    with torch.inference_mode(False):
        return torch.zeros(TICKETS, dtype=torch.int32, device=device)


@jit
def scale_of(b_score, b_highest):  # type: ignore[no-untyped-def]
    """What counts of a chunk with the maximum ``b_score``: nothing where it is -inf."""
    return tl.exp2(b_score - b_highest)


@jit
def add_chunk(b_weight, b_sum, b_more, b_total, b_scale, b_scales):  # type: ignore[no-untyped-def]
    """``b_weight``, ``b_sum`` with a chunk's weights and totals, scaled; ``b_scales`` in the totals' shape."""
    return b_weight + b_more * b_scale, b_sum + b_total * b_scales


@jit
def divide(b_sum, b_weight, b_chunks):  # type: ignore[no-untyped-def]
    """The result; of a row without chunks 0 / 1."""
    return b_sum / tl.where(b_chunks > 0, b_weight, 1.0)


@jit
def _column(b_tile, m_column):  # type: ignore[no-untyped-def]
    """[ROWS] of ``b_tile`` [ROWS, BLOCK_D]; the zeros that are added leave a number as it is."""
    return tl.sum(tl.where(m_column, b_tile, 0.0), 1)


@jit
def add_tile(  # type: ignore[no-untyped-def]
    p_highest, p_weight, p_sum, b_at, b_chunks,
    HD: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """[ROWS, BLOCK_D] results of rows and heads whose chunks, ``BLOCK_D`` at most, begin at ``b_at`` [ROWS] int64.

    ``b_chunks`` [ROWS] is how many each has, 0 where none are asked for, and then 0 comes out.  ``STEP`` chunks are
    under way at a time.  Maxima and weights are read as tiles of the totals' shape, so that threads find those of their
    rows among themselves: one number a row would lie elsewhere and go through shared memory, at a barrier a chunk.

    Loads go past the first cache, which multiprocessors do not share and which may hold what lay here before.
    """
    o_d = tl.arange(0, BLOCK_D)
    o_chunk = b_at[:, None] + o_d[None, :]
    m_chunk = o_d[None, :] < b_chunks[:, None]
    b_score = tl.load(p_highest + o_chunk, mask=m_chunk, other=float("-inf"), cache_modifier=".cg")
    b_more = tl.load(p_weight + o_chunk, mask=m_chunk, other=0.0, cache_modifier=".cg")
    # of no chunks: -inf - -inf would be NaN
    b_highest = tl.where(b_chunks > 0, tl.max(b_score, 1), 0.0)
    b_scale = scale_of(b_score, b_highest[:, None])
    b_weight = tl.zeros([ROWS], tl.float32)
    b_sum = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for start in range(0, tl.max(b_chunks, 0), STEP):
        for step in tl.static_range(STEP):
            chunk = start + step
            p_total = p_sum + (b_at + chunk)[:, None] * HD + o_d[None, :]
            m_total = (chunk < b_chunks)[:, None] & (o_d < HD)[None, :]
            b_total = tl.load(p_total, mask=m_total, other=0.0, cache_modifier=".cg")
            m_column = o_d[None, :] == chunk
            b_one = _column(b_scale, m_column)
            b_weight, b_sum = add_chunk(b_weight, b_sum, _column(b_more, m_column), b_total, b_one, b_one[:, None])
    return divide(b_sum, b_weight[:, None], b_chunks[:, None])
