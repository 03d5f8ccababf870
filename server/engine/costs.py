"""What a pass costs on this machine: measured when the engine starts, corrected while it runs.  Torch-free."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class CostTable:
    """Seconds, as measured on an idle machine (measure_costs.py)."""

    rows: tuple[int, ...]
    """Sizes of passes, ascending."""
    passes: tuple[float, ...]
    """Of a target pass over so many rows with next to no context, logits included."""
    per_request: float
    """For every position of context of every request, whose keys and values are read once."""
    per_row: float
    """For every position of context of every row."""
    requests: tuple[int, ...]
    drafts: tuple[float, ...]
    """Of drafting for so many requests."""
    round: float = 0.0
    """Of whatever else a round has: sampling, acceptance, launching."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for a table that is not one."""
        for sizes, seconds in ((self.rows, self.passes), (self.requests, self.drafts)):
            if not sizes or len(sizes) != len(seconds) or any(a >= b for a, b in pairwise(sizes)):
                raise ValueError("sizes must ascend, one measurement each")
        if min((*self.passes, *self.drafts, self.per_request, self.per_row, self.round)) < 0:
            raise ValueError("seconds cannot be negative")

    def forward(self, rows: int) -> float:
        """Of a target pass over ``rows`` rows, between and beyond measured sizes along straight lines."""
        return _between(self.rows, self.passes, rows)

    def draft(self, requests: int) -> float:
        """Of drafting for ``requests`` requests."""
        return _between(self.requests, self.drafts, requests)


def read_table(raw: Mapping[str, Any]) -> CostTable:
    """A table from JSON, as ``dataclasses.asdict`` has it; ``ValueError`` says what is wrong with it."""
    try:
        return CostTable(
            rows=tuple(map(int, raw["rows"])),
            passes=tuple(map(float, raw["passes"])),
            per_request=float(raw["per_request"]),
            per_row=float(raw["per_row"]),
            requests=tuple(map(int, raw["requests"])),
            drafts=tuple(map(float, raw["drafts"])),
            round=float(raw.get("round", 0.0)),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a table of costs: {type(error).__name__} {error}") from None


def _between(sizes: Sequence[int], seconds: Sequence[float], size: int) -> float:
    right = min(max(bisect_left(sizes, size), 1), len(sizes) - 1)
    if len(sizes) == 1 or size <= sizes[0]:
        return seconds[0]
    left = right - 1
    slope = (seconds[right] - seconds[left]) / (sizes[right] - sizes[left])
    return max(seconds[left] + slope * (size - sizes[left]), 0.0)


@dataclass(frozen=True, slots=True)
class Work:
    """What one step has to do."""

    rows: int
    """Of the target's pass, as padded."""
    requests: int
    """How many decode."""
    context: int = 0
    """Positions that the requests' texts have together."""
    row_context: int = 0
    """Positions that all rows see together."""
    drafting: bool = False


@dataclass(frozen=True, slots=True)
class PlainCost:
    """Seconds expected of a step without a draft, and of a further one without the prefill that went along."""

    step: float
    further: float

    def of(self, rounds: float) -> float:
        """Of ``rounds`` rounds, the first of which takes the prefill along."""
        return self.step + (rounds - 1) * self.further


DRIFT = 0.1
"""How fast the machine as a whole is followed, as a share of what a step took more than expected."""
LEAST = 0.03
"""How fast one kind of step is followed once many were seen; the first ones count more."""
ODD = 3.0
"""A step that took so many times longer or shorter than expected is counted as this much: others use the machine."""


@dataclass(slots=True)
class Costs:
    """A table and how far off it is at present, by size of pass and by whether there was a draft."""

    table: CostTable
    scale: float = 1.0
    """Of the machine as a whole, which drifts and throttles: the same for all choices."""
    factor: dict[tuple[int, bool], float] = field(default_factory=dict)
    """Of the kinds of step that were seen against the whole."""
    late: float = 0.0
    """Seconds that drafting takes beyond the table, for kinds of step that were not seen."""
    seen: Counter[tuple[int, bool]] = field(default_factory=Counter)
    drafts: int = 0

    def seconds(self, work: Work) -> float:
        """What ``work`` is expected to take."""
        return self.scale * self._measured(work) * self._factor(work)

    def took(self, work: Work, seconds: float) -> None:
        """``work`` took ``seconds``."""
        kind, expected = (work.rows, work.drafting), self.seconds(work)
        off = min(max(seconds / expected, 1 / ODD), ODD)
        self.factor[kind] = self._factor(work) * off ** max(LEAST, 1 / (2 + self.seen[kind]))
        self.seen[kind] += 1
        if work.drafting:
            plain = self._measured(replace(work, drafting=False)) * self.factor.get((work.rows, False), 1.0)
            late = off * expected / self.scale - plain - self.table.draft(work.requests)
            self.late += max(LEAST, 1 / (2 + self.drafts)) * (late - self.late)
            self.drafts += 1
        self.scale *= off**DRIFT

    def _factor(self, work: Work) -> float:
        known = self.factor.get((work.rows, work.drafting))
        if known is not None or not work.drafting:
            return 1.0 if known is None else known
        without = replace(work, drafting=False)
        draft = self.table.draft(work.requests)
        expected = self._measured(without) * self._factor(without) + max(draft + self.late, draft / 10)
        return expected / self._measured(work)

    def _measured(self, work: Work) -> float:
        """By the table alone."""
        table = self.table
        attending = table.per_request * work.context + table.per_row * work.row_context
        drafting = table.draft(work.requests) if work.drafting else 0.0
        return max(table.forward(work.rows) + attending + drafting + table.round, 1e-9)
