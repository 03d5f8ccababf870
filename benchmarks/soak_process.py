"""A served process of its own, and what can be seen of it from outside: memory, files, gauges."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from redraft.server.engine.types import RedraftError

START_SECONDS = 300.0
HELD = ("requests_running", "requests_waiting", "kv_pages_used", "server_tasks")
"""Gauges of what is held for requests: as before once all have ended."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of the two processes."""

    server: int
    engine: int


class ServedProcess:
    """``redraft serve`` with ``options``, ready when the context begins; ``output`` gets what it prints."""

    def __init__(self, options: Sequence[str], output: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._output = output
        self._command = [sys.executable, "-m", "redraft.server.cli", "serve", "--port", str(port), *options]

    def __enter__(self) -> Self:
        with self._output.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + START_SECONDS
        while "curl " not in self._output.read_text():
            if self._process.poll() is not None or time.monotonic() > end:
                self._process.kill()
                self._process.wait()
                raise RedraftError(f"the server did not start: {self._output.read_text()[-2000:]}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Drain; the code that it ends with."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def memory(self) -> Memory:
        """As it is now; raises ``RedraftError`` when a process is gone."""
        engines = [int(child) for child in _read(self._process.pid, f"task/{self._process.pid}/children").split()]
        if not engines:
            raise RedraftError("the engine's process has ended")
        return Memory(_resident(self._process.pid), _resident(engines[0]))

    def files(self) -> int:
        """Open files and sockets of the server."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    async def held(self) -> dict[str, float]:
        """``HELD``, over a connection that is closed again."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as reply:
            families = text_string_to_metric_families(await reply.text())
            samples = {sample.name: sample.value for family in families for sample in family.samples}
        return {name: samples[f"redraft_{name}"] for name in HELD}


def _resident(pid: int) -> int:
    lines = _read(pid, "status").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError as error:
        raise RedraftError(f"process {pid} cannot be looked at: {error.strerror}") from error
