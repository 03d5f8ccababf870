"""``redraft train selector`` on a tiny target: from a draft to one with a selector, which serves; errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.checkpoint import read_draft
from redraft.drafts.dflash_config import DFlashConfig
from redraft.server.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"sft": ("--layers", "1", "--block-size", "4", "--taps", "1", "--vocab", "64", "--mask-token-id", "3")}


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs ``redraft train`` on a tiny target."""
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    target = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    data, dev = tmp_path / "data.jsonl", tmp_path / "dev.jsonl"
    rows = [{"prompt_ids": [5, n], "response_ids": [n, 7, 8, 9, 10, 11, n], "temperature": 0.0} for n in range(20, 26)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dev.write_text(json.dumps({"prompt_ids": [9, 9], "response_ids": [7, 8, 9, 10, 11, 7, 8], "temperature": 0.0}))
    common = ("--target", target, "--data", data, "--device", "cpu", "--dtype", "fp32", "--batch", "2", "--steps", "3")

    def run(kind: str, out: str, *options: str | Path) -> Result:
        words = ["train", kind, *common, "--out", tmp_path / out, *SIZES.get(kind, ()), *options]
        return CliRunner().invoke(app, list(map(str, words)))

    return run


def test_a_draft_gets_a_selector_and_serves(train, tmp_path: Path) -> None:
    assert train("sft", "first").exit_code == 0
    plain = tmp_path / "first" / "draft"
    made = train("selector", "second", "--start", plain, "--rank", "8", "--dev", tmp_path / "dev.jsonl")
    assert made.exit_code == 0, made.output
    before, after = read_draft(plain), read_draft(tmp_path / "second" / "draft")
    assert isinstance(after.config, DFlashConfig)
    assert after.config.selector_rank == 8
    assert len(after.config.tree_temperatures) == 3
    same = {name for name in before.tensors if torch.equal(before.tensors[name], after.tensors[name])}
    assert same == set(before.tensors)
    assert after.card["method"] == "dflash-selector"
    assert after.card["before"]["version"] == before.version
    said = f"generate ab --target {tmp_path / 'tiny'} --device cpu --max-tokens 9 --temperature 0 --draft".split()
    texts = [CliRunner().invoke(app, [*said, str(draft)]) for draft in (tmp_path / "second" / "draft", "none")]
    assert [result.exit_code for result in texts] == [0, 0], texts[0].output
    assert texts[0].stdout == texts[1].stdout
    more = train("selector", "third", "--start", tmp_path / "second" / "draft", "--rank", "8")
    assert more.exit_code == 0, more.output


@pytest.mark.parametrize("kind", ["sft", "opd"])
@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_other_training_leaves_the_selector_as_it_is(train, tmp_path: Path, kind: str, optimiser: str) -> None:
    assert train("sft", "first").exit_code == 0
    assert train("selector", "second", "--start", tmp_path / "first" / "draft", "--rank", "8").exit_code == 0
    start = tmp_path / "second" / "draft"
    words = ["train", kind, "--target", tmp_path / "tiny", "--data", tmp_path / "data.jsonl", "--start", start]
    words += ["--device", "cpu", "--batch", "2", "--steps", "3", "--optimiser", optimiser, "--out", tmp_path / "third"]
    made = CliRunner().invoke(app, list(map(str, words)))
    assert made.exit_code == 0, made.output
    before, after = read_draft(start).tensors, read_draft(tmp_path / "third" / "draft").tensors
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("candidate_selector")} <= same
    assert "fc.weight" not in same


def test_what_cannot_have_one_is_refused(train, tmp_path: Path) -> None:
    assert train("sft", "first").exit_code == 0
    assert train("selector", "second", "--start", tmp_path / "first" / "draft", "--rank", "8").exit_code == 0
    assert train("eagle3", "chains", "--depth", "2", "--taps", "0,1", "--draft-vocab", "64").exit_code == 0
    for start, words in (
        ("second", "has a selector of rank 8 already"),
        ("chains", "--start is an EAGLE-3 draft; redraft train eagle3 or opd goes on from it"),
    ):
        refused = train("selector", f"from-{start}", "--start", tmp_path / start / "draft")
        assert (refused.exit_code, words in refused.stderr) == (2, True), refused.output
