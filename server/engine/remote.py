"""The engine as the server sees it: a process of its own, spoken to over a socket pair."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator

from redraft.server.engine.config import EngineConfig
from redraft.server.engine.types import EngineInfo, EngineStats, FinishReason, RedraftError, Request, RoundOutput
from redraft.server.engine.wire import (
    HEADER,
    Cancel,
    Failed,
    Ready,
    Start,
    Stepped,
    Submit,
    ToEngine,
    frame,
    read_from_engine,
)


class RemoteEngine:
    """An ``EngineClient`` whose engine runs in a child process, started at once."""

    def __init__(self, config: EngineConfig, worker: str = "redraft.server.engine.worker") -> None:
        """``worker``: the module that is run as the engine's process; it speaks as worker.py does."""
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self._failure: str | None = None
        self._queues: dict[str, asyncio.Queue[RoundOutput]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._sock, theirs = socket.socketpair()
        with theirs:
            # -P: the working directory must not shadow installed packages.  weights read at every pass want large
            # pages (docs/log.md); where glibc has no such tunable, or there is no glibc, this is ignored
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", worker, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ},
            )
        self._sock.sendall(frame(Start(config)))

    @property
    def alive(self) -> bool:
        # asked first, so that a process that ended leaves no zombie
        running = self._process.poll() is None
        return running and self._failure is None

    async def wait_ready(self) -> EngineInfo:
        """Return once the engine takes requests; ``RedraftError`` says why it does not."""
        if self._reading is None:
            reader, self._writer = await asyncio.open_connection(sock=self._sock)
            self._reading = asyncio.create_task(self._read(reader))
        await self._ready.wait()
        if self.info is None:
            raise RedraftError(self._failure or "the engine did not start")
        return self.info

    async def generate(self, request: Request) -> AsyncGenerator[RoundOutput, None]:
        """Decode ``request``; closing the iterator early cancels it."""
        if self.info is None or not self.alive:
            raise RedraftError(self._failure or "the engine is not ready")
        queue: asyncio.Queue[RoundOutput] = asyncio.Queue()
        self._queues[request.request_id] = queue
        self._send(Submit(request))
        finished = False
        try:
            while not finished:
                output = await queue.get()
                finished = output.finish_reason is not None
                yield output
        finally:
            del self._queues[request.request_id]
            if not finished and self.alive:
                self._send(Cancel(request.request_id))

    async def close(self) -> None:
        """End the engine's process: it stops by itself when the socket closes."""
        if self._reading is not None:
            self._reading.cancel()
            self._writer.close()
        self._sock.close()
        try:
            await asyncio.to_thread(self._process.wait, 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _send(self, message: ToEngine) -> None:
        self._writer.write(frame(message))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                size = HEADER.unpack(await reader.readexactly(HEADER.size))[0]
                match read_from_engine(await reader.readexactly(size)):
                    case Ready(info):
                        self.info = info
                        self._ready.set()
                    case Stepped(output):
                        self.stats = output.stats
                        for part in output.outputs:
                            if part.request_id in self._queues:
                                self._queues[part.request_id].put_nowait(part)
                    case Failed(message):
                        self._fail(message)
        except (asyncio.IncompleteReadError, OSError):
            self._fail("the engine's process ended")
        except Exception as error:
            self._fail(f"the engine's messages cannot be read: {error}")
            raise

    def _fail(self, message: str) -> None:
        """Every waiting request learns of it; the first reason is kept."""
        self._failure = self._failure or message
        self.stats = EngineStats()
        for request_id, queue in self._queues.items():
            queue.put_nowait(RoundOutput(request_id, finish_reason=FinishReason.ERROR, error=self._failure))
        self._ready.set()
