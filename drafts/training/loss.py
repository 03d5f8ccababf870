"""Loss of drafted rows against the target: hard labels, forward KL to its distribution, and weights along the block.

The head is the target's, frozen, so the gradient towards a row's state is known as soon as its logits are: both are
computed chunk by chunk, and no [N, V] tensor outlives its chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = {"cpu": 256, "cuda": 8192}
"""Rows whose logits exist at a time."""
IGNORE = -1
"""Label of a row that has none: beyond the text, or outside the draft's vocabulary."""


def chunks(rows: Tensor, kinds: int = 1) -> Iterator[slice]:
    """``rows`` [N, ...] in parts of which ``kinds`` sets of logits fit."""
    size = CHUNK.get(rows.device.type, CHUNK["cpu"]) // kinds
    return (slice(start, start + size) for start in range(0, len(rows), size))


class _HeadLoss(torch.autograd.Function):
    """(hidden [N, H]) -> (loss [N], log-probability of the label [N]), with every row's gradient made on the way.

    With q the draft's distribution and p the target's, the gradient towards a row's state is
    q W - (1 - soft) W[label] - soft p W, and p W [P, H] is the same for all rows that share a position.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, label: Tensor, teacher: Tensor | None, row: Tensor, soft: float
    ) -> tuple[Tensor, Tensor]:
        known, chosen = label != IGNORE, label.clamp_min(0)
        hard = 1.0 - soft if teacher is not None else 1.0
        wanted = head[chosen] * hard
        if teacher is not None:
            mean, entropy = _target(teacher, head)
            mean = mean[row]
            wanted += soft * mean
        log_probability = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        normaliser = torch.empty_like(log_probability)
        gradient = torch.empty_like(hidden)
        for part in chunks(hidden):
            logits, column = (hidden[part] @ head.T).float(), chosen[part].unsqueeze(1)
            log_q = logits.log_softmax(-1)
            log_probability[part] = log_q.gather(1, column).squeeze(1)
            normaliser[part] = logits.gather(1, column).squeeze(1) - log_probability[part]
            torch.matmul(log_q.exp_().to(head.dtype), head, out=gradient[part])
        gradient -= wanted
        gradient *= known.unsqueeze(1)
        loss = -hard * log_probability
        if teacher is not None:
            cross = torch.linalg.vecdot(hidden.float(), mean.float()) - normaliser
            loss -= soft * (cross + entropy[row])
        ctx.save_for_backward(gradient)
        log_probability *= known
        ctx.mark_non_differentiable(log_probability)
        return loss * known, log_probability

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return outputs[0].unsqueeze(1).to(gradient.dtype) * gradient, None, None, None, None, None


def _target(teacher: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """The target's mean row of ``head`` [P, H] and its entropy [P], for states ``teacher`` [P, H]."""
    mean = torch.empty_like(teacher)
    entropy = torch.empty(teacher.shape[0], dtype=torch.float32, device=teacher.device)
    for part in chunks(teacher):
        log_p = (teacher[part] @ head.T).float().log_softmax(-1)
        p = log_p.exp()
        entropy[part] = -torch.linalg.vecdot(p, log_p)
        torch.matmul(p.to(head.dtype), head, out=mean[part])
    return mean, entropy


def head_loss(
    hidden: Tensor, head: Tensor, label: Tensor, teacher: Tensor | None, row: Tensor, soft: float
) -> tuple[Tensor, Tensor]:
    """Loss of every row: (1 - soft) cross entropy with the label + soft KL(target || draft).

    Args:
        hidden: [N, H] normed states of the draft.
        head: [V', H] the target's head, or the rows of it that make the draft's vocabulary: both distributions are
            normalised over these.
        label: [N] int64 rows of ``head``, or ``IGNORE``.
        teacher: [P, H] the target's normed states, or None for hard labels alone.
        row: [N] int64, which of ``teacher`` predicts the row's token.
        soft: share of the KL, 0 to 1.

    Returns:
        The loss [N], differentiable towards ``hidden``, and the label's log-probability under the draft [N], detached;
        both 0 where there is no label.
    """
    return _HeadLoss.apply(hidden, head, label, teacher, row, soft)  # type: ignore[no-untyped-call, no-any-return]


def decay_weights(log_probability: Tensor, gamma: float) -> Tensor:
    """exp(-(k - 1) / gamma) for the k-th token of every block [..., B - 1] (DFlash)."""
    k = torch.arange(log_probability.shape[-1], device=log_probability.device)
    return torch.exp(-k / gamma).expand_as(log_probability)


def dpace_weights(log_probability: Tensor, known: Tensor, alpha: float) -> Tensor:
    """D-PACE (arXiv 2605.18810): the smoothed gradient of the expected acceptance length.

    With q_i the probability of the i-th label, smoothed to (1 - alpha) q_i + alpha, position j weighs the sum over
    m >= j of the product over i <= m.  ``log_probability`` and ``known`` are [..., B - 1]; a token without a label ends
    its block.
    """
    smoothed = ((1 - alpha) * log_probability.exp() + alpha) * known
    return smoothed.cumprod(-1).flip(-1).cumsum(-1).flip(-1)
