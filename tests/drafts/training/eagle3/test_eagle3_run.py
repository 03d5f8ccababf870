"""A run of EAGLE-3: resumed or not, bit for bit; what it learns; what cannot be trained."""

import json
import math
from pathlib import Path

import pytest
import torch

from redraft.drafts.dflash_config import DraftError
from redraft.drafts.training.eagle3_settings import Eagle3Settings


def train(run, stop_at: int | None = None) -> bool:
    return run.run(lambda progress: None, lambda: run.progress.step == stop_at, 2, 2)


def everything(run) -> dict[str, torch.Tensor]:
    weights = {f"weights/{k}": v for k, v in run.module.state_dict().items()}
    return weights | {f"optimiser/{k}": v for k, v in run.optimiser.tensors().items()}


def logged(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "flops")} for line in lines]


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept-states", "no-states"])
def test_resuming_changes_no_bit(make_eagle3_run, tmp_path: Path, optimiser: str, keep: bool) -> None:
    whole = make_eagle3_run(tmp_path / "whole", optimiser=optimiser)
    assert train(whole)
    options = {"optimiser": optimiser, "states": tmp_path / "states" if keep else None}
    before = make_eagle3_run(tmp_path / "cut", **options)
    assert not train(before, stop_at=3)
    assert not torch.equal(before.module.lm_head.weight, whole.module.lm_head.weight)
    after = make_eagle3_run(tmp_path / "cut", **options)
    assert after.progress.step == 3
    assert train(after)
    ours, theirs = everything(after), everything(whole)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert logged(after.out) == logged(whole.out)
    assert after.progress.tau == whole.progress.tau
    assert (after.progress.flops.draft, after.progress.flops.head) == (
        whole.progress.flops.draft,
        whole.progress.flops.head,
    )


def test_another_run_is_refused_by_name(make_eagle3_run, tmp_path: Path) -> None:
    train(make_eagle3_run(tmp_path, steps=1))
    with pytest.raises(DraftError, match=r"other .*depth"):
        make_eagle3_run(tmp_path, steps=1, depth=3)
    with pytest.raises(DraftError, match=r"other soft;"):
        make_eagle3_run(tmp_path, steps=1, soft=0.5)


def test_every_weight_is_trained(make_eagle3_run, tmp_path: Path) -> None:
    run = make_eagle3_run(tmp_path)
    before = {name: tensor.clone() for name, tensor in run.module.state_dict().items()}
    run.step()
    assert not [name for name, tensor in run.module.state_dict().items() if torch.equal(tensor, before[name])]


def test_training_in_bf16_on_a_cpu(make_eagle3_run, tmp_path: Path) -> None:
    """``--dtype bf16``: the target's states and head are bf16, the draft's weights stay fp32."""
    run = make_eagle3_run(tmp_path)
    for name in ("embedding", "head"):
        setattr(run.teacher, name, getattr(run.teacher, name).bfloat16())
    run.vocabulary = type(run.vocabulary)(run.teacher, run.vocabulary.ids.tolist())
    exact = make_eagle3_run(tmp_path / "exact")
    assert train(run)
    assert train(exact)
    assert run.module.lm_head.weight.dtype == torch.float32
    assert run.progress.loss == pytest.approx(exact.progress.loss, rel=0.05)
    with run.mixed():
        assert len(run.temperatures()) == run.config.steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth must be at least 1"),
        ({"draft_vocab": -1}, "draft_vocab must be at least 0"),
        ({"copied": -2}, "copied must be at least -1"),
        ({"soft": 1.5}, "soft must lie in 0 ... 1"),
        ({"soft": math.nan}, "soft must lie in 0 ... 1"),
        ({"gamma": 0.0}, "must be above 0"),
        ({"optimiser": "sgd"}, "optimiser must be one of"),
    ],
)
def test_settings_that_cannot_be_trained(changes: dict, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        Eagle3Settings(**changes)
