"""Training of a selector behind a finished DFlash draft: ``redraft train selector``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.training.blocks import Batch, draw_anchors, make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.dflash_run import DFlashRun
from redraft.drafts.training.flops import Flops, draft_pass, head_rows
from redraft.drafts.training.loss import IGNORE, chunks
from redraft.drafts.training.run import Made
from redraft.drafts.training.selector_module import CandidateSelector
from redraft.drafts.training.selector_settings import SelectorSettings


@dataclass
class SelectorRun(DFlashRun):
    """Every row behind the first, towards the text: which of its likeliest tokens follows the text's one before."""

    settings: SelectorSettings
    method = "dflash-selector"

    def __post_init__(self) -> None:
        """Leave the draft as it is but for its selector."""
        self.module.requires_grad_(False)
        self.selector.requires_grad_(True)
        super().__post_init__()

    @property
    def selector(self) -> CandidateSelector:
        """What is trained."""
        assert self.module.candidate_selector is not None, "the draft was given one"
        return self.module.candidate_selector

    def teach(self, texts: Sequence[Text], generator: torch.Generator) -> Made:
        """The loss is the weighted mean per row that could be taught."""
        settings = self.settings
        anchors = [draw_anchors(text, settings.anchors, generator) for text in texts]
        # the first row behind an anchor teaches nothing
        left = (len(text.tokens) - 2 - a for text, drawn in zip(texts, anchors, strict=True) for a in drawn)
        total = sum(max(min(self.config.drafted - 1, rows), 0) for rows in left)
        # one for each text, so that it does not matter who teaches it and beside which
        drawn = torch.randint(2**31, (len(texts),), generator=generator).tolist()
        loss = torch.zeros((), device=self.teacher.embedding.device)
        found = torch.zeros(2, device=loss.device)
        spent = Flops()
        share = self.together.share
        texts, anchors, seeds = share(texts), list(share(anchors)), share(drawn)
        for start in range(0, len(texts), settings.micro_batch):
            part = slice(start, start + settings.micro_batch)
            states, read = zip(*(self.states(text) for text in texts[part]), strict=True)
            batch = make_batch(self.config, self.teacher, self.vocabulary, texts[part], states, anchors[part])
            made, hits = self._loss(batch, self._kept(seeds[part], batch))
            (made / max(total, 1)).backward()  # type: ignore[no-untyped-call]
            loss += made.detach() / max(total, 1)
            found += hits
            spent = sum((*read, self._spent(batch)), spent)
        self.together.sum_([loss, found])
        return Made(loss, total, spent, {"candidates": (found[0] / found[1].clamp_min(1)).item()})

    def _kept(self, seeds: Sequence[int], batch: Batch) -> Tensor:
        """[N, D - 1, r] what dropout leaves of the predecessors' numbers, drawn by text."""
        drop, shape = self.settings.dropout, (batch.anchor.shape[1], self.config.drafted - 1, self.settings.rank)
        drawn = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return ((torch.cat(drawn) >= drop) / (1 - drop)).to(batch.anchor.device)

    def _loss(self, batch: Batch, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss, and of how many rows the label is among the candidates, and of how many there are."""
        value, column, probability = self._believed(batch)
        label = batch.label.flatten(0, 1)
        known = label != IGNORE
        reached = functional.pad((probability * known).cumprod(-1), (1, -1), value=1.0)
        weight = self.settings.alpha + (1 - self.settings.alpha) * reached
        hit = column[:, 1:] == label[:, 1:, None]
        taught = hit.any(-1) & known[:, :-1]
        logits = value[:, 1:] + self.selector(label[:, :-1].clamp_min(0), column[:, 1:], kept)
        lost = logits.logsumexp(-1) - (logits * hit).sum(-1)
        rows = known[:, 1:] & known[:, :-1]
        return (lost * weight[:, 1:] * taught).sum(), torch.stack((taught.sum(), rows.sum())).float()

    @torch.no_grad()
    def _believed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and rows of the head [N, D, K] of what is likeliest to the draft, its labels' probability [N, D]."""
        with self.mixed():
            hidden = self.module(batch.taps, batch.anchor, batch.block, self.rope)
        head, label = self.vocabulary.head, batch.label.flatten().clamp_min(0)
        rows = hidden.to(head.dtype).flatten(0, 2)
        kept = min(self.settings.candidates, len(head))
        made: list[tuple[Tensor, ...]] = []
        for part in chunks(rows):
            logits = (rows[part] @ head.T).float()
            wanted = logits.gather(1, label[part].unsqueeze(1)).squeeze(1)
            made.append((*logits.topk(kept, -1), (wanted - logits.logsumexp(-1)).exp()))
        value, column, probability = (torch.cat(tensors) for tensors in zip(*made, strict=True))
        shape = (-1, self.config.drafted, kept)
        return value.view(shape), column.view(shape), probability.view(shape[:2])

    def rows(self, text: Text, anchors: range) -> tuple[Tensor, Tensor]:
        """Each behind the text's token, over the whole vocabulary."""
        logits, label = super().rows(text, anchors)
        tables = self.selector
        before = tables.predecessor_codebook(label[:, :-1].clamp_min(0)) * (label[:, :-1] != IGNORE).unsqueeze(-1)
        logits[:, 1:] += before @ tables.successor_codebook.weight.T
        return logits, label

    def _spent(self, batch: Batch) -> Flops:
        """Of a pass, without the target's; the tables' own are under 1 %."""
        texts, anchors, positions = *batch.anchor.shape, batch.taps.shape[1]
        return Flops(
            draft=texts * draft_pass(self.config, positions, anchors), head=head_rows(self.config, batch.label.numel())
        )
