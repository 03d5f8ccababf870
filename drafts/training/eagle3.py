"""Training of an EAGLE-3 draft: ``redraft train eagle3`` (training-time test, arXiv 2503.01840).

From every anchor of a text a chain is unrolled as long as a round drafts, along the text's own tokens.  So the layer
learns to go on from its own outputs, which is all it has in serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3_batch import answers, make_batch
from redraft.drafts.training.eagle3_flops import chains_head, chains_training
from redraft.drafts.training.eagle3_loss import by_position, chain_loss
from redraft.drafts.training.eagle3_run import Eagle3Run
from redraft.drafts.training.eagle3_settings import Eagle3Settings
from redraft.drafts.training.flops import Flops
from redraft.drafts.training.loss import IGNORE
from redraft.drafts.training.run import Made
from redraft.drafts.training.teacher import States


@dataclass
class Eagle3(Eagle3Run):
    """Chains from all anchors, every row towards the target's distribution."""

    settings: Eagle3Settings
    method = "eagle3"

    def teach(self, texts: Sequence[Text], generator: torch.Generator) -> Made:
        """The loss is the mean over rows weighted by gamma ** pass; nothing is drawn."""
        settings = self.settings
        counts = [[max(0, chains(text) - i) for i in range(self.config.steps)] for text in texts]
        total = sum(settings.gamma**i * count for row in counts for i, count in enumerate(row))
        loss = torch.zeros((), device=self.teacher.embedding.device)
        tally = torch.zeros(2, self.config.steps, device=loss.device)
        spent = Flops()
        texts = self.together.share(texts)
        for start in range(0, len(texts), settings.micro_batch):
            part = texts[start : start + settings.micro_batch]
            states, read = zip(*(self.states(text) for text in part), strict=True)
            made, right = self._loss(part, states)
            (made / total).backward()  # type: ignore[no-untyped-call]
            loss += made.detach() / total
            tally += right
            spent = sum((*read, self._spent(part)), spent)
        self.together.sum_([loss, tally])
        share = (tally[0] / tally[1].clamp_min(1)).tolist()
        figures = {f"alpha_{i}": round(of, 4) for i, of in enumerate(share)}
        return Made(loss, sum(map(sum, counts)), spent, figures)

    def _loss(self, texts: Sequence[Text], states: Sequence[States]) -> tuple[Tensor, Tensor]:
        """Summed loss, and of every pass how many rows were right and how many counted."""
        batch = make_batch(self.config.steps, self.teacher, texts, states, [text.anchors for text in texts])
        with self.mixed():
            hidden = self.module(batch.taps, batch.embedded, batch.start, self.teacher.embedding[batch.fed], self.rope)
        hidden = by_position(hidden.to(self.vocabulary.head.dtype)).flatten(0, 1)
        decay = self.settings.gamma ** torch.arange(self.config.steps, device=hidden.device)
        weight = by_position((batch.wanted >= 0) * decay).flatten(0, 1)
        label = torch.where(batch.wanted[..., 0] >= 0, self.vocabulary.row[batch.wanted[..., 0]], IGNORE)
        return chain_loss(
            hidden,
            self.module.lm_head.weight,
            weight,
            label.flatten(),
            answers(texts, states).flatten(0, 1),
            self.teacher.head,
            self.vocabulary,
            self.settings.soft,
        )

    def _spent(self, texts: Sequence[Text]) -> Flops:
        """Of a pass, without the target's."""
        pairs = max(len(text.tokens) for text in texts) - 1
        width = max(len(text.anchors) for text in texts)
        return Flops(
            draft=len(texts) * chains_training(self.config, pairs, width),
            head=chains_head(self.config, len(texts) * width),
        )


def chains(text: Text) -> int:
    """How many chains begin in a text: there is none at its first token."""
    return len(text.anchors) - (text.prompt == 1)
