"""The comparison end to end on a tiny target: three arms and their trunk, going on, evaluation, report, errors."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from redraft.benchmarks.headline.__main__ import main
from redraft.benchmarks.headline.plan import TRUNK
from redraft.benchmarks.tiny import VOCAB, make_tiny_target
from redraft.drafts.checkpoint import read_draft
from redraft.server.cli import app
from redraft.server.engine import hardware

TRUNK_FLOPS, ARM_FLOPS = 5e9, 4e9
BUDGETS = {TRUNK: TRUNK_FLOPS, "dflash-sft": ARM_FLOPS, "draft-opd": ARM_FLOPS, "eagle3": TRUNK_FLOPS + ARM_FLOPS}
LENGTH = 24
"""Of every answer."""


def write_rows(path: Path, count: int, first: int, *temperatures: float) -> Path:
    """``count`` random texts for every temperature."""
    lines = []
    for number in range(count * len(temperatures)):
        generator = torch.Generator().manual_seed(first + number)
        # few tokens, often repeated: something to learn
        ids = torch.randint(3, 40, (LENGTH + 4,), generator=generator).tolist()
        row = {"prompt_ids": ids[:4], "response_ids": ids[4:], "temperature": temperatures[number // count]}
        lines.append(json.dumps(row | {"seed": number}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """All but ``--out`` and the arms."""
    folder = tmp_path_factory.mktemp("headline")
    target = make_tiny_target(folder / "target", tokenizer=True, layers=8)
    files = {
        "--target": target,
        "--data": write_rows(folder / "texts.jsonl", 24, 0, 0.0),
        "--dev": write_rows(folder / "dev.jsonl", 4, 1000, 0.0),
    }
    sizes = {
        "--trunk-flops": TRUNK_FLOPS,
        "--arm-flops": ARM_FLOPS,
        "--layers": 2,
        "--block-size": 4,
        "--vocab": VOCAB // 2,
        "--batch": 8,
        "--micro-batch": 4,
        "--chain-batch": 4,
        "--warmup": 2,
        "--measure-every": 2,
    }
    words = [str(word) for pair in (files | sizes).items() for word in pair]
    return ["train", *words, "--device", "cpu", "--dtype", "fp32"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = write_rows(tmp_path_factory.mktemp("answers") / "gsm8k.jsonl", 3, 2000, 0.0, 0.6)
    return ["--answers", str(path)]


@pytest.fixture(scope="module")
def runs(command: list[str], answers: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trunk and three arms, trained and evaluated."""
    out = tmp_path_factory.mktemp("runs")
    named = [word for arm in ("dflash-sft", "draft-opd", "eagle3") for word in ("--arm", arm)]
    main([*command, *answers, *named, "--out", str(out)])
    return out


def card(runs: Path, arm: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / arm / "draft" / "card.json").read_text())
    return found


def log(runs: Path, arm: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (runs / arm / "state" / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("arm", BUDGETS)
def test_every_arm_spends_its_operations_to_the_nearest_step(runs: Path, arm: str) -> None:
    totals = [0, *(sum(line["flops"].values()) for line in log(runs, arm))]
    dearest = max(after - before for before, after in pairwise(totals))
    assert abs(totals[-1] - BUDGETS[arm]) <= dearest
    assert sum(card(runs, arm)["training_flops"].values()) == totals[-1]
    assert card(runs, arm)["trained_tau"] >= 1, "beside that of held-out answers"
    assert len(totals) - 1 == card(runs, arm)["settings"]["steps"] > 4


def test_arms_go_on_from_the_trunk_as_it_was(runs: Path) -> None:
    trunk = read_draft(runs / TRUNK / "draft")
    assert all(tensor.dtype != torch.bfloat16 for tensor in trunk.tensors.values()), "kept in full"
    for arm in ("dflash-sft", "draft-opd"):
        before = card(runs, arm)["before"]
        assert before["version"] == trunk.version == card(runs, arm)["settings"]["start"]
        assert before["settings"] == card(runs, TRUNK)["settings"]
        draft = read_draft(runs / arm / "draft")
        assert any(tensor.dtype == torch.bfloat16 for tensor in draft.tensors.values())
        moved = [
            name
            for name, tensor in draft.tensors.items()
            if tensor.is_floating_point() and not torch.equal(tensor.bfloat16(), trunk.tensors[name].bfloat16())
        ]
        assert moved
    eagle3 = card(runs, "eagle3")
    assert "before" not in eagle3
    assert eagle3["command"].startswith("python -m redraft.benchmarks.headline train --target target --data texts.")


def test_rate_rises_stays_and_falls_in_the_arms_and_does_not_fall_in_the_trunk(runs: Path) -> None:
    assert [line["rate"] for line in log(runs, TRUNK)][-1] == pytest.approx(5e-3)
    rates = [line["rate"] for line in log(runs, "dflash-sft")]
    assert rates[0] < max(rates) == pytest.approx(4e-3)
    assert rates[-1] < 0.6 * max(rates)


def test_evaluation_tells_tokens_and_rounds_of_every_prompt(runs: Path) -> None:
    shapes = {"dflash-sft": {"chain", "tree"}, "draft-opd": {"chain", "tree"}, "eagle3": {"chain"}}
    for arm, wanted in shapes.items():
        told = json.loads((runs / arm / "evaluation.json").read_text())
        assert told["arm"] == arm
        assert told["command"].startswith("python -m redraft.benchmarks.headline train --target")
        keys = [(one["set"], one["temperature"], one["shape"]) for one in told["results"]]
        assert sorted(keys) == sorted(("gsm8k", heat, shape) for heat in (0.0, 0.6) for shape in wanted)
        for one in told["results"]:
            assert one["tokens"] == [LENGTH] * 3
            assert sum(one["accepted"]) == sum(one["rounds"])
            assert all(1 <= rounds <= LENGTH for rounds in one["rounds"])
            assert one["tau"] == pytest.approx(3 * LENGTH / sum(one["rounds"]))


def test_stopped_run_goes_on_to_the_same_draft(runs: Path, command: list[str], tmp_path: Path) -> None:
    asked = [*command, "--arm", "dflash-sft", "--out", str(tmp_path)]
    main([*asked, "--seconds", "0"])
    assert [line["step"] for line in log(tmp_path, TRUNK)] == [1]
    assert not (tmp_path / TRUNK / "draft").exists()
    main(asked)
    for arm in (TRUNK, "dflash-sft"):
        whole, parts = read_draft(runs / arm / "draft").tensors, read_draft(tmp_path / arm / "draft").tensors
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
        assert card(runs, arm)["training_flops"] == card(tmp_path, arm)["training_flops"]


@pytest.mark.parametrize(("before", "after", "dtype"), [(4.5, 1.1, "bfloat16"), (1.1, 4.5, "float32")])
def test_stopped_run_goes_on_in_its_dtype_however_fast_it_is_now(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: float, after: float, dtype: str
) -> None:
    asked = [*command, "--dtype", "auto", "--arm", TRUNK, "--out", str(tmp_path), "--seconds", "0"]
    for steps, ratio in enumerate((before, after), 1):
        seconds = {torch.float32: ratio, torch.bfloat16: 1.0}
        monkeypatch.setattr(hardware, "_product_seconds", seconds.__getitem__)
        main(asked)
        (noted,) = (tmp_path / TRUNK / "state").glob("step-*/state.json")
        facts = json.loads(noted.read_text())
        assert (facts["step"], facts["dtype"]) == (steps, dtype)


def test_same_command_again_leaves_finished_arms_alone(
    runs: Path, command: list[str], answers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    main([*command, *answers, "--arm", "dflash-sft", "--out", str(runs)])
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == before
    assert "TFLOP" not in capsys.readouterr().err


def test_report_of_these_runs(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", "--runs", str(runs), "--results", str(tmp_path / "results")])
    printed = capsys.readouterr().out
    made = json.loads((tmp_path / "results" / "headline.json").read_text())
    assert list(made["arms"]) == list(BUDGETS)
    for arm, told in made["arms"].items():
        assert told["planned_flops"] == BUDGETS[arm]
        assert told["settings"] == card(runs, arm)["settings"]
        measured = [line["step"] for line in log(runs, arm) if line["step"] % 2 == 0 or line is log(runs, arm)[-1]]
        assert {point[0] for point in told["curve"]["points"]} <= {*measured, log(runs, arm)[-1]["step"]}
        assert arm in printed
    assert made["arms"]["eagle3"]["before"]["flops"] == 0
    trunk = sum(card(runs, TRUNK)["training_flops"].values())
    assert made["arms"]["draft-opd"]["before"]["flops"] == trunk
    assert [(one["set"], one["temperature"], one["tokens"]) for one in made["sets"]] == [
        ("gsm8k", heat, 3 * LENGTH) for heat in (0.0, 0.6)
    ]
    assert "n-gram chain" in printed
    assert (tmp_path / "results" / "headline.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_arm_is_told_before_anything_is_read(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command, "--arm", "medusa", "--out", str(tmp_path / "out")])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "no arm medusa" in error
    assert "dflash-sft" in error
    assert not (tmp_path / "out").exists()


def test_missing_texts_are_one_line_and_exit_code_2(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command, "--data", str(tmp_path / "nothing.jsonl"), "--out", str(tmp_path)])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("redraft: ")
    assert "nothing.jsonl" in error


def test_redraft_bench_passes_its_words_on() -> None:
    helped = CliRunner().invoke(app, ["bench", "headline", "report", "--help"])
    assert helped.exit_code == 0
    assert "usage: redraft bench headline report" in helped.output
    refused = CliRunner().invoke(app, ["bench", "headline", "report", "--runs", "/nowhere"])
    assert refused.exit_code == 2
    assert "there is no folder /nowhere" in refused.output
