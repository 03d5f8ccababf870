"""Prompt files: one conversation a line, ``{"turns": ["...", "..."]}`` (the form of MT-Bench and Spec-Bench)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from redraft.server.engine.types import RedraftError

Turns = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PromptFile:
    """What the user says in each conversation of one file."""

    name: str
    """The file's name without its folder."""
    conversations: tuple[Turns, ...]


def read_prompts(path: Path, limit: int | None = None, *, multi_turn: bool = False) -> PromptFile:
    """Read the first ``limit`` conversations of ``path`` (all for None), only their first turns unless ``multi_turn``.

    Raises ``RedraftError`` with file and line for anything that is not a conversation.
    """
    if limit is not None and limit < 1:
        raise RedraftError(f"--limit {limit} leaves no prompt to measure; give 1 or more, or leave it out")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines also splits inside strings, at U+2028
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RedraftError(f'cannot read {path} ({reason}); --prompts takes lines of {{"turns": [...]}}') from error
    conversations = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            turns = _turns(line, f"{path}:{number}")
            conversations.append(turns if multi_turn else turns[:1])
        if len(conversations) == limit:
            break
    if not conversations:
        raise RedraftError(f'{path} holds no prompts; it needs lines of {{"turns": [...]}}')
    return PromptFile(path.name, tuple(conversations))


def _turns(line: str, place: str) -> Turns:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RedraftError(f"{place}: not valid JSON ({error})") from error
    turns = row.get("turns") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise RedraftError(f'{place}: no turns; a line must hold {{"turns": ["what the user says", ...]}}')
    return tuple(turns)
