"""``redraft bench overhead``: what the API costs, over an engine that computes nothing and commits at a given pace.

Server, engine and clients are processes of their own, as they are in service.  All streams begin together; the engine
alone would take tokens / pace seconds for them, and the server's part is how much longer the last client waits.  On a
machine with fewer cores than processes they also wait for one another, so the server's own seconds of processor time
are given beside that.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from redraft.benchmarks.overhead_worker import PACE
from redraft.benchmarks.stamp import stamp
from redraft.benchmarks.tiny import make_tiny_target
from redraft.server.engine.types import RedraftError

USAGE = re.compile(rb'"completion_tokens":(\d+)')


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine does."""

    rate: int = 20_000
    """Tokens per second of all streams together."""
    streams: int = 64
    width: int = 3
    """Tokens of a stream in a round, which make an event."""
    tokens: int = 1500
    """Of each stream."""

    @property
    def engine_seconds(self) -> float:
        """What the engine alone takes."""
        return self.streams * self.tokens / self.rate


@dataclass(frozen=True, slots=True)
class Took:
    """One pass of all streams."""

    seconds: float
    """From the first request to the end of the last stream."""
    server_seconds: float
    """Processor time of the server's process."""

    def figures(self, load: Load) -> dict[str, float]:
        """Shares, and microseconds per event."""
        events = load.streams * -(-load.tokens // load.width)
        return {
            "tokens_per_second": load.streams * load.tokens / self.seconds,
            "lost_share": max(0.0, 1 - load.engine_seconds / self.seconds),
            "server_core_share": self.server_seconds / self.seconds,
            "microseconds_per_event": 1e6 * self.server_seconds / events,
        }


@contextmanager
def fake_server(load: Load) -> Iterator[tuple[int, int]]:
    """Port and process id of a server whose engine is paced as ``load`` says."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_target(Path(folder), tokenizer=True)
        command = [sys.executable, "-m", "redraft.benchmarks.overhead_server", str(port), folder]
        environment = os.environ | {PACE: f"{load.rate},{load.width},{load.streams}"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            try:
                if process.stdout is None or process.stdout.readline() != b"ready\n":
                    raise RedraftError("the server did not start; its output above says why")
                yield port, process.pid
            finally:
                process.terminate()


async def stream_all(port: int, load: Load, seed: int) -> int:
    """Ask for all streams at once and read them to their ends; returns the tokens that came."""
    return sum(await asyncio.gather(*(_stream(port, load, seed + number) for number in range(load.streams))))


async def _stream(port: int, load: Load, seed: int) -> int:
    body = json.dumps(
        {
            "model": "fake",
            "prompt": "hi",
            "max_tokens": load.tokens,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
    last = b""
    while part := await reader.read(1 << 16):
        last = (last + part)[-2000:]
    writer.close()
    found = USAGE.search(last)
    if found is None:
        raise RedraftError(f"a stream ended with {last[-200:]!r}")
    return int(found[1])


def measure(port: int, pid: int, load: Load, seed: int) -> Took:
    """One pass; raises ``RedraftError`` when tokens are missing."""
    before, begun = _processor_seconds(pid), time.perf_counter()
    tokens = asyncio.run(stream_all(port, load, seed))
    took = Took(time.perf_counter() - begun, _processor_seconds(pid) - before)
    if tokens != load.streams * load.tokens:
        raise RedraftError(f"{tokens} tokens came of {load.streams * load.tokens}")
    return took


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(load: Load, repeat: int, json_file: Path | None, command: list[str]) -> dict[str, Any]:
    """Measure ``repeat`` passes; prints medians and, last, a line of JSON."""
    with fake_server(load) as (port, pid):
        # connections, code paths and caches are warm after a short one
        measure(port, pid, Load(load.rate, load.streams, load.width, 10 * load.width), 0)
        passes = [measure(port, pid, load, 1000 * (number + 1)).figures(load) for number in range(repeat)]
    figures = {name: median(one[name] for one in passes) for name in passes[0]}
    print(
        f"{load.streams} streams at {load.rate} tokens/s, {load.width} an event: {figures['tokens_per_second']:.0f} "
        f"tokens/s arrive, {100 * figures['lost_share']:.1f} % lost; the server takes "
        f"{100 * figures['server_core_share']:.0f} % of a core, {figures['microseconds_per_event']:.0f} µs an event"
    )
    asked = {"rate": load.rate, "streams": load.streams, "tokens_per_event": load.width, "tokens": load.tokens}
    line = json.dumps({"benchmark": "overhead", **stamp(command), **asked, **figures, "passes": passes})
    if json_file is not None:
        json_file.write_text(line + "\n")
    print(line, flush=True)
    return figures
