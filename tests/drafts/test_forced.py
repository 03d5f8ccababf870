"""Forced chains in other drafters' trees, against a walk over paths."""

from __future__ import annotations

import torch

from redraft.drafts.base import Candidates
from redraft.drafts.forced import with_forced

ABSENT = float("-inf")


def paths(tree: Candidates, slot: int) -> dict[tuple[int, ...], float]:
    """Score of every present node by its path of tokens."""
    found: dict[tuple[int, ...], float] = {}
    path: list[tuple[int, ...]] = [()]
    for node in range(1, tree.token.shape[1]):
        above = int(tree.parent[slot, node])
        assert above < node
        path.append((*path[above], int(tree.token[slot, node])))
        if tree.score[slot, node] > ABSENT:
            found[path[node]] = max(float(tree.score[slot, node]), found.get(path[node], ABSENT))
    return found


def test_the_forced_chain_joins_the_tree_and_repeats_nothing() -> None:
    tree = Candidates(
        torch.tensor([[9, 5, 6, 7], [8, 1, 2, 3], [4, 1, 1, 1], [0, 0, 0, 0]]),
        torch.tensor([[0, 0, 1, 0], [0, 0, 1, 2], [0, 0, 1, 2], [0, 0, 0, 0]]),
        torch.tensor([[1, 0.5, 0.25, 0.3], [1, 0.9, 0.8, 0.7], [1, 0.5, 0.4, 0.3], [ABSENT] * 4]),
    )
    forced = torch.tensor([[5, 7, -1], [-1, -1, -1], [2, 3, 4], [1, 2, 3]])
    joined = with_forced(tree, forced)
    assert joined.token.shape == joined.parent.shape == joined.score.shape == (4, 7)
    assert joined.token[:, 0].tolist() == [9, 8, 4, 0]
    # 5 is in both: the tree's 6 hangs below the chain's 5
    approx = {path: round(score, 4) for path, score in paths(joined, 0).items()}
    assert approx == {(5,): 1.0, (5, 7): 1.0, (5, 6): 0.25, (7,): 0.3}
    assert paths(joined, 1) == paths(tree, 1)
    assert set(paths(joined, 2)) == {(2,), (2, 3), (2, 3, 4), (1,), (1, 1), (1, 1, 1)}
    # nothing is drafted where nobody decodes
    assert paths(joined, 3) == {}
    assert joined.score[3, 0] == ABSENT
