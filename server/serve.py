"""Runs the app with uvicorn until it is told to stop or the engine cannot start."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from redraft.server.engine.types import EngineInfo, RedraftError
from redraft.server.service import Service
from redraft.server.settings import ServerSettings

BACKLOG = 2048
log = structlog.get_logger(__name__)


def run(app: FastAPI, settings: ServerSettings, on_ready: Callable[[EngineInfo, int], None] | None = None) -> None:
    """Serve ``app`` until SIGINT or SIGTERM; ``on_ready`` gets the engine's description and the port.

    Raises ``RedraftError`` when the port is taken or the engine could not start.
    """
    with _listen(settings) as listener:
        asyncio.run(_serve(app, settings, listener, on_ready))


async def _serve(
    app: FastAPI,
    settings: ServerSettings,
    listener: socket.socket,
    on_ready: Callable[[EngineInfo, int], None] | None,
) -> None:
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    server = _Server(config, service)
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


class _Server(uvicorn.Server):
    """Tells the service to take nothing new as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGINT or SIGTERM: drain; running requests get ``drain_seconds``."""
        self._service.draining = True
        super().handle_exit(sig, frame)


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
        # connections inherit it; a small event must not wait for the acknowledgement of the one before (some 40 ms)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise RedraftError(
            f"Cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another --host or --port."
        ) from None
