"""Runs of ``redraft train sft`` on a tiny target."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from redraft.benchmarks.tiny import VOCAB, make_tiny_target
from redraft.server.cli import app

SIZES = [
    *("--taps", "0,1", "--layers", "1", "--block-size", "4", "--vocab", "64", "--max-length", "48", "--batch", "2"),
    *("--anchors", "4", "--save-every", "2", "--measure-every", "2", "--device", "cpu", "--dtype", "fp32"),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_target(tmp_path_factory.mktemp("target") / "tiny", tokenizer=True)


def _row(seed: int, length: int = 12, **extra: object) -> dict[str, Any]:
    ids = torch.randint(VOCAB, (length + 3,), generator=torch.Generator().manual_seed(seed)).tolist()
    return {"prompt_ids": ids[:3], "response_ids": ids[3:], "temperature": 0.0} | extra


def _write(path: Path, *rows: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    written = {"prompt": "Say hello.", "response": "hello hello hello hello", "finish_reason": "stop"}
    return _write(tmp_path / "data.jsonl", *(_row(n) for n in range(4)), written)


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    return _write(tmp_path / "dev.jsonl", *(_row(n, source=f"s{n % 2}") for n in range(100, 104)))


@pytest.fixture
def sft(target: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command; what it is given comes after the defaults here, and wins."""
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    runner = CliRunner()

    def run(*options: str | Path, steps: int = 4) -> Result:
        given = ["--target", str(target), "--data", str(data), "--out", str(tmp_path / "out"), "--steps", str(steps)]
        return runner.invoke(app, ["train", "sft", *given, *SIZES, *map(str, options)])

    return run


def _one_line(result: Result) -> str:
    """The error as the user sees it, after the lines that tell what is going on."""
    assert result.exit_code == 2, result.output
    *_, last = result.stderr.splitlines()
    assert last.startswith("redraft: "), result.stderr
    assert "Traceback" not in result.stderr
    return last


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """Makes a row of training data from a seed."""
    return _row


@pytest.fixture
def write() -> Callable[..., Path]:
    """Writes a file of rows."""
    return _write


@pytest.fixture
def one_line() -> Callable[[Result], str]:
    return _one_line


@pytest.fixture
def sizes() -> list[str]:
    """Options of a small run."""
    return SIZES
