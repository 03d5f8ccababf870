"""Tokens of a request's own text that a draft's pruned vocabulary lacks, as candidates besides it.

A vocabulary of the most frequent tokens has no rare names; where a text has used one, it may well come again.  The
target's head has a row for it, which is all that is needed: the draft's states are made for that head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.base import DraftState


@dataclass(frozen=True, slots=True)
class Own:
    """Of N slots, E tokens each."""

    ids: Tensor
    """[N, E] int64, the newest first."""
    absent: Tensor
    """[N, E] bool: there are fewer different ones."""


class OwnTokens:
    """Finds them and gives them logits."""

    def __init__(self, vocabulary: Tensor, head: Tensor, most: int) -> None:
        """``vocabulary`` [V'] are the draft's tokens, ``head`` [V, H] is the target's; up to ``most`` a slot."""
        self.head, self.most = head, most
        self.lacking = torch.ones(len(head), dtype=torch.bool, device=head.device)
        self.lacking[vocabulary] = False

    def find(self, state: DraftState, slot: Tensor, context: int) -> Own:
        """Of ``slot`` [N], in the first ``context`` positions, behind which no active slot has text."""
        tokens = state.tokens[slot, :context]
        position = torch.arange(tokens.shape[1], device=tokens.device)
        candidate = self.lacking[tokens] & (position < state.length[slot].unsqueeze(1))
        place = torch.where(candidate, position, -1).topk(min(self.most, tokens.shape[1]), -1).values
        ids = tokens.gather(1, place.clamp_min(0))
        again = (ids.unsqueeze(2) == ids.unsqueeze(1)).tril(-1).any(-1)
        return Own(ids, (place < 0) | again)

    def logits(self, states: Tensor, own: Own) -> Tensor:
        """[N, D, E] of the draft's normed ``states`` [N, D, H]; -inf where there is no token."""
        logits = states @ self.head[own.ids].mT
        return logits.masked_fill(own.absent.unsqueeze(1), float("-inf"))
