"""From rounds to rows with weights: Draft-OPD's accepted and rejected streams (arXiv 2605.29343, §acceptance-aware).

Row k of a block (from 1) is *accepted* where k <= r, the round's accepted tokens; the *correction* is k = r + 1, where
the target says something else; the *suffix* lies behind.  Rows beyond the end of the text are in no stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from redraft.drafts.training.opd_settings import OpdSettings
from redraft.drafts.training.rounds import Rounds
from redraft.drafts.training.teacher import Branch


@dataclass(frozen=True, slots=True)
class Streams:
    """Weights of a text's rows, not yet normalised; [A, B - 1] each."""

    accepted: Tensor
    rejected: Tensor
    suffix: Tensor
    """bool: rows whose teacher has read the drafted tokens before them."""
    branches: tuple[Branch, ...]
    """What the target has to read for these, in their order: row k's teacher is the state after token k - 1."""

    @property
    def taught(self) -> Tensor:
        """[A, B - 1] bool."""
        return (self.accepted > 0) | (self.rejected > 0)

    def padded(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The three weights with ``width`` anchors."""
        more = (0, 0, 0, width - len(self.accepted))
        return tuple(functional.pad(t, more) for t in (self.accepted, self.rejected, self.suffix))  # type: ignore[return-value]


def make_streams(rounds: Rounds, settings: OpdSettings, ends: Sequence[int]) -> Streams:
    """Sort the rows of ``rounds`` into streams.

    Args:
        rounds: of one text.  Rows that would be taught towards a token the draft's vocabulary lacks are left out.
        settings: of the run.
        ends: tokens that end a text: what a draft puts behind one of them is nobody's text.
    """
    k, known = torch.arange(1, rounds.drafted.shape[1] + 1), rounds.wanted >= 0
    right = rounds.accepted.unsqueeze(1)
    within = k <= rounds.left.unsqueeze(1)
    accepted = (k <= right) & within & known
    first = (k == right + 1) & within
    suffix = (k > right + 1) & within
    read, branches = torch.zeros_like(suffix), tuple[Branch, ...]()
    if settings.suffix_teacher == "none" or settings.rejected_weight == 0:
        suffix = torch.zeros_like(suffix)
    elif settings.suffix_teacher == "trajectory":
        suffix &= known
    else:
        ended = torch.isin(rounds.drafted, torch.tensor(ends)) & (k > right)
        suffix &= (ended.long().cumsum(-1) - ended.long()) == 0  # nothing before the row ended the text
        read, branches = suffix, _branches(rounds, suffix)
    decay = settings.gamma ** (k - 1.0)
    correct = first & known
    return Streams(
        accepted=accepted + settings.correction * correct,
        rejected=decay * (correct | suffix) * (settings.rejected_weight > 0),
        suffix=read,
        branches=branches,
    )


def _branches(rounds: Rounds, suffix: Tensor) -> tuple[Branch, ...]:
    """Of every round with a suffix of n rows: its first n wrong tokens."""
    rows = zip(rounds.anchor.tolist(), rounds.accepted.tolist(), suffix.sum(-1).tolist(), rounds.drafted.tolist(),
               strict=True)  # fmt: skip
    return tuple(Branch(anchor + r + 1, tuple(drafted[r : r + count])) for anchor, r, count, drafted in rows if count)
