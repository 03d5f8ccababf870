"""Runs the app with uvicorn until it is told to stop or the engine cannot start."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import structlog
import uvicorn
from fastapi import FastAPI

from redraft.server.connection import Connection
from redraft.server.drain import DrainingServer
from redraft.server.engine.types import EngineInfo, RedraftError
from redraft.server.limits import FLUSH_SECONDS, KEEP_ALIVE_SECONDS, MAX_HEAD_BYTES, UNACKNOWLEDGED_SECONDS
from redraft.server.service import Service
from redraft.server.settings import ServerSettings

BACKLOG = 2048
log = structlog.get_logger(__name__)


def run(app: FastAPI, settings: ServerSettings, on_ready: Callable[[EngineInfo, int], None] | None = None) -> None:
    """Serve ``app`` until SIGINT or SIGTERM; ``on_ready`` gets the engine's description and the port.

    Raises ``RedraftError`` when the port is taken or the engine could not start, and ``SystemExit`` with the code that
    shells give a killed process when a second signal cut the drain short.
    """
    with listen(settings) as listener:
        forced_by = asyncio.run(_serve(app, settings, listener, on_ready))
    if forced_by is not None:
        raise SystemExit(128 + forced_by)


async def _serve(
    app: FastAPI,
    settings: ServerSettings,
    listener: socket.socket,
    on_ready: Callable[[EngineInfo, int], None] | None,
) -> int | None:
    """Returns the signal that ended the drain, if one did."""
    service: Service = app.state.service
    server = DrainingServer(uvicorn_config(app), service)
    port = listener.getsockname()[1]
    log.info("listening", host=settings.host, port=port)

    async def announce() -> None:
        info = await service.engine.wait_ready()
        log.info("ready", target=info.target, draft=info.draft, device=info.device, dtype=info.dtype)
        if on_ready is not None:
            on_ready(info, port)

    def stop_if_failed(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            server.should_exit = True

    starting = asyncio.create_task(announce())
    starting.add_done_callback(stop_if_failed)
    try:
        await server.serve(sockets=[listener])
    finally:
        starting.cancel()
    if starting.done():
        starting.result()
    return server.forced_by


def uvicorn_config(app: FastAPI) -> uvicorn.Config:
    """How ``app`` is served."""
    return uvicorn.Config(
        app,
        http=Connection,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
        access_log=False,
        log_config=None,
        log_level="error",  # a warning for whatever is no HTTP would let anybody fill the log
        lifespan="on",
        ws="none",
        server_header=False,
    )


def listen(settings: ServerSettings) -> socket.socket:
    """The socket to accept from; raises ``RedraftError`` when the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise RedraftError(
            f"Cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another --host or --port."
        ) from None
    # connections inherit both.  a small event must not wait for the acknowledgement of the one before (some 40 ms)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # for what the app has let go of already: a whole reply that nobody reads, a client that vanished
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_SECONDS * 1000)
    return listener
