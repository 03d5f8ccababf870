"""``divergence`` for a draft with a head of its own, which is trained: gradients go there, too.

What a row weighs is only known when its gradient is asked for, and a gradient towards the head is a sum over rows.  So
the logits are made again on the way back, chunk by chunk, rather than kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from redraft.drafts.training.divergence import Form
from redraft.drafts.training.loss import chunks


class _OwnHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, target_head: Tensor, teacher: Tensor, row: Tensor, form: Form
    ) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(hidden, head, target_head, teacher, row)
        value = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        for part, of, _ in _parts(hidden, head, target_head, teacher, row, form):
            value[part] = of
        return value

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor | None, ...]:
        hidden, head, target_head, teacher, row = ctx.saved_tensors
        like = head.to(hidden.dtype)
        towards_hidden, towards_head = torch.empty_like(hidden), torch.zeros_like(head)
        for part, _, slope in _parts(hidden, head, target_head, teacher, row, ctx.form):
            slope = (slope * outputs[0][part].unsqueeze(1)).to(hidden.dtype)
            torch.matmul(slope, like, out=towards_hidden[part])
            towards_head += slope.T @ hidden[part]
        return towards_hidden, towards_head, None, None, None, None


def _parts(
    hidden: Tensor, head: Tensor, target_head: Tensor, teacher: Tensor, row: Tensor, form: Form
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, their values, and the gradients towards their logits."""
    like = head.to(hidden.dtype)
    for part in chunks(hidden, 2):
        wanted, back = torch.unique(row[part], return_inverse=True)  # rows of neighbouring chains share most of them
        log_p = (teacher[wanted] @ target_head.T).float().log_softmax(-1)[back]
        log_q = (hidden[part] @ like.T).float().log_softmax(-1)
        yield part, *form(log_q, log_p, part)


def own_head_divergence(
    hidden: Tensor, head: Tensor, target_head: Tensor, teacher: Tensor, row: Tensor, form: Form
) -> Tensor:
    """``form`` of every row [N], differentiable towards ``hidden`` and ``head``.

    Args:
        hidden: [N, H] normed states of the draft, in the dtype to work in.
        head: [V', H] the draft's own.
        target_head: [V', H] the target's rows of the same tokens.
        teacher: [P, H] the target's normed states.
        row: [N] int64, which of ``teacher`` predicts the row's token.
        form: what is computed.
    """
    return _OwnHead.apply(hidden, head, target_head, teacher, row, form)  # type: ignore[no-untyped-call, no-any-return]
