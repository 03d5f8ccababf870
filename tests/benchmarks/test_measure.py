"""The order of a run, and what is left of an interrupted one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redraft.benchmarks.measure import Ask, FileRun, measure
from redraft.benchmarks.prompts import read_prompts
from redraft.benchmarks.speed import Contest, Settings, Sinks, run

Fake = Callable[..., Any]
ASK = Ask(max_tokens=64, temperature=0.0, seed=5)


def test_both_ways_in_turn_and_each_first_in_turn(prompt_file: Path, fake_decoder: Fake) -> None:
    log: list[Any] = []
    runs = [FileRun(read_prompts(prompt_file))]
    done: list[int] = []
    measure(runs, fake_decoder("plain", log), fake_decoder("spec", log), ASK, 2, done.append)
    names = [name for name, *_ in log]
    assert names[:2] == ["plain", "spec"], "warm-up"
    assert names[2:8] == ["plain", "spec", "spec", "plain", "plain", "spec"]
    assert names[8:] == ["spec", "plain", "plain", "spec", "spec", "plain"]
    assert [ask.max_tokens for *_, ask in log[:3]] == [32, 32, 64]
    assert [ask.seed for *_, ask in log[2:8]] == [5, 5, 6, 6, 7, 7]
    assert [len(pairs) for pairs in runs[0].passes] == [3, 3]
    assert done == [1] * 6


def test_later_turns_follow_on_own_answers(prompt_file: Path, fake_decoder: Fake) -> None:
    log: list[Any] = []
    runs = [FileRun(read_prompts(prompt_file, 1, multi_turn=True))]
    measure(runs, None, fake_decoder("spec", log), ASK, 1, lambda _: None)
    *_, (_, messages, _) = log
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == "answer 2", "the measured first turn's answer, not the warm-up's"
    assert len(runs[0].passes[0][0].speculative) == 2


def test_an_interrupted_run_keeps_whole_pairs(
    prompt_file: Path, fake_decoder: Fake, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log: list[Any] = []
    contest = Contest(fake_decoder("plain", log), fake_decoder("spec", log, stop_at=4), {"draft": "fake"})
    sinks = Sinks(tmp_path / "out.json", tmp_path / "results")
    sinks.prepare()
    with pytest.raises(KeyboardInterrupt):
        run(contest, [read_prompts(prompt_file)], Settings(), sinks, ["redraft", "bench"])
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert (report["complete"], report["error"]) == (False, "KeyboardInterrupt")
    assert report["files"][0]["requests"] == 2
    assert "incomplete" in lines[-2]
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert json.loads((tmp_path / "results" / "speed.jsonl").read_text()) == report
