"""How sure a difference of two acceptance lengths is: both drafts had the same prompts, so these are drawn in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.benchmarks.headline.runs import Result

DRAWS = 10_000
SEED = 0
SHARE = 0.95
"""Of the draws that the interval holds."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Of pooled τ, with the interval of ``SHARE``."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def pooled(results: Sequence[Result]) -> float:
    """Tokens of all prompts over rounds of all prompts."""
    return sum(sum(r.tokens) for r in results) / sum(sum(r.rounds) for r in results)


def difference(ours: Sequence[Result], theirs: Sequence[Result]) -> Difference | None:
    """Pooled τ of ``ours`` less that of ``theirs``; None if the prompts or their answers are not the same.

    Prompts are drawn with replacement within each set: how large a set is was chosen, not sampled.
    """
    if [(r.key, list(r.tokens)) for r in ours] != [(r.key, list(r.tokens)) for r in theirs]:
        return None
    generator = np.random.default_rng(SEED)
    tokens, our_rounds, their_rounds = (np.zeros(DRAWS) for _ in range(3))
    for mine, other in zip(ours, theirs, strict=True):
        drawn = generator.integers(0, len(mine.tokens), (DRAWS, len(mine.tokens)))
        for total, of in ((tokens, mine.tokens), (our_rounds, mine.rounds), (their_rounds, other.rounds)):
            total += np.asarray(of)[drawn].sum(1)
    edges = np.quantile(tokens / our_rounds - tokens / their_rounds, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Difference(pooled(ours) - pooled(theirs), float(edges[0]), float(edges[1]))
