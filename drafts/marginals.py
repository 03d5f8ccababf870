"""What a block draft believes of every row: its likeliest tokens, leaning towards the noise the target will add."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.kernels.noise import gumbel

BRANCH = 8
"""Tokens kept of every row, of which the tree is made."""
NOISED = 32
"""Of these likeliest tokens of a row the keyed noise is computed at T > 0."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Keys of N blocks' noise (kernels/noise.py)."""

    seed: Tensor
    """[N] int64"""
    first: Tensor
    """[N] int64, index in the text of the token that a block's first row predicts."""
    temperature: Tensor
    """[N] fp32; without noise where it is 0."""


def marginals(
    logits: Tensor,
    scale: Tensor,
    branch: int,
    vocabulary: Tensor | None,
    noise: Noise | None,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``branch`` best tokens of every row and their log-probabilities, best first, [N, D, branch] each.

    The target takes argmax(z + T g) with the keyed noise g.  Leaning the same way, the draft believes in v by
    softmax((z + T g) / c) with c fitted per depth; at T = 0 that is the plain softmax.

    Args:
        logits: [N, D, V' + E].
        scale: [D] fp32, the c of every depth.
        branch: tokens kept.
        vocabulary: [V'] target id of every column; None if they are the same.
        noise: None where all temperatures are 0.
        own: [N, E] target ids of the last columns, which differ from block to block; None if E is 0.
    """
    logits = logits.float() / scale[:, None]
    vocab = logits.shape[-1]
    if noise is None:
        z, column = logits.topk(min(branch, vocab), -1)
        return _ids(column, vocabulary, own), z - logits.logsumexp(-1, keepdim=True)
    z, column = logits.topk(min(max(NOISED, branch), vocab), -1)
    token, drafted = _ids(column, vocabulary, own), logits.shape[1]
    produced = (noise.first.unsqueeze(1) + torch.arange(drafted, device=logits.device)).flatten()
    drawn = gumbel(noise.seed.repeat_interleave(drafted), produced, token.flatten(0, 1)).view_as(z) / scale[:, None]
    hot = noise.temperature[:, None, None]
    belief = torch.where(hot > 0, (z + hot * drawn).log_softmax(-1), z - logits.logsumexp(-1, keepdim=True))
    best, place = belief.topk(min(branch, vocab), -1)
    return token.gather(-1, place), best


def _ids(column: Tensor, vocabulary: Tensor | None, own: Tensor | None) -> Tensor:
    if vocabulary is None:
        return column
    if own is None:
        return vocabulary[column]
    behind = column - len(vocabulary)
    mine = own.gather(1, behind.clamp_min(0).flatten(1)).view_as(column)
    return torch.where(behind < 0, vocabulary[column.clamp_max(len(vocabulary) - 1)], mine)
