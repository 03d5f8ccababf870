"""The processes of one run: each takes its share of a step's texts, and what they make is summed.

All of them draw the same texts and hold the same weights, so a step is the one that a single process would make, up to
the order of its sums.  Every process has to come by the same sums in the same order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from redraft.drafts.dflash_config import DraftError

T = TypeVar("T")


class Together(ABC):
    """This process among those of its run."""

    rank: int
    """0 is the main one: it logs, measures and saves."""
    size: int

    @abstractmethod
    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of ``tensors`` by its sum over all processes, the same bits in all of them."""

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What of ``items`` is this process's: every ``size``-th, so that in sorted ones all shares are alike."""
        return items[self.rank :: self.size]

    def total(self, *numbers: float) -> list[float]:
        """The sum of each of ``numbers`` over all processes."""
        summed = torch.tensor(numbers, dtype=torch.float64)
        self.sum_([summed])
        found: list[float] = summed.tolist()
        return found

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process; all wait for one another here."""
        return self.total(float(flag))[0] > 0

    def on_main(self, work: Callable[[], None]) -> None:
        """Do ``work`` in the main process while the others wait; an error there ends all of them."""
        failure: Exception | None = None
        if self.rank == 0:
            try:
                work()
            except Exception as error:  # whatever it is, the others would wait for ever
                failure = error
        if self.any(failure is not None):
            raise failure or DraftError("the main process of this run has failed")


class Alone(Together):
    """The only process."""

    rank, size = 0, 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """They are the sums."""


ALONE = Alone()
