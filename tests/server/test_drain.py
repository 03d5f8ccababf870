"""A real process, engine and all, is told to stop: what ends well, what is told that it ends, and with which code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from redraft.benchmarks.tiny import make_tiny_target


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_target(tmp_path_factory.mktemp("tiny") / "tiny", tokenizer=True)


class Process:
    """``redraft serve``, ready."""

    def __init__(self, target: Path, output: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "redraft.server.cli", "serve", "--target", str(target), "--port", str(port)]
        self.url = f"http://127.0.0.1:{port}"
        self.output = output
        with output.open("wb") as log:
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            options = ("--device", "cpu", *options)
            self.popen = subprocess.Popen([*command, *options], stdout=log, stderr=subprocess.STDOUT, env=environment)
        self.http = httpx2.Client(base_url=self.url, timeout=30)

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 60
        while text not in self.output.read_text():
            assert self.popen.poll() is None, self.output.read_text()
            assert time.monotonic() < end, self.output.read_text()
            time.sleep(0.02)

    def status(self, path: str) -> int:
        """By a connection of its own."""
        return httpx2.get(f"{self.url}{path}").status_code


@pytest.fixture
def start(target: Path, tmp_path: Path) -> Iterator[object]:
    processes: list[Process] = []

    def start(*options: str) -> Process:
        processes.append(Process(target, tmp_path / f"output{len(processes)}", *options))
        return processes[-1]

    yield start
    for process in processes:
        process.popen.kill()
        process.popen.wait()
        process.http.close()


class Stream(threading.Thread):
    """Reads a stream of the completions endpoint to its end."""

    def __init__(self, process: Process, **body: object) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.events: list[str] = []
        self.complete = False
        self._process = process
        self._body = {"model": "tiny", "prompt": "hi", "stream": True, "temperature": 0, **body}
        self.start()
        assert self.begun.wait(20)

    def run(self) -> None:
        with self._process.http.stream("POST", "/v1/completions", json=self._body) as reply:
            for line in reply.iter_lines():
                self.events += [line[6:]] if line.startswith("data: ") else []
                self.begun.set()
            self.complete = True


LONG = {"n": 64, "max_tokens": 1000, "temperature": 1.0}
"""A quarter of a minute of work or more."""


def test_streams_end_well_and_nobody_new_comes_in(start):
    process = start()
    process.wait_for("curl")
    stream = Stream(process, n=32, max_tokens=300)
    process.popen.send_signal(signal.SIGTERM)
    process.wait_for("draining")
    assert (process.status("/ready"), process.status("/health")) == (503, 200)
    refused = httpx2.post(f"{process.url}/v1/completions", json={"model": "tiny", "prompt": "hi"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["retry-after"]
    assert stream.is_alive()
    stream.join(60)
    assert stream.events[-1] == "[DONE]"
    ends = [json.loads(event)["choices"][0]["finish_reason"] for event in stream.events[:-1]]
    assert sum(end is not None for end in ends) == 32
    assert process.popen.wait(10) == 0
    assert "Traceback" not in process.output.read_text()


def test_what_takes_too_long_is_told(start):
    process = start("--drain-seconds", "0.3")
    process.wait_for("curl")
    stream = Stream(process, **LONG)
    replies = []
    whole = {"model": "tiny", "prompt": "hi", **LONG}
    asking = threading.Thread(target=lambda: replies.append(httpx2.post(f"{process.url}/v1/completions", json=whole)))
    asking.start()
    time.sleep(0.3)
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
    assert "Traceback" not in process.output.read_text()


def test_a_second_signal_stops_now(start):
    process = start()
    process.wait_for("curl")
    with process.http.stream("POST", "/v1/completions", json={"model": "tiny", "prompt": "hi", "stream": True, **LONG}):
        process.popen.send_signal(signal.SIGTERM)
        process.wait_for("draining")
        time.sleep(0.3)
        assert process.popen.poll() is None
        asked = time.monotonic()
        process.popen.send_signal(signal.SIGINT)
        assert process.popen.wait(10) == 128 + signal.SIGINT
        assert time.monotonic() - asked < 3
    assert "Traceback" not in process.output.read_text()


def test_a_signal_while_the_model_loads(start):
    process = start()
    process.wait_for("listening")
    assert process.status("/ready") == 503
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(10) == 0
    assert "Traceback" not in process.output.read_text()
