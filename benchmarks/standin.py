"""Drafts whose trees are made up beforehand, where no trained draft is or acceptance is to be simulated.

What a round costs does not follow from which tokens are right, but for the commit of what is accepted.  So the trees
are written ahead of the round, outside of the time that is measured, with tokens of the target's own choice where a
node is to be accepted.  Nothing stands in for a draft's own work: where that is to be measured, a draft of the
published shape with random weights does all of it, and its trees are thrown away (``Given.of``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.drafts.base import NO_CONTEXT, Bounds, Candidates, Context, Drafter, DraftState, Passed

LIKELY, LEAST = 0.9, 1e-6
"""Scores of a spine's nodes are powers of the first; the second is of nodes that are to rank behind all of them."""


class Given:
    """Proposes the tree that it was given; without a draft to run beside that, at no cost: not a launch, not a byte."""

    version = "1"

    def __init__(self, tree: Candidates, of: Drafter | None = None) -> None:
        """``of``: the draft whose work is done in every round, and whose context is kept."""
        self.tree, self.of = tree, of
        self.max_nodes = tree.token.shape[1] - 1
        self.name = "given" if of is None else f"given of {of.name}"

    @property
    def context(self) -> Context:
        return NO_CONTEXT if self.of is None else self.of.context

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """The tree, whatever the text."""
        if self.of is not None:
            self.of.propose(state, bounds)
        return self.tree

    def absorb(self, passed: Passed, kv: Tensor) -> None:
        """As the draft does."""
        if self.of is not None:
            self.of.absorb(passed, kv)


class MadeTrees:
    """A tree for each of S slots, none for the trash slot: ``nodes`` drafted nodes, the ``kept`` first being the best.

    The best are a path, the *spine*, of two in three, and siblings of its nodes, most of the first ones, which stand
    before them: so keys and values of what is accepted lie where they have to be moved from.  The other nodes hang off
    the root.
    """

    def __init__(
        self, slots: int, nodes: int, kept: int, anchor: int, device: torch.device, deepest: int | None = None
    ) -> None:
        """``anchor``: the roots' token; ``deepest``: bound of the spine, as a draft has one."""
        self.spine = min(kept - kept // 3, kept if deepest is None else deepest)
        siblings = kept - self.spine
        parent, depth, score, self.on_spine = [0], [0], [1.0], [False]

        def add(above: int, at: int, likely: float, *, on_spine: bool = False) -> None:
            parent.append(above)
            depth.append(at)
            score.append(likely)
            self.on_spine.append(on_spine)

        newest = 0
        for at in range(1, self.spine + 1):
            # as good and earlier, so siblings stand before the spine's node however the tree is packed
            for _ in range(siblings // self.spine + (at <= siblings % self.spine)):
                add(newest, at, LIKELY**at)
            add(newest, at, LIKELY**at, on_spine=True)
            newest = len(parent) - 1
        for _ in range(nodes - kept):
            add(0, 1, LEAST)
        self.depth = torch.tensor(depth, device=device)
        parents = torch.tensor([parent] * (slots + 1), device=device)
        scores = torch.tensor([score] * slots + [[float("-inf")] * len(score)], device=device)
        self.tree = Candidates(torch.full_like(parents, anchor), parents, scores)
        """Its tokens wait for ``write``."""

    def write(self, texts: Tensor, right: Tensor, vocab: int) -> None:
        """Make the first ``right`` [S] nodes of every slot's spine true and all other nodes wrong.

        ``texts`` [S, K] int64 is what the target says behind the anchor, K at least ``spine``.
        """
        true = texts[:, (self.depth - 1).clamp(min=0)]
        is_right = torch.tensor(self.on_spine, device=texts.device) & (self.depth <= right.unsqueeze(1))
        # every node off by another number, so that no two siblings are alike
        off = 1 + torch.arange(len(self.depth), device=texts.device) % (vocab - 1)
        self.tree.token[:-1, 1:] = torch.where(is_right, true, (true + off) % vocab)[:, 1:]


def simulated(rate: float, spine: int, steps: int, slots: int, seed: int = 0) -> Tensor:
    """[steps, S] nodes that are right, each with probability ``rate`` if the one before it is; ``spine`` at most."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(steps, slots, spine, generator=generator) < rate
    return right.long().cumprod(-1).sum(-1)
