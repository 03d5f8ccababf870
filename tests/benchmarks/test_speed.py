"""``redraft bench speed`` end to end on a tiny target."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from redraft.server.cli import app

FILE_KEYS = {
    "file",
    "requests",
    "tokens",
    "passes",
    "plain_tokens_per_second",
    "tokens_per_second",
    "speedup",
    "tau",
    "tau_per_request",
    "histogram",
    "parity",
    "looping_share",
    "p50_seconds",
    "plain_p50_seconds",
}
TOP_KEYS = {"command", "commit", "dirty", "versions", "machine", "date", "engine", "settings", "files", "complete"}


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "speed", *map(str, arguments)])


def report_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_json_contract_and_parity(tiny_target: Path, prompt_file: Path, tmp_path: Path, temperature: str) -> None:
    other = prompt_file.with_name("other.jsonl")
    other.write_text('{"turns": ["One more question?"]}\n')
    common = ("--target", tiny_target, "--device", "cpu", "--dtype", "fp32", "--draft", "ngram", "--max-nodes", "4")
    files = ("--prompts", prompt_file, "--prompts", other, "--json", tmp_path / "a.json", "--results", tmp_path / "r")
    result = bench(*common, *files, "--max-tokens", "40", "--multi-turn", "--temperature", temperature)
    report = report_of(result)
    assert report.keys() >= TOP_KEYS
    assert report["complete"] is True
    assert report["engine"]["draft"] == "ngram-1"
    assert (report["engine"]["device"], report["engine"]["dtype"]) == ("cpu", "fp32")
    assert report["settings"]["max_tokens"] == 40
    assert [one["file"] for one in report["files"]] == ["questions.jsonl", "other.jsonl"]
    assert [one["requests"] for one in report["files"]] == [4, 1]
    for one in report["files"]:
        assert one.keys() == FILE_KEYS
        assert one["parity"] == 1.0
        assert one["plain_tokens_per_second"] > 0
        assert one["tokens_per_second"] > 0
        assert one["tokens"] == sum(count * n for n, count in enumerate(one["histogram"], start=1))
        assert one["tau"] == pytest.approx(one["tokens"] / sum(one["histogram"]))
    assert json.loads((tmp_path / "a.json").read_text()) == report
    assert json.loads((tmp_path / "r" / "speed.jsonl").read_text()) == report
    assert "questions.jsonl" in result.stdout.splitlines()[1]


def test_drafting_is_seen_in_tau(tiny_target: Path, prompt_file: Path) -> None:
    common = ("--target", tiny_target, "--device", "cpu", "--dtype", "fp32", "--prompts", prompt_file, "--limit", "1")
    drafted = report_of(bench(*common, "--draft", "ngram", "--speculation", "4", "--repeat", "2"))["files"][0]
    plain = report_of(bench(*common, "--draft", "none"))["files"][0]
    assert drafted["tau"] > 1.2, "the tiny target repeats itself, so look-up must find something"
    assert drafted["passes"] == 2
    assert plain["tau"] == 1.0
    assert plain["histogram"] == [plain["tokens"]]
    assert 2 * plain["tokens"] == drafted["tokens"]


def test_errors_are_one_line_and_exit_code_2(tiny_target: Path, prompt_file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{\n")
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("--prompts", tmp_path / "none.jsonl"), "cannot read"),
        (("--prompts", bad), "bad.jsonl:1: not valid JSON"),
        (("--prompts", prompt_file, "--limit", "0"), "--limit 0"),
        (("--prompts", prompt_file, "--temperature", "inf"), "--temperature inf"),
        (("--prompts", prompt_file, "--model", "m"), "--model needs --url"),
        (("--prompts", prompt_file, "--url", "http://localhost:9", "--dtype", "bf16"), "--dtype says how this process"),
        (("--prompts", prompt_file, "--target", tiny_target, "--json", tmp_path / "no" / "x.json"), "cannot write"),
        (("--prompts", prompt_file, "--target", tmp_path / "nothing"), "there is no folder"),
    ]
    for arguments, message in cases:
        result = bench(*arguments)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.stderr


def test_a_prompt_that_does_not_fit_keeps_what_was_measured(tiny_target: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "long.jsonl"
    prompts.write_text('{"turns": ["short"]}\n' + json.dumps({"turns": ["long " * 1000]}) + "\n")
    result = bench(
        "--target", tiny_target, "--device", "cpu", "--dtype", "fp32", "--prompts", prompts, "--max-tokens", "8"
    )
    assert result.exit_code == 2
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["complete"] is False
    assert "the most that fits" in report["error"]
    assert report["files"][0]["requests"] == 1
