"""What all runs that train an EAGLE-3 draft share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3_calibrate import fit_chain_temperatures
from redraft.drafts.training.eagle3_module import Eagle3Module
from redraft.drafts.training.eagle3_rounds import drafted_rounds
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

    def temperatures(self) -> tuple[float, ...]:
        """One for every pass."""
        return fit_chain_temperatures(
            self.module, self.teacher, self.vocabulary, self.rope, self.dev, self.cache.states
        )
