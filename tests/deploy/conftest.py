"""Dashboards and rules as they lie in deploy/, and what they ask Prometheus for."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Json = dict[str, Any]


@pytest.fixture(scope="session")
def deploy(repository: Path) -> Path:
    return repository / "deploy"


@pytest.fixture(scope="session")
def dashboards(deploy: Path) -> dict[str, Json]:
    """By the name of the file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((deploy / "grafana/dashboards").glob("*.json"))}


@pytest.fixture(scope="session")
def rules(deploy: Path) -> list[Json]:
    """Recording rules and alerts."""
    return [
        rule
        for path in sorted((deploy / "prometheus/rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port that nobody listens on."""

    def find() -> int:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return int(probe.getsockname()[1])

    return find


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Path of a program of Debian's package prometheus; skips where it is absent."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed (Debian's package prometheus)")
        return path

    return find
