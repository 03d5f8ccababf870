"""Stopping: nothing new is taken, what runs may end, and whoever does not end in time is told."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import copy_context
from types import FrameType

import structlog
import uvicorn

from redraft.server.limits import FLUSH_SECONDS
from redraft.server.service import Service

SIGNALS = (signal.SIGINT, signal.SIGTERM)
log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """Goes on listening while it drains, so that probes and clients hear of it; uvicorn alone would hang up at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.forced_by: int | None = None
        """The signal that came while the server was stopping already."""
        self._service = service
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals meanwhile.  uvicorn's own raises them again at the end: a drained server has ended well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._loop, self._context = asyncio.get_running_loop(), copy_context()
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the next one stops now."""
        # asyncio must not be called from a handler but by this; a signal comes in the middle of somebody's request
        self._loop.call_soon_threadsafe(self._stop, sig, context=self._context)

    def _stop(self, sig: int) -> None:
        if self._service.draining:
            log.warning("stopping now", signal=signal.Signals(sig).name)
            self.forced_by = self.forced_by or sig
            self._hang_up()
            self.should_exit = True
            return
        self._service.draining = True
        self._draining = asyncio.create_task(self._drain(signal.Signals(sig).name))

    async def _drain(self, name: str) -> None:
        # what comes in from now on is refused, or asks how the server does
        running, seconds = set(self.server_state.tasks), self._service.settings.drain_seconds
        log.info("draining", signal=name, requests=len(running), seconds=seconds)
        if running:
            _, running = await asyncio.wait(running, timeout=seconds)
        if running:
            log.warning("ending what still runs", requests=self._service.admission.end_all())
            _, running = await asyncio.wait(running, timeout=FLUSH_SECONDS)
        if running:
            self._hang_up()
        self.should_exit = True

    def _hang_up(self) -> None:
        """Drop every connection, which ends its request as if the client had left."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
