"""A server on a tiny target, and its own counts to hold against what other projects' clients print of them."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from redraft.benchmarks.soak_process import ServedProcess
from redraft.benchmarks.tiny import make_tiny_target

NODES = 4


@dataclass(frozen=True, slots=True)
class Counts:
    """What speculation came to, by ``redraft_*``."""

    rounds: float
    drafts: float
    drafted: float
    accepted: float
    positions: tuple[float, ...]
    generated: float


@dataclass(frozen=True, slots=True)
class Served:
    """A server under other projects' clients."""

    url: str
    target: Path
    folder: Path
    """Where clients may write."""
    environment: dict[str, str]

    def counts(self) -> Counts:
        """As they are now."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as reply:
            families = text_string_to_metric_families(reply.read().decode())
        values = {
            (sample.name.removeprefix("redraft_"), sample.labels.get("position", "")): sample.value
            for family in families
            for sample in family.samples
            if sample.name.startswith("redraft_")
        }
        names = ("spec_rounds", "spec_drafts", "spec_draft_tokens", "spec_accepted_tokens", "generation_tokens")
        rounds, drafts, drafted, accepted, generated = (values[f"{name}_total", ""] for name in names)
        positions = tuple(values["spec_accepted_tokens_per_pos_total", str(position)] for position in range(NODES))
        return Counts(rounds, drafts, drafted, accepted, positions, generated)

    def run(self, words: Sequence[str | Path]) -> str:
        """What a client printed that ended well."""
        result = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
        return result.stdout


@pytest.fixture
def served(tmp_path: Path, environment: dict[str, str]) -> Iterator[Served]:
    """Nobody has asked it anything yet, not even for its metrics."""
    target = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    options = ["--target", str(target), "--device", "cpu", "--draft", "ngram", "--speculation", str(NODES)]
    # a terminal's width decides where tables are cut; Redraft is not in the clients' environments
    shown = {name: value for name, value in environment.items() if name != "PYTHONPATH"} | {"COLUMNS": "160"}
    with ServedProcess(options, tmp_path / "server.log", environment) as process:
        yield Served(process.url, target, tmp_path, shown)
