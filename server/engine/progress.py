"""Progress on stderr: a bar in a terminal, a few plain lines anywhere else (logs, CI, pipes)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_LINES = 4
"""Lines a finished task leaves behind where there is no terminal."""


_hushed = False


def hush() -> None:
    """Tell nothing more in this process: another one tells the same."""
    global _hushed
    _hushed = True


def say(line: str) -> None:
    """One line for the operator, on stderr and at once."""
    if _hushed:
        return
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - stderr is the operator's screen, stdout carries results


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show ``title`` with a bar of ``total`` units; the yielded function advances it."""
    if sys.stderr.isatty() and not _hushed:
        with _bar(title, total) as advance:
            yield advance
    else:
        yield _lines(title, total)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)

        def advance(units: int) -> None:
            bar.advance(task, units)

        yield advance


def _lines(title: str, total: int) -> Callable[[int], None]:
    say(f"{title} ...")
    done = printed = 0

    def advance(units: int) -> None:
        nonlocal done, printed
        done += units
        reached = PLAIN_LINES * done // total if total else PLAIN_LINES
        if reached > printed:
            printed = reached
            say(f"{title}: {100 * done // total if total else 100} %")

    return advance
