"""The n-gram drafter: looks the end of the text up in prompt and output so far; needs no training and no weights."""

from __future__ import annotations

import torch

from redraft.drafts.base import Bounds, Candidates, DraftState, TokensOnly
from redraft.kernels.ngram import MAX_NODES, ngram


class NgramDrafter(TokensOnly):
    """Drafts what followed earlier in the same text (``redraft.kernels.ngram``)."""

    name = "ngram"
    version = "1"

    def __init__(self, slots: int, vocab_size: int, device: torch.device, max_nodes: int = 7) -> None:
        """Make a drafter for ``slots`` slots, the trash slot not counted.

        ``max_nodes`` is the number of drafted nodes per slot and round; raises ``ValueError`` unless it is in
        1 … ``MAX_NODES``.
        """
        if not 1 <= max_nodes <= MAX_NODES:
            raise ValueError(f"the n-gram drafter drafts 1 to {MAX_NODES} nodes, not {max_nodes}")
        self.max_nodes = max_nodes
        self._newest = torch.zeros(slots + 1, vocab_size, dtype=torch.int32, device=device)

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """A spine of up to 8 tokens first, then siblings of its nodes."""
        tensors = state.tokens, state.length, state.active, self._newest
        token, parent, score = ngram(*tensors, max_nodes=self.max_nodes, context_bound=bounds.context)
        return Candidates(token=token, parent=parent, score=score)
