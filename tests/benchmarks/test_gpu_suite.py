"""The GPU suite on a CPU: it runs without a GPU machine's missing libraries, and its checks can fail."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.benchmarks import equality_checks as equality
from redraft.benchmarks.gpu_suite import FILE, RESULTS, left_out, parse, run, run_stage, stages_table
from redraft.benchmarks.kernel_checks import QUICK, Random, difference, same_bytes, sampling_inputs
from redraft.benchmarks.local import Decoded, decode
from redraft.benchmarks.row_checks import changed_rows
from redraft.benchmarks.suite_clock import LEFT_OUT, Clock
from redraft.benchmarks.suite_context import MANY, Suite
from redraft.benchmarks.suite_prompts import random_prompts, read_id_prompts
from redraft.benchmarks.suite_stages import LEAST_SECONDS, STAGES, Found, run_checks
from redraft.drafts.base import Drafter
from redraft.kernels.sample import sample_twin
from redraft.server.engine.engine import Engine
from redraft.server.engine.types import RedraftError, SamplingParams

AGAINST_PEER = "target given, plain against transformers with static cache and compile"
ABSENT = (
    "fastapi",
    "pydantic",
    "msgspec",
    "gguf",
    "typer",
    "rich",
    "aiohttp",
    "structlog",
    "tokenizers",
    "transformers",
)
WITHOUT = (
    f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); from redraft.benchmarks.gpu_suite import main; main()"
)


def suite(
    tmp_path: Path, *arguments: str, environment: dict[str, str] | None = None
) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-c", WITHOUT, "--out", str(tmp_path), "--device", "cpu", "--quick", *arguments]
    # the kernels' tests turn the interpreter on for their whole session
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables = {**inherited, "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert (tmp_path / "gpu_suite.json").is_file(), done.stderr
    return done.returncode, json.loads((tmp_path / "gpu_suite.json").read_text()), done.stdout


def test_whole_suite_on_a_cpu(tmp_path: Path) -> None:
    code, report, output = suite(tmp_path, "--dtype", "fp32")
    assert code == 0, output
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert list(stages) == list(STAGES)
    assert report["complete"] is True
    assert report["left_out"] == []
    assert report["seconds"] >= sum(stage["seconds"] for stage in stages.values()) - 0.1
    assert all(f"{name:10}" in output for name in STAGES), "what each stage took is shown"
    assert "CUDA" in stages["kernels"]["skipped"]
    assert "CUDA" in stages["attention"]["skipped"]
    assert "CUDA" in stages["dependent"]["skipped"]
    names = [check["name"] for check in stages["equality"]["checks"]]
    assert {"ngram equals plain at T = 0.8", "random-trees equals plain at T = 0.0"} <= set(names)
    ways = stages["equality"]["ways"]
    many = {"plain, batch 16", "speculative, batch 16", "speculative, batch 16, T = 0.8"}
    assert set(ways) == {"speculative, batch 1"} | many
    assert all(way["tokens"] == 6 * 16 for way in ways.values())
    assert all(way["tokens_that_differ"] == way["caches_that_differ"] == 0 for way in ways.values())
    assert stages["bandwidth"]["copy_bytes_per_second"] > 0
    measured = stages["products"]["products"]
    assert {(one["product"], one["rows"]) for one in measured} >= {("qkv", 1), ("gate_up", 16), ("head", 64)}
    assert all(one["microseconds"] > 0 and one["share_of_copy_bandwidth"] > 0 for one in measured)
    of_set = stages["speed"]["sets"]["random"]
    assert of_set["alone"]["parity"] == 1.0
    assert of_set["together"]["plain"] > 0
    step = of_set["expected"]["plain_step_milliseconds"]
    floor = 1e3 * of_set["expected"]["plain_step_bytes"] / stages["bandwidth"]["copy_bytes_per_second"]
    assert step["floor"] == floor
    assert step["measured"] > 0
    assert stages["speed"]["weight_bytes"] > 0
    assert [(step["requests"], step["rows"]) for step in stages["steps"]["steps"]] == [(1, 1), (1, 8)]
    assert all(step["seconds"] > 0 for step in stages["steps"]["steps"])
    (whole,) = stages["rounds"]["rounds"]
    assert whole["tokens_per_round"] > 2
    assert whole["seconds"] > whole["products_and_attention_seconds"] > 0
    assert {"sample greedy", "accept", "compact_kv", "ngram", "pack_tree"} <= {
        one["op"] for one in stages["ops"]["ops"]
    }
    assert all(one["microseconds"] > 0 and one["bytes"] > 0 for one in stages["ops"]["ops"])
    assert "not installed" in stages["peers"]["peers"]["transformers, eager"]["skipped"]
    # the same prompts and as many tokens as peers are given
    ours = stages["peers"]["ours"]
    assert [ours[way]["tokens"] for way in ("plain", "speculative")] == [2 * 4] * 2
    assert report["figures"]["checks of equality that failed"]["met"] is True
    assert "not installed" in report["figures"][AGAINST_PEER]["reason"]
    assert all(stage["seconds"] >= 0 for stage in stages.values())


def test_kernels_under_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    code, report, output = suite(tmp_path, "--only", "kernels", environment={"TRITON_INTERPRET": "1"})
    assert code == 0, output
    checks = report["stages"][0]["checks"]
    names = {check["name"] for check in checks}
    assert {"gumbel", "ngram", "pack_tree", "accept", "compact_kv bfloat16"} <= names
    assert {"active_slots", "block_rows causal", "marginals sampled bfloat16"} <= names
    assert {"tiny qkv 128 x 64", "tiny gate_up 256 x 64", "tiny rope_cache", "tiny rms_norm", "product fp32"} <= names


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


def test_a_check_that_fails_or_raises_is_a_failure() -> None:
    def raises() -> str | None:
        raise ValueError("no kernel")

    found = run_checks(iter([("good", lambda: None), ("bad", lambda: "3 of 5 differ"), ("worse", raises)]))["checks"]
    assert [check["ok"] for check in found] == [True, False, False]
    assert "ValueError: no kernel" in found[2]["problem"]


def test_one_wrong_token_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite(parse(["--out", str(tmp_path), "--device", "cpu", "--dtype", "fp32", "--quick"]))

    def meddling(engine: Engine, drafter: Drafter, prompts: Any, params: SamplingParams) -> list[Decoded]:
        found = decode(engine, drafter, prompts, params)
        if drafter.name == "ngram":
            found[1].tokens[5] ^= 1
        return found

    monkeypatch.setattr(equality, "decode", meddling)
    checks = equality.equality_checks(suite.engine, suite.engine.drafter, random_prompts(512, 2), 12)
    problems = {name: check() for name, check in checks if name.endswith("T = 0.0")}
    assert problems.pop("ngram equals plain at T = 0.0") == "1 of 2 prompts differ; prompt 1 from its token 5 on"
    assert set(problems.values()) == {None}


def test_differences_are_bytes() -> None:
    zero = torch.tensor([0.0, 1.0])
    assert difference((zero, zero), (zero, zero.clone())) is None
    assert difference((zero, zero), (zero, torch.tensor([-0.0, 1.0]))) is not None
    assert difference(zero, zero.double()) is not None
    assert same_bytes(torch.tensor([torch.nan]), torch.tensor([torch.nan]))


def test_rows_that_depend_on_their_neighbours_are_found() -> None:
    x = torch.arange(67.0).unsqueeze(1)
    assert changed_rows(lambda part: x[part] * 2) is None
    problem = changed_rows(lambda part: x[part] + (x[part].shape[0] == 17))
    assert problem is not None
    assert "[17]" in problem


def test_sampling_inputs_use_every_filter() -> None:
    logits, slot, position, table = sampling_inputs(
        replace(QUICK, rows=40), Random(torch.device("cpu"), 0), torch.float32
    )
    kinds = (table.temperature > 0, table.temperature == 0, table.top_p < 1, table.min_p > 0, table.top_k > 0)
    assert all(kind[:-1].any() for kind in kinds), "the last slot is the trash slot"
    plain = sample_twin(logits, slot, position, table, sampled=True, filtered=False)
    assert not torch.equal(plain, sample_twin(logits, slot, position, table, sampled=True, filtered=True))


def test_id_prompts(tmp_path: Path, tiny_target: Path, prompt_file: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text("[[1, 2], [3]]")
    assert read_id_prompts(path, None) == [[1, 2], [3]]
    assert len(read_id_prompts(prompt_file, tiny_target)) == 3
    for bad in ("{}", "[]", "[[]]", '[["a"]]', "[1"):
        path.write_text(bad)
        with pytest.raises(RedraftError, match="must hold a list of lists of token ids"):
            read_id_prompts(path, None)


def test_text_needs_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--out", "x", "--prompts", "a.jsonl"])
    assert "needs --target" in capsys.readouterr().err


def test_sets_of_prompts(tmp_path: Path) -> None:
    """Each file is a set by its name, and peers get some of each."""
    files = []
    for number, name in enumerate(("gsm8k", "human-eval")):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps([[10 * number + place] for place in range(5 + number)]))
    given = [word for file in files for word in ("--prompts", str(file))]
    suite = Suite(parse(["--out", str(tmp_path), "--device", "cpu", *given]))
    assert {name: len(prompts) for name, prompts in suite.sets.items()} == {"gsm8k": 5, "human-eval": 6}
    assert suite.peer_work == ([[0], [10], [1], [11], [2], [12]], 128)
    assert len(suite.mixed) == 11
    assert (suite.equality_prompts, suite.equality_tokens) == (200, 256)


def test_two_sets_of_one_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--prompts", "a/gsm8k.json", "--prompts", "b/gsm8k.json"])
    assert "may not have the same name" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--budget", "0"], ["--max-tokens", "0"], ["--equality-prompts", "-3"]])
def test_what_would_measure_nothing_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(words)


def test_results_have_a_place() -> None:
    assert parse([]).out == RESULTS == Path("benchmarks/results/gpu")


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
    shown = stages_table({"stages": [stage], "seconds": 1.0, "budget_seconds": 480.0, "left_out": left_out([stage])})
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


def test_checks_that_no_longer_fit_are_said_to_be_left_out() -> None:
    left = iter((True, False))
    checks = iter([("first", lambda: None), ("second", lambda: pytest.fail("no time")), ("third", lambda: None)])
    found = run_checks(checks, lambda seconds: next(left))
    assert [check["name"] for check in found["checks"]] == ["first"]
    assert left_out([{"name": "rows", **found}]) == [f"rows: checks from second on: {LEFT_OUT}"]


def test_every_stage_says_what_it_needs() -> None:
    assert set(LEAST_SECONDS) == set(STAGES) - {"bandwidth"}
    assert sum(LEAST_SECONDS.values()) < 480


def test_many_side_by_side(tmp_path: Path) -> None:
    suite = Suite(parse(["--out", str(tmp_path), "--device", "cpu", "--dtype", "fp32", "--quick"]))
    assert suite.many.state.slots == MANY == 16
