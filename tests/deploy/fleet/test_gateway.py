"""Two replicas behind SGLang's model gateway (PyPI: smg) under load: one killed, one drained, both back."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from redraft.benchmarks.tiny import make_tiny_target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
GATEWAY = os.environ.get("SMG") or shutil.which("smg")
SECONDS = 120
"""For whatever has to become so; a busy machine is slow at starting processes."""
Get = Callable[[str], str | None]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Replica:
    """One server on a port that it keeps over restarts."""

    target: Path
    folder: Path
    port: int
    get: Get

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = ["serve", "--target", str(self.target), "--device", "cpu", "--draft", "ngram", "--port", str(self.port)]
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        with (self.folder / f"{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "redraft.server.cli", *words], stdout=log, stderr=log, env=environment
            )

    def served(self) -> float:
        """Requests that it has answered since it started."""
        lines = (self.get(f"{self.url}/metrics") or "").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("redraft_requests_total"))


@dataclass
class Fleet:
    url: str
    replicas: list[Replica]
    get: Get

    def ready(self) -> list[str]:
        """Replicas that the gateway sends requests to."""
        workers = json.loads(self.get(f"{self.url}/workers") or "{}").get("workers", [])
        return [worker["url"] for worker in workers if worker["is_healthy"]]

    async def until(self, count: int) -> None:
        """Wait until the gateway knows ``count`` replicas to be ready."""
        end = time.monotonic() + SECONDS
        while len(await asyncio.to_thread(self.ready)) != count:
            assert time.monotonic() < end, self.ready()
            await asyncio.sleep(0.2)

    async def loaded(self, attempts: list[Any]) -> None:
        """Wait until every replica has answered requests, and requests of both kinds were answered."""
        end = time.monotonic() + SECONDS
        while True:
            served = [await asyncio.to_thread(replica.served) for replica in self.replicas]
            if all(served) and {attempt.stream for attempt in attempts} == {True, False}:
                return
            assert time.monotonic() < end, served
            await asyncio.sleep(0.2)


@pytest.fixture
def fleet(tmp_path: Path, get: Get) -> Iterator[Fleet]:
    if GATEWAY is None:
        pytest.skip("SGLang's model gateway is not installed (PyPI: smg); SMG names its program")
    target = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    replicas = [Replica(target, tmp_path, free_port(), get) for _ in range(2)]
    port = free_port()
    words = ["launch", "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin", "--log-level", "warn"]
    words += ["--worker-urls", *(replica.url for replica in replicas), "--disable-tokenizer-autoload"]
    words += ["--health-check-endpoint", "/ready", "--health-check-interval-secs", "1"]
    words += ["--health-failure-threshold", "1", "--health-success-threshold", "1", "--no-remove-unhealthy-workers"]
    words += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    processes = []
    try:
        for replica in replicas:
            replica.start()
        end = time.monotonic() + SECONDS
        while not all(get(f"{replica.url}/ready") for replica in replicas):
            assert time.monotonic() < end
            time.sleep(0.2)
        with (tmp_path / "gateway.log").open("wb") as log:
            processes.append(subprocess.Popen([GATEWAY, *words], stdout=log, stderr=log))
        fleet = Fleet(f"http://127.0.0.1:{port}", replicas, get)
        asyncio.run(fleet.until(2))
        yield fleet
    finally:
        for process in [*processes, *(replica.process for replica in replicas)]:
            process.kill()
            process.wait()


def test_a_killed_replica_costs_what_was_in_flight_and_comes_back(fleet: Fleet, load: Any) -> None:
    victim, other = fleet.replicas

    async def run() -> tuple[list[Any], float]:
        async with load.running(fleet.url) as attempts:
            await fleet.loaded(attempts)
            victim.process.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            victim.process.wait()
            await fleet.until(1)
            await asyncio.sleep(2)
            victim.start()
            await fleet.until(2)
            while not await asyncio.to_thread(victim.served):
                assert time.monotonic() < killed + SECONDS
                await asyncio.sleep(0.2)
        return attempts, killed

    attempts, killed = asyncio.run(run())
    failed = [attempt for attempt in attempts if attempt.text is None]
    assert [attempt for attempt in failed if not attempt.started <= killed <= attempt.ended] == []
    assert len(failed) <= load.clients
    print(f"killed: {len(attempts)} requests, {len(failed)} of them failed")
    assert sum(attempt.started > killed for attempt in attempts) > load.clients
    assert other.process.poll() is None
    load.check_texts(attempts)


def test_a_drained_replica_costs_nothing_and_comes_back(fleet: Fleet, load: Any) -> None:
    leaving = fleet.replicas[0]

    async def run() -> list[Any]:
        async with load.running(fleet.url) as attempts:
            await fleet.loaded(attempts)
            leaving.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(leaving.process.wait, 60) == 0
            await fleet.until(1)
            leaving.start()
            await fleet.until(2)
            end = time.monotonic() + SECONDS
            while not await asyncio.to_thread(leaving.served):
                assert time.monotonic() < end
                await asyncio.sleep(0.2)
        return attempts

    attempts = asyncio.run(run())
    assert [attempt for attempt in attempts if attempt.text is None] == []
    assert len(attempts) > 2 * load.clients
    print(f"drained: {len(attempts)} requests, none failed")
    load.check_texts(attempts)
