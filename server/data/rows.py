"""What the lines of prompt and response files hold (docs/data.md), and how they are read and written.

A row carries everything that made it, so a file needs no second one beside it to be continued or trusted.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Literal, TypeVar

import msgspec

from redraft.server.engine.types import RedraftError

Text = Annotated[str, msgspec.Meta(min_length=1)]
Turns = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
R = TypeVar("R", bound=msgspec.Struct)

LINE_BREAKS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}
"""Characters that JSON takes as they are, but that ``str.splitlines`` takes for the end of a line."""


class PromptRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One conversation of a prompt file; other fields are left alone."""

    source: str | None = None
    """Which set it is from; by default the file's name."""
    turns: Turns
    """What the user says, turn by turn."""


class WrittenRow(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt that a target wrote itself; a ``PromptRow`` to whoever reads it."""

    source: str
    turns: Turns
    attempt: int
    """Which of the run's attempts gave it; the others were dropped."""
    seed: int
    """The attempt's own."""
    temperature: float
    max_tokens: int
    target: str
    """Digest of the weights."""
    fingerprint: str
    """Class within which the same command writes the same row (``EngineInfo.fingerprint``)."""


class ResponseRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a target answered."""

    source: str
    prompt: str
    prompt_ids: tuple[int, ...]
    """Exactly what was fed, chat template applied."""
    response: str
    response_ids: tuple[int, ...]
    """Exactly what came, the end-of-turn id included."""
    finish_reason: Literal["stop", "length"]
    temperature: float
    sample: int
    """Tells several answers to the same prompt apart."""
    seed: int
    """The row's own."""
    max_tokens: int
    target: str
    """Digest of the weights."""
    fingerprint: str
    """Class within which the same command writes the same row (``EngineInfo.fingerprint``)."""


def dump(row: msgspec.Struct) -> bytes:
    """``row`` as one line of JSON."""
    text = msgspec.json.encode(row).decode()
    for character, escaped in LINE_BREAKS.items():
        text = text.replace(character, escaped)
    return text.encode() + b"\n"


def load(line: bytes, kind: type[R], place: str, wanted: str) -> R:
    """The row in ``line``; raises ``RedraftError`` that names ``place`` and what is ``wanted`` there."""
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RedraftError(f"{place}: {error}; {wanted}") from error


def row_seed(*key: object) -> int:
    """Seed of the row that ``key`` names; 53 bits, so that every reader of JSON keeps it whole."""
    return int.from_bytes(blake2b(msgspec.json.encode(key), digest_size=8).digest()) >> 11
