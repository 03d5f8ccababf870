"""The bytes that a token stands for, which need not be characters.

A tokenizer decodes tokens to text, and half a character to U+FFFD.  What a token is by itself follows from how bytes
are written in the vocabulary: byte-level tokenizers write each as a printable character, those with byte fallback write
``<0x..>`` for some, and a bar for a space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BAR = "\u2581"
"""SentencePiece's space."""


def token_bytes_of(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """A function from ids to bytes: of special tokens their names, of ids that no token has none."""
    added = {number: token.content.encode() for number, token in tokenizer.get_added_tokens_decoder().items()}
    ordinary = _reader(_kinds(tokenizer), tokenizer)

    def read(token: int) -> bytes:
        if token in added:
            return added[token]
        name = tokenizer.id_to_token(token)
        return b"" if name is None else ordinary(token, name)

    return read


def _reader(kinds: set[str], tokenizer: Tokenizer) -> Callable[[int, str], bytes]:
    """How ordinary tokens, ids and names, are to be read."""
    if "ByteLevel" in kinds:
        table = _byte_level()
        return lambda _, name: b"".join(table.get(char) or char.encode() for char in name)
    if kinds & {"ByteFallback", "Metaspace"}:
        return lambda _, name: _read_fallback(name)
    return lambda token, _: tokenizer.decode([token]).encode()


def _read_fallback(name: str) -> bytes:
    byte = _FALLBACK.fullmatch(name)
    return name.replace(BAR, " ").encode() if byte is None else bytes([int(byte[1], 16)])


def _kinds(tokenizer: Tokenizer) -> set[str]:
    """The steps of the tokenizer's decoder."""
    if tokenizer.decoder is None:
        return set()
    step: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return {part["type"] for part in step.get("decoders", [step])}


def _byte_level() -> dict[str, bytes]:
    """GPT-2's characters: printable bytes of Latin-1 stand for themselves, the others for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): bytes([byte]) for byte in printable}
    return table | {chr(0x100 + number): bytes([byte]) for number, byte in enumerate(others)}
