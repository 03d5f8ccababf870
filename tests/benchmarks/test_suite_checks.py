"""The suite's checks can fail, and whatever they do the others run."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.benchmarks import dependent_checks as dependent
from redraft.benchmarks import equality_checks as equality
from redraft.benchmarks.gpu_suite import parse
from redraft.benchmarks.kernel_checks import QUICK, Check, Random, difference, same_bytes, sampling_inputs
from redraft.benchmarks.local import Decoded, decode
from redraft.benchmarks.row_checks import changed_rows
from redraft.benchmarks.shapes import TINY
from redraft.benchmarks.suite_clock import LEFT_OUT
from redraft.benchmarks.suite_context import Suite
from redraft.benchmarks.suite_prompts import random_prompts
from redraft.benchmarks.suite_report import left_out
from redraft.benchmarks.suite_stages import run_checks
from redraft.drafts.base import Drafter
from redraft.kernels.sample import sample_twin
from redraft.server.engine.engine import Engine
from redraft.server.engine.types import SamplingParams


def test_a_check_that_fails_or_raises_is_a_failure() -> None:
    def raises() -> str | None:
        raise ValueError("no kernel")

    found = run_checks(iter([("good", lambda: None), ("bad", lambda: "3 of 5 differ"), ("worse", raises)]))["checks"]
    assert [check["ok"] for check in found] == [True, False, False]
    assert "ValueError: no kernel" in found[2]["problem"]


def test_checks_that_no_longer_fit_are_said_to_be_left_out() -> None:
    left = iter((True, False))
    checks = iter([("first", lambda: None), ("second", lambda: pytest.fail("no time")), ("third", lambda: None)])
    found = run_checks(checks, lambda seconds: next(left))
    assert [check["name"] for check in found["checks"]] == ["first"]
    assert left_out([{"name": "rows", **found}]) == [f"rows: checks from second on: {LEFT_OUT}"]


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


def test_checks_that_cannot_be_made_leave_the_others() -> None:
    def broken() -> Iterator[Check]:
        yield "first", lambda: None
        raise ValueError("no such shape")
        yield "lost", lambda: None

    found = run_checks(chain(broken(), [("last", lambda: None)]))["checks"]
    assert [(check["name"], check["ok"]) for check in found] == [
        ("first", True),
        ("making what comes behind first", False),
        ("last", True),
    ]
    assert "no such shape" in found[1]["problem"]


def test_equality_at_one_temperature_does_not_need_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite(parse(["--out", str(tmp_path), "--device", "cpu", "--dtype", "fp32", "--quick"]))

    def broken(engine: Engine, drafter: Drafter, prompts: Any, params: SamplingParams) -> list[Decoded]:
        if params.temperature == 0:
            raise ValueError("no argmax")
        return decode(engine, drafter, prompts, params)

    monkeypatch.setattr(equality, "decode", broken)
    found = run_checks(equality.equality_checks(suite.engine, suite.engine.drafter, random_prompts(512, 2), 4))[
        "checks"
    ]
    assert [check["name"] for check in found if not check["ok"]] == [
        "making what comes behind prefill, single steps, chain and tree agree"
    ]
    assert "ngram equals plain at T = 0.8" in [check["name"] for check in found if check["ok"]]


def test_a_shape_that_does_not_fit_leaves_the_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of kernels that are launched early."""
    shapes = {"large": replace(TINY["tiny"], hidden=1 << 10), **TINY}
    make = dependent.random_weights

    def small_only(spec: Any, *arguments: Any) -> Any:
        if spec.hidden >= 1 << 10:
            raise torch.OutOfMemoryError("no room")
        return make(spec, *arguments)

    monkeypatch.setattr(dependent, "random_weights", small_only)
    monkeypatch.setattr(dependent, "cuda_recorder", lambda: None)
    monkeypatch.setattr(dependent, "early_pass", lambda *arguments: None)
    found = run_checks(dependent.dependent_checks(shapes, torch.device("cpu"), torch.float32))["checks"]
    assert [check["ok"] for check in found] == [False, True, True, True]
    assert "no room" in found[0]["problem"]
