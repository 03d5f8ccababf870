"""What an EAGLE-3 draft proposes at all anchors of texts, unrolled on its own drafted tokens, as serving would.

Verified text does not depend on the draft, so ``rounds.walk`` over these gives the rounds of decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3_batch import Batch, make_batch
from redraft.drafts.training.eagle3_module import Eagle3Module
from redraft.drafts.training.measure import Acceptance, pooled
from redraft.drafts.training.rounds import passes
from redraft.drafts.training.teacher import States, Teacher


@torch.no_grad()
def draft_chains(
    module: Eagle3Module, teacher: Teacher, vocabulary: Vocabulary, rope: tuple[Tensor, Tensor], batch: Batch
) -> Tensor:
    """[b, A, D] target ids of the greedy chains from all anchors of ``batch``."""
    feature, chains = module.begin(batch.taps, batch.embedded, batch.start, rope)
    token, drafted = batch.fed[..., 0], []
    for _ in range(module.config.steps):
        feature = module.step(feature, teacher.embedding[token], chains)
        token = vocabulary.ids[module.lm_head(module.norm(feature)).argmax(-1)]
        drafted.append(token)
    return torch.stack(drafted, -1)


@torch.no_grad()
def accepted_chains(
    module: Eagle3Module,
    teacher: Teacher,
    vocabulary: Vocabulary,
    rope: tuple[Tensor, Tensor],
    texts: Sequence[Text],
    states: Sequence[States],
) -> list[list[int]]:
    """Of every anchor of every text, how many tokens of the greedy chain from it verification would accept."""
    found: list[list[int]] = [[] for _ in texts]
    for part in passes(texts, teacher.embedding.device):
        some, read = [texts[piece.text] for piece in part], [states[piece.text] for piece in part]
        batch = make_batch(module.config.steps, teacher, some, read, [piece.anchors for piece in part])
        drafted = draft_chains(module, teacher, vocabulary, rope, batch)
        accepted = (drafted == batch.wanted).long().cumprod(-1).sum(-1).tolist()
        for piece, row in zip(part, accepted, strict=True):
            found[piece.text] += row[: len(piece.anchors)]
    return found


def chain_acceptance(
    module: Eagle3Module,
    teacher: Teacher,
    vocabulary: Vocabulary,
    rope: tuple[Tensor, Tensor],
    texts: Sequence[Text],
    states: Callable[[Text], States],
) -> Acceptance:
    """Acceptance on greedy ``texts`` of greedy chains."""
    read = [states(text) for text in texts]
    return pooled(accepted_chains(module, teacher, vocabulary, rope, texts, read), module.config.steps)
