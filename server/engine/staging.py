"""Values on their way from the host to the device, for which the host does not wait.

A copy from ordinary memory to a GPU may wait for all that was launched before it (cudaMemcpyAsync promises nothing for
pageable memory), and a tensor made there of a list does.  Either would end the host's lead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def staged(values: Sequence[int | float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``values`` as ``pinned`` has them."""
    return pinned(torch.tensor(values, dtype=dtype), device)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` where ``device`` can copy it from while the host goes on: for a GPU in pinned memory, else itself.

    Each call has memory of its own, so the host may stage for later passes while copies for earlier ones are still to
    come: torch's allocator of pinned memory gives a block to nobody before the copies from it are done
    (ATen/core/CachingHostAllocator.h: ``copy_`` records an event for it).
    """
    return tensor.pin_memory() if device.type == "cuda" else tensor
