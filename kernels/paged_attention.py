"""Tree attention over paged KV on a GPU: flash-decoding over chunks at absolute positions, in two launches a layer.

Plain decoding, verification, prefill and drafts' blocks share it.  A row's bits depend on its own path only: what is
computed of a row and a chunk rests on nothing else (chunk_attention.py), and chunks are added in order (sum_chunks.py).
How work is cut up and dealt out (attention_items.py) follows the number of rows and the context, and moves no bit.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from redraft.kernels.attention_items import TILE, attention_items, lanes_of
from redraft.kernels.chunk_attention import chunk_attention_kernel, chunk_attention_twin, make_partial
from redraft.kernels.rows import Rows
from redraft.kernels.sum_chunks import sum_chunks_kernel, sum_chunks_twin

WORKSPACE_BYTES = 128 * 2**20
"""Partial results at most; more rows are done slab after slab."""
FAR = 16
"""Chunks beyond which runs of rows are long: reading keys again then costs more than programs without work."""


class PagedAttention:
    """``Attention`` on CUDA, or in Triton's interpreter; no host reads, shapes from the host's bounds."""

    def __init__(
        self, rows: Rows, page_table: Tensor, position_bound: int, first: int = 0, *, programs: int | None = None
    ) -> None:
        """``position_bound``: host-known bound of any row's position + 1.  ``first``: as ``TwinAttention`` has it.

        ``programs`` share the work; as many as the GPU holds unless told.
        """
        tables = {name: getattr(rows, name).contiguous() for name in ("slot", "position", "depth", "path")}
        self.rows, self.page_table, self.bound = replace(rows, **tables), page_table.contiguous(), position_bound
        self.first, self.programs = first, programs
        self.sizes: tuple[torch.dtype, int, int] | None = None

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        """As ``Attention`` has it; ``key``, ``value`` in bf16, fp16 or fp32.

        Raises ``ValueError`` for tensors the kernels cannot take.
        """
        R, HQ, HD = q.shape
        if self.sizes != (key.dtype, HQ, HD):
            self._plan(key.dtype, HQ, HD)
        out = torch.empty(R, HQ, HD, dtype=dtype, device=q.device)
        for number in range(self.items.total.shape[0]):
            chunk_attention_kernel(
                q, key, value, self.rows, self.page_table, self.items, self.partial,
                number=number, first=self.first, programs=self.programs,
            )  # fmt: skip
            sum_chunks_kernel(self.partial, self.items, out, number=number)
        return out

    def _plan(self, dtype: torch.dtype, HQ: int, HD: int) -> None:
        """What is the same in every layer: the items and room for partial results."""
        lanes, R = lanes_of(dtype, HD), self.rows.position.shape[0]
        chunks = -(-self.bound // lanes)
        affordable = max(WORKSPACE_BYTES // (chunks * HQ * (HD + 2) * 4), 1)
        run = TILE if chunks <= FAR else 4 * TILE
        while run > affordable:
            run //= 2
        # no more rows than there are: the list has room for a whole slab
        slab = min(affordable, R + run - 1) // run * run
        self.items = attention_items(self.rows, self.page_table, chunks, lanes=lanes, run=run, slab=slab)
        self.partial = make_partial(min(slab, R), HQ, chunks, HD, self.page_table.device)
        self.sizes = dtype, HQ, HD


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
