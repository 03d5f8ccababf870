"""What a plain step and a verified round take on weights of a known shape, random and made on the device.

A round here is the engine's, by graph on a GPU: tree, target, sampling, acceptance, compaction.  The draft's tree is a
given chain of wrong tokens (standin.py), so that what is measured is the cost of verifying and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from redraft.benchmarks.device_seconds import DeviceClock
from redraft.benchmarks.predict import Prediction, predicted_step
from redraft.benchmarks.shape_cases import by_case
from redraft.benchmarks.shape_target import ANCHOR, BOUND, LENGTH, Case, ShapeTarget, begin
from redraft.benchmarks.standin import Given, MadeTrees
from redraft.benchmarks.suite_clock import always
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
"""Up to 512 rows: so many an engine records beside prefill whatever the target (rows_plan.py, ``ALWAYS_RECORDED``).  Of
small targets it records up to 2,048, and as many are not measured here."""


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


def step_speed(
    shapes: Mapping[str, TargetSpec],
    cases: Sequence[Case],
    device: torch.device,
    dtype: torch.dtype,
    make_attention: MakeAttention,
    bandwidth: float,
    fits: Callable[[float], bool] = always,
) -> list[dict[str, Any]]:
    """One entry per shape and case (``by_case``): seconds, what memory alone would take, and against plain decoding.

    ``bandwidth`` is the device's in bytes per second (bandwidth.py).
    """

    def measure(shape: ShapeTarget, case: Case, before: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], str]:
        seconds = step_seconds(shape, case)[0]
        prediction = predicted_step(shape.spec, case.requests, case.rows, LENGTH, dtype.itemsize, bound=BOUND)
        made = _beside(seconds, prediction, bandwidth)
        plain = {entry["requests"]: entry["seconds"] for entry in before if entry["rows"] == 1 and "seconds" in entry}
        if case.rows == 1:
            plain[case.requests] = seconds
        if case.requests in plain:
            made["against_plain"] = seconds / plain[case.requests]
        against = made.get("against_plain", float("nan"))
        return made, f"{1e3 * seconds:.3f} ms, {made['share_of_bandwidth']:.0%} of the bandwidth, {against:.2f} x plain"

    return by_case(shapes, cases, device, dtype, make_attention, measure, CASE_SECONDS, fits)


def _beside(seconds: float, prediction: Prediction, bandwidth: float) -> dict[str, Any]:
    floor = prediction.traffic.seconds(bandwidth)
    return {
        "seconds": seconds,
        "memory_seconds": floor,
        "launches": prediction.launches,
        "predicted_seconds": prediction.seconds(bandwidth),
        "share_of_bandwidth": floor / seconds,
    }
