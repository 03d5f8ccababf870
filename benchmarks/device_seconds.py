"""How long work takes on a device, without what launching it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def device_seconds(run: Callable[[], object], device: torch.device, passes: int) -> float:
    """Median time of ``run`` over ``passes``, after one that compiles and loads; on CUDA of a captured graph."""
    run()
    if device.type != "cuda":
        return median(_seconds(run) for _ in range(passes))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    return median(_replay_seconds(graph) for _ in range(passes))


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record()
    graph.replay()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3
