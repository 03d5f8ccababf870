"""What requests ask of their logits and of their end, as tables on the device (kernels/adjust.py has the arithmetic).

The large tables are made when the first request needs them and keep their shape from then on.  A slot's entries are
written when a request is admitted, and again when it comes back after a preemption; what rounds commit is counted on
the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.kernels.accept import Committed
from redraft.kernels.adjust import PRODUCED, Bias, MinTokens, Penalties, adjust, count_committed
from redraft.kernels.rows import Rows
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.staging import pinned, staged
from redraft.server.engine.types import MAX_LOGIT_BIAS, MAX_STOP_TOKENS, SamplingParams


@dataclass(frozen=True, slots=True)
class Stages:
    """Parts of the logits stage that a round needs, known to the host from the requests' parameters."""

    penalised: bool = False
    biased: bool = False
    minimum: bool = False
    """Somebody may not end yet."""
    ends: int | None = None
    """Most end tokens that a request of the round has; None for as many as the table holds."""

    @classmethod
    def of(cls, sequences: Iterable[Sequence], eos: tuple[int, ...]) -> Stages:
        """What a round of ``sequences`` needs."""
        sequences = list(sequences)
        params = [sequence.request.params for sequence in sequences]
        return cls(
            penalised=any(p.penalised for p in params),
            biased=any(p.logit_bias for p in params),
            minimum=any(len(s.tokens) < _until(s) for s in sequences),
            ends=max((len(p.ends(eos)) for p in params), default=0),
        )


NOTHING = Stages()


class Adjusting:
    """Tables of S slots and the trash slot, which asks for nothing."""

    def __init__(self, slots: int, vocab: int, eos: int, device: torch.device) -> None:
        """``eos``: how many end tokens a request has that names none of its own."""
        self.slots, self.vocab, self.device = slots, vocab, device
        self.ends = torch.full((slots + 1, eos + MAX_STOP_TOKENS), -1, device=device)
        """[S+1, E] int64, tokens that end a slot's text, real ones first, -1 where there are none."""
        self.until = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        """[S+1] length from which on they may come."""
        self.penalties: Penalties | None = None
        self.bias: Bias | None = None

    def admit(self, sequence: Sequence, eos: tuple[int, ...]) -> None:
        """Write what ``sequence`` asks for into its slot."""
        slot, params = sequence.running_slot, sequence.request.params
        self._set_ends(slot, params.ends(eos))
        self.until[slot] = _until(sequence)
        if params.penalised or self.penalties is not None:
            self._set_penalties(slot, params, sequence)
        if params.logit_bias or self.bias is not None:
            self._set_bias(slot, params.logit_bias)

    def adjusted(self, logits: Tensor, rows: Rows, stages: Stages, allowed: Tensor | None) -> Tensor:
        """[R, V] logits as sampling sees them; the very tensor if nothing is asked of it."""
        if allowed is None and not (stages.penalised or stages.biased or stages.minimum):
            return logits
        return adjust(
            logits,
            rows,
            penalties=self.penalties if stages.penalised else None,
            bias=self.bias if stages.biased else None,
            minimum=MinTokens(self.until, self.ends[:, : stages.ends]) if stages.minimum and stages.ends != 0 else None,
            allowed=allowed,
        )

    def committed(self, committed: Committed, stages: Stages) -> None:
        """Count what a round committed."""
        if stages.penalised and self.penalties is not None:
            count_committed(self.penalties, committed)

    def reserve(self) -> None:
        """Make every table now (dry_run.py)."""
        self.penalties = self.penalties or self._new_penalties()
        self.bias = self.bias or self._new_bias()

    def _new_penalties(self) -> Penalties:
        zeros = torch.zeros(self.slots + 1, device=self.device)
        count = torch.zeros(self.slots + 1, self.vocab, dtype=torch.int32, device=self.device)
        return Penalties(zeros, zeros.clone(), torch.ones_like(zeros), count)

    def _new_bias(self) -> Bias:
        token = torch.zeros(self.slots + 1, MAX_LOGIT_BIAS, dtype=torch.int64, device=self.device)
        return Bias(token, torch.zeros(token.shape, device=self.device))

    def _set_ends(self, slot: int, ends: tuple[int, ...]) -> None:
        missing = self.ends.shape[1] - len(ends)
        self.ends[slot].copy_(staged([*ends, *[-1] * missing], torch.int64, self.device), non_blocking=True)

    def _set_penalties(self, slot: int, params: SamplingParams, sequence: Sequence) -> None:
        self.penalties = self.penalties or self._new_penalties()
        self.penalties.presence[slot] = params.presence_penalty
        self.penalties.frequency[slot] = params.frequency_penalty
        self.penalties.repetition[slot] = params.repetition_penalty
        if params.penalised:
            prompt = len(sequence.request.prompt)
            count = torch.bincount(torch.tensor(sequence.tokens[prompt:], dtype=torch.int64), minlength=self.vocab)
            count.mul_(PRODUCED)[torch.tensor(sequence.request.prompt)] += 1
            self.penalties.count[slot].copy_(pinned(count.to(torch.int32), self.device), non_blocking=True)

    def _set_bias(self, slot: int, bias: tuple[tuple[int, float], ...]) -> None:
        self.bias = self.bias or self._new_bias()
        first = bias[:1] or ((0, 0.0),)
        tokens, values = zip(*bias, *first * (MAX_LOGIT_BIAS - len(bias)), strict=True)
        self.bias.token[slot].copy_(staged(tokens, torch.int64, self.device), non_blocking=True)
        self.bias.value[slot].copy_(staged(values, torch.float32, self.device), non_blocking=True)


def _until(sequence: Sequence) -> int:
    """Length at which a sequence may end; 0 where it may at any."""
    asked = sequence.request.params.min_tokens
    return len(sequence.request.prompt) + asked if asked else 0
