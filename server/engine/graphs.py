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

from redraft.server.engine.config import PAGE
from redraft.server.engine.progress import say
from redraft.server.engine.recording import MakeRecorder, Recorder, RecordingError, recorded
from redraft.server.engine.round import Plan

T = TypeVar("T")

MOST_GRAPHS = 64
"""Kept at once; the one that was not used for longest makes room, and its kind has to come twice again."""
MOST_SEEN = 1024
"""Kinds remembered that came once; the one that came first makes room."""


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

    def __init__(
        self, run: Callable[[Plan], T], make_recorder: MakeRecorder | None, slots: int, positions: int
    ) -> None:
        """``run`` a round as it is; without ``make_recorder`` all of them are.

        A recorder is made for as long as graphs are kept, and gives its memory back with them.  ``slots`` and
        ``positions`` bound what plans are rounded to.
        """
        self.run, self.make_recorder, self.slots, self.positions = run, make_recorder, slots, positions
        self.recorder: Recorder | None = None
        self.recorded: OrderedDict[Plan, Callable[[], T]] = OrderedDict()
        """The least used first."""
        self.seen: OrderedDict[Plan, None] = OrderedDict()
        """Kinds that were run once and not recorded yet, the oldest first."""
        self.failure: str | None = None
        """Why nothing is recorded any more."""

    def __call__(self, plan: Plan) -> tuple[T, bool]:
        """Run ``plan``'s round; and whether it was run as further ones of its kind will be."""
        if self.make_recorder is None or self.failure is not None or plan.chunks or plan.asked.slots:
            return self.run(plan), True
        plan = rounded(plan, self.slots, self.positions)
        if plan in self.recorded:
            self.recorded.move_to_end(plan)
            return self.recorded[plan](), True
        if plan in self.seen:
            self.recorder = self.recorder or self.make_recorder()
            return self._record(plan, self.recorder)(), False
        self.seen[plan] = None
        if len(self.seen) > MOST_SEEN:
            self.seen.popitem(last=False)
        return self.run(plan), False

    def forget(self) -> bool:
        """Let go of all graphs and the memory that they hold; whether there were any."""
        had = bool(self.recorded)
        self.recorded.clear()
        self.seen.clear()
        # the next one begins with memory of its own: of this one's some may still be held
        self.recorder = None
        return had

    def _record(self, plan: Plan, recorder: Recorder) -> Callable[[], T]:
        while len(self.recorded) >= MOST_GRAPHS:
            self.recorded.popitem(last=False)
        try:
            replay = self.recorded[plan] = recorded(recorder, lambda: self.run(plan))
        except RecordingError as error:
            self.failure = str(error)
            say(f"rounds cannot be recorded as CUDA graphs and are launched op by op, which is slower: {error}")
            self.forget()
            return lambda: self.run(plan)
        del self.seen[plan]
        return replay
