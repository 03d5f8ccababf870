"""Kernels in tests: run on the GPU or in Triton's interpreter, and compiled for GPUs that are not here."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED_LIMIT = 99 * 1024
"""Bytes of shared memory a program may take on consumer cards (capabilities 86, 89 and 120)."""


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where ``<op>_kernel`` is tested: CUDA, or the CPU with Triton's interpreter."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.importorskip("triton")
    from redraft.kernels import triton_support

    if not triton_support.INTERPRETED:
        pytest.fail(
            "Triton was imported before tests/kernels/conftest.py could set TRITON_INTERPRET=1: set it yourself"
        )
    return torch.device("cpu")


@pytest.fixture(scope="session")
def assert_compiles() -> Callable[..., list[dict[str, Any]]]:
    """A function that takes modules' names and checks their ``COMPILE_CASES`` on every supported architecture.

    Every case must compile, spill no register, and fit the shared memory of consumer cards.  Returns what each took,
    the fields of ``redraft.kernels.aot.Usage``.
    """
    pytest.importorskip("triton")

    def check(*modules: str) -> list[dict[str, Any]]:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "redraft.kernels.aot", *modules]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        usages = [json.loads(line) for line in done.stdout.splitlines()]
        assert {usage["module"] for usage in usages} == set(modules), "a module has no COMPILE_CASES"
        for usage in usages:
            assert usage["spill"] == 0, f"registers spilled: {usage}"
            if usage["capability"] in (86, 89, 120):
                assert usage["shared"] < SHARED_LIMIT, f"too much shared memory: {usage}"
        return usages

    return check
