"""Acceptance length on held-out texts, without decoding (rounds.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.drafts.training.rounds import walk


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Pooled over texts."""

    tokens: int
    rounds: int
    accepted: tuple[int, ...]
    """Rounds that accepted at least 1, 2 … B - 1 tokens."""

    @property
    def tau(self) -> float:
        """Tokens committed a round, the bonus token included."""
        return self.tokens / max(self.rounds, 1)


def pooled(accepted: Sequence[Sequence[int]], drafted: int) -> Acceptance:
    """Of texts, of each of whose anchors it is known how many tokens would be accepted, at most ``drafted``."""
    tokens = rounds = 0
    reached = [0] * drafted
    for counts in accepted:
        visited = walk(counts)
        tokens, rounds = tokens + len(counts), rounds + len(visited)
        for place in visited:
            for depth in range(counts[place]):
                reached[depth] += 1
    return Acceptance(tokens, rounds, tuple(reached))
