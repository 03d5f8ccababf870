"""Goes through the cases of several shapes, making each shape's target once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from redraft.benchmarks.shape_target import Case, ShapeTarget
from redraft.benchmarks.suite_cases import FAILED, kept
from redraft.benchmarks.suite_clock import LEFT_OUT, always
from redraft.kernels.attention import MakeAttention
from redraft.server.engine.target.spec import TargetSpec


class Measure(Protocol):
    """Measures one case."""

    def __call__(
        self, shape: ShapeTarget, case: Case, before: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any], str]:
        """What was found, and a line that tells of it; ``before``: entries of the shape's cases so far."""


@torch.inference_mode()
def by_case(
    shapes: Mapping[str, TargetSpec],
    cases: Sequence[Case],
    device: torch.device,
    dtype: torch.dtype,
    make_attention: MakeAttention,
    measure: Measure,
    seconds: float,
    fits: Callable[[float], bool] = always,
) -> list[dict[str, Any]]:
    """One entry per shape and case: its names and what ``measure`` found, or why there is nothing.

    What breaks says so, as what does not fit the device's memory does, and so does what no longer fits: a case is not
    begun unless ``fits`` says that ``seconds`` are left.
    """
    found = list[dict[str, Any]]()
    for name, spec in shapes.items():
        entries = [{"shape": name, "requests": case.requests, "rows": case.rows} for case in cases]
        found += entries
        with kept(*entries):
            shape = ShapeTarget(spec, device, dtype, make_attention)
        if any(FAILED in entry for entry in entries):
            continue
        for number, (case, entry) in enumerate(zip(cases, entries, strict=True)):
            if not fits(seconds):
                entry["skipped"] = LEFT_OUT
                continue
            with kept(entry):
                made, told = measure(shape, case, entries[:number])
                entry |= made
                print(f"  {name}: {case.requests} x {case.rows} rows {told}", flush=True)
        del shape
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found
