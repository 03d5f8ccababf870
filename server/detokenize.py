"""Token ids to text, as they come, never showing half a character.

A character may span several tokens and, worse, what a token looks like may depend on the tokens before it (a leading
space, a run of byte tokens).  So each push decodes a short window: the tokens of the last piece that ended cleanly, for
context, and those since.  A decoder writes U+FFFD for bytes that are no character *yet*; such a tail is kept back until
more tokens settle it or the text ends.  What is emitted is, joined, what decoding all tokens at once gives.

Bytes that never become characters would let the window grow for ever, so it is shortened where that provably changes
nothing (``_shortened``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
MAX_HELD = 8
"""Tail characters that later tokens may still change: an unfinished character is at most 3 bytes, but a run of byte
tokens shows as one U+FFFD a byte, those of the finished character before it included."""
MAX_CHARACTER = 4
"""Bytes, and so tokens, of one character."""
TAIL = MAX_HELD * MAX_CHARACTER
"""Tokens that stay when the window is shortened; they show all that is kept back."""
MAX_WINDOW = 3 * TAIL
"""Most tokens that are decoded at once."""


class Decoder(Protocol):
    """What a ``TextTokenizer`` offers here."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``."""

    def skips(self, token: int) -> bool:
        """Whether ``decode`` drops ``token`` before it looks at the others."""


class Detokenizer:
    """Text of one choice."""

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._settled = 0
        """Tokens of the window that only serve as context."""
        self._emitted = 0
        """Characters of the window's text that were emitted."""

    def push(self, token: int) -> str:
        """The text that ``token`` settles, often all of its own, possibly none."""
        if self._tokenizer.skips(token):
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        held = len(text) - len(text.rstrip(REPLACEMENT))
        piece = self._emit(text[: len(text) - min(held, MAX_HELD)])
        if not held:
            self._settle()
        elif len(self._window) >= MAX_WINDOW - 1:  # a token that ends the run may make it context for one more
            self._shorten(text)
        return piece

    def finish(self) -> str:
        """What was kept back, now that nothing follows."""
        return self._emit(self._tokenizer.decode(self._window))

    def _settle(self) -> None:
        """Make what came since the last settling the context of what follows, if it shows at all."""
        fresh = self._window[self._settled :]
        # a space alone is no context: a decoder that strips a text's first space would strip it again
        if text := self._tokenizer.decode(fresh):
            self._window = fresh
            self._settled = len(fresh)
            self._emitted = len(text)

    def _shorten(self, text: str) -> None:
        """Leave out the start of a window that shows ``text``, a long run of broken bytes at its end."""
        window = _shortened(self._tokenizer, self._window, text)
        pending = len(text) - self._emitted
        self._window = window
        self._settled = 0
        self._emitted = len(self._tokenizer.decode(window)) - pending

    def _emit(self, text: str) -> str:
        piece = text[self._emitted :]
        self._emitted = max(self._emitted, len(text))
        return piece


def _shortened(tokenizer: Decoder, window: list[int], text: str) -> list[int]:
    """A short window after which any tokens show the same as after ``window``.

    Decoders treat broken bytes in one of two ways.  Byte-level ones replace each unfinished character by itself: there
    any cut will do that goes through no character, so that both sides decode to ``text``, and of ``MAX_CHARACTER``
    cuts in a row one is such.  Byte fallback replaces every byte of a run that is broken anywhere: there what is left
    must be broken for good, unlike a run that only lacks its last character's end.
    """
    for cut in range(len(window) - TAIL - MAX_CHARACTER, len(window) - TAIL):
        tail = window[cut:]
        for_good = all(REPLACEMENT in tokenizer.decode(tail[: len(tail) - end]) for end in range(MAX_CHARACTER))
        if for_good and tokenizer.decode(window[:cut]) + tokenizer.decode(tail) == text:
            return tail
    # byte fallback whose tail is fine in itself: the same byte twice, that is no character, breaks it as the lost did
    broken = next((token for token in window if tokenizer.decode([token]) == REPLACEMENT), None)
    marked = window if broken is None else [broken, broken, *window[-TAIL:]]
    return marked if tokenizer.decode(marked) == REPLACEMENT * len(marked) else window
