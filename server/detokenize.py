"""Token ids to text, as they come, never showing half a character.

A character may span several tokens and, worse, what a token looks like may depend on the tokens before it (a leading
space, a run of byte tokens).  So each push decodes a short window: the tokens of the last piece that ended cleanly, for
context, and those since.  A decoder writes U+FFFD for bytes that are no character *yet*; such a tail is kept back until
more tokens settle it or the text ends.  What is emitted is, joined, what decoding all tokens at once gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
MAX_HELD = 8
"""Tail characters that later tokens may still change: an unfinished character is at most 3 bytes, but a run of byte
tokens shows as one U+FFFD a byte, those of the finished character before it included."""


class Detokenizer:
    """Text of one choice; ``decode`` maps token ids to text and leaves special tokens out."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._settled = 0
        """Tokens of the window that only serve as context."""
        self._emitted = 0
        """Characters of the window's text that were emitted."""

    def push(self, token: int) -> str:
        """The text that ``token`` settles, often all of its own, possibly none."""
        self._window.append(token)
        text = self._decode(self._window)
        held = len(text) - len(text.rstrip(REPLACEMENT))
        piece = self._emit(text[: len(text) - min(held, MAX_HELD)])
        if not held:
            self._settle()
        return piece

    def finish(self) -> str:
        """What was kept back, now that nothing follows."""
        return self._emit(self._decode(self._window))

    def _settle(self) -> None:
        """Make what came since the last settling the context of what follows, if it shows at all."""
        fresh = self._window[self._settled :]
        # skipped special tokens alone are no context: a decoder that strips a text's first space would strip it again
        if text := self._decode(fresh):
            self._window = fresh
            self._settled = len(fresh)
            self._emitted = len(text)

    def _emit(self, text: str) -> str:
        piece = text[self._emitted :]
        self._emitted = max(self._emitted, len(text))
        return piece
