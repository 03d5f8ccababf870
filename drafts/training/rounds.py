"""The rounds that decoding with the current draft would have, without decoding.

Verified text does not depend on the draft.  So the draft proposes at every anchor of a text at once, in packed passes,
and walking anchor → anchor + accepted + 1 gives exactly the rounds that a server would have had (Draft-OPD, arXiv
2605.29343, §rollout, whose serving engine decodes them again after every update).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.marginals import BRANCH, Noise, marginals
from redraft.drafts.selector import chosen, conditional
from redraft.drafts.training.blocks import Batch, Vocabulary, make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.loss import IGNORE
from redraft.drafts.training.module import DFlashModule
from redraft.drafts.training.teacher import States, Teacher
from redraft.kernels.block_tree import block_tree

BLOCKS = {"cpu": 128, "cuda": 8192}
"""In one pass."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """What a draft proposes at A anchors of a text, and what the text says to it; on the CPU, where it is planned."""

    anchor: Tensor
    """[A] int64 positions."""
    drafted: Tensor
    """[A, B - 1] int64 target ids, the likeliest of every row."""
    accepted: Tensor
    """[A] int64, how many tokens behind the anchor verification would accept."""
    wanted: Tensor
    """[A, B - 1] int64, the text's tokens behind the anchor; -1 for those the draft's vocabulary lacks."""
    left: Tensor
    """[A] int64, how many tokens the text has behind the anchor."""

    def at(self, chosen: Sequence[int]) -> Rounds:
        """Those with these numbers."""
        index = torch.tensor(chosen, dtype=torch.int64)
        return Rounds(*(getattr(self, name)[index] for name in Rounds.__slots__))


@torch.no_grad()
def propose(
    module: DFlashModule,
    teacher: Teacher,
    vocabulary: Vocabulary,
    rope: tuple[Tensor, Tensor],
    texts: Sequence[Text],
    states: Sequence[States],
    nodes: int = 0,
) -> list[Rounds]:
    """Draft at all anchors of every text.

    ``nodes``: size of the tree that decides what is accepted; 0 for the chain of ``drafted``.  At a temperature above
    0 the draft leans towards the noise of a text's seed, as in serving, where the text has one.
    """
    found: list[list[Rounds]] = [[] for _ in texts]
    for part in passes(texts, teacher.embedding.device):
        some = [texts[piece.text] for piece in part]
        anchors = [piece.anchors for piece in part]
        batch = make_batch(module.config, teacher, vocabulary, some, [states[piece.text] for piece in part], anchors)
        made = _propose(module, vocabulary, rope, some, batch, nodes)
        for place, piece in enumerate(part):
            anchor, drafted, accepted, wanted = (part[place, : len(piece.anchors)] for part in made)
            left = len(texts[piece.text].tokens) - 1 - anchor
            found[piece.text].append(Rounds(anchor, drafted, accepted, wanted, left))
    return [Rounds(*(torch.cat([getattr(r, name) for r in parts]) for name in Rounds.__slots__)) for parts in found]


def _propose(
    module: DFlashModule,
    vocabulary: Vocabulary,
    rope: tuple[Tensor, Tensor],
    texts: Sequence[Text],
    batch: Batch,
    nodes: int,
) -> tuple[Tensor, ...]:
    """Anchor [b, A], drafted, accepted and wanted of one pass, on the CPU."""
    config, shape = module.config, batch.anchor.shape
    hidden = module(batch.taps, batch.anchor, batch.block, rope).flatten(0, 1)
    logits = hidden.to(vocabulary.head.dtype) @ vocabulary.head.T
    wanted = torch.where(batch.label == IGNORE, -1, vocabulary.ids[batch.label.clamp_min(0)]).flatten(0, 1)
    noise = _noise(texts, batch.anchor)
    selector = module.candidate_selector
    if nodes == 0 and noise is None and selector is None:
        # as ``marginals`` has it, without their probabilities; a CPU's argmax of bf16 takes five times as long as max
        drafted = vocabulary.ids[logits.max(-1).indices]
    else:
        scale = torch.tensor(config.tree_temperatures or (1.0,) * config.drafted, device=logits.device)
        kept = BRANCH if nodes or selector is not None else 1
        token, log_probability = marginals(logits, scale, kept, vocabulary.ids, noise)
        drafted = token[..., 0]
        if selector is not None:
            log_probability = conditional(selector.pairs(vocabulary.row[token]), log_probability, scale)
            drafted = chosen(token, log_probability)[0][..., 0]
    if nodes:
        root = torch.zeros_like(drafted[:, 0])  # whose token is of no interest here
        accepted = down_the_tree(wanted, *block_tree(root, token, log_probability, nodes))
    else:
        accepted = (drafted == wanted).long().cumprod(-1).sum(-1)
    made = (batch.anchor, drafted.view(*shape, -1), accepted.view(shape), wanted.view(*shape, -1))
    return tuple(part.cpu() for part in made)


@dataclass(frozen=True, slots=True)
class Piece:
    """Anchors of a text that go into one pass."""

    text: int
    anchors: range


def passes(texts: Sequence[Text], device: torch.device) -> Iterator[list[Piece]]:
    """All anchors of ``texts``, as many together as make ``BLOCKS`` with their padding."""
    most = BLOCKS.get(device.type, BLOCKS["cpu"])
    part: list[Piece] = []
    width = 0
    for number, text in enumerate(texts):
        for start in range(0, len(text.anchors), most):
            piece = Piece(number, text.anchors[start : start + most])
            width = max(width, len(piece.anchors))
            if part and (len(part) + 1) * width > most:
                yield part
                part, width = [], len(piece.anchors)
            part.append(piece)
    if part:
        yield part


def walk(accepted: Sequence[int]) -> list[int]:
    """The anchors that decoding would have had, as numbers of a text's anchors; ``accepted`` is of all of them."""
    visited, place = [], 0
    while place < len(accepted):
        visited.append(place)
        place += accepted[place] + 1
    return visited


def _noise(texts: Sequence[Text], anchor: Tensor) -> Noise | None:
    """Of blocks at ``anchor`` [b, A], in their order."""
    drawn = [text.temperature > 0 and text.seed is not None for text in texts]
    if not any(drawn):
        return None
    seeds = [_signed(text.seed or 0) if one else 0 for text, one in zip(texts, drawn, strict=True)]
    heat = [text.temperature if one else 0.0 for text, one in zip(texts, drawn, strict=True)]
    device, each = anchor.device, anchor.shape[1]
    return Noise(
        torch.tensor(seeds, device=device).repeat_interleave(each),
        anchor.flatten() + 1,
        torch.tensor(heat, device=device).repeat_interleave(each),
    )


def _signed(seed: int) -> int:
    """The same bits in an int64."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def down_the_tree(wanted: Tensor, token: Tensor, parent: Tensor, score: Tensor) -> Tensor:
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
