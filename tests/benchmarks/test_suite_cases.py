"""One case that breaks leaves the others, and what a stage has stays when a further part of it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redraft.benchmarks import attention_speed, product_speed, round_speed, shape_cases, step_speed, suite_stages
from redraft.benchmarks.gpu_figures import gpu_figures
from redraft.benchmarks.gpu_suite import parse, run_stage
from redraft.benchmarks.shape_target import Case, ShapeTarget
from redraft.benchmarks.shapes import TINY
from redraft.benchmarks.suite_cases import cases_of, failures, kept, part_of
from redraft.benchmarks.suite_clock import Clock, always
from redraft.benchmarks.suite_context import Suite
from redraft.kernels.attention import cpu_attention
from redraft.server.engine.rows_plan import ALWAYS_RECORDED

CPU = torch.device("cpu")
BROKEN = {"large": replace(TINY["tiny"], hidden=1 << 10), **TINY}
"""Of which the first cannot be made (``no_large``)."""


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(parse(["--device", "cpu", "--dtype", "fp32", "--quick"]))


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A suite as far as attention and dependent launches look at it."""
    monkeypatch.setattr(suite_stages, "HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    checks: Callable[..., Iterator[Any]] = lambda *arguments: iter([("x", lambda: None)])  # noqa: E731
    monkeypatch.setattr(suite_stages, "attention_checks", checks)
    monkeypatch.setattr(suite_stages, "dependent_checks", checks)
    of_device = {"device": torch.device("cuda"), "dtype": torch.float32, "copy_bytes_per_second": 1e9}
    return SimpleNamespace(clock=Clock(), quick=True, targets=TINY, **of_device)


def broken(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("no such kernel")


def no_large(make: Callable[..., Any]) -> Callable[..., Any]:
    """``make`` of a shape, for which the larger one is too large."""

    def made(spec: Any, *arguments: Any) -> Any:
        if spec.hidden >= 1 << 10:
            raise ValueError("too large")
        return make(spec, *arguments)

    return made


def test_failures_of_every_kind_are_told() -> None:
    stage: dict[str, Any] = {"name": "equality", "checks": [{"name": "x", "ok": False}, {"name": "y", "ok": True}]}
    stage["ways"] = {"one": {"rows": 1}, "two": {"rows": 2}}
    with kept(stage["ways"]["two"]):
        raise ValueError("odd")
    with part_of(stage):
        raise KeyError("sets")
    assert len(cases_of(stage)) == 2
    assert "test_suite_cases.py" in stage["ways"]["two"]["traceback"]
    assert failures([{"name": "speed", "sets": {}}, stage]) == [
        "equality: 1 of 2 checks, the first: x",
        "equality: 1 of 2 cases, the first: ValueError: odd",
        "equality: KeyError: 'sets'",
    ]
    with pytest.raises(KeyboardInterrupt), kept(stage), part_of(stage):
        raise KeyboardInterrupt


def test_a_product_that_breaks(suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    measure = product_speed._measure

    def one_breaks(ops: Any, product: str, outputs: int, inner: int, rows: int, *where: Any) -> Any:
        return broken() if (product, rows) == ("down", 16) else measure(ops, product, outputs, inner, rows, *where)

    monkeypatch.setattr(product_speed, "_measure", one_breaks)
    stage = run_stage(suite, "products")
    assert stage["ok"] is False
    wrong = [one for one in stage["products"] if "failed" in one]
    assert [(one["product"], one["rows"], one["failed"]) for one in wrong] == [
        ("down", 16, "RuntimeError: no such kernel")
    ]
    assert all("microseconds" in one for one in stage["products"] if one not in wrong)
    assert "tiny         down       16 failed: RuntimeError: no such kernel" in capsys.readouterr().out


def test_products_of_a_shape_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_speed, "layer_ops", broken)
    found = product_speed.product_speed("tiny", TINY["tiny"], CPU, torch.float32, 1e9)
    assert len(found) > 3
    assert all("no such kernel" in one["failed"] for one in found)
    assert product_speed.table(found).count("failed") == len(found)


@pytest.mark.parametrize("module", [step_speed, round_speed])
def test_a_shape_that_cannot_be_made(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the error is."""
    monkeypatch.setattr(shape_cases, "ShapeTarget", no_large(ShapeTarget))
    measure = getattr(module, module.__name__.rpartition(".")[2])
    cases = [Case(1, 8)]
    large, tiny = measure(BROKEN, cases, CPU, torch.float32, cpu_attention, 1e9)
    assert (large["shape"], large["rows"], large["failed"]) == ("large", 8, "ValueError: too large")
    assert tiny["seconds"] > 0


def test_as_many_rows_as_are_recorded_for_any_target() -> None:
    assert max(case.requests * case.rows for case in step_speed.CASES) == ALWAYS_RECORDED


def test_a_load_of_attention_that_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_breaks(device: Any, dtype: Any, shape: Any, load: Any, bandwidth: float) -> dict[str, Any]:
        good = {"microseconds_by_launches": {"1": 2.0}, "launches": 1, "share": 0.5}
        return broken() if load.context == 8192 and load.rows == 1 else good  # type: ignore[no-any-return]

    monkeypatch.setattr(attention_speed, "measure", one_breaks)
    found = attention_speed.attention_speed(CPU, torch.float32, 1e9, always)
    assert len(found) == len(attention_speed.SPEED_SHAPES) * len(attention_speed.LOADS)
    assert sum("failed" in one for one in found) == len(attention_speed.SPEED_SHAPES)
    assert sum("share" in one for one in found) == len(found) - len(attention_speed.SPEED_SHAPES)


def test_checks_stay_where_measuring_breaks(on_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_stages, "attention_speed", broken)
    monkeypatch.setattr(step_speed, "step_speed", broken)
    for name in ("attention", "dependent"):
        stage = run_stage(on_gpu, name)
        assert [check["ok"] for check in stage["checks"]] == [True]
        assert "no such kernel" in stage["error"]
        assert stage["ok"] is False


def test_equality_checks_stay_where_many_prompts_break(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_stages, "equality_run", broken)
    stage = run_stage(suite, "equality")
    assert len(stage["checks"]) > 5
    assert all(check["ok"] for check in stage["checks"])
    assert stage["ok"] is False
    figures = gpu_figures([stage])
    assert figures["checks of equality that failed"]["value"] == 0
    assert "no such kernel" in figures["speculative against plain, batch 1: tokens that differ"]["reason"]


def test_a_set_that_breaks_leaves_the_others(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = suite_stages.speed

    def second_breaks(engine: Any, drafter: Any, name: str, *of: Any) -> Any:
        return broken() if name == "humaneval" else measure(engine, drafter, name, *of)

    monkeypatch.setattr(suite_stages, "speed", second_breaks)
    monkeypatch.setitem(suite.__dict__, "sets", {"gsm8k": [[1, 2, 3]], "humaneval": [[4]], "mt-bench": [[5, 6]]})
    stage = run_stage(suite, "speed")
    assert stage["ok"] is False
    assert stage["weight_bytes"] > 0
    assert [name for name, one in stage["sets"].items() if "expected" in one] == ["gsm8k", "mt-bench"]
    figures = gpu_figures([stage])
    assert figures["target given, speculative, GSM8K"]["value"] > 0
    mean = figures["target given, speculative, mean of GSM8K, HumanEval, MT-Bench"]
    assert (mean["value"], mean["reason"]) == (None, "failed: RuntimeError: no such kernel")


def test_ours_stays_where_peers_break(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", broken)
    stage = run_stage(suite, "peers")
    assert stage["ours"]["plain"]["tokens_per_second"] > 0
    assert all("no such kernel" in one["failed"] for one in stage["peers"].values())
    assert stage["ok"] is False


def test_peers_stay_where_ours_breaks(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_stages, "same_answers", broken)
    monkeypatch.setattr(suite_stages, "peer_speed", lambda *of: {"eager": {"tokens_per_second": 1.0}})
    stage = run_stage(suite, "peers")
    assert stage["peers"]["eager"]["tokens_per_second"] == 1.0
    assert "no such kernel" in stage["error"]


def test_checks_and_prompts_that_no_longer_fit_are_both_told(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_stages, "run_checks", lambda *of: {"checks": [], "left_out": "checks from x on"})
    monkeypatch.setattr(suite_stages, "equality_run", lambda *of: {"ways": {}, "left_out": "8 of 200 prompts"})
    assert suite_stages.equality(suite)["left_out"] == "checks from x on; 8 of 200 prompts"
    monkeypatch.setattr(suite_stages, "run_checks", lambda *of: {"checks": []})
    assert suite_stages.equality(suite)["left_out"] == "8 of 200 prompts"
