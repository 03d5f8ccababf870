"""``redraft train opd`` on a tiny target: from a draft to a better informed one, going on, options, errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.checkpoint import read_draft
from redraft.drafts.training.opd_settings import OpdSettings
from redraft.server.cli import app
from redraft.server.train import RunOptions

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = ("--layers", "1", "--block-size", "4", "--taps", "0,1", "--vocab", "64")


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs ``redraft train`` on a tiny target."""
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    target = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    data = tmp_path / "data.jsonl"
    rows = ({"prompt_ids": [5, n], "response_ids": [n, 7, 8, 9, 10, 11, n], "temperature": 0.0} for n in range(20, 26))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("--target", target, "--data", data, "--device", "cpu", "--dtype", "fp32", "--batch", "2")

    def run(kind: str, out: str, *options: str | Path) -> Result:
        return CliRunner().invoke(app, ["train", kind, *map(str, (*common, "--out", tmp_path / out, *options))])

    return run


@pytest.fixture
def start(train, tmp_path: Path) -> Path:
    assert train("sft", "first", "--steps", "2", *SIZES).exit_code == 0
    return tmp_path / "first" / "draft"


@pytest.mark.parametrize("teacher", ["draft", "trajectory", "none"])
def test_a_run_leaves_a_draft_with_its_card(train, start: Path, tmp_path: Path, teacher: str) -> None:
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps({"prompt_ids": [9, 9], "response_ids": [7, 8, 9, 10, 11, 7, 8], "temperature": 0.0}))
    made = train("opd", "run", "--start", start, "--dev", dev, "--steps", "3", "--suffix-teacher", teacher)
    assert made.exit_code == 0, made.output
    before, after = read_draft(start), read_draft(tmp_path / "run" / "draft")
    assert after.config.draft_vocab == before.config.draft_vocab == 64
    assert not torch.equal(after.tensors["fc.weight"], before.tensors["fc.weight"])
    assert after.card["method"] == "draft-opd"
    assert after.card["before"]["version"] == before.version
    assert after.card["settings"]["suffix_teacher"] == teacher
    assert after.card["development_tau"] >= 1
    spent = after.card["training_flops"]
    assert min(spent.values()) > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "state" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["rounds"] >= 2 and line["train_tau"] >= 1 for line in lines)


def test_reading_behind_wrong_tokens_costs_more_of_the_target(train, start: Path, tmp_path: Path) -> None:
    for teacher in ("draft", "trajectory"):
        options = ("--start", start, "--steps", "1", "--suffix-teacher", teacher)
        assert train("opd", teacher, *options).exit_code == 0
    one, two = (read_draft(tmp_path / name / "draft").card["training_flops"] for name in ("draft", "trajectory"))
    assert one["target"] > two["target"]


def test_the_same_command_goes_on_and_another_is_refused(train, start: Path, tmp_path: Path) -> None:
    assert train("opd", "run", "--start", start, "--steps", "2").exit_code == 0
    more = train("opd", "run", "--start", start, "--steps", "3")
    assert "going on from step 2" in more.stderr
    other = train("opd", "run", "--start", start, "--steps", "4", "--loss", "tv")
    assert other.exit_code == 2
    assert "belongs to a run with other loss" in other.stderr


def test_states_can_be_shared(train, start: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    assert train("opd", "one", "--start", start, "--steps", "2", "--states", shared).exit_code == 0
    kept = sorted(path.name for path in shared.iterdir())
    assert kept
    assert train("opd", "two", "--start", start, "--steps", "2", "--states", shared, "--gamma", "0.5").exit_code == 0
    assert sorted(path.name for path in shared.iterdir()) == kept
    assert not (tmp_path / "two" / "target-states").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--start", "nowhere"), "a draft is a folder with config.json"),
        (("--hard", "0.5", "--loss", "tv"), "hard labels belong to the forward KL"),
        (("--gamma", "1.5"), "gamma may be at most 1"),
        (("--loss", "tv", "--gamma", "0.5", "--correction", "1"), "loss tv does not use gamma, correction"),
        (("--loss", "scalar", "--ablate", "all-forward"), "loss scalar does not use rejected_kl"),
        (("--accepted-weight", "0", "--rejected-weight", "0"), "cannot both be 0"),
        (("--ablate", "naive", "--accepted-weight", "0"), "cannot both be 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(train, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    given = options if "--start" in options else ("--start", "anywhere", *options)
    refused = train("opd", "run", *given)
    assert refused.exit_code == 2, refused.output
    assert message in " ".join(refused.stderr.split())
    assert not (tmp_path / "run").exists()


GIVEN: dict[str, tuple[str, Any]] = {
    "steps": ("17", 17),
    "batch": ("5", 5),
    "micro_batch": ("3", 3),
    "max_length": ("99", 99),
    "optimiser": ("adamw", "adamw"),
    "rate": ("0.125", 0.125),
    "weight_decay": ("0.5", 0.5),
    "clip": ("7.5", 7.5),
    "warmup": ("3", 3),
    "decay_share": ("0.75", 0.75),
    "gamma": ("0.5", 0.5),
    "seed": ("42", 42),
    "tree_nodes": ("9", 9),
    "loss": ("scalar", "scalar"),
    "aggregate": ("pooled", "pooled"),
    "accepted_weight": ("2.5", 2.5),
    "rejected_weight": ("0.5", 0.5),
    "correction": ("0.25", 0.25),
    "suffix_teacher": ("draft", "draft"),
}
"""Settings as options give them, none at its default."""


def test_every_option_reaches_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("redraft.server.train.train_draft", lambda *args: calls.append(args))
    monkeypatch.setattr("redraft.server.engine.target.resolve.resolve_target", lambda *args, **kwargs: None)
    names = {field.name for field in dataclasses.fields(OpdSettings)}
    assert set(GIVEN) == names - {"start", "hard", "anchors", "accepted_kl", "rejected_kl"}  # --hard, --ablate: below
    plain = ["train", "opd", "--start", "s", "--data", "d", "--out", "o"]
    options = [part for name, (text, _) in GIVEN.items() for part in (f"--{name.replace('_', '-')}", text)]
    for given in ([*plain, *options], plain, [*plain, "--hard", "0.5", "--ablate", "random-anchors", "--states", "k"]):
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, result.output
    assert {name: getattr(calls[0][3], name) for name in GIVEN} == {name: value for name, (_, value) in GIVEN.items()}
    assert calls[1][3] == OpdSettings()
    assert calls[1][4] == RunOptions(Path("o"), Path("s"))
    assert (calls[2][3].hard, calls[2][3].anchors) == (0.5, "random")
    assert (calls[2][4].states, calls[2][4].keep_states) == (Path("k"), True)
