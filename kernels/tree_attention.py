"""Attention of packed rows over paged KV, each row along its own path through a tree.

The bits of a row's result depend on its own path only, not on the rows beside it, nor on how far the context is padded:
keys stand in the lane of their absolute position, values are summed in chunks of ``CHUNK`` positions in order, and
masked lanes contribute exact zeros (drafters-and-kernels.md 6.3).  Plain decoding, verification and prefill share it.

A tree's rows are written to consecutive cells behind the committed ones (cell = root position + index).  A row on the
spine (index == depth for all its ancestors) therefore finds every key in the cell of its position; only rows of side
branches need their path gathered.

``TwinAttention`` is the reference: fixed shapes, no host reads, any device.  ``CpuAttention`` does the same by request,
without copying the context, and reads the rows' spans from memory, which on a CPU costs nothing; it serves CPUs without
a C compiler, ``attention_cpu.py`` the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.rows import Rows

CHUNK = 128
"""Positions summed together.  Equals the page size, so a chunk never crosses a page."""


MIN_QUERIES = 8
"""Rows of a product at least: below 6 (head size 128), 3 (64) or 2, MKL takes other code with other bits."""


class Attention(Protocol):
    """Attention for one pass; built once, used by every layer."""

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Scaled ``q`` [R, HQ, HD], one layer's ``key``, ``value`` [cells, HKV, HD] -> [R, HQ, HD] of ``dtype``."""


def lane_cells(rows: Rows, page_table: Tensor, lanes: int) -> tuple[Tensor, Tensor]:
    """The cell behind each absolute position, per row: cells [R, lanes] and whether the row sees it [R, lanes].

    Positions that a row does not see keep the cell of the committed order, so that rows differ where they must only.
    """
    lane = torch.arange(lanes, device=rows.position.device)
    base = (rows.position - rows.depth).unsqueeze(1)
    logical = lane.expand(rows.position.shape[0], lanes)
    offset = logical - base
    on_path = rows.path.gather(1, offset.clamp(0, rows.path.shape[1] - 1))
    visible = (lane <= rows.position.unsqueeze(1)) & (rows.slot < page_table.shape[0] - 1).unsqueeze(1)
    logical = torch.where((offset >= 0) & visible, base + on_path, logical)
    page = page_table[rows.slot].gather(1, (logical // CHUNK).clamp_max(page_table.shape[1] - 1))
    return page * CHUNK + logical % CHUNK, visible


class TwinAttention:
    """Plain-torch reference: gathers every row's whole context."""

    def __init__(self, rows: Rows, page_table: Tensor, context_bound: int, first: int = 0) -> None:
        """``context_bound``: host-known bound of any row's position + 1.

        Positions before ``first`` are seen by none but their own rows; what lies in their cells has to be finite.
        """
        self.chunks = -(-context_bound // CHUNK)
        self.cells, self.visible = lane_cells(rows, page_table, self.chunks * CHUNK)
        if first:
            lane = torch.arange(self.chunks * CHUNK, device=rows.position.device)
            self.visible &= lane >= rows.position.clamp_max(first).unsqueeze(1)

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        heads, kv_heads, dim = q.shape[1], key.shape[1], q.shape[2]
        grouped = q.view(-1, kv_heads, heads // kv_heads, dim).float()
        visible = self.visible[:, None, None, :]
        parts = [slice(c * CHUNK, (c + 1) * CHUNK) for c in range(self.chunks)]
        score = torch.cat([torch.einsum("rkgd,rlkd->rkgl", grouped, key[self.cells[:, p]].float()) for p in parts], -1)
        weight = score.masked_fill(~visible, torch.finfo(torch.float32).min).softmax(-1)
        out = torch.zeros_like(grouped)
        for part in parts:
            v = torch.where(self.visible[:, part, None, None], value[self.cells[:, part]].float(), 0.0)
            out = out + torch.einsum("rkgl,rlkd->rkgd", weight[..., part], v)
        return out.reshape(q.shape).to(dtype)


@dataclass(frozen=True, slots=True)
class Branches:
    """Rows of one span that lie off the spine."""

    spine: Tensor
    """[A] rows of the span on the spine."""
    rows: Tensor
    """[B] rows of the span off it."""
    lane_to_cell: Tensor
    """[B, lanes] logical cell behind each position."""
    mask: Tensor
    """[B, lanes] 0 where visible, else -inf."""
    first_chunk: int
    """First chunk in which any path leaves the order of positions."""


@dataclass(frozen=True, slots=True)
class Span:
    """The rows of one request in a pass."""

    first: int
    count: int
    lanes: int
    """Context padded to whole chunks."""
    cells: slice | Tensor
    """Where these lanes' cells lie: a slice when the pages follow one another."""
    mask: Tensor
    """[1, count, 1, lanes] 0 where visible, else -inf; everything visible for rows off the spine."""
    branches: Branches | None


class CpuAttention:
    """By request, context used in place where its pages follow one another."""

    def __init__(self, rows: Rows, page_table: Tensor) -> None:
        counts, firsts = rows.row_count.tolist(), rows.first_row.tolist()
        taking_part = sorted((slot for slot, count in enumerate(counts) if count), key=firsts.__getitem__)
        # padding rows go with the request's before them: cheaper than to leave a gap
        ends = [firsts[slot] for slot in taking_part[1:]] + [rows.token.shape[0]]
        self.spans = [
            _span(rows, page_table[slot], firsts[slot], end - firsts[slot], counts[slot])
            for slot, end in zip(taking_part, ends, strict=True)
        ]
        self.masks: list[Tensor] = []

    def __call__(self, q: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
        kv_heads, dim = key.shape[1:]
        group = q.shape[1] // kv_heads
        if not self.masks:
            self.masks = [_grouped(span.mask, group) for span in self.spans]
        out = torch.empty(q.shape[0], kv_heads, group, dim, dtype=dtype)
        for span, mask in zip(self.spans, self.masks, strict=True):
            out[span.first : span.first + span.count].copy_(self._span(q, key, value, span, mask))
        return out

    def _span(self, q: Tensor, key: Tensor, value: Tensor, span: Span, mask: Tensor) -> Tensor:
        """[count, HKV, G, HD], a view of the kernels' order."""
        kv_heads, dim = key.shape[1:]
        group = q.shape[1] // kv_heads
        k, v = key[span.cells], value[span.cells].transpose(0, 1)
        rows = q[span.first : span.first + span.count].view(span.count, kv_heads, group, dim)
        flat = _at_least(rows.transpose(0, 1).reshape(kv_heads, span.count * group, dim))
        score = torch.baddbmm(mask, flat, k.permute(1, 2, 0))
        if span.branches is None:
            out = weighted_sum(score.softmax(-1), v)[:, : span.count * group]
            return out.view(kv_heads, span.count, group, dim).transpose(0, 1)
        score = score[:, : span.count * group].view(kv_heads, span.count, group, span.lanes)
        out = q.new_empty(kv_heads, span.count, group, dim)
        _with_branches(score, v, span.branches, out)
        return out.transpose(0, 1)


def weighted_sum(weight: Tensor, value: Tensor) -> Tensor:
    """``weight`` [B, M, lanes] times ``value`` [B, lanes, HD], chunk after chunk in order -> [B, M, HD].

    M must be at least ``MIN_QUERIES``.
    """
    out = torch.bmm(weight[..., :CHUNK], value[:, :CHUNK])
    for start in range(CHUNK, weight.shape[-1], CHUNK):
        part = slice(start, start + CHUNK)
        out = torch.baddbmm(out, weight[..., part], value[:, part])
    return out


def _with_branches(score: Tensor, value: Tensor, branches: Branches, out: Tensor) -> None:
    """Fill ``out`` [HKV, count, G, HD] from ``score`` [HKV, count, G, lanes] where some rows lie off the spine."""
    kv_heads, _, group, lanes = score.shape
    dim = out.shape[-1]
    spine = len(branches.spine)
    on = _at_least(score[:, branches.spine].softmax(-1).reshape(kv_heads, -1, lanes))
    out[:, branches.spine] = weighted_sum(on, value)[:, : spine * group].view(kv_heads, spine, group, dim)
    cells = branches.lane_to_cell
    count = cells.shape[0]
    index = cells[None, :, None, :].expand(kv_heads, count, group, lanes)
    off = score[:, branches.rows].gather(-1, index) + branches.mask[None, :, None, :]
    weight = off.softmax(-1)
    shared = branches.first_chunk * CHUNK
    total = score.new_zeros(kv_heads, count * group, dim)
    if shared:
        before = _at_least(weight[..., :shared].reshape(kv_heads, -1, shared))
        total = weighted_sum(before, value[:, :shared])[:, : count * group]
    total = _at_least(total.reshape(kv_heads * count, group, dim))
    for start in range(shared, lanes, CHUNK):
        part = slice(start, start + CHUNK)
        gathered = value[:, cells[:, part]].reshape(kv_heads * count, CHUNK, dim)
        total = torch.baddbmm(total, _at_least(weight[..., part].reshape(kv_heads * count, group, CHUNK)), gathered)
    out[:, branches.rows] = total[:, :group].view(kv_heads, count, group, dim)


def _at_least(x: Tensor) -> Tensor:
    """[B, M, N] with M raised to ``MIN_QUERIES`` by zero rows."""
    missing = MIN_QUERIES - x.shape[1]
    return functional.pad(x, (0, 0, 0, missing)) if missing > 0 else x


def _grouped(mask: Tensor, group: int) -> Tensor:
    """[1, count, 1, lanes] -> [1, count * group, lanes], with rows for padding queries."""
    return _at_least(mask.expand(1, mask.shape[1], group, mask.shape[3]).reshape(1, -1, mask.shape[3]))


def _span(rows: Rows, pages: Tensor, first: int, count: int, real: int) -> Span:
    """``count`` rows from ``first``, of which ``real`` are the request's and the others padding."""
    part = slice(first, first + count)
    position, depth, index = rows.position[part], rows.depth[part], rows.index[part]
    base = int(position[0] - depth[0])
    chunks = -(-(base + real) // CHUNK)
    lanes = chunks * CHUNK
    lane = torch.arange(lanes)
    hidden = torch.zeros(count, lanes).masked_fill_(lane > position.unsqueeze(1), -torch.inf)
    branches = None
    if bool((index != depth).any()):
        branches = _branches(rows.path[part], position, base, lane, hidden)
        hidden[branches.rows] = 0.0
    return Span(first, count, lanes, _cells(pages[:chunks]), hidden[None, :, None, :], branches)


def _branches(path: Tensor, position: Tensor, base: int, lane: Tensor, hidden: Tensor) -> Branches:
    straight = ((path == torch.arange(path.shape[1])) | (path < 0)).all(1)
    off = (~straight).nonzero().squeeze(1)
    offset = (lane - base).clamp(0, path.shape[1] - 1)
    along = path[off][:, offset] + base
    on_path = (lane >= base) & (lane <= position[off].unsqueeze(1))
    to_cell = torch.where(on_path, along, lane)
    return Branches(straight.nonzero().squeeze(1), off, to_cell, hidden[off], base // CHUNK)


def _cells(pages: Tensor) -> slice | Tensor:
    ids = pages.tolist()
    if ids == list(range(ids[0], ids[0] + len(ids))):
        return slice(ids[0] * CHUNK, (ids[0] + len(ids)) * CHUNK)
    return (pages.unsqueeze(1) * CHUNK + torch.arange(CHUNK)).flatten()
