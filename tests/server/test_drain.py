"""A real process, engine and all, is told to stop: what ends well, what is told that it ends, and with which code."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
import structlog
import uvicorn

from redraft.benchmarks.soak_process import ServedProcess
from redraft.benchmarks.tiny import make_tiny_target
from redraft.server.drain import DrainingServer


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_target(tmp_path_factory.mktemp("tiny") / "tiny", tokenizer=True)


@pytest.fixture
def start(target: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., ServedProcess]]:
    """Starts ``redraft serve``, and waits until it is ready unless that is asked for otherwise."""
    with ExitStack() as stack:

        def start(*options: str, until: str = "curl") -> ServedProcess:
            process = ServedProcess(
                ["--target", str(target), "--device", "cpu", *options], tmp_path / "output", environment
            )
            process.start()
            stack.callback(process.kill)
            says(process, until)
            return process

        yield start


def says(process: ServedProcess, text: str) -> None:
    assert process.said(text, 60), process.printed


def status(process: ServedProcess, path: str) -> int:
    """By a connection of its own."""
    return httpx2.get(f"{process.url}{path}", timeout=30).status_code


class Stream(threading.Thread):
    """Reads a stream of the completions endpoint to its end."""

    def __init__(self, process: ServedProcess, **body: object) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.events: list[str] = []
        self.complete = False
        self._url = f"{process.url}/v1/completions"
        self._body = {"model": "tiny", "prompt": "hi", "stream": True, "temperature": 0, **body}
        self.start()
        assert self.begun.wait(20)

    def run(self) -> None:
        with httpx2.stream("POST", self._url, json=self._body, timeout=30) as reply:
            for line in reply.iter_lines():
                self.events += [line[6:]] if line.startswith("data: ") else []
                self.begun.set()
            self.complete = True


LONG = {"n": 64, "max_tokens": 1000, "temperature": 1.0}
"""A quarter of a minute of work or more."""


def held(process: ServedProcess) -> float:
    """Choices that the engine has, running or not."""
    found = asyncio.run(process.held())
    return found["requests_running"] + found["requests_waiting"]


def test_streams_end_well_and_nobody_new_comes_in(start):
    process = start()
    stream = Stream(process, n=32, max_tokens=300)
    process.popen.send_signal(signal.SIGTERM)
    says(process, "draining")
    assert (status(process, "/ready"), status(process, "/health")) == (503, 200)
    refused = httpx2.post(f"{process.url}/v1/completions", json={"model": "tiny", "prompt": "hi"}, timeout=30)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["retry-after"]
    assert stream.is_alive()
    stream.join(60)
    assert stream.events[-1] == "[DONE]"
    ends = [json.loads(event)["choices"][0]["finish_reason"] for event in stream.events[:-1]]
    assert sum(end is not None for end in ends) == 32
    assert process.popen.wait(10) == 0
    assert "Traceback" not in process.printed


def test_what_takes_too_long_is_told(start):
    process = start("--drain-seconds", "0.3")
    stream = Stream(process, **LONG)
    replies = []
    url, whole = f"{process.url}/v1/completions", {"model": "tiny", "prompt": "hi", **LONG}
    asking = threading.Thread(target=lambda: replies.append(httpx2.post(url, json=whole, timeout=30)))
    asking.start()
    # until it is inside, for who comes later is refused with the same status and code
    end = time.monotonic() + 20
    while held(process) <= LONG["n"]:
        assert time.monotonic() < end
        assert stream.is_alive()
        assert asking.is_alive()
        time.sleep(0.02)
    process.popen.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    stream.join(20)
    asking.join(20)
    assert stream.events[-1] == "[DONE]"
    assert json.loads(stream.events[-2])["error"]["code"] == "draining"
    assert stream.complete
    assert (replies[0].status_code, replies[0].json()["error"]["code"]) == (503, "draining")
    assert process.popen.wait(10) == 0
    assert time.monotonic() - asked < 5
    assert "Traceback" not in process.printed


def test_a_second_signal_stops_now(start):
    process = start()
    body = {"model": "tiny", "prompt": "hi", "stream": True, **LONG}
    with httpx2.stream("POST", f"{process.url}/v1/completions", json=body, timeout=30):
        process.popen.send_signal(signal.SIGTERM)
        says(process, "draining")
        time.sleep(0.3)
        assert process.popen.poll() is None
        asked = time.monotonic()
        process.popen.send_signal(signal.SIGINT)
        assert process.popen.wait(10) == 128 + signal.SIGINT
        assert time.monotonic() - asked < 3
    assert "Traceback" not in process.printed


def test_a_signal_while_the_model_loads(start):
    process = start(until="listening")
    assert status(process, "/ready") == 503
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(10) == 0
    assert "Traceback" not in process.printed


def test_a_signal_is_not_of_the_request_in_whose_midst_it_comes():
    """Else the line in the log has that request's id."""
    seen = []

    async def run() -> None:
        server = DrainingServer(uvicorn.Config("none"), service=None)
        server._stop = lambda number: seen.append((number, structlog.contextvars.get_contextvars()))
        with server.capture_signals(), structlog.contextvars.bound_contextvars(request_id="r"):
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(run())
    assert seen == [(signal.SIGTERM, {})]
