"""A served process of its own, and what can be seen of it from outside: memory, files, gauges."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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

    popen: subprocess.Popen[bytes]
    """There once it was started."""

    def __init__(self, options: Sequence[str], output: Path, environment: Mapping[str, str] | None = None) -> None:
        """``environment`` instead of this process's.  The port is kept however often it is started."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._output, self._environment = output, environment
        self._command = [sys.executable, "-m", "redraft.server.cli", "serve", "--port", str(port), *options]

    def __enter__(self) -> Self:
        self.start()
        try:
            if not self.said("curl ", START_SECONDS):
                raise RedraftError(f"the server did not start: {self.printed[-2000:]}")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Begin, without waiting until it is ready; again once it has ended, then over what it had printed."""
        with self._output.open("wb") as log:
            self.popen = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, env=self._environment)

    def said(self, text: str, seconds: float) -> bool:
        """Whether it has printed ``text`` since it was started, or does before it ends and within ``seconds``."""
        end = time.monotonic() + seconds
        while True:
            # asked before the text is read: what ends has printed all that it will
            last = self.popen.poll() is not None or time.monotonic() > end
            if text in self.printed:
                return True
            if last:
                return False
            time.sleep(0.05)

    def stop(self) -> int:
        """Drain; the code that it ends with."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(60)

    def kill(self) -> None:
        """End it now, if it has not ended."""
        self.popen.kill()
        self.popen.wait()

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def memory(self) -> Memory:
        """As it is now; raises ``RedraftError`` when a process is gone."""
        engines = [int(child) for child in _read(self.popen.pid, f"task/{self.popen.pid}/children").split()]
        if not engines:
            raise RedraftError("the engine's process has ended")
        return Memory(_resident(self.popen.pid), _resident(engines[0]))

    def files(self) -> int:
        """Open files and sockets of the server."""
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))

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
