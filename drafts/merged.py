"""Two drafters fill one tree: what either proposes stands in it once, and the best of both get the rows."""

from __future__ import annotations

from torch import Tensor

from redraft.drafts.base import Bounds, Candidates, Context, Drafter, DraftState, Passed
from redraft.kernels.merge_trees import merge_trees
from redraft.kernels.pack_tree import MAX_NODES


class MergedDrafter:
    """A trained drafter and one that reads only tokens; both scores must estimate acceptance for the best to win."""

    def __init__(self, first: Drafter, second: Drafter) -> None:
        """``first`` may keep a context, ``second`` may not."""
        self.first, self.second = first, second
        self.max_nodes = first.max_nodes + second.max_nodes
        if second.context.taps or self.max_nodes >= MAX_NODES:
            raise ValueError(f"{first.name} and {second.name} cannot be merged into {self.max_nodes} nodes")
        self.name = f"{first.name}+{second.name}"
        self.version = f"{first.version}+{second.version}"

    @property
    def context(self) -> Context:
        return self.first.context

    def absorb(self, passed: Passed, kv: Tensor) -> None:
        """Only the first has a context."""
        self.first.absorb(passed, kv)

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """The union of both trees."""
        one, two = self.first.propose(state, bounds), self.second.propose(state, bounds)
        return Candidates(*merge_trees((one.token, one.parent, one.score), (two.token, two.parent, two.score)))
