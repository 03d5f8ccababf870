"""Make a tree of what a block draft believes, which guesses every depth at once.

A node's probability is taken as the product along its path of its tokens' probabilities: the draft's marginals, or what
they are behind the token before.  The tree of n nodes with the greatest expected acceptance length is then the n
prefixes with the greatest products (DDTree, arXiv 2604.12989), and a prefix is never less probable than what goes on
from it, so a node's parent is among them whenever the node is.

The paper takes them one by one from a heap.  Here it is depth by depth: of every depth the best n are kept, since a
prefix that n others of its depth outdo is not in the tree, and nor is anything that goes on from it.  At the end the n
best of all depths are taken.  That is exact, of fixed shape, and in torch calls cheaper than n steps of best first:
half the time for 8 nodes of 7 depths, a seventh for 63.

Ties go to the lower depth, then to the child of the earlier node, then to the earlier candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

MAX_NODES = 63
"""Drafted nodes per row: with the root 64, all that ``pack_tree`` takes."""
_INF = float("inf")


def block_tree(anchor: Tensor, top_token: Tensor, top_logprob: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``nodes`` most probable prefixes, best first.

    Args:
        anchor: [N] int64, the roots' tokens.
        top_token: [N, D, K] int64, candidates for depths 1 to D; siblings differ if a depth's candidates do.
        top_logprob: [N, D, K] fp32, natural logarithms of their probabilities, best first (which decides ties and
            nothing else); -inf or NaN where there is no candidate.  What rounding put above 0 counts as 0.  Or
            [N, D, K, K]: of candidate c behind candidate p of the depth before; at depth 1 only p = 0 is looked at.
        nodes: drafted nodes of a tree, 1 to ``MAX_NODES``.

    Returns:
        token, parent [N, W] int64 and score [N, W] fp32 with W = ``nodes`` + 1: node 0 is the root, of score 1.  A
        score is the exponential of the sum, in fp32 from depth 1 down, of the log-probabilities along the path.
        Where fewer than ``nodes`` prefixes exist, the last nodes are absent: their score is -inf, their parent 0 and
        their token any.

    Raises ``ValueError`` for a number of nodes out of range and for candidates whose shapes do not fit.
    """
    if not 1 <= nodes <= MAX_NODES:
        raise ValueError(f"nodes must be 1 to {MAX_NODES}, not {nodes}")
    shape = top_token.shape
    paired = top_logprob.dim() == 4
    known = len(shape) == 3 and top_logprob.shape == ((*shape, shape[2]) if paired else shape)
    if not known or anchor.shape != shape[:1] or 0 in shape[1:]:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (anchor, top_token, top_logprob))
        raise ValueError(
            f"anchor, top_token and top_logprob must be [N], [N, D, K] and [N, D, K] or [N, D, K, K], not {shapes}"
        )
    N, D, K = shape
    device = anchor.device

    # a cost is a negated log-probability; what is absent costs inf or NaN, which sort last
    # the difference, unlike a negation, makes no -0, which a sort by bits would tell from 0
    steps = (0 - top_logprob).clamp_(min=0).unbind(1)
    # the root, and prefixes that do not exist, so that all depths have the same width
    beam = functional.pad(top_logprob.new_zeros(N, 1), (0, nodes - 1), value=_INF)
    ends = torch.zeros(N, nodes, 1, dtype=torch.int64, device=device)
    costs, choices = [], []
    for step in steps:
        step = step.gather(1, ends.expand(N, nodes, K)) if paired else step.unsqueeze(1)
        # number nodes * K: candidate number % K after the previous depth's prefix number // K
        ranked, choice = (beam.unsqueeze(2) + step).flatten(1).sort(dim=1, stable=True)
        beam, ends = ranked[:, :nodes], (choice[:, :nodes] % K).unsqueeze(2)
        costs.append(beam)
        choices.append(choice)

    cost, order = torch.cat(costs, 1).sort(dim=1, stable=True)
    cost, order = cost[:, :nodes], order[:, :nodes]
    # now over all depths: code // K is the parent's number among all kept prefixes, where the root is the first
    # `nodes` of them, and code the token's number in a table that repeats a depth's candidates for each prefix
    depth = torch.arange(0, D * nodes * K, nodes * K, device=device).unsqueeze(1)
    code = (torch.stack(choices, 1)[:, :, :nodes] + depth).flatten(1).gather(1, order)
    number = order.new_zeros(N, (D + 1) * nodes)
    number.scatter_(1, order + nodes, torch.arange(1, nodes + 1, device=device).expand(N, nodes))
    token = top_token.unsqueeze(2).expand(N, D, nodes, K).flatten(1).gather(1, code)
    parent = number.gather(1, code // K)
    # absent nodes are depth 1's, of which there are `nodes` whatever exists: their parent is the root already
    score = torch.where(cost < _INF, cost.neg().exp_(), -_INF)
    return (
        torch.cat([anchor.unsqueeze(1), token], 1),
        functional.pad(parent, (1, 0)),
        functional.pad(score, (1, 0), value=1.0),
    )
