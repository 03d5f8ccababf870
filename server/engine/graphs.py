"""Passes as CUDA graphs: recorded once for each kind of pass, then launched as one.

A pass reads and writes tensors that exist from the start and asks the device nothing, so what the host decides of it
(its ``Plan``) names the graph.  What is prefilled is not part of that, but written to the device before
(prefill_table.py), and so is who wants log-probabilities (``DeviceState.asked``).  Plans are rounded up to few kinds;
that changes no bit of the output, only how many rows pad a pass, how far the context could reach, and how many scores
nobody reads.  A kind is run as it is the first time, which compiles what it needs, and recorded the second time.  Never
recorded: passes with scores of prompts, whose shapes are the prompts', and large ones with prefill (rows_plan.py).  A
pass with grammars is three graphs, for the host has work in between (parts.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from redraft.drafts.base import Drafter
from redraft.server.engine.config import PAGE
from redraft.server.engine.parts import Allow, Parts, complete
from redraft.server.engine.progress import say
from redraft.server.engine.recording import MakeRecorder, Recorder, RecordingError, recorded_parts
from redraft.server.engine.round import Plan
from redraft.server.engine.types import MAX_LOGPROBS

T = TypeVar("T")
Kind = tuple[Drafter | None, Plan]

MOST_GRAPHS = 64
"""Kept at once of rounds alone, and as many of passes with prefill; the one that was not used for longest makes room
among its like, and its kind has to come twice again."""
MOST_SEEN = 1024
"""Kinds remembered that came once; the one that came first makes room."""
LEAST_BOUND = 8 * PAGE
"""Of passes with prefill: what a bound costs is room for attention's partial results, and looking texts up."""


def rounded(plan: Plan, slots: int, positions: int) -> Plan:
    """``plan`` with bounds that many rounds share: no lower, and no higher than ``slots`` and ``positions`` allow.

    Context bounds are whole pages, four sizes to a doubling, requests powers of two.  With prefill, which has sizes of
    its own, all bounds are one, and that a power of two, and of requests there are powers of four.  So there are of
    slots of which log-probabilities are told, but no more than requests; they name as many tokens as anybody may want.
    """
    doublings = (plan.requests - 1).bit_length() if plan.requests else 0
    if plan.prefill:
        bound = _bound(max(plan.context_bound, plan.prefill_bound, LEAST_BOUND), positions, 1)
        plan = replace(plan, context_bound=bound if plan.requests else 0, prefill_bound=bound)
        doublings += doublings % 2
    else:
        plan = replace(plan, context_bound=_bound(plan.context_bound, positions, 4))
    requests = max(min(1 << doublings, slots), plan.requests) if plan.requests else 0
    if plan.scored:
        doublings = (plan.scored - 1).bit_length()
        scored = min(1 << doublings + doublings % 2, requests)
        plan = replace(plan, scored=max(scored, plan.scored), tops=MAX_LOGPROBS)
    return replace(plan, requests=requests)


def _bound(bound: int, positions: int, to_a_doubling: int) -> int:
    """``bound`` in whole pages, up to one of the sizes of which there are ``to_a_doubling``, a power of two."""
    pages = -(-bound // PAGE)
    step = 1 << max((pages - 1).bit_length() - to_a_doubling.bit_length(), 0)
    return max(min(-(-pages // step) * step * PAGE, positions), bound)


class Graphs(Generic[T]):
    """Runs passes, by graph where it has one."""

    def __init__(
        self, run: Callable[[Plan], Parts[T]], make_recorder: MakeRecorder | None, slots: int, positions: int
    ) -> None:
        """``run`` begins a pass as it is, of ``Plan.parts``; without ``make_recorder`` all of them are run so.

        A recorder is made for as long as graphs are kept, and gives its memory back with them.  ``slots`` and
        ``positions`` bound what plans are rounded to.
        """
        self.run, self.make_recorder, self.slots, self.positions = run, make_recorder, slots, positions
        self.recorder: Recorder | None = None
        self.drafter: Drafter | None = None
        """Who drafts in ``run``.  Graphs are of one drafter, and come again when it does."""
        self.recorded: OrderedDict[Kind, Callable[[], Parts[T]]] = OrderedDict()
        """The least used first."""
        self.seen: OrderedDict[Kind, None] = OrderedDict()
        """Kinds that were run once and not recorded yet, the oldest first."""
        self.failure: str | None = None
        """Why nothing is recorded any more."""

    def __call__(self, plan: Plan, allow: Allow | None = None) -> tuple[T, bool]:
        """Run ``plan``'s pass, guided by ``allow``; and whether it was run as further ones of its kind will be."""
        parts, usual = self._begin(plan)
        return complete(parts, allow), usual

    def _begin(self, plan: Plan) -> tuple[Parts[T], bool]:
        if self.make_recorder is None or self.failure is not None or plan.by_op:
            return self.run(plan), True
        plan = rounded(plan, self.slots, self.positions)
        kind = self.drafter, plan
        if kind in self.recorded:
            self.recorded.move_to_end(kind)
            return self.recorded[kind](), True
        if kind in self.seen:
            self.recorder = self.recorder or self.make_recorder()
            return self._record(kind, self.recorder)(), False
        self.seen[kind] = None
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

    def _record(self, kind: Kind, recorder: Recorder) -> Callable[[], Parts[T]]:
        _, plan = kind
        like = [other for other in self.recorded if bool(other[1].prefill) == bool(plan.prefill)]
        for least_used in like[: max(len(like) + 1 - MOST_GRAPHS, 0)]:
            del self.recorded[least_used]
        try:
            replay = self.recorded[kind] = recorded_parts(recorder, lambda: self.run(plan), plan.parts)
        except RecordingError as error:
            self.failure = str(error)
            say(f"passes cannot be recorded as CUDA graphs and are launched op by op, which is slower: {error}")
            self.forget()
            return lambda: self.run(plan)
        del self.seen[kind]
        return replay
