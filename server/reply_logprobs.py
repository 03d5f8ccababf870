"""Log-probabilities as OpenAI's endpoints write them: the target's own, before temperature, penalties and bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel, Field

from redraft.server.engine.types import TokenLogprobs
from redraft.server.scored import ScoredToken

TokenBytes = Callable[[int], bytes]
LOWEST = -9999.0
"""Written for a token that cannot be, since JSON has no infinity."""


class TopLogprob(BaseModel):
    """A token and its log-probability."""

    token: str = Field(description="Its text; `bytes:` and escapes where it is no whole character.")
    logprob: float = Field(description="-9999 for a token that cannot be.")
    bytes: list[int] = Field(description="Its bytes; joined over tokens they are the text.")


class TokenLogprob(TopLogprob):
    """A token of the reply."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens in its place, likeliest first.")


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat's choice."""

    content: list[TokenLogprob] = Field(description="Tokens of the content; the one that ended it is left out.")
    refusal: None = Field(default=None, description="Always null; for compatibility.")


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion's choice; one element a token in every list."""

    tokens: list[str] = Field(description="Their texts; `bytes:` and escapes where one is no whole character.")
    token_logprobs: list[float | None] = Field(description="Null for a prompt's first token.")
    top_logprobs: list[dict[str, float] | None] = Field(description="The likeliest in its place, and the token itself.")
    text_offset: list[int] = Field(description="Characters of the choice's text before the token.")


class PromptLogprob(BaseModel):
    """What is told of one token, the prompt's or a likely one, in the place of a prompt's token."""

    logprob: float = Field(description="-9999 for a token that cannot be.")
    rank: int = Field(description="1 for the likeliest.")
    decoded_token: str = Field(description="Its text; `bytes:` and escapes where it is no whole character.")


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By the prompt's tokens, by token id; null for the first.  In vLLM's layout."""


def prompt_logprobs(ids: Sequence[int], scores: Sequence[TokenLogprobs], top: int, read: TokenBytes) -> PromptLogprobs:
    """``ids`` the prompt, ``scores`` of all its tokens but the first, ``top`` of the likeliest to be named."""
    told: PromptLogprobs = [None]
    for token, score in zip(ids[1:], scores, strict=True):
        ranked = [(other, logprob, rank) for rank, (other, logprob) in enumerate(score.top[:top], 1)]
        told.append(
            {
                str(other): PromptLogprob(logprob=finite(logprob), rank=rank, decoded_token=name(read(other)))
                for other, logprob, rank in (*ranked, (token, score.logprob, score.rank))
            }
        )
    return told


def chat_logprobs(tokens: Sequence[ScoredToken], read: TokenBytes) -> ChatLogprobs:
    """``read`` gives a token's bytes."""
    content = []
    for token in tokens:
        if token.scores is not None:
            top = [_entry(other, logprob, read) for other, logprob in token.scores.top]
            own = _entry(token.token, token.scores.logprob, read)
            content.append(TokenLogprob(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top))
    return ChatLogprobs(content=content)


def completion_logprobs(tokens: Sequence[ScoredToken], read: TokenBytes) -> CompletionLogprobs:
    """``read`` gives a token's bytes."""
    scores = [token.scores for token in tokens]
    return CompletionLogprobs(
        tokens=[name(read(token.token)) for token in tokens],
        token_logprobs=[None if score is None else finite(score.logprob) for score in scores],
        top_logprobs=[_top(token, read) for token in tokens],
        text_offset=[token.start for token in tokens],
    )


def name(raw: bytes) -> str:
    """``raw`` as text, if it is some."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def finite(logprob: float) -> float:
    """``logprob`` as JSON can hold it."""
    return max(logprob, LOWEST)


def _entry(token: int, logprob: float, read: TokenBytes) -> TopLogprob:
    raw = read(token)
    return TopLogprob(token=name(raw), logprob=finite(logprob), bytes=list(raw))


def _top(token: ScoredToken, read: TokenBytes) -> dict[str, float] | None:
    if token.scores is None:
        return None
    found: dict[str, float] = {}
    # two tokens may have one name: the likelier keeps it
    for other, logprob in (*token.scores.top, (token.token, token.scores.logprob)):
        found.setdefault(name(read(other)), finite(logprob))
    return found
