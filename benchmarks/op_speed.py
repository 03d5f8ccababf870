"""How long each op of a round takes that is neither a product nor attention, beside its bytes and its launches."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from redraft.benchmarks.device_seconds import device_seconds
from redraft.benchmarks.launches import CPU, count_op
from redraft.benchmarks.round_ops import RoundOps
from redraft.benchmarks.shape_target import Case
from redraft.benchmarks.shapes import draft_shape
from redraft.benchmarks.suite_clock import LEFT_OUT, always
from redraft.benchmarks.traffic import LAUNCH_SECONDS
from redraft.kernels.triton_support import HAS_TRITON
from redraft.server.engine.target.spec import TargetSpec

CASES = (Case(1, 16), Case(16, 8))
"""One request's round on a GPU, and one of many rows."""
TIMES = 20
"""Runs in a row that are timed as one: some ops take no longer than a clock can tell."""
PASSES = 5
OP_SECONDS = 1.0
"""An op is not begun with less of the suite's time left."""


@torch.inference_mode()
def op_speed(
    shapes: Mapping[str, TargetSpec],
    cases: Iterable[Case],
    device: torch.device,
    dtype: torch.dtype,
    bandwidth: float,
    fits: Callable[[float], bool] = always,
) -> list[dict[str, Any]]:
    """Per shape, case and op: microseconds, those of its bytes at ``bandwidth`` (the floor), and with its launches.

    In a row, inputs are found in the caches that the last run left them in, as in a round, where what wrote them ran
    just before.  ``fits``: whether so many seconds are left.
    """
    found = list[dict[str, Any]]()
    for name, spec in shapes.items():
        for case in cases:
            ops = RoundOps(spec, draft_shape(spec), case, device, dtype)
            for op, make in ops.ops().items():
                entry: dict[str, Any] = {"shape": name, "requests": case.requests, "rows": case.rows, "op": op}
                found.append(entry)
                if not fits(OP_SECONDS):
                    entry["skipped"] = LEFT_OUT
                    continue
                try:
                    run, moved = make()
                    seconds = device_seconds(_times(run), device, PASSES) / TIMES
                except Exception:  # the others are still of interest
                    entry["failed"] = traceback.format_exc()[-500:]
                    continue
                launches = _launches(spec, case, op)
                entry |= {
                    "microseconds": 1e6 * seconds,
                    "bytes": moved,
                    "floor_microseconds": 1e6 * moved / bandwidth,
                    "launches": launches,
                    "predicted_microseconds": None
                    if launches is None
                    else 1e6 * (moved / bandwidth + launches * LAUNCH_SECONDS),
                }
    return found


def table(found: Iterable[Mapping[str, Any]]) -> str:
    """Lines for people: of every op that was measured its time, its floor and what was predicted."""
    lines = [f"  {'':12} {'rows':>8} {'':38} {'us':>8} {'floor':>8} {'predicted':>9}"]
    for one in found:
        if "microseconds" not in one:
            lines.append(f"  {one['shape']:12} {one['op']}: {one.get('skipped') or 'failed'}")
            continue
        predicted = one["predicted_microseconds"]
        lines.append(
            f"  {one['shape']:12} {one['requests']:>3} x {one['rows']:>2} {one['op']:38} {one['microseconds']:8.2f} "
            f"{one['floor_microseconds']:8.2f} {'-' if predicted is None else format(predicted, '9.2f')}"
        )
    return "\n".join(lines)


def _times(run: Callable[[], object]) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(TIMES):
            run()

    return turn


def _launches(spec: TargetSpec, case: Case, op: str) -> int | None:
    """Counted without contents; None where that cannot be done, as ``launches_of`` has it."""
    if not HAS_TRITON:
        return None
    try:
        return count_op(lambda: RoundOps(spec, draft_shape(spec), case, CPU, torch.bfloat16).ops()[op]()[0])
    except Exception as error:
        print(f"  launches of {op} cannot be counted: {type(error).__name__}: {error}"[:300], flush=True)
        return None
