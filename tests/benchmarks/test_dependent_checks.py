"""The check of kernels that are launched early: it can pass, it can fail, and it turns them off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from redraft.benchmarks.dependent_checks import REPLAYS, dependent_checks, early_pass
from redraft.benchmarks.shape_target import random_weights
from redraft.benchmarks.shapes import TINY
from redraft.kernels import dependent_launch
from redraft.kernels.dependent_launch import allow, launch_options
from redraft.server.engine.target.decoder import Target

CUDA = torch.device("cuda")


@pytest.fixture
def target() -> Target:
    weights = random_weights(TINY["tiny"], torch.device("cpu"), torch.float32)
    return Target(TINY["tiny"], weights, 512)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that can."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    dependent_launch._can.cache_clear()


def same(run: Callable[[], Any]) -> Callable[[], Any]:
    assert dependent_launch._allowed
    return run


@pytest.mark.parametrize("rows", [1, 16])
def test_a_pass_that_waits(rows: int, target: Target) -> None:
    assert early_pass(target, max(rows, 4), torch.float32, same) is None
    assert not dependent_launch._allowed


def test_a_pass_that_reads_too_early_is_found(target: Target) -> None:
    turns = []

    def racing(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def replay() -> torch.Tensor:
            turns.append(1)
            return run() + (len(turns) == REPLAYS) * 1e-6

        return replay

    assert early_pass(target, 4, torch.float32, racing) == f"other bytes at replay {REPLAYS - 1}"


def test_every_shape_and_kind_of_pass_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redraft.benchmarks.dependent_checks.cuda_recorder", lambda: same)
    checks = dict(dependent_checks(TINY, torch.device("cpu"), torch.float32))
    assert list(checks) == ["tiny, 1 rows", "tiny, 16 rows", "tiny, 200 rows"]


@pytest.mark.usefixtures("hopper")
def test_early_only_where_it_is_allowed_and_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch_options(CUDA) == {"DEPENDENT": False}
    allow(True)
    try:
        assert launch_options(CUDA) == {"DEPENDENT": True, "launch_pdl": True}
        assert launch_options(torch.device("cpu")) == {"DEPENDENT": False}
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
        dependent_launch._can.cache_clear()
        assert launch_options(CUDA) == {"DEPENDENT": False}
    finally:
        allow(False)
        dependent_launch._can.cache_clear()
