"""Temperatures that make a draft's marginals probabilities of acceptance, one per depth, fitted on held-out texts.

Trees are filled by the product of marginals along a path (kernels/block_tree.py), and beside n-gram lookup's scores.  A
token at depth k matters only where everything before it was right, so its likelihood is weighted by the probability
the draft gave to the true tokens before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from redraft.drafts.training.data import Text
from redraft.drafts.training.loss import IGNORE

GRID = tuple(0.5 * 1.07**i for i in range(31))
"""0.5 to 3.8."""
ANCHORS = {"cpu": 32, "cuda": 512}
"""Blocks whose logits exist at a time."""


@torch.no_grad()
def fit_temperatures(
    rows: Callable[[Text, range], tuple[Tensor, Tensor]], texts: Sequence[Text], device: torch.device
) -> tuple[float, ...]:
    """For each depth the temperature of ``GRID`` under which the true tokens of ``texts`` are likeliest.

    ``rows``: of some anchors of a text, the logits [A, D, V'] of what is drafted there along the text, and the labels
    [A, D], ``IGNORE`` where there is none.
    """
    grid = torch.tensor(GRID, device=device)
    most = ANCHORS.get(device.type, ANCHORS["cpu"])
    parts = [
        (text, text.anchors[start : start + most]) for text in texts for start in range(0, len(text.anchors), most)
    ]
    total = sum(likelihoods(*rows(text, anchors), grid) for text, anchors in parts)
    assert isinstance(total, Tensor), "there are texts"
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
