"""Root-mean-square norm (arXiv 1910.07467): ``x / sqrt(mean(x^2) + eps) * weight``, computed in fp32 per row."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x`` [..., H], ``weight`` [H] fp32 or None (no scale) -> [..., H] in ``x``'s dtype."""
    return functional.rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)
