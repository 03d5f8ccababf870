"""What the suite writes and prints: stages that break or no longer fit say so, and none takes the others with it."""

import json
import os
from pathlib import Path

import pytest

from redraft.benchmarks import gpu_suite
from redraft.benchmarks.gpu_suite import FILE, parse, run, run_stage
from redraft.benchmarks.suite_clock import LEFT_OUT, Clock
from redraft.benchmarks.suite_context import Suite
from redraft.benchmarks.suite_report import left_out, stages_table, write
from redraft.benchmarks.suite_stages import LEAST_SECONDS, STAGES, Found
from redraft.server.engine.types import RedraftError


def test_a_broken_stage_is_recorded_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(suite: Suite) -> Found:
        raise RuntimeError("out of memory, say")

    monkeypatch.setitem(STAGES, "equality", broken)
    options = ["--out", str(tmp_path), "--device", "cpu", "--quick", "--only", "equality", "--only", "bandwidth"]
    assert run(parse(options), ["suite"]) is False
    assert "RuntimeError: out of memory, say" in capsys.readouterr().out
    first, second = json.loads((tmp_path / "gpu_suite.json").read_text())["stages"]
    assert "RuntimeError: out of memory, say" in first["error"]
    assert (first["ok"], second["ok"], second["name"]) == (False, True, "bandwidth")


def test_a_stage_that_no_longer_fits_is_said_to_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STAGES, "equality", lambda suite: pytest.fail("there was no time for this"))
    options = parse(["--out", str(tmp_path), "--device", "cpu", "--quick", "--budget", "5",
                     "--only", "equality", "--only", "bandwidth"])  # fmt: skip
    assert run(options, ["suite"]) is True
    report = json.loads((tmp_path / FILE).read_text())
    equality_stage, bandwidth = report["stages"]
    assert equality_stage["out_of_time"] is True
    assert equality_stage["skipped"].startswith(LEFT_OUT)
    assert bandwidth["copy_bytes_per_second"] > 0
    assert report["complete"] is False
    assert report["left_out"] == ["equality: all of it"]
    assert "left out for want of time: equality: all of it" in capsys.readouterr().out
    reason = report["figures"]["speculative against plain, batch 16: tokens that differ"]["reason"]
    assert LEFT_OUT in reason


def test_cases_that_no_longer_fit_are_said_to_be_left_out(tmp_path: Path) -> None:
    """The clock stops in the middle of a stage."""
    now = iter([0.0] * 4)
    clock = Clock(480.0, lambda: next(now, 479.0))
    suite = Suite(parse(["--out", str(tmp_path), "--device", "cpu", "--dtype", "fp32", "--quick"]), clock)
    stage = run_stage(suite, "steps")
    assert [step.get("skipped") for step in stage["steps"]] == [None, LEFT_OUT]
    assert left_out([stage]) == ["steps: 1 of 2 cases"]
    peers = {"name": "peers", "peers": {"eager": {"skipped": LEFT_OUT}, "lookup": {"tokens": 3}}}
    equality_run = {"name": "equality", "left_out": f"8 of 200 prompts: {LEFT_OUT}"}
    assert left_out([peers, equality_run]) == ["peers: 1 of 2 cases", f"equality: 8 of 200 prompts: {LEFT_OUT}"]
    shown = stages_table(
        {"stages": [stage], "seconds": 1.0, "budget_seconds": 480.0, "failed": [], "left_out": left_out([stage])}
    )
    assert "left out for want of time: steps: 1 of 2 cases" in shown


def test_stages_may_be_run_one_by_one_into_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STAGES, "equality", lambda suite: {"checks": [{"name": "x", "ok": True}]})
    words = ["--out", str(tmp_path), "--device", "cpu", "--quick", "--keep"]
    for name in ("equality", "bandwidth", "equality"):
        assert run(parse([*words, "--only", name]), ["suite", name]) is True
    path = tmp_path / FILE
    report = json.loads(path.read_text())
    assert [stage["name"] for stage in report["stages"]] == ["bandwidth", "equality"], "in their order, once each"
    assert report["earlier"] == ["suite equality", "suite bandwidth"]
    assert report["complete"] is True
    assert report["figures"]["checks of equality that failed"]["met"] is True
    # their time counts
    report["stages"][0]["seconds"] = 479.0
    path.write_text(json.dumps(report))
    run(parse([*words, "--only", "equality"]), ["suite", "again"])
    assert json.loads(path.read_text())["left_out"] == ["equality: all of it"]
    report["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(report))
    with pytest.raises(RedraftError, match="of another versions"):
        run(parse([*words, "--only", "equality"]), ["suite"])
    assert run(parse([*words[:-1], "--only", "bandwidth"]), ["suite"]) is True, "without --keep it begins anew"
    assert [stage["name"] for stage in json.loads(path.read_text())["stages"]] == ["bandwidth"]


def test_every_stage_says_what_it_needs() -> None:
    assert set(LEAST_SECONDS) == set(STAGES) - {"bandwidth"}
    assert sum(LEAST_SECONDS.values()) < 480


def test_a_failed_case_is_shown_and_fails_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"shape": "tiny", "requests": 1, "rows": 1}
    cases = [one, one | {"rows": 8, "failed": "ValueError: odd"}]
    monkeypatch.setitem(STAGES, "steps", lambda suite: {"steps": cases})
    monkeypatch.setitem(STAGES, "peers", lambda suite: {"ours": {"plain": {"failed": "RuntimeError: no"}}, "peers": {}})
    options = ["--out", str(tmp_path), "--device", "cpu", "--quick", "--only", "steps", "--only", "peers"]
    assert run(parse(options), ["suite"]) is False
    report = json.loads((tmp_path / FILE).read_text())
    assert [stage["ok"] for stage in report["stages"]] == [False, False]
    told = ["steps: 1 of 2 cases, the first: ValueError: odd", "peers: 1 of 1 cases, the first: RuntimeError: no"]
    assert report["failed"] == told
    shown = capsys.readouterr().out
    assert all(f"failed: {one}" in shown for one in told)


def test_figures_that_cannot_be_made_leave_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "gpu_figures", lambda stages: {}["peers"])
    options = ["--out", str(tmp_path), "--device", "cpu", "--quick", "--only", "bandwidth"]
    assert run(parse(options), ["suite"]) is False
    report = json.loads((tmp_path / FILE).read_text())
    assert report["stages"][0]["copy_bytes_per_second"] > 0
    assert report["failed"] == ["figures: KeyError: 'peers'"]


def test_the_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has it open keeps the whole of what it was, and so does the disk of a process that is killed."""
    words = ["--out", str(tmp_path), "--device", "cpu", "--quick", "--keep", "--only", "bandwidth"]
    run(parse(words), ["suite", "first"])
    path = tmp_path / FILE
    with path.open() as before:
        run(parse(words), ["suite", "second"])
        assert json.loads(before.read())["command"] == "suite first"
    assert json.loads(path.read_text())["command"] == "suite second"
    assert [file.name for file in tmp_path.iterdir()] == [FILE]

    def killed(file: int) -> None:
        raise SystemExit

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(SystemExit):
        write(path, {"stages": []})
    assert json.loads(path.read_text())["command"] == "suite second"
