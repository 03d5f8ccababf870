"""What grammars allow after each row of a round, computed on the host while the device runs the target.

The only wait of a round for the device: its tree has to be known, which it is long before the target is through.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from redraft.kernels.rows import Rows
from redraft.server.engine.grammar import EVERY_TOKEN, Matcher


class TreeMasks:
    """The masks of one round; ``see`` before the target's pass, ``masks`` after it was launched."""

    def __init__(self, matchers: Mapping[int, Matcher], words: int) -> None:
        """``matchers``: by slot, of those requests that have a grammar; ``words``: of a mask, 32 tokens each."""
        self.matchers, self.words = matchers, words

    def see(self, rows: Rows) -> None:
        """Start copying the R rows to the host."""
        self.device = rows.token.device
        tensors = (rows.token, rows.slot, rows.parent)
        self.copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self.ready = None
        if self.device.type == "cuda":
            self.ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.ready.record()

    def masks(self) -> Tensor:
        """[R, words] int32, a bit for every token that may follow a row; all of them for rows without a grammar."""
        if self.ready is not None:
            self.ready.synchronize()
        token, slot, parent = (copy.tolist() for copy in self.copies)
        masks = np.full((len(token), self.words), EVERY_TOKEN, dtype=np.int32)
        of_slot: dict[int, list[int]] = {number: [] for number in self.matchers}
        for row, number in enumerate(slot):
            if number in of_slot:
                of_slot[number].append(row)
        for number, rows in of_slot.items():
            if rows:
                # a slot's rows are contiguous and parents come first
                nodes = [parent[row] - rows[0] for row in rows]
                masks[rows] = self.matchers[number].masks([token[row] for row in rows], nodes)
        return torch.from_numpy(masks).to(self.device, non_blocking=True)
