"""Settings of ``redraft train selector``."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.settings import RunSettings, at_least, one_of


@dataclass(frozen=True, slots=True)
class SelectorSettings(RunSettings):
    """Tables behind a draft that is otherwise left as it is."""

    optimiser: str = "adamw"
    """Tables are no matrices to orthogonalise: a step moves the rows that it has seen."""
    weight_decay: float = 0.0
    rank: int = 64
    anchors: int = 64
    """Most anchors drawn from a text."""
    candidates: int = 16
    """Likeliest tokens of a row, among which the selector learns to find the text's."""
    dropout: float = 0.5
    """Of the predecessor's numbers: a token is seen behind few others."""
    alpha: float = 0.3
    """A row weighs alpha, and the rest by how likely the draft finds all of the block before it."""

    def __post_init__(self) -> None:
        """Raise ``DraftError`` for what cannot be trained."""
        RunSettings.__post_init__(self)
        one_of("optimiser", self.optimiser, ("adamw",))
        at_least(self, {"rank": 1, "anchors": 1, "candidates": 2})
        if not 0 <= self.dropout < 1 or not 0 <= self.alpha <= 1:
            raise DraftError("dropout must lie in 0 ... 1, 1 left out, and alpha in 0 ... 1")
