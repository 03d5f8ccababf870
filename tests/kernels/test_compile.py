"""Every kernel compiles for every supported architecture, within its registers and its shared memory."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from redraft.kernels.aot import CAPABILITIES, modules

pytestmark = pytest.mark.timeout(900)  # whoever comes first compiles

Usage = dict[str, Any]
KIB = 1024
SHARED = {80: 163 * KIB, 86: 99 * KIB, 89: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB, 120: 99 * KIB}
"""Bytes of shared memory that a program may have: CUDA C++ Programming Guide, table of compute capabilities."""
REGISTERS = 64 * KIB
"""Of a multiprocessor; a warp gets them by 256."""
NAMED = re.compile(r"@jit(?:\([^)]*\))?.*\ndef (\w+)")


def test_of_every_module_and_architecture(usages: list[Usage], repository: Path) -> None:
    compiled = {(usage["module"], usage["capability"]) for usage in usages}
    assert compiled == {(module, capability) for module in modules() for capability in CAPABILITIES}
    # what is launched is a kernel of its own; what only kernels call is compiled with them
    text = "\n".join(path.read_text() for path in (repository / "kernels").glob("*.py"))
    launched = {name for name in NAMED.findall(text) if re.search(rf"\b{name}\[", text)}
    assert len(launched) > 20
    assert launched == {usage["kernel"] for usage in usages}


def test_cases_fit_and_add_in_order(usages: list[Usage]) -> None:
    assert {atomic for usage in usages for atomic in usage["atomics"]}, "tickets are drawn atomically"
    fits_and_adds_in_order(usages)


def fits_and_adds_in_order(usages: list[Usage]) -> None:
    """No register is spilled, a program fits a multiprocessor, and nothing but integers is added atomically.

    Floats would be added in the order in which programs come; compare-and-swap may be such a sum as well.
    """
    assert [usage for usage in usages if usage["spill"]] == []
    assert [usage for usage in usages if usage["shared"] > SHARED[usage["capability"]]] == []
    assert [usage for usage in usages if usage["warps"] * -(-32 * usage["registers"] // 256) * 256 > REGISTERS] == []
    found = {atomic for usage in usages for atomic in usage["atomics"]}
    assert {one for one in found if not re.search(r"\.(add|and|or|min|max)\.[us](32|64)$", one)} == set()


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_rounds_launch(every: bool, environment: dict[str, str]) -> None:
    """Cases are chosen; these are the specialisations that the default target's rounds have on an H100, or all have."""
    pytest.importorskip("triton")
    command = [sys.executable, str(Path(__file__).with_name("launched.py")), *(["--all"] if every else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    usages = [json.loads(line) for line in done.stdout.splitlines()]
    assert {usage["capability"] for usage in usages} == (set(CAPABILITIES) if every else {90})
    assert {"product", "chunks_of_items", "_rank", "best_of_block_kernel"} <= {usage["kernel"] for usage in usages}
    fits_and_adds_in_order(usages)
