"""Kernels in tests: run on the GPU or in Triton's interpreter, and compiled for GPUs that are not here."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from redraft.kernels.fused_cpu import load_fused


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Where ``<op>_kernel`` is tested: CUDA, or the CPU with Triton's interpreter."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.importorskip("triton")
    from redraft.kernels import triton_support

    if not triton_support.INTERPRETED:
        pytest.fail(
            "Triton compiles: it was imported before tests/conftest.py set TRITON_INTERPRET=1, or that is set to 0"
        )
    return torch.device("cpu")


@pytest.fixture(scope="module", params=["compiled", "twin"])
def cpu_path(request: pytest.FixtureRequest) -> Iterator[None]:
    """What an op over trees or logits does on a CPU: with compiled C, and with plain torch as without a compiler."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "twin":
            for module in ("trees_cpu", "vocab_cpu"):
                patch.setattr(f"redraft.kernels.{module}.load_fused", lambda: None)
        elif load_fused() is None:
            pytest.skip("no C compiler here, so the twins are all there is")
        yield


@pytest.fixture(scope="session")
def compiled() -> Callable[[ModuleType], AbstractContextManager[None]]:
    """``with compiled(module)``: that module's op has compiled C and no twin to leave anything to."""
    if load_fused() is None:
        pytest.skip("no C compiler here, so the twins are all there is")

    @contextmanager
    def alone(module: ModuleType) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("redraft.kernels.trees_cpu.load_fused", load_fused)
            patch.setattr(module, f"{module.__name__.rpartition('.')[2]}_twin", None)
            yield

    return alone


@pytest.fixture(scope="session")
def usages() -> list[dict[str, Any]]:
    """What all modules' ``COMPILE_CASES`` take on every architecture: the fields of ``redraft.kernels.aot.Usage``.

    Compiled once a session, in one process with a worker a core, which takes a minute or two on two cores; Triton keeps
    what it compiled, so the next session's takes a third.
    """
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "redraft.kernels.aot"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def literal_choice() -> Callable[..., int]:
    """Sampling re-derived: ``literal_choice(logits, temperature, top_p, min_p, top_k, seed, t)``."""
    return _choice


def _noise(seed: int, t: int, V: int) -> Any:
    """The noise of all V tokens in double precision, from the definition."""
    word = np.uint64(0xFFFFFFFF)
    c = [np.arange(V, dtype=np.uint64) // np.uint64(4), np.full(V, t, np.uint64), np.zeros(V, np.uint64), None]
    c[3] = c[2].copy()
    k = [seed % 2**32, (seed >> 32) % 2**32]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            b & word,
            (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            a & word,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    words = np.stack(c, 1)[np.arange(V), np.arange(V) % 4]
    u = np.minimum((words.astype(np.float64) + 1) * 2.0**-32, 1 - 2.0**-24)
    return -np.log(-np.log1p(-u))


def _choice(logits: Any, temperature: float, top_p: float, min_p: float, top_k: int, seed: int, t: int) -> int:
    """One row's token, step by step from the definitions, in double precision."""
    x = np.where(np.isnan(logits), -np.inf, logits.astype(np.float64))
    if temperature == 0:
        return int(np.argmax(x))
    z = x / temperature
    order = sorted(range(len(z)), key=lambda v: (-z[v], v))
    if min_p > 0:
        order = [v for v in order if np.exp(z[v] - z[order[0]]) >= min_p]
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        p = np.exp(z[order] - z[order[0]])
        cumulative = np.cumsum(p / p.sum())
        order = order[: int(np.argmax(cumulative >= top_p)) + 1]
    scores = np.full(len(z), -np.inf)
    scores[order] = z[order] + _noise(seed, t, len(z))[order]
    return int(np.argmax(scores))
