"""``--tensorboard``: what TensorBoard reads of a run, of one that goes on, and what is said where it is missing."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from typer.testing import CliRunner

from redraft.benchmarks.tiny import make_tiny_target
from redraft.drafts.training.run import Run
from redraft.server import train_options
from redraft.server.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCKS = ("--layers", "1", "--block-size", "4", "--taps", "0,1", "--vocab", "64")
CHAINS = ("--depth", "3", "--taps", "0,1", "--draft-vocab", "64")


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs ``redraft train`` on a tiny target; τ is measured every second step, every third one saved."""
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    target = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    for name, first in (("data", range(20, 26)), ("dev", range(30, 32))):
        rows = ({"prompt_ids": [5, n], "response_ids": [n, 7, 8, 9, 10, n], "temperature": 0.0} for n in first)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("--target", target, "--data", tmp_path / "data.jsonl", "--dev", tmp_path / "dev.jsonl", "--batch", "2")
    pace = ("--device", "cpu", "--measure-every", "2", "--save-every", "3")

    def run(kind: str, out: str, *options: str | Path, steps: int = 5) -> Result:
        given = (*common, *pace, "--out", tmp_path / out, "--steps", steps, *options)
        return CliRunner().invoke(app, ["train", kind, *map(str, given)])

    return run


def read_events(out: Path) -> dict[str, dict[int, float]]:
    """As TensorBoard has them: by tag, values by step; a step that comes twice fails."""
    reader = EventAccumulator(str(out / "events"), size_guidance={"scalars": 0})
    reader.Reload()
    found: dict[str, dict[int, float]] = {}
    for tag in reader.Tags()["scalars"]:
        scalars = reader.Scalars(tag)
        assert len({event.step for event in scalars}) == len(scalars), f"{tag}: a step comes twice"
        found[tag] = {event.step: event.value for event in scalars}
    return found


def read_log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "state" / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["sft", "opd", "eagle3"])
def test_events_are_the_log(train, tmp_path: Path, kind: str) -> None:
    options: tuple[str | Path, ...] = {"sft": BLOCKS, "opd": (), "eagle3": CHAINS}[kind]
    if kind == "opd":
        assert train("sft", "first", *BLOCKS, steps=1).exit_code == 0
        options = ("--start", tmp_path / "first" / "draft")
    result = train(kind, "run", *options, "--tensorboard")
    assert result.exit_code == 0, result.output
    read, log = read_events(tmp_path / "run"), read_log(tmp_path / "run")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5]
    figures = log[0].keys() - {"step", "seconds", "flops", "tau"}
    assert figures > {"loss", "norm", "rate", "labels"}, "the figures of the kind of training are there as well"
    for name in figures:
        assert read[name] == pytest.approx({line["step"]: line[name] for line in log}), name
    for part in ("target", "draft", "head"):
        assert read[f"flops/{part}"] == pytest.approx({line["step"]: line["flops"][part] for line in log}), part
    assert read["flops/total"] == pytest.approx({line["step"]: sum(line["flops"].values()) for line in log})
    assert read["tau"] == pytest.approx({line["step"]: line["tau"] for line in log if line["step"] in (2, 4, 5)})
    assert min(read["labels_per_second"].values()) > 0


def test_a_killed_run_goes_on_without_a_step_twice(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in step 6, saved after step 3: steps 4 and 5 are made again."""
    whole = Run.step

    def step(run: Run) -> None:
        if run.progress.step == 5:
            raise KeyboardInterrupt  # as the second Ctrl-C: nothing is saved
        whole(run)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "step", step)
        assert train("sft", "run", *BLOCKS, "--tensorboard", steps=7).exit_code != 0
    before = read_events(tmp_path / "run")
    assert list(before["loss"]) == [1, 2, 3, 4, 5]
    after = train("sft", "run", *BLOCKS, "--tensorboard", steps=7)
    assert "going on from step 3" in after.stderr
    read = read_events(tmp_path / "run")
    assert sorted(read["loss"]) == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(read["tau"]) == [2, 4, 6, 7]
    assert len(list((tmp_path / "run" / "events").iterdir())) == 2


def test_without_the_option_there_are_no_events(train, tmp_path: Path) -> None:
    assert train("sft", "run", *BLOCKS, steps=1).exit_code == 0
    assert not (tmp_path / "run" / "events").exists()


def test_without_the_package_the_option_is_refused(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_options, "find_spec", lambda name: None)
    refused = train("sft", "run", *BLOCKS, "--tensorboard")
    assert refused.exit_code == 2
    said = " ".join(refused.stderr.split())
    assert "--tensorboard" in said
    assert "pip install tensorboard" in said
    assert not (tmp_path / "run").exists()
    assert train("sft", "run", *BLOCKS, steps=1).exit_code == 0, "nothing else needs it"


def test_a_folder_that_cannot_be_written_is_named(train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events").write_text("a file where the folder should be")
    refused = train("sft", "run", *BLOCKS, "--tensorboard", steps=1)
    assert refused.exit_code == 2
    assert "events: events cannot be written" in " ".join(refused.stderr.split())


def test_a_full_disk_ends_the_run_with_one_line(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(writer: SummaryWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "flush", full)
    ended = train("sft", "run", *BLOCKS, "--tensorboard", steps=2)
    assert ended.exit_code == 2
    assert "events: events cannot be written ([Errno 28] No space left" in " ".join(ended.stderr.split())
