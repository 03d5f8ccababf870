"""One of many cases may break: what became of the others is kept, and what broke says so."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

FAILED, ERROR = "failed", "error"
"""Keys: why a case has no result, and why a stage, or the part of it that was under way, has none."""
MOST_CHARACTERS, MOST_TRACE = 300, 4000


@contextmanager
def kept(*cases: dict[str, Any]) -> Iterator[None]:
    """Write what is raised within to each of ``cases`` (``failed``, ``traceback``), print it, and go on behind it.

    The suite's exit code tells of it (``failures``).
    """
    try:
        yield
    except Exception as error:
        why, trace = f"{type(error).__name__}: {error}"[:MOST_CHARACTERS], traceback.format_exc()[-MOST_TRACE:]
        for case in cases:
            name = " ".join(str(value) for value in case.values() if isinstance(value, str | int))
            print(f"  {name}: failed: {why}", flush=True)
            case |= {FAILED: why, "traceback": trace}
        print(trace, flush=True)


@contextmanager
def part_of(stage: dict[str, Any]) -> Iterator[None]:
    """The same of a part of ``stage``: the traceback becomes its ``error``, what it has already stays."""
    try:
        yield
    except Exception:
        trace = traceback.format_exc()
        stage[ERROR] = f"{stage[ERROR]}\n{trace}" if ERROR in stage else trace
        print(trace, flush=True)


def cases_of(stage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every case of a stage, be they listed or by name; not its checks."""
    groups = [of for key, of in stage.items() if isinstance(of, Mapping | list) and key != "checks"]
    listed = (of.values() if isinstance(of, Mapping) else of for of in groups)
    return [one for of in listed for one in of if isinstance(one, Mapping)]


def failures(stages: Iterable[Mapping[str, Any]]) -> list[str]:
    """What broke or did not hold: by stage checks, cases, and the stage itself."""
    found = []
    for stage in stages:
        name, checks, cases = stage["name"], stage.get("checks", ()), cases_of(stage)
        wrong = [check["name"] for check in checks if not check["ok"]]
        broken = [case[FAILED] for case in cases if FAILED in case]
        if wrong:
            found.append(f"{name}: {len(wrong)} of {len(checks)} checks, the first: {wrong[0]}")
        if broken:
            found.append(f"{name}: {len(broken)} of {len(cases)} cases, the first: {broken[0]}")
        if ERROR in stage:
            found.append(f"{name}: {stage[ERROR].strip().splitlines()[-1]}")
    return found
