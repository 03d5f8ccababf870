"""``redraft train eagle3`` on a tiny target: what it leaves behind, going on, options, errors."""

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

from redraft.benchmarks.tiny import VOCAB, make_tiny_target
from redraft.drafts.checkpoint import CONFIG, read_draft
from redraft.drafts.eagle3_config import Eagle3Config
from redraft.drafts.training.eagle3_settings import Eagle3Settings
from redraft.server.cli import app
from redraft.server.engine.target.digest import weights_digest
from redraft.server.train import RunOptions

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = ("--depth", "3", "--taps", "0,1", "--draft-vocab", "64")
STEADY = ("--decay-share", "0", "--warmup", "1")
"""A schedule that does not depend on the number of steps."""


@pytest.fixture(params=["llama"])
def train(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs ``redraft train`` on a tiny target of the family that a test asks for."""
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    target = make_tiny_target(tmp_path / "tiny", request.param, tokenizer=True)
    data, dev = tmp_path / "data.jsonl", tmp_path / "dev.jsonl"
    rows = [{"prompt_ids": [5, n], "response_ids": [n, 7, 8, 9, 10, 11, n], "temperature": 0.0} for n in range(20, 26)]
    rows[1]["prompt_ids"] = [5]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dev.write_text(json.dumps({"prompt_ids": [9, 9], "response_ids": [7, 8, 9, 10, 11, 7, 8], "temperature": 0.0}))
    common = ("--target", target, "--data", data, "--device", "cpu", "--dtype", "fp32", "--batch", "2")

    def run(out: str, *options: str | Path, kind: str = "eagle3") -> Result:
        return CliRunner().invoke(app, ["train", kind, *map(str, (*common, "--out", tmp_path / out, *options))])

    return run


def one_line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    *_, last = result.stderr.splitlines()
    assert last.startswith("redraft: "), result.stderr
    return last


@pytest.mark.parametrize("train", ["llama", "qwen2", "qwen3"], indirect=True)
def test_a_run_leaves_a_draft_with_its_card(train, tmp_path: Path) -> None:
    made = train("run", "--steps", "3", "--dev", tmp_path / "dev.jsonl", *SIZES)
    assert made.exit_code == 0, made.output
    draft = read_draft(tmp_path / "run" / "draft")
    config = draft.config
    assert isinstance(config, Eagle3Config)
    assert (config.taps, config.target_layers, config.steps, config.draft_vocab) == ((0, 1), 2, 3, 64)
    assert len(config.tree_temperatures) == 3
    assert draft.vocabulary is not None
    assert {7, 8, 9, 10, 11, VOCAB - 1} <= set(draft.vocabulary.tolist())
    card = draft.card
    assert (card["method"], card["steps"], card["target_sha"]) == ("eagle3", 3, weights_digest(tmp_path / "tiny"))
    assert card["development_tau"] >= 1
    assert card["settings"]["depth"] == 3
    assert min(card["training_flops"].values()) > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "state" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(0 <= line[f"alpha_{i}"] <= 1 for line in lines for i in range(3))


def test_the_same_command_goes_on_and_another_is_refused(train, tmp_path: Path) -> None:
    assert train("cut", "--steps", "2", *STEADY, *SIZES).exit_code == 0
    more = train("cut", "--steps", "4", *STEADY, *SIZES)
    assert "going on from step 2" in more.stderr
    assert train("whole", "--steps", "4", *STEADY, *SIZES).exit_code == 0
    versions = {read_draft(tmp_path / name / "draft").version for name in ("cut", "whole")}
    assert len(versions) == 1, "stopping changed the numbers"
    assert "other soft" in one_line(train("cut", "--steps", "5", *STEADY, "--soft", "0.5", *SIZES))


def test_it_goes_on_from_a_draft_with_its_weights_and_shape(train, tmp_path: Path) -> None:
    assert train("first", "--steps", "2", *SIZES).exit_code == 0
    first = read_draft(tmp_path / "first" / "draft")
    start = ("--start", tmp_path / "first" / "draft", "--depth", "3")
    # a rate of next to nothing: what comes out is what went in
    still = train("still", "--steps", "1", "--rate", "1e-30", "--weight-decay", "0", *start)
    assert still.exit_code == 0, still.output
    second = read_draft(tmp_path / "still" / "draft")
    assert all(torch.equal(second.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert second.card["before"]["version"] == first.version
    longer = train("longer", "--steps", "1", "--start", tmp_path / "first" / "draft", "--depth", "5")
    assert longer.exit_code == 0, longer.output
    config = read_draft(tmp_path / "longer" / "draft").config
    assert isinstance(config, Eagle3Config)
    assert (config.steps, config.draft_vocab) == (5, 64)


def test_a_start_that_does_not_fit_is_refused(train, tmp_path: Path) -> None:
    assert train("first", "--steps", "1", *SIZES).exit_code == 0
    dflash = ("--layers", "1", "--block-size", "4", "--taps", "0,1", "--vocab", "64")
    assert train("block", "--steps", "1", *dflash, kind="sft").exit_code == 0
    eagle3 = ("--start", tmp_path / "first" / "draft")
    assert "an EAGLE-3 draft; redraft train eagle3 or opd goes on" in one_line(train("o", *eagle3, kind="sft"))
    assert "a DFlash draft; redraft train sft, opd or selector goes on" in one_line(
        train("o", "--start", tmp_path / "block" / "draft")
    )
    settled = one_line(train("o", *eagle3, "--draft-vocab", "9", "--taps", "1"))
    assert "--taps, --draft-vocab: settled by the draft of --start" in settled
    config = tmp_path / "first" / "draft" / CONFIG
    raw = json.loads(config.read_text())
    raw["eagle_config"]["num_target_layers"] = 9
    config.write_text(json.dumps(raw))
    assert "--start is a draft for a target with" in one_line(train("o", *eagle3))


@pytest.mark.parametrize("teacher", ["draft", "trajectory"])
def test_draft_opd_goes_on_from_it(train, tmp_path: Path, teacher: str) -> None:
    assert train("first", "--steps", "2", *SIZES).exit_code == 0
    start = ("--start", tmp_path / "first" / "draft", "--dev", tmp_path / "dev.jsonl", "--suffix-teacher", teacher)
    made = train("opd", "--steps", "2", *start, kind="opd")
    assert made.exit_code == 0, made.output
    first, second = (read_draft(tmp_path / name / "draft") for name in ("first", "opd"))
    assert isinstance(second.config, Eagle3Config)
    assert (second.config.steps, second.card["method"]) == (3, "eagle3-opd")
    assert second.card["before"]["version"] == first.version
    assert not torch.equal(first.tensors["lm_head.weight"], second.tensors["lm_head.weight"])
    assert torch.equal(first.tensors["d2t"], second.tensors["d2t"])
    assert "--tree-nodes at 0" in one_line(train("trees", *start, "--tree-nodes", "5", kind="opd"))


def test_the_whole_vocabulary(train, tmp_path: Path) -> None:
    assert train("run", "--steps", "1", *SIZES[:4], "--draft-vocab", "0").exit_code == 0
    draft = read_draft(tmp_path / "run" / "draft")
    assert draft.config.draft_vocab == VOCAB
    assert draft.vocabulary is not None
    assert draft.vocabulary.tolist() == list(range(VOCAB))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--taps", ""), "a target of 2 layers is too shallow for the default taps of EAGLE-3"),
        (("--taps", "0,2"), "taps (0, 2) are not different layers of a target of 2"),
        (("--copied", "2"), "layer 2 cannot be copied from a target of 2 layers"),
        (("--rate", "0"), "rate, gamma and clip must be above 0"),
        (("--start", "nowhere"), "a draft is a folder with config.json"),
    ],
)
def test_mistakes_are_one_line(train, options: tuple[str, ...], message: str) -> None:
    sizes = () if "--start" in options else SIZES
    assert message in one_line(train("run", *sizes, *options))


@pytest.mark.parametrize(
    ("options", "named"),
    [(("--taps", "1,x"), "--taps"), (("--depth", "0"), "--depth"), (("--soft", "2"), "--soft")],
)
def test_values_no_option_takes(train, options: tuple[str, ...], named: str) -> None:
    result = train("run", *options)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "Traceback" not in result.output


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
    "taps": ("4,2,7", (4, 2, 7)),
    "depth": ("5", 5),
    "draft_vocab": ("77", 77),
    "copied": ("3", 3),
    "output_scale": ("0.7", 0.7),
    "soft": ("0.25", 0.25),
}
"""Every setting as an option gives it, none at its default."""


def test_every_option_reaches_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("redraft.server.train.train_draft", lambda *args: calls.append(args))
    monkeypatch.setattr("redraft.server.engine.target.resolve.resolve_target", lambda *args, **kwargs: None)
    assert set(GIVEN) == {field.name for field in dataclasses.fields(Eagle3Settings)} - {"start"}
    assert not [name for name, (_, value) in GIVEN.items() if value == getattr(Eagle3Settings(), name)]
    plain = ["train", "eagle3", "--data", "d", "--out", "o"]
    options = [part for name, (text, _) in GIVEN.items() for part in (f"--{name.replace('_', '-')}", text)]
    rest = ["--states", "k", "--measure-every", "7", "--save-every", "9", "--dev-limit", "3", "--start", "s"]
    for given in ([*plain, *options], plain, [*plain, *rest, "--dev", "v", "--device", "cpu", "--dtype", "bf16"]):
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, result.output
    assert {name: getattr(calls[0][3], name) for name in GIVEN} == {name: value for name, (_, value) in GIVEN.items()}
    assert calls[1][3] == Eagle3Settings()
    assert calls[1][4] == RunOptions(Path("o"))
    assert calls[2][2] == [Path("v")]
    assert calls[2][4] == RunOptions(Path("o"), Path("s"), True, Path("k"), 7, 9, 3)
    assert calls[2][5:] == ("cpu", "bf16")
