"""The dynamic tree of a draft that guesses token after token (EAGLE-2, arXiv 2406.16858).

Of every depth the ``width`` most probable nodes stay live: the draft goes on from them alone, each of which proposes
its likeliest children.  At the end the best of all nodes ever scored are the tree.  A node's score is the product of
the draft's probabilities along its path, never above its parent's, so a parent is among them whenever its child is.

Ties go to the lower depth, then to the child of the better live node, then to the likelier candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_INF = float("inf")


class GrowingTree:
    """Trees of N slots at once, of fixed shapes; nothing is read back."""

    def __init__(self, anchor: Tensor, width: int) -> None:
        """``anchor`` [N] int64 are the roots' tokens; ``width`` nodes of every depth stay live, fewer if there are."""
        self.anchor, self.width = anchor.unsqueeze(1), width
        self.tokens, self.parents, self.costs = list[Tensor](), list[Tensor](), list[Tensor]()
        # a cost is a negated log-probability; nodes are numbered as they are scored, from the root, which is 0
        self.live_cost = torch.zeros_like(self.anchor, dtype=torch.float32)
        self.live = torch.zeros_like(self.anchor)
        self.count = 1

    def grow(self, token: Tensor, log_probability: Tensor) -> tuple[Tensor, Tensor]:
        """Children of the L live nodes, in their order: [N, L, K] int64 and fp32.  At first the root alone is live.

        Returns of the nodes that are live now, best first, the tokens and which of the L their parents are, [N, L'].
        """
        N, L, K = token.shape
        # the difference, unlike a negation, makes no -0; what rounding put above 0 counts as 0
        cost = (self.live_cost.unsqueeze(2) + (0 - log_probability).clamp_(min=0)).view(N, L * K)
        token = token.reshape(N, L * K)
        self.tokens.append(token)
        self.costs.append(cost)
        self.parents.append(self.live.repeat_interleave(K, 1))
        ranked, order = cost.sort(dim=1, stable=True)
        order = order[:, : self.width]
        self.live_cost, self.live = ranked[:, : self.width], order + self.count
        self.count += L * K
        return token.gather(1, order), order // K

    def best(self, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``nodes`` best, best first: token, parent [N, W] int64 and score [N, W] fp32 with W = ``nodes`` + 1.

        Node 0 is the root, of score 1.  Where fewer were scored, the last are absent: score -inf, parent 0.
        """
        N = self.anchor.shape[0]
        cost, order = torch.cat(self.costs, 1).sort(dim=1, stable=True)
        cost, order = cost[:, :nodes], order[:, :nodes]
        found = order.shape[1]
        rank = order.new_zeros(N, self.count)
        rank.scatter_(1, order + 1, torch.arange(1, found + 1, device=order.device).expand(N, found))
        parent = rank.gather(1, torch.cat(self.parents, 1).gather(1, order))
        token = torch.cat(self.tokens, 1).gather(1, order)
        score = torch.where(cost < _INF, cost.neg().exp_(), -_INF)
        missing = nodes - found
        return (
            functional.pad(torch.cat([self.anchor, token], 1), (0, missing)),
            functional.pad(parent, (1, missing)),
            functional.pad(functional.pad(score, (1, 0), value=1.0), (0, missing), value=-_INF),
        )
