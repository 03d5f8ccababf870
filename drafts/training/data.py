"""Training texts: JSONL in, token ids out.

A row has ``prompt`` or ``prompt_ids``, and ``response`` or ``response_ids``; ids win, because text encoded again does
not give the same ids everywhere.  ``temperature``, ``seed``, ``finish_reason`` and ``source``
are optional (docs/training.md).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from redraft.drafts.dflash_config import DraftError

SKIPPED_SHORT = 2
"""Responses of fewer tokens teach nothing."""


@dataclass(frozen=True, slots=True)
class Text:
    """One prompt with the target's response, as ids."""

    tokens: tuple[int, ...]
    prompt: int
    """How many of ``tokens`` are the prompt's."""
    source: str = ""
    temperature: float = 0.0
    seed: int | None = None
    """Of the noise the answer was sampled with (64 bits, signed or not), where that is known."""

    @property
    def anchors(self) -> range:
        """Positions from which a block is drafted: the last prompt token to the last but one."""
        return range(self.prompt - 1, len(self.tokens) - 1)


class Encode(Protocol):
    """Turns rows without ids into ids."""

    def prompt(self, text: str) -> tuple[int, ...]:
        """A user's turn in the chat template, up to where the answer begins."""

    def response(self, text: str, ended: bool) -> tuple[int, ...]:
        """An answer; with the end-of-turn token if it ``ended`` by itself."""


def read_texts(paths: Sequence[Path], encode: Encode, vocab: int, max_length: int) -> list[Text]:
    """All usable rows of ``paths`` (.jsonl or .jsonl.gz) cut to ``max_length`` tokens.

    Raises ``DraftError`` naming file and line for anything that is not such a row.
    """
    texts = []
    for path in paths:
        for number, row in _rows(path):
            text = _text(row, encode, f"{path}, line {number}")
            if not all(0 <= token < vocab for token in text.tokens):
                raise DraftError(f"{path}, line {number}: a token id is not in the target's vocabulary of {vocab}")
            if text.prompt + SKIPPED_SHORT <= min(len(text.tokens), max_length):
                texts.append(replace(text, tokens=text.tokens[:max_length]))
    if not texts:
        raise DraftError(f"no usable row in {', '.join(map(str, paths))}")
    return texts


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DraftError(f"{path}, line {number}: not JSON ({error})") from None
                if not isinstance(row, dict):
                    raise DraftError(f"{path}, line {number}: not a JSON object")
                yield number, row
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DraftError(f"{path}: cannot be read ({error})") from None


def _text(row: dict[str, Any], encode: Encode, where: str) -> Text:
    prompt = _ids(row, "prompt_ids", where)
    if prompt is None:
        prompt = encode.prompt(_string(row, "prompt", where))
    response = _ids(row, "response_ids", where)
    if response is None:
        ended = row.get("finish_reason", "stop") == "stop"
        response = encode.response(_string(row, "response", where), ended)
    if not prompt:
        raise DraftError(f"{where}: the prompt has no tokens")
    temperature = row.get("temperature", 0.0)
    if not isinstance(temperature, int | float):
        raise DraftError(f"{where}: temperature is {temperature!r}, not a number")
    seed = row.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not -(1 << 63) <= seed < 1 << 64):
        raise DraftError(f"{where}: seed is {seed!r}, not a 64-bit number")
    return Text(prompt + response, len(prompt), str(row.get("source", "")), float(temperature), seed)


def _ids(row: dict[str, Any], name: str, where: str) -> tuple[int, ...] | None:
    ids = row.get(name)
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise DraftError(f"{where}: {name} is not a list of token ids")
    return tuple(ids)


def _string(row: dict[str, Any], name: str, where: str) -> str:
    text = row.get(name)
    if not isinstance(text, str):
        raise DraftError(f"{where}: neither {name}_ids nor the text {name}")
    return text


def common_tokens(texts: Iterable[Text], count: int, vocab: int, always: Iterable[int] = ()) -> tuple[int, ...]:
    """The ``count`` ids that responses use most, ascending; ``always`` are among them.

    Ids that never occur fill up from the lowest: tokenizers number by frequency.
    """
    seen = Counter[int]()
    for text in texts:
        seen.update(text.tokens[text.prompt :])
    ranked = sorted(range(vocab), key=lambda token: (-seen[token], token))
    first = list(dict.fromkeys(always))
    kept = first + [token for token in ranked if token not in set(first)]
    return tuple(sorted(kept[:count]))
