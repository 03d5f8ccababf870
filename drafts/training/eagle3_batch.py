"""From texts and their states to packed chains: where they start, what they are fed, and what the text says to them.

A chain drafted from anchor a starts with pair a - 1: the feature of the token before the anchor beside the anchor
itself.  Position 0 has no token before it, so there is no chain from an anchor there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from redraft.drafts.training.blocks import padded_ids
from redraft.drafts.training.data import Text
from redraft.drafts.training.teacher import States, Teacher


@dataclass(frozen=True, slots=True)
class Batch:
    """Chains of b texts padded to J pairs and A anchors; D passes each."""

    taps: Tensor
    """[b, J, n * H]"""
    embedded: Tensor
    """[b, J, H]"""
    anchor: Tensor
    """[b, A] int64; 0 for padding."""
    start: Tensor
    """[b, A] int64 pairs; 0 for padding and for an anchor that has none."""
    fed: Tensor
    """[b, A, D] int64, the text's tokens from the anchor on; any beyond the text."""
    wanted: Tensor
    """[b, A, D] int64, the text's tokens behind the anchor; -1 beyond the text and where there is no chain."""


def make_batch(
    depth: int, teacher: Teacher, texts: Sequence[Text], states: Sequence[States], anchors: Sequence[Sequence[int]]
) -> Batch:
    """Pack the chains of ``depth`` passes from ``anchors`` of ``texts``."""
    device = teacher.embedding.device
    length, width = max(len(text.tokens) for text in texts), max(len(some) for some in anchors)
    tokens = padded_ids([text.tokens for text in texts], length).to(device)
    sizes = torch.tensor([len(text.tokens) for text in texts]).to(device)
    anchor = padded_ids(anchors, width).to(device)
    real = anchor > 0  # padding is 0, too
    place = anchor.unsqueeze(-1) + torch.arange(depth + 1, device=device)
    token = tokens.gather(1, place.clamp_max(length - 1).flatten(1)).view_as(place)
    has = real.unsqueeze(-1) & (place[..., 1:] < sizes[:, None, None])
    return Batch(
        taps=pad_sequence(
            [found.taps[:-1] for found in states], batch_first=True
        ),  # the last token's pair is not whole
        embedded=teacher.embedding[tokens[:, 1:]],
        anchor=anchor,
        start=(anchor - 1).clamp_min(0),
        fed=token[..., :-1],
        wanted=torch.where(has, token[..., 1:], -1),
    )


def answers(texts: Sequence[Text], states: Sequence[States]) -> Tensor:
    """[b, A, H] the target's states at all anchors of ``texts``: each predicts the token behind its anchor."""
    found = [state.final[text.anchors.start : text.anchors.stop] for text, state in zip(texts, states, strict=True)]
    return pad_sequence(found, batch_first=True)
