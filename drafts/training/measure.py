"""Acceptance length on held-out texts, without decoding: greedy rounds follow from one packed pass.

Verified text does not depend on the draft.  So the draft proposes at every anchor of a greedy text at once, and walking
anchor → anchor + accepted + 1 gives exactly the rounds that decoding would have had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.training.blocks import Vocabulary, make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.loss import CHUNK
from redraft.drafts.training.module import DFlashModule
from redraft.drafts.training.teacher import States, Teacher

ANCHORS = 128
"""Blocks in one pass."""


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
) -> Acceptance:
    """Chain acceptance of greedy ``texts``."""
    drafted = module.config.drafted
    tokens = rounds = 0
    reached = [0] * drafted
    for text in texts:
        agreed = agreeing(module, teacher, vocabulary, rope, text, states(text))
        place, end = text.prompt - 1, len(text.tokens) - 1
        while place < end:
            accepted = agreed[place - text.prompt + 1]
            for depth in range(accepted):
                reached[depth] += 1
            step = min(accepted + 1, end - place)
            tokens, rounds, place = tokens + step, rounds + 1, place + step
    return Acceptance(tokens, rounds, tuple(reached))


def agreeing(
    module: DFlashModule,
    teacher: Teacher,
    vocabulary: Vocabulary,
    rope: tuple[Tensor, Tensor],
    text: Text,
    states: States,
) -> list[int]:
    """For every anchor of ``text``: how many of the tokens drafted there agree with it, from the first on."""
    counts: list[int] = []
    for start in range(0, len(text.anchors), ANCHORS):
        anchors = text.anchors[start : start + ANCHORS]
        batch = make_batch(module.config, teacher, vocabulary, [text], [states], [anchors])
        hidden = module(batch.taps, batch.anchor, batch.block, rope).flatten(0, 2)
        best = torch.cat([(part @ vocabulary.head.T).argmax(-1) for part in hidden.split(CHUNK)])
        agree = best.view(len(anchors), -1) == batch.label[0]
        counts += agree.long().cumprod(-1).sum(-1).tolist()
    return counts
