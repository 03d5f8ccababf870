"""Rounds that were launched and not read back yet."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.kernels.accept import RUNNING, STOP
from redraft.server.engine.acceptance import Proposal
from redraft.server.engine.costs import PlainCost, Work
from redraft.server.engine.guiding import TreeMasks
from redraft.server.engine.round import Ran
from redraft.server.engine.scores import NOBODY, Asked, RoundScores
from redraft.server.engine.sequence import Sequence
from redraft.server.engine.types import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round did for one sequence."""

    sequence: Sequence
    tokens: list[int]
    accepted: int
    drafted: int
    finish: FinishReason | None
    proposal: Proposal | None
    """None in a round without a draft, unless somebody asked to see trees."""
    logprobs: tuple[TokenLogprobs, ...]
    """One for each token, if the request asked."""

    def cut(self, count: int) -> Outcome:
        """The first ``count`` tokens, behind which the request goes on for now."""
        tokens, logprobs = self.tokens[:count], self.logprobs[:count]
        return replace(self, tokens=tokens, accepted=min(self.accepted, count), finish=None, logprobs=logprobs)


class Stopwatch:
    """Seconds from its making to ``stop``, by the device's clock where that is a GPU; read once the round is back."""

    def __init__(self, device: torch.device) -> None:
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []  # type: ignore[no-untyped-call]
        self.begun = time.perf_counter()
        if self.events:
            self.events[0].record()

    def stop(self) -> None:
        self.ended = time.perf_counter()
        if self.events:
            self.events[1].record()

    @property
    def seconds(self) -> float:
        if self.events:
            return float(self.events[0].elapsed_time(self.events[1])) / 1e3
        return self.ended - self.begun


@dataclass(frozen=True, slots=True)
class PendingRound:
    """A round on its way back to the host."""

    slots: tuple[tuple[Sequence, int], ...]
    """Who took part, and where."""
    work: Work
    watch: Stopwatch | None
    """None where it was recorded, or run for the first time: that takes longer than a round does."""
    copies: tuple[Tensor, ...]
    """Tokens, count, accepted, drafted, finish; with a draft, or who asks, also the trees' tokens, parents, scores."""
    ready: torch.cuda.Event | None
    scores: RoundScores | None = None
    asked: Asked = NOBODY
    """Whom the scores are of."""
    masks: TreeMasks | None = None
    """Of a round with grammars."""
    plain: PlainCost | None = None
    """What the same step would take without a draft, where costs were measured."""

    @property
    def failures(self) -> Mapping[int, str]:
        """By slot, why a grammar could not say what may follow."""
        return {} if self.masks is None else self.masks.failures

    def outcomes(self, running: Many[Sequence]) -> list[Outcome]:
        """What the round did for those of ``running`` that took part; waits until it is back."""
        if self.ready is not None:
            self.ready.synchronize()
        tokens, count, accepted, drafted, finish, *tree = (tensor.tolist() for tensor in self.copies)
        scores = {} if self.scores is None else self.scores.read(self.asked)
        found = []
        here = set(map(id, running))
        for sequence, slot in self.slots:
            # cancelled or finished since the launch, or its slot sat this round out
            if id(sequence) not in here or not count[slot]:
                continue
            committed = tokens[slot][: count[slot]]
            found.append(
                Outcome(
                    sequence=sequence,
                    tokens=committed,
                    accepted=accepted[slot],
                    drafted=drafted[slot],
                    finish=_reason(finish[slot]),
                    proposal=_proposal(tree, slot, committed, drafted[slot]) if tree else None,
                    logprobs=tuple(scores.get(slot, ())[: count[slot]]),
                )
            )
        return found


def copied(tensors: Many[Tensor]) -> tuple[Tensor, ...]:
    """int64 and fp32 tensors of one device on the host, the latter as fp64: one copy, and not waited for."""
    flat = [(t.double().view(torch.int64) if t.is_floating_point() else t).flatten() for t in tensors]
    parts = torch.split(torch.cat(flat).to("cpu", non_blocking=True), [t.numel() for t in tensors])
    whole = zip(parts, tensors, strict=True)
    return tuple((p.view(torch.float64) if t.is_floating_point() else p).view(t.shape) for p, t in whole)


def _proposal(tree: list[list[list[Any]]], slot: int, committed: list[int], verified: int) -> Proposal:
    token, parent, score = (table[slot] for table in tree)
    return Proposal(token, parent, score, committed, verified)


def _reason(code: int) -> FinishReason | None:
    if code == RUNNING:
        return None
    return FinishReason.STOP if code == STOP else FinishReason.LENGTH


def read_back(
    sequences: Many[Sequence],
    work: Work,
    watch: Stopwatch | None,
    ran: Ran,
    masks: TreeMasks | None = None,
    plain: PlainCost | None = None,
) -> PendingRound:
    """Start copying what a round committed to the host."""
    committed, tree, scores, _ = ran
    tensors: tuple[Tensor, ...] = (
        committed.tokens,
        committed.count,
        committed.accepted,
        committed.drafted,
        committed.finish,
    )
    if work.drafting or any(sequence.request.show_tree for sequence in sequences):
        tensors += (tree.token, tree.parent, tree.score)
    slots = tuple((sequence, sequence.running_slot) for sequence in sequences)
    asked = NOBODY if scores is None else Asked.by(sequences)
    if not committed.count.is_cuda:
        return PendingRound(slots, work, watch, tensors, None, scores, asked, masks, plain)
    copies = copied(tensors)
    scores = None if scores is None else scores.copied()
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return PendingRound(slots, work, watch, copies, event, scores, asked, masks, plain)
