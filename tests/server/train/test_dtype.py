"""What a training run multiplies in, and that it goes on in that."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from redraft.drafts.checkpoint import read_draft
from redraft.drafts.training.sft import Sft
from redraft.drafts.training.together import ALONE, Alone
from redraft.server.engine import hardware
from redraft.server.train import common_dtype

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes bf16 so many times as fast as fp32."""

    def make(ratio: float) -> None:
        monkeypatch.setattr(hardware, "_product_seconds", {torch.float32: ratio, torch.bfloat16: 1.0}.__getitem__)

    return make


def stop_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Sft.step

    def step(run: Sft) -> None:
        signal.raise_signal(signal.SIGINT)
        whole(run)

    monkeypatch.setattr(Sft, "step", step)


@pytest.mark.parametrize(("before", "after", "name"), [(4.5, 1.11, "bf16"), (1.11, 4.5, "fp32")])
def test_a_run_goes_on_in_its_dtype_however_fast_it_is_now(
    sft, measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: float, after: float, name: str
) -> None:
    measured(before)
    assert sft("--dtype", "auto", "--out", tmp_path / "whole", steps=3).exit_code == 0
    with monkeypatch.context() as patched:
        stop_in_the_first_step(patched)
        assert "stopped at step 1, saved" in sft("--dtype", "auto", steps=3).stderr
    measured(after)
    cut = sft("--dtype", "auto", steps=3)
    assert f"; dtype: {name}, in which the run goes on\n" in cut.stderr
    assert "going on from step 1" in cut.stderr
    drafts = [read_draft(tmp_path / folder / "draft") for folder in ("out", "whole")]
    assert drafts[0].version == drafts[1].version, "stopping changed the numbers"
    assert drafts[0].card["dtype"] == {"bf16": "bfloat16", "fp32": "float32"}[name]


def test_another_dtype_is_refused_by_name(sft, one_line, tmp_path: Path) -> None:
    assert sft("--dtype", "bf16", steps=1).exit_code == 0
    assert "belongs to a run with other dtype;" in one_line(sft("--dtype", "fp32", steps=1))
    assert sft("--dtype", "bf16", steps=1).exit_code == 0


def test_a_run_from_before_dtypes_were_saved_goes_on_in_fp32(sft, measured, tmp_path: Path) -> None:
    assert sft(steps=1).exit_code == 0
    (noted,) = (tmp_path / "out" / "state").glob("step-*/state.json")
    facts = json.loads(noted.read_text())
    assert facts.pop("dtype") == "float32"
    noted.write_text(json.dumps(facts))
    measured(4.5)
    result = sft("--dtype", "auto", steps=2)
    assert result.exit_code == 0, result.output
    assert "; dtype: fp32, in which the run goes on\n" in result.stderr


class Another(Alone):
    """This process beside one that has found fp32 to be faster."""

    def any(self, flag: bool) -> bool:
        return True


def test_processes_agree_on_a_dtype(measured, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    measured(4.5)
    assert common_dtype("auto", cpu, tmp_path, ALONE)[0] == torch.bfloat16
    dtype, why = common_dtype("auto", cpu, tmp_path, Another())
    assert (dtype, why) == (torch.float32, "dtype: fp32, since another process has found bf16 not to be faster")
    measured(1.1)
    assert common_dtype("auto", cpu, tmp_path, Another())[1] == "dtype: fp32, since bf16 is 1.1 times as fast here"


def test_training_with_a_bf16_target_on_a_cpu(sft, dev: Path, tmp_path: Path) -> None:
    result = sft("--dtype", "bf16", "--dev", dev, steps=2)
    assert result.exit_code == 0, result.output
    assert "dtype: bf16, as asked" in result.stderr
    assert read_draft(tmp_path / "out" / "draft").card["dtype"] == "bfloat16"
    assert read_draft(tmp_path / "out" / "draft").card["development_tau"] >= 1
