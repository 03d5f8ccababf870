"""Names for the contents of KV pages, so that a later request with the same beginning can have them.  Torch-free.

A page's key stands for all tokens up to the page's end, for who may share them (``salt``) and for what else the page
holds (``version``, of the draft whose keys and values lie in the same page).  A key of 16 bytes is taken for the text
itself: with 2^40 pages two differ by chance with a probability under 2^-48.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from redraft.server.engine.config import PAGE

KEY_BYTES = 16


class PageKeys:
    """Keys of the full pages of one text that grows; each is computed once."""

    def __init__(self, version: str, salt: str) -> None:
        start = f"{len(version)}:{version}|{salt}".encode()
        self._keys = [blake2b(start, digest_size=KEY_BYTES).digest()]

    def upto(self, tokens: Sequence[int], pages: int) -> Sequence[bytes]:
        """Keys of the first ``pages`` pages of ``tokens``, which begins as it did at every earlier call."""
        keys = self._keys
        while len(keys) <= pages:
            start = (len(keys) - 1) * PAGE
            content = array("q", tokens[start : start + PAGE])
            if len(content) < PAGE:
                raise ValueError(f"page {len(keys)} is not full: {len(tokens)} tokens")
            keys.append(blake2b(content.tobytes(), digest_size=KEY_BYTES, key=keys[-1]).digest())
        return keys[1 : pages + 1]
