"""What a stretch of a model's text adds to a reply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What is new of one tool call."""

    index: int
    """Number of the call within its reply."""
    id: str = ""
    """With the call's first delta only, as is ``name``."""
    name: str = ""
    arguments: str = ""
    """More of the arguments, which are, joined, the text of a JSON object."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of a reply."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
