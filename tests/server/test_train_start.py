"""``redraft train sft --start``: training goes on from a finished draft."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.checkpoint import CONFIG, read_draft
from redraft.server.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = ("--layers", "1", "--block-size", "4", "--taps", "0,1", "--vocab", "64", "--dtype", "fp32", "--device", "cpu")


@pytest.fixture
def sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command on a tiny target."""
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    target = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    data = tmp_path / "data.jsonl"
    rows = ({"prompt_ids": [5, n], "response_ids": [n, 7, 8, 9, 10, 11, n], "temperature": 0.0} for n in range(20, 26))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(out: str, *options: str | Path) -> Result:
        given = ("--target", target, "--data", data, "--out", tmp_path / out, *options)
        return CliRunner().invoke(app, ["train", "sft", *map(str, given)])

    return run


def test_it_begins_with_the_drafts_weights_and_keeps_its_shape(sft, tmp_path: Path) -> None:
    assert sft("first", "--steps", "3", *SIZES).exit_code == 0
    first = read_draft(tmp_path / "first" / "draft")
    # a rate of next to nothing: what comes out is what went in
    still = sft(
        "still", "--steps", "1", "--rate", "1e-30", "--weight-decay", "0", "--start", tmp_path / "first" / "draft"
    )
    assert still.exit_code == 0, still.output
    second = read_draft(tmp_path / "still" / "draft")
    assert second.config.block_size == 4
    assert all(torch.equal(second.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert second.card["before"]["version"] == first.version
    assert second.card["before"]["steps"] == 3
    assert second.card["settings"]["start"] == first.version
    moved = sft("moved", "--steps", "2", "--start", tmp_path / "first" / "draft")
    assert moved.exit_code == 0, moved.output
    assert read_draft(tmp_path / "moved" / "draft").version != first.version


def test_what_the_draft_has_settled_is_not_settled_again(sft, tmp_path: Path) -> None:
    refused = sft("o", "--start", tmp_path, "--layers", "2", "--vocab", "64")
    assert refused.exit_code == 2
    assert "--layers, --vocab: settled by the draft of --start" in refused.stderr


def test_a_run_goes_on_only_from_the_draft_it_began_with(sft, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert sft(name, "--steps", "1", *SIZES, "--seed", "1" if name == "a" else "2").exit_code == 0
    assert sft("out", "--steps", "1", "--start", tmp_path / "a" / "draft").exit_code == 0
    other = sft("out", "--steps", "2", "--start", tmp_path / "b" / "draft")
    assert other.exit_code == 2
    assert "belongs to a run with other start" in other.stderr


def test_a_draft_for_another_target_is_refused(sft, tmp_path: Path) -> None:
    assert sft("a", "--steps", "1", *SIZES).exit_code == 0
    config = tmp_path / "a" / "draft" / CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_target_layers": 9}))
    refused = sft("out", "--steps", "1", "--start", tmp_path / "a" / "draft")
    assert refused.exit_code == 2
    assert "--start is a draft for a target with" in refused.stderr
