"""What an EAGLE-3 draft proposes at all anchors of texts, unrolled on its own drafted tokens, as serving would.

Verified text does not depend on the draft, so ``rounds.walk`` over these gives the rounds of decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3_batch import Batch, make_batch
from redraft.drafts.training.eagle3_module import Eagle3Module
from redraft.drafts.training.loss import IGNORE
from redraft.drafts.training.rounds import Rounds, passes
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
def drafted_rounds(
    module: Eagle3Module,
    teacher: Teacher,
    vocabulary: Vocabulary,
    rope: tuple[Tensor, Tensor],
    texts: Sequence[Text],
    states: Sequence[States],
) -> list[Rounds]:
    """Greedy chains from all anchors of every text; there is none from a text's first token."""
    found: list[list[Rounds]] = [[] for _ in texts]
    for part in passes(texts, teacher.embedding.device):
        some, read = [texts[piece.text] for piece in part], [states[piece.text] for piece in part]
        batch = make_batch(module.config.steps, teacher, some, read, [piece.anchors for piece in part])
        drafted = draft_chains(module, teacher, vocabulary, rope, batch)
        accepted = (drafted == batch.wanted).long().cumprod(-1).sum(-1)
        known = torch.where(vocabulary.row[batch.wanted.clamp_min(0)] == IGNORE, -1, batch.wanted)
        made = [tensor.cpu() for tensor in (batch.anchor, drafted, accepted, known)]
        for place, piece in enumerate(part):
            anchor, chain, right, wanted = (tensor[place, : len(piece.anchors)] for tensor in made)
            left = (len(texts[piece.text].tokens) - 1 - anchor) * (anchor > 0)
            found[piece.text].append(Rounds(anchor, chain, right, wanted, left))
    return [Rounds(*(torch.cat([getattr(r, name) for r in parts]) for name in Rounds.__slots__)) for parts in found]
