"""A tiny target that ends its turns soon, and the command as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from redraft.benchmarks.tiny import VOCAB, make_tiny_target
from redraft.server.data.cli import app

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random target, a tenth of whose vocabulary ends a turn."""
    folder = make_tiny_target(tmp_path_factory.mktemp("talker"), tokenizer=True)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [VOCAB - 1, *range(256, 306)]}))
    return folder


@pytest.fixture(scope="session")
def data(talker: Path) -> Run:
    """Runs ``redraft data`` with the given words, a command that decodes with the tiny target unless told otherwise."""

    def run(command: str, *words: object, **options: object) -> Result:
        if command != "fetch":
            options = {"target": talker, "device": "cpu", "dtype": "fp32", **options}
        given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        return CliRunner().invoke(app, [command, *map(str, [*words, *given])])

    return run
