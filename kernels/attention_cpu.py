"""Tree attention in compiled C (attention_cpu.c): the CPU's path where there is a compiler.

The bits of a row are fixed by the source, in the order of its own path, so nothing here rests on what a library does
with one row or many; at 2 to 6 rows it takes a fifth to two fifths of the time of torch's products (docs/log.md).
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from redraft.kernels.rows import Rows
from redraft.kernels.tree_attention import lane_cells

LANES = 16
TILE = 8
"""Rows that share transposed keys; threads take whole tiles."""
SPLIT = 64
"""Rows from which a second thread pays."""


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="attention")


class FusedAttention:
    """``Attention`` over fp32 KV on a CPU; HD a multiple of ``LANES``."""

    def __init__(self, library: ctypes.CDLL, rows: Rows, page_table: Tensor, position_bound: int) -> None:
        """``position_bound``: host-known bound of any row's position + 1."""
        self.library = library
        self.lanes = -(-position_bound // LANES) * LANES
        self.cells, visible = lane_cells(rows, page_table, self.lanes)
        self.visible = visible.sum(1)

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        """As ``Attention`` has it; the caller's thread works along with the pool's."""
        q = q.contiguous()
        rows, heads, dim = q.shape
        kv_heads = key.shape[1]
        out = torch.empty(q.shape, dtype=dtype)
        threads = torch.get_num_threads() if rows >= SPLIT else 1
        share = -(-rows // (threads * TILE)) * TILE
        floats = LANES * dim + TILE * (heads // kv_heads) * self.lanes + (heads // kv_heads) * dim
        scratch = torch.empty(threads, floats)

        def run(part: int) -> None:
            self.library.tree_attention(
                q.data_ptr(),
                key.data_ptr(),
                value.data_ptr(),
                self.cells.data_ptr(),
                self.visible.data_ptr(),
                out.data_ptr(),
                scratch[part].data_ptr(),
                min(part * share, rows),
                min((part + 1) * share, rows),
                self.lanes,
                kv_heads,
                heads // kv_heads,
                dim,
                int(dtype == torch.bfloat16),
            )

        waiting = [_pool().submit(run, part) for part in range(1, threads)]
        run(0)
        for future in waiting:
            future.result()
        return out
