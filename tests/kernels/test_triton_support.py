"""Triton is optional: without it every kernel module imports and the CPU paths work."""

import subprocess
import sys

import pytest
import torch

from redraft.kernels.triton_support import next_power_of_2, use_triton

WITHOUT_TRITON = """
import sys, torch
sys.modules["triton"] = None
from redraft.kernels import attention, filters, noise, sample, triton_support
assert not triton_support.HAS_TRITON
table = sample.SamplingTable.greedy(1, "cpu")
table.temperature.fill_(1.0)
rows = torch.zeros(2, dtype=torch.int64)
print(sample.sample(torch.eye(2) * 100, rows, rows, table, sampled=True, filtered=True).tolist())
"""


def test_works_without_triton():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert done.stdout == "[0, 1]\n", done.stderr


def test_cpu_tensors_never_take_the_kernel():
    """Not even where Triton interprets: the interpreter is for tests that call ``<op>_kernel`` themselves."""
    assert not use_triton(torch.zeros(1))


@pytest.mark.parametrize(("n", "expected"), [(0, 1), (1, 1), (2, 2), (3, 4), (1024, 1024), (1025, 2048)])
def test_next_power_of_2(n, expected):
    assert next_power_of_2(n) == expected
