"""The rows of one round: the nodes of all slots' trees, packed without gaps, and where each row's KV lies.

``pack_tree`` makes ``Rows``; the target's pass, sampling, ``accept`` and ``compact_kv`` read it.
Sizes: ``R`` rows of the round, ``S`` slots (slot ``S`` is the trash slot of padding rows), ``W`` nodes per slot at
most, the root included.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """Tensors of int64 that say what every row of a round is.

    A slot's rows are contiguous, slots ascend, and within a slot parents come before their children.  Padding rows
    follow the last slot's.
    """

    token: Tensor
    """[R] token the row feeds to the target; 0 for padding."""
    slot: Tensor
    """[R] slot the row belongs to; S for padding."""
    position: Tensor
    """[R] absolute position of the token in its sequence; 0 for padding.  Siblings share a position."""
    depth: Tensor
    """[R] distance from the root; 0 for roots and for padding."""
    parent: Tensor
    """[R] row of the parent; a root's and a padding row's parent is the row itself."""
    index: Tensor
    """[R] number of the node within its slot: 0 for the root, then 1, 2, ...; 0 for padding.

    The row's KV is written to the slot's logical cell (position of the root) + index.
    """
    path: Tensor
    """[R, W] ``index`` of the row's ancestor at depth j for j < depth, its own at j = depth, -1 beyond."""
    first_row: Tensor
    """[S+1] row of the slot's root; for a slot without rows, where its rows would begin."""
    row_count: Tensor
    """[S+1] rows of the slot, the root included; 0 for the trash slot."""


def cells(page_table: Tensor, slot: Tensor, logical: Tensor, page_size: int) -> Tensor:
    """Physical cell of logical cell ``logical`` [N] (a number of tokens from the sequence's start) of ``slot`` [N].

    ``page_table`` is [S+1, P] page ids; page p holds the cells p * page_size and up.  The trash slot maps to cell 0,
    the first cell of the trash page.  Returns [N] int64.
    """
    page_number = logical // page_size
    page = page_table[slot, page_number]
    return (page * page_size + logical - page_number * page_size) * (slot < page_table.shape[0] - 1)
