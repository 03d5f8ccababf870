"""An image that buildah made, started as an orchestrator starts it, on a machine without any: root on Linux only.

Namespaces of its own for processes and mounts, a root file system that cannot be written, a user that no passwd knows,
in group 0, and a volume for the caches.  The network is the machine's.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START = """
set -e
root=$1 cache=$2
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$cache" "$root/var/cache/redraft"
shift 2
exec chroot "$@"
"""


class Image:
    """A tag in buildah's store, its configuration and a mounted copy of its files."""

    def __init__(self, store: Path, tag: str) -> None:
        self._buildah = ["buildah", "--root", str(store / "layers"), "--runroot", str(store / "run")]
        self.config: dict[str, Any] = json.loads(self._run("inspect", "--type", "image", tag))["Docker"]["config"]
        self._container = self._run("from", tag)
        self.root = Path(self._run("mount", self._container))

    def close(self) -> None:
        """Remove the copy."""
        self._run("rm", self._container)

    def size(self) -> int:
        """Bytes of all files, as they lie on a disk before compression."""
        output = subprocess.run(["du", "-sx", "-B1", str(self.root)], check=True, capture_output=True, text=True).stdout
        return int(output.split()[0])

    def environment(self, **more: str) -> dict[str, str]:
        """The image's variables and ``more``."""
        return dict(entry.split("=", 1) for entry in self.config["Env"]) | more

    def command(self, user: int, environment: dict[str, str], words: list[str]) -> list[str]:
        """What ``chroot`` is told in order to run ``words`` as ``user`` in group 0."""
        variables = [f"{name}={value}" for name, value in environment.items()]
        place = self.config["WorkingDir"]
        return [f"--userspec={user}:0", "--groups=0", str(self.root), "env", "-i", "-C", place, *variables, *words]

    def _run(self, *words: str) -> str:
        return subprocess.run([*self._buildah, *words], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


class Container:
    """The image's entry point, running."""

    def __init__(self, image: Image, cache: Path, log: Path, port: int, **environment: str) -> None:
        self.image, self.port, self.log = image, port, log
        self.user = random.SystemRandom().randrange(1_000_000_000, 2_000_000_000)  # as OpenShift has them
        self.environment = image.environment(REDRAFT_PORT=str(port), REDRAFT_HOST="127.0.0.1", **environment)
        words = [*image.config["Entrypoint"], *image.config["Cmd"]]
        started = image.command(self.user, self.environment, words)
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        script = ["sh", "-c", START, "sh", str(image.root), str(cache)]
        with log.open("ab") as output:
            self.process = subprocess.Popen([*isolated, *script, *started], stdout=output, stderr=output)

    @property
    def first(self) -> int:
        """The container's process 1, by its number outside."""
        return children(self.process.pid)[0]

    def processes(self) -> list[int]:
        """All of the container's processes."""
        found, new = [], [self.first]
        while new:
            found += new
            new = [child for parent in new for child in children(parent)]
        return found

    def healthy(self) -> bool:
        """What the image's HEALTHCHECK says."""
        words = self.image.config["Healthcheck"]["Test"]
        assert words[0] == "CMD", words
        command = ["chroot", *self.image.command(self.user, self.environment, words[1:])]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def wait_healthy(self, seconds: float) -> None:
        """Return once the HEALTHCHECK succeeds."""
        end = time.monotonic() + seconds
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the container is not healthy; it said:\n{self.log.read_text()[-4000:]}")
            time.sleep(1)

    def stop(self) -> None:
        """What ``docker stop`` begins with."""
        os.kill(self.first, signal.SIGTERM)


@contextlib.contextmanager
def running(image: Image, cache: Path, log: Path, port: int, **environment: str) -> Iterator[Container]:
    """A container that is gone afterwards."""
    container = Container(image, cache, log, port, **environment)
    try:
        yield container
    finally:
        container.process.kill()
        container.process.wait()


def children(pid: int) -> list[int]:
    """Of one process; none where it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


def status(pid: int) -> dict[str, str]:
    """What the kernel tells of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
