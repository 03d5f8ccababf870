"""Between the engine's slots and a drafter's rows: only as many slots are drafted for as are active."""

from __future__ import annotations

from torch import Tensor

from redraft.drafts.base import Candidates, DraftState
from redraft.kernels import active_slots as kernel


def active_slots(state: DraftState, requests: int) -> tuple[Tensor, Tensor, Tensor]:
    """``requests`` slots that hold all the active ones, their anchors and the anchors' positions, [N] int64 each.

    Where fewer are active, the others are the trash slot, at position 0.
    """
    return kernel.active_slots(state.tokens, state.length, state.active, requests)


def spread(state: DraftState, slot: Tensor, token: Tensor, parent: Tensor, score: Tensor) -> Candidates:
    """Trees [N, W] to their slots; the others have none."""
    slots, width = state.active.shape[0], token.shape[1]
    absent = float("-inf")
    # the trash slot may be written by several and is cleared afterwards
    tokens = state.anchor.expand(slots, width).index_copy(0, slot, token)
    parents = parent.new_zeros(slots, width).index_copy(0, slot, parent)
    scores = score.new_full((slots, width), absent).index_copy(0, slot, score)
    return Candidates(tokens, parents, scores.masked_fill(~state.active.unsqueeze(1), absent))
