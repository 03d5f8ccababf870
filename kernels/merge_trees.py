"""Unite two candidate trees of the same root, so that two drafters fill one round's rows without repeating each other.

A node of the second tree whose path of tokens the first tree has too gives way to the first's node, which takes over
its children and the larger of both scores.  Two nodes have the same path if they and all their ancestors, pair by
pair, carry the same tokens.  The op looks at all pairs of nodes at once and doubles the stretch of path it has compared
at each step, so it takes as many steps as the smaller tree's size has binary digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

_Tree = tuple[Tensor, Tensor, Tensor]
_INF = float("inf")
_ROOT, _ABSENT_FIRST, _ABSENT_SECOND = (torch.iinfo(torch.int64).min + i for i in range(3))
"""In place of tokens: roots equal roots only, absent nodes nothing."""


def merge_trees(first: _Tree, second: _Tree) -> _Tree:
    """The union of two trees as one.

    Args:
        first: token [N, A] int64, parent [N, A] int64 and score [N, A] fp32 as in ``drafts.base.Candidates``: node 0
            is the root, a parent's number is lower than the node's own, a score of -inf or NaN means absent.
        second: the same of width B.  Its root stands for the same text as the first's.

    Returns:
        token, parent and score of width A + B - 1, parents again lower than their children: the first tree's nodes at
        their numbers, then the second's without its root.  A node of the second whose path is in the first is absent:
        its score is -inf and its parent 0.  Where the first has a path more than once, its lowest node takes over.
        Paths that only the second has are taken as they are, repeats included.

    Raises ``ValueError`` for trees whose shapes do not fit.
    """
    (token_a, parent_a, score_a), (token_b, parent_b, score_b) = first, second
    N, A = token_a.shape
    B = token_b.shape[1]
    for name, tree, shape in (("first", first, (N, A)), ("second", second, (N, B))):
        if any(tensor.shape != shape for tensor in tree):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tree)
            raise ValueError(f"the {name} tree's token, parent and score must be {list(shape)}, not {shapes}")

    # [N, A * B] for every pair of nodes: do they match, and the pair of their parents
    own_a = torch.where(score_a > -_INF, token_a, _ABSENT_FIRST)
    own_b = torch.where(score_b > -_INF, token_b, _ABSENT_SECOND)
    own_a.select(1, 0).fill_(_ROOT)
    own_b.select(1, 0).fill_(_ROOT)
    match = (own_a.unsqueeze(2) == own_b.unsqueeze(1)).flatten(1)
    above = ((parent_a * B).unsqueeze(2) + parent_b.unsqueeze(1)).flatten(1)
    # paths of different lengths differ where the shorter one, at most as long as the smaller tree, reaches its root
    for step in range((min(A, B) - 1).bit_length()):
        above = above.gather(1, above) if step else above
        match = match & match.gather(1, above)

    # [N, B] the second's nodes' numbers in the union: the lowest match, or else behind the first's nodes
    number_a = torch.arange(A, device=token_a.device).unsqueeze(1)
    number_b = torch.arange(A - 1, A + B - 1, device=token_a.device)
    number = torch.where(match.view(N, A, B), number_a, number_b).amin(1)
    parent = number.gather(1, parent_b).masked_fill_(number < A, 0)
    score = torch.cat([score_a, torch.full_like(score_b, -_INF)[:, 1:]], 1)
    return (
        torch.cat([token_a, token_b[:, 1:]], 1),
        torch.cat([parent_a, parent[:, 1:]], 1),
        score.scatter_reduce_(1, number, score_b, "amax"),
    )
