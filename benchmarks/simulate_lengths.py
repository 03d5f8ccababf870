"""How long simulated prompts and outputs are.  Torch-free."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from redraft.server.engine.types import RedraftError

MOST = 1_000_000
"""Longest length in tokens; a draw beyond it is cut."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """All the same, or lognormal around a median."""

    median: int
    sigma: float = 0.0
    """Standard deviation of the logarithm; 0 makes all the same."""

    def draw(self, chance: random.Random) -> int:
        """One length in tokens, at least 1."""
        # in logarithms: a far draw of a wide spread would be no finite number
        exponent = math.log(self.median) + (chance.gauss(0.0, self.sigma) if self.sigma else 0.0)
        return min(max(round(math.exp(min(exponent, math.log(MOST)))), 1), MOST)


def read_lengths(option: str, text: str) -> Lengths:
    """``128`` or ``lognormal:128:0.6``, its median and sigma; ``RedraftError`` for anything else."""
    wrong = RedraftError(
        f"{option} {text[:80]!r} must be tokens from 1 to {MOST}, such as 128, or lognormal:MEDIAN:SIGMA, "
        "such as lognormal:128:0.6"
    )
    kind, _, rest = text.partition(":")
    median, _, sigma = rest.partition(":") if kind == "lognormal" else (text, "", "0")
    try:
        # int() also takes other scripts' digits and refuses thousands of them
        found = Lengths(int(median) if median.isascii() and median.isdecimal() and len(median) < 8 else 0, float(sigma))
    except ValueError:
        raise wrong from None
    if not 1 <= found.median <= MOST or not 0 <= found.sigma <= 5:
        raise wrong
    return found
