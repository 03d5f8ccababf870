"""``redraft train`` in several processes: as launchers start them, and what a process is told without one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from redraft.benchmarks.tiny import VOCAB, make_tiny_target
from redraft.drafts.checkpoint import read_draft
from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.together import ALONE, Alone
from redraft.server import train_together
from redraft.server.engine import progress
from redraft.server.engine.types import RedraftError
from redraft.server.train_together import gathered

LAUNCHED = pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
LAUNCHER = [
    *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"),
    *("--num_processes", "2", "--main_process_port", "0"),
]
OPTIONS = [
    *("--taps", "0,1", "--layers", "1", "--block-size", "4", "--vocab", "64", "--max-length", "48", "--batch", "3"),
    *("--anchors", "4", "--save-every", "2", "--measure-every", "2", "--device", "cpu"),
]


def rows(path: Path, *seeds: int) -> Path:
    lines = []
    for seed in seeds:
        ids = torch.randint(VOCAB, (15,), generator=torch.Generator().manual_seed(seed)).tolist()
        lines.append(json.dumps({"prompt_ids": ids[:3], "response_ids": ids[3:], "temperature": 0.0}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts ``redraft train sft`` in two processes."""
    target = make_tiny_target(tmp_path / "tiny", tokenizer=True)
    data, dev = rows(tmp_path / "data.jsonl", *range(5)), rows(tmp_path / "dev.jsonl", 100, 101)
    launcher = [*LAUNCHER, "-m", "redraft.server.cli", "train", "sft"]
    given = ["--target", target, "--data", data, "--dev", dev, "--out", tmp_path / "out", *OPTIONS]
    environment = os.environ | {"REDRAFT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def start(steps: int) -> subprocess.Popen[str]:
        command = [*launcher, *map(str, given), "--steps", str(steps)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    return start


def logged(tmp_path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (tmp_path / "out" / "state" / "log.jsonl").read_text().splitlines()]


@LAUNCHED
def test_a_launched_run_finishes(launch, tmp_path: Path) -> None:
    whole = launch(4)
    _, errors = whole.communicate(timeout=120)
    assert whole.returncode == 0, errors
    assert errors.count("; training in 2 processes") == 1
    assert errors.count("The draft is in ") == 1
    assert logged(tmp_path) == [1, 2, 3, 4]
    card = read_draft(tmp_path / "out" / "draft").card
    assert (card["steps"], card["processes"]) == (4, 2)
    assert card["development_tau"] >= 1


@LAUNCHED
@pytest.mark.slow
def test_an_error_ends_all_processes_and_is_told_once(launch, tmp_path: Path) -> None:
    in_the_way = tmp_path / "out" / "state" / "saving.part"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("")
    failed = launch(4)
    _, errors = failed.communicate(timeout=120)
    assert failed.returncode != 0
    assert len(re.findall(r"^redraft: .*step 2 could not be saved", errors, re.MULTILINE)) == 1, errors
    assert errors.count("redraft: ") == 1


@LAUNCHED
@pytest.mark.slow
def test_ctrl_c_stops_all_processes_after_the_same_step(launch, tmp_path: Path) -> None:
    process, deadline = launch(1_000_000), time.monotonic() + 120
    try:
        while not (tmp_path / "out" / "state" / "log.jsonl").is_file() or len(logged(tmp_path)) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.terminate()
        process.communicate()
    stopped = re.findall(r"stopped at step (\d+), saved", errors)
    assert len(stopped) == 1, errors
    assert [path.name for path in (tmp_path / "out" / "state").glob("step-*")] == [f"step-{int(stopped[0]):08}"]
    assert logged(tmp_path) == list(range(1, int(stopped[0]) + 1))


STEP = """
import os, torch
from redraft.server.train_together import gathered
with gathered("cpu") as together:
    layer = torch.nn.Linear(2, 2)
    layer(torch.ones(2)).sum().backward()
    together.sum_([layer.weight.grad])
    torch.optim.SGD(layer.parameters()).step()
names = [open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task")]
assert not [name for name in names if "gloo" in name], names
"""


@LAUNCHED
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are named in Linux's /proc")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    """The interpreter's end kills such a thread, and with it now and then the whole process."""
    (tmp_path / "step.py").write_text(STEP)
    command = [*LAUNCHER, str(tmp_path / "step.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("launched", [{}, {"LOCAL_RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "2"}], ids=str)
def test_one_process_does_without_accelerate(monkeypatch: pytest.MonkeyPatch, launched: dict[str, str]) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with gathered("auto") as together:
        assert together is ALONE


@pytest.mark.parametrize(
    ("gpus", "message"), [(0, r"needs accelerate; .*redraft\[distributed\]"), (1, "more processes than the 1 GPUs")]
)
def test_what_a_launched_process_may_lack(monkeypatch: pytest.MonkeyPatch, gpus: int, message: str) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RedraftError, match=message), gathered("auto"):
        pass


def test_other_processes_leave_the_telling_to_the_main_one(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    class Second(Alone):
        def __init__(self, cpu: bool) -> None:
            self.rank, self.size = 1, 2

    slept: list[float] = []
    monkeypatch.setattr(train_together, "Accelerated", Second)
    monkeypatch.setattr(train_together.time, "sleep", slept.append)
    monkeypatch.setattr(progress, "_hushed", False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def run() -> None:
        with gathered("cpu"):
            progress.say("going on")
            raise DraftError("mine alone")

    with pytest.raises(DraftError, match="mine alone"):
        run()
    assert slept == [train_together.GRACE]
    assert capsys.readouterr().err == ""
