"""What grammars allow after the rows of a round, as a table on the device.

The host writes it while the target's pass runs, and the rest of the round reads it where it lies.  So a round with
grammars can be recorded: what they said when that was done is no part of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redraft.server.engine.grammar import EVERY_TOKEN


class MaskTable:
    """Made when the first grammar needs it, and never moved from then on."""

    def __init__(self, rows: int, vocab: int, device: torch.device) -> None:
        """``rows``: most that a round may have, padding included."""
        self.rows, self.words, self.device = rows, -(-vocab // 32), device
        self.values: Tensor | None = None
        """What ``read`` returns, one behind the other."""

    def reserve(self) -> Tensor:
        """The table's memory, [rows * (words + 1)] int32."""
        if self.values is None:
            self.values = torch.zeros(self.rows * (self.words + 1), dtype=torch.int32, device=self.device)
        return self.values

    def write(self, rows: int, write: Callable[[Tensor, Tensor], None]) -> None:
        """Have ``write`` say what is allowed (``parts.Allow``) and send it on its way; that is not waited for.

        The memory that it writes to is the device's own or, for a GPU, pinned and this call's own (staging.py).  Raises
        ``ValueError`` for more rows than there is room for.
        """
        there = self._of(self.reserve(), rows)
        cuda = self.device.type == "cuda"
        here = torch.empty(there.shape, dtype=torch.int32, pin_memory=True) if cuda else there
        allowed, left_out = self._parts(here, rows)
        allowed.fill_(EVERY_TOKEN)
        left_out.zero_()
        write(allowed, left_out)
        if cuda:
            there.copy_(here, non_blocking=True)

    def read(self, rows: int) -> tuple[Tensor, Tensor]:
        """Views of what was written with the same ``rows``: [rows, words] and [rows] int32, as ``Allow`` has them."""
        return self._parts(self._of(self.reserve(), rows), rows)

    def _of(self, values: Tensor, rows: int) -> Tensor:
        if rows > self.rows:
            raise ValueError(f"{rows} rows in a table of masks for {self.rows}")
        return values[: rows * (self.words + 1)]

    def _parts(self, values: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        return values[: rows * self.words].view(rows, self.words), values[rows * self.words :]
