"""Rows of prefill: prompt tokens on their way into the KV, of several requests, alone or beside a round's rows.

Such a row is a root: all that it sees lies in the cells of its own position and before, written by earlier passes or by
this one.  So it needs no path, and chunks may begin and end anywhere.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.rows import Rows
from redraft.server.engine.state import DeviceState


def prefill_rows(state: DeviceState, padded: int) -> Rows:
    """The ``padded`` rows that ``state.prefill`` was written with last; good until it is written again."""
    slot, position, first_row, row_count = state.prefill.read(padded)
    nothing = torch.zeros_like(slot)
    return Rows(
        token=state.tokens[slot, position] * (slot < state.slots),
        slot=slot,
        position=position,
        depth=nothing,
        parent=torch.arange(padded, device=state.device),
        index=nothing,
        path=nothing.unsqueeze(1),
        first_row=first_row,
        row_count=row_count,
    )


def join(first: Rows, second: Rows) -> Rows:
    """One pass of both, of different slots; ``second`` has no trees."""
    count, width = first.token.shape[0], first.path.shape[1]

    def both(name: str) -> Tensor:
        return torch.cat((getattr(first, name), getattr(second, name)))

    wide = replace(
        second,
        path=functional.pad(second.path, (0, width - 1), value=-1),
        parent=second.parent + count,
        first_row=second.first_row + count * (second.row_count > 0),
    )
    names = ("token", "slot", "position", "depth", "index")
    return Rows(
        **{name: both(name) for name in names},
        parent=torch.cat((first.parent, wide.parent)),
        path=torch.cat((first.path, wide.path)),
        first_row=torch.where(second.row_count > 0, wide.first_row, first.first_row),
        row_count=first.row_count + second.row_count,
    )
