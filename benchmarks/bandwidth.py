"""How fast a device copies: decoding is bound by memory, so its speed is quoted as a share of this."""

from __future__ import annotations

import time
from statistics import median

import torch

PASSES = 10


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read plus bytes written per second when ``size`` bytes are copied; the median of ``PASSES`` copies."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    target.copy_(source)
    seconds = [_cuda_copy(source, target) if device.type == "cuda" else _copy(source, target) for _ in range(PASSES)]
    return 2 * size / median(seconds)


def _cuda_copy(source: torch.Tensor, target: torch.Tensor) -> float:
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record()
    target.copy_(source)
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3


def _copy(source: torch.Tensor, target: torch.Tensor) -> float:
    started = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - started
