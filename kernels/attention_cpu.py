"""Tree attention in compiled C (attention_cpu.c): the CPU's path where there is a compiler.

The bits of a row are fixed by the source, in the order of its own path, so nothing here rests on what a library does
with one row or many, nor on how many threads there are (docs/log.md).
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from redraft.kernels.rows import Rows

LANES = 16
BLOCK = 32
"""Positions are padded to a multiple of this in the scores."""
ROWS = 8
"""Rows of a tile, whose keys are shared."""
ALONE = 100_000
"""Multiply-adds below which a second thread does not pay."""

_TABLES = ("slot", "position", "depth", "path", "page_table", "tile", "scratch")
_SIZES = ("rows", "width", "slots", "pages", "lanes", "kv_heads", "group", "dim", "threads", "floats", "dtype", "first")


class _Pass(ctypes.Structure):
    """``Pass`` of attention_cpu.c."""

    _fields_ = [(name, ctypes.c_void_p) for name in _TABLES] + [
        (name, ctypes.c_int64) for name in (*_SIZES, "tiles", "split")
    ]


class FusedAttention:
    """``Attention`` over fp32 KV on a CPU; HD a multiple of ``LANES``."""

    def __init__(
        self, library: ctypes.CDLL, rows: Rows, page_table: Tensor, position_bound: int, first: int = 0
    ) -> None:
        """``position_bound``: host-known bound of any row's position + 1.  ``first``: as ``TwinAttention`` has it."""
        self.library, self.first = library, first
        self.lanes = -(-position_bound // BLOCK) * BLOCK
        tables = (rows.slot, rows.position, rows.depth, rows.path, page_table)
        # kept, so that the memory behind the addresses lives as long as they are used
        self.tables = [table.contiguous() for table in tables]
        self.sizes: tuple[int, int, int] | None = None

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        """As ``Attention`` has it."""
        q = q.contiguous()
        sizes = key.shape[1], q.shape[1] // key.shape[1], q.shape[2]
        address = self.prepared(*sizes, dtype)
        out = torch.empty(q.shape, dtype=dtype)
        self.library.tree_attention(address, q.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr())
        return out

    def prepared(self, kv_heads: int, group: int, dim: int, dtype: torch.dtype) -> int:
        """Address of the C code's ``Pass``, for heads of these sizes and a result of ``dtype``."""
        if self.sizes != (kv_heads, group, dim):
            self._plan(kv_heads, group, dim)
        self.plan.dtype = int(dtype == torch.bfloat16)
        return self.address

    def _plan(self, kv_heads: int, group: int, dim: int) -> None:
        """What is the same in every layer."""
        rows, width = self.tables[3].shape
        slots, pages = self.tables[4].shape
        threads = torch.get_num_threads()
        floats = ROWS * group * (2 * dim + self.lanes + LANES) + BLOCK * dim
        self.room = torch.empty(rows, 4, dtype=torch.int64), torch.empty(threads, floats)
        tables = [table.data_ptr() for table in (*self.tables, *self.room)]
        self.plan = _Pass(
            *tables,
            rows,
            width,
            slots - 1,
            pages,
            self.lanes,
            kv_heads,
            group,
            dim,
            threads,
            floats,
            0,
            self.first,
            0,
            0,
        )
        self.address = ctypes.addressof(self.plan)
        self.library.attention_plan(self.address, ALONE)
        self.sizes = kv_heads, group, dim
