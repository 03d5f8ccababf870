"""What all runs that train a DFlash draft share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.training.blocks import make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.module import DFlashModule
from redraft.drafts.training.rounds import propose
from redraft.drafts.training.run import Run


@dataclass
class DFlashRun(Run):
    """A run whose draft proposes blocks."""

    config: DFlashConfig
    module: DFlashModule

    @property
    def ahead(self) -> int:
        """A block's rows."""
        return self.config.block_size

    def accepted(self, texts: Sequence[Text], nodes: int = 0) -> list[list[int]]:
        """Of blocks."""
        states = [self.cache.states(text) for text in texts]
        found = propose(self.module, self.teacher, self.vocabulary, self.rope, texts, states, nodes)
        return [rounds.accepted.tolist() for rounds in found]

    def rows(self, text: Text, anchors: range) -> tuple[Tensor, Tensor]:
        """Of blocks."""
        states, head = self.cache.states(text), self.vocabulary.head
        batch = make_batch(self.config, self.teacher, self.vocabulary, [text], [states], [anchors])
        hidden = self.module(batch.taps, batch.anchor, batch.block, self.rope)[0]
        return (hidden.to(head.dtype) @ head.T).float(), batch.label[0]
