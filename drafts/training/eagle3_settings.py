"""What a training run of an EAGLE-3 draft was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.settings import RunSettings, at_least


@dataclass(frozen=True, slots=True)
class Eagle3Settings(RunSettings):
    """Training-time test on the target's own texts (arXiv 2503.01840)."""

    gamma: float = 0.8
    """A row of pass i weighs gamma ** i."""
    taps: tuple[int, ...] = ()
    """Three layers of the target; empty: the published ones."""
    depth: int = 7
    """Passes along a chain, in training and in serving; each drafts a token."""
    draft_vocab: int = 8192
    """Tokens the draft can propose; 0 keeps the target's whole vocabulary."""
    copied: int = -1
    """Target layer to start from, -1: the last one."""
    output_scale: float = 1.0
    """Of the copied layer's output projections."""
    soft: float = 1.0
    """Share of the target's distribution, the rest being hard labels."""

    def __post_init__(self) -> None:
        """Raise ``DraftError`` for what cannot be trained."""
        RunSettings.__post_init__(self)
        at_least(self, {"depth": 1, "draft_vocab": 0, "copied": -1})
        if not 0 <= self.soft <= 1:
            raise DraftError("soft must lie in 0 ... 1")
