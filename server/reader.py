"""The reader of a stream: a client that takes nothing for long is not written to any more.

What a stream has made and its client has not taken lies in memory: in the generation's queue, in the transport's buffer
(64 KB) and in the kernel's.  A client that reads is never cut, however slow the server is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import Message, Send

from redraft.server.limits import FULL_READER_SECONDS, MAX_PENDING_DELTAS, READER_CHECK_SECONDS, SLOW_READER_SECONDS


class Reader:
    """``send`` of one stream; calls ``cut`` once when its client has stopped reading."""

    def __init__(self, send: Send, pending: Callable[[], int], cut: Callable[[], None]) -> None:
        """``pending``: how many deltas wait to be sent."""
        self._send = send
        self._pending = pending
        self._cut = cut
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        """When the send that is under way began."""
        self._timer = self._loop.call_later(READER_CHECK_SECONDS, self._check)

    async def send(self, message: Message) -> None:
        """Pass ``message`` on; waits while the client does not read."""
        self._since = self._loop.time()
        await self._send(message)
        self._since = None

    def close(self) -> None:
        """Stop watching."""
        self._timer.cancel()

    def _check(self) -> None:
        waited = 0.0 if self._since is None else self._loop.time() - self._since
        full = self._pending() > MAX_PENDING_DELTAS
        if waited >= (FULL_READER_SECONDS if full else SLOW_READER_SECONDS):
            self._cut()
        else:
            self._timer = self._loop.call_later(READER_CHECK_SECONDS, self._check)
