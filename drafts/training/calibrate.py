"""Temperatures that make a draft's marginals probabilities of acceptance, one per depth, fitted on held-out texts.

Trees are filled by the product of marginals along a path (kernels/block_tree.py), and beside n-gram lookup's scores.  A
token at depth k matters only where everything before it was right, so its likelihood is weighted by the probability
the draft gave to the true tokens before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from redraft.drafts.training.blocks import Vocabulary, make_batch
from redraft.drafts.training.data import Text
from redraft.drafts.training.loss import IGNORE
from redraft.drafts.training.module import DFlashModule
from redraft.drafts.training.teacher import States, Teacher

GRID = tuple(0.5 * 1.07**i for i in range(31))
"""0.5 to 3.8."""
ANCHORS = {"cpu": 32, "cuda": 512}
"""Blocks whose logits exist at a time."""


@torch.no_grad()
def fit_temperatures(
    module: DFlashModule,
    teacher: Teacher,
    vocabulary: Vocabulary,
    rope: tuple[Tensor, Tensor],
    texts: Sequence[Text],
    states: Callable[[Text], States],
) -> tuple[float, ...]:
    """For each depth the temperature of ``GRID`` under which the true tokens of ``texts`` are likeliest."""
    grid = torch.tensor(GRID, device=teacher.embedding.device)
    total = torch.zeros(module.config.drafted, len(GRID), device=grid.device)
    most = ANCHORS.get(grid.device.type, ANCHORS["cpu"])
    for text in texts:
        found = states(text)
        for start in range(0, len(text.anchors), most):
            anchors = text.anchors[start : start + most]
            batch = make_batch(module.config, teacher, vocabulary, [text], [found], [anchors])
            hidden = module(batch.taps, batch.anchor, batch.block, rope)[0]
            total += likelihoods((hidden.to(vocabulary.head.dtype) @ vocabulary.head.T).float(), batch.label[0], grid)
    return tuple(round(GRID[best], 3) for best in total.argmax(-1).tolist())


def likelihoods(logits: Tensor, label: Tensor, grid: Tensor) -> Tensor:
    """Weighted log-likelihood [B - 1, grid] of ``label`` [A, B - 1] under ``logits`` [A, B - 1, V'] / temperature."""
    known = label != IGNORE
    wanted = logits.gather(-1, label.clamp_min(0).unsqueeze(-1))
    plain = (wanted - logits.logsumexp(-1, keepdim=True)).squeeze(-1).exp() * known
    before = torch.cat((torch.ones_like(plain[:, :1]), plain.cumprod(-1)[:, :-1]), -1) * known
    likelihood = torch.stack(
        [(wanted / t - (logits / t).logsumexp(-1, keepdim=True)).squeeze(-1) for t in grid.unbind()], -1
    )
    return (likelihood * before.unsqueeze(-1)).sum(0)
