"""How much of a text is a loop: small greedy targets fall into them, and any drafter shines there."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

MAX_PERIOD = 32
"""Longest unit whose repetition counts as a loop."""
PERIODS = 3
"""Repetitions after which whatever goes on repeating counts."""


def looping(units: Sequence[Hashable]) -> int:
    """How many of ``units`` (token ids, or words) continue a stretch of at least ``PERIODS`` equal periods.

    The first ``PERIODS`` periods themselves do not count: repeating a thing twice is no loop yet.
    """
    count = 0
    # by period: for how many units up to this one has each equalled the one a period before
    runs = [0] * (MAX_PERIOD + 1)
    for place, unit in enumerate(units):
        loops = False
        for period in range(1, min(MAX_PERIOD, place) + 1):
            runs[period] = runs[period] + 1 if units[place - period] == unit else 0
            loops = loops or runs[period] > (PERIODS - 1) * period
        count += loops
    return count
