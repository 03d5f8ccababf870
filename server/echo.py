"""A prompt as a reply repeats it (``echo``), and what is told of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile

from redraft.server.detokenize import Decoder, Detokenizer
from redraft.server.engine.types import TokenLogprobs
from redraft.server.scored import ScoredToken


@dataclass(frozen=True, slots=True)
class Echo:
    """One prompt; without its text where that is not repeated."""

    ids: tuple[int, ...]
    text: str = ""
    """As it was sent; what its ids decode to where ids were sent."""
    starts: tuple[int, ...] = ()
    """Characters of the text before each token."""

    @classmethod
    def of_ids(cls, ids: tuple[int, ...], shown: Decoder) -> Echo:
        """A prompt that was sent as ids; ``shown`` says which special tokens are."""
        return cls(ids, shown.decode(ids), _starts(ids, shown))

    @classmethod
    def of_text(cls, text: str, ids: tuple[int, ...], shown: Decoder, around: Sequence[int]) -> Echo:
        """A prompt that was sent as ``text``, ``ids`` as the engine has it.

        ``shown`` shows special tokens, since the text may name some; ``around``: those that the tokenizer puts around
        every text, which are not in it.
        """
        own = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(around, ids, strict=False)))
        # a tokenizer that changes a text may decode to a longer one
        starts = [min(start, len(text)) for start in _starts(ids[own:], shown)]
        return cls(ids, text, (*[0] * own, *starts))

    def scored(self, scores: Sequence[TokenLogprobs], top: int) -> list[ScoredToken]:
        """Its tokens with what the engine said of all but the first, ``top`` of the likeliest each."""
        trimmed = [None, *(replace(score, top=score.top[:top]) for score in scores)]
        return [ScoredToken(*token) for token in zip(self.ids, self.starts, trimmed, strict=True)]

    def before(self, tokens: Sequence[ScoredToken]) -> list[ScoredToken]:
        """``tokens`` of what follows the prompt, where they stand behind it."""
        return [replace(token, start=token.start + len(self.text)) for token in tokens]


def _starts(ids: Sequence[int], shown: Decoder) -> tuple[int, ...]:
    """Characters of what ``ids`` show before each."""
    detokenizer = Detokenizer(shown)
    return tuple(accumulate((len(detokenizer.push(token)) for token in ids[:-1]), initial=0)) if ids else ()
