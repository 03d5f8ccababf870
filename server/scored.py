"""Which tokens of a choice are shown, with their log-probabilities, and when: with the text they begin.

Text lags behind tokens (half characters, beginnings of stop strings) and may be cut, so a token waits here until a
character behind its beginning is shown.  What a stop string cuts off entirely is never shown.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from redraft.server.engine.types import TokenLogprobs


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a reply."""

    token: int
    start: int
    """Characters of the choice's text before it."""
    scores: TokenLogprobs | None
    """None for a prompt's first token."""


class ScoredTokens:
    """Tokens of one choice on their way to the client."""

    def __init__(self) -> None:
        self._waiting: deque[ScoredToken] = deque()
        self._text = 0
        """Characters of all tokens so far."""
        self._shown = 0
        self._sum, self._count = 0.0, 0

    def push(self, token: int, piece: str, scores: TokenLogprobs | None) -> None:
        """``token`` has made ``piece`` certain, perhaps nothing yet; with ``scores`` it will be shown."""
        if scores is not None:
            self._waiting.append(ScoredToken(token, self._text, scores))
        self._text += len(piece)

    def count(self, scores: TokenLogprobs | None) -> None:
        """A token was made, to be shown or not."""
        if scores is not None:
            self._sum += scores.logprob
            self._count += 1

    @property
    def mean(self) -> float:
        """Log-probability a token of what was made; -inf of nothing."""
        return self._sum / self._count if self._count else float("-inf")

    def shown(self, text: str, *, all_of_it: bool = False) -> tuple[ScoredToken, ...]:
        """The tokens that begin in ``text``, which is shown next; with ``all_of_it`` all that wait."""
        self._shown += len(text)
        found = []
        while self._waiting and (all_of_it or self._waiting[0].start < self._shown):
            found.append(self._waiting.popleft())
        return tuple(found)
