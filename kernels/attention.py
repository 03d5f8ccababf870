"""Which attention serves a device, behind one signature: of rows, page table, bound of positions and head size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from redraft.kernels.attention_cpu import LANES, FusedAttention
from redraft.kernels.fused_cpu import load_fused
from redraft.kernels.paged_attention import PagedAttention
from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import Attention, CpuAttention, TwinAttention
from redraft.kernels.triton_support import use_triton

MakeAttention = Callable[[Rows, Tensor, int, int], Attention]


def cpu_attention(rows: Rows, page_table: Tensor, position_bound: int, head_dim: int) -> Attention:
    """The target's on a CPU: compiled where that is possible, else torch's products over the spans of requests."""
    library = load_fused()
    if library is None or head_dim % LANES:
        return CpuAttention(rows, page_table)
    return FusedAttention(library, rows, page_table, position_bound)


def block_attention(
    rows: Rows, page_table: Tensor, position_bound: int, head_dim: int, requests: int | None = None, first: int = 0
) -> Attention:
    """The target's on a GPU; and a draft's anywhere, whose rows may see rows behind them.

    The rows are of ``requests`` at most, where that is known.  Positions before ``first`` are seen by none but their
    own rows; what lies in their cells has to be finite.  Where nothing is compiled it is the twin.
    """
    if use_triton(rows.token, page_table):
        return PagedAttention(rows, page_table, position_bound, first, requests=requests)
    library = load_fused() if rows.token.device.type == "cpu" else None
    if library is None or head_dim % LANES:
        return TwinAttention(rows, page_table, position_bound, first)
    return FusedAttention(library, rows, page_table, position_bound, first)


def of_requests(make: MakeAttention, requests: int) -> MakeAttention:
    """``make``, told that rows are of ``requests`` at most if it is the one whose work follows from that."""
    return partial(block_attention, requests=requests) if make is block_attention else make
