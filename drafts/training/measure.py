"""Acceptance length on held-out texts, without decoding (rounds.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text
from redraft.drafts.training.module import DFlashModule
from redraft.drafts.training.rounds import propose, walk
from redraft.drafts.training.teacher import States, Teacher


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


@torch.no_grad()
def greedy_acceptance(
    module: DFlashModule,
    teacher: Teacher,
    vocabulary: Vocabulary,
    rope: tuple[Tensor, Tensor],
    texts: Sequence[Text],
    states: Callable[[Text], States],
    nodes: int = 0,
) -> Acceptance:
    """Acceptance on greedy ``texts`` of the chain, or of the tree of ``nodes`` drafted nodes."""
    tokens = rounds = 0
    reached = [0] * module.config.drafted
    for text in texts:
        accepted = propose(module, teacher, vocabulary, rope, text, states(text), nodes).accepted.tolist()
        visited = walk(accepted)
        tokens, rounds = tokens + len(accepted), rounds + len(visited)
        for place in visited:
            for depth in range(accepted[place]):
                reached[depth] += 1
    return Acceptance(tokens, rounds, tuple(reached))
