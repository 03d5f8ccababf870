"""No draft: every tree is its root alone, and a round is one step of plain decoding."""

from __future__ import annotations

from redraft.drafts.base import Bounds, Candidates, DraftState, TokensOnly
from redraft.kernels.spread_trees import spread_trees


class NoDrafter(TokensOnly):
    """Drafts nothing."""

    name = "none"
    version = "1"
    max_nodes = 0

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """Only the roots."""
        nobody = state.length.new_empty(0)
        tree = state.tokens.new_empty(0, 1), state.tokens.new_empty(0, 1), state.sampling.temperature.new_empty(0, 1)
        return Candidates(*spread_trees(state.tokens, state.length, state.active, nobody, *tree))
