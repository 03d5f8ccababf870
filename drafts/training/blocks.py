"""From texts and their states to packed blocks: anchors, labels, and which teacher row predicts each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from redraft.drafts.dflash_config import DFlashConfig
from redraft.drafts.training.data import Text
from redraft.drafts.training.loss import IGNORE
from redraft.drafts.training.teacher import States, Teacher


class Vocabulary:
    """The draft's tokens as rows of a head, and back."""

    def __init__(self, teacher: Teacher, kept: Sequence[int] | None) -> None:
        """``kept``: the draft's token ids, ascending; None keeps all."""
        device, size = teacher.head.device, teacher.head.shape[0]
        self.ids = torch.arange(size, device=device) if kept is None else torch.tensor(kept, device=device)
        """[V'] target id of every row."""
        self.head = teacher.head if kept is None else teacher.head[self.ids].contiguous()
        """[V', H]"""
        self.row = torch.full((size,), IGNORE, device=device).index_put(
            (self.ids,), torch.arange(len(self.ids)).to(device)
        )
        """[V] row of every target id, ``IGNORE`` where the draft lacks it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks of b texts padded to S positions and A anchors."""

    taps: Tensor
    """[b, S, n * H]"""
    anchor: Tensor
    """[b, A] int64; 0 for padding."""
    block: Tensor
    """[b, A, B, H]"""
    label: Tensor
    """[b, A, B - 1] int64 rows of the draft's head, ``IGNORE`` where there is none."""
    final: Tensor
    """[P, H] the target's states at the positions that predict labels."""
    teacher_row: Tensor
    """[b, A, B - 1] int64, the row of ``final`` that predicts the label."""

    @property
    def labels(self) -> Tensor:
        """How many labels there are."""
        return (self.label != IGNORE).sum()


def draw_anchors(text: Text, most: int, generator: torch.Generator) -> list[int]:
    """Up to ``most`` of a text's anchors, at random, ascending (DFlash's released training)."""
    anchors = text.anchors
    if len(anchors) <= most:
        return list(anchors)
    drawn = torch.randperm(len(anchors), generator=generator)[:most].sort().values
    return [anchors[i] for i in drawn.tolist()]


def make_batch(
    config: DFlashConfig,
    teacher: Teacher,
    vocabulary: Vocabulary,
    texts: Sequence[Text],
    states: Sequence[States],
    anchors: Sequence[Sequence[int]],
) -> Batch:
    """Pack the blocks at ``anchors`` of ``texts``."""
    device = teacher.embedding.device
    length = max(len(text.tokens) for text in texts)
    width = max(len(drawn) for drawn in anchors)
    tokens = padded_ids([text.tokens for text in texts], length).to(device)
    sizes = torch.tensor([len(text.tokens) for text in texts]).to(device)
    anchor = padded_ids(anchors, width).to(device)
    real = torch.arange(width, device=device) < torch.tensor([len(drawn) for drawn in anchors]).to(device).unsqueeze(1)
    place = anchor.unsqueeze(-1) + torch.arange(1, config.block_size, device=device)
    has = real.unsqueeze(-1) & (place < sizes[:, None, None])
    place = place.clamp_max(length - 1)
    token = tokens.gather(1, place.flatten(1)).view_as(place)
    block = teacher.embedding[config.mask_token_id].expand(*anchor.shape, config.block_size, -1).clone()
    block[:, :, 0] = teacher.embedding[tokens.gather(1, anchor)]
    start = min(text.prompt for text in texts) - 1  # nothing before predicts a label
    first = torch.arange(len(texts), device=device)[:, None, None] * (length - start) - start
    return Batch(
        taps=pad_sequence([s.taps for s in states], batch_first=True),
        anchor=anchor,
        block=block,
        label=torch.where(has, vocabulary.row[token], IGNORE),
        final=pad_sequence([s.final[start:] for s in states], batch_first=True).flatten(0, 1),
        teacher_row=(first + place - 1).clamp_min(0),
    )


def padded_ids(rows: Sequence[Sequence[int]], size: int) -> Tensor:
    """[b, size] int64 on the CPU, 0 behind the ends: one copy to a device, not one a row."""
    made = torch.zeros(len(rows), size, dtype=torch.int64)
    for number, row in enumerate(rows):
        made[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return made
