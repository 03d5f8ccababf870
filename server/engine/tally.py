"""What passes and rounds came to, for metrics.  Torch-free, and cheap: it runs once a step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING

from redraft.server.engine.types import PASS_EDGES, PassStats

if TYPE_CHECKING:
    from redraft.server.engine.readback import Outcome, PendingRound


class Tally:
    """Sums of one engine since its start."""

    def __init__(self) -> None:
        self._sizes = [0] * (len(PASS_EDGES) + 1)
        self._rounds = [0] * (len(PASS_EDGES) + 1)
        self._tokens = self._rows = self._nodes = self._forced = 0
        self._round_seconds = self._plain_seconds = 0.0

    def passed(self, tokens: int) -> None:
        """A step prefilled and committed so many ``tokens`` together; one without any was no pass to speak of."""
        if tokens:
            self._sizes[bisect_left(PASS_EDGES, tokens)] += 1
            self._tokens += tokens

    def round(self, pending: PendingRound, outcomes: Many[Outcome]) -> None:
        """A round is back; ``outcomes`` are of the requests that are still there."""
        if not outcomes:
            return
        drafted = forced = committed = 0
        for outcome in outcomes:
            drafted += outcome.drafted
            committed += len(outcome.tokens)
            # both may draft the same: what a grammar leaves no choice about counts as the grammar's
            forced += min(outcome.sequence.forced, outcome.drafted)
        rows = len(outcomes) + drafted
        self._rounds[bisect_left(PASS_EDGES, rows)] += 1
        self._rows += rows
        self._nodes += drafted
        self._forced += forced
        if pending.watch is None:
            return
        seconds = pending.watch.seconds
        self._round_seconds += seconds
        if pending.plain is not None:
            # a round in which nobody drafted is its own best estimate
            speculated = pending.work.drafting or drafted > 0
            self._plain_seconds += pending.plain.of(committed / len(outcomes)) if speculated else seconds

    def stats(self) -> PassStats:
        """The sums so far."""
        return PassStats(
            sizes=tuple(self._sizes),
            tokens=self._tokens,
            rounds=tuple(self._rounds),
            rows=self._rows,
            nodes=self._nodes,
            forced=self._forced,
            round_seconds=self._round_seconds,
            plain_seconds=self._plain_seconds,
        )
