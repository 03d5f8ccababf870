"""Tokens that a grammar leaves no choice about, drafted beside whatever a drafter proposes."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.drafts.base import Candidates
from redraft.kernels.merge_trees import merge_trees


def with_forced(tree: Candidates, forced: Tensor) -> Candidates:
    """``tree`` [S+1, W] and, as a chain from each root, ``forced`` [S+1, F] int64, whose unused places are -1.

    The chain's nodes come first and score 1: nothing else can be accepted in their places.  Returns width F + W.
    """
    slots, most = forced.shape
    place = torch.arange(most + 1, device=forced.device)
    root = tree.score[:, :1]
    present = (forced >= 0) & (root > float("-inf"))
    chain = (
        torch.cat((tree.token[:, :1], forced.clamp_min(0)), 1),
        (place - 1).clamp_min(0).expand(slots, -1).contiguous(),
        torch.cat((root, torch.where(present, 1.0, float("-inf"))), 1),
    )
    return Candidates(*merge_trees(chain, (tree.token, tree.parent, tree.score)))
