"""How long work takes on a device, without what launching it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

AHEAD = 2**29
"""Bytes copied ahead of what is timed: a quarter of a millisecond, in which the host gets ahead of the device, and more
than any second cache holds, so that none is left of the run before."""


def device_seconds(run: Callable[[], object], device: torch.device, passes: int) -> float:
    """Median time of ``run`` over ``passes``, after one that compiles and loads; on CUDA of a captured graph."""
    clock, replay = DeviceClock(device), captured(run, device)
    return median(clock.seconds(replay) for _ in range(passes))


def captured(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """``run`` as a CUDA graph that was replayed once, after a run that compiles and loads; elsewhere ``run`` itself."""
    run()
    if device.type != "cuda":
        return run
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    return graph.replay


class DeviceClock:
    """Times single pieces of work.

    On CUDA by events.  Between the first and the work the device would wait for the host to launch it, 5 to 10
    microseconds, which is more than many a kernel takes; so it is given something to do before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ahead = torch.empty(2, AHEAD, dtype=torch.uint8, device=device) if device.type == "cuda" else None

    def seconds(self, run: Callable[[], object]) -> float:
        """Of ``run``; what was asked of the device before has ended."""
        if self.ahead is None:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        self.ahead[0].copy_(self.ahead[1])
        before.record()
        run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3
