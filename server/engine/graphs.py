"""Rounds as CUDA graphs: recorded once for each kind of round, then launched as one.

A round reads and writes tensors that exist from the start and asks the device nothing, so what the host decides of it
(its ``Plan``) names the graph.  Plans are rounded up to few kinds; that changes no bit of the output, only how many
rows pad a pass and how far the context could reach.  A kind is run as it is the first time, which compiles what it
needs, and recorded the second time.  Never recorded: rounds with prefill or a grammar, which have work for the host,
and those that tell log-probabilities, of which there are as many kinds as sets of slots.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

import torch

from redraft.server.engine.config import PAGE
from redraft.server.engine.round import Plan

T = TypeVar("T")
Replay = Callable[[], T]
Recorder = Callable[[Callable[[], T]], Replay[T]]
"""Runs nothing: what it returns does, each time it is called, and gives the same tensors anew."""

MOST_GRAPHS = 64
"""Kept at once; the one that was not used for longest makes room."""


def rounded(plan: Plan, slots: int, positions: int) -> Plan:
    """``plan`` with bounds that many rounds share: no lower, and no higher than ``slots`` and ``positions`` allow.

    Of context bounds there are four to each doubling, whole pages all.
    """
    pages = -(-plan.context_bound // PAGE)
    step = 1 << max(pages.bit_length() - 3, 0)
    bound = -(-pages // step) * step * PAGE
    requests = 1 << (plan.requests - 1).bit_length() if plan.requests else 0
    return replace(
        plan,
        context_bound=max(min(bound, positions), plan.context_bound),
        requests=max(min(requests, slots), plan.requests),
    )


class Graphs(Generic[T]):
    """Runs rounds, by graph where it has one."""

    def __init__(self, run: Callable[[Plan], T], record: Recorder[T], slots: int, positions: int) -> None:
        """``run`` a round as it is; ``slots`` and ``positions`` bound what plans are rounded to."""
        self.run, self.record, self.slots, self.positions = run, record, slots, positions
        self.recorded: OrderedDict[Plan, Replay[T] | None] = OrderedDict()
        """None: was run once."""
        self.failure: str | None = None
        """Why nothing is recorded any more."""

    def __call__(self, plan: Plan) -> T:
        """Run ``plan``'s round."""
        if self.failure is not None or plan.chunks or plan.asked.slots:
            return self.run(plan)
        plan = rounded(plan, self.slots, self.positions)
        if plan not in self.recorded:
            self.recorded[plan] = None
            while len(self.recorded) > MOST_GRAPHS:
                self.recorded.popitem(last=False)
            return self.run(plan)
        self.recorded.move_to_end(plan)
        replay = self.recorded[plan]
        if replay is None:
            try:
                replay = self.recorded[plan] = self.record(lambda: self.run(plan))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.failure = str(error)
                self.recorded.clear()
                return self.run(plan)
        return replay()


def cuda_recorder() -> Recorder[T]:
    """Records on the current GPU; all graphs share one pool of memory, since they never run at once."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], T]) -> Replay[T]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            made = run()

        def replay() -> T:
            graph.replay()
            return made

        return replay

    return record
