"""How many steps an arm has: what its operations buy, and no more than the time allows.

The schedule's decay belongs to every arm, so its end is moved before it begins instead of cutting it off.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from redraft.drafts.training.run import Run

PROBE = 4
"""Steps after which it is known what a step costs."""
RESERVE = 8.0
"""Seconds kept for what follows the last step: calibration, writing."""


@dataclass
class Pace:
    """Of one run; call it after every step."""

    run: Run
    budget: float
    """Operations."""
    until: float = float("inf")
    """``time.monotonic()`` by which the arm should be finished."""
    seen: tuple[float, int] | None = field(default=None, init=False)
    """When and at which step the speed was last looked at."""
    each: float = field(default=0.0, init=False)
    """Seconds a step, measuring included."""

    def __call__(self) -> None:
        """Move the run's end."""
        run, now, step = self.run, time.monotonic(), self.run.progress.step
        if step < PROBE or step >= run.settings.steps:
            return
        if self.seen is None:
            self.seen = now, step
        elif now - self.seen[0] > 5:
            self.each, self.seen = (now - self.seen[0]) / (step - self.seen[1]), (now, step)
        schedule = run.settings.schedule
        bought = round(self.budget / run.progress.flops.total * step)
        allowed = step + int((self.until - RESERVE - now) / self.each) if self.each and self.until < 1e18 else bought
        decaying = schedule.decay and step >= schedule.steps - schedule.decay
        if decaying and allowed >= 0.95 * schedule.steps:
            return
        run.settings = replace(run.settings, steps=max(min(bought, allowed), step + 1))
