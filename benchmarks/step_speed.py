"""What a plain step and a verified round take on weights of a known shape, random and made on the device.

A round here is the engine's, by graph on a GPU: tree, target, sampling, acceptance, compaction.  The draft's tree is a
given chain of wrong tokens (standin.py), so that what is measured is the cost of verifying and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

import torch

from redraft.benchmarks.device_seconds import DeviceClock
from redraft.benchmarks.predict import Prediction, predicted_step
from redraft.benchmarks.shape_target import ANCHOR, BOUND, LENGTH, Case, ShapeTarget, begin
from redraft.benchmarks.standin import Given, MadeTrees
from redraft.benchmarks.suite_clock import LEFT_OUT, always
from redraft.drafts.base import Drafter
from redraft.drafts.none import NoDrafter
from redraft.kernels.accept import Committed
from redraft.kernels.attention import MakeAttention
from redraft.server.engine.target.spec import TargetSpec

STEPS = 20
CASE_SECONDS = 2.0
"""A case is not begun with less of the suite's time left."""
CASES = (
    *(Case(1, rows) for rows in (1, 8, 16, 32, 64)),
    *(Case(4, rows) for rows in (1, 8, 16, 32, 64)),
    *(Case(16, rows) for rows in (1, 8, 16, 32)),
    *(Case(64, rows) for rows in (1, 8)),
)
"""Up to 512 rows, which are the most that an engine verifies in a recorded pass beside prefill."""


@torch.inference_mode()
def step_seconds(shape: ShapeTarget, case: Case, steps: int = STEPS) -> tuple[float, Committed]:
    """Of one step of ``case``, the median over ``steps`` after those that compile and record; and what it committed."""
    nodes = case.rows - 1
    state = shape.state(case, nodes)
    drafter: Drafter = NoDrafter()
    if nodes:
        # as wrong as can be: every node is verified and none accepted
        trees = MadeTrees(case.requests, nodes, nodes, ANCHOR, shape.device)
        texts = torch.zeros(case.requests, trees.spine, dtype=torch.int64, device=shape.device)
        trees.write(texts, torch.zeros(case.requests, dtype=torch.int64, device=shape.device), shape.spec.vocab)
        drafter = Given(trees.tree)
    run = shape.rounds(state, drafter)
    plan, clock = case.plan, DeviceClock(shape.device)
    for _ in range(3):
        begin(state)
        ran, _ = run(plan)
    times = []
    for _ in range(steps):
        begin(state)
        times.append(clock.seconds(lambda: run(plan)))
    return median(times), ran.committed


@torch.inference_mode()
def step_speed(
    shapes: Mapping[str, TargetSpec],
    cases: Iterable[Case],
    device: torch.device,
    dtype: torch.dtype,
    make_attention: MakeAttention,
    bandwidth: float,
    fits: Callable[[float], bool] = always,
) -> list[dict[str, Any]]:
    """One entry per shape and case: seconds, what memory alone would take, and the first as a share of plain decoding.

    ``bandwidth`` is the device's in bytes per second (bandwidth.py).  What does not fit its memory says so, and so does
    what does not fit the suite's time: ``fits`` tells whether so many seconds are left.
    """
    found = list[dict[str, Any]]()
    for name, spec in shapes.items():
        try:
            shape = ShapeTarget(spec, device, dtype, make_attention)
        except torch.OutOfMemoryError as error:
            found += [_entry(name, case) | {"failed": str(error)[:300]} for case in cases]
            continue
        plain: dict[int, float] = {}
        for case in cases:
            entry = _entry(name, case)
            found.append(entry)
            if not fits(CASE_SECONDS):
                entry["skipped"] = LEFT_OUT
                continue
            try:
                seconds = step_seconds(shape, case)[0]
            except Exception as error:  # the other cases are still of interest
                entry["failed"] = f"{type(error).__name__}: {error}"[:300]
                continue
            if case.rows == 1:
                plain[case.requests] = seconds
            prediction = predicted_step(spec, case.requests, case.rows, LENGTH, dtype.itemsize, bound=BOUND)
            entry |= _beside(seconds, prediction, bandwidth)
            if case.requests in plain:
                entry["against_plain"] = seconds / plain[case.requests]
            print(
                f"  {name}: {case.requests} x {case.rows} rows {1e3 * seconds:.3f} ms, "
                f"{entry['share_of_bandwidth']:.0%} of the bandwidth, "
                f"{entry.get('against_plain', float('nan')):.2f} x plain",
                flush=True,
            )
        del shape
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def _entry(shape: str, case: Case) -> dict[str, Any]:
    return {"shape": shape, "requests": case.requests, "rows": case.rows}


def _beside(seconds: float, prediction: Prediction, bandwidth: float) -> dict[str, Any]:
    floor = prediction.traffic.seconds(bandwidth)
    return {
        "seconds": seconds,
        "memory_seconds": floor,
        "launches": prediction.launches,
        "predicted_seconds": prediction.seconds(bandwidth),
        "share_of_bandwidth": floor / seconds,
    }
