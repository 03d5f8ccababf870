"""Draft-OPD for an EAGLE-3 draft (arXiv 2605.29343; opd.py): ``redraft train opd --start`` such a draft.

A round's chain is unrolled again as it was drafted, on its own tokens; its rows are what became of them.  Where the
target's word on a suffix is that after the text (``suffix_teacher`` trajectory), the chain is fed the text as well:
a row that has read other tokens than its teacher would learn nothing of use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.data import Text
from redraft.drafts.training.divergence import Form, teacher_rows
from redraft.drafts.training.eagle3_batch import Batch, make_batch
from redraft.drafts.training.eagle3_divergence import own_head_divergence
from redraft.drafts.training.eagle3_flops import chains_pass, chains_training
from redraft.drafts.training.eagle3_rounds import drafted_rounds
from redraft.drafts.training.eagle3_run import Eagle3Run
from redraft.drafts.training.flops import Flops, product
from redraft.drafts.training.loss import IGNORE
from redraft.drafts.training.opd import OnPolicy, Packed, Plan
from redraft.drafts.training.rounds import Rounds
from redraft.drafts.training.teacher import States


@dataclass
class Eagle3Opd(OnPolicy, Eagle3Run):
    """Chains where the draft itself drafted."""

    method = "eagle3-opd"

    def __post_init__(self) -> None:
        """Refuse what chains have not."""
        if self.settings.tree_nodes:
            raise DraftError("the trees of an EAGLE-3 draft do not come from packed passes; leave --tree-nodes at 0")
        OnPolicy.__post_init__(self)

    def proposed(self, texts: Sequence[Text], states: Sequence[States]) -> tuple[list[Rounds], list[Flops]]:
        """Greedy chains decide the rounds."""
        with self.mixed():
            rounds = drafted_rounds(self.module, self.teacher, self.vocabulary, self.rope, texts, states)
        costs = [
            Flops(
                draft=chains_pass(self.config, len(text.tokens) - 1, len(text.anchors)),
                head=self._head(len(text.anchors) * self.config.steps),
            )
            for text in texts
        ]
        return rounds, costs

    def drafted_again(self, plans: Sequence[Plan]) -> Packed:
        """Chains on their own tokens, or on the text's."""
        texts, states = [plan.text for plan in plans], [plan.states for plan in plans]
        anchors = [plan.rounds.anchor.tolist() for plan in plans]
        batch = make_batch(self.config.steps, self.teacher, texts, states, anchors)
        fed = batch.fed if self.settings.suffix_teacher == "trajectory" else self._own(plans, batch)
        with self.mixed():
            hidden = self.module(batch.taps, batch.embedded, batch.start, self.teacher.embedding[fed], self.rope)
        length = batch.taps.shape[1] + 1
        final = torch.stack([functional.pad(s.final, (0, 0, 0, length - len(s.final))) for s in states])
        place = batch.anchor.unsqueeze(-1) + torch.arange(self.config.steps, device=fed.device)
        text = torch.arange(len(texts), device=fed.device)[:, None, None] * length
        return Packed(
            hidden.to(self.vocabulary.head.dtype),
            torch.where(batch.wanted >= 0, self.vocabulary.row[batch.wanted], IGNORE),
            final.flatten(0, 1),
            text + place.clamp_max(length - 1),
            len(plans) * chains_training(self.config, batch.taps.shape[1], batch.anchor.shape[1]),
        )

    def differing(self, hidden: Tensor, final: Tensor, row: Tensor, form: Form) -> tuple[Tensor, Flops]:
        """The head is the draft's, and learns; its logits and the target's are made twice."""
        value = own_head_divergence(hidden, self.module.lm_head.weight, self.vocabulary.head, final, row, form)
        return value, Flops(head=4 * self._head(len(row)) + 2 * self._head(teacher_rows(row)))

    def _own(self, plans: Sequence[Plan], batch: Batch) -> Tensor:
        """[b, A, D] the anchor and the tokens that were drafted behind it."""
        width = batch.anchor.shape[1]
        drafted = [functional.pad(plan.rounds.drafted, (0, 0, 0, width - len(plan.rounds.drafted))) for plan in plans]
        return torch.cat((batch.fed[..., :1], torch.stack(drafted).to(batch.fed)[..., :-1]), -1)

    def _head(self, rows: int) -> int:
        return product(rows, self.config.hidden, self.config.draft_vocab)
