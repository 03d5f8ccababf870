"""The report on made-up runs: intervals, operations, the plateau, damaged files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from redraft.benchmarks.headline.__main__ import main
from redraft.benchmarks.headline.bootstrap import difference, pooled
from redraft.benchmarks.headline.findings import ALL, acceptances
from redraft.benchmarks.headline.plan import TRUNK
from redraft.benchmarks.headline.runs import Result, read_runs

COMMAND = "redraft train --out hl --trunk-flops 6e15 --arm-flops 2e15 --arm dflash-sft"
Curve = Sequence[tuple[float, float]]
"""Operations in units of 1e15, and τ."""
RISING: Curve = [(1.0, 1.5), (3.0, 2.0), (5.0, 2.3), (6.0, 2.4)]
LEVEL: Curve = [(1.0, 1.5), (3.0, 2.4), (5.0, 2.6), (6.0, 2.6)]


def result(rounds: Sequence[int], tokens: Sequence[int] = (), name: str = "gsm8k", shape: str = "chain") -> Result:
    return Result(name, 0.0, shape, list(tokens) or [12] * len(rounds), list(rounds), [0, sum(rounds)])


def write_arm(
    runs: Path, name: str, curve: Curve, results: Sequence[Result] = (), before: float = 0.0, version: str = "aaaa"
) -> None:
    """A finished arm: a line of log for every point and one between, which repeats the τ before it."""
    folder = runs / name
    for part in ("draft", "state"):
        (folder / part).mkdir(parents=True)
    lines, tau = [], None
    for number, (flops, measured) in enumerate(curve):
        for step, found in ((2 * number + 1, tau), (2 * number + 2, measured)):
            spent = flops * 1e15 - (1e14 if step % 2 else 0)
            cost = {"flops": {"target": 0, "draft": spent, "head": 0}, "labels": 10 * step, "seconds": step}
            lines.append(json.dumps({"step": step, "tau": found, **cost}) + "\n")
        tau = measured
    (folder / "state" / "log.jsonl").write_text("".join(lines))
    told = {"training_flops": {"target": 0, "draft": curve[-1][0] * 1e15, "head": 0}, "labels": 80}
    told |= {"training_seconds": 9, "steps": 8, "command": COMMAND, "settings": {"rate": 0.1}}
    if before:
        earlier = {"training_flops": {"draft": before * 1e15}, "labels": 100, "training_seconds": 90}
        told |= {"before": {"version": version, **earlier}}
    (folder / "draft" / "card.json").write_text(json.dumps(told))
    if results:
        rows = [{name: getattr(one, name) for name in one.__slots__} for one in results]
        (folder / "evaluation.json").write_text(json.dumps({"arm": name, "date": "today", "results": rows}))


def write_runs(runs: Path, *, opd: float = 2.0, trunk: Curve = RISING, end: float = 2.6, version: str = "aaaa") -> Path:
    """``opd``: what draft-opd spent of 2; ``end``: τ of dflash-sft when it had ended."""
    write_arm(runs, TRUNK, trunk)
    sft = [result([6, 4, 5, 6]), result([6, 6], name="mt-bench")]
    write_arm(runs, "dflash-sft", [(1.0, 2.5), (2.0, end)], sft, before=6.0)
    opd_results = [result([5, 4, 5, 5]), result([4, 5], name="mt-bench")]
    write_arm(runs, "draft-opd", [(opd, 2.7)], opd_results, before=6.0, version=version)
    write_arm(runs, "eagle3", [(4.0, 2.0), (8.0, 2.8)], [result([4, 4, 4, 4])])
    return runs


def report(runs: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    main(["report", "--runs", str(runs), "--results", str(results)])
    made: dict[str, Any] = json.loads((results / "headline.json").read_text())
    return capsys.readouterr().out, made


def test_interval_of_two_prompts_by_hand() -> None:
    """Both drawn twice: 12/3 - 12/4 = 1 and 6/3 - 6/2 = -1, a quarter of the draws each; so these are the edges."""
    ours, theirs = result([3, 3], [12, 6]), result([4, 2], [12, 6])
    found = difference([ours], [theirs])
    assert found is not None
    assert (found.value, found.low, found.high) == (0.0, -1.0, 1.0)
    assert not found.clear


def test_prompts_are_drawn_in_pairs() -> None:
    """Prompts differ twentyfold, the drafts always by a tenth: only pairs show it."""
    rounds = [10, 20, 30, 40, 60, 80, 100, 200]
    tokens = [200] * len(rounds)
    slower = [one * 11 // 10 for one in rounds]
    found = difference([result(rounds, tokens)], [result(slower, tokens)])
    assert found is not None
    assert found.value == pytest.approx(1600 / 540 - 1600 / 594)
    assert found.low > 0
    assert found.clear
    mixed = difference([result(rounds, tokens)], [result(slower[::-1], tokens)])
    assert mixed is not None
    assert mixed.value == found.value
    assert not mixed.clear


def test_prompts_are_drawn_within_their_set() -> None:
    """One prompt a set: there is nothing else to draw, so nothing varies."""
    ours = [result([3], name="gsm8k"), result([2], name="mt-bench")]
    theirs = [result([4], name="gsm8k"), result([6], name="mt-bench")]
    found = difference(ours, theirs)
    assert found is not None
    assert found.low == found.high == pytest.approx(24 / 5 - 24 / 10)


def test_same_numbers_differ_by_nothing_and_other_answers_are_not_compared() -> None:
    same = difference([result([3, 4])], [result([3, 4])])
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    assert difference([result([3, 4])], [result([3, 4], [12, 11])]) is None
    assert difference([result([3, 4])], [result([3, 4], shape="tree")]) is None


def test_acceptance_is_pooled_over_prompts_and_sets(tmp_path: Path) -> None:
    runs, _ = read_runs(write_runs(tmp_path))
    found = acceptances(runs)
    assert found["dflash-sft"]["gsm8k", 0.0, "chain"].tau == 48 / 21
    assert found["dflash-sft"][ALL, 0.0, "chain"].tau == 72 / 33 == pooled(runs[1].results)
    assert found["dflash-sft"][ALL, 0.0, "chain"].against is None
    against = found["draft-opd"][ALL, 0.0, "chain"].against
    assert against is not None
    assert against.value == 72 / 28 - 72 / 33
    assert found[TRUNK] == {}
    assert (ALL, 0.0, "chain") not in found["eagle3"]


def test_only_measured_points_make_a_curve(tmp_path: Path) -> None:
    runs, _ = read_runs(write_runs(tmp_path))
    assert [(point.step, point.cost.flops, point.tau) for point in runs[0].points] == [
        (2 * number, flops * 1e15, tau) for number, (flops, tau) in enumerate(RISING, 1)
    ]


def test_equal_operations_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, made = report(write_runs(tmp_path / "runs", opd=1.98), tmp_path / "out", capsys)
    assert made["equal_operations"] is True
    assert "Operations are equal" in printed
    assert "NOT" not in printed


def test_unequal_operations_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, made = report(write_runs(tmp_path / "runs", opd=0.9), tmp_path / "out", capsys)
    assert made["equal_operations"] is False
    told = "OPERATIONS ARE NOT EQUAL: draft-opd 900 TFLOP after the trunk, 45% of dflash-sft's 2000."
    assert told in printed
    assert told in (tmp_path / "out" / "headline.md").read_text()
    assert told in " ".join(made["notes"])


def test_table_has_costs_with_the_trunk_and_against_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed, made = report(write_runs(tmp_path / "runs", opd=0.9), tmp_path / "out", capsys)
    row = next(line.split() for line in printed.splitlines() if line.startswith("draft-opd"))
    assert row == ["draft-opd", "8", "900", "2000", "45%", "6900", "80", "9", "99", "2.700"]
    planned = {name: arm["planned_flops"] for name, arm in made["arms"].items()}
    assert planned == {TRUNK: 6e15, "dflash-sft": 2e15, "draft-opd": 2e15, "eagle3": 8e15}
    assert "| draft-opd | all | +0.390 [" in (tmp_path / "out" / "headline.md").read_text()


def test_draft_that_sft_still_improves_is_no_plateau(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, made = report(write_runs(tmp_path / "runs", end=2.6), tmp_path / "out", capsys)
    assert made["plateau"] is False
    # 30 % of 8000 TFLOP end at 5600; the last measurement before is the trunk's at 5000
    assert "dev τ 2.300 → 2.600 (+13.0%) over the last 38% of operations (5000 to 8000 TFLOP)" in printed
    assert "SFT still gained, so this is no plateau" in printed
    assert "The trunk alone, at a constant rate: dev τ 2.000 → 2.400 (+20.0%)" in printed


def test_draft_that_sft_no_longer_improves_is_a_plateau(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, made = report(write_runs(tmp_path / "runs", trunk=LEVEL, end=2.61), tmp_path / "out", capsys)
    assert made["plateau"] is True
    assert "dev τ 2.600 → 2.610 (+0.4%)" in printed
    assert "a plateau, the change being below 1%" in printed
    assert "no plateau" not in printed


def test_scatter_at_a_constant_rate_is_no_gain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Up and down by 3 % around a level τ; the last one happens to be high."""
    scattered = [(0.5 * n, 2.6 + (0.04 if n % 2 == 0 else -0.04)) for n in range(1, 13)]
    printed, _ = report(write_runs(tmp_path / "runs", trunk=scattered), tmp_path / "out", capsys)
    told = "dev τ 2.600 → 2.600 (+0.0%) over the last 33% of operations (4000 to 6000 TFLOP)"
    assert f"at a constant rate: {told}" in printed


def test_draft_that_sft_spoils_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, made = report(write_runs(tmp_path / "runs", trunk=LEVEL, end=2.5), tmp_path / "out", capsys)
    assert made["plateau"] is False
    assert "SFT got worse" in printed


def test_arms_of_two_trunks_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, _ = report(write_runs(tmp_path / "runs", version="bbbb"), tmp_path / "out", capsys)
    assert "NOT START FROM THE SAME WEIGHTS: dflash-sft from aaaa, draft-opd from bbbb" in printed


def test_unfinished_arm_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_runs(tmp_path / "runs")
    (runs / "opd-tv" / "state").mkdir(parents=True)
    printed, made = report(runs, tmp_path / "out", capsys)
    assert "opd-tv is not finished and left out." in printed
    assert "opd-tv" not in made["arms"]


def test_without_the_sft_arm_nothing_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_arm(tmp_path / "runs", "eagle3", [(4.0, 2.0), (8.0, 2.8)], [result([4, 4])])
    printed, made = report(tmp_path / "runs", tmp_path / "out", capsys)
    assert "nothing can be compared" in printed
    assert (made["equal_operations"], made["plateau"]) == (False, None)
    assert "less dflash-sft" not in printed


def damage(runs: Path, place: str, text: str) -> None:
    (runs / place).write_text(text)


@pytest.mark.parametrize(
    ("place", "text", "told"),
    [
        ("dflash-sft/draft/card.json", '{"training_flops": {', "card.json: damaged JSON"),
        ("dflash-sft/draft/card.json", "{}", "lacks what training writes (KeyError('training_flops'))"),
        ("draft-opd/state/log.jsonl", '{"step": 1, "ta', "log.jsonl:1: damaged JSON"),
        ("draft-opd/evaluation.json", "[]", "evaluation.json: a JSON object is expected, not list"),
        ("eagle3/evaluation.json", '{"results": [{"set": "gsm8k"}]}', "lacks what training writes"),
        ("sets.json", "{}", "sets.json: a JSON list is expected, not dict"),
        ("sets.json", '[{"set": "gsm8k"}]', "sets.json: lacks what training writes"),
    ],
)
def test_damaged_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, text: str, told: str
) -> None:
    damage(write_runs(tmp_path / "runs"), place, text)
    with pytest.raises(SystemExit) as left:
        report(tmp_path / "runs", tmp_path / "out", capsys)
    assert left.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--runs", "{}/nothing"], "there is no folder"),
        (["--runs", "{}"], "has no finished arm"),
        (["--runs", "{}/runs", "--arm", "medusa"], "there is no arm medusa; there are trunk, dflash-sft"),
        (["--runs", "{}/runs", "--arm", "opd-tv"], "no finished draft there"),
        (["--runs", "{}/runs", "--results", "{}/file"], "cannot write"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    write_runs(tmp_path / "runs")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as left:
        main(["report", *(word.format(tmp_path) for word in arguments)])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("redraft: ")
    assert error.count("\n") == 1
