"""Rotary position embedding (arXiv 2104.09864) in the half-split layout that Llama and Qwen checkpoints use."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(inv_freq: Tensor, positions: int, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine [positions, 1, HD], fp32, for ``inv_freq`` [HD / 2].

    The sine carries the sign of ``rotate_half``, so that applying it takes a roll and two products.
    """
    angle = torch.outer(torch.arange(positions, dtype=torch.float32, device=inv_freq.device), inv_freq.float())
    cos, sin = angle.cos() * scaling, angle.sin() * scaling
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` [R, heads, HD] fp32 by ``cos``, ``sin`` [R, heads or 1, HD] of its rows' positions.

    A factor in a head's ``cos`` and ``sin`` scales that head as well.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
