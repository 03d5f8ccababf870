"""What the next step does: how many rows of prefill, how many drafted nodes.  Torch-free; decides by measurements.

Of what was measured it keeps costs (costs.py) and hit rates (acceptance.py); the rules are in budget.py.  When
drafting does not pay, a draft is still tried now and then, for half a percent of the time at most, so that it comes
back when the texts change; and where it pays, one round in 200 goes without, to know what that costs.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from redraft.server.engine.acceptance import Acceptance, Proposal
from redraft.server.engine.budget import best_nodes, prefill_rows
from redraft.server.engine.costs import Costs, PlainCost, Work
from redraft.server.engine.rows_plan import MIN_ROWS, pass_sizes
from redraft.server.engine.sequence import Sequence

PROBING = 0.005
"""Share of the time that may go into drafts whose nodes are not expected to pay."""
FIRST_TRIES = 0.25
"""Seconds that may at once go into such drafts, to get to know the texts."""
STALL = 1.6
"""One prompt's prefill may make a step so many times longer than the round alone takes.

Each further prompt adds its share, 1 / running: the more wait for their first token, the less those who run can expect.
"""
LEAST_PREFILL = 8
"""Rows of prefill that go along in any case."""
FOLLOW = 0.05
"""Share of a round in the running mean of what rounds gained against what was expected."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one step."""

    nodes: int = 0
    """Drafted nodes to verify, of all requests together."""
    drafting: bool = False
    prefill: int = 0
    """Rows of prefill."""
    plain: PlainCost | None = None
    """What the step would take without a draft, where costs were measured."""


class Pacer:
    """Decides and learns for one engine."""

    def __init__(
        self, most_rows: int, most_nodes: int, speculation: str, costs: Costs | None, recorded: int = 0
    ) -> None:
        """``most_rows`` of a step, ``most_nodes`` of a request and round that the draft proposes.

        ``speculation`` is ``auto``, ``off`` or a number of nodes for every request.  Without ``costs`` every request
        gets what it may have, and prefill all rows there are.  ``recorded``: as ``pass_sizes`` has it.
        """
        self.most_rows = most_rows
        self.recorded = recorded
        self.most_nodes = 0 if speculation == "off" else most_nodes
        self.proposed_nodes = most_nodes
        """Of the draft in use, which a benchmark may exchange."""
        self.fixed = int(speculation) if speculation.isdecimal() else None
        self.costs = costs
        self.acceptance = Acceptance(most_nodes)
        self.selection = 1.0
        """What rounds gained against the sum of mean hit rates: the device picks the best nodes of the moment."""
        self.saved = FIRST_TRIES
        """Seconds that may go into a try of drafting."""
        self.since_plain = 0
        """Rounds since one without a draft, by which alone it is known what that would cost."""

    def allowed(self, sequence: Sequence) -> int:
        """Most nodes that this request may have verified in a round."""
        asked = sequence.request.max_nodes
        most = self.most_nodes if self.fixed is None else min(self.fixed, self.most_nodes)
        return min(most, self.proposed_nodes, most if asked is None else asked)

    def step(self, decoding: Many[Sequence], prefilling: Many[Sequence]) -> Pace:
        """The pace of the next step, for what decodes and what is being prefilled, oldest first."""
        to_prefill = sum(sequence.to_prefill for sequence in prefilling)
        start = prefilling[0].computed if prefilling else 0
        if not decoding:
            return Pace(prefill=min(to_prefill, self.most_rows))
        most = sum(self.allowed(sequence) for sequence in decoding)
        requests, room = len(decoding), self.most_rows - max(len(decoding), MIN_ROWS)
        if self.costs is None or self.fixed is not None:
            nodes = max(min(most, room - min(to_prefill, LEAST_PREFILL)), 0)
            prefill = self._prefill(decoding, nodes, prefilling, room - nodes)
            return Pace(nodes, nodes > 0, prefill, self._plain(decoding, prefill, start))
        rates = [self._gains(sequence) for sequence in decoding]
        choice = best_nodes(rates, self._timer(decoding), self.most_rows)
        further = choice.plain_seconds
        prefill = self._prefill(decoding, choice.nodes, prefilling, room)
        if prefill:
            timer = self._timer(decoding, prefill, start)
            choice = best_nodes(rates, timer, self.most_rows, prefill, choice.tokens_per_second, self.recorded)
        plain = PlainCost(choice.plain_seconds, further)
        if choice.nodes == 0 and most > 0 and self._may_try(decoding, prefill):
            return Pace(self._spare(requests, prefill), True, prefill, plain)
        if choice.nodes > 0 and self.since_plain >= 1 / PROBING:
            return Pace(prefill=prefill, plain=plain)
        return Pace(choice.nodes, choice.nodes > 0, prefill, plain)

    def work(self, decoding: Many[Sequence], rows: int, drafting: bool, prefill: int = 0, start: int = 0) -> Work:
        """What a step has to do: ``rows`` rows, padding included, of them ``prefill`` from position ``start``."""
        context = sum(len(sequence.tokens) for sequence in decoding)
        each = (rows - prefill) / len(decoding) if decoding else 0
        seen = round(context * each) + prefill * (start + prefill // 2)
        return Work(rows, len(decoding), context + start, seen, drafting)

    def took(self, work: Work, seconds: float) -> None:
        """A step took ``seconds``."""
        if self.costs is None or not work.requests:
            return
        self.costs.took(work, seconds)
        self.since_plain = self.since_plain + 1 if work.drafting else 0
        if not work.drafting:
            self.saved += PROBING * seconds

    def proposed(self, request_id: str, proposal: Proposal) -> None:
        """What came of a draft for a request."""
        self.acceptance.observe(request_id, proposal)

    def gained(self, decoding: Many[Sequence], nodes: int, accepted: int) -> None:
        """A round with ``nodes`` drafted nodes accepted so many of them."""
        expected = sum(sorted((rate for s in decoding for rate in self._rates(s)), reverse=True)[:nodes])
        if expected > 0.2:
            ratio = min(max(accepted / expected, 0.25), 4.0)
            self.selection += FOLLOW * (ratio - self.selection)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self.acceptance.forget(request_id)

    def _rates(self, sequence: Sequence) -> list[float]:
        return self.acceptance.rates(sequence.request.request_id)[: self.allowed(sequence)]

    def _gains(self, sequence: Sequence) -> list[float]:
        return [min(rate * self.selection, 1.0) for rate in self._rates(sequence)]

    def _prefill(self, decoding: Many[Sequence], nodes: int, prefilling: Many[Sequence], most: int) -> int:
        """Rows of prefill beside a round of ``nodes`` drafted nodes."""
        waiting = sum(sequence.to_prefill for sequence in prefilling)
        if self.costs is None or not waiting:
            return min(waiting, most)
        taken, start = max(len(decoding) + nodes, MIN_ROWS), prefilling[0].computed
        stall = STALL + (len(prefilling) - 1) / len(decoding)

        def seconds(rows: int) -> float:
            return self._timer(decoding, rows, start)(self._padded(taken, rows), nodes > 0)

        return prefill_rows(seconds, waiting, most, stall, LEAST_PREFILL)

    def _plain(self, decoding: Many[Sequence], prefill: int, start: int) -> PlainCost | None:
        if self.costs is None:
            return None
        requests = len(decoding)
        further = self._timer(decoding)(self._padded(requests, 0), False)
        return PlainCost(self._timer(decoding, prefill, start)(self._padded(requests, prefill), False), further)

    def _timer(self, decoding: Many[Sequence], prefill: int = 0, start: int = 0) -> Callable[[int, bool], float]:
        """What a step takes, by its rows and whether there is a draft."""
        costs = self.costs
        assert costs is not None
        return lambda rows, drafting: costs.seconds(self.work(decoding, rows, drafting, prefill, start))

    def _padded(self, rows: int, prefill: int) -> int:
        return sum(pass_sizes(rows, prefill, self.recorded))

    def _spare(self, requests: int, prefill: int) -> int:
        """Nodes that cost nothing, for padding would fill their rows."""
        rows = max(requests, MIN_ROWS)
        verified, padded = pass_sizes(rows, prefill, self.recorded)
        if not self.recorded:
            verified += padded - prefill
        return min(verified, self.most_rows - prefill) - requests

    def _may_try(self, decoding: Many[Sequence], prefill: int) -> bool:
        rows, seconds = self._padded(len(decoding), prefill), self._timer(decoding, prefill)
        price = seconds(rows, True) - seconds(rows, False)
        if self.saved < price:
            return False
        self.saved = min(self.saved - price, price)
        return True
