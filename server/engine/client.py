"""The seam between server and engine: submit, cancel (by closing the iterator) and stats.

The server holds an ``EngineClient`` and nothing else of the engine.  ``RemoteEngine`` (remote.py) is the real one;
tests use a fake that yields canned tokens.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from redraft.server.engine.types import EngineInfo, EngineStats, Request, RoundOutput


class EngineClient(Protocol):
    """What the server may ask of an engine."""

    @property
    def info(self) -> EngineInfo | None:
        """None while the target is loading."""

    @property
    def alive(self) -> bool:
        """False once the engine's process has ended; it does not come back by itself."""

    @property
    def stats(self) -> EngineStats:
        """As of the newest message from the engine."""

    def generate(self, request: Request) -> AsyncGenerator[RoundOutput, None]:
        """Decode ``request``; the last item has a ``finish_reason``.

        Closing the iterator early (``aclose``) cancels the request and frees its slot and pages at once.
        """

    async def wait_ready(self) -> EngineInfo:
        """Return once the engine can take requests; raises ``RedraftError`` when it could not start."""

    async def close(self) -> None:
        """Stop the engine's process."""
