"""Values on their way from the host to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def staged(values: Sequence[int | float | bool], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``values`` where ``device`` can copy them from while the host goes on: for a GPU in pinned memory.

    Each call has memory of its own, so the host may stage for later passes while copies for earlier ones are still to
    come: torch's allocator of pinned memory gives a block to nobody before the copies from it are done
    (ATen/core/CachingHostAllocator.h: ``copy_`` records an event for it).
    """
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
