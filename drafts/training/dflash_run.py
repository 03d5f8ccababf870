"""What all runs that train a DFlash draft share."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.training.calibrate import fit_temperatures
from redraft.drafts.training.measure import Acceptance, greedy_acceptance
from redraft.drafts.training.module import DFlashModule
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

    def acceptance(self) -> Acceptance:
        """Of greedy blocks on the development texts."""
        return greedy_acceptance(self.module, self.teacher, self.vocabulary, self.rope, self.dev, self.cache.states)

    def temperatures(self) -> tuple[float, ...]:
        """One for every token of a block."""
        return fit_temperatures(self.module, self.teacher, self.vocabulary, self.rope, self.dev, self.cache.states)
