"""The rounds that decoding with the current draft would have, without decoding.

Verified text does not depend on the draft.  So the draft proposes at every anchor of a text at once, in packed passes,
and walking anchor → anchor + accepted + 1 gives exactly the rounds that a server would have had (Draft-OPD, arXiv
2605.29343, §rollout, whose serving engine decodes them again after every update).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.marginals import BRANCH, Noise, marginals
from redraft.drafts.training.blocks import Vocabulary, make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.module import DFlashModule
from redraft.drafts.training.teacher import States, Teacher
from redraft.kernels.block_tree import block_tree

ANCHORS = 128
"""Blocks in one pass."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """What a draft proposes at A anchors of one text, and what the text says to it."""

    anchor: Tensor
    """[A] int64 positions."""
    drafted: Tensor
    """[A, B - 1] int64 target ids, the likeliest of every row."""
    accepted: Tensor
    """[A] int64, how many tokens behind the anchor verification would accept."""
    left: Tensor
    """[A] int64, how many tokens the text has behind the anchor."""

    def at(self, chosen: Sequence[int]) -> Rounds:
        """Those with these numbers."""
        index = torch.tensor(chosen, dtype=torch.int64, device=self.anchor.device)
        return Rounds(self.anchor[index], self.drafted[index], self.accepted[index], self.left[index])


@torch.no_grad()
def propose(
    module: DFlashModule,
    teacher: Teacher,
    vocabulary: Vocabulary,
    rope: tuple[Tensor, Tensor],
    text: Text,
    states: States,
    nodes: int = 0,
) -> Rounds:
    """Draft at all anchors of ``text``.

    ``nodes``: size of the tree that decides what is accepted; 0 for the chain of ``drafted``.  At a temperature above
    0 the draft leans towards the noise of the text's seed, as in serving, where the text has one.
    """
    config, device = module.config, teacher.embedding.device
    tokens = torch.tensor(text.tokens, device=device)
    found = []
    for start in range(0, len(text.anchors), ANCHORS):
        anchors = text.anchors[start : start + ANCHORS]
        batch = make_batch(config, teacher, vocabulary, [text], [states], [anchors])
        hidden = module(batch.taps, batch.anchor, batch.block, rope)[0]
        logits = hidden.to(vocabulary.head.dtype) @ vocabulary.head.T
        anchor = batch.anchor[0]
        place = anchor.unsqueeze(1) + torch.arange(1, config.block_size, device=device)
        wanted = torch.where(place < len(tokens), tokens[place.clamp_max(len(tokens) - 1)], -1)
        token, log_probability = marginals(
            logits, _scale(config, device), BRANCH if nodes else 1, vocabulary.ids, _noise(text, anchor)
        )
        if nodes:
            accepted = _down_the_tree(wanted, *block_tree(tokens[anchor], token, log_probability, nodes))
        else:
            accepted = (token[..., 0] == wanted).long().cumprod(-1).sum(-1)
        found.append(Rounds(anchor, token[..., 0], accepted, len(tokens) - 1 - anchor))
    return Rounds(*(torch.cat([getattr(part, name) for part in found]) for name in Rounds.__slots__))


def walk(accepted: Sequence[int]) -> list[int]:
    """The anchors that decoding would have had, as numbers of a text's anchors; ``accepted`` is of all of them."""
    visited, place = [], 0
    while place < len(accepted):
        visited.append(place)
        place += accepted[place] + 1
    return visited


def _scale(config: DFlashConfig, device: torch.device) -> Tensor:
    return torch.tensor(config.tree_temperatures or (1.0,) * config.drafted, device=device)


def _noise(text: Text, anchor: Tensor) -> Noise | None:
    if text.temperature == 0 or text.seed is None:
        return None
    seed = text.seed - (1 << 64) if text.seed >= 1 << 63 else text.seed  # the same bits in an int64
    return Noise(
        torch.full_like(anchor, seed),
        anchor + 1,
        torch.full(anchor.shape, text.temperature, device=anchor.device),
    )


def _down_the_tree(wanted: Tensor, token: Tensor, parent: Tensor, score: Tensor) -> Tensor:
    """How many of ``wanted`` [A, D] a tree [A, W] holds from its root down."""
    node, accepted = torch.zeros_like(wanted[:, :1]), torch.zeros_like(wanted[:, 0])
    alive = torch.ones_like(node, dtype=torch.bool)
    number = torch.arange(token.shape[1], device=token.device)
    for depth in range(wanted.shape[1]):
        child = (parent == node) & (token == wanted[:, depth : depth + 1]) & (score > 0) & (number > 0) & alive
        alive = child.any(-1, keepdim=True)
        node = child.int().argmax(-1, keepdim=True)
        accepted += alive.squeeze(1)
    return accepted
