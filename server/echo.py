"""A prompt as a reply repeats it (``echo``), and what is told of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from redraft.server.detokenize import Detokenizer
from redraft.server.engine.types import TokenLogprobs
from redraft.server.scored import ScoredToken
from redraft.server.text import TextTokenizer


@dataclass(frozen=True, slots=True)
class Echo:
    """One prompt; without its text where that is not repeated."""

    ids: tuple[int, ...]
    text: str = ""
    """As it was sent; what its ids decode to where ids were sent."""
    starts: tuple[int, ...] = ()
    """Characters of the text before each token."""

    @classmethod
    def of(cls, prompt: str | Sequence[int], ids: tuple[int, ...], tokenizer: TextTokenizer) -> Echo:
        """``prompt`` as it was sent, ``ids`` as the engine has it."""
        text = prompt if isinstance(prompt, str) else tokenizer.decode(ids)
        detokenizer, starts, length = Detokenizer(tokenizer), list[int](), 0
        for token in ids:
            # a tokenizer that changes a text may decode to a longer one
            starts.append(min(length, len(text)))
            length += len(detokenizer.push(token))
        return cls(ids, text, tuple(starts))

    def scored(self, scores: Sequence[TokenLogprobs], top: int) -> list[ScoredToken]:
        """Its tokens with what the engine said of all but the first, ``top`` of the likeliest each."""
        trimmed = [None, *(replace(score, top=score.top[:top]) for score in scores)]
        return [ScoredToken(*token) for token in zip(self.ids, self.starts, trimmed, strict=True)]

    def before(self, tokens: Sequence[ScoredToken]) -> list[ScoredToken]:
        """``tokens`` of what follows the prompt, where they stand behind it."""
        return [replace(token, start=token.start + len(self.text)) for token in tokens]
