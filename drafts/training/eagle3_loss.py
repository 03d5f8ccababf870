"""Loss of unrolled chains against the target's distribution, with gradients towards the states and the draft's head.

The weight of every row is known beforehand, so value and gradients are made chunk by chunk in one go, and no [N, V]
tensor outlives its chunk.  Rows are sorted by the position whose token they predict: its D rows share the target's
distribution, which is made once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.training.blocks import Vocabulary
from redraft.drafts.training.loss import IGNORE

ENTRIES = {"cpu": 1 << 22, "cuda": 1 << 28}
"""Logits that exist at a time."""


def by_position(rows: Tensor) -> Tensor:
    """Rows [b, A, D, ...] of pass i of chain n -> [b, A, D, ...] of pass i that predict the token behind anchor m.

    That is the pass i of chain m - i; 0 where no chain began so far ahead.
    """
    width, rest = rows.shape[1], (0, 0) * (rows.dim() - 3)
    moved = [
        functional.pad(one[:, : max(width - back, 0)], (*rest, min(back, width), 0))
        for back, one in enumerate(rows.unbind(2))
    ]
    return torch.stack(moved, 2)


class _ChainLoss(torch.autograd.Function):
    """(hidden [P, D, H], head [V', H]) -> (loss [], tally [2, D]); gradients are made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        weight: Tensor,
        label: Tensor,
        final: Tensor,
        target_head: Tensor,
        vocabulary: Vocabulary,
        soft: float,
    ) -> tuple[Tensor, Tensor]:
        depth, size, whole = hidden.shape[1], len(head), len(target_head)
        like = head.to(hidden.dtype)
        towards_hidden, towards_head = torch.empty_like(hidden), torch.zeros_like(head)
        loss = torch.zeros((), device=hidden.device)
        tally = torch.zeros(2, depth, device=hidden.device)
        chunk = max(1, ENTRIES.get(hidden.device.type, ENTRIES["cpu"]) // (depth * size + whole))
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            rows = hidden[part].flatten(0, 1)
            p = (final[part] @ target_head.T).float()
            best = p.argmax(-1)
            if size < whole:
                p = p[:, vocabulary.ids]
            w = weight[part] * (vocabulary.row[best] != IGNORE).unsqueeze(1)
            p, share = _mixed(p.softmax(-1), label[part], soft)
            log_q = (rows @ like.T).float().log_softmax(-1).view(-1, depth, size)
            right = log_q.argmax(-1) == vocabulary.row[best].unsqueeze(1)
            tally += torch.stack((right & (w > 0), w > 0)).sum(1)
            loss -= (w * torch.linalg.vecdot(log_q, p.unsqueeze(1))).sum()
            # in place: on a GPU these rows cost their traffic, not their arithmetic
            slope = log_q.exp_().mul_((w * share).unsqueeze(-1)).addcmul_(w.unsqueeze(-1), p.unsqueeze(1), value=-1)
            slope = slope.flatten(0, 1).to(like.dtype)
            towards_hidden[part] = (slope @ like).view(-1, depth, like.shape[1])
            towards_head += slope.T @ rows
        ctx.save_for_backward(towards_hidden, towards_head)
        ctx.mark_non_differentiable(tally)
        return loss, tally

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        hidden, head = ctx.saved_tensors
        return outputs[0].to(hidden.dtype) * hidden, outputs[0] * head, None, None, None, None, None, None


def _mixed(p: Tensor, label: Tensor, soft: float) -> tuple[Tensor, Tensor]:
    """``soft`` p + (1 - ``soft``) label, [c, V'], and what it sums to, [c, 1]: a label may be missing."""
    known = (label != IGNORE).to(p.dtype).unsqueeze(1)
    if soft < 1:
        p = (p * soft).scatter_add_(1, label.clamp_min(0).unsqueeze(1), (1 - soft) * known)
    return p, soft + (1 - soft) * known


def chain_loss(
    hidden: Tensor,
    head: Tensor,
    weight: Tensor,
    label: Tensor,
    final: Tensor,
    target_head: Tensor,
    vocabulary: Vocabulary,
    soft: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of cross entropies with the target's distribution over the draft's vocabulary.

    Rows of a position whose likeliest token the draft lacks do not count (EAGLE-3's published training).

    Args:
        hidden: [P, D, H] normed states of D passes that predict the tokens of P positions, in the dtype to work in.
        head: [V', H] the draft's own.
        weight: [P, D] fp32, 0 for rows that are none.
        label: [P] int64 rows of ``head``, the text's tokens, or ``IGNORE``.
        final: [P, H] the target's normed states that predict the same tokens.
        target_head: [V, H]
        vocabulary: which of the target's tokens the draft has.
        soft: share of the target's distribution, the rest being the text's tokens.

    Returns:
        The loss [], differentiable towards ``hidden`` and ``head``; and, detached, how many rows of every pass have the
        target's likeliest token as theirs, and how many count, [2, D].
    """
    return _ChainLoss.apply(hidden, head, weight, label, final, target_head, vocabulary, soft)  # type: ignore[no-untyped-call, no-any-return]
