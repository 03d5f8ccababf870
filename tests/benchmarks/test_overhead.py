"""The overhead benchmark, with next to no load: every token arrives, and the figures are what they are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from redraft.benchmarks.cli import app
from redraft.benchmarks.overhead import Load, Took, run


def test_a_small_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load = Load(rate=400, streams=4, width=3, tokens=50)
    figures = run(load, 1, tmp_path / "json", ["overhead"])
    # what the engine does not give nobody gets
    assert 0 < figures["tokens_per_second"] < 1.05 * 400
    assert 0 <= figures["lost_share"] < 1
    assert figures["microseconds_per_event"] > 0
    line = json.loads((tmp_path / "json").read_text())
    assert {name: line[name] for name in figures} == figures
    assert capsys.readouterr().out.splitlines()[-1] == json.dumps(line)


def test_the_figures() -> None:
    load = Load(rate=1000, streams=10, width=4, tokens=401)
    assert load.engine_seconds == 4.01
    figures = Took(seconds=8.02, server_seconds=2.005).figures(load)
    assert figures == {
        "tokens_per_second": 500.0,
        "lost_share": 0.5,
        "server_core_share": 0.25,
        "microseconds_per_event": pytest.approx(2.005e6 / 1010),
    }


def test_what_makes_no_sense_is_refused() -> None:
    for option in ("--rate", "--streams", "--per-event", "--tokens", "--repeat"):
        assert CliRunner().invoke(app, ["overhead", option, "0"]).exit_code == 2
