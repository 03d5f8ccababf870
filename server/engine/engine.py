"""The engine: admits requests, prefills, runs rounds, reads back what they committed.

It knows token ids, not text.  One thread owns it; ``step`` does one prefill chunk and one round at most, so that
callers can deliver tokens and take in requests between two rounds.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.drafts.base import Drafter
from redraft.kernels.accept import Committed
from redraft.kernels.attention import MakeAttention
from redraft.server.engine.round import Plan, forward_rows, prefill_rows, run_round
from redraft.server.engine.rows_plan import row_bucket
from redraft.server.engine.scheduler import PrefillChunk, Running, Scheduler
from redraft.server.engine.state import DeviceState
from redraft.server.engine.target.decoder import Target
from redraft.server.engine.types import EngineInfo, FinishReason, RedraftError, Request, RoundOutput, StepOutput

FINISH = {1: FinishReason.STOP, 2: FinishReason.LENGTH}


@dataclass(frozen=True, slots=True)
class PendingRound:
    """A round that was launched and not yet read back."""

    requests: tuple[Running, ...]
    read: tuple[Tensor, ...]
    ready: torch.cuda.Event | None


class Engine:
    """One target, one drafter, many requests; built by ``load.build_engine``."""

    def __init__(
        self,
        info: EngineInfo,
        target: Target,
        drafter: Drafter,
        state: DeviceState,
        scheduler: Scheduler,
        make_attention: MakeAttention,
        max_rows: int,
    ) -> None:
        self.info = info
        self.target = target
        self.drafter = drafter
        self.state = state
        self.scheduler = scheduler
        self.make_attention = make_attention
        self.max_rows = max_rows
        # a GPU's results are read one round behind, so that launching never waits for them
        self.lag = 1 if state.device.type == "cuda" else 0
        self.pending: deque[PendingRound] = deque()
        self.known_length: dict[str, int] = {}

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting or self.pending)

    def submit(self, request: Request) -> None:
        """Queue ``request``; raises ``RedraftError`` if it can never run."""
        if refusal := self.scheduler.refusal(request):
            raise RedraftError(refusal)
        if not all(0 <= token < self.info.vocab_size for token in request.prompt):
            raise RedraftError(f"token ids must lie in 0 ... {self.info.vocab_size - 1}")
        self.scheduler.add(request)

    @torch.inference_mode()
    def cancel(self, request_id: str) -> None:
        """Forget a request; its slot and pages are free at once.  Unknown ids are ignored."""
        self._release(request_id)

    @torch.inference_mode()
    def step(self) -> StepOutput:
        """Admit what fits, prefill one chunk, run one round, read back what is due."""
        for running in self.scheduler.admit():
            self.state.admit(running, self.scheduler.limit(running.request))
            self.known_length[running.request.request_id] = len(running.request.prompt)
            if running.decoding:
                self._activate(running)
        if chunk := self.scheduler.next_chunk():
            self._prefill(chunk)
        if decoding := self.scheduler.decoding():
            self.pending.append(self._launch(tuple(decoding)))
        outputs: list[RoundOutput] = []
        while len(self.pending) > (self.lag if self.scheduler.decoding() else 0):
            outputs.extend(self._collect(self.pending.popleft()))
        if not self.busy:
            self.scheduler.check_integrity()
        return StepOutput(tuple(outputs), self.scheduler.stats())

    def _prefill(self, chunk: PrefillChunk) -> None:
        padded = row_bucket(chunk.count)
        rows = prefill_rows(self.state, chunk.running.slot, chunk.start, chunk.count, padded)
        forward_rows(self.state, self.target, self.drafter, rows, chunk.start + padded, self.make_attention)
        chunk.running.prefilled += chunk.count
        if chunk.running.decoding:
            self._activate(chunk.running)

    def _activate(self, running: Running) -> None:
        self.state.activate(running.slot)
        running.prompt_seconds = time.perf_counter() - running.started

    def _launch(self, decoding: tuple[Running, ...]) -> PendingRound:
        committed = run_round(self.state, self.target, self.drafter, self._plan(decoding), self.make_attention)
        return PendingRound(decoding, *_copy_to_host(committed))

    def _plan(self, decoding: tuple[Running, ...]) -> Plan:
        params = [running.request.params for running in decoding]
        nodes = min(self.info.max_nodes, self.drafter.max_nodes)
        wanted = len(decoding) * (1 + nodes)
        unread = len(self.pending) * self.scheduler.tree_rows
        return Plan(
            rows=row_bucket(max(min(wanted, self.max_rows), len(decoding))),
            requests=len(decoding),
            context_bound=max(self.known_length[r.request.request_id] for r in decoding) + unread,
            sampled=any(p.temperature > 0 for p in params),
            filtered=any(p.temperature > 0 and (p.top_k > 0 or p.top_p < 1 or p.min_p > 0) for p in params),
        )

    def _collect(self, pending: PendingRound) -> list[RoundOutput]:
        if pending.ready is not None:
            pending.ready.synchronize()
        tokens, count, accepted, drafted, finish = (tensor.tolist() for tensor in pending.read)
        outputs = []
        for running in pending.requests:
            request_id, slot = running.request.request_id, running.slot
            # cancelled or finished since the launch, or its slot sat this round out
            if self.scheduler.running.get(request_id) is not running or not count[slot]:
                continue
            self.known_length[request_id] += count[slot]
            reason = FINISH.get(finish[slot])
            outputs.append(
                RoundOutput(
                    request_id=request_id,
                    tokens=tuple(tokens[slot][: count[slot]]),
                    accepted=accepted[slot],
                    drafted=drafted[slot],
                    finish_reason=reason,
                    prompt_seconds=running.prompt_seconds,
                )
            )
            running.prompt_seconds = None
            if reason is not None:
                self._release(request_id)
        return outputs

    def _release(self, request_id: str) -> None:
        running = self.scheduler.release(request_id)
        if running is not None:
            # rounds not read back yet may have written a tree each beyond what is known
            unread = (len(self.pending) + 1) * self.scheduler.tree_rows
            self.state.release(running, self.known_length.pop(request_id) + unread)


def _copy_to_host(committed: Committed) -> tuple[tuple[Tensor, ...], torch.cuda.Event | None]:
    """Start copying what a round committed; the event says when the copies are there."""
    tensors = (committed.tokens, committed.count, committed.accepted, committed.drafted, committed.finish)
    if not committed.count.is_cuda:
        return tensors, None
    copies = tuple(t.to("cpu", non_blocking=True) for t in tensors)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return copies, event
