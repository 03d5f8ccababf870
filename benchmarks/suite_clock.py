"""How much of a run's time is left: what no longer fits is left out, and says so."""

from __future__ import annotations

import time
from collections.abc import Callable

BUDGET = 480.0
"""Seconds that all stages together may take: eight minutes, on a GPU that is lent."""
LEFT_OUT = "no time left"


class Clock:
    """Runs from when it is made."""

    def __init__(self, budget: float = BUDGET, now: Callable[[], float] = time.perf_counter) -> None:
        """``budget`` in seconds; ``now`` in seconds from anywhere."""
        self.budget, self._now = budget, now
        self._begun = now()

    @property
    def spent(self) -> float:
        return self._now() - self._begun

    def spend(self, seconds: float) -> None:
        """So many were spent elsewhere."""
        self._begun -= seconds

    def fits(self, seconds: float) -> bool:
        """Whether so many seconds are left."""
        return self.spent + seconds <= self.budget


def always(seconds: float) -> bool:
    """``Clock.fits`` where nobody is in a hurry."""
    return True
