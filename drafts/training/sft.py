"""Supervised training of a DFlash draft on its target's own texts: ``redraft train sft``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.training.blocks import Batch, draw_anchors, make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.dflash_run import DFlashRun
from redraft.drafts.training.flops import Flops, draft_training, head_rows
from redraft.drafts.training.loss import IGNORE, decay_weights, dpace_weights, head_loss
from redraft.drafts.training.run import Made
from redraft.drafts.training.settings import SftSettings


@dataclass
class Sft(DFlashRun):
    """Blocks at random anchors, every row towards the text."""

    settings: SftSettings
    method = "dflash-sft"

    def teach(self, texts: Sequence[Text], generator: torch.Generator) -> Made:
        """The loss is the mean per label, weighted along the block."""
        settings = self.settings
        anchors = [draw_anchors(text, settings.anchors, generator) for text in texts]
        drafted, share = self.config.drafted, self.together.share
        total = sum(min(drafted, len(t.tokens) - 1 - a) for t, drawn in zip(texts, anchors, strict=True) for a in drawn)
        loss = torch.zeros((), device=self.teacher.embedding.device)
        first = torch.zeros(2, device=loss.device)
        spent = Flops()
        texts, anchors = share(texts), list(share(anchors))
        for start in range(0, len(texts), settings.micro_batch):
            part = slice(start, start + settings.micro_batch)
            states, read = zip(*(self.states(text) for text in texts[part]), strict=True)
            batch = make_batch(self.config, self.teacher, self.vocabulary, texts[part], states, anchors[part])
            made, label = self._loss(batch)
            (made / total).backward()  # type: ignore[no-untyped-call]
            loss += made.detach() / total
            first += label
            spent = sum((*read, self._spent(batch)), spent)
        self.together.sum_([loss, first])
        return Made(loss, total, spent, {"first": (first[0] / first[1].clamp_min(1)).item()})

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss, and the sum of log-probabilities and the count of first labels."""
        settings = self.settings
        with self.mixed():
            hidden = self.module(batch.taps, batch.anchor, batch.block, self.rope)
        hidden = hidden.to(self.vocabulary.head.dtype).flatten(0, 2)
        teacher = batch.final if settings.soft > 0 else None
        label, row = batch.label.flatten(), batch.teacher_row.flatten()
        loss, seen = head_loss(hidden, self.vocabulary.head, label, teacher, row, settings.soft)
        known, seen = (batch.label != IGNORE).float(), seen.view_as(batch.label)
        if settings.weights == "dpace":
            weight = dpace_weights(seen, known, settings.alpha)
        elif settings.weights == "decay":
            weight = decay_weights(seen, settings.gamma)
        else:
            weight = torch.ones_like(seen)
        first = torch.stack((seen[..., 0].sum(), known[..., 0].sum()))
        return (loss.view_as(seen) * weight * known).sum(), first

    def _spent(self, batch: Batch) -> Flops:
        """Of a pass, without the target's."""
        texts, anchors, positions = *batch.anchor.shape, batch.taps.shape[1]
        head = head_rows(self.config, batch.label.numel(), 2)
        if self.settings.soft > 0:
            head += head_rows(self.config, len(batch.final), 2)
        return Flops(draft=texts * draft_training(self.config, positions, anchors), head=head)
