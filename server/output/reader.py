"""One choice's text as a reply: reasoning first, then text and tool calls."""

from __future__ import annotations

from array import array
from bisect import bisect_left

from redraft.server.output.calls import CallParser
from redraft.server.output.piece import CallDelta, Piece
from redraft.server.output.reasoning import ReasoningSplitter


class OutputReader:
    """Reads one choice."""

    def __init__(self, reasoning: ReasoningSplitter | None = None, calls: CallParser | None = None) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._new: tuple[list[str], list[str], list[CallDelta]] = ([], [], [])
        self._length = 0
        self._ends = array("L")
        """Characters of the text behind each token, until the reasoning ended."""

    def push(self, text: str) -> None:
        """More of the text that belongs to the reply."""
        reasoning, answer = self._reasoning.push(text) if self._reasoning else ("", text)
        self._answer(reasoning, answer)

    def finish(self) -> None:
        """Nothing follows."""
        if self._reasoning:
            self._answer(*self._reasoning.finish())
        if self._calls:
            self._note("", *self._calls.finish())

    def took(self, characters: int) -> None:
        """A token was decoded, which settled ``characters`` of the text."""
        self._length += characters
        if self._reasoning and (self._reasoning.end is None or self._reasoning.end > self._length - characters):
            self._ends.append(self._length)

    def take(self) -> Piece:
        """What is new since the last time."""
        text, reasoning, calls = self._new
        piece = Piece("".join(text), "".join(reasoning), tuple(calls))
        self._new = ([], [], [])
        return piece

    @property
    def marks(self) -> frozenset[str]:
        """Texts that must be seen here even where the vocabulary has them as special tokens."""
        tags = (self._reasoning.tags.open, self._reasoning.tags.close) if self._reasoning else ()
        calls = (self._calls.marker, self._calls.closer) if self._calls else ()
        return frozenset((*tags, *calls)) - {""}

    @property
    def ended(self) -> bool:
        """Whether nothing that may follow belongs to the reply."""
        return self._calls is not None and self._calls.ended

    @property
    def called(self) -> bool:
        """Whether there was a tool call."""
        return self._calls is not None and self._calls.begun > 0

    @property
    def reasoning_tokens(self) -> int | None:
        """Tokens up to the end of the reasoning, its tags included; None where reasoning is not told apart."""
        if self._reasoning is None:
            return None
        end = self._reasoning.end
        if end is None:
            return len(self._ends) if self._reasoning.open else 0
        return min(bisect_left(self._ends, end) + 1, len(self._ends)) if end else 0

    def _answer(self, reasoning: str, answer: str) -> None:
        self._note(reasoning, *(self._calls.push(answer) if self._calls else (answer, ())))

    def _note(self, reasoning: str, text: str, calls: tuple[CallDelta, ...]) -> None:
        texts, reasonings, deltas = self._new
        reasonings.append(reasoning)
        texts.append(text)
        deltas.extend(calls)
