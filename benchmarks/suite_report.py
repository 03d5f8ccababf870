"""What the GPU suite writes and prints of its stages: time taken, what failed, what there was no time for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redraft.benchmarks.suite_cases import cases_of
from redraft.benchmarks.suite_clock import LEFT_OUT


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Replace ``path`` at once: whenever the process is killed, the file holds this report or the one before."""
    beside = path.with_name(f"{path.name}.new")
    with beside.open("w") as file:
        file.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        # a machine that is taken away may take what is not on its disk
        os.fsync(file.fileno())
    beside.replace(path)


def left_out(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What there was no time for: stages, and cases within them."""
    found = []
    for stage in stages:
        name = stage["name"]
        if stage.get("out_of_time"):
            found.append(f"{name}: all of it")
        if "left_out" in stage:
            found.append(f"{name}: {stage['left_out']}")
        cases = cases_of(stage)
        late = sum(one.get("skipped") == LEFT_OUT for one in cases)
        if late:
            found.append(f"{name}: {late} of {len(cases)} cases")
    return found


def stages_table(report: Mapping[str, Any]) -> str:
    """One line a stage with what it took, then what failed and what there was no time for."""
    lines = [f"{stage['name']:10} {stage['seconds']:8.1f} s  {_state(stage)}" for stage in report["stages"]]
    lines.append(f"{'all':10} {report['seconds']:8.1f} s  of {report['budget_seconds']:.0f}")
    lines += [f"failed: {one}" for one in report["failed"]]
    return "\n".join([*lines, *(f"left out for want of time: {one}" for one in report["left_out"])])


def _state(stage: Mapping[str, Any]) -> str:
    return "skipped" if "skipped" in stage else "ok" if stage["ok"] else "FAILED"
