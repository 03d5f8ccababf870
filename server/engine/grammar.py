"""Grammars: which tokens may follow each node of a request's tree.

llguidance keeps the state of a request's grammar on the host: it takes in what was committed, walks a tree by taking
tokens in and back again, and writes one bit a token.  It was chosen over xgrammar because a request's own schema is
compiled in about a millisecond instead of 150, and because it needs neither torch nor anything else (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from redraft.server.engine.types import RedraftError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

EVERY_TOKEN = -1
"""A word of a mask that allows all of its 32 tokens."""


class Grammars:
    """What all grammars of one target share: its tokens as bytes."""

    def __init__(self, tokenizer: Path, vocab_size: int, end_tokens: Sequence[int]) -> None:
        """``tokenizer``: a tokenizer.json, read by ``prepare`` or the first grammar; ``end_tokens`` end a text."""
        self.path, self.vocab_size, self.end_tokens = tokenizer, vocab_size, list(end_tokens)

    def prepare(self) -> None:
        """Read the tokenizer now, a fifth of a second for 50,000 tokens, if grammars are possible at all."""
        with suppress(RedraftError, ImportError):
            self._tokenizer  # noqa: B018 (kept where it was first asked for)

    @property
    def words(self) -> int:
        """Words of a mask, 32 tokens each."""
        return -(-self.vocab_size // 32)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        if not self.path.is_file():
            raise RedraftError("structured output needs the target's tokenizer.json, which is not in its folder")
        from llguidance import LLTokenizer  # here, so that an engine without grammars does without the library

        try:
            return LLTokenizer(self.path.read_text(), n_vocab=self.vocab_size, eos_token=self.end_tokens)
        except Exception as error:  # llguidance names no class of its own
            raise RedraftError(f"the target's tokenizer does not serve structured output: {error}") from error

    def matcher(self, grammar: str) -> Matcher:
        """The start of ``grammar``, in llguidance's form; ``RedraftError`` says what is wrong with it."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RedraftError(f"the grammar cannot be used: {matcher.get_error().partition(chr(10))[0]}")
        return Matcher(matcher)


class Matcher:
    """One request's grammar, at the end of what it has committed."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def commit(self, tokens: Sequence[int]) -> None:
        """Take in ``tokens``, which masks allowed; ``RedraftError`` when the grammar has become too complex."""
        for token in tokens:
            # a grammar that is at its end for good takes nothing in, not even the end token that it allows
            if self._matcher.is_error() or not (self._matcher.is_stopped() or self._matcher.consume_token(token)):
                raise RedraftError(_broken(self._matcher))

    def forced(self, most: int) -> list[int]:
        """Up to ``most`` tokens that write what the grammar leaves no choice about, as the tokenizer would."""
        return self._matcher.compute_ff_tokens()[:most] if most > 0 else []

    def masks(self, token: Sequence[int], parent: Sequence[int], into: NDArray[np.int32]) -> None:
        """Write into [N, words] ``into`` what may follow each node; rows after a refused one stay as they are.

        Node 0 is the root, the newest committed token; parents come before their children.
        """
        children: list[list[int]] = [[] for _ in token]
        for node in range(1, len(token)):
            children[parent[node]].append(node)
        self._fill(into[0])
        path, below = [0], [iter(children[0])]
        while path:
            node = next(below[-1], 0)
            if node == 0:
                below.pop()
                if path.pop() != 0:
                    self._matcher.rollback(1)
            elif self._matcher.try_consume_tokens([token[node]]):
                self._fill(into[node])
                path.append(node)
                below.append(iter(children[node]))

    def _fill(self, mask: NDArray[np.int32]) -> None:
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            raise RedraftError(_broken(self._matcher))


def _broken(matcher: LLMatcher) -> str:
    """What ended ``matcher``; llguidance adds its whole state in further lines."""
    return f"the grammar cannot go on: {matcher.get_error().partition(chr(10))[0]}"
