"""Which drafter serves a checkpoint: by its architecture, behind one signature."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from redraft.drafts import dflash, eagle3
from redraft.drafts.base import Context, Drafter
from redraft.drafts.checkpoint import Checkpoint
from redraft.drafts.eagle3_config import Eagle3Config


def context_of(checkpoint: Checkpoint, max_nodes: int, branch: int | None = None) -> Context:
    """What the drafter that ``make_drafter`` makes keeps of the text."""
    if isinstance(checkpoint.config, Eagle3Config):
        return eagle3.context_of(checkpoint, max_nodes, branch)
    return dflash.context_of(checkpoint)


def make_drafter(
    checkpoint: Checkpoint,
    embedding: Tensor,
    head: Callable[[], Tensor],
    positions: int,
    max_nodes: int,
    name: str,
    branch: int | None = None,
    own_tokens: int = 0,
) -> Drafter:
    """A drafter for the target with ``embedding`` [V, H]; ``head`` reads its head [V, H], which not all drafts want.

    ``positions`` bounds those of any row; ``branch`` is how widely its tree branches, None as suits it, 1 for a chain.
    ``own_tokens`` (own_tokens.py) are for block drafts with a pruned vocabulary; an EAGLE-3 draft's head is its own.
    """
    if isinstance(checkpoint.config, Eagle3Config):
        return eagle3.Eagle3Drafter(checkpoint, embedding, positions, max_nodes, name, branch)
    return dflash.DFlashDrafter(checkpoint, embedding, head(), positions, max_nodes, name, branch, own_tokens)
