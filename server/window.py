"""Rounds and tokens of the last ten seconds, in bins, so that memory does not grow with the rate."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

SECONDS = 10.0
BIN_SECONDS = 0.25


@dataclass(slots=True)
class _Bin:
    number: int
    rounds: int = 0
    tokens: int = 0


class Window:
    """A sliding sum over ``SECONDS``, exact to ``BIN_SECONDS``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._bins: deque[_Bin] = deque()

    def add(self, tokens: int) -> None:
        """One round that committed ``tokens``."""
        number = int(self._clock() / BIN_SECONDS)
        if not self._bins or self._bins[-1].number != number:
            self._drop_old()
            self._bins.append(_Bin(number))
        self._bins[-1].rounds += 1
        self._bins[-1].tokens += tokens

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the window over its length; reads low in a server's first ten seconds."""
        self._drop_old()
        return sum(each.tokens for each in self._bins) / SECONDS

    @property
    def tokens_per_round(self) -> float | None:
        """Mean acceptance length; None when no round ran."""
        self._drop_old()
        rounds = sum(each.rounds for each in self._bins)
        return sum(each.tokens for each in self._bins) / rounds if rounds else None

    def _drop_old(self) -> None:
        oldest = int((self._clock() - SECONDS) / BIN_SECONDS)
        while self._bins and self._bins[0].number <= oldest:
            self._bins.popleft()
