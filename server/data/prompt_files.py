"""Prompt files: one conversation a line, ``{"source": "...", "turns": ["...", ...]}``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redraft.server.data.rows import PromptRow, load
from redraft.server.engine.types import RedraftError

WANTED = 'a line must hold {"turns": ["what the user says", ...]}'


@dataclass(frozen=True, slots=True)
class PromptLine:
    """The first thing a user says, and where it stands."""

    source: str
    text: str
    place: str
    """File and line."""


def read_prompts(paths: Sequence[Path], limit: int | None = None) -> list[PromptLine]:
    """The first turns of the first ``limit`` conversations of each file (all for None).

    Every line of every file is checked.  Raises ``RedraftError`` with file and line for what is no conversation.
    """
    return [prompt for path in paths for prompt in _read(path)[:limit]]


def _read(path: Path) -> list[PromptLine]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RedraftError(f"cannot read {path} ({error.strerror}); {WANTED}") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path}:{number}"
            row = load(line, PromptRow, place, WANTED)
            source = path.stem if row.source is None else row.source
            prompts.append(PromptLine(source, row.turns[0], place))
    if not prompts:
        raise RedraftError(f"{path} holds no prompts; {WANTED}")
    return prompts
