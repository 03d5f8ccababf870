"""What all runs that train an EAGLE-3 draft share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3_batch import make_batch
from redraft.drafts.training.eagle3_module import Eagle3Module
from redraft.drafts.training.eagle3_rounds import drafted_rounds
from redraft.drafts.training.loss import IGNORE
from redraft.drafts.training.run import Run


@dataclass
class Eagle3Run(Run):
    """A run whose draft proposes chains."""

    config: Eagle3Config
    module: Eagle3Module

    @property
    def ahead(self) -> int:
        """A chain's rows."""
        return self.config.steps

    def accepted(self, texts: Sequence[Text], nodes: int = 0) -> list[list[int]]:
        """Of greedy chains; trees are not packed."""
        if nodes:
            raise DraftError("the trees of an EAGLE-3 draft are measured by decoding: redraft bench acceptance")
        states = [self.cache.states(text) for text in texts]
        found = drafted_rounds(self.module, self.teacher, self.vocabulary, self.rope, texts, states)
        return [rounds.accepted.tolist() for rounds in found]

    def rows(self, text: Text, anchors: range) -> tuple[Tensor, Tensor]:
        """Of chains fed the text: a row matters only where everything drafted before it was right."""
        batch = make_batch(self.config.steps, self.teacher, [text], [self.cache.states(text)], [anchors])
        fed = self.teacher.embedding[batch.fed]
        hidden = self.module(batch.taps, batch.embedded, batch.start, fed, self.rope)[0]
        wanted = batch.wanted[0]
        label = torch.where(wanted >= 0, self.vocabulary.row[wanted], IGNORE)
        return self.module.lm_head(hidden).float(), label
