"""The tree that a round verified, for requests that ask to see it.  Torch-free."""

from __future__ import annotations

from redraft.server.engine.acceptance import Proposal
from redraft.server.engine.types import TreeNode


def verified_nodes(proposal: Proposal, accepted: int) -> tuple[TreeNode, ...]:
    """The nodes of ``proposal`` that had rows, parents first; ``accepted`` of them are on the committed path.

    Rows go to the best scores, a node counting no more than its parent, ties to the lower number: kernels/pack_tree.py.
    """
    # -inf and nan: no node
    score = [float("inf"), *(own if own == own else float("-inf") for own in proposal.score[1:])]
    for node in range(1, len(score)):
        score[node] = min(score[node], score[proposal.parent[node]])
    present = (node for node in range(1, len(score)) if score[node] > float("-inf"))
    rows = sorted(sorted(present, key=lambda node: (-score[node], node))[: proposal.verified])
    place = {node: index for index, node in enumerate(rows)}
    path = _path(proposal, rows, accepted)
    return tuple(
        TreeNode(
            token=proposal.token[node],
            parent=place.get(proposal.parent[node], -1),
            score=min(max(score[node], 0.0), 1.0),
            accepted=node in path,
        )
        for node in rows
    )


def _path(proposal: Proposal, rows: list[int], accepted: int) -> set[int]:
    """The accepted nodes; of siblings that carry the same token the first (kernels/accept.py).

    The device may have rounded scores of several requests to ties that these are not; where a node is missing for that,
    the path ends: it is only for show.
    """
    path: set[int] = set()
    here = 0
    for token in proposal.committed[:accepted]:
        fitting = (node for node in rows if proposal.parent[node] == here and proposal.token[node] == token)
        found = next(fitting, None)
        if found is None:
            break
        here = found
        path.add(here)
    return path
