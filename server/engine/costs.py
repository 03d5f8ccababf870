"""What a pass costs on this machine: measured when the engine starts, corrected while it runs.  Torch-free."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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


DRIFT = 0.1
"""Share of what a step took more than expected that is put down to the machine as a whole."""
LEAST = 0.03
"""Share that is put down to this kind of step, once many were seen; of the first ones more."""
ODD = 3.0
"""A step that took so many times longer or shorter than expected is counted as this much: others use the machine."""


@dataclass(slots=True)
class Costs:
    """A table and how far off it is at present, by size of pass and by whether there was a draft."""

    table: CostTable
    scale: float = 1.0
    """Of the machine as a whole, which drifts and throttles: the same for all choices."""
    factor: dict[tuple[int, bool], float] = field(default_factory=dict)
    """Of one kind of step against the whole."""
    seen: Counter[tuple[int, bool]] = field(default_factory=Counter)

    def seconds(self, work: Work) -> float:
        """What ``work`` is expected to take."""
        return self._expected(work) * self.scale * self.factor.get((work.rows, work.drafting), 1.0)

    def took(self, work: Work, seconds: float) -> None:
        """``work`` took ``seconds``."""
        kind = (work.rows, work.drafting)
        off = min(max(seconds / self.seconds(work), 1 / ODD), ODD)
        self.scale *= off**DRIFT
        self.factor[kind] = self.factor.get(kind, 1.0) * off ** max(LEAST, 1 / (2 + self.seen[kind]))
        self.seen[kind] += 1

    def _expected(self, work: Work) -> float:
        table = self.table
        drafting = table.draft(work.requests) if work.drafting else 0.0
        attending = table.per_request * work.context + table.per_row * work.row_context
        return max(table.forward(work.rows) + attending + drafting + table.round, 1e-9)
