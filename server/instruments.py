"""Where counts are kept: plain numbers, read by the collector when Prometheus asks.

Not prometheus-client's own instruments: one count is shown under two names, and a round that brings eight tokens has to
put eight equal gaps into a histogram at the price of one.  Everything runs on the event loop's thread.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from redraft.server.metric_table import Metric


class Count:
    """A sum that only rises."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``."""
        self.value += amount


class Distribution:
    """How often what was seen lay between edges, and its sum."""

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        """One for each edge, of what lies at or below it and above the one before; the last of what lies beyond."""
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """``value`` was seen so many ``times``."""
        self.counts[bisect_left(self.edges, value)] += times
        self.total += value * times


@dataclass(slots=True)
class Series:
    """All that is counted of one metric, by draft ("" where it knows of none) and the metric's own labels."""

    metric: Metric
    counts: dict[tuple[str, ...], Count] = field(default_factory=dict)
    distributions: dict[tuple[str, ...], Distribution] = field(default_factory=dict)

    def count(self, draft: str, *labels: str) -> Count:
        """The counter with these labels, from 0 on."""
        return self.counts.setdefault((draft, *labels), Count())

    def distribution(self, draft: str, *labels: str) -> Distribution:
        """The histogram with these labels."""
        key = (draft, *labels)
        if key not in self.distributions:
            self.distributions[key] = Distribution(self.metric.edges)
        return self.distributions[key]
