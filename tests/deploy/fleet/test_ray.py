"""Ray Serve (PyPI: ray[serve]) makes a second replica under load and takes it away again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from redraft.benchmarks.tiny import make_tiny_target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RAY_SERVE = os.environ.get("RAY_SERVE") or shutil.which("serve")
"""Its Python need not be this one, but has to find Redraft."""
SECONDS = 120
"""For whatever has to become so; a busy machine is slow at starting processes."""
Get = Callable[[str], str | None]


@dataclass
class Ray:
    url: str
    mark: str
    """In the environment of everything that was started."""

    def engines(self) -> int:
        """Engines that run."""
        found = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = self.mark.encode() in (folder / "environ").read_bytes()
                found += ours and b"redraft.server.engine.worker" in (folder / "cmdline").read_bytes()
            except OSError:
                continue
        return found

    async def until(self, count: int) -> None:
        """Wait until there are ``count`` engines."""
        end = time.monotonic() + SECONDS
        while await asyncio.to_thread(self.engines) != count:
            assert time.monotonic() < end, self.engines()
            await asyncio.sleep(0.2)


@pytest.fixture
def ray(tmp_path: Path, repository: Path, get: Get, free_port: Callable[[], int]) -> Iterator[Ray]:
    if RAY_SERVE is None:
        pytest.skip("Ray Serve is not installed (PyPI: ray[serve]); RAY_SERVE names its program")
    target = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    port = free_port()
    mark = f"redraft-test-{uuid.uuid4()}"
    arguments = {"options": f"--target {target} --device cpu --draft ngram", "num_cpus": "0.5"}
    arguments |= {"max_replicas": "2", "target_ongoing_requests": "2", "upscale_delay_s": "1", "downscale_delay_s": "3"}
    application = {"name": "redraft", "route_prefix": "/", "import_path": "redraft_serve:app", "args": arguments}
    config = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "REDRAFT_TEST_MARK": mark}
    # Ray's own processes load the application, and --app-dir is for the command alone
    folders = [str(repository / "deploy" / "ray"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(folders)
    words = [RAY_SERVE, "run", str(tmp_path / "config.yaml")]
    # it ends by SIGINT alone, which a shell's background jobs ignore, and so would all that they start
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (tmp_path / "ray.log").open("wb") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    finally:
        signal.signal(signal.SIGINT, ours)
    running = Ray(f"http://127.0.0.1:{port}", mark)
    try:
        end = time.monotonic() + SECONDS
        while not get(f"{running.url}/ready"):
            assert process.poll() is None, (tmp_path / "ray.log").read_text()[-4000:]
            assert time.monotonic() < end, (tmp_path / "ray.log").read_text()[-4000:]
            time.sleep(0.2)
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
    assert running.engines() == 0


def test_ray_adds_a_replica_under_load_and_takes_it_away(ray: Ray, load: Any) -> None:
    assert ray.engines() == 1

    async def run() -> list[Any]:
        async with load.running(ray.url) as attempts:
            await ray.until(2)
            await asyncio.sleep(6)
        # the second one has drained by then
        await ray.until(1)
        async with aiohttp.ClientSession() as session:
            attempts.append(await load.ask(session, ray.url, "prompt 0 0", stream=True))
        return attempts

    attempts = asyncio.run(run())
    assert [attempt for attempt in attempts if attempt.text is None] == []
    assert len(attempts) > 2 * load.clients
    load.check_texts(attempts)
    print(f"scaled: {len(attempts)} requests, none failed")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"options": "--port 1"}, "--port is Ray's to decide"),
        ({"options": "--no-such-option"}, "No such option"),
        ({"replicas": "2"}, "Extra inputs are not permitted"),
    ],
)
def test_what_ray_decides_or_nobody_knows_is_refused(
    repository: Path, arguments: dict[str, str], complaint: str
) -> None:
    if RAY_SERVE is None:
        pytest.skip("Ray Serve is not installed (PyPI: ray[serve]); RAY_SERVE names its program")
    code = f"import sys; sys.path.insert(0, 'deploy/ray'); from redraft_serve import app; app({arguments!r})"
    python = Path(RAY_SERVE).with_name("python")
    result = subprocess.run([python, "-c", code], cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert complaint in result.stderr
