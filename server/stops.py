"""Stop strings in a text that arrives in pieces.

The text ends before the stop string that is completed first (of several completed by the same character, the one that
begins first), exactly as if the whole text had been searched at once, whatever the pieces.  For that, text is kept back
while it may be the beginning of a stop string.
"""

from __future__ import annotations

from collections.abc import Sequence

from redraft.server.limits import MAX_HELD_SPACES


class StopStrings:
    """Watches the text of one choice."""

    def __init__(self, stops: Sequence[str], *, shown: bool = False) -> None:
        """``shown``: the text ends behind the stop string instead of before it."""
        self._stops = stops
        self._shown = shown
        self._held = ""
        self.matched = False
        """Set once a stop string was found; nothing is emitted after that."""

    def push(self, piece: str) -> str:
        """The text that is certain to belong to the reply after ``piece``."""
        if self.matched:
            return ""
        text = self._held + piece
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            self.matched = True
            self._held = ""
            end, start = min(ends)
            return text[: end if self._shown else start]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was kept back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def settled(text: str, mark: str) -> int:
    """How much of ``text`` is certain to be text, where ``mark`` or spaces before one may follow."""
    end = len(text) - overlap(text, mark)
    return max(len(text[:end].rstrip()), end - MAX_HELD_SPACES)


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning, and not all, of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
