"""Temperatures of an EAGLE-3 draft, one per pass of a chain, fitted as calibrate.py does for blocks.

A row matters only where everything drafted before it was right, and then its chain was fed the text's own tokens: so
chains are unrolled along the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.calibrate import ANCHORS, GRID, likelihoods
from redraft.drafts.training.data import Text
from redraft.drafts.training.eagle3_batch import make_batch
from redraft.drafts.training.eagle3_module import Eagle3Module
from redraft.drafts.training.loss import IGNORE
from redraft.drafts.training.teacher import States, Teacher


@torch.no_grad()
def fit_chain_temperatures(
    module: Eagle3Module,
    teacher: Teacher,
    vocabulary: Vocabulary,
    rope: tuple[Tensor, Tensor],
    texts: Sequence[Text],
    states: Callable[[Text], States],
) -> tuple[float, ...]:
    """For each pass the temperature of ``GRID`` under which the true tokens of ``texts`` are likeliest."""
    grid = torch.tensor(GRID, device=teacher.embedding.device)
    total = torch.zeros(module.config.steps, len(GRID), device=grid.device)
    most = ANCHORS.get(grid.device.type, ANCHORS["cpu"])
    for text in texts:
        found = states(text)
        for start in range(0, len(text.anchors), most):
            batch = make_batch(module.config.steps, teacher, [text], [found], [text.anchors[start : start + most]])
            hidden = module(batch.taps, batch.embedded, batch.start, teacher.embedding[batch.fed], rope)[0]
            wanted = batch.wanted[0]
            label = torch.where(wanted >= 0, vocabulary.row[wanted], IGNORE)
            total += likelihoods(module.lm_head(hidden).float(), label, grid)
    return tuple(round(GRID[best], 3) for best in total.argmax(-1).tolist())
