"""The GPU suite on a CPU: it runs without a GPU machine's missing libraries."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from redraft.benchmarks.gpu_suite import RESULTS, parse
from redraft.benchmarks.suite_context import MANY, Suite
from redraft.benchmarks.suite_stages import STAGES

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
    assert report["left_out"] == report["failed"] == []
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


@pytest.mark.parametrize("words", [["--budget", "0"], ["--max-tokens", "0"], ["--equality-prompts", "-3"]])
def test_what_would_measure_nothing_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(words)


def test_results_have_a_place() -> None:
    assert parse([]).out == RESULTS == Path("benchmarks/results/gpu")


def test_many_side_by_side(tmp_path: Path) -> None:
    suite = Suite(parse(["--out", str(tmp_path), "--device", "cpu", "--dtype", "fp32", "--quick"]))
    assert suite.many.state.slots == MANY == 16
