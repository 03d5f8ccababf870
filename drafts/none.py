"""No draft: every tree is its root alone, and a round is one step of plain decoding."""

from __future__ import annotations

import torch

from redraft.drafts.base import Bounds, Candidates, DraftState, TokensOnly


class NoDrafter(TokensOnly):
    """Drafts nothing."""

    name = "none"
    version = "1"
    max_nodes = 0

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """Only the roots."""
        anchor = state.anchor
        score = torch.where(state.active, 1.0, float("-inf")).unsqueeze(1)
        return Candidates(token=anchor, parent=torch.zeros_like(anchor), score=score)
