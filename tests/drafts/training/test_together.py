"""Several processes make the steps that one makes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from redraft.drafts.training.together import ALONE

CASES = Path(__file__).with_name("together_cases.py")


def test_one_process_has_everything() -> None:
    done: list[int] = []
    ALONE.on_main(lambda: done.append(1))
    assert done == [1]
    assert (ALONE.share([3, 4, 5]), ALONE.total(0.1, 2), ALONE.any(True), ALONE.any(False)) == (
        [3, 4, 5],
        [0.1, 2.0],
        True,
        False,
    )
    with pytest.raises(ZeroDivisionError):
        ALONE.on_main(lambda: 1 // 0)  # type: ignore[arg-type, return-value]


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pytest_of = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CASES)]
    # a folder for their own temporary files: sessions that clean up among those of others disturb one another
    (own := tmp_path / "own").mkdir()
    environment = os.environ | {"SHARED": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTEST_DEBUG_TEMPROOT": str(own)}
    found = subprocess.run([*launch, *pytest_of], capture_output=True, text=True, env=environment, timeout=240)
    assert found.returncode == 0, found.stdout + found.stderr
    # both write to one pipe, so a line may begin behind the other's
    passed = re.findall(r"(\d+) passed in", found.stdout)
    assert len(passed) == 2, found.stdout
    assert passed[0] == passed[1]
