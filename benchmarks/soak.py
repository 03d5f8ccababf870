"""``redraft bench soak``: a server under random load for long, and everything that must hold meanwhile and after.

No error of the server, every complete answer the one expected, memory flat, and nothing held once all have left.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from redraft.benchmarks.openai_client import _events
from redraft.benchmarks.soak_process import HELD, Memory, ServedProcess
from redraft.benchmarks.soak_requests import Attempt, Case, attempt, make_cases
from redraft.benchmarks.stamp import stamp
from redraft.server.engine.types import RedraftError

CASES = 24
SAMPLES = 60
"""Looks at the memory."""
GROWTH_BYTES, GROWTH_SHARE = 16 << 20, 0.02
"""What the medians of the run's second and last quarter may differ by, the larger of both."""
QUIET_SECONDS = 20.0
"""How long it may take after the last request until nothing is held."""


@dataclass
class Findings:
    """What happened."""

    attempts: Counter[str] = field(default_factory=Counter)
    """By what came of them: ``complete``, ``left``, ``refused``."""
    faults: list[str] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Something that must not be."""
        self.faults.append(text[:500])


class Soak:
    """One soak of a running server."""

    def __init__(self, process: ServedProcess, connections: int, seed: int, longest: int) -> None:
        self.found = Findings()
        self._process = process
        self._connections = connections
        self._source = random.Random(seed)
        self._cases = make_cases(CASES, self._source, longest)
        self._expected: dict[int, Any] = {}

    async def run(self, seconds: float) -> None:
        """Learn the answers one by one without speculation, then ask for so long."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self._process.url, connector=connector) as session:
            async with session.get("/v1/models") as reply:
                self._model = (await reply.json())["data"][0]["id"]
            self._expected = {case.number: await self._answer(session, case) for case in self._cases}
        before, files = await self._process.held(), self._process.files()
        async with aiohttp.ClientSession(self._process.url, connector=aiohttp.TCPConnector(limit=0)) as session:
            end = time.monotonic() + seconds
            watching = asyncio.create_task(self._watch(seconds))
            await asyncio.gather(*(self._ask_until(session, end, number) for number in range(self._connections)))
            await watching
        await self._check_nothing_held(before, files)
        self._check_memory()

    async def _answer(self, session: aiohttp.ClientSession, case: Case) -> Any:
        body = {"model": self._model, **case.body, "speculation": {"enabled": False}}
        async with session.post("/v1/completions", json=body) as reply:
            choice = (await reply.json())["choices"][0]
        return choice["text"], choice["finish_reason"]

    async def _ask_until(self, session: aiohttp.ClientSession, end: float, number: int) -> None:
        source = random.Random(self._source.random() + number)
        while time.monotonic() < end:
            asked = attempt(self._cases, source)
            try:
                self.found.attempts[await self._ask(session, asked)] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                self.found.fault(f"{type(error).__name__}: {error} for {asked.body}")
                await asyncio.sleep(0.1)

    async def _ask(self, session: aiohttp.ClientSession, asked: Attempt) -> str:
        """What came of it."""
        late = None if asked.patience is None or asked.body["stream"] else asked.patience / 1e3
        try:
            async with asyncio.timeout(late):
                async with session.post("/v1/completions", json={"model": self._model, **asked.body}) as reply:
                    return await self._read(reply, asked)
        except TimeoutError:
            if late is None:
                raise
            return "left"

    async def _read(self, reply: aiohttp.ClientResponse, asked: Attempt) -> str:
        if asked.case is None or reply.status != 200:
            if reply.status != (400 if asked.case is None else 200):
                self.found.fault(f"status {reply.status} for {asked.body}: {(await reply.text())[:200]}")
            await reply.read()
            return "refused"
        answers: dict[int, Any] = {}
        if asked.body["stream"]:
            seen = 0
            async for event in _events(reply):
                if seen == asked.patience:
                    # leaving closes the connection in the middle of the stream
                    reply.close()
                    return "left"
                seen += 1
                if "error" in event:
                    self.found.fault(f"{event['error']} in a stream for {asked.body}")
                    return "failed"
                for choice in event["choices"]:
                    text, _ = answers.get(choice["index"], ("", None))
                    answers[choice["index"]] = (text + choice["text"], choice["finish_reason"])
        else:
            answers = {c["index"]: (c["text"], c["finish_reason"]) for c in (await reply.json())["choices"]}
        self._compare(asked, answers)
        return "complete"

    def _compare(self, asked: Attempt, answers: dict[int, Any]) -> None:
        expected = self._expected[asked.case or 0]
        if answers != dict.fromkeys(range(asked.body.get("n", 1)), expected):
            self.found.fault(f"{answers} instead of {expected} for {asked.body}")

    async def _watch(self, seconds: float) -> None:
        for _ in range(SAMPLES):
            await asyncio.sleep(seconds / SAMPLES)
            self.found.memory.append(self._process.memory())

    async def _check_nothing_held(self, before: dict[str, float], files: int) -> None:
        end = time.monotonic() + QUIET_SECONDS
        while (held := await self._process.held()) != before or self._process.files() > files:
            if time.monotonic() > end:
                self.found.fault(f"still held: {held} and {self._process.files()} files; before: {before}, {files}")
                return
            await asyncio.sleep(0.2)

    def _check_memory(self) -> None:
        quarter = SAMPLES // 4
        for name in ("server", "engine"):
            second, last = self.growth(name, quarter)
            if last - second > max(GROWTH_BYTES, GROWTH_SHARE * second):
                self.found.fault(f"memory of the {name}'s process grew from {second >> 20} to {last >> 20} MiB")

    def growth(self, name: str, quarter: int = SAMPLES // 4) -> tuple[int, int]:
        """Median of the resident bytes in the second and in the last quarter."""
        sizes = [getattr(memory, name) for memory in self.found.memory]
        return int(median(sizes[quarter : 2 * quarter])), int(median(sizes[-quarter:]))


def run(
    options: Sequence[str],
    seconds: float,
    connections: int,
    seed: int,
    json_file: Path | None,
    command: list[str],
    longest: int = 60,
) -> Findings:
    """Serve with ``options`` of ``redraft serve`` and soak; prints what was found and, last, a line of JSON.

    Raises ``RedraftError`` when anything was that must not be.
    """
    with tempfile.TemporaryDirectory() as folder, ServedProcess(options, Path(folder) / "output") as process:
        soak = Soak(process, connections, seed, longest)
        asyncio.run(soak.run(seconds))
        found = soak.found
        code = process.stop()
        if code != 0:
            found.fault(f"the server ended with code {code}")
        if "Traceback" in process.printed:
            found.fault(f"the server printed a traceback: {process.printed[-2000:]}")
    growth = {name: soak.growth(name) for name in ("server", "engine")}
    print(f"{seconds:g} s, {connections} connections: " + ", ".join(f"{n} {k}" for k, n in found.attempts.items()))
    for name, (second, last) in growth.items():
        first, then = second / 2**20, last / 2**20
        print(f"memory of the {name}'s process: {first:.1f} MiB in the second quarter, {then:.1f} in the last")
    print(f"afterwards as before: {', '.join(HELD)}; faults: {len(found.faults)}")
    for fault in found.faults[:10]:
        print(f"  {fault}")
    figures = {"seconds": seconds, "connections": connections, "seed": seed, "attempts": found.attempts}
    line = json.dumps(
        {"benchmark": "soak", **stamp(command), **figures, "memory": growth, "faults": found.faults[:100]}
    )
    if json_file is not None:
        json_file.write_text(line + "\n")
    print(line, flush=True)
    if found.faults:
        raise RedraftError(f"the soak found {len(found.faults)} faults")
    return found
