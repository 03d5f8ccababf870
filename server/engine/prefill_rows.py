"""Rows of prefill: prompt tokens on their way into the KV, of several requests, alone or beside a round's rows.

Such a row is a root: all that it sees lies in the cells of its own position and before, written by earlier passes or by
this one.  So it needs no path, and chunks may begin and end anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from redraft.kernels.rows import Rows
from redraft.server.engine.state import DeviceState


@dataclass(frozen=True, slots=True)
class Chunk:
    """``count`` tokens of a slot from position ``start``; all known on the host."""

    slot: int
    start: int
    count: int
    scored: int | None = None
    """How many of the likeliest tokens to name, if the log-probabilities of the tokens behind the rows are wanted."""


def prefill_rows(state: DeviceState, chunks: Sequence[Chunk], padded: int) -> Rows:
    """Rows of ``chunks``, of different slots and one behind the other, padded to ``padded``."""
    device, trash = state.device, state.slots
    slots, positions = list[int](), list[int]()
    first_row, row_count = [0] * (trash + 1), [0] * (trash + 1)
    for chunk in chunks:
        first_row[chunk.slot], row_count[chunk.slot] = len(slots), chunk.count
        slots += [chunk.slot] * chunk.count
        positions += range(chunk.start, chunk.start + chunk.count)
    missing = padded - len(slots)
    slot = torch.tensor(slots + [trash] * missing, device=device)
    position = torch.tensor(positions + [0] * missing, device=device)
    nothing = torch.zeros_like(slot)
    return Rows(
        token=torch.where(slot < trash, state.tokens[slot, position], 0),
        slot=slot,
        position=position,
        depth=nothing,
        parent=torch.arange(padded, device=device),
        index=nothing,
        path=nothing.unsqueeze(1),
        first_row=torch.tensor(first_row, device=device),
        row_count=torch.tensor(row_count, device=device),
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
