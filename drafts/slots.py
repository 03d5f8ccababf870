"""Between the engine's slots and a drafter's rows: only as many slots are drafted for as are active."""

from __future__ import annotations

from torch import Tensor

from redraft.drafts.base import Candidates, DraftState
from redraft.kernels import active_slots as kernel
from redraft.kernels.spread_trees import spread_trees


def active_slots(state: DraftState, requests: int) -> tuple[Tensor, Tensor, Tensor]:
    """``requests`` slots that hold all the active ones, their anchors and the anchors' positions, [N] int64 each.

    Where fewer are active, the others are the trash slot, at position 0.
    """
    return kernel.active_slots(state.tokens, state.length, state.active, requests)


def spread(state: DraftState, slot: Tensor, token: Tensor, parent: Tensor, score: Tensor) -> Candidates:
    """Trees [N, W] to their slots; the others have none."""
    return Candidates(*spread_trees(state.tokens, state.length, state.active, slot, token, parent, score))
