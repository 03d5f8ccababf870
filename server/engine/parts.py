"""Work on the device that is cut where the host has something to do, as in a round with a grammar.

It is a generator that launches a part each time it is resumed and yields what the host does before the next one: so one
function is a round that runs op by op, is recorded whole, or is recorded part by part (recording.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol, TypeVar, cast

from torch import Tensor

from redraft.kernels.rows import Rows

T = TypeVar("T")


class Allow(Protocol):
    """What grammars allow in a round; may read the rows' tokens, and must depend on each row's path alone."""

    def see(self, rows: Rows) -> None:
        """The round's R rows are these; called before the target's pass is launched."""

    def write(self, allowed: Tensor, left_out: Tensor) -> None:
        """Say what may follow each row, and which must not be accepted; called after the pass was launched.

        Both lie on the host: ``allowed`` [R, ceil(V / 32)] int32 (kernels/adjust.py), every token of every row so far;
        ``left_out`` [R] int32, 1 for nodes that must not be accepted, 0 so far.
        """


Between = Callable[[Allow], None]
"""What the host does between two parts."""
Parts = Generator[Between, None, T]


def complete(parts: Parts[T], allow: Allow | None = None) -> T:
    """Launch ``parts`` to the end, and do what is to be done in between; returns what comes of them.

    Raises ``ValueError`` if grammars are asked and there is no ``allow``.
    """
    while True:
        try:
            between = next(parts)
        except StopIteration as end:
            return cast(T, end.value)
        if allow is None:
            raise ValueError("a guided round was launched without its grammars")
        between(allow)
