"""What all runs that train a DFlash draft share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.training.calibrate import fit_temperatures
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

    def temperatures(self) -> tuple[float, ...]:
        """One for every token of a block."""
        return fit_temperatures(self.module, self.teacher, self.vocabulary, self.rope, self.dev, self.cache.states)
