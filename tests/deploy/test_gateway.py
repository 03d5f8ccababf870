"""Two replicas behind SGLang's model gateway (PyPI: smg) under load: one killed, one drained, both rejoining."""

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
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from redraft.benchmarks.tiny import make_tiny_target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
GATEWAY = os.environ.get("SMG") or shutil.which("smg")
WORKERS = 6
TOKENS = 600
SECONDS = 120
"""For whatever has to become so; a busy machine is slow at starting processes."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def get(url: str) -> str | None:
    """What ``url`` answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return str(reply.read().decode())
    except (OSError, urllib.error.HTTPError):
        return None


@dataclass
class Replica:
    """One server on a port that it keeps over restarts."""

    target: Path
    folder: Path
    port: int = field(default_factory=free_port)

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
        lines = (get(f"{self.url}/metrics") or "").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("redraft_requests_total"))


@dataclass
class Fleet:
    url: str
    replicas: list[Replica]

    def ready(self) -> list[str]:
        """Replicas that the gateway sends requests to."""
        workers = json.loads(get(f"{self.url}/workers") or "{}").get("workers", [])
        return [worker["url"] for worker in workers if worker["is_healthy"]]

    async def until(self, count: int) -> None:
        """Wait until the gateway knows ``count`` replicas to be ready."""
        end = time.monotonic() + SECONDS
        while len(await asyncio.to_thread(self.ready)) != count:
            assert time.monotonic() < end, self.ready()
            await asyncio.sleep(0.2)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    if GATEWAY is None:
        pytest.skip("SGLang's model gateway is not installed (PyPI: smg); SMG names its program")
    target = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    replicas = [Replica(target, tmp_path), Replica(target, tmp_path)]
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
        fleet = Fleet(f"http://127.0.0.1:{port}", replicas)
        asyncio.run(fleet.until(2))
        yield fleet
    finally:
        for process in [*processes, *(replica.process for replica in replicas)]:
            process.kill()
            process.wait()


@dataclass
class Attempt:
    prompt: str
    stream: bool
    started: float
    ended: float = 0.0
    text: str | None = None
    """None where it failed."""
    error: str = ""


async def ask(session: aiohttp.ClientSession, url: str, prompt: str, *, stream: bool) -> Attempt:
    """One request, through to its end."""
    attempt = Attempt(prompt, stream, time.monotonic())
    body = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    try:
        async with session.post(f"{url}/v1/completions", json=body | {"stream": stream}) as reply:
            raw = (await reply.read()).decode()
            if reply.status != 200:
                raise ValueError(f"{reply.status} {raw[:200]}")
        if not stream:
            attempt.text = json.loads(raw)["choices"][0]["text"]
        else:
            events = [line.removeprefix("data: ") for line in raw.splitlines() if line.startswith("data: ")]
            if not events or events.pop() != "[DONE]":
                raise ValueError("the stream was cut off")
            attempt.text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
    except (aiohttp.ClientError, ValueError, KeyError, TimeoutError) as error:
        attempt.error = f"{type(error).__name__}: {error}"
    attempt.ended = time.monotonic()
    return attempt


@asynccontextmanager
async def load(url: str) -> Any:
    """Requests without a pause while the context lasts; the list has all of them when it ends."""
    attempts: list[Attempt] = []
    stopping = asyncio.Event()

    async def client(number: int) -> None:
        while not stopping.is_set():
            prompt = f"prompt {number} {len(attempts) % 5}"
            attempts.append(await ask(session, url, prompt, stream=len(attempts) % 2 == 0))

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        clients = [asyncio.create_task(client(number)) for number in range(WORKERS)]
        try:
            yield attempts
        finally:
            stopping.set()
            await asyncio.gather(*clients)


def one_text_a_prompt(attempts: list[Attempt]) -> None:
    """Whoever answers, streamed or not: the same prompt has the same text."""
    texts: dict[str, set[str]] = {}
    for attempt in attempts:
        if attempt.text is not None:
            assert attempt.text
            texts.setdefault(attempt.prompt, set()).add(attempt.text)
    assert [prompt for prompt, found in texts.items() if len(found) > 1] == []


def test_a_killed_replica_costs_what_was_in_flight_and_comes_back(fleet: Fleet) -> None:
    victim, other = fleet.replicas

    async def run() -> tuple[list[Attempt], float]:
        async with load(fleet.url) as attempts:
            await asyncio.sleep(4)
            assert min(replica.served() for replica in fleet.replicas) > 0
            assert {attempt.stream for attempt in attempts} == {True, False}
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
    assert len(failed) <= WORKERS
    print(f"killed: {len(attempts)} requests, {len(failed)} of them failed")
    assert sum(attempt.started > killed for attempt in attempts) > WORKERS
    assert other.process.poll() is None
    one_text_a_prompt(attempts)


def test_a_drained_replica_costs_nothing_and_comes_back(fleet: Fleet) -> None:
    leaving = fleet.replicas[0]

    async def run() -> list[Attempt]:
        async with load(fleet.url) as attempts:
            await asyncio.sleep(4)
            assert min(replica.served() for replica in fleet.replicas) > 0
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
    assert len(attempts) > 2 * WORKERS
    print(f"drained: {len(attempts)} requests, none failed")
    one_text_a_prompt(attempts)
