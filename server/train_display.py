"""What a training run shows, and how Ctrl-C ends it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from redraft.drafts.training.run import Progress, Run
from redraft.server.engine.progress import say


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask for a stop; a second SIGINT takes effect at once."""
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        say("stopping after this step ... (once more: at once, without saving)")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def display(run: Run) -> Iterator[Callable[[Progress], None]]:
    """A bar in a terminal, a line every half minute elsewhere."""
    if run.together.rank > 0 or not sys.stderr.isatty():
        shown = 0.0

        def line(progress: Progress) -> None:
            nonlocal shown
            if time.monotonic() - shown > 30 or progress.step == run.settings.steps:
                shown = time.monotonic()
                say(f"step {progress.step}/{run.settings.steps} {_figures(progress)}")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=run.settings.steps, completed=run.progress.step)
        yield lambda progress: bar.update(task, completed=progress.step, description=_figures(progress))


def _figures(progress: Progress) -> str:
    tau = "not measured" if progress.tau is None else f"{progress.tau:.3f}"
    return f"loss {progress.loss:.3f}, {progress.recent_rate:.0f} labels/s, τ {tau}"
