"""How far a run is, and at what speed: a bar in a terminal, now and then a plain line anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from redraft.server.engine.progress import say

INTERVAL = 30.0
"""Seconds between two plain lines."""


@dataclass(slots=True)
class Meter:
    """Counts of one run."""

    total: int
    done: int
    """Rows, those of earlier runs included."""
    show: Callable[[Meter], None]
    """Called after every change."""
    clock: Callable[[], float] = time.perf_counter
    tokens: int = 0
    """Tokens decoded in this run."""
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def seconds(self) -> float:
        return self.clock() - self.started

    @property
    def rate(self) -> float:
        """Tokens per second, since the run began."""
        return self.tokens / max(self.seconds, 1e-9)

    def add_rows(self, rows: int = 1) -> None:
        self.done += rows
        self.show(self)

    def add_tokens(self, tokens: int) -> None:
        self.tokens += tokens
        self.show(self)


@contextmanager
def metered(title: str, total: int, done: int) -> Iterator[Meter]:
    """Show ``title`` with ``done`` of ``total`` rows and the meter's speed while the block runs."""
    if not sys.stderr.isatty():
        yield Meter(total, done, plain_lines(title))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, rate=0.0)
        yield Meter(total, done, lambda meter: bar.update(task, completed=meter.done, rate=meter.rate))


def plain_lines(title: str) -> Callable[[Meter], None]:
    """Shows a meter as a line every ``INTERVAL`` seconds."""
    due = INTERVAL

    def show(meter: Meter) -> None:
        nonlocal due
        if meter.seconds >= due:
            due = meter.seconds + INTERVAL
            say(f"{title}: {meter.done} of {meter.total}, {meter.rate:.0f} tokens/s")

    return show
