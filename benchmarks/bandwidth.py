"""How fast a device copies: decoding is bound by memory, so its speed is quoted as a share of this."""

from __future__ import annotations

import torch

from redraft.benchmarks.device_seconds import device_seconds

PASSES = 10


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes read plus bytes written per second when ``size`` bytes are copied; the median of ``PASSES`` copies."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / device_seconds(lambda: target.copy_(source), device, PASSES)
