"""Test instruments: drafters that are right, wrong or odd on purpose.  None of them may change an output token.

They know the true texts, for tests that first decode without a draft.  Not to be chosen with ``--draft``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redraft.drafts.base import Bounds, Candidates, Drafter, DraftState, TokensOnly


def _true_tokens(reference: Tensor, state: DraftState, depth: Tensor) -> Tensor:
    """[S+1, W] the reference's token ``depth`` places after the anchor; past its end, its last token.

    ``reference`` is [S+1, T'] int64: each slot's whole text, prompt included.  ``depth`` is [W] or [S+1, W], int64.
    """
    position = (state.length - 1).unsqueeze(1) + depth
    return reference.gather(1, position.clamp(min=0, max=reference.shape[1] - 1))


def _candidates(state: DraftState, token: Tensor, parent: Tensor, score: Tensor) -> Candidates:
    """Put the anchor at the root, spread [W] parents over the slots and leave inactive slots without nodes."""
    token = torch.cat([state.anchor, token[:, 1:]], 1)
    score = score.float().expand(token.shape).masked_fill(~state.active.unsqueeze(1), float("-inf"))
    return Candidates(token=token, parent=parent.expand(token.shape).contiguous(), score=score)


class ChainDrafter(TokensOnly):
    """Always right, or, with ``offset`` > 0, always wrong: a chain of the true ids plus ``offset``."""

    version = "1"

    def __init__(self, reference: Tensor, vocab_size: int, max_nodes: int, offset: int = 0) -> None:
        """``reference`` is [S+1, T'] int64, each slot's whole text; an ``offset`` below ``vocab_size`` wraps around."""
        self.name = f"chain-{offset}"
        self.max_nodes = max_nodes
        self._reference, self._vocab_size, self._offset = reference, vocab_size, offset

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """A chain of ``max_nodes`` nodes, surer of itself than any honest draft."""
        number = torch.arange(self.max_nodes + 1, device=state.tokens.device)
        token = (_true_tokens(self._reference, state, number) + self._offset) % self._vocab_size
        return _candidates(state, token, (number - 1).clamp_(min=0), torch.ones_like(number))


class TwinSiblingDrafter(TokensOnly):
    """Every node of a right chain comes with a sibling of the same token, and every other pair hangs off that sibling.

    A walk that takes one sibling must go on below that one; the lowest-numbered match is the one to take.
    """

    name = "twin-siblings"
    version = "1"

    def __init__(self, reference: Tensor, max_nodes: int) -> None:
        """``reference`` is [S+1, T'] int64, each slot's whole text."""
        self.max_nodes = max_nodes
        self._reference = reference

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """Nodes 2d - 1 and 2d are the pair at depth d; the pair below an odd d hangs off the first, else the second."""
        number = torch.arange(self.max_nodes + 1, device=state.tokens.device)
        depth = (number + 1) // 2
        above = depth - 1
        parent = torch.where(above % 2 == 1, 2 * above - 1, 2 * above).clamp_(min=0)
        score = 0.9 ** depth.double()
        return _candidates(state, _true_tokens(self._reference, state, depth), parent, score)


class RandomTreeDrafter(TokensOnly):
    """Trees of random shape and random scores, with about every third node true to the reference at its depth."""

    name = "random-trees"
    version = "1"

    def __init__(self, reference: Tensor, vocab_size: int, max_nodes: int, seed: int = 0) -> None:
        """``reference`` is [S+1, T'] int64, each slot's whole text; another ``seed`` makes other trees."""
        self.max_nodes = max_nodes
        self._reference, self._vocab_size, self._seed = reference, vocab_size, seed

    def propose(self, state: DraftState, bounds: Bounds) -> Candidates:
        """Random by hashing seed, slot, length and node: the same state gives the same tree, without a generator."""
        slots, device = state.tokens.shape[0], state.tokens.device
        number = torch.arange(self.max_nodes + 1, device=device)
        bits = (state.length * 1_000_003 + torch.arange(slots, device=device) * 8_191 + self._seed).unsqueeze(1)
        bits = (bits * 64 + number) * 0x5851F42D4C957F2D
        bits = ((bits ^ (bits >> 29)) * 0x14057B7EF767814F) >> 20 & 0xFFFFFF
        # a node's parent is one of the nodes before it
        parent = bits % number.clamp(min=1)
        depth, share = torch.zeros_like(bits[:, :1]), torch.ones_like(bits[:, :1], dtype=torch.float64)
        for node in range(1, self.max_nodes + 1):
            above = parent[:, node : node + 1]
            depth = torch.cat([depth, depth.gather(1, above) + 1], 1)
            fraction = (bits[:, node : node + 1] >> 12).double() / 4096
            share = torch.cat([share, share.gather(1, above) * fraction], 1)
        true = _true_tokens(self._reference, state, depth)
        token = torch.where((bits >> 8) % 3 == 0, true, bits % self._vocab_size)
        return _candidates(state, token, parent, share)


def adversaries(
    texts: Sequence[Sequence[int]], slots: int, vocab_size: int, max_nodes: int, device: torch.device | None = None
) -> dict[str, Drafter]:
    """Of every kind one that takes ``texts`` for what the slots will say, over again where there are fewer texts."""
    width = max(map(len, texts))
    rows = [[*texts[slot % len(texts)], *[0] * (width - len(texts[slot % len(texts)]))] for slot in range(slots)]
    reference = torch.tensor([*rows, [0] * width], device=device)
    return {
        "right": ChainDrafter(reference, vocab_size, max_nodes),
        "wrong": ChainDrafter(reference, vocab_size, max_nodes, offset=1),
        "siblings": TwinSiblingDrafter(reference, max_nodes),
        "random": RandomTreeDrafter(reference, vocab_size, max_nodes),
    }
