"""Rows of logits in compiled C (vocab_cpu.c): a CPU's ``greedy_rows``, and what ``marginals`` looks for."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.kernels.fused_cpu import load_fused

MOST = 64
"""Columns kept of a row at most, as vocab_cpu.c has it."""
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


def is_compiled_for(logits: Tensor) -> bool:
    """Whether the functions here take ``logits``: plain CPU memory, fp32 or bf16, and a library."""
    plain = type(logits) is Tensor and logits.device.type == "cpu" and logits.dtype in _DTYPES
    return plain and logits.numel() > 0 and load_fused() is not None


def greedy(logits: Tensor) -> Tensor:
    """``sample_cpu.greedy_rows`` of ``logits`` [R, V] -> [R] int64."""
    library, logits = load_fused(), logits.contiguous()
    assert library is not None
    choice = torch.empty(logits.shape[0], dtype=torch.int64)
    library.greedy(logits.data_ptr(), choice.data_ptr(), *logits.shape, _DTYPES[logits.dtype])
    return choice


def best_of_rows(logits: Tensor, scale: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``kept`` (at most ``MOST``) largest of every row of ``logits`` [N, D, C] divided by ``scale`` [D] fp32.

    Returns the numbers [N, D, kept] fp32, best first, their columns int64, equals in order, and the log-sum-exp of the
    whole row [N, D, 1].  A NaN counts as -inf, and +inf as fp32's largest.
    """
    library, logits, scale = load_fused(), logits.contiguous(), scale.contiguous()
    assert library is not None
    N, D, C = logits.shape
    z, column = torch.empty(N, D, kept), torch.empty(N, D, kept, dtype=torch.int64)
    total = torch.empty(N, D, 1)
    addresses = (tensor.data_ptr() for tensor in (logits, scale, z, column, total))
    library.best_of_rows(*addresses, N * D, D, C, kept, _DTYPES[logits.dtype])
    return z, column, total
