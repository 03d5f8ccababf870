"""Grammars: which tokens may follow each node of a request's tree.

llguidance keeps the state of a request's grammar on the host: it takes in what was committed, walks a tree by taking
tokens in and back again, and writes one bit a token.  It was chosen over xgrammar because a request's own schema is
compiled in about a millisecond instead of 150, and because it needs neither torch nor anything else (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
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

        matcher = Matcher(partial(LLMatcher, self._tokenizer, grammar, log_level=0))
        if matcher.is_broken:
            raise RedraftError(f"the grammar cannot be used: {matcher.reason}")
        return matcher


class Matcher:
    """One request's grammar, at the end of what it has committed.

    llguidance has limits, and a matcher that has hit one is of no more use; nor are its copies, which share its lexer.
    A branch that a draft made up may hit one where the text never would.  So whatever breaks is made anew and takes the
    text in again: only if that breaks as well is it the text's own doing.
    """

    def __init__(self, make: Callable[[], LLMatcher]) -> None:
        """``make`` compiles the grammar, which takes a millisecond, 70 for the largest."""
        self._make, self._matcher = make, make()
        self._taken: list[int] = []
        self._walks = True

    @property
    def is_broken(self) -> bool:
        return self._matcher.is_error()

    @property
    def reason(self) -> str:
        """Why it is broken; llguidance adds its whole state in further lines."""
        return self._matcher.get_error().partition("\n")[0]

    def commit(self, token: int) -> None:
        """Take in ``token``, which masks allowed; ``RedraftError`` when the grammar has become too complex."""
        # a grammar that is at its end for good takes nothing in, not even the end token that it allows
        if self._matcher.is_stopped() and not self.is_broken:
            return
        self._taken.append(token)
        # it says yes to the end token also when it is broken
        self._matcher.consume_token(token)
        if self.is_broken and not self._renew():
            raise RedraftError(f"the grammar cannot go on: {self.reason}")

    def forced(self, most: int) -> list[int]:
        """Up to ``most`` tokens that write what the grammar leaves no choice about, as the tokenizer would."""
        return self._matcher.compute_ff_tokens()[:most] if most > 0 else []

    def masks(
        self, token: Sequence[int], parent: Sequence[int], into: NDArray[np.int32], seconds: float = math.inf
    ) -> list[int]:
        """Write into [N, words] ``into`` what may follow each node; rows after a refused one stay as they are.

        Node 0 is the root, the newest committed token; parents come before their children.  Returns nodes that must not
        be accepted, for nothing can be said of them: after ``seconds`` no further node is looked at, and where the walk
        breaks it ends; a request's later trees are then left out whole, or a draft that insists would break it in every
        round.
        """
        until = perf_counter() + seconds
        if not (self._fill(into[0]) or (self._renew() and self._fill(into[0]))):
            raise RedraftError(f"the grammar cannot go on: {self.reason}")
        left_out = self._walk(token, parent, into, until) if self._walks else list(range(1, len(token)))
        if self.is_broken:
            self._walks = False
            self._renew()
        return left_out

    def _walk(self, token: Sequence[int], parent: Sequence[int], into: NDArray[np.int32], until: float) -> list[int]:
        """Take the nodes in and back again, depth first; returns those that were not reached, if it had to end."""
        children: list[list[int]] = [[] for _ in token]
        for node in range(1, len(token)):
            children[parent[node]].append(node)
        path, below, missing = [0], [iter(children[0])], set(range(1, len(token)))
        while path:
            node = next(below[-1], 0)
            if node == 0:
                below.pop()
                if path.pop() != 0:
                    self._matcher.rollback(1)
            elif perf_counter() > until:
                self._matcher.rollback(len(path) - 1)
                return sorted(missing)
            elif self._matcher.try_consume_tokens([token[node]]) and self._fill(into[node]):
                missing.remove(node)
                path.append(node)
                below.append(iter(children[node]))
            if self.is_broken:
                return sorted(missing)
        return []

    def _renew(self) -> bool:
        """Begin anew and take in what was committed; whether that went well."""
        self._matcher = self._make()
        self._matcher.consume_tokens(self._taken)
        return not self.is_broken

    def _fill(self, mask: NDArray[np.int32]) -> bool:
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self.is_broken:
            mask.fill(EVERY_TOKEN)
        return not self.is_broken
