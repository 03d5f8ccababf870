"""Where a figure comes from: command, commit, machine, versions, date.  A figure without them is a rumour."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("redraft", "torch", "triton", "transformers")
SECRETS = ("--api-key",)


def stamp(command: Sequence[str], gpu: str | None = None) -> dict[str, Any]:
    """``date``, ``command``, ``commit``, ``dirty``, ``versions`` and ``machine`` for a benchmark's JSON.

    ``command`` is the command line by words, of which places on this machine are told by name alone; ``gpu`` the name
    of the device measured on, if it was one.
    """
    commit, dirty = _commit(Path(__file__).resolve().parent)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(without_places(without_secrets(command))),
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {"cpu": _cpu(), "cores": _cores(), "gpu": gpu},
    }


def without_secrets(command: Sequence[str]) -> list[str]:
    """The command line with the values of ``SECRETS`` struck out."""
    kept: list[str] = []
    for word in command:
        name, equals, _ = word.partition("=")
        if kept and kept[-1] in SECRETS:
            kept.append("***")
        else:
            kept.append(f"{name}=***" if equals and name in SECRETS else word)
    return kept


def without_places(command: Sequence[str]) -> list[str]:
    """The command line with absolute paths cut down to their names: results are passed on, and folders are private."""
    kept: list[str] = []
    for word in command:
        option, equals, value = word.partition("=")
        is_option = bool(equals) and option.startswith("-")
        path = Path(value if is_option else word)
        named = path.name or path.anchor
        kept.append(word if not path.is_absolute() else f"{option}={named}" if is_option else named)
    return kept


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of the checkout this code lies in, and whether anything but results differs from it; None outside one."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    # an installed copy may lie in some other project's repository, whose commit says nothing of this code
    if top is None or not _is_ours(Path(top)):
        return None, None
    changes = _git(Path(top), "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return _git(Path(top), "rev-parse", "HEAD"), None if changes is None else bool(changes)


def _is_ours(top: Path) -> bool:
    try:
        project = tomllib.loads((top / "pyproject.toml").read_text()).get("project", {})
    except (OSError, tomllib.TOMLDecodeError):
        return False
    return bool(project.get("name") == "redraft")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cores() -> int:
    """Cores this process may use, which a container may have fewer of than the machine."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
