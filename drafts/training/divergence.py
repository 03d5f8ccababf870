"""How a draft's rows differ from the target's, over the whole vocabulary, with gradients towards the rows' states.

The head is the target's, frozen, so the gradient towards a row's state is known as soon as its logits are: value and
gradient are made chunk by chunk, and no [N, V] tensor outlives its chunk (as in loss.py).  q is the draft's
distribution and p the target's, both over the draft's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from redraft.drafts.training.loss import chunks


class Form(Protocol):
    """What is computed of a row's two distributions."""

    def __call__(self, log_q: Tensor, log_p: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Value [c] and its gradient towards the draft's logits [c, V'] of the rows ``part``."""


@dataclass(frozen=True, slots=True)
class Kl:
    """forward KL(p || q) + reverse KL(q || p) + hard cross entropy with a label, each times the row's weight [N]."""

    forward: Tensor
    reverse: Tensor
    hard: Tensor
    label: Tensor
    """[N] int64 rows of the head; any where ``hard`` is 0."""

    def __call__(self, log_q: Tensor, log_p: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        forward, reverse, hard = (w[part].unsqueeze(1) for w in (self.forward, self.reverse, self.hard))
        label = self.label[part].unsqueeze(1)
        p, q, ratio = log_p.exp(), log_q.exp(), log_q - log_p
        back = torch.linalg.vecdot(q, ratio).unsqueeze(1)
        towards = (forward + hard) * q - forward * p + reverse * q * (ratio - back)
        towards.scatter_add_(1, label, -hard)
        value = reverse * back - forward * torch.linalg.vecdot(p, ratio).unsqueeze(1) - hard * log_q.gather(1, label)
        return value.squeeze(1), towards


@dataclass(frozen=True, slots=True)
class Overlap:
    """1 - TV(p, q): the probability that a sample of q is accepted for p."""

    def __call__(self, log_q: Tensor, log_p: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        p, q = log_p.exp(), log_q.exp()
        under = (q < p).to(q.dtype)
        return torch.minimum(p, q).sum(-1), q * (under - torch.linalg.vecdot(q, under).unsqueeze(1))


@dataclass(frozen=True, slots=True)
class Scalar:
    """The released code's terms, of one token a row, with its clamps: where one binds, the gradient is 0.

    ``accepted`` weighs the KL of "this token or any other" from p to q, ``rejected`` the k3 estimator of the reverse
    KL, exp(z) - z - 1 with z = log p - log q (draft-opd's losses.py; formulas in docs/draft-opd.md).
    """

    accepted: Tensor
    rejected: Tensor
    text: Tensor
    """[N] int64 rows of the head: the text's tokens."""
    drafted: Tensor
    """[N] int64 likewise: the draft's own."""

    def __call__(self, log_q: Tensor, log_p: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        value, towards = torch.zeros_like(log_q[:, 0]), torch.zeros_like(log_q)
        for weight, token, term in (
            (self.accepted[part], self.text[part], bernoulli_kl),
            (self.rejected[part], self.drafted[part], k3),
        ):
            s, t = (log.gather(1, token.unsqueeze(1)).squeeze(1) for log in (log_q, log_p))
            worth, slope = term(s, t)
            value += weight * worth
            slope = (weight * slope).unsqueeze(1)
            towards -= slope * log_q.exp()
            towards.scatter_add_(1, token.unsqueeze(1), slope)
        return value, towards


LEAST, MOST, EDGE = -10.0, 10.0, 1e-6
"""Clamps of the released code: of log-probabilities, of every term, and of probabilities below 1."""


def bernoulli_kl(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """KL between Bernoulli(exp t) and Bernoulli(exp s), and its slope in ``s``."""
    top = torch.log1p(torch.tensor(-EDGE)).item()
    inside = (s > LEAST) & (s < top)
    s, t = s.clamp(LEAST, top), t.clamp(LEAST, top)
    p, q = t.exp(), s.exp()
    value = p * (t - s) + (1 - p) * (torch.log1p(-p) - torch.log1p(-q))
    return value.clamp_max(MOST), torch.where(inside & (value < MOST), (q - p) / (1 - q), 0.0)


def k3(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """exp(z) - z - 1 with z = t - s, and its slope in ``s``."""
    z = (t - s).clamp(-20, 20)
    value = z.exp() - z - 1
    return value.clamp(-MOST, MOST), torch.where((value < MOST) & (z.abs() < 20), 1 - z.exp(), 0.0)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, teacher: Tensor, row: Tensor, form: Form) -> Tensor:
        value = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for part in chunks(hidden, 2):
            wanted, back = torch.unique(
                row[part], return_inverse=True
            )  # rows of neighbouring blocks share most of them
            log_p = (teacher[wanted] @ head.T).float().log_softmax(-1)[back]
            log_q = (hidden[part] @ head.T).float().log_softmax(-1)
            value[part], towards = form(log_q, log_p, part)
            torch.matmul(towards.to(head.dtype), head, out=gradient[part])
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return outputs[0].unsqueeze(1).to(gradient.dtype) * gradient, None, None, None, None


def divergence(hidden: Tensor, head: Tensor, teacher: Tensor, row: Tensor, form: Form) -> Tensor:
    """``form`` of every row [N], differentiable towards ``hidden``.

    Args:
        hidden: [N, H] normed states of the draft.
        head: [V', H] the target's head, or the rows of it that make the draft's vocabulary.
        teacher: [P, H] the target's normed states.
        row: [N] int64, which of ``teacher`` predicts the row's token.
        form: what is computed.
    """
    return _Divergence.apply(hidden, head, teacher, row, form)  # type: ignore[no-untyped-call, no-any-return]


def teacher_rows(row: Tensor) -> int:
    """How many of the teacher's rows ``divergence`` multiplies with the head."""
    return sum(len(torch.unique(row[part])) for part in chunks(row, 2))
