"""Shows that an image does what it promises: ``python deploy/image/check.py STORE TAG``, as root, without Docker.

It starts as a random user on a read-only root file system, becomes healthy, completes requests, is asked to stop while
one runs and finishes it; a dead engine makes it unhealthy; nothing is left behind.  The last line is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from container import Container, Image, running, status

QUESTION = [{"role": "user", "content": "Explain speculative decoding in one sentence."}]
SECONDS = 900
"""The first start may have to fetch and convert; measuring takes what the machine takes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="buildah's folder, as build.sh has it")
    parser.add_argument("tag")
    parser.add_argument("--most", type=float, help="most gigabytes (10^9) that the image may have")
    parser.add_argument(
        "--target", type=Path, help="folder of a target for an image without one; by default this machine's own"
    )
    options = parser.parse_args()
    image = Image(options.store, options.tag)
    try:
        embedded = any((image.root / "opt/redraft/share/redraft/targets").iterdir())
        found = check(image, None if embedded else options.target or cached_target())
        found["gigabytes"] = round(image.size() / 1e9, 3)
    finally:
        image.close()
    print(json.dumps({"image": options.tag, **found}))
    if options.most is not None and found["gigabytes"] > options.most:
        raise SystemExit(f"the image has {found['gigabytes']} GB, more than {options.most}")


def cached_target() -> Path:
    """The default target where ``redraft serve`` has put it on this machine."""
    cache = Path(os.environ.get("REDRAFT_CACHE") or Path.home() / ".cache" / "redraft")
    found = sorted((cache / "targets").glob("smollm2-135m-*/"))
    if not found:
        raise SystemExit("the image has no target, and this machine none to lend; give --target or EMBEDDED_TARGET")
    return found[-1]


def check(image: Image, target: Path | None) -> dict[str, Any]:
    """Raises ``SystemExit`` or ``AssertionError`` where something is not as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        cache, log = Path(folder) / "cache", Path(folder) / "log"
        cache.mkdir()
        cache.chmod(0o2770)  # root's and group 0's, as a fresh volume has it from the image
        more = {}
        if target is not None:
            # inside the cache, the one place that is mounted anyway
            more["REDRAFT_TARGET"] = "/var/cache/redraft/smollm2-135m"
            copy_read_only(target, cache / "smollm2-135m")
        start = time.monotonic()
        with running(image, cache, log, free_port(), **more) as container:
            container.wait_healthy(SECONDS)
            seconds = time.monotonic() - start
            print(log.read_text())
            found = serves(container)
            drains(container)
        with running(image, cache, log, free_port(), **more) as container:
            container.wait_healthy(SECONDS)
            engine_dies(container)
    return {"seconds_to_healthy": round(seconds, 1), **found}


def serves(container: Container) -> dict[str, Any]:
    """Every process is the random user's, two equal requests have equal answers."""
    users = {status(pid)["Uid"].split()[0] for pid in container.processes()}
    assert users == {str(container.user)}, users
    assert status(container.first)["Name"] == "tini"
    model = ask(container, "GET", "/v1/models")["data"][0]["id"]
    body = {"model": model, "messages": QUESTION, "max_tokens": 48, "temperature": 0, "include_metrics": True}
    first, second = (ask(container, "POST", "/v1/chat/completions", body) for _ in range(2))
    text = first["choices"][0]["message"]["content"]
    assert text.strip(), first
    assert text == second["choices"][0]["message"]["content"], second
    zombies = [pid for pid in container.processes() if status(pid)["State"].startswith("Z")]
    assert not zombies, zombies
    return {"model": model, "user": container.user, "text": text}


def drains(container: Container) -> None:
    """SIGTERM to process 1 lets the running stream end and stops with 0."""
    connection = http.client.HTTPConnection("127.0.0.1", container.port, timeout=120)
    model = ask(container, "GET", "/v1/models")["data"][0]["id"]
    body = {"model": model, "messages": QUESTION, "max_tokens": 64, "stream": True, "ignore_eos": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    reply.readline()
    container.stop()
    rest = reply.read().decode()
    assert rest.rstrip().endswith("data: [DONE]"), rest
    assert '"finish_reason":"length"' in rest.replace(" ", ""), rest
    code = container.process.wait(60)
    assert code == 0, (code, container.log.read_text()[-2000:])


def engine_dies(container: Container) -> None:
    """The engine killed: the health check fails, and the server still stops when told, with all that it started."""
    (engine,) = [p for p in container.processes() if b"engine.worker" in Path(f"/proc/{p}/cmdline").read_bytes()]
    os.kill(engine, signal.SIGKILL)
    end = time.monotonic() + 30
    while container.healthy():
        assert time.monotonic() < end, container.log.read_text()[-2000:]
        time.sleep(0.2)
    left = container.processes()
    container.stop()
    container.process.wait(60)
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]


def ask(container: Container, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """A request's answer; it must be 200."""
    connection = http.client.HTTPConnection("127.0.0.1", container.port, timeout=120)
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    text = reply.read().decode()
    assert reply.status == http.client.OK, text
    answer: dict[str, Any] = json.loads(text)
    return answer


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def copy_read_only(source: Path, target: Path) -> None:
    """The files of ``source``, which anybody may read and nobody may write."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
            (target / path.name).chmod(0o444)
    target.chmod(0o555)


if __name__ == "__main__":
    main()
