"""Tree attention over paged KV on a GPU: flash-decoding over chunks at absolute positions, one launch a layer or two.

Plain decoding, verification, prefill and drafts' blocks share it.  A row's bits depend on its own path only: what is
computed of a row and a chunk rests on nothing else (chunk_attention.py), and chunks are added in order
(attention_partial.py).  How work is cut up and dealt out (attention_items.py) and in which launch chunks are added
follows the number of rows, the context and the heads, and moves no bit.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from redraft.kernels.attention_items import TILE, attention_items, lanes_of
from redraft.kernels.attention_partial import make_partial, tickets
from redraft.kernels.chunk_attention import (
    DTYPES,
    can_add_up,
    chunk_attention_kernel,
    chunk_attention_twin,
    resident,
)
from redraft.kernels.rows import Rows
from redraft.kernels.sum_chunks import sum_chunks_kernel, sum_chunks_twin
from redraft.kernels.triton_support import check_tensor

WORKSPACE_BYTES = 128 * 2**20
"""Partial results at most; more rows are done slab after slab."""
FAR = 16
"""Chunks beyond which runs of rows are long: reading keys again then costs more than programs without work."""
LAUNCH_SECONDS = 2.5e-6
"""Of a second launch in a graph, 1 to 3 microseconds, and as much again of its own as adding up takes anywhere: the
wait for how many chunks there are, for their maxima, for their totals."""
TICKET_SECONDS = 1e-6
"""Of a ticket: what an item's program wrote must have arrived in the second cache before it is drawn, and the answer
comes from there, twice 300 to 500 nanoseconds.  A program draws item by item."""
MERGE_BYTES_PER_SECOND = 80e9
"""What one SM reads from the second cache, 60 to 100 GB/s, while the others have nothing to do."""
MULTIPROCESSORS = 128
"""Of the GPUs that this is for 108 to 170; the same for all, so that a pass has as many launches on each."""


def most_items(rows: int, requests: int, run: int, chunks: int, own: int) -> int:
    """Bound of a pass's items.

    Rows of one request share an item of every chunk, up to ``run`` of them, and a run ends at each multiple of ``run``.
    Beside these a row has ``own`` chunks at most in which its keys lie on a path of its own.
    """
    runs = min(rows, requests + (rows - 1) // run)
    return min(runs * chunks + rows * own, rows * chunks)


def one_launch_pays(items: int, rows: int, chunks: int, heads: int, kv_heads: int, dim: int) -> bool:
    """Whether what draws tickets and reads the last rows' chunks alone is done before a second launch would be.

    Of ``items`` at most, each of up to ``rows`` rows and ``chunks``.  Both costs are bounds: there are as many items,
    and an item's rows all wait for the same program.  With 9 heads of 64 on 3 KV heads, 16 rows of one request stay in
    one launch up to 1,152 positions (1.4 us of reading), in items of 8 up to 2,048 (1.3 us); with 32 of 128 on 8 a row
    does up to 4,096 (0.8 us), and 16 rows in items of 8 up to 640 (1.0 us): at 8,192 one SM would read 2 MB for each KV
    head.
    """
    drawn = items * kv_heads / (MULTIPROCESSORS * resident(dim))
    size = rows * (heads // kv_heads) * chunks * (dim + 2) * 4
    return max(drawn, 1.0) * TICKET_SECONDS + size / MERGE_BYTES_PER_SECOND < LAUNCH_SECONDS


class PagedAttention:
    """``Attention`` on CUDA, or in Triton's interpreter; no host reads, shapes from the host's bounds."""

    def __init__(
        self,
        rows: Rows,
        page_table: Tensor,
        position_bound: int,
        first: int = 0,
        *,
        requests: int | None = None,
        programs: int | None = None,
        one_launch: bool | None = None,
    ) -> None:
        """``position_bound``: host-known bound of any row's position + 1.  ``first``: as ``TwinAttention`` has it.

        ``requests``: bound of those the rows are of, a row each unless told.  ``programs`` share the work; as many as
        the GPU holds unless told.  ``one_launch``: whether a layer has one or two; as it pays unless told.
        """
        tables = {name: getattr(rows, name).contiguous() for name in ("slot", "position", "depth", "path")}
        self.rows, self.page_table, self.bound = replace(rows, **tables), page_table.contiguous(), position_bound
        self.first, self.requests, self.programs, self.one_launch = first, requests, programs, one_launch
        tickets(page_table.device)  # by the first pass of all, which no graph captures
        self.sizes: tuple[torch.dtype, int, int, int] | None = None

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        """As ``Attention`` has it; ``key``, ``value`` in bf16, fp16 or fp32.

        Raises ``ValueError`` for tensors the kernels cannot take, and for one launch where that cannot be.
        """
        R, HQ, HD = q.shape
        check_tensor("key", key, 3, *DTYPES, like=self.page_table)
        if self.sizes != (key.dtype, HQ, key.shape[1], HD):
            self._plan(key.dtype, HQ, key.shape[1], HD)
        out = torch.empty(R, HQ, HD, dtype=dtype, device=q.device)
        for number in range(self.items.total.shape[0]):
            chunk_attention_kernel(
                q, key, value, self.rows, self.page_table, self.items, self.partial,
                number=number, first=self.first, programs=self.programs, out=out if self.merges else None,
            )  # fmt: skip
            if not self.merges:
                sum_chunks_kernel(self.partial, self.items, out, number=number)
        return out

    def _plan(self, dtype: torch.dtype, HQ: int, HKV: int, HD: int) -> None:
        """What is the same in every layer: the items, room for partial results, and how many launches."""
        lanes, (R, W) = lanes_of(dtype, HD), self.rows.path.shape
        chunks = -(-self.bound // lanes)
        affordable = max(WORKSPACE_BYTES // (chunks * HQ * (HD + 2) * 4), 1)
        requests = R if self.requests is None else min(self.requests, R)
        # a path's W - 1 nodes behind its root begin anywhere in a chunk; a root alone has none
        own = 1 + -(-(W - 1) // lanes) if W > 1 else 0

        def pays(run: int) -> bool:
            items = most_items(R, requests, run, chunks, own)
            return one_launch_pays(items, min(run, R), chunks, HQ, HKV, HD)

        run = TILE if chunks <= FAR else 4 * TILE
        # half as many rows wait for one program then, and keys are read twice
        if chunks <= FAR and not pays(run) and pays(run // 2):
            run //= 2
        while run > affordable:
            run //= 2
        # no more rows than there are: the list has room for a whole slab
        slab = min(affordable, R + run - 1) // run * run
        self.items = attention_items(self.rows, self.page_table, chunks, lanes=lanes, run=run, slab=slab)
        self.partial = make_partial(min(slab, R), HQ, chunks, HD, self.page_table.device)
        self.can_merge = can_add_up(min(slab, R), run, chunks, HKV, HD)
        self.merges = self.one_launch
        if self.merges is None:
            self.merges = self.can_merge and pays(run)
        self.sizes = dtype, HQ, HKV, HD


class PagedTwin:
    """``PagedAttention`` in plain torch with its arithmetic; fixed shapes, any device."""

    def __init__(self, rows: Rows, page_table: Tensor, position_bound: int, first: int = 0) -> None:
        """As ``PagedAttention``."""
        self.rows, self.page_table, self.bound, self.first = rows, page_table, position_bound, first

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        """As ``Attention`` has it."""
        chunks = -(-self.bound // lanes_of(key.dtype, q.shape[2]))
        partial = chunk_attention_twin(q, key, value, self.rows, self.page_table, chunks, self.first)
        return sum_chunks_twin(partial, dtype)
