"""Which prompt tokens the next pass prefills, as a table on the device.

The host writes it before it launches a pass, which reads it where it lies.  So a pass that was recorded can be replayed
with other chunks: other slots, other starts, other counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.server.engine.staging import staged


@dataclass(frozen=True, slots=True)
class Chunk:
    """``count`` tokens of a slot from position ``start``; all known on the host."""

    slot: int
    start: int
    count: int
    scored: int | None = None
    """How many of the likeliest tokens to name, if the log-probabilities of the tokens behind the rows are wanted."""


class PrefillTable:
    """Of S slots and the trash slot, which padding rows belong to."""

    def __init__(self, slots: int, rows: int, device: torch.device) -> None:
        """``rows``: most that a pass may have, padding included."""
        self.slots, self.rows, self.device = slots, rows, device
        self.values = torch.zeros(2 * (slots + 1 + rows), dtype=torch.int64, device=device)
        """What ``read`` returns, one behind the other."""

    def write(self, chunks: Sequence[Chunk], padded: int) -> None:
        """Rows of ``chunks``, of different slots and one behind the other, padded to ``padded``; nothing is waited for.

        Raises ``ValueError`` if there are more than ``padded``, or room for fewer than that.
        """
        trash = self.slots
        slots, positions = list[int](), list[int]()
        first_row, row_count = [0] * (trash + 1), [0] * (trash + 1)
        for chunk in chunks:
            first_row[chunk.slot], row_count[chunk.slot] = len(slots), chunk.count
            slots += [chunk.slot] * chunk.count
            positions += range(chunk.start, chunk.start + chunk.count)
        if not len(slots) <= padded <= self.rows:
            raise ValueError(f"{len(slots)} rows of prefill, padded to {padded}, in a table of {self.rows}")
        missing = padded - len(slots)
        values = first_row + row_count + slots + [trash] * missing + positions + [0] * missing
        self.values[: len(values)].copy_(staged(values, torch.int64, self.device), non_blocking=True)

    def read(self, padded: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of what was written with the same ``padded``, to be read before anything is written again.

        Of every row the slot and the position [padded]; of every slot its first row and its number of rows [S+1].
        """
        of_slots, of_rows = self.values[: 2 * (self.slots + 1)], self.values[2 * (self.slots + 1) :][: 2 * padded]
        first_row, row_count = of_slots.view(2, -1)
        slot, position = of_rows.view(2, -1)
        return slot, position, first_row, row_count
